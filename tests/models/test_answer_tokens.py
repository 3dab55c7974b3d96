"""Answers whose token is not the one that follows the prompt are pointed out, with both texts and both tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, PreTrainedTokenizerFast

import interpretune as it
from interpretune.models.answer_tokens import other_tokens, single_token_ids

WORDS = ("Yes", "No", "Is", "it", "so", "?", ":", "(", "是")


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer of GPT-2's kind, in which a word and the word after a space are different tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces, merges = ["<eos>", *alphabet], []
    for word in WORDS:
        letters = "".join(piece for piece, _ in level.pre_tokenize_str(word))
        steps = [(letters[:end], letters[end]) for end in range(1, len(letters))]
        merges += [step for step in [*steps, ("Ġ", letters)] if step not in merges]
        pieces += [letters[: end + 1] for end in range(1, len(letters))] + [f"Ġ{letters}"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def said(prompt: str, *answers: str) -> list[tuple[str, str]]:
    tokenizer = byte_level()
    found = other_tokens(tokenizer, answers, single_token_ids(tokenizer, answers), tokenizer(prompt)["input_ids"])
    for item in found:
        assert tokenizer.encode(item.given) == [item.given_id]
        assert tokenizer.encode(prompt + item.natural)[-1] == item.natural_id != item.given_id
    return [(item.given, item.natural) for item in found]


@pytest.mark.parametrize(
    ("prompt", "answers", "wanted"),
    [
        ("Is it so?", ("Yes", "No"), [("Yes", " Yes"), ("No", " No")]),
        ("Is it so?", (" Yes", "No"), [("No", " No")]),
        ("Is it so?", (" Yes", " No"), []),
        ("Is it so?\n", (" Yes", " No"), [(" Yes", "Yes"), (" No", "No")]),
        ("Is it so?\n", ("Yes", "No"), []),
        ("Is it so? ", ("Yes", "No"), [("Yes", "Yes"), ("No", "No")]),  # the space belongs to the answer's token
        ("Is it so? ", (" Yes", " No"), []),
        ("Is it so? (", ("Yes", "No"), []),
        ("Is it so?<eos>", ("Yes", "No"), []),
        ("Is it so?", ("是", " No"), []),
    ],
)
def test_the_answer_is_the_token_that_follows_the_prompt(prompt: str, answers: Any, wanted: Any) -> None:
    assert said(prompt, *answers) == wanted


def session(folder: Path, answers: tuple[str, str]) -> it.ITSession:
    tokenizer = byte_level()
    tokenizer.save_pretrained(folder / "tokenizer")
    rows = [{"question": "Is it so?", "label": label} for label in (0, 1)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return it.ITSession(
        it.ITSessionConfig(
            adapter_ctx=("core",),
            shared_cfg=it.ITSharedConfig(tokenizer_name=str(folder / "tokenizer"), cache_dir=folder / "cache"),
            datamodule_cfg=it.ITDataModuleConfig(
                data={"validation": folder / "rows.jsonl"}, text_fields=("question",), num_labels=2
            ),
            module_cfg=it.ITConfig(
                hf_config=GPT2Config(
                    vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
                ),
                generative_step_cfg=it.GenerativeClassificationConfig(answers=answers),
                device="cpu",
            ),
        )
    )


def test_a_session_warns_once_with_both_texts_and_tokens(tmp_path: Path) -> None:
    one, tokenizer = session(tmp_path, ("Yes", "No")), byte_level()
    ids = {word: tokenizer.encode(word)[0] for word in ("Yes", " Yes", "No", " No")}
    with pytest.warns(UserWarning, match="do not follow the prompt") as caught:
        it.it_init(**one)
    it.it_init(**one)  # a second warning would be an error
    (text,) = [str(item.message) for item in caught if "follow the prompt" in str(item.message)]
    for given, natural in (("Yes", " Yes"), ("No", " No")):
        assert f"{given!r} (token {ids[given]}) where {natural!r} (token {ids[natural]}) follows" in text
    assert "answers=(' Yes', ' No')" in text
    assert one.module.answer_token_ids.tolist() == [ids["Yes"], ids["No"]]


def test_a_session_with_the_right_tokens_says_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        it.it_init(**session(tmp_path, (" Yes", " No")))
