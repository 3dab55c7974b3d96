"""Whatever is written into a configuration: it works, or it is refused with an error of interpretune's in words."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import importlib
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisRunner, QuestionCfg, SaveCfg, run_analysis
from interpretune.cli.run_config import read_run
from interpretune.cli.written_analysis import RunnerOptions, WrittenAnalysis
from tests.sessions import make_session


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None


NASTY = [
    *(None, True, 0, -1, 3, 2**70, -(10**30), 1.5, float("nan"), float("inf"), "", "x", "../x", b"x", 1j),
    *([], [None], ["x"], [[]], {}, {"x": 1}, {1: 2}, {"class_path": 3}, (1, 2), {"x"}, Path("x"), int, print, object()),
    *(np.int64(3), np.float32(0.5), np.arange(2), torch.ones(2), torch.nn.Linear(1, 1), Unshowable()),
]
CLASSES = [
    *(it.ITSessionConfig, it.ITSharedConfig, it.ITConfig, it.ITDataModuleConfig, it.PromptConfig, it.AutoCompConfig),
    *(it.HFFromPretrainedConfig, it.HFGenerationConfig, it.GenerativeClassificationConfig, it.LatentTrainingConfig),
    *(it.LoopConfig, it.EarlyStopping, AnalysisCfg, SaveCfg, WrittenAnalysis, RunnerOptions, QuestionCfg),
    *(it.MemoryProfileCfg, it.analysis.EvidenceCfg, it.analysis.CircuitCfg),
]
for name in ("interpretune_tlens", "interpretune_saelens", "interpretune_lightning"):
    if importlib.util.find_spec(name):
        found = vars(importlib.import_module(f"{name}.config")).values()
        CLASSES += [item for item in found if dataclasses.is_dataclass(item) and item.__module__ == f"{name}.config"]


def needed(cls: type) -> dict[str, Any]:
    """Values for the fields without a default."""
    return {
        item.name: {"architecture": "standard"} if item.name == "cfg" else "x"
        for item in dataclasses.fields(cls)
        if item.init and item.default is item.default_factory is dataclasses.MISSING
    }


def refusal(cls: type, name: str, value: Any) -> str | None:
    """What a configuration says of a value for a field; None: it takes it."""
    try:
        copy.copy(cls(**{**needed(cls), name: value}))
    except it.InterpretuneError as error:
        return str(error)
    return None


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_missing_arguments_are_told_and_copies_need_none(cls):
    if not needed(cls):
        cls()
    else:
        with pytest.raises(
            it.ConfigurationFieldError, match=rf"{cls.__name__} is given arguments .*missing a required"
        ):
            cls()
    if (made := accepted(cls)) is None:
        return
    for copied in (copy.copy(made), copy.deepcopy(made), *(pickle.loads(pickle.dumps(made, n)) for n in range(2, 6))):
        assert type(copied) is cls
        assert vars(copied).keys() == vars(made).keys()


def accepted(cls: type) -> Any:
    """An object with the fields that must be there; None: more must be."""
    with contextlib.suppress(it.InterpretuneError):
        return cls(**needed(cls))
    return None


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_field_takes_a_value_or_says_what_it_takes(cls):
    inherited = {item.name for base in CLASSES if base in cls.__mro__[1:] for item in dataclasses.fields(base)}
    names = [item.name for item in dataclasses.fields(cls) if item.init and item.name not in inherited]
    told = [(name, refusal(cls, name, value)) for name in names for value in NASTY]
    assert [(name, text) for name, text in told if text and name not in text] == []


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if not issubclass(cls, it.ITConfig)], ids=lambda c: c.__name__)
def test_a_field_that_is_none_is_refused_with_the_nearest(cls):
    known = next(item.name for item in dataclasses.fields(cls) if item.init)
    with pytest.raises(it.ConfigurationError, match=f"{cls.__name__} is given.*no field.*Did you mean {known!r}"):
        cls(**needed(cls), **{f"{known}z": 1})
    with pytest.raises(it.ConfigurationError, match="arguments that do not fit"):
        cls(*range(30))


def test_every_configuration_class_of_the_library_is_among_those_tried():
    public = [getattr(module, name) for module in (it, it.analysis) for name in module.__all__]
    configurations = {item for item in public if isinstance(item, type) and issubclass(item, it.CheckedConfig)}
    asks_for_something = {it.LatentRequest}  # a request that names nothing is refused: see the tests of requests
    assert configurations - {it.CheckedConfig} - asks_for_something <= set(CLASSES)
    named = {item for item in public if isinstance(item, type) and item.__name__.endswith(("Config", "Cfg"))}
    assert named <= configurations


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: it.ITDataModuleConfig(text_fields="premise"), "text_fields is 'premise' .*takes tuple"),
        (lambda: it.ITSharedConfig(model_name_or_path=torch.nn.Linear(1, 1)), "ITConfig.hf_model"),
        (lambda: it.ITConfig(hf_model="gpt2"), "hf_model is 'gpt2'"),
        (lambda: it.LoopConfig(seed=2**70), "seed is 1180591620717411303424"),
        (lambda: it.LoopConfig(limit_val_batches=float("nan")), "limit_val_batches is nan"),
        (lambda: it.ITDataModuleConfig(train_batch_size=0), "train_batch_size is 0 .*from 1"),
        (lambda: AnalysisCfg(mode="ablate"), "'ablate'; the modes are 'clean_no_sae'"),
        (
            lambda: it.ITSharedConfig(model_name_or_path=["hf_abcdefghijklmnopqrstuvwxyz12345678"]),
            "credential left out",
        ),
    ],
)
def test_common_mistakes_are_told(make, words):
    with pytest.raises(it.ConfigurationError, match=words):
        make()


def test_numbers_of_numpy_and_paths_are_as_good():
    assert it.LoopConfig(max_epochs=np.int64(2), limit_val_batches=np.float32(0.5)).max_epochs == 2
    assert it.ITSharedConfig(model_name_or_path=Path("x")).model_name_or_path == "x"
    assert it.ITDataModuleConfig(text_fields=["a", "b"]).text_fields == ["a", "b"]
    assert it.ITConfig(device=torch.device("cpu")).device == torch.device("cpu")


def test_fields_that_users_add_may_be_annotated_as_they_like():
    @dataclasses.dataclass(kw_only=True)
    class Mine(it.ITDataModuleConfig):
        size: int = None  # what many write for "int or None"

    assert Mine(size="large", limit_rows=3).size == "large"
    with pytest.raises(it.ConfigurationError, match=r"Mine\.limit_rows is 'x'"):
        Mine(limit_rows="x")


def test_configurations_are_copied_and_pickled():
    cfg = it.ITDataModuleConfig(text_fields=("a",), limit_rows=3)
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    assert copy.deepcopy(cfg) == cfg
    assert dataclasses.replace(cfg, limit_rows=4).limit_rows == 4


# ------------------------------------------------------------------------------------------------------------ sessions


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> it.ITSession:
    return make_session(tmp_path_factory.mktemp("session"))


def parts(session: it.ITSession) -> dict[str, Any]:
    return {item.name: getattr(session.session_cfg, item.name) for item in dataclasses.fields(it.ITSessionConfig)}


class Plain:
    pass


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"module_cls": int}, "derives from ITModule"),
        ({"module_cls": it.ITDataModule}, "derives from ITModule"),
        ({"datamodule_cls": it.ITModule}, "derives from ITDataModule"),
        ({"module_cfg": it.ITConfig(auto_comp_cfg=it.AutoCompConfig(module_cfg_mixin="x"))}, "module_cfg_mixin is 'x'"),
        ({"module_cfg": it.ITConfig(auto_comp_cfg=it.AutoCompConfig(module_cfg_mixin=Plain))}, "not a dataclass"),
        ({"module_cfg": it.ITConfig(auto_comp_cfg=it.AutoCompConfig(module_cfg_name=4))}, "module_cfg_name is 4"),
        ({"module_cfg": it.ITConfig(nonsense=1)}, "sets 'nonsense'"),
        ({"module_cfg": it.ITConfig(device="gpu")}, "device is 'gpu'"),
        ({"module_cfg": it.ITConfig(optimizer_init={"class_path": 3})}, "optimizer_init is 3"),
        (
            {"module_cfg": it.ITConfig(optimizer_init={"class_path": "torch.optim.SGD", "init_args": {"lr": -1}})},
            "learning rate: -1",
        ),
    ],
)
def test_a_session_says_what_it_cannot_be_made_of(session, changed, words):
    with pytest.raises(it.InterpretuneError, match=words):
        it.it_init(**it.ITSession(it.ITSessionConfig(**{**parts(session), **changed})))


@pytest.mark.parametrize("wrong", [None, {}, it.ITConfig()])
def test_a_session_is_made_of_its_configuration(wrong):
    with pytest.raises(it.ConfigurationError, match="takes ITSessionConfig"):
        it.ITSession(wrong)


def prepare(session: it.ITSession) -> Any:
    it.it_init(**session)
    return session.datamodule.test_dataloader()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataloader_kwargs": {"nonsense": 1}}, "dataloader_kwargs does not fit.*nonsense"),
        ({"dataloader_kwargs": {"num_workers": -1}}, "dataloader_kwargs does not fit"),
        ({"prepare_data_map_cfg": {"nonsense": 1}}, "prepare_data_map_cfg does not fit.*nonsense"),
    ],
)
def test_options_handed_on_are_refused_by_their_field(session, options, words):
    cfg = dataclasses.replace(session.session_cfg.datamodule_cfg, **options)
    made = it.ITSession(it.ITSessionConfig(**{**parts(session), "datamodule_cfg": cfg}))
    with pytest.raises(it.ConfigurationError, match=words):
        prepare(made)


@pytest.mark.parametrize(
    ("analyses", "options", "words"),
    [
        ({"a": "ablate"}, {}, "'ablate'; the modes are"),
        ({"a": 3}, {}, "takes Mapping"),
        ("clean_no_sae", {}, "takes Mapping"),
        (["clean_no_sae"], {}, "takes Mapping"),
        ({3: "clean_no_sae"}, {}, "takes Mapping"),
        ({"a/b": "clean_no_sae"}, {}, "names a folder"),
        ({"a": "clean_no_sae"}, {"limit": "3"}, "limit"),
        ({"a": "clean_no_sae"}, {"limit": 0}, "limit"),
        ({"a": "clean_no_sae"}, {"limit": 2.5}, "limit"),
        ({"a": "clean_no_sae"}, {"seed": "x"}, "seed"),
        ({"a": "clean_no_sae"}, {"root": 5}, "root"),
    ],
)
def test_the_runner_says_what_it_does_not_take(session, tmp_path, analyses, options, words):
    with pytest.raises(it.ConfigurationError, match=words):
        AnalysisRunner(**session, **{"root": tmp_path, **options}).run(analyses)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"analysis_cfg": "clean_no_sae"}, {"analysis_cfg": AnalysisCfg(), "limit_batches": "x"}]
)
def test_run_analysis_says_what_it_does_not_take(session, options):
    with pytest.raises(it.ConfigurationError, match="it takes"):
        run_analysis(**session, **options)


# ----------------------------------------------------------------------------------------------------------- the file

WRITTEN = {
    "session": {
        "adapter_ctx": ["core"],
        "shared_cfg": {"model_name_or_path": "model", "tokenizer_kwargs": {"padding_side": "left"}},
        "datamodule_cfg": {
            "data": {"validation": "rows.jsonl"},
            "text_fields": ["premise", "hypothesis"],
            "num_labels": 2,
            "prompt_cfg": {"ctx_question_join": " Question : "},
        },
        "module_cfg": {"device": "cpu", "generative_step_cfg": {"answers": ["Yes", "No"]}},
    },
    "analyses": {
        "clean": {"mode": "clean_no_sae", "row_budget": 3, "save": {"prompts": True}},
        "heads": {"units": [{"heads": 1, "only": [0]}], "objective": {"logit_diff": {"against": "max"}}, "budget": 3},
    },
    "runner": {"root": "analyses", "limit": 3, "seed": 0},
}
NASTY_YAML = [None, True, -1, 2**70, 1.5, float("nan"), "", "x", "a: b: c", [], [None], {}, {"x": 1}, {1: 2}, [[[]]]]


def places(written: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key in written if isinstance(written, dict) else range(len(written)) if isinstance(written, list) else ():
        yield from places(written[key], (*path, key))


def read(text: str, folder: Path) -> None:
    """Read a configuration; whatever is wrong with it must be told in words."""
    file = folder / "run.yaml"
    file.write_text(text)
    with contextlib.suppress(it.InterpretuneError, argparse.ArgumentError):
        read_run([str(file)])


@pytest.mark.parametrize("seed", range(2))
def test_a_file_is_read_or_refused_in_words(tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(12):
        written = copy.deepcopy(WRITTEN)
        if draw.random() < 0.5:
            written["session"]["datamodule_cfg"] = {
                "rows": {"validation": "agreement"},
                "answers": [" a"],
                "correct": 0,
            }
        *above, last = draw.choice(list(places(written)))
        holder: Any = written
        for step in above:
            holder = holder[step]
        if draw.random() < 0.3 and isinstance(holder, dict):
            holder[draw.choice(["nonsense", f"{last}z", 3, None, "class_path", "x.y"])] = draw.choice(NASTY_YAML)
        else:
            holder[last] = draw.choice(NASTY_YAML)
        read(yaml.safe_dump(written), tmp_path)


@pytest.mark.parametrize(
    "text", ["[" * 3000, "a: " * 50, "- 1", "3", "\x00", "a: !!python/object:os.system {}", "? {a: 1}\n: 2"]
)
def test_a_text_that_is_no_configuration_is_refused_in_words(tmp_path, text):
    read(text, tmp_path)
    with pytest.raises(it.ConfigurationError):
        read_run([str(tmp_path / "run.yaml")])


# --------------------------------------------------------------------------------------------------------------- rows


def rows_of(tmp_path: Path, text: str | bytes) -> Any:
    from interpretune.session.prompts import read_rows

    file = tmp_path / "rows.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    cfg = it.ITDataModuleConfig(data=str(file), text_fields=("text",), num_labels=2)
    return read_rows(cfg)["validation"]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_signs_that_end_lines_elsewhere_stay_in_the_text(tmp_path, sign):
    row = json.dumps({"text": f"one{sign}two", "label": 1}, ensure_ascii=False)
    assert rows_of(tmp_path, f"{row}\r\n\n{row}\n")["text"] == [f"one{sign}two"] * 2


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_row(tmp_path):
    assert rows_of(tmp_path, b'\xef\xbb\xbf{"text": "a", "label": 0}\n')["label"] == [0]


GOOD = '{"text": "a", "label": 0}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{GOOD}\n{GOOD}oops\n", "not a JSONL file.*Line 4: Expecting value at column 1"),
        (f'{GOOD}{{"text": "a", "label": 1\n', "Line 2: Expecting ',' delimiter at column"),
        (f"{GOOD}{'[' * 100_000}\n{GOOD}", "Line 2: maximum recursion"),
        (f"{GOOD}[1]\n", r"Line 2 is \[1\]"),
        (f'{GOOD}{GOOD}{{"text": "a", "label": {10**30}}}\n{GOOD}', "line 3 does not fit"),
        (f'{GOOD}{{"text": "a", "label": "x"}}\n', "line 2 does not fit"),
        (f'{GOOD}{{"text": {"[" * 400}{"]" * 400}, "label": 0}}\n', "line 2 has values nested"),
        (b'{"text": "\xff", "label": 0}\n', "cannot be read as UTF-8"),
        ("\n", "is empty"),
    ],
    ids=["no JSON", "cut", "deep", "list", "large", "mixed", "nested", "not UTF-8", "empty"],
)
def test_a_row_that_cannot_be_read_is_named_by_its_line(tmp_path, text, words):
    with pytest.raises(it.DataError, match=words):
        rows_of(tmp_path, text)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--training-scale", "nan"],
        ["--training-scale", "inf"],
        ["--training-scale", "0"],
        ["--seed", str(2**70)],
        ["--seed", "x"],
        ["--layers", "-1"],
        ["--layers", str(10**30)],
        ["--limit", "0"],
    ],
    ids=" ".join,
)
def test_the_demo_refuses_numbers_that_make_no_sense(arguments, capsys):
    from interpretune.cli.main import main

    with pytest.raises(SystemExit) as stopped:
        main(["demo", *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
