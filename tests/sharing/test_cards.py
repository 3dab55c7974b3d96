"""Cards: readable by people and by datasets, whatever the strings of a run say."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml

from interpretune.sharing import save_store, store_card
from interpretune.sharing.card import LINES, WIDTH, escape
from interpretune.store import StoreWriter
from tests.sharing.stores import FIELDS, HOOKS, dense, store_of, written

HOSTILE = (
    "a | b",
    "<script>alert(1)</script>",
    "[x](javascript:alert)",
    "![x](http://example.org/x.png)",
    "`code`",
    "a\n\n# heading",
    "\n---\nlicense: other\n---\n",
    "<!-- ",
    "x\r\n| y |",
    "\u202egnp.exe",
    "https://example.org @someone",
)


def front_matter(card: str) -> tuple[dict[str, object], str]:
    start, metadata, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(metadata), body


def rows_of(card: str, heading: str) -> dict[str, list[str]]:
    """Rows of the table under a heading, by their first cell."""
    lines = card.split(f"# {heading}\n", 1)[1].split("\n#")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def test_a_card_says_what_was_asked_and_with_which_numbers(tmp_path: Path) -> None:
    results = dense(0, range(10))
    store = written(tmp_path / "s", results)
    card = store_card(store, "Ablation of a tiny model")
    assert "# Ablation of a tiny model" in card
    assert "10 examples in 4 batches" in card
    assert rows_of(card, "What was asked")["plan.forward.reads"] == ["x"]
    assert rows_of(card, "What was asked")["data.fingerprint"] == ["a"]
    assert rows_of(card, "Fields")["effects"] == ["float", "latent", "in logits"]
    mean, lowest, highest, count = rows_of(card, "Numbers")[r"logit\_diffs"]
    diffs = results.logit_diffs
    assert (float(mean), float(lowest), float(highest)) == pytest.approx((diffs.mean(), diffs.min(), diffs.max()), 1e-4)
    assert count == "10"
    for i, hook in enumerate(HOOKS):
        found = rows_of(card, f"Latents at {escape(hook)}")["effects"]
        effects = results.effects[:, i]
        assert (float(found[1]), float(found[2])) == pytest.approx((effects.min(), effects.max()), 1e-4)
        alive = int(results.active[:, i].any(0).sum())
        assert f"{alive} latents are active in some example" in card
    assert rows_of(card, "summary")[r"a\|b"] == ["0.25"]


def test_datasets_opens_a_saved_folder_by_its_card(tmp_path: Path) -> None:
    results = dense(0, range(10))
    save_store(written(tmp_path / "s", results), tmp_path / "out")
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert rows["example"][:] == results.examples
    np.testing.assert_allclose(rows["logit_diffs"][:], results.logit_diffs, rtol=1e-6)
    entries = [entry for row in rows["latents"] for entry in row]
    total = sum(entry["effects"] for entry in entries if entry["hook"] == HOOKS[0])
    assert total == pytest.approx(results.effects[:, 0].sum(), rel=1e-4)


@pytest.mark.parametrize("text", HOSTILE)
def test_strings_stay_text(tmp_path: Path, text: str) -> None:
    store, _ = StoreWriter.in_memory(FIELDS, {text: {"name": text, "list": [text, {"name": text, text: text}]}})
    plain, _ = StoreWriter.in_memory(FIELDS, {"x": {"name": "x", "list": ["x", {"name": "x", "y": "x"}]}})
    card, usual = store_card(store, text), store_card(plain, "x")
    metadata, body = front_matter(card)
    assert set(metadata) == {"pretty_name", "tags", "size_categories", "configs"}
    assert metadata["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.parquet"}]}
    ]
    # The same lines as with harmless text: no string made a heading, a row or a paragraph of its own.
    assert [line[:2] for line in body.splitlines()] == [line[:2] for line in front_matter(usual)[1].splitlines()]
    for line in (line for line in body.splitlines() if line.startswith("| ")):
        bare = line.replace("\\\\", "")
        for mark in ("<", "`", "[", "]", "#", "://", "@"):
            assert bare.count(mark) == bare.count(f"\\{mark[0]}{mark[1:]}"), (mark, line)
        assert "\u202e" not in line


def test_long_and_many_values_are_cut(tmp_path: Path) -> None:
    store, _ = StoreWriter.in_memory(FIELDS, {"long": "x" * 10_000, "many": {str(i): i for i in range(1_000)}})
    card = store_card(store)
    assert max(len(line) for line in card.splitlines()) < WIDTH + 100
    assert len(rows_of(card, "What was asked")) <= LINES + 2


def test_a_store_without_numbers_and_a_store_in_memory_have_cards(tmp_path: Path) -> None:
    assert "8 examples in 3 batches" in store_card(store_of(dense(0, range(8)), 3))
    writer = StoreWriter.create(tmp_path / "s", FIELDS[1:2], {}, key="k", n_batches=1)
    writer.write(0, [0], {"answer": ["yes"]})
    card = store_card(writer.seal())
    assert "no fields of single numbers" in card


def test_a_card_says_that_a_run_was_not_finished(tmp_path: Path) -> None:
    assert "Not complete" in store_card(written(tmp_path / "s", dense(0, range(4)), seal=False))
