"""Cards of units: where they are active, which tokens they promote, and what happens when they change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from attrs import define, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from interpretune.activations.hook_names import canonical
from interpretune.backends.direct_paths import DirectPaths, DirectRun
from interpretune.errors import AnalysisError, HookPointError
from interpretune.evidence.changed_rows import ChangedBatch, Setting
from interpretune.evidence.chosen import Chosen, ablated_values, sets_of
from interpretune.evidence.facts import ActiveTokens, Card, ChangedRow, Dose, ShadedPrompt, TokenEffect
from interpretune.evidence.intervals import Ratios, ratios_over_rows
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import HasDecoderRows, read_points, written_points
from interpretune.questions.question import Question, RowsAsked
from interpretune.questions.result import Effects
from interpretune.questions.sequences import padded

FACTORS = (0.0, 0.5, 2.0, 4.0)
"""Multiples of activations, besides 1."""
PROMPTS, BINS, LOGIT_BINS, TOKENS, CHANGED = 6, 20, 50, 10, 20
"""On a card: prompts, bins of activations and of logits, tokens of each kind, and at most so many changed rows."""
MOST_KINDS = 4
"""Most correct answers whose rows are told apart."""
NOTHING = np.zeros(0, np.int64), np.zeros(0)
"""Counts and edges of a histogram of nothing."""


@define(eq=False)
class _Found:
    """What is collected of a unit, batch by batch.

    Attributes:
        activations: At all tokens of each prompt, ``[pos]`` each.
        objectives: With nothing changed, with each of ``FACTORS``, and ablated, ``[2 + len(FACTORS), n]`` each.
        rated: The answers that are rated highest, likewise.
        lost: Logits lost by ablation, summed over rows of each kind, ``[kinds, vocab]``.
        written: What it writes, behind the last norm, summed likewise, ``[kinds, d_model]``; None: not defined.
    """

    activations: list[NDArray[np.float64]] = field(factory=list)
    objectives: list[Tensor] = field(factory=list)
    rated: list[Tensor] = field(factory=list)
    lost: Tensor | float = 0.0
    written: Tensor | float | None = 0.0


def cards_of(question: Question, effects: Effects, chosen: Sequence[Chosen]) -> list[Card]:
    """A card for each unit, over the rows of the question.

    A unit is changed in the run in which its effects are: neurons, heads and vectors in the model as it is, latents
    with all dictionaries spliced in.
    """
    found, paths, kinds = [_Found() for _ in chosen], DirectPaths(question.backend), _Kinds.of(question)
    direct: DirectRun | None = None
    for group in question.groups:
        names = {item.name for item in group}
        mine = [(item, kept) for item, kept in zip(chosen, found, strict=True) if item.units.name in names]
        if not mine:
            continue
        to = ablated_values(question, sets_of(item for item, _ in mine))
        for batch in question.batches(question.rows):
            _collect(question, batch, mine, to, kinds)
            _see_everywhere(question, batch, mine)
            direct = _see_written(question, batch, mine, paths, kinds) or direct
    frame, points, rows = effects.to_pandas(), effects.points(), effects.rows()
    per_row = points.groupby("row").size().reindex(rows.row, fill_value=0).to_numpy(float)
    cards = []
    for item, kept in zip(chosen, found, strict=True):
        own = frame[(frame.units == item.units.name) & (frame.unit == item.unit)]
        sums = own.groupby("row").effect.sum().reindex(rows.row, fill_value=0).to_numpy(float)
        mean = ratios_over_rows(sums[:, None], per_row)
        clean, *_, ablated = torch.cat(kept.objectives, dim=-1)
        kind = kinds.strongest((clean - ablated).numpy())
        cards.append(_card(question, item, kept, direct, mean, [*rows.predicted], (kinds, kind)))
    return cards


@frozen(eq=False)
class _Kinds:
    """Kinds of rows by their correct answers, whose tokens are told apart.

    Attributes:
        names: In words.
        of_rows: Kind of each row, ``[n]``.
    """

    names: Sequence[str]
    of_rows: Tensor

    @classmethod
    def of(cls, question: Question) -> _Kinds:
        answers = [row.row.answers[row.correct] if row.row.answers else "" for row in question.rows]
        counts = Counter(answers)
        device = question.backend.model_device
        if not 2 <= len(counts) <= MOST_KINDS or min(counts.values()) < 2:
            return cls(["all rows"], torch.zeros(len(answers), dtype=torch.long, device=device))
        order = list(counts)
        told = [f'rows whose answer is "{answer.strip()}"' for answer in order]
        return cls(told, torch.tensor([order.index(answer) for answer in answers], device=device))

    def at(self, batch: RowsAsked) -> Tensor:
        """Of the rows of a batch."""
        return self.of_rows[batch.first : batch.first + len(batch.rows)]

    def strongest(self, effects: NDArray[np.float64]) -> int:
        """The kind with the largest mean size of the effects of ablation, ``[n]``, whose logits a card shows."""
        kinds = self.of_rows.cpu().numpy()
        return int(np.argmax([np.abs(effects[kinds == i]).mean() for i in range(len(self.names))]))


def _collect(
    question: Question, batch: RowsAsked, mine: Sequence[tuple[Chosen, _Found]], to: Mapping[str, Tensor], kinds: _Kinds
) -> None:
    """Objectives, answers and logits when each unit changes."""
    changed, n = ChangedBatch(question, batch, sets_of(item for item, _ in mine)), len(batch.points)
    to_zero = not any(bool(values.any()) for values in to.values())  # which is the first dose
    each, ablated = [], []
    for item, _ in mine:
        members = {item.units.name: item.members}
        latents = changed.latents(item.units.name)
        ablated.append(Setting.of(members, to, n))
        each += [Setting.of(members, {item.units.name: factor * latents}, n) for factor in FACTORS]
        each += [] if to_zero else ablated[-1:]
    objectives, rated = (values.unflatten(0, (len(mine), -1)) for values in changed.changed(each))
    if to_zero:
        objectives, rated = (torch.cat([values, values[:, :1]], dim=1) for values in (objectives, rated))
    all_lost = changed.logits_lost(ablated, kinds.at(batch), len(kinds.names))
    for (_, kept), objective, answers, lost in zip(mine, objectives, rated, all_lost, strict=True):
        kept.objectives.append(torch.cat([changed.run.clean.unsqueeze(0), objective]).double().cpu())
        kept.rated.append(torch.cat([changed.run.rated.unsqueeze(0), answers]).cpu())
        kept.lost = kept.lost + lost


def _see_everywhere(question: Question, batch: RowsAsked, mine: Sequence[tuple[Chosen, _Found]]) -> None:
    """Activations at all tokens of the prompts, nothing changed."""
    backend, sets = question.backend, sets_of(item for item, _ in mine)
    inputs, first = _prompts(question, batch)
    if isinstance(sets[0].dictionary, IdentityDictionary):
        names = {item.name: canonical(item.dictionary.hook_point) for item in sets}
        captured = backend.capture(inputs, list(names.values()))
        seen = {name: captured[place].flatten(2) for name, place in names.items()}
    else:
        record = [item.activation_name for item in sets]
        models = [item.dictionary for item in question.groups[-1]]
        edits, recorded = backend.splice_edits(inputs, models, record=record)
        backend.forward(inputs, edits, inputs.answers)
        seen = {item.name: recorded[item.activation_name] for item in sets}
    for item, kept in mine:
        members = seen[item.units.name][..., item.members].double()
        size = members.squeeze(-1) if members.shape[-1] == 1 else members.norm(dim=-1)
        for values, start, row in zip(size.cpu(), first.tolist(), batch.rows, strict=True):
            kept.activations.append(values[start : start + len(row.tokens)].numpy())


def _see_written(
    question: Question,
    batch: RowsAsked,
    mine: Sequence[tuple[Chosen, _Found]],
    paths: DirectPaths,
    kinds: _Kinds,
) -> DirectRun | None:
    """What units write at the answer position, behind the last norm; in the model as it is."""
    if question.positions not in ("answer", "each"):  # elsewhere nothing goes straight to the logits of the answer
        for _, kept in mine:
            kept.written = None
        return None
    inputs, _ = _prompts(question, batch)
    models = [item.dictionary for item in sets_of(item for item, _ in mine)]
    names = [name for item in models for name in (*read_points(item), *written_points(item))]
    try:
        run = paths.run(inputs, inputs.answers, names, lambda logits: logits[:, 0])
    except (AnalysisError, HookPointError):  # it has another way to its logits than a norm and an unembedding
        for _, kept in mine:
            kept.written = None
        return None
    for item, kept in mine:
        if kept.written is not None:
            try:
                written = _written(run, item)
                summed = written.new_zeros(len(kinds.names), written.shape[-1])
                kept.written = kept.written + summed.index_add_(0, kinds.at(batch), written)
            except AnalysisError:  # it is not written into the residual stream by a linear map
                kept.written = None
    return run


def _written(run: DirectRun, item: Chosen) -> Tensor:
    """What a unit writes at the points of a run, behind the last norm, ``[n, d_model]``."""
    model, members = item.units.dictionary, item.members
    read = torch.cat([run.seen[canonical(name)] for name in read_points(model)], dim=-1)
    if isinstance(model, IdentityDictionary):
        alone = torch.zeros_like(read)
        alone[:, members] = read[:, members]
        return run.through_norm(canonical(model.hook_point), alone)
    rows = model.decoder_rows(members.to(read.device)) if isinstance(model, HasDecoderRows) else None
    if rows is None:
        raise AnalysisError(f"The decoder of {model.name!r} is not known to be linear.")
    whole = model.encode(read.unsqueeze(1)).squeeze(1)[:, members] @ rows.to(read)
    places = [canonical(name) for name in written_points(model)]
    parts = whole.split([run.seen[name].shape[-1] for name in places], dim=-1)
    total: Tensor = sum(
        (run.through_norm(name, part) for name, part in zip(places, parts, strict=True)), torch.zeros(())
    )
    return total


def _prompts(question: Question, batch: RowsAsked) -> tuple[Any, Tensor]:
    side = getattr(question.tokenizer, "padding_side", "left")
    return padded([row.tokens for row in batch.rows], question.pad, side, question.backend.model_device)


def _card(
    question: Question,
    item: Chosen,
    kept: _Found,
    direct: DirectRun | None,
    mean: Ratios,
    predicted: Sequence[int],
    told: tuple[_Kinds, int],
) -> Card:
    kinds, kind = told
    n, vocab = int((kinds.of_rows == kind).sum()), min(question.backend.vocab_size, len(question.tokenizer))
    everywhere = np.concatenate(kept.activations)
    counts, edges = np.histogram(everywhere, bins=BINS)
    assert isinstance(kept.lost, Tensor)
    straight = torch.zeros(0, device=kept.lost.device)
    if direct is not None and isinstance(kept.written, Tensor):
        straight = direct.logits_of(kept.written[kind : kind + 1] / n)[0, :vocab]
    total, url = kept.lost[kind, :vocab] / n, item.units.dictionary.dashboard_url()
    promoted, straight_up = (_tokens(question, values) for values in (total, straight))
    suppressed, straight_down = (_tokens(question, values, sign=-1) for values in (total, straight))
    logit_counts, logit_edges = np.histogram(straight.double().cpu(), bins=LOGIT_BINS) if len(straight) else NOTHING
    objectives, rated = torch.cat(kept.objectives, dim=-1), torch.cat(kept.rated, dim=-1)
    return Card(
        name=item.name,
        units=item.units.name,
        unit=item.unit,
        kind=item.units.kind,
        mean_effect=float(mean.values[0]),
        low=float(mean.low[0]),
        high=float(mean.high[0]),
        share_active=float((everywhere != 0).mean()),
        prompts=_strongest(question, kept.activations, predicted),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        promoted_total=promoted,
        suppressed_total=suppressed,
        promoted_direct=straight_up,
        suppressed_direct=straight_down,
        doses=_doses(question, objectives, rated),
        changed=_changed(question, rated),
        url=None if url is None else url.replace("{latent}", str(item.unit)),
        promoted_in=kinds.names[kind],
        logit_edges=tuple(logit_edges.tolist()),
        logit_counts=tuple(logit_counts.tolist()),
        active=_active(kept.activations) if item.units.kind == "latent" else None,
    )


def _tokens(question: Question, values: Tensor, sign: int = 1) -> tuple[TokenEffect, ...]:
    """Tokens with the largest values of a sign, ``[vocab]``."""
    top = (sign * values).topk(min(TOKENS, len(values)))
    return tuple(
        TokenEffect(question.tokenizer.decode([int(token)]), sign * float(value))
        for value, token in zip(top.values, top.indices, strict=True)
        if value > 0
    )


def _strongest(
    question: Question, activations: Sequence[NDArray[np.float64]], predicted: Sequence[int]
) -> tuple[ShadedPrompt, ...]:
    """Prompts with the largest activations, whatever their sign, each text once."""
    order = sorted(range(len(activations)), key=lambda i: -np.abs(activations[i]).max())
    once: dict[tuple[int, ...], int] = {}
    for i in order:
        if activations[i].any() and len(once) < PROMPTS:
            once.setdefault(tuple(question.rows[i].tokens.tolist()), i)
    return tuple(
        ShadedPrompt(
            row=i,
            tokens=tuple(_texts(question, question.rows[i].tokens.tolist())),
            activations=tuple(activations[i].tolist()),
            answers=question.rows[i].row.answers,
            correct=question.rows[i].correct,
            predicted=int(predicted[i]),
            position=len(question.rows[i].tokens) - 1,
        )
        for i in once.values()
    )


def _active(activations: Sequence[NDArray[np.float64]]) -> ActiveTokens:
    lengths = [len(values) for values in activations]
    everywhere = np.concatenate(activations)
    at = everywhere.nonzero()[0]
    rows, positions = np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(n) for n in lengths])
    return ActiveTokens(*(tuple(part[at].tolist()) for part in (rows, positions, everywhere)))


def _texts(question: Question, ids: Sequence[int]) -> Iterator[str]:
    """Texts of the tokens of a prompt, with the spaces between them that some tokenizers leave out of single tokens."""
    decode = question.tokenizer.decode
    yield from (decode([token]) for token in ids[:1])
    for before, token in pairwise(ids):
        start, both = decode([before]), decode([before, token])
        yield both.removeprefix(start) if both.startswith(start) else decode([token])


def _doses(question: Question, objectives: Tensor, rated: Tensor) -> tuple[Dose, ...]:
    """Dose and response, by factor."""
    correct = torch.tensor([row.correct for row in question.rows])
    found = []
    for factor, objective, answers in zip((1.0, *FACTORS), objectives, rated, strict=False):
        is_rated = answers >= 0
        share = float((answers == correct)[is_rated].double().mean()) if bool(is_rated.any()) else float("nan")
        found.append(Dose(factor, float(objective.mean()), share))
    return tuple(sorted(found, key=lambda dose: dose.factor))


def _changed(question: Question, rated: Tensor) -> tuple[ChangedRow, ...]:
    """Rows whose answer changes when the unit is ablated, the first ones."""
    before, after = rated[0].tolist(), rated[-1].tolist()
    return tuple(
        ChangedRow(i, question.tokenizer.decode(row.tokens), row.row.answers[before[i]], row.row.answers[after[i]])
        for i, row in enumerate(question.rows)
        if before[i] != after[i]
    )[:CHANGED]
