"""Reading, checking, tokenizing and caching a data set."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import torch

import interpretune as it
from tests.tiny import CONTEXT_LENGTH, VOCABULARY, nli_rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def jsonl(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", nli_rows(6))


@pytest.fixture
def settings(gpt2_folder, jsonl):
    """Arguments of a configuration that works."""
    return {
        "model_name_or_path": str(gpt2_folder),
        "task_name": "tiny/nli",
        "data": jsonl,
        "text_fields": ("premise", "hypothesis"),
        "num_labels": 2,
    }


class Calls:
    """A count on which no data depend."""

    count = 0

    def identity(self):
        return None


class Counting(it.ITDataModule):
    """Counts how often it prepares."""

    calls = Calls()

    def prepare_data(self, target_model=None):
        self.calls.count += 1
        super().prepare_data(target_model)


def ready(cls=it.ITDataModule, **settings):
    datamodule = cls(it.ITDataModuleConfig(**settings))
    datamodule.prepare_once()
    datamodule.setup()
    return datamodule


def key(cls=it.ITDataModule, **settings) -> str:
    return cls(it.ITDataModuleConfig(**settings)).content_key()


def decoded(datamodule, row: int = 0, split: str = "validation") -> str:
    features = datamodule.dataset[split][row]
    return datamodule.tokenizer.decode(features[datamodule.tokenizer.model_input_names[0]])


# ------------------------------------------------------------------------------------------------------------- content


def test_rows_become_tokens_masks_and_labels(settings):
    datamodule = ready(**settings)
    rows = nli_rows(6)
    tokenizer = datamodule.tokenizer
    assert set(datamodule.dataset) == {"validation"}
    for row, features in zip(rows, datamodule.dataset["validation"], strict=True):
        expected = tokenizer(f"{row['premise']}\n{row['hypothesis']}")["input_ids"]
        assert features == {"input_ids": expected, "attention_mask": [1] * len(expected), "labels": row["label"]}


def test_batches_are_padded_on_the_tokenizer_s_side_and_masks_show_it(settings):
    batch = next(iter(ready(**settings, eval_batch_size=4).val_dataloader()))
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"][:, -1].tolist() == [1, 1, 1, 1]
    assert batch["attention_mask"][:, 0].sum() < 4
    assert batch["labels"].tolist() == [0, 1, 0, 1]


def test_the_mask_travels_whatever_the_columns_and_input_names_say(settings):
    datamodule = ready(
        **settings,
        signature_columns=["input", "labels"],
        tokenizer_kwargs={"model_input_names": ["input"], "padding_side": "left"},
    )
    batch = next(iter(datamodule.test_dataloader()))
    assert set(batch) == {"input", "attention_mask", "labels"}
    lengths = [len(features["input"]) for features in datamodule.dataset["validation"]]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert len(set(lengths)) > 1


def test_columns_follow_the_model_s_forward(settings):
    class Model:
        def forward(self, input_ids, idx):
            raise NotImplementedError

    datamodule = it.ITDataModule(it.ITDataModuleConfig(**settings))
    datamodule.prepare_once(Model())
    datamodule.setup()
    assert set(datamodule.dataset["validation"].column_names) == {"input_ids", "attention_mask", "labels", "idx"}


def test_the_prompt_configuration_shapes_the_prompt(settings):
    @dataclass(kw_only=True)
    class Shouting(it.PromptConfig):
        question_suffix: str = " ? Yes or No"

    prompt_cfg = Shouting(ctx_question_join=" and ")
    pattern = "Question: {task_prompt} Answer:"
    text = decoded(ready(**settings, prompt_cfg=prompt_cfg, cust_tokenization_pattern=pattern))
    row = nli_rows(1)[0]
    words = f"{row['premise']} and {row['hypothesis'].rstrip('.')} ? Yes or No"
    assert text.replace(" ", "") == f"<bos>Question:{words}Answer:".replace(" ", "")


def test_a_pattern_without_a_place_holder_is_refused():
    with pytest.raises(it.ConfigurationError, match=r"'Answer:'.*\{task_prompt\}"):
        it.PromptConfig().model_chat_template_fn("hello", "Answer:")


def test_splits_come_by_name(settings, tmp_path):
    settings["data"] = {"train": write_rows(tmp_path / "train.jsonl", nli_rows(9)), "validation": settings["data"]}
    datamodule = ready(**settings, limit_rows=4, train_batch_size=2)
    assert {split: len(rows) for split, rows in datamodule.dataset.items()} == {"train": 4, "validation": 4}
    assert [len(batch["labels"]) for batch in datamodule.train_dataloader()] == [2, 2]


def test_rows_are_shuffled_for_training_alone(settings, jsonl):
    datamodule = ready(**{**settings, "data": {"train": jsonl, "validation": jsonl}})
    rows = [tuple(row["input_ids"]) for row in datamodule.dataset["train"]]

    def order(loader):
        kept = zip(*((batch["input_ids"], batch["attention_mask"].bool()) for batch in loader), strict=True)
        tokens, masks = ([row for batch in batches for row in batch] for batches in kept)
        return [tuple(row[mask].tolist()) for row, mask in zip(tokens, masks, strict=True)]

    torch.manual_seed(0)
    epochs = [order(datamodule.train_dataloader()) for _ in range(3)]
    assert all(sorted(epoch) == sorted(rows) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [rows, *epochs]}) > 2
    assert order(datamodule.val_dataloader()) == rows


def test_a_saved_folder_of_datasets_works(settings, tmp_path):
    datasets.DatasetDict(test=datasets.Dataset.from_list(nli_rows(3))).save_to_disk(tmp_path / "saved")
    settings["data"] = tmp_path / "saved"
    assert len(ready(**settings).dataset["test"]) == 3


def test_an_absent_split_says_what_there_is(settings):
    with pytest.raises(it.DataError, match=r"no split 'train'; it has \['validation'\].*data=\{\"train\": ..., "):
        ready(**settings).train_dataloader()


def test_hidden_labels_drop_a_split_and_a_few_of_them_are_an_error(settings, tmp_path):
    hidden = [{**row, "label": -1} for row in nli_rows(3)]
    settings["data"] = {"validation": settings["data"], "test": write_rows(tmp_path / "test.jsonl", hidden)}
    assert set(ready(**settings).dataset) == {"validation"}
    write_rows(tmp_path / "test.jsonl", [*nli_rows(3), *hidden])
    with pytest.raises(it.DataError, match="'test'.*labels outside the mapping: -1"):
        ready(**settings)


# --------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(Counting, "calls", Calls())
    return Counting


def test_data_are_prepared_once(settings, counting):
    first, second = ready(counting, **settings), ready(counting, **settings)
    assert counting.calls.count == 1
    assert first.itdm_cfg.dataset_path == second.itdm_cfg.dataset_path
    second.prepare_once()
    assert counting.calls.count == 1
    assert len(second.dataset["validation"]) == 6


def test_force_prepares_again(settings, counting):
    for _ in range(2):
        ready(counting, **settings, force_prepare_data=True)
    assert counting.calls.count == 2


def test_a_damaged_data_set_is_prepared_again(settings, counting):
    """Cut short, or of the right size with a bit that is another."""
    first = ready(counting, **settings)
    arrow = next(Path(first.itdm_cfg.dataset_path).rglob("*.arrow"))
    whole, expected = arrow.read_bytes(), list(first.dataset["validation"]["input_ids"])
    for damaged in (whole[:50], whole[:-600] + bytes([whole[-600] ^ 1]) + whole[-599:]):
        arrow.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"was damaged \(.*\.arrow has .*it is made anew"):
            again = ready(counting, **settings)
        assert list(again.dataset["validation"]["input_ids"]) == expected
    assert counting.calls.count == 3


def test_interrupted_preparation_leaves_nothing_and_restores_the_path(settings, own_cache):
    class Interrupted(it.ITDataModule):
        def prepare_data(self, target_model=None):
            super().prepare_data(target_model)
            raise KeyboardInterrupt

    datamodule = Interrupted(it.ITDataModuleConfig(**settings))
    with pytest.raises(KeyboardInterrupt):
        datamodule.prepare_once()
    assert [path for path in own_cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert "partial" not in str(datamodule.itdm_cfg.dataset_path)


def test_a_given_path_holds_the_data(settings, tmp_path):
    datamodule = ready(**settings, dataset_path=tmp_path / "here")
    assert Path(datamodule.itdm_cfg.dataset_path).parent == tmp_path / "here"


def test_processes_that_prepare_at_the_same_time_share_one_preparation(settings, tmp_path):
    started = tmp_path / "started"  # a list would be part of what the class does, and of its key

    class Slow(it.ITDataModule):
        def prepare_data(self, target_model=None):
            with started.open("a") as notes:
                notes.write("x")
            super().prepare_data(target_model)

    both = [Slow(it.ITDataModuleConfig(**settings)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Slow.prepare_once, both))
    assert started.read_text() == "x"
    assert both[0].itdm_cfg.dataset_path == both[1].itdm_cfg.dataset_path


@dataclass(kw_only=True)
class OtherPrompt(it.PromptConfig):
    def model_chat_template_fn(self, task_prompt, tokenization_pattern=None):
        return f"Question {task_prompt}"


CHANGES = {
    "prompt text": {"prompt_cfg": it.PromptConfig(question_suffix=" ?")},
    "prompt code": {"prompt_cfg": OtherPrompt()},
    "chat pattern": {"cust_tokenization_pattern": "{task_prompt} Answer"},
    "tokenizer arguments": {"tokenizer_kwargs": {"padding_side": "right"}},
    "padding id": {"tokenizer_id_overrides": {"pad_token_id": VOCABULARY["<pad>"]}},
    "limit": {"limit_rows": 3},
    "fields": {"text_fields": ("hypothesis", "premise")},
    "label field": {"label_field": "idx"},
    "labels": {"num_labels": 3},
    "columns": {"signature_columns": ["input_ids", "idx"]},
    "length": {"max_length": 99},
    "task": {"task_name": "another"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_data_changes_their_key(settings, change):
    assert key(**settings) != key(**{**settings, **CHANGES[change]})


def test_what_does_not_change_the_data_keeps_their_key(settings):
    same = {"train_batch_size": 1, "eval_batch_size": 1, "dataloader_kwargs": {"num_workers": 0}, "cache_dir": "/x"}
    assert key(**settings) == key(**{**settings, **same})


def test_another_tokenizer_changes_the_key(settings, llama_folder):
    assert key(**settings) != key(**{**settings, "tokenizer_name": str(llama_folder)})


def test_the_content_of_the_file_is_in_the_key(settings, jsonl):
    before = key(**settings)
    write_rows(jsonl, nli_rows(6, seed=1))
    assert key(**settings) != before
    write_rows(jsonl, nli_rows(6))
    assert key(**settings) == before


def test_which_split_a_file_is_is_in_the_key(settings, jsonl, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", nli_rows(4, seed=1))
    keys = {
        key(**{**settings, "data": data})
        for data in (
            {"train": jsonl, "validation": other},
            {"validation": jsonl, "train": other},
            {"train": jsonl},
            {"validation": jsonl},
        )
    }
    assert len(keys) == 4


def test_the_content_of_a_saved_folder_is_in_the_key(settings, tmp_path):
    keys = set()
    for rows in (nli_rows(3), nli_rows(3, seed=1)):
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
        keys.add(key(**{**settings, "data": tmp_path / "saved"}))
    assert len(keys) == 2


BODIES = {
    "first": "return row['premise'].upper()",
    "another attribute": "return row['premise'].lower()",
    "another constant": "return row['hypothesis'].upper()",
    "an inner function": "return (lambda text: text.upper())(row['premise'])",
    "another inner function": "return (lambda text: text.lower())(row['premise'])",
    "a default": "return row['premise'].upper()  # see the signature",
}


def class_with(body: str, default: int = 0) -> type:
    space = {"it": it, "__name__": "somewhere"}
    exec(f"class Mine(it.ITDataModule):\n  def prepare_data(self, row, d={default}):\n    {body}\n", space)
    return space["Mine"]


def test_the_code_of_prepare_data_is_in_the_key(settings):
    keys = {name: key(class_with(body, int(name == "a default")), **settings) for name, body in BODIES.items()}
    assert len(set(keys.values())) == len(BODIES)
    assert keys["first"] == key(class_with(BODIES["first"]), **settings)


def test_the_key_does_not_depend_on_the_order_of_sets_which_differs_between_processes(settings):
    one, two = frozenset([0, 8]), frozenset([8, 0])
    assert repr(one) != repr(two), "equal sets that are shown differently"
    assert key(class_with("return row in {0, 8}"), **settings) == key(class_with("return row in {8, 0}"), **settings)
    assert key(class_with("return row in {0, 8}"), **settings) != key(class_with("return row in {0, 9}"), **settings)


def test_the_key_does_not_depend_on_addresses(settings):
    def with_default():
        class Mine(it.ITDataModule):
            def prepare_data(self, row, default=object()):  # noqa: B008
                return default

        return Mine

    assert key(with_default(), **settings) == key(with_default(), **settings)


def test_inherited_code_of_the_prompt_configuration_is_in_the_key(settings):
    def prompt_of(suffix):
        parent = dataclass(kw_only=True)(type("Parent", (it.PromptConfig,), {"model_chat_template_fn": suffix}))
        return dataclass(kw_only=True)(type("Child", (parent,), {}))()

    first, second = prompt_of(lambda self, task_prompt, _: task_prompt), prompt_of(lambda self, task_prompt, _: "Ada")
    assert key(**settings, prompt_cfg=first) != key(**settings, prompt_cfg=second)


# -------------------------------------------------------------------------------------------------------------- errors


def refused(error, settings, **changes) -> str:
    with pytest.raises(error) as caught:
        ready(**{**settings, **changes})
    return str(caught.value)


def test_nothing_to_prepare(settings):
    message = refused(it.ConfigurationError, settings, data=None)
    assert "ITDataModuleConfig.data" in message
    assert "override prepare_data" in message


@pytest.mark.parametrize("text_fields", [None, ()])
def test_no_text_fields(settings, text_fields):
    assert "text_fields is empty" in refused(it.ConfigurationError, settings, text_fields=text_fields)


def test_an_error_in_one_split_names_its_file_alone(settings, jsonl, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", nli_rows(4))
    message = refused(it.DataError, settings, data={"train": other, "validation": jsonl}, text_fields=("nothing",))
    assert "Split 'train' of" in message
    assert message.count(".jsonl") == message.count("other.jsonl") == 1


def test_missing_columns_are_named_with_those_found(settings, own_cache):
    message = refused(it.DataError, settings, text_fields=("premise", "question"), label_field="answer")
    for part in ("'question', 'answer'", "'premise', 'hypothesis'", "rows.jsonl", "Set text_fields and label_field"):
        assert part in message
    assert [path for path in own_cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.mark.parametrize(("label", "shown"), [(2, "2"), (-1, "-1"), (None, "None"), (0.5, "0.0, 0.5, 1.0")])
def test_labels_outside_the_mapping(settings, jsonl, label, shown):
    write_rows(jsonl, [*nli_rows(3), {**nli_rows(1)[0], "label": label}])
    message = refused(it.DataError, settings)
    assert f"labels outside the mapping: {shown};" in message
    assert "range(2)" in message


def test_labels_that_are_words(settings, jsonl):
    write_rows(jsonl, [{**row, "label": "entailment"} for row in nli_rows(3)])
    assert "entailment; expected integers from 0" in refused(it.DataError, settings, num_labels=None)


def test_a_row_whose_field_is_null(settings, jsonl):
    write_rows(jsonl, [*nli_rows(2), {**nli_rows(1)[0], "hypothesis": None}])
    message = refused(it.DataError, settings)
    assert "Row 2 of split 'validation'" in message
    assert "'hypothesis'" in message


def test_an_empty_prompt(settings, jsonl):
    write_rows(jsonl, [*nli_rows(2), {**nli_rows(1)[0], "premise": " ", "hypothesis": ""}])
    assert "Row 2 of split 'validation' is empty" in refused(it.TokenizationError, settings)


@pytest.mark.parametrize(("limit", "max_length"), [(CONTEXT_LENGTH, None), (20, 20)])
def test_a_prompt_that_is_too_long(settings, jsonl, limit, max_length):
    write_rows(jsonl, [*nli_rows(1), {**nli_rows(1)[0], "premise": "the dog " * 100}])
    message = refused(it.TokenizationError, settings, max_length=max_length)
    for part in ("row 1 of split 'validation'", f"the limit is {limit}", "max_length"):
        assert part in message


def test_a_prompt_may_be_as_long_as_the_limit(settings):
    longest = max(map(len, ready(**settings).dataset["validation"]["input_ids"]))
    assert len(ready(**settings, max_length=longest).dataset["validation"]) == 6
    assert f"the limit is {longest - 1}" in refused(it.TokenizationError, settings, max_length=longest - 1)


def test_a_missing_file_a_broken_file_and_an_empty_file(settings, jsonl, tmp_path):
    assert "gone.jsonl does not exist" in refused(it.DataError, settings, data={"validation": tmp_path / "gone.jsonl"})
    assert "gone.jsonl" in refused(it.DataError, settings, data=tmp_path / "gone.jsonl")
    jsonl.write_text('{"premise": "the dog')
    assert "rows.jsonl is not a JSONL file" in refused(it.DataError, settings)
    jsonl.write_text("")
    assert "rows.jsonl is empty" in refused(it.DataError, settings)


def test_data_that_are_nowhere(settings):
    message = refused(it.DataError, settings, data="nobody/nothing")
    assert "'nobody/nothing' is neither a file nor a folder" in message
    assert "Give a JSONL file" in message


def test_no_rows(settings):
    assert "has no rows" in refused(it.DataError, settings, limit_rows=0)


def test_fields_and_tokenizer_state_that_change_content_change_the_key(settings, tmp_path):
    @dataclass(kw_only=True)
    class FewShot(it.ITDataModuleConfig):
        shots: int = 0

    def key_of(cfg: it.ITDataModuleConfig) -> str:
        return it.ITDataModule(itdm_cfg=cfg).content_key()

    assert key_of(FewShot(**settings, shots=5)) != key_of(FewShot(**settings))
    assert key_of(FewShot(**settings, eval_batch_size=3)) == key_of(FewShot(**settings))
    datamodule = it.ITDataModule(itdm_cfg=FewShot(**settings))
    before = datamodule.content_key()
    datamodule.tokenizer.backend_tokenizer.post_processor = None  # no BOS any more, the same vocabulary
    assert datamodule.content_key() != before


def test_prompts_beyond_the_model_s_context_are_refused_where_the_tokenizer_names_no_limit(settings, jsonl):
    write_rows(jsonl, [{"premise": "dog " * 200, "hypothesis": "cat", "label": 0}])
    cfg = it.ITDataModuleConfig(data=settings.pop("data"), text_fields=settings.pop("text_fields"), num_labels=2)
    settings.pop("num_labels")
    tokenizer_kwargs = {"model_max_length": 10**30}
    session = it.ITSession(
        it.ITSessionConfig(
            shared_cfg=it.ITSharedConfig(**settings, tokenizer_kwargs=tokenizer_kwargs), datamodule_cfg=cfg
        )
    )
    with pytest.raises(it.TokenizationError, match=f"the limit is {CONTEXT_LENGTH}"):
        it.it_init(**session)


def test_a_folder_that_datasets_did_not_save_is_refused(settings, tmp_path):
    with pytest.raises(it.DataError, match="save_to_disk"):
        ready(**{**settings, "data": tmp_path})
