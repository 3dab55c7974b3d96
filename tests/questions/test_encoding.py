"""Rows become tokens: prompts, the answers that follow them, and spans, in every kind of tokenizer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import pre_tokenizers

from interpretune.errors import DataError, InterpretuneError, TokenizationError
from interpretune.questions import EncodedRow, PromptRow, encode
from tests.tiny_tokenizers import byte_level, bytes_alone, kinds, metaspace

WRITTEN = ("byte_level", "byte_level_trimmed", "metaspace", "bytes")
"""Kinds of tokenizers that keep every character of a text."""
TEXT = st.text(st.sampled_from("The keys cabinet\n.:é京🦊12"), min_size=1, max_size=12).filter(str.strip)
CAPITAL = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Is it so?"}]


def one(prompt: Any, *answers: str, tokenizer: Any = None, **options: Any) -> EncodedRow:
    row = PromptRow(prompt, answers or (" yes", " no"), **options)
    return encode([row], tokenizer or byte_level())[0]


def bytes_of(tokenizer: Any, tokens: Any) -> list[bytes]:
    """What each token stands for, from its text in the vocabulary."""
    letters = dict(zip(*bytes_by_letter(), strict=True))
    found = []
    for token in tokenizer.convert_ids_to_tokens(list(map(int, tokens))):
        if isinstance(tokenizer, type(bytes_alone())):
            found.append(bytes([ord(token)]))
        elif token.startswith("<0x"):
            found.append(bytes([int(token[3:5], 16)]))
        elif "▁" in tokenizer.get_vocab():
            found.append(token.replace("▁", " ").encode())
        else:
            found.append(bytes(letters[letter] for letter in token))
    return found


def bytes_by_letter() -> tuple[list[str], list[int]]:
    """GPT-2's letters for bytes: those that can be seen stand for themselves, the others follow from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in seen]
    letters = [chr(byte) for byte in seen] + [chr(256 + i) for i in range(len(others))]
    assert sorted(letters) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return letters, [*seen, *others]


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=25, deadline=None)
@given(prompt=TEXT, answers=st.lists(TEXT, min_size=1, max_size=3, unique=True))
def test_prompt_and_answer_are_the_text(kind, prompt, answers):
    tokenizer = kinds()[kind]
    before = tokenizer("a", add_special_tokens=True)["input_ids"][:1] if kind != "bytes" else []
    special = len([token for token in before if token in tokenizer.all_special_ids])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [row] = encode([PromptRow(prompt, answers)], tokenizer)
    except TokenizationError:
        assert any(a != b and a.startswith(b) for a in answers for b in answers)
        return
    assert row.tokens[:special].tolist() == before[:special]
    assert row.tokens.dtype == torch.int64
    for answer, ids in zip(answers, row.answers, strict=True):
        whole = b"".join(bytes_of(tokenizer, [*row.tokens[special:], *ids])).decode()
        assert whole.removeprefix(" " if kind == "metaspace" else "") == prompt + answer


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), prompt=TEXT)
def test_a_span_is_every_token_that_overlaps_it(kind, data, prompt):
    prompt = prompt.lstrip()  # at the beginning, a space that a tokenizer puts before the text looks like one of it
    start = data.draw(st.integers(0, len(prompt) - 1))
    stop = data.draw(st.integers(start + 1, len(prompt)))
    tokenizer = kinds()[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        [row] = encode([PromptRow(prompt, (" yes",), spans={"part": (start, stop)})], tokenizer)
    special = int(row.tokens[0] == tokenizer.bos_token_id) if tokenizer.bos_token_id is not None else 0
    at = -1 if kind == "metaspace" else 0  # the space that is put before the text
    wanted = []
    first, last = len(prompt[:start].encode()), len(prompt[:stop].encode())
    for i, piece in enumerate(bytes_of(tokenizer, row.tokens[special:])):
        if max(at, first) < min(at + len(piece), last):
            wanted.append(i + special)
        at += len(piece)
    assert row.spans == {"part": (wanted[0], wanted[-1] + 1)}


@pytest.mark.parametrize("kind", [*WRITTEN, "words"])
def test_spans_by_text_at_the_edges(kind):
    spans = {"first": "The dog", "last": "bridge", "all": (0, 32)}
    row = one("The dog sees the cat on a bridge", " yes", tokenizer=kinds()[kind], spans=spans)
    whole = len(row.tokens) - (int(row.tokens[0]) in kinds()[kind].all_special_ids)
    assert row.spans["first"][0] == len(row.tokens) - whole
    assert row.spans["last"][1] == len(row.tokens)
    assert row.spans["all"] == (len(row.tokens) - whole, len(row.tokens))
    if kind == "words":
        assert row.spans == {"first": (1, 3), "last": (8, 9), "all": (1, 9)}


def test_answers_may_be_several_tokens():
    row = one("The capital of Peru is", " Lima", " Buenos Aires", " Quito and", " Quito near", correct=1)
    words = ["ĠLima", "ĠBuenos ĠAires", "ĠQuito Ġand", "ĠQuito Ġnear"]
    assert [" ".join(byte_level().convert_ids_to_tokens(list(ids))) for ids in row.answers] == words
    assert row.correct == 1


def test_no_space_is_added_to_an_answer_alone():
    tokenizer = metaspace()
    ids = one("1732\n", "Yes", "No", tokenizer=tokenizer).answers
    assert [tokenizer.convert_ids_to_tokens(list(one)) for one in ids] == [["Yes"], ["No"]]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("No", add_special_tokens=False)) == ["▁No"]


def test_an_answer_that_is_joined_stands_alone():
    with pytest.warns(UserWarning, match="joins") as said:
        row = encode([PromptRow("Is it so? ", ("Yes", "No")), PromptRow("Is it so? ", ("yes", "no"))], byte_level())[0]
    assert [byte_level().convert_ids_to_tokens(list(ids)) for ids in row.answers] == [["Yes"], ["No"]]
    [text] = [str(one.message) for one in said]
    assert "joins the end of the prompt (1 token: ['Ġ']" in text
    assert "together they are (1 token: ['ĠYes']" in text
    assert "Move a space" in text


def test_two_spaces_before_an_answer_are_told():
    with pytest.warns(UserWarning, match="two in a row"):
        encode([PromptRow("Is it so? ", (" Yes", " No"))], byte_level())


def test_an_answer_without_its_space_is_told_once():
    rows = [PromptRow("Is it so?", (" Yes", "No")), PromptRow("Is it so?", ("Yes", "No"))]
    with pytest.warns(UserWarning, match="follows in") as said:
        encode(rows, byte_level())
    [text] = [str(one.message) for one in said]
    assert text.startswith("Row 0, 'Is it so?': the answer 'No' (1 token: ['No']")
    assert "where ' No' (1 token: ['ĠNo']" in text
    assert text.endswith("write ' No'.")


@pytest.mark.parametrize(
    ("prompt", "answers"),
    [
        ("The year 17", ("32", "17")),
        ("The key", (".", "?")),
        ("Is it so? (", ("yes", "no")),
        ("Is it\n", ("Yes", "No")),
    ],
)
def test_answers_that_need_no_space_are_not_told(prompt, answers):
    one(prompt, *answers)


def test_special_tokens_are_added_on_wish():
    row = PromptRow(CAPITAL, (" Paris",))
    tokenizer = byte_level(bos=True)
    [with_bos] = encode([row], tokenizer)
    [without] = encode([row], tokenizer, add_special_tokens=False)
    assert with_bos.tokens.tolist() == [tokenizer.bos_token_id, *without.tokens.tolist()]
    assert with_bos.answers == without.answers
    twice = one("<bos><bos>The", tokenizer=tokenizer, spans={"the": "The"})
    assert twice.tokens[:3].tolist() == [tokenizer.bos_token_id] * 3
    assert twice.spans == {"the": (3, 4)}


def test_a_special_token_at_the_end_is_left_out():
    tokenizer = bytes_alone()
    assert tokenizer("Is")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(one("Is", tokenizer=tokenizer).tokens) == "Is"


def test_chat_messages_go_through_the_template():
    tokenizer = byte_level(bos=True, chat=True)
    row = one(MESSAGES, "Yes", "No", tokenizer=tokenizer, spans={"it": "it"}, corrupted=[{**MESSAGES[0]}])
    text = "<|user|>Is it so?<eos>\n<|assistant|>\n"
    assert tokenizer.decode(row.tokens) == text
    assert row.tokens.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert row.corrupted is not None
    assert row.corrupted.tolist() == row.tokens.tolist()
    assert tokenizer.decode(row.tokens[slice(*row.spans["it"])]) == " it"


def test_corrupted_prompts_are_tokens_too():
    tokenizer = byte_level(bos=True)
    row = one("The capital of France is", " Paris", " Rome", corrupted="The capital of Peru is", tokenizer=tokenizer)
    assert row.corrupted is not None
    assert tokenizer.decode(row.corrupted) == "<bos>The capital of Peru is"


def test_rows_may_be_none():
    assert encode([], byte_level()) == []


WRONG = [
    ({"rows": 5}, "The rows are 5; give a list of PromptRow"),
    ({"rows": "The key"}, "The rows are 'The key'"),
    ({"rows": ["The key"]}, "Row 0 is 'The key', which is no PromptRow"),
    ({"prompt": ""}, "the prompt '' has no tokens"),
    ({"prompt": MESSAGES}, r"Row 0, 'Is it so\?': the prompt is chat messages, and .* has no chat template"),
    ({"answers": (" yes", " yes")}, "' yes' .* has the tokens of the answer ' yes'"),
    ({"answers": (" Quito and Rome", " Quito")}, "' Quito' .* is how the tokens begin of the answer ' Quito and Rome'"),
    ({"corrupted": "The capital of Buenos Aires is"}, r"has 5 tokens and its corrupted prompt 6.*From token 3 on"),
    ({"corrupted": "The capital of Buenos Aires is"}, r"\['ĠFrance'\] in the prompt, \['ĠBuenos', 'ĠAires'\]"),
    ({"corrupted": ""}, "The corrupted prompt of row 0: the prompt '' has no tokens"),
    ({"spans": {"s": "Spain"}}, "the span 's' is 'Spain', which is not in the prompt"),
    (
        {"prompt": "the key of the key is", "spans": {"s": "the"}},
        r"first at .* 0 and 11. Say which: \(0, 3\) or \(11, 14",
    ),
    ({"prompt": "aaa", "spans": {"s": "aa"}}, r"0 and 1. Say which"),
    ({"spans": {"s": (3, 3)}}, r"\(3, 3\), which are no characters of the prompt; it has 24"),
    ({"spans": {"s": (20, 25)}}, "no characters of the prompt"),
    ({"spans": {"s": (-3, 2)}}, "no characters of the prompt"),
    ({"most_tokens": 4}, "read 5 tokens of the prompt, and the most is 4"),
    (
        {"answers": (" Buenos Aires",), "most_tokens": 5},
        "5 tokens of the prompt and all but the last of the 2 of its lo",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_is_wrong_is_said(options, message):
    given = dict(options)
    most = given.pop("most_tokens", None)
    rows = given.pop("rows", None) or [PromptRow(**{"prompt": CAPITAL, "answers": (" Paris", " Rome"), **given})]
    with pytest.raises(DataError, match=message):
        encode(rows, byte_level(), most_tokens=most)


def test_the_limit_counts_what_the_model_reads():
    row = PromptRow(CAPITAL, (" Paris", " Buenos Aires"))
    assert len(encode([row], byte_level(), most_tokens=6)) == 1


def test_an_answer_outside_the_vocabulary_is_refused():
    with pytest.raises(TokenizationError, match=r"Row 0, 'the dog is': the answer ' Zagreb' is not in this tokenizer"):
        one("the dog is", " Zagreb", tokenizer=kinds()["words"])


def test_an_answer_of_no_tokens_is_refused():
    with pytest.raises(TokenizationError, match="the answer ' ' has no tokens after this prompt"):
        one("the dog is", " ", tokenizer=kinds()["words"])


def test_a_template_that_refuses_is_told():
    tokenizer = byte_level(chat=True)
    tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(DataError, match="does not take these messages: TemplateError: Roles must alternate"):
        one(MESSAGES, tokenizer=tokenizer)


def test_spans_need_tokens_that_can_be_found():
    class Loses(type(bytes_alone())):  # type: ignore[misc]
        def decode(self, *args: Any, **kwargs: Any) -> str:
            return super().decode(*args, **kwargs).lower()

    with pytest.raises(TokenizationError, match="Loses does not say which characters its tokens stand for"):
        one("The key", tokenizer=Loses(extra_ids=0), spans={"the": "The"})


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.text("aé \ud800\0<eos>", max_size=4)
    | st.floats()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "s"]), inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(ANYTHING, ANYTHING, st.just(0) | ANYTHING, st.none() | ANYTHING, st.just({}) | ANYTHING, st.booleans())
def test_no_row_raises_a_bare_error(prompt, answers, correct, corrupted, spans, plain):
    given = "The key" if plain else prompt
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encode([PromptRow(given, answers, correct, corrupted, spans)], byte_level_of_chat())
        except InterpretuneError:
            return


def byte_level_of_chat(made: list[Any] = []) -> Any:  # noqa: B006 (built once)
    made[:] = made or [byte_level(chat=True)]
    return made[0]
