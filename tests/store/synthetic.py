"""Batches of made-up results, and what makes two of them the same."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues

N_BATCHES, SIZE = 6, 3
FIELDS = (
    Field("logit_diffs", about="correct minus other answer, logits"),
    Field("tokens", "int64", ragged=True),
    Field("prompts", "string"),
    Field("logits", "bfloat16", shape=("labels",)),
    Field("loss", "float", Per.batch),
    Field("activations", "float", Per.latent),
    Field("effects", "float", Per.latent),
    Field("summary", "float", Per.run),
)
HOOKS = ("blocks.0.hook_resid_post.hook_sae_acts_post", "blocks.1.hook_resid_post.hook_sae_acts_post")


def values_of(batch: int, size: int = SIZE) -> dict[str, Any]:
    """The results of a batch; the same whenever they are asked for."""
    draw = torch.Generator().manual_seed(batch)
    activations, effects = {}, {}
    for hook in HOOKS:
        alive = torch.randperm(64, generator=draw)[:7].sort().values
        active = torch.rand(size, 7, generator=draw) < 0.4
        activations[hook] = LatentValues(alive, torch.rand(size, 7, generator=draw) * active, 64)
        effects[hook] = LatentValues(alive, torch.randn(size, 7, generator=draw) * active, 64)
    return {
        "logit_diffs": torch.randn(size, generator=draw),
        "tokens": [torch.arange(batch + row) for row in range(size)],
        "prompts": [f"batch {batch}, row {row}: naïve ☃" for row in range(size)],
        "logits": torch.randn(size, 2, generator=draw).bfloat16(),
        "loss": torch.rand((), generator=draw),
        "activations": activations,
        "effects": effects,
    }


def examples_of(batch: int, size: int = SIZE) -> list[int]:
    """Positions of a batch's examples."""
    return list(range(batch * size, (batch + 1) * size))


def writer_of(folder: Path, **options: Any) -> StoreWriter:
    """A writer of such batches, a shard for every two of them."""
    known = {"key": "k" * 64, "n_batches": N_BATCHES, "rows_per_shard": 2 * SIZE, **options}
    return StoreWriter.create(folder, FIELDS, {"seed": 0}, **known)


def write(writer: StoreWriter, *batches: int) -> None:
    """Write some batches."""
    for batch in batches:
        writer.write(batch, examples_of(batch), values_of(batch))


def interrupt(folder: Path, *batches: int, **options: Any) -> None:
    """Write some batches and stop as by Ctrl-C, before the journal becomes a shard."""
    with contextlib.suppress(KeyboardInterrupt), writer_of(folder, rows_per_shard=100, **options) as writer:
        write(writer, *batches)
        raise KeyboardInterrupt


def sealed(folder: Path) -> AnalysisStore:
    """A complete store."""
    with writer_of(folder) as writer:
        write(writer, *range(N_BATCHES))
        return writer.seal()


def assert_same(found: Any, expected: Any) -> None:
    """Same kinds, dtypes, shapes and values; NaN is NaN."""
    if isinstance(expected, Tensor):
        assert found.dtype is expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, LatentValues):
        assert found.d_sae == expected.d_sae
        assert_same(found.latents, expected.latents)
        assert_same(found.values, expected.values)
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected or (found != found and expected != expected)


def assert_whole(store: AnalysisStore, *batches: int) -> None:
    """The store has these batches, once each, as they were written."""
    assert store.batch_indices == list(batches)
    found = list(store.batches())
    assert [batch.index for batch in found] == list(batches)
    for batch in found:
        assert batch.examples.tolist() == examples_of(batch.index)
        assert_same(dict(batch), values_of(batch.index))
    rows = [row for rows in store.record_batches(["example"]) for row in rows.column("example").to_pylist()]
    assert sorted(rows) == [example for batch in batches for example in examples_of(batch)]
