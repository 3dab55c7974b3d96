"""Small stores, and the dense arrays that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from attrs import define

from interpretune.analysis import LatentValues
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.fields import Field, Per

HOOKS = ("blocks.0.hook_resid_post.hook_sae_acts_post", "blocks.2.hook_mlp_out.hook_sae_acts_post")
D_SAE = 12
FIELDS = (
    Field("logit_diffs", about="in logits"),
    Field("answer", "string"),
    Field("activations", per=Per.latent),
    Field("effects", per=Per.latent, about="in logits"),
)


@define(eq=False)
class Dense:
    """What a store holds, dense.

    Attributes:
        examples: Ids, ``[example]``.
        active: Whether a latent is active, ``[example, hook, d_sae]``.
        activations: ``[example, hook, d_sae]``.
        effects: The same shape, 0 where the latent is not active.
        logit_diffs: ``[example]``.
        data: Fingerprint of the data.
    """

    examples: list[int]
    active: np.ndarray
    activations: np.ndarray
    effects: np.ndarray
    logit_diffs: np.ndarray
    data: str


def dense(seed: int, examples: Iterable[int], *, like: int | None = None, data: str = "a") -> Dense:
    """Random results; with ``like`` they resemble those of that seed, as two methods of one analysis do."""
    examples = list(examples)
    shape = (len(HOOKS), D_SAE)

    def one(seed: int, example: int) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng([seed, example])
        return draw.random(shape) < 0.4, draw.random(shape) + 0.1, draw.normal(size=shape) + 0.2, draw.normal(size=1)

    rows = [one(seed, example) for example in examples]
    active, activations, effects, diffs = (np.stack(part) for part in zip(*rows, strict=True))
    if like is not None:
        theirs = [one(like, example) for example in examples]
        active = (np.stack([row[0] for row in theirs]) | (active & (activations > 0.9))) & (activations > 0.2)
        effects = np.stack([row[2] for row in theirs]) + 0.5 * effects
        diffs = np.stack([row[3] for row in theirs]) + 0.5 * diffs
    effects = np.where(active, effects, 0).astype(np.float32).astype(np.float64)
    activations = np.where(active, activations, 0).astype(np.float32).astype(np.float64)
    return Dense(examples, active, activations, effects, diffs[:, 0].astype(np.float32).astype(np.float64), data)


def store_of(
    results: Dense,
    batch: int,
    order: Sequence[int] | None = None,
    hooks: Sequence[str] = HOOKS,
    effects_at: Sequence[str] = HOOKS,
) -> AnalysisStore:
    """A store in memory; ``order`` is that in which its rows are written."""
    store, writer = StoreWriter.in_memory(FIELDS, about_of(results))
    _write(writer, results, batch, order, hooks, effects_at)
    return store


def written(
    folder: Path, results: Dense, batch: int = 3, *, rows_per_shard: int = 6, seal: bool = True
) -> AnalysisStore:
    """A store in a folder, with a table and some shards."""
    fields = (*FIELDS, Field("summary", "float", per=Per.run))
    n_batches = -(-len(results.examples) // batch) + (not seal)
    with StoreWriter.create(
        folder, fields, about_of(results), key="k", n_batches=n_batches, rows_per_shard=rows_per_shard
    ) as writer:
        _write(writer, results, batch)
        writer.write_table("summary", pa.table({"name": ["a|b", "c"], "share": [0.25, 0.5]}))
        if seal:
            return writer.seal()
    return AnalysisStore.open(folder)


def about_of(results: Dense) -> dict[str, object]:
    """What a run says of itself."""
    plan = [{"name": "forward", "reads": ["x"]}]
    return {"analysis": "ablation", "data": {"fingerprint": results.data}, "plan": plan}


def _write(
    writer: StoreWriter,
    results: Dense,
    batch: int,
    order: Sequence[int] | None = None,
    hooks: Sequence[str] = HOOKS,
    effects_at: Sequence[str] = HOOKS,
) -> None:
    rows = np.arange(len(results.examples)) if order is None else np.asarray(order)
    for index, start in enumerate(range(0, len(rows), batch)):
        some = rows[start : start + batch]
        latents = {hook: np.flatnonzero(results.active[some, HOOKS.index(hook)].any(0)) for hook in hooks}

        def values(
            array: np.ndarray, some: np.ndarray = some, latents: dict[str, np.ndarray] = latents
        ) -> dict[str, LatentValues]:
            return {
                hook: LatentValues(
                    torch.from_numpy(ids), torch.from_numpy(array[some, HOOKS.index(hook)][:, ids]).float(), D_SAE
                )
                for hook, ids in latents.items()
            }

        writer.write(
            index,
            [results.examples[row] for row in some],
            {
                "logit_diffs": torch.from_numpy(results.logit_diffs[some]).float(),
                "answer": [f"answer {row}" for row in some],
                "activations": values(results.activations),
                "effects": {h: item for h, item in values(results.effects).items() if h in effects_at},
            },
        )
