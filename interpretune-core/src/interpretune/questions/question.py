"""A question with all that its answer depends on, and how it is answered batch by batch into a store."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.inputs import Points
from interpretune.backends.identity import Identity, identify_latents, identify_model, versions, without_folders
from interpretune.errors import DataError, NotReusedWarning
from interpretune.hashing.code_origin import CORE
from interpretune.hashing.content_hash import content_hash, hash_of
from interpretune.hashing.packages import identify_packages
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import LatentModel
from interpretune.operations.objectives import Objective
from interpretune.questions.answering import ALL, Share, answer
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.measured_batch import MeasuredBatch
from interpretune.questions.model_and_rows import ModelAndRows
from interpretune.questions.result import FIELDS, Effects, Results
from interpretune.questions.sequences import Sequences, padded
from interpretune.questions.set_values import Value, mean_of, set_values
from interpretune.questions.tokens_of_rows import measured_tokens, prompt_tokens
from interpretune.questions.unit_effects import (
    Exact,
    UnitChanges,
    UnitEffects,
    any_of,
    exact_effects,
    sizes,
    stored,
    sum_of,
)
from interpretune.questions.units import UnitSet
from interpretune.replay.effect_noise import is_measured
from interpretune.replay.prefill import prefill
from interpretune.store.fields import Field

Method = Literal["exact", "gradient", "integrated_gradients", "direct", "lens"]
"""Effects that are exact, by gradients, or by means of gradients; contributions that go straight to the logits; layers
read as if they were the last."""
EFFECTS = get_args(Method)[:3]
"""Methods of effects."""
Positions = str
"""``answer``, ``each``, or the name of a span."""


@frozen(eq=False)
class RowsAsked:
    """Rows that run together, and the points at which units are changed: rows, and tokens of their prompts."""

    rows: Sequence[EncodedRow]
    first: int
    sequences: Sequences
    points: Points


@frozen(eq=False, kw_only=True)
class Question(ModelAndRows):
    """What ``effects`` is asked; its arguments say what each attribute means.

    Attributes:
        sets: What is changed.
        objective: What is measured.
        value: What units are set to.
        mean_over: Rows over which means are taken; None: those of the question.
        positions: Where units are changed.
        method: How effects are found.
        steps: Of integrated gradients.
        budget: Most exact effects; None: all.
        row_budget: Most changed rows that run at a time.
    """

    fields: ClassVar[tuple[Field, ...]] = FIELDS
    result: ClassVar[type[Results]] = Effects

    sets: Sequence[UnitSet]
    objective: Objective
    value: Value
    mean_over: Sequence[EncodedRow] | None
    positions: Positions
    method: Method
    steps: int = 10
    budget: int | None
    row_budget: int | None

    @property
    def every_set(self) -> Sequence[UnitSet]:
        """All unit sets that results depend on."""
        return self.sets

    def held(self, *others: object) -> AbstractContextManager[None]:
        """See ``ModelAndRows.held``; the dictionaries evaluate too."""
        return ModelAndRows.held(self, *others, *(item.dictionary for item in self.every_set))

    def answered(self, folder: str | Path | None, about: Any = None, *, shown: bool = False, share: Share = ALL) -> Any:
        """Compute what is not in the store yet.

        Args:
            folder: The store; None: in memory.
            about: What its manifest says beside the question, by name; no results depend on it.
            shown: Whether a terminal shows how many batches are done.
            share: Of the batches, where several processes write one store.
        """
        found = self.result(answer(self, folder, about, share, shown=shown))
        found.asked = self
        return found

    def batches(self, rows: Sequence[EncodedRow]) -> Iterator[RowsAsked]:
        """Rows in batches, with the points at which units are changed."""
        device, side = self.backend.model_device, getattr(self.tokenizer, "padding_side", "left")
        for first in range(0, len(rows), self.batch_size):
            part = rows[first : first + self.batch_size]
            where = [(i, token) for i, row in enumerate(part) for token in self._tokens(row, first + i)]
            at = torch.tensor(where, dtype=torch.long, device=device).reshape(-1, 2)
            sequences = Sequences.of(part, self.pad, side, device, measured_tokens(self.objective))
            yield RowsAsked(part, first, sequences, Points(at[:, 0], at[:, 1]))

    @property
    def pad(self) -> int:
        """The padding token."""
        tokenizer: Any = self.tokenizer
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return next(int(item) for item in known if item is not None)

    def _tokens(self, row: EncodedRow, number: int) -> range:
        """Tokens of a prompt at which units are changed."""
        return prompt_tokens(row, number, self.positions, "positions")

    # ------------------------------------------------------------------------------------------------------- one batch

    @cached_property
    def groups(self) -> list[list[UnitSet]]:
        """Unit sets that run together: those of the model as it is, then those of dictionaries, spliced in together."""
        plain = [item for item in self.sets if isinstance(item.dictionary, IdentityDictionary)]
        spliced = [item for item in self.sets if item not in plain]
        return [plain, spliced] if spliced else [plain]

    def computed(self, batch: RowsAsked) -> dict[str, Any]:
        """What is stored of a batch."""
        runs = [self._run(batch, group) for group in self.groups]
        parts: dict[str, UnitEffects] = {}
        for group, run in zip(self.groups, runs, strict=True):
            parts |= self.parts_of(batch, run, group)
        return self.stored_of(batch, runs, parts)

    def stored_of(
        self, batch: RowsAsked, runs: Sequence[MeasuredBatch], parts: Mapping[str, UnitEffects]
    ) -> dict[str, Any]:
        """The same, of the runs of all groups and the effects that were found in them."""
        owners = batch.points.examples
        nothing = torch.zeros(len(owners), dtype=torch.long, device=owners.device)
        return {
            **self.told_of(batch, runs[0]),
            "objective_spliced": runs[-1].clean[owners].double(),
            "screened_out": sum((part.screened.sum(-1) for part in parts.values()), nothing),
            "largest_screened": torch.stack([nothing.double(), *(p.largest for p in parts.values())]).amax(0),
            "effect_noise": self.noise_in(batch, runs[-1]),
            "effects": {item.name: stored(item, parts[item.name], parts[item.name].effects) for item in self.sets},
            "activations": {item.name: stored(item, parts[item.name], parts[item.name].sizes) for item in self.sets},
        }

    def noise_in(self, batch: RowsAsked, run: MeasuredBatch) -> float:
        """What rounding alone does to an effect, measured in some batches of models in 16 bits; else 0."""
        dtype = run.prefill.logits.dtype
        measured = dtype.itemsize <= 2 and is_measured(batch.first // self.batch_size, dtype)
        return run.noise() if measured else 0.0

    def told_of(self, batch: RowsAsked, plain: MeasuredBatch) -> dict[str, Any]:
        """What is stored of rows and points, whatever is asked of them; ``plain`` is the model as it is."""
        owners, tokens = batch.points.examples, batch.points.positions
        rows = [batch.rows[i] for i in owners.tolist()]
        at = [int(row.tokens[token]) for row, token in zip(rows, tokens.tolist(), strict=True)]
        return {
            "row": owners + batch.first,
            "position": tokens,
            "token": [self.tokenizer.decode([token]) for token in at],
            "prompts": [self.tokenizer.decode(row.tokens) for row in rows],
            "answers": [list(row.row.answers) for row in rows],
            "correct": torch.tensor([row.correct for row in rows]),
            "predicted": plain.rated[owners],
            "objective": plain.clean[owners].double(),
        }

    def dictionaries(self, group: Sequence[UnitSet]) -> list[LatentModel]:
        """What runs with the unit sets of a group."""
        return [item.dictionary for item in group]

    def noted_at(self, batch: RowsAsked) -> Points | None:
        """Rows, and tokens beside the points, at which changed rows note latents; None: nowhere else."""
        return None

    def _run(self, batch: RowsAsked, group: Sequence[UnitSet]) -> MeasuredBatch:
        asked = (batch.rows, batch.sequences, batch.points, self.objective, self.row_budget)
        also = self.noted_at(batch) if group else None
        return MeasuredBatch(self.backend, self.dictionaries(group), *asked, also)

    def _changes(self, batch: RowsAsked, run: MeasuredBatch, group: list[UnitSet]) -> UnitChanges:
        clean = {item.name: run.latents[item.activation_name] for item in group}
        chosen = set_values(
            self.value,
            clean,
            lambda: self._corrupted(batch, group),
            lambda: self.means[self.groups.index(group)],
        )
        moved = {item.name: any_of(item, clean[item.name] != chosen[item.name]) for item in group}
        if self.method == "exact" and self.budget is None:
            return UnitChanges(clean, chosen, moved, None)
        slopes = self._slopes(run, group, chosen)
        rough = {
            item.name: sum_of(item, (clean[item.name] - chosen[item.name]) * slopes[item.activation_name])
            for item in group
        }
        return UnitChanges(clean, chosen, moved, rough)

    def parts_of(
        self, batch: RowsAsked, run: MeasuredBatch, group: list[UnitSet], exact: Exact = exact_effects
    ) -> dict[str, UnitEffects]:
        """Effects of the units of sets that run together, by name; ``exact`` finds them by changing the units."""
        if not group:
            return {}
        changes = self._changes(batch, run, group)
        wanted, found = changes.moved, changes.rough
        if self.method == "exact":
            if self.budget is not None:
                wanted = self._within_budget[batch.first, self.groups.index(group)]
            found = exact(run, batch.points, group, wanted, changes.chosen)
        assert found is not None
        parts = {}
        for item in group:
            moved = changes.moved[item.name]
            out = moved & ~wanted[item.name]
            largest = torch.zeros_like(run.clean[batch.points.examples], dtype=torch.float64)
            if changes.rough is not None and bool(out.any()):
                largest = changes.rough[item.name].abs().masked_fill(~out, 0).amax(-1).double()
            effects = found[item.name].double().masked_fill(out, torch.nan)
            parts[item.name] = UnitEffects(effects, sizes(item, changes.clean[item.name]), moved, out, largest)
        return parts

    def _slopes(self, run: MeasuredBatch, group: Sequence[UnitSet], chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients at the points, or their means while the units of a set move together from what they are set to."""
        if self.method != "integrated_gradients":
            return run.gradients()
        starts = {}
        for item in group:
            start = run.latents[item.activation_name].clone()
            members = item.members.to(start.device).flatten()
            start[:, members] = chosen[item.name][:, members]
            starts[item.activation_name] = start
        return run.mean_gradients(self.steps, starts)

    @cached_property
    def _within_budget(self) -> dict[tuple[int, int], dict[str, Tensor]]:
        """Which effects are computed, ``[p, n_units]`` by name, by the first row of a batch and the group of unit sets.

        They are those with the largest gradient effects of all batches, so all batches run once to find them.
        """
        assert self.budget is not None
        found: dict[tuple[int, int], dict[str, Tensor]] = {}
        best, where = torch.zeros(0), torch.zeros(2, 0, dtype=torch.long)
        flags: list[Tensor] = []
        for batch in self.batches(self.rows):
            for number, group in enumerate(self.groups):
                if not group:
                    continue
                changes = self._changes(batch, self._run(batch, group), group)
                assert changes.rough is not None
                kept = {name: torch.zeros_like(moved) for name, moved in changes.moved.items()}
                found[batch.first, number] = kept
                for name, moved in changes.moved.items():
                    ids = moved.flatten().nonzero().flatten()
                    best = torch.cat([best, changes.rough[name].flatten()[ids].abs().cpu()])
                    where = torch.cat([where, torch.stack([torch.full_like(ids, len(flags)), ids]).cpu()], dim=-1)
                    flags.append(kept[name].view(-1))
                largest = best.topk(min(self.budget, len(best))).indices
                best, where = best[largest], where[:, largest]
        for number, flag in enumerate(flags):
            flag[where[1, where[0] == number].to(flag.device)] = True
        return found

    @cached_property
    def means(self) -> list[dict[str, Tensor]]:
        """For each group, the mean of latents over all points, by name."""
        batches = list(self.batches(self.rows if self.mean_over is None else self.mean_over))
        return [mean_of(self._latents(b, [r.tokens for r in b.rows], group) for b in batches) for group in self.groups]

    def _corrupted(self, batch: RowsAsked, group: Sequence[UnitSet]) -> dict[str, Tensor]:
        tokens = [row.corrupted for row in batch.rows if row.corrupted is not None]
        if len(tokens) < len(batch.rows):
            lacking = next(i for i, row in enumerate(batch.rows) if row.corrupted is None) + batch.first
            raise DataError(f"Units are to be set to corrupted values, and row {lacking} has no corrupted prompt.")
        return self._latents(batch, tokens, group)

    def _latents(self, batch: RowsAsked, prompts: Sequence[Tensor], group: Sequence[UnitSet]) -> dict[str, Tensor]:
        """Latents at the points of a batch when other prompts of the same lengths run, ``[p, d_sae]`` by name."""
        side = getattr(self.tokenizer, "padding_side", "left")
        inputs, first = padded(prompts, self.pad, side, self.backend.model_device)
        points = Points(batch.points.examples, batch.points.positions + first[batch.points.examples])
        run = prefill(self.backend, inputs, self.dictionaries(group), points)
        return {item.name: run.latents[item.activation_name] for item in group}

    # -------------------------------------------------------------------------------------------------------- manifest

    def about(self) -> dict[str, Any]:
        """What a manifest says of the question."""
        points = [[*_told(row)[:4], list(self._tokens(row, i))] for i, row in enumerate(self.rows)]
        return {
            "question": {
                "objective": self.objective.name,
                "unit": self.objective.unit,
                "value": self.value if isinstance(self.value, (str, int, float)) else "given",
                "positions": self.positions,
                "method": self.method,
                **({"steps": self.steps} if self.method == "integrated_gradients" else {}),
                **({} if self.mean_over is None else {"mean_over": hash_of([*map(_told, self.mean_over)], "Rows")}),
                "budget": self.budget,
                "rows": len(self.rows),
                "units": [item.told for item in self.sets],
            },
            "data": {"fingerprint": hash_of(points, "The rows"), "examples": sum(len(item[-1]) for item in points)},
            "versions": versions(),
        }

    @property
    def forwards(self) -> int:
        """Forwards of a batch, replays not counted."""
        return len(self.groups) * (2 if self.value in ("corrupted", "mean") else 1)

    def about_parts(self, *, hashed: bool) -> dict[str, Any]:
        """What a manifest says of model and dictionaries; in memory without hashes, for which all of them is read."""
        if not hashed:
            return {"model": {"source": without_folders(self._source), "class": type(self.backend.model).__qualname__}}
        of_sets = zip(self.every_set, self._identities[1:], strict=True)
        latents = [part.about for item, part in of_sets if item.kind == "latent"]
        return {"model": self._identities[0].about, "latent_models": latents}

    @property
    def _source(self) -> str:
        return str(getattr(getattr(self.backend.model, "config", None), "_name_or_path", ""))

    @cached_property
    def _identities(self) -> list[Identity]:
        """The model and the dictionaries of all unit sets."""
        latents = (identify_latents(item.dictionary) for item in self.every_set)
        return [identify_model(self.backend, self._source), *latents]

    @property
    def unknown(self) -> Sequence[str]:
        """What cannot be read of all that the results depend on, in words."""
        return self._content[1]

    @cached_property
    def key(self) -> str:
        """Hash of all that the results depend on.

        Where something cannot be hashed, a key of its own: nothing is reused then, and a warning says why.
        """
        sha256, unknown = self._content
        if unknown:
            warnings.warn(f"These results will not be reused: {unknown[0]}", NotReusedWarning, stacklevel=6)
            return uuid.uuid4().hex
        return sha256

    @cached_property
    def _content(self) -> tuple[str, Sequence[str]]:
        """That hash, and what cannot be read."""
        parts = self._identities
        packages, edited = identify_packages({CORE})
        told = content_hash(
            {
                "about": self.about(),
                "hashes": [item.about for item in parts],
                "units": [(item.ids, item.members) for item in self.every_set],
                "rows": [list(map(_told, rows)) for rows in (self.rows, self.mean_over or ())],
                "objective": self.objective,
                "value": self.value,
                "backend": self.backend,
                "batch_size": self.batch_size,
                "code": packages,
            },
            "The question",
        )
        return told.sha256, [*(text for item in parts for text in item.unknown), *edited, *told.unknown]


def _told(row: EncodedRow) -> list[Any]:
    return [row.tokens, row.corrupted, row.answers, row.correct, row.row.answers, dict(row.spans)]
