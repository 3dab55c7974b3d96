"""Tokenizers, masks, padding and the answer position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

import interpretune as it
from interpretune.models.answer_tokens import single_token_ids
from interpretune.models.padding import PaddingCollator, answer_positions, mask_of, position_ids, tokens_of
from tests.tiny import VOCABULARY, tiny_tokenizer

SIDES = pytest.mark.parametrize("side", ["left", "right"])
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def padded(lengths: list[int], side: str, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Tokens, mask and the unpadded rows; padding has the id 0, as some real tokens have."""
    width = max(lengths) + extra
    rows = [[(3 * row + pos) % 5 for pos in range(length)] for row, length in enumerate(lengths)]
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[index, place], mask[index, place] = torch.tensor(row), 1
    return tokens, mask, rows


@SIDES
@settings(max_examples=50, deadline=None)
@given(lengths=lengths, extra=st.integers(0, 3))
def test_the_answer_position_is_the_last_real_token(side, lengths, extra):
    tokens, mask, rows = padded(lengths, side, extra)
    positions = answer_positions(mask)
    assert positions.dtype == torch.int64
    assert positions.shape == (len(rows),)
    assert tokens[torch.arange(len(rows)), positions].tolist() == [row[-1] for row in rows]
    assert torch.equal(positions, answer_positions(mask.bool()))


@SIDES
@settings(max_examples=50, deadline=None)
@given(lengths=lengths)
def test_positions_count_real_tokens_only(side, lengths):
    _, mask, rows = padded(lengths, side)
    found = position_ids(mask)
    assert [found[index][mask[index] == 1].tolist() for index in range(len(rows))] == [
        list(range(len(r))) for r in rows
    ]
    assert found.min() >= 0


@SIDES
@settings(max_examples=50, deadline=None)
@given(lengths=lengths, extra=st.integers(0, 3))
def test_pad_left_moves_padding_and_keeps_order(side, lengths, extra):
    tokens, mask, rows = padded(lengths, side, extra)
    moved, moved_mask = it.pad_left(tokens, mask)
    assert moved.shape == tokens.shape
    for index, row in enumerate(rows):
        assert moved[index, moved.shape[1] - len(row) :].tolist() == row
        assert moved_mask[index].tolist() == [0] * (moved.shape[1] - len(row)) + [1] * len(row)


@SIDES
@settings(max_examples=50, deadline=None)
@given(lengths=lengths, prepadded=st.booleans())
def test_the_collator_pads_on_the_tokenizer_s_side_to_the_longest_row(side, lengths, prepadded):
    collate = PaddingCollator(tiny_tokenizer(side))
    tokens, mask, rows = padded(lengths, side, extra=2)
    features = [
        {"input_ids": tokens[index].tolist(), "attention_mask": mask[index].tolist(), "labels": index}
        if prepadded
        else {"input_ids": row, "attention_mask": [1] * len(row), "labels": index}
        for index, row in enumerate(rows)
    ]
    batch = collate(features)
    expected_tokens, expected_mask, _ = padded(lengths, side)
    assert torch.equal(batch["input_ids"], expected_tokens)
    assert torch.equal(batch["attention_mask"], expected_mask)
    assert batch["labels"].tolist() == list(range(len(rows)))


def test_the_collator_pads_tokens_under_another_name():
    tokenizer = tiny_tokenizer("left", bos_is_pad=False)
    tokenizer.model_input_names = ["input", "attention_mask"]
    batch = PaddingCollator(tokenizer)(
        [{"input": [5, 6], "attention_mask": [1, 1]}, {"input": [7], "attention_mask": [1]}]
    )
    assert batch["input"].tolist() == [[5, 6], [VOCABULARY["<pad>"], 7]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]


def test_the_collator_refuses_rows_without_a_mask():
    rows = [{"input_ids": [5, 6], "attention_mask": [1, 1]}, {"input_ids": [7]}]
    with pytest.raises(it.DataError, match="no attention_mask.*BOS and padding share an id.*Keep it"):
        PaddingCollator(tiny_tokenizer())(rows)


def test_a_batch_without_tokens_or_mask_is_refused():
    with pytest.raises(it.DataError, match=r"no tokens.*input_ids.*found \['words'\]"):
        tokens_of({"words": torch.ones(1, 2)})
    with pytest.raises(it.DataError, match=r"no attention_mask.*Found \['input_ids'\]"):
        mask_of({"input_ids": torch.ones(1, 2)})
    with pytest.raises(it.DataError, match=r"Rows \[1\] of the batch"):
        mask_of({"attention_mask": torch.tensor([[0, 1], [0, 0]])})


def test_tokens_go_by_either_name():
    tokens = torch.ones(1, 2)
    assert tokens_of({"input": tokens}) == ("input", tokens)
    assert tokens_of({"input_ids": tokens}) == ("input_ids", tokens)


def test_sanitize_input_name_renames_in_place():
    features = {"input_ids": [1], "attention_mask": [1]}
    assert it.sanitize_input_name(["input", "attention_mask"], features) is features
    assert features == {"input": [1], "attention_mask": [1]}
    assert it.sanitize_input_name(["input_ids"], {"input_ids": [1]}) == {"input_ids": [1]}


def test_answer_words_become_single_tokens():
    assert single_token_ids(tiny_tokenizer(), ("Yes", " No")) == [VOCABULARY["Yes"], VOCABULARY["No"]]


def test_an_answer_of_several_pieces_shows_them():
    with pytest.raises(it.TokenizationError) as caught:
        single_token_ids(tiny_tokenizer(), ("Yes", "No, never"))
    for part in ("'No, never' is 3 tokens", "['No', ',', 'never']", "Use a word that is one token"):
        assert part in str(caught.value)


def test_an_answer_that_only_needs_a_space_is_told_so():
    class NeedsSpace:
        def encode(self, text, add_special_tokens):
            return [7] if text.startswith(" ") else [1, 2]

        def convert_ids_to_tokens(self, ids):
            return [f"piece{token}" for token in ids]

    with pytest.raises(it.TokenizationError, match="'Yes' is 2 tokens.*piece1.*' Yes' is one token; use it"):
        single_token_ids(NeedsSpace(), ("Yes",))


def test_answers_that_share_a_token_are_refused():
    with pytest.raises(it.TokenizationError, match=r"\['Yes', ' Yes'\] share a token"):
        single_token_ids(tiny_tokenizer(), ("Yes", " Yes"))


def load(folder, **settings):
    return it.load_tokenizer(it.ITSharedConfig(model_name_or_path=str(folder), **settings))


def test_a_tokenizer_always_makes_masks(gpt2_folder):
    tokenizer = load(gpt2_folder, tokenizer_kwargs={"model_input_names": ["input"], "padding_side": "right"})
    assert tokenizer.model_input_names == ["input", "attention_mask"]
    assert tokenizer.padding_side == "right"
    assert tokenizer("Ada sees")["attention_mask"] == [1, 1, 1]


def test_token_ids_can_be_overridden(gpt2_folder):
    tokenizer = load(gpt2_folder, tokenizer_id_overrides={"pad_token_id": VOCABULARY["<pad>"]})
    assert tokenizer.pad_token_id == VOCABULARY["<pad>"]
    assert tokenizer.bos_token_id == VOCABULARY["<bos>"]


@pytest.mark.parametrize("override", [{"pad_token_id": 10**6}, {"pad_token": 3}])
def test_an_override_that_cannot_be_is_refused(gpt2_folder, override):
    with pytest.raises(it.TokenizationError, match=f"{next(iter(override))}.*pad_token_id"):
        load(gpt2_folder, tokenizer_id_overrides=override)


def test_without_a_padding_token_the_end_token_pads_and_without_either_it_is_an_error(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "end")
    assert load(tmp_path / "end").pad_token == "<eos>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "nothing")
    with pytest.raises(it.TokenizationError, match="neither a padding nor an end token.*pad_token_id"):
        load(tmp_path / "nothing")


def test_a_tokenizer_of_its_own_wins_over_the_model_s(gpt2_folder, llama_folder):
    assert load(gpt2_folder, tokenizer_name=str(llama_folder)).pad_token == "<pad>"


def test_an_unknown_tokenizer_says_how_to_use_a_local_folder():
    with pytest.raises(it.ModelLoadError, match="(?s)'nobody/nothing'.*local folder") as caught:
        load("nobody/nothing")
    assert caught.value.__cause__ is not None


def test_no_tokenizer_at_all_says_what_to_set():
    with pytest.raises(it.InterpretuneError, match="model_name_or_path.*tokenizer_name"):
        load("")


def test_an_answer_outside_the_vocabulary_is_named():
    with pytest.raises(it.TokenizationError, match=r"answer ' Xylophone' is not in this tokenizer's vocabulary.*<unk>"):
        single_token_ids(tiny_tokenizer(), ("Yes", " Xylophone"))
    assert single_token_ids(tiny_tokenizer(), ("<unk>",)) == [VOCABULARY["<unk>"]]
