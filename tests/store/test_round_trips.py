"""What is written comes back as it was given, whatever its dtype and shape."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.fields import TORCH_DTYPES, Field, Per
from interpretune.store.rows import check_rows
from interpretune.store.values import LatentValues
from tests.store.synthetic import (
    N_BATCHES,
    SIZE,
    assert_same,
    assert_whole,
    examples_of,
    interrupt,
    sealed,
    values_of,
    write,
    writer_of,
)

FLOATS = ("float64", "float32", "float16", "bfloat16")
SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0, 1e-40, 3.3895e38, 1 / 3)
HOOKS = ("a", "b.hook", "c")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@st.composite
def tensors(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of random bits, with special numbers here and there."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = TORCH_DTYPES[dtype]
    count = torch.Size(shape).numel()
    if dtype == "bool":
        return torch.randint(2, shape, generator=generator).bool()
    bits = torch.randint(256, (count * kind.itemsize,), generator=generator, dtype=torch.uint8)
    tensor = bits.view(kind) if count else torch.zeros(0, dtype=kind)
    if kind.is_floating_point:
        for place in range(count):
            if draw(st.booleans()):
                tensor[place] = draw(st.sampled_from(SPECIAL))
    sparse = torch.rand(count, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return torch.where(sparse, torch.zeros_like(tensor), tensor).reshape(shape)


@st.composite
def declared(draw: st.DrawFn) -> list[tuple[Field, str, tuple[int, ...]]]:
    """Fields of all kinds, with the dtype and the sizes that their values have."""
    found: list[tuple[Field, str, tuple[int, ...]]] = []
    for number in range(draw(st.integers(1, 5))):
        per = draw(st.sampled_from([Per.example, Per.batch, Per.latent]))
        dtype = draw(st.sampled_from(["float", *TORCH_DTYPES] + ["string"] * (per is not Per.latent)))
        real = draw(st.sampled_from(FLOATS)) if dtype == "float" else dtype
        sizes = () if dtype == "string" else tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
        ragged = per is not Per.latent and draw(st.booleans())
        axes = tuple(f"axis{axis}" for axis in range(len(sizes)))
        found.append((Field(f"field{number}", dtype, per, axes, ragged), real, sizes))
    return found


@st.composite
def one_value(draw: st.DrawFn, item: Field, dtype: str, sizes: tuple[int, ...]) -> Any:
    """What one example, or a batch, has of a field."""
    if dtype == "string":
        return draw(st.lists(TEXT, max_size=3)) if item.ragged else draw(TEXT)
    lengths = (draw(st.integers(0, 3)),) if item.ragged else ()
    return draw(tensors(dtype, (*lengths, *sizes)))


@st.composite
def batches(draw: st.DrawFn, fields: list[tuple[Field, str, tuple[int, ...]]]) -> dict[str, Any]:
    """Values of a batch."""
    n = draw(st.integers(1, 4))
    alive = {hook: draw(st.sets(st.integers(0, 9), max_size=5)) for hook in HOOKS}
    values: dict[str, Any] = {}
    for item, dtype, sizes in fields:
        if item.per is Per.batch:
            values[item.name] = draw(one_value(item, dtype, sizes))
        elif item.per is Per.example and (item.ragged or dtype == "string"):
            values[item.name] = [draw(one_value(item, dtype, sizes)) for _ in range(n)]
        elif item.per is Per.example:
            values[item.name] = draw(tensors(dtype, (n, *sizes)))
        else:
            values[item.name] = {}
            for hook in draw(st.lists(st.sampled_from(HOOKS), min_size=1, unique=True)):
                known = draw(st.one_of(st.just(alive[hook]), st.sets(st.integers(0, 9), max_size=3)))
                latents = torch.tensor(sorted(known), dtype=torch.int64)
                values[item.name][hook] = LatentValues(latents, draw(tensors(dtype, (n, len(known), *sizes))), 10)
    return {"examples": draw(st.lists(st.integers(0, 2**62), min_size=n, max_size=n)), "values": values}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_batch_comes_back_as_it_was_given(data: st.DataObject) -> None:
    drawn = data.draw(declared())
    fields = [item for item, _, _ in drawn]
    given_batches = data.draw(st.lists(batches(drawn), min_size=1, max_size=4))
    in_memory, in_memory_writer = StoreWriter.in_memory(fields)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        rows_per_shard = data.draw(st.integers(1, 8))
        writer = StoreWriter.create(
            folder, fields, {}, key="k", n_batches=len(given_batches), rows_per_shard=rows_per_shard
        )
        for batch in data.draw(st.permutations(range(len(given_batches)))):
            for each in (writer, in_memory_writer):
                each.write(batch, given_batches[batch]["examples"], given_batches[batch]["values"])
        being_written = AnalysisStore.open(folder)
        on_disk = writer.seal()
        on_disk.verify()
        for store in (in_memory, being_written, on_disk):
            assert store.batch_indices == list(range(len(given_batches)))
            for found, expected in zip(store.batches(), given_batches, strict=True):
                assert found.examples.tolist() == expected["examples"]
                assert_same(dict(found), expected["values"])
            some = data.draw(st.sets(st.sampled_from([item.name for item in fields])))
            batch = data.draw(st.integers(0, len(given_batches) - 1))
            chosen = {name: value for name, value in given_batches[batch]["values"].items() if name in some}
            assert_same(dict(store.batch(batch, some)), chosen)


@pytest.mark.parametrize("value", [True, 2**40, -1.5, float("nan")])
def test_numbers_of_a_batch_come_back_as_numbers(value: Any) -> None:
    dtype = {bool: "bool", int: "int64", float: "float"}[type(value)]
    store, writer = StoreWriter.in_memory([Field("loss", dtype, Per.batch)])
    writer.write(0, [0, 1], {"loss": value})
    assert_same(store.batch(0)["loss"], value)


def test_latents_that_are_zero_in_every_example_stay_alive() -> None:
    store, writer = StoreWriter.in_memory([Field("activations", "float", Per.latent)])
    given_values = {
        "nothing alive": LatentValues(torch.zeros(0, dtype=torch.int64), torch.zeros(2, 0), 8),
        "zero everywhere": LatentValues(torch.tensor([1, 5]), torch.tensor([[0.0, 0.0], [0.0, 3.0]]), 8),
    }
    writer.write(0, [0, 1], {"activations": given_values})
    assert_same(store.batch(0)["activations"], given_values)
    rows = [row for rows in store.latents() for row in rows.to_pylist()]
    assert rows == [
        {"example": 0, "hook": "zero everywhere", "latent": 1, "activations": 0.0},
        {"example": 1, "hook": "zero everywhere", "latent": 5, "activations": 3.0},
    ]


def test_latents_with_two_further_axes_are_read_from_the_middle_of_a_shard(tmp_path: Path) -> None:
    fields = [Field("edges", "float64", Per.latent, ("downstream", "sign"))]
    given_values = [
        {"edges": {"a": LatentValues(torch.tensor([batch]), torch.rand(1, 1, 2, 1, dtype=torch.float64), 10)}}
        for batch in range(3)
    ]
    with StoreWriter.create(tmp_path, fields, {}, key="k", n_batches=3) as writer:
        for batch, values in enumerate(given_values):
            writer.write(batch, [batch], values)
        for found, expected in zip(writer.seal().batches(), given_values, strict=True):
            assert_same(dict(found), expected)


def test_lists_that_may_be_null_are_not_of_fixed_size(tmp_path: Path) -> None:
    """Arrow before 26 cannot read them from a Parquet file; ``make test-lowest`` reads such stores with an old one."""
    ids = torch.tensor([1, 5])
    both = {
        "edges": {"a": LatentValues(ids, torch.rand(1, 2, 3, 2), 8)},
        "effects": {"a": LatentValues(torch.tensor([1, 2, 5]), torch.rand(1, 3), 8)},
    }
    fields = [Field("edges", "float32", Per.latent, ("token", "sign")), Field("effects", "float32", Per.latent)]
    with StoreWriter.create(tmp_path, fields, {}, key="k", n_batches=1) as writer:
        writer.write(0, [0], both)
        store = writer.seal()
    assert_same(dict(store.batch(0)), both)
    [rows] = store.record_batches()
    kind = rows.schema.field("latents").type.value_type.field("edges").type
    assert pa.types.is_list(kind)
    assert kind.value_type.list_size == 2
    told = rows.column("latents").flatten().field("edges").to_pylist()
    assert [item is None for item in told] == [False, True, False]
    rows = forged_lengths(rows)
    with pytest.raises(ValueError, match="edges has more or fewer values than it tells"):
        check_rows(rows, np.array([0]), np.array([1]), {"a": 8})


def forged_lengths(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows; the first list of a per-latent field has two values more, and its last two fewer."""
    lists = rows.column("latents")
    entries = lists.flatten()
    edges = entries.field("edges")
    other = pa.ListArray.from_arrays(pa.array([0, 5, 5, 6], pa.int32()), edges.flatten(), type=edges.type)
    members = [other if item.name == "edges" else entries.field(item.name) for item in entries.type]
    struct = pa.StructArray.from_arrays(members, fields=list(entries.type))
    forged = pa.ListArray.from_arrays(lists.offsets, struct, type=lists.type)
    arrays = [forged if name == "latents" else rows.column(name) for name in rows.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=rows.schema)


def test_values_read_are_the_readers_own() -> None:
    store, writer = StoreWriter.in_memory([Field("logit_diffs")])
    written = torch.ones(2)
    writer.write(0, [0, 1], {"logit_diffs": written})
    written.zero_()
    with torch.inference_mode():
        read = store.batch(0)["logit_diffs"]
    read.mul_(2)
    read.requires_grad_(True)
    assert store.batch(0)["logit_diffs"].tolist() == [1, 1]


def test_a_store_is_read_while_it_is_written(tmp_path: Path) -> None:
    with writer_of(tmp_path / "store") as writer:
        write(writer, 0, 1, 2)  # two in a shard and one in the journal
        store = AnalysisStore.open(tmp_path / "store")
        write(writer, 3, 4, 5)  # moves what the reader has seen
    assert_whole(store, 0, 1, 2)
    assert not store.complete
    store.verify()


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        assert writer.missing() == list(range(N_BATCHES))
        write(writer, 0, 4)
    with writer_of(tmp_path) as writer:
        assert writer.done == {0, 4}
        assert writer.missing() == [1, 2, 3, 5]
        write(writer, 5, 3, 2, 1)
        store = writer.seal()
    assert store.complete
    assert_whole(store, *range(N_BATCHES))
    with writer_of(tmp_path) as writer:
        assert writer.done == set(range(N_BATCHES))


def test_a_run_that_stops_with_an_error_leaves_what_was_written(tmp_path: Path) -> None:
    interrupt(tmp_path, 0, 1, 2)
    assert not list((tmp_path / "shards").iterdir())
    assert_whole(AnalysisStore.open(tmp_path), 0, 1, 2)
    with writer_of(tmp_path) as writer:
        assert writer.done == {0, 1, 2}


def test_a_stores_rows_are_those_of_its_batches(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    expected = [
        {
            "example": example,
            "hook": hook,
            "latent": latent,
            "activations": values_of(batch)["activations"][hook].dense()[row, latent].item(),
            "effects": values_of(batch)["effects"][hook].dense()[row, latent].item(),
        }
        for batch in range(N_BATCHES)
        for row, example in enumerate(examples_of(batch))
        for hook, found in values_of(batch)["activations"].items()
        for latent in found.dense()[row].nonzero().flatten().tolist()
    ]
    rows = [row for rows in store.latents() for row in rows.to_pylist()]
    assert [row for row in rows if row["activations"]] == expected
    assert store.n_examples == N_BATCHES * SIZE
    assert next(store.latents(["effects"])).schema.names == ["example", "hook", "latent", "effects"]
    assert next(store.latents(["effects", "activations"])).schema.names[3:] == ["effects", "activations"]
    assert next(store.record_batches(["loss"])).schema.names == ["example", "batch", "loss"]
    assert next(store.record_batches()).schema.equals(store.schema, check_metadata=True)
