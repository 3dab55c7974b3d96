"""Compares replays with the plain loop before they are trusted, and falls back to it if they disagree."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
from interpretune.errors import NotFiniteError, ReplayRefusedError
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import LatentModel
from interpretune.models.quantization import rounds_activations
from interpretune.replay.ablation import ablate
from interpretune.replay.engine import ReplayEngine
from interpretune.replay.prefill import LatentObserver, Prefill, prefill
from interpretune.replay.rows import Changes, LatentRows
from interpretune.replay.suffix_ablation import ablate_from

if TYPE_CHECKING:
    from interpretune.backends.backend import AnalysisBackend

TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of logits, as a share of the largest logit. Some models normalise attention in float32 always."""


@frozen
class SelfCheck:
    """Result of a comparison of replays with the plain loop.

    Attributes:
        rows: Rows compared.
        longest: Slots of the longest batch compared.
        max_abs_error: Largest difference of a logit.
        tolerance: Largest difference allowed, in logits.
    """

    rows: int
    longest: int
    max_abs_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether replays are right; with NaN they are not."""
        return self.max_abs_error <= self.tolerance


class ReplayTrust:
    """What is known about replays of one backend: the engine, and the latent models they were checked with.

    Rows of single tokens, and rows that rerun the tokens after them, are checked apart.
    """

    def __init__(self) -> None:
        self._engine: ReplayEngine | None = None
        self._looked = False
        self._warned: set[str] = set()
        self._checks: list[tuple[tuple[LatentModel, ...], SelfCheck | None]] = []
        self._suffix_checks: list[tuple[tuple[LatentModel, ...], int, SelfCheck | None]] = []

    def prefill(
        self,
        backend: AnalysisBackend,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        points: Points | None,
        observers: Mapping[str, LatentObserver] | None,
        self_check: bool,
    ) -> Prefill:
        """A prefill whose replays can be trusted, or one without replays; see ``AnalysisBackend.prefill``."""
        models = tuple(latent_models)
        engine = self._find_engine(backend)
        known = [check for checked, check in self._checks if _same(checked, models)]
        if None in known or any(check is not None and not check.passed for check in known):
            engine = None
        elif engine is not None and inputs.extra:  # says nothing of other batches
            self._warn(f"The batch has further inputs ({', '.join(inputs.extra)}).")
            engine = None
        elif engine is not None and (reason := backend.follows_longest_row(inputs)) is not None:
            self._warn(reason)
            engine = None
        try:
            filled = prefill(backend, inputs, latent_models, points, observers, engine)
        except ReplayRefusedError as refusal:
            if engine is None:
                raise
            self._checks.append((models, None))
            self._warn(str(refusal))
            return prefill(backend, inputs, latent_models, points, observers)
        longest = max((check.longest for check in known if check is not None), default=0)
        if filled.kept is None or not self_check or inputs.tokens.shape[1] <= 2 * longest:
            return filled
        if self._agrees(filled, models):
            return filled
        return prefill(backend, inputs, latent_models, points, observers)  # nor is the engine's own forward trusted

    def checks(self) -> list[SelfCheck]:
        """The comparisons made so far."""
        found = [*(check for _, check in self._checks), *(check for *_, check in self._suffix_checks)]
        return [check for check in found if check is not None]

    def trusts_suffixes(self, filled: Prefill) -> bool:
        """Whether rows that rerun the tokens after a point are right, for prefills of this size; see ``ablate_from``.

        The first time, and again for texts or suffixes more than twice as long, a few are compared with whole forwards.
        """
        models, slots = tuple(filled.latent_models.values()), filled.inputs.tokens.shape[1]
        suffix = int(_tokens_after(filled).max()) + 1
        known = [(longest, check) for checked, longest, check in self._suffix_checks if _same(checked, models)]
        if any(check is None or not check.passed for _, check in known):
            return False
        if any(slots <= 2 * check.longest and suffix <= 2 * longest for longest, check in known if check is not None):
            return True
        try:
            check = compare_suffixes(filled, earliest_rows(filled))
        except ReplayRefusedError as refusal:
            self._suffix_checks.append((models, suffix, None))
            self._warn(str(refusal))
            return False
        if check.rows:
            self._suffix_checks.append((models, suffix, check))
        if not check.passed:
            self._warn(
                f"Logits after replayed tokens differ from those of whole forwards by {check.max_abs_error:.3g}; "
                f"allowed were {check.tolerance:.3g}."
            )
        return check.passed

    def _find_engine(self, backend: AnalysisBackend) -> ReplayEngine | None:
        if not self._looked:
            self._looked = True
            try:
                _refuse_rounded_activations(backend)
                self._engine = backend.create_replay()
            except ReplayRefusedError as refusal:
                self._warn(str(refusal))
        return self._engine

    def _agrees(self, filled: Prefill, models: tuple[LatentModel, ...]) -> bool:
        try:
            _refuse_rows_that_differ_in_company(filled.backend, filled.inputs)
            check = compare_with_plain_loop(filled, strongest_rows(filled))
            if not check.passed:  # latents near a threshold depend on the shapes of a forward: take the same shape
                same = prefill(
                    filled.backend,
                    filled.inputs,
                    models,
                    filled.points,
                    engine=filled.require_kept().engine,
                    buckets=False,
                )
                again = [compare_with_plain_loop(same, one_row_each(same, name)) for name in same.latents]
                check = next((item for item in again if not item.passed), again[0])
        except ReplayRefusedError as refusal:
            self._checks.append((models, None))
            self._warn(str(refusal))
            return False
        if check.rows:
            self._checks.append((models, check))
        if not check.passed:
            self._warn(
                f"Replayed logits differ from those of whole forwards by {check.max_abs_error:.3g}; allowed were "
                f"{check.tolerance:.3g}."
            )
        return check.passed

    def _warn(self, reason: str) -> None:
        """Say once why ablations are slow."""
        if reason not in self._warned:
            self._warned.add(reason)
            text = f"{reason} Ablations run a whole forward for each row instead, which is slow."
            warnings.warn(text, UserWarning, stacklevel=5)


def _refuse_rounded_activations(backend: AnalysisBackend) -> None:
    """Refuse 8-bit weights: rounding turns a tiny difference into a large error, which a few rows may not show."""
    if rounds_activations(backend.model):
        raise ReplayRefusedError(
            f"{type(backend.model).__name__} has 8-bit weights: bitsandbytes rounds activations to 8 bits too, in "
            "columns that the whole batch chooses (unless llm_int8_threshold is 0), so that effects have noise of that "
            "size. 4-bit weights have none of this and are replayed."
        )


@torch.no_grad()
def _refuse_rows_that_differ_in_company(backend: AnalysisBackend, inputs: ModelInputs) -> None:
    """Refuse a model whose shortest row of a batch has other logits alone than together with the longest."""
    sizes = inputs.attention_mask.sum(-1)
    pair = torch.stack([sizes.argmin(), sizes.argmax()])
    if sizes[pair[0]] == sizes[pair[1]]:
        return
    both, short = inputs.select(pair), inputs.select(pair[:1])
    real = short.attention_mask[0].bool()
    alone = ModelInputs(short.tokens[:, real], short.attention_mask[:, real])
    expected, found = (backend.forward(item, {}, item.answers)[0] for item in (alone, both))
    difference = (found - expected).abs().max().item()
    if not difference <= TOLERANCES.get(expected.dtype, 1e-2) * max(1.0, expected.abs().max().item()):
        raise ReplayRefusedError(
            f"The logits of a row of {int(sizes[pair[0]])} tokens differ by {difference:.3g} alone and beside a row of "
            f"{int(sizes[pair[1]])}: the numbers of a row depend on the rows beside it."
        )


def compare_with_plain_loop(filled: Prefill, rows: LatentRows) -> SelfCheck:
    """Replay some rows, and run them as whole forwards too."""
    return _compared(filled, rows, ablate(filled, rows, naive=True), lambda: ablate(filled, rows))


def compare_suffixes(filled: Prefill, rows: LatentRows) -> SelfCheck:
    """Rerun some rows up to the answer, and run them as whole forwards too."""
    points = filled.points.select(rows.points)
    answers = filled.inputs.answer_positions[points.examples]
    wanted = torch.stack([points.positions, (points.positions + answers) // 2, answers], dim=-1)
    slow = ablate_from(filled, rows, wanted, naive=True)
    return _compared(filled, rows, slow, lambda: ablate_from(filled, rows, wanted, self_check=False))


def _compared(filled: Prefill, rows: LatentRows, slow: Tensor, replay: Callable[[], Tensor]) -> SelfCheck:
    difference, scale = 0.0, 1.0
    if len(rows):
        scale = max(scale, slow[slow.isfinite()].abs().max().item())  # a model may rule out tokens with minus infinity
        try:
            fast = replay()
            difference = torch.where(fast == slow, 0, fast - slow).abs().max().item()
        except NotFiniteError:
            difference = math.nan
    tolerance = TOLERANCES.get(filled.logits.dtype, 1e-2) * scale
    return SelfCheck(len(rows), filled.inputs.tokens.shape[1], difference, tolerance)


def strongest_rows(filled: Prefill) -> LatentRows:
    """For each latent model, its strongest latent in the longest example, to be ablated alone.

    One more row is from the shortest example, with the most padding. Together they reveal errors of windows and masks.
    """
    sizes = filled.inputs.attention_mask.sum(-1)[filled.points.examples]
    longest, shortest = int(sizes.argmax()), int(sizes.argmin())
    active = {name: (filled.latents[name] != 0).any(-1) for name in filled.require_kept().entries}
    wanted = [(name, longest) for name in active] + [(name, shortest) for name in list(active)[:1]]
    strongest = {name: filled.latents[name].abs().argmax(-1) for name in active}
    found = [(name, point, int(strongest[name][point])) for name, point in wanted if active[name][point]]
    points = torch.tensor([point for _, point, _ in found], dtype=torch.long, device=filled.logits.device)
    changes = {}
    for name in {name for name, _, _ in found}:
        rows = [(i, latent) for i, (owner, _, latent) in enumerate(found) if owner == name]
        ids, latents = torch.tensor(rows, device=points.device).unbind(-1)
        changes[name] = Changes(ids, latents, filled.latents[name].new_zeros(len(ids)))
    return LatentRows(points, changes)


def earliest_rows(filled: Prefill) -> LatentRows:
    """For each latent model, its strongest latent at the active point with the most tokens after it.

    One more row for each is from the shortest example, with the most padding.
    """
    after, sizes = _tokens_after(filled), filled.inputs.attention_mask.sum(-1)[filled.points.examples]
    parts = []
    for name, latents in filled.latents.items():
        points = (latents != 0).any(-1).nonzero().flatten()
        if len(points):
            chosen = points[torch.stack([after[points].argmax(), sizes[points].argmin()]).unique()]
            parts.append(LatentRows.single(name, torch.stack([chosen, latents[chosen].abs().argmax(-1)], dim=-1)))
    return LatentRows.joined(parts) if parts else LatentRows(filled.points.examples[:0], {})


def _tokens_after(filled: Prefill) -> Tensor:
    """How many slots there are between each point and the answer position of its example, ``[n]``."""
    return filled.inputs.answer_positions[filled.points.examples] - filled.points.positions


def one_row_each(filled: Prefill, name: str) -> LatentRows:
    """Every point once, with the strongest latent of one latent model ablated."""
    latents = filled.latents[name]
    points = torch.arange(len(latents), device=latents.device)
    return LatentRows.single(name, torch.stack([points, latents.abs().argmax(-1)], dim=-1))


def _same(one: Sequence[LatentModel], other: Sequence[LatentModel]) -> bool:
    """Whether these are the same latent models, or coordinates of the same hook points."""
    return len(one) == len(other) and all(map(_is_same, one, other))


def _is_same(one: LatentModel, other: LatentModel) -> bool:
    return one is other or (isinstance(one, IdentityDictionary) and one == other)
