"""Runs plans on batches, and computes what several plans share only once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from interpretune.errors import PlanError
from interpretune.operations.definition import Operation
from interpretune.operations.plan import Plan
from interpretune.store.fields import TORCH_DTYPES, Field, Per
from interpretune.store.values import LatentValues

REPLAYING = frozenset({"ablation", "gradients"})
"""Capabilities that are faster with keys and values stored from the clean run."""


class PlanRun:
    """Runs plans together, batch by batch.

    Two operations of different plans are shared if the operation, its settings and everything they read are the same.

    Attributes:
        plans: The plans.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = list(plans)
        self._replays = any(plan.needs & REPLAYING for plan in self.plans)

    @cached_property
    def keys(self) -> list[dict[str, str]]:
        """For each plan, by field, a hash of the work that it takes."""
        if len(self.plans) == 1:  # which shares nothing
            return [{name: name for name in self.plans[0].fields}]
        return [plan.node_keys(work=True) for plan in self.plans]

    @cached_property
    def result_keys(self) -> list[dict[str, str]]:
        """For each plan, by field, a hash of what its values depend on."""
        return [plan.node_keys() for plan in self.plans]

    def on_batch(self, sources: Mapping[str, Any], examples: int, seed: str | None = None) -> BatchRun:
        """Take a batch; nothing is computed until results are requested.

        Args:
            sources: Values of the plans' sources, by name.
            examples: Number of examples in the batch.
            seed: Each operation draws torch random numbers that depend only on this and on its key; None: from torch's
                generator as it is.
        """
        return BatchRun(self, {**sources, "replays": self._replays}, examples, seed)

    def run(self, sources: Mapping[str, Any], examples: int, seed: str | None = None) -> list[dict[str, Any]]:
        """Run the operations that are not per run on one batch; see ``on_batch``.

        Returns:
            For each plan, the values of the fields it keeps, except per-run fields.

        Raises:
            PlanError: An operation did not do what it declares.
        """
        batch = self.on_batch(sources, examples, seed)
        return [batch.results(number) for number in range(len(self.plans))]


class BatchRun:
    """A batch on which plans run together; each reuses what the ones before have computed."""

    def __init__(self, run: PlanRun, given: Mapping[str, Any], examples: int, seed: str | None) -> None:
        """Use ``PlanRun.on_batch``."""
        self._run, self._given, self._examples, self._seed = run, given, examples, seed
        self._computed: dict[str, Any] = {}

    def results(self, number: int) -> dict[str, Any]:
        """Values of the fields that a plan keeps, except per-run fields.

        Args:
            number: Index of the plan.

        Raises:
            PlanError: An operation did not do what it declares.
        """
        run, computed = self._run, self._computed
        plan, keys = run.plans[number], run.keys[number]
        computed |= {keys[name]: self._given[name] for name in plan.sources if name in self._given}
        for op in plan.operations:
            if op.per_run or all(keys[item.name] in computed for item in op.writes):
                continue
            if self._seed is not None:
                draw_from(f"{self._seed} {run.result_keys[number][op.writes[0].name]}")
            read = {name: computed[keys[name]] for name in op.reads if keys[name] in computed}
            written = run_operation(op, read, self._examples)
            computed |= {keys[name]: value for name, value in written.items()}
        found = {item.name: computed[keys[item.name]] for item in plan.kept if item.per is not Per.run}
        return found if len(run.plans) == 1 else {name: _copied(value) for name, value in found.items()}


def draw_from(seed: str) -> None:
    """Seed torch's generators with a text."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # without one, torch.manual_seed formats a stack trace for each kind of device, a millisecond each time
        torch.default_generator.manual_seed(number)


def _copied(value: Any) -> Any:
    """A copy of a kept value, so that changing it in place does not affect other plans."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, LatentValues):
        return LatentValues(_copied(value.latents), _copied(value.values), value.d_sae)
    if isinstance(value, Mapping):
        return {name: _copied(item) for name, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def run_plan(plan: Plan, sources: Mapping[str, Any], examples: int) -> dict[str, Any]:
    """Run one plan on one batch.

    Args:
        plan: The plan; its per-run operations are left out.
        sources: Values of the plan's sources, by name.
        examples: Number of examples in the batch.

    Returns:
        All fields by name, including those that live in memory only.

    Raises:
        PlanError: An operation did not do what it declares.
    """
    values = {**sources, "replays": bool(plan.needs & REPLAYING)}
    for op in plan.operations:
        if not op.per_run:
            values |= run_operation(op, {name: values[name] for name in op.reads if name in values}, examples)
    return values


def run_operation(op: Operation, values: Mapping[str, Any], examples: int | None = None) -> dict[str, Any]:
    """Call an operation and check what it returns against its declaration.

    Args:
        op: The operation.
        values: What it reads.
        examples: Number of examples in the batch; None: it runs on a whole run.

    Raises:
        PlanError: It reads what is not given, or wrote something other than it declares.
    """
    if lacking := [name for name in op.reads if name not in values]:
        raise PlanError(f"Operation {op.name} reads {lacking[0]}, which is not given. Name it among the sources.")
    # Trainers test in inference mode, whose tensors know no gradients.
    with torch.inference_mode(mode=False), torch.no_grad():
        found = op(**values)
    named = {op.writes[0].name: found} if len(op.writes) == 1 and not _names_it(found, op.writes[0]) else found
    if not isinstance(named, Mapping):
        raise PlanError(f"Operation {op.name} must return a mapping of {', '.join(w.name for w in op.writes)}.")
    declared = {item.name: item for item in op.writes}
    if undeclared := named.keys() - declared.keys():
        raise PlanError(f"Operation {op.name} wrote {', '.join(sorted(undeclared))}, which it does not declare.")
    if missing := declared.keys() - named.keys():
        raise PlanError(f"Operation {op.name} declares {', '.join(sorted(missing))} and did not write it.")
    for name, item in declared.items():
        if (wrong := mismatch(item, named[name], examples)) is not None:
            raise PlanError(f"Operation {op.name} declares {item}, and wrote {wrong}.")
    return dict(named)


def _names_it(found: Any, item: Field) -> bool:
    """Whether an operation of one field returned a mapping from the field's name, not the value itself."""
    return isinstance(found, Mapping) and found.keys() == {item.name}


def mismatch(item: Field, value: Any, examples: int | None) -> str | None:
    """What is wrong with a value of a field, as text; None: nothing.

    Args:
        item: The field.
        value: Its value on one batch, or on a run.
        examples: Number of examples in the batch; None: any.
    """
    if not item.stored:
        return None
    if item.per is Per.run:
        return None if isinstance(value, pa.Table) else f"{_described(value)}; expected a pyarrow.Table"
    if item.per is Per.latent:
        if not isinstance(value, Mapping) or not all(isinstance(v, LatentValues) for v in value.values()):
            return f"{_described(value)}; expected LatentValues by activation name"
        return next(filter(None, (_wrong_tensor(item, v.values, examples, 2) for v in value.values())), None)
    if item.per is Per.batch:
        return None if isinstance(value, (int, float)) else _wrong_tensor(item, value, examples, 0)
    if item.ragged or item.dtype == "string":
        right = isinstance(value, list) and (examples is None or len(value) == examples)
        return None if right else f"{_described(value)}; expected a list of {examples}"
    return _wrong_tensor(item, value, examples, 1)


def _wrong_tensor(item: Field, value: Any, examples: int | None, axes: int) -> str | None:
    if not isinstance(value, Tensor):
        return _described(value)
    right_dtype = value.is_floating_point() if item.dtype == "float" else value.dtype == TORCH_DTYPES.get(item.dtype)
    right_size = axes == 0 or examples is None or value.shape[:1] == (examples,)
    return None if right_dtype and right_size and value.ndim == axes + len(item.shape) else _described(value)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
    return f"a {type(value).__name__}"


def run_summaries(plan: Plan, columns: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
    """Run the per-run operations.

    Args:
        plan: The plan.
        columns: Each kept field as a sequence of its batches, which can be iterated several times.

    Returns:
        The tables, by field name.

    Raises:
        PlanError: An operation did not do what it declares.
    """
    tables: dict[str, Any] = {}
    for op in plan.operations:
        if op.per_run:
            tables |= run_operation(op, {name: {**columns, **tables}[name] for name in op.reads})
    return tables
