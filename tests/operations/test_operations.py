"""Operations and plans: what is declared is checked, and what is shared is done once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode, LatentValues, offered_operations, plan_of
from interpretune.operations import (
    Operation,
    Plan,
    PlanRun,
    find_operation,
    load_operations,
    loading,
    operation,
    run_plan,
    run_summaries,
)
from interpretune.store.fields import Field, Per
from tests.tiny_latents import RandomDictionary

DOUBLED = Field("doubled", "float32", about="twice the start")


@operation(writes=Field("start", "float32"))
def begin(orig_labels: Tensor) -> Tensor:
    return orig_labels.float()


@operation(writes=DOUBLED)
def double(start: Tensor, *, factor: float = 2.0) -> Tensor:
    return start * factor


@operation(writes=Field("mean", per=Per.run), reads=("doubled",))
def mean(doubled: Any) -> pa.Table:
    seen = torch.cat(list(doubled))
    return pa.table({"mean": [seen.mean().item()]})


def labels(*values: int) -> dict[str, Any]:
    return {"orig_labels": torch.tensor(values)}


def test_a_plan_orders_its_operations_and_computes():
    plan = Plan.of([double, begin], keep=["start", "doubled"])
    assert [op.name for op in plan.operations] == ["begin", "double"]
    assert run_plan(plan, labels(1, 2), 2)["doubled"].tolist() == [2.0, 4.0]
    assert plan.keeps == ("start", "doubled")


def test_a_summary_sees_all_batches():
    plan = Plan.of([begin, double, mean], keep=["mean"])
    tables = run_summaries(plan, {"doubled": [torch.tensor([1.0]), torch.tensor([3.0, 5.0])]})
    assert tables["mean"].to_pylist() == [{"mean": 3.0}]
    assert "doubled" in plan.keeps, "what a summary reads is stored"


def test_the_options_of_an_operation_are_its_keyword_only_parameters():
    assert run_plan(Plan.of([begin, double.with_options(factor=3.0)]), labels(2), 1)["doubled"].tolist() == [6.0]
    with pytest.raises(it.PlanError, match=r"double has no option factr; its options are factor\."):
        double.with_options(factr=3.0)


def test_a_plan_prints_its_graph():
    assert str(Plan.of([begin, double, mean], keep=["mean"])).splitlines() == [
        "begin(orig_labels) -> start",
        "double(start, factor=2.0) -> doubled*",
        "mean(doubled) -> mean*",
        "",
        "* kept:",
        "  mean: float per run",
        "  doubled: float32 per example (twice the start)",
    ]


def writes(name: str, *reads: str, field: Field | None = None, **declared: Any) -> Operation:
    """An operation that hands on what it reads first."""
    item = Field(name, "float32") if field is None else field
    return Operation(f"make_{name}", lambda **read: next(iter(read.values())), reads, (item,), **declared)


WRONG_PLANS: dict[str, tuple[list[Operation], dict[str, Any], str]] = {
    "missing input": ([double], {}, r"Operation double reads start, which nobody writes\. There are inputs, labels"),
    "misspelt input": (
        [begin, writes("b", "stert")],
        {},
        r"Operation make_b reads stert, which nobody writes\. Did you mean start\?",
    ),
    "two writers": (
        [begin, double, Operation("other", double.function, ("start",), (DOUBLED,))],
        {},
        r"The operations double and other both write doubled\.",
    ),
    "writes a source": ([writes("labels", "inputs")], {}, r"writes labels, which is there before anything runs"),
    "cycle": ([writes("a", "b"), writes("b", "a")], {}, r"Operations wait for each other: make_a -> make_b -> make_a"),
    "one name, two operations": ([begin, double, double.with_options(factor=5.0)], {}, r"operations are called double"),
    "keeps what is not there": ([begin], {"keep": ["stert"]}, r"to keep stert, which nobody writes\. .*start"),
    "keeps what is not stored": (
        [writes("thing", "inputs", field=Field("thing", "object", Per.batch))],
        {"keep": ["thing"]},
        r"to keep thing, which lives in memory only",
    ),
    "summary of what is not stored": (
        [Operation("sum", lambda inputs: inputs, ("inputs",), (Field("total", per=Per.run),))],
        {},
        r"Operation sum runs at the end and reads inputs, which is never stored",
    ),
    "batch of a summary": (
        [begin, double, mean, writes("again", "mean")],
        {},
        r"Operation make_again runs on batches and reads mean, which is there at the end",
    ),
    "other unit": (
        [begin, writes("b", "start", expects=(Field("start", "float32", Per.latent),))],
        {},
        r"Operation make_b expects start: float32 per latent, and the plan has start: float32 per example\.",
    ),
    "other shape": (
        [begin, writes("b", "start", expects=(Field("start", "float32", shape=("vocab",)),))],
        {},
        r"expects start: float32 per example x vocab, and the plan has start: float32 per example",
    ),
    "other dtype": (
        [begin, writes("b", "start", expects=(Field("start", "int64"),))],
        {},
        r"expects start: int64 per example, and the plan has start: float32 per example",
    ),
}


@pytest.mark.parametrize("case", WRONG_PLANS)
def test_a_plan_that_does_not_fit_is_refused_before_anything_runs(case: str):
    operations, settings, message = WRONG_PLANS[case]
    with pytest.raises(it.PlanError, match=message):
        Plan.of(operations, **settings)


def test_what_a_backend_lacks_is_said_before_anything_runs():
    plan = Plan.of([writes("a", "inputs", needs=frozenset({"gradients"}))])
    backend: Any = SimpleNamespace(capabilities=frozenset({"forward"}))
    with pytest.raises(it.PlanError, match=r"make_a needs gradients, which SimpleNamespace does not offer; .* forward"):
        plan.check_backend(backend, [])
    plan = Plan.of([writes("a", "inputs", needs=frozenset({"latent_models"}))])
    with pytest.raises(it.PlanError, match=r"make_a needs latent models and this session has none"):
        plan.check_backend(backend, [])


LATENTS = LatentValues(torch.tensor([3]), torch.ones(2, 1), 8)
WRONG_RESULTS: dict[str, tuple[Field, Any, str]] = {
    "other dtype": (Field("x", "float32"), torch.ones(2, dtype=torch.float64), r"wrote float64 of shape \[2\]"),
    "integer for a float": (Field("x", "float"), torch.ones(2, dtype=torch.int64), r"wrote int64 of shape \[2\]"),
    "other number of examples": (Field("x", "float32"), torch.ones(3), r"wrote float32 of shape \[3\]"),
    "another axis": (Field("x", "float32"), torch.ones(2, 2), r"wrote float32 of shape \[2, 2\]"),
    "a list": (Field("x", "float32"), [1.0, 2.0], r"wrote a list"),
    "latents as a tensor": (Field("x", per=Per.latent), torch.ones(2, 1), r"expected LatentValues by activation name"),
    "latents with an axis more": (Field("x", per=Per.latent, shape=("answer",)), {"a": LATENTS}, r"\[2, 1\]"),
    "too few strings": (Field("x", "string"), ["one"], r"wrote a list; expected a list of 2"),
    "something undeclared": (Field("x", "float32"), {"x": torch.ones(2), "y": torch.ones(2)}, r"wrote y, which it do"),
}


@pytest.mark.parametrize("case", WRONG_RESULTS)
def test_an_operation_that_does_not_do_what_it_declares_is_refused(case: str):
    field, value, message = WRONG_RESULTS[case]
    fields = (field, Field("z", "float32")) if case == "something undeclared" else (field,)
    plan = Plan.of([Operation("odd", lambda orig_labels: value, ("orig_labels",), fields)])
    with pytest.raises(it.PlanError, match=rf"Operation odd .*{message}"):
        run_plan(plan, labels(0, 1), 2)


def test_what_plans_have_in_common_runs_once():
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Tensor]:
        def run(orig_labels: Tensor) -> Tensor:
            calls.append(name)
            return orig_labels.float()

        return run

    shared = Operation("shared", counted("shared"), ("orig_labels",), (Field("start", "float32"),))
    one, other = Plan.of([shared, double]), Plan.of([shared, double.with_options(factor=3.0)])
    first, second = PlanRun([one, other]).run(labels(1, 2), 2)
    assert (first["doubled"].tolist(), second["doubled"].tolist()) == ([2.0, 4.0], [3.0, 6.0])
    assert calls == ["shared"]


def test_what_several_plans_keep_is_a_copy_for_each():
    first, second = PlanRun([Plan.of([begin]), Plan.of([begin, double], keep=["start"])]).run(labels(1, 2), 2)
    first["start"].zero_()
    assert second["start"].tolist() == [1.0, 2.0]


def test_the_key_of_a_plan_follows_everything_that_its_results_depend_on():
    def key(*operations: Operation, **settings: Any) -> str:
        return Plan.of(operations, **settings).key

    same = operation(writes=DOUBLED, name="double")(lambda start, *, factor=2.0: start * factor)
    other_code = operation(writes=DOUBLED, name="double")(lambda start, *, factor=2.0: start / factor)
    keys = [
        key(begin, double),
        key(begin, double, keep=["doubled"]),
        key(begin, double.with_options(factor=3.0)),
        key(begin, other_code),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key(double, begin)
    assert key(begin, same) == key(begin, operation(writes=DOUBLED, name="double")(same.function))


def test_closures_constants_and_functions_that_an_operation_calls_count():
    def made(offset: float) -> Operation:
        def shift(start: Tensor) -> Tensor:
            return start + offset

        return operation(writes=DOUBLED)(shift)

    assert made(1.0).identity == made(1.0).identity != made(2.0).identity
    namespace_a, namespace_b = ({"__name__": "notebook"} for _ in range(2))
    text = "SCALE = {}\ndef scaled(x):\n    return x * SCALE\ndef grow(start):\n    return scaled(start)\n"
    exec(text.format(2), namespace_a)
    exec(text.format(3), namespace_b)
    both = [operation(writes=DOUBLED)(n["grow"]).identity for n in (namespace_a, namespace_b)]
    assert both[0] != both[1]


SETTINGS = {"scale": 1.0}


class Probe(torch.nn.Module):
    def __init__(self, weight: float, bias: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.bias = bias


def with_setting(start: Tensor) -> Tensor:
    return start * SETTINGS["scale"]


def test_modules_globals_and_defaults_count_and_documentation_does_not(monkeypatch: pytest.MonkeyPatch):
    def probed(probe: Probe) -> str:
        return operation(writes=DOUBLED, name="probed")(lambda start: start * probe.weight + probe.bias).identity

    assert probed(Probe(1.0, 2)) == probed(Probe(1.0, 2))
    assert len({probed(Probe(1.0, 2)), probed(Probe(1.5, 2)), probed(Probe(1.0, 3))}) == 3
    one = operation(writes=DOUBLED)(with_setting).identity
    monkeypatch.setitem(SETTINGS, "scale", 2.0)
    assert operation(writes=DOUBLED)(with_setting).identity != one
    text = "def helper(x, k={}):\n    'says {}'\n    return x * k\ndef grow(start):\n    return helper(start)\n"
    keys = []
    for k, words in ((2, "one"), (2, "other"), (3, "one")):
        namespace: dict[str, Any] = {"__name__": "notebook"}
        exec(text.format(k, words), namespace)
        keys.append(operation(writes=DOUBLED)(namespace["grow"]).identity)
    assert keys[0] == keys[1] != keys[2]


def test_two_summaries_of_one_field_keep_it_once():
    again = operation(writes=Field("again", per=Per.run), reads=("doubled",))(lambda doubled: pa.table({"n": [1]}))
    assert Plan.of([begin, double, mean, again], keep=["mean", "again"]).keeps == ("mean", "again", "doubled")


def test_a_summary_that_returns_no_table_is_refused():
    odd = operation(writes=Field("total", per=Per.run), name="odd")(lambda start: 3)
    with pytest.raises(it.PlanError, match=r"Operation odd declares .* wrote a int; expected a pyarrow.Table"):
        run_summaries(Plan.of([begin, odd]), {"start": [torch.ones(1)]})


def test_what_cannot_be_hashed_is_refused():
    thing = object()
    unknown = operation(writes=DOUBLED, name="unknown")(lambda start: (start, thing)[0])
    with pytest.raises(it.PlanError, match=r"Operation unknown depends on a object, whose content cannot be hashed"):
        Plan.of([begin, unknown]).key  # noqa: B018


def test_settings_that_change_no_result_change_no_key():
    latents = [RandomDictionary("blocks.0.hook_resid_post", seed=1)]
    keys = {
        plan_of(AnalysisCfg(mode=AnalysisMode.ablation, row_budget=budget, self_check=check), latents).key
        for budget in (None, 7)
        for check in (True, False)
    }
    assert len(keys) == 1
    assert keys != {plan_of(AnalysisCfg(mode=AnalysisMode.attr_patching), latents).key}


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: operation(writes=DOUBLED)(lambda start=1: start), r"put a \* before parameters with defaults"),
        (lambda: operation(writes=DOUBLED)(lambda start, *, scale: start * scale), r"option scale needs a default"),
        (lambda: operation(writes=())(lambda start: start), r"must write something"),
        (lambda: operation(writes=DOUBLED, reads=("stat",))(lambda start: start), r"it reads stat; its function takes"),
        (lambda: operation(writes=(DOUBLED, Field("t", per="run")))(lambda start: start), r"all of it per run or none"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(declare: Callable[[], Operation], message: str):
    with pytest.raises(it.PlanError, match=message):
        declare()


# ------------------------------------------------------------------------------------------------------------- loading

FILE = """
from interpretune.store.fields import Field
from interpretune.operations import operation

@operation(writes=Field("certainty", "float", about="probability of the likelier answer"))
def certainty(answers):
    return answers.softmax(-1).max(-1).values
"""


def test_operations_are_read_from_a_folder_of_files(tmp_path: Path):
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    found = load_operations(tmp_path)
    assert list(found) == ["certainty"]
    assert found["certainty"](torch.tensor([[0.0, 0.0]])).tolist() == [0.5]
    (tmp_path / "again.py").write_text(FILE, encoding="utf-8")
    with pytest.raises(it.PlanError, match=r"Two operations of .* are called certainty"):
        load_operations(tmp_path)
    (tmp_path / "again.py").write_text("import nothing_of_the_kind", encoding="utf-8")
    with pytest.raises(it.PlanError, match=r"again\.py of .* fails when it is loaded: ModuleNotFoundError"):
        load_operations(tmp_path)
    with pytest.raises(it.PlanError, match=r"is no Python file and no folder of Python files"):
        load_operations(tmp_path / "absent")


def test_code_from_elsewhere_runs_only_by_name_and_hash():
    address = "memory://operations-of-others"
    fsspec.filesystem("memory").pipe("/operations-of-others/mine.py", FILE.encode())
    right = hashlib.sha256(FILE.encode()).hexdigest()
    for trusted in (None, {}, {"mine.py": "0" * 64}, {"other.py": right}):
        with pytest.raises(it.PlanError, match=rf"runs only when you name it with its hash.*{right}"):
            load_operations(address, trusted)
    assert list(load_operations(address, {"mine.py": right})) == ["certainty"]


def test_operations_are_found_by_name(monkeypatch: pytest.MonkeyPatch, session_of: Callable[..., it.ITSession]):
    offered = offered_operations(session_of("gpt2", "core", "left").module)
    assert find_operation("ablation_effects", offered).name == "ablation_effects"
    packaged = SimpleNamespace(name="grow", value="acme:grow", dist=None, load=lambda: double)
    broken = SimpleNamespace(name="broken", value="acme:nothing", dist=None, load=lambda: 1)
    leaving = SimpleNamespace(name="leaving", value="acme:leaving", dist=None, load=sys.exit)
    monkeypatch.setattr(loading, "registered", lambda group: [packaged, broken, leaving] if group else [])
    assert find_operation("grow") is double
    with pytest.raises(it.PlanError, match=r"acme:nothing is a int; decorate a function"):
        find_operation("broken", offered)
    with pytest.raises(it.PlanError, match=r"'leaving' \(acme:leaving\) cannot be imported: SystemExit"):
        find_operation("leaving", offered)
    with pytest.raises(it.PlanError, match=r"There is no operation 'shrink'\. .* offer ablate_alive, .*grow"):
        find_operation("shrink", offered)
