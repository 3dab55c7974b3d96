"""What a writer is given and must refuse, in words that say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from interpretune.errors import StoreBusyError, StoreError
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues
from tests.store.synthetic import FIELDS, HOOKS, examples_of, sealed, values_of, write, writer_of


def latents(ids: Any, values: Any, d_sae: int = 64) -> dict[str, LatentValues]:
    return {HOOKS[0]: LatentValues(torch.tensor(ids), values, d_sae)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_dif": torch.zeros(3)}, "field 'logit_dif' that the store does not declare; did you mean logit_diffs"),
        ({"summary": None}, "summary is a table of the whole run: write it with write_table"),
        (
            {"logit_diffs": torch.zeros(3).double()},
            r"logit_diffs of batch 1 must be a torch.float32 tensor \[3\], and is a torch.float64",
        ),
        ({"logit_diffs": torch.zeros(4)}, r"logit_diffs of batch 1 must be a torch.float32 tensor \[3\].*\[4\]"),
        ({"logit_diffs": [0.0, 0.0, 0.0]}, "logit_diffs of batch 1 must be a torch.float32 tensor .* is a list"),
        (
            {"logits": torch.zeros(3, 3).bfloat16()},
            r"logits of batch 1 must be a torch.bfloat16 tensor \[3, 2\].*\[3, 3\]",
        ),
        ({"loss": 1.5}, "loss of batch 1 must be a torch.float32 tensor .* the number 1.5"),
        ({"loss": "low"}, "loss of batch 1 must be a torch.float32 tensor .* is a str"),
        ({"tokens": [torch.arange(2)]}, "tokens of batch 1 must be a list of 3 tensors, and is a list of 1"),
        (
            {"tokens": [torch.arange(2), torch.arange(2), torch.zeros(2)]},
            "tokens of batch 1, entry 2 must be a torch.int64",
        ),
        ({"prompts": "one"}, "prompts of batch 1 must be a list of 3 texts, and is a str"),
        ({"prompts": ["a", "b", 3]}, "prompts of batch 1, entry 2, must be text, and is a int"),
        ({"prompts": ["a", "b", "\ud800"]}, "prompts of batch 1 holds text that is not valid Unicode"),
        ({"activations": torch.zeros(3, 7)}, "activations of batch 1 must be a mapping from activation names"),
        ({"activations": {HOOKS[0]: torch.zeros(3)}}, f"activations of batch 1 at {HOOKS[0]} must be LatentValues"),
        ({"activations": latents([3, 3], torch.zeros(3, 2))}, "must ascend from 0 to below 64, each once"),
        ({"activations": latents([3, 64], torch.zeros(3, 2))}, "must ascend from 0 to below 64, each once"),
        ({"activations": latents([-1, 4], torch.zeros(3, 2))}, "must ascend from 0 to below 64, each once"),
        ({"activations": latents([0.5], torch.zeros(3, 1))}, "`latents` must be a torch.int64 tensor"),
        ({"activations": latents([1], torch.zeros(3, 1), 2**40)}, "a dictionary of 1099511627776 latents"),
        (
            {"activations": latents([1], torch.zeros(3, 2))},
            r"activations at .* must be a torch.float32 tensor \[3, 1\]",
        ),
        ({"activations": latents([1], torch.zeros(3, 1).half())}, "activations at .* is a torch.float16 tensor"),
        ({"activations": latents([1], torch.zeros(3, 1), 99)}, "99 and 64 latents"),
        (
            {name: latents([1], torch.zeros(3, 1), 99) for name in ("activations", "effects")},
            "has 99 latents in batch 1 and had 64 before",
        ),
    ],
)
def test_a_batch_that_was_not_declared_so(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, 0)
        with pytest.raises(StoreError, match=message):
            writer.write(1, examples_of(1), {**values_of(1), **change})
        assert writer.done == {0}
        write(writer, 1)
    assert AnalysisStore.open(tmp_path).batch_indices == [0, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logits": torch.zeros(3, 2)}, "logits of batch 0 must be a torch.bfloat16 tensor"),
        ({"logit_diffs": torch.arange(3)}, "logit_diffs of the first batch is a torch.int64 tensor .*; declared is"),
        ({"logits": torch.zeros(3, 0).bfloat16()}, "axes of size 0 cannot be stored"),
        ({"logits": torch.zeros(3).bfloat16()}, "logits of the first batch is a torch.bfloat16 tensor"),
        ({"effects": {}}, "effects of the first batch is nothing that tells its dtype"),
    ],
)
def test_a_first_batch_that_was_not_declared_so(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with writer_of(tmp_path) as writer, pytest.raises(StoreError, match=message):
        writer.write(0, examples_of(0), {**values_of(0), **values})


def test_a_batch_without_a_declared_field(tmp_path: Path) -> None:
    values = values_of(0)
    del values["loss"], values["tokens"]
    with writer_of(tmp_path) as writer, pytest.raises(StoreError, match="Batch 0 lacks tokens, loss"):
        writer.write(0, examples_of(0), values)


@pytest.mark.parametrize("batch", [-1, 6, 1.0, True, "0"])
def test_a_batch_that_is_none_of_the_run(tmp_path: Path, batch: Any) -> None:
    with writer_of(tmp_path) as writer, pytest.raises(StoreError, match=f"no batch {batch!r} in a run of 6 batches"):
        writer.write(batch, examples_of(0), values_of(0))


@pytest.mark.parametrize("examples", [[], [0.5, 1, 2], [[0, 1, 2]], "abc"])
def test_examples_that_are_no_positions(tmp_path: Path, examples: Any) -> None:
    with writer_of(tmp_path) as writer, pytest.raises(StoreError, match="Batch 0 needs the positions of its examples"):
        writer.write(0, examples, values_of(0))


def test_a_batch_that_is_there_already(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, 0)
        with pytest.raises(StoreError, match="Batch 0 is in the store already; skip what is in `done`"):
            write(writer, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([Field("a"), Field("a", "int64")], "declared twice"),
        ([Field("example")], "the store uses that name itself"),
        ([Field("a", "object", Per.batch)], "objects live in memory only"),
        ([Field("a", "string", Per.latent)], "tensors of fixed sizes"),
        ([Field("a", per=Per.latent, ragged=True)], "tensors of fixed sizes"),
        ([Field("a", "string", shape=("labels",))], "text has no axes"),
    ],
)
def test_fields_that_cannot_be_stored(tmp_path: Path, fields: list[Field], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        StoreWriter.create(tmp_path / "store", fields, {}, key="k", n_batches=1)
    assert not (tmp_path / "store").exists()
    with pytest.raises(StoreError, match=message):
        StoreWriter.in_memory(fields)


@pytest.mark.parametrize("about", [{"seed": float("nan")}, {"folder": Path()}])
def test_notes_on_a_run_that_are_no_json(tmp_path: Path, about: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="`about` must be JSON"):
        StoreWriter.create(tmp_path / "store", FIELDS, about, key="k", n_batches=1)
    assert not (tmp_path / "store").exists()


def test_a_folder_of_another_run(tmp_path: Path) -> None:
    writer_of(tmp_path).close()
    with pytest.raises(StoreError, match=r"belongs to another run: its key is kkkkkkkkkkkk\.\.\.,"):
        writer_of(tmp_path, key="another")
    with pytest.raises(StoreError, match="is of a run of 6 batches, and 7 are to be written"):
        writer_of(tmp_path, n_batches=7)
    with pytest.raises(
        StoreError, match="has other fields: logit_diffs: float per example; .* To be written are: logit"
    ):
        StoreWriter.create(tmp_path, FIELDS[:-1], {}, key="k" * 64, n_batches=6)


def test_two_writers_of_one_rank(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, 0)
        with pytest.raises(StoreBusyError, match="Another writer is at work on rank 0 of"):
            writer_of(tmp_path)
    writer_of(tmp_path).close()


def test_runs_of_one_and_of_two_processes_at_once(tmp_path: Path) -> None:
    with writer_of(tmp_path, rank=1, world_size=2), pytest.raises(StoreBusyError, match="at work on rank 1"):
        writer_of(tmp_path)
    with writer_of(tmp_path), pytest.raises(StoreBusyError, match="at work on rank 0"):
        writer_of(tmp_path, rank=1, world_size=2)


def test_writing_on_after_the_end(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    writer.close()
    with pytest.raises(StoreError, match="is closed; nothing more is written"):
        write(writer, 0)
    sealed(tmp_path)
    with writer_of(tmp_path) as writer, pytest.raises(StoreError, match="is complete; nothing more is written"):
        write(writer, 0)


@pytest.mark.parametrize("missing", [(1, 4, 5), (3,)])
def test_sealing_too_early(tmp_path: Path, missing: tuple[int, ...]) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, *sorted(set(range(6)).difference(missing)))
        shown = ", ".join(map(str, missing))
        with pytest.raises(StoreError, match=rf"{len(missing)} of 6 batches are missing \({shown}\)"):
            writer.seal()
    assert not AnalysisStore.open(tmp_path).complete


@pytest.mark.parametrize("name", ["../outside", "a/b", "a\\b", "..", "", ".hidden", "a..b", "x" * 200, "tab\t", None])
def test_names_that_leave_the_folder(tmp_path: Path, name: Any) -> None:
    with writer_of(tmp_path / "store") as writer, pytest.raises(StoreError, match="is no name for a table"):
        writer.write_table(name, pa.table({"a": [1]}))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert not list((tmp_path / "store" / "tables").iterdir())


def test_tables_are_tables(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        with pytest.raises(StoreError, match=r"The table summary must be a pyarrow.Table, and is a dict"):
            writer.write_table("summary", {"a": [1]})  # type: ignore[arg-type]
        writer.write_table("summary", pa.table({"a": [1]}))
    store = sealed(tmp_path)
    assert store.tables["summary"].to_pydict() == {"a": [1]}
    writer.write_table("later", pa.table({"b": ["x"]}))
    store = AnalysisStore.open(tmp_path)
    assert sorted(store.tables) == ["later", "summary"]
    store.verify()
    in_memory, writer = StoreWriter.in_memory(FIELDS)
    writer.write_table("summary", pa.table({"a": [1]}))
    assert in_memory.tables["summary"].to_pydict() == {"a": [1]}


def test_what_a_store_does_not_have(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    with pytest.raises(StoreError, match="no column 'effect'. Did you mean effects"):
        store.batches(["effect"])
    with pytest.raises(StoreError, match="Batch 6 is not in the store .*; it has 6 batches"):
        store.batch(6)
    with pytest.raises(StoreError, match="no per-latent field loss"):
        list(store.latents(["loss"]))
    empty, _ = StoreWriter.in_memory(FIELDS)
    assert list(empty.batches()) == list(empty.record_batches()) == list(empty.latents()) == []
    with pytest.raises(StoreError, match="has no batch yet"):
        empty.schema  # noqa: B018
