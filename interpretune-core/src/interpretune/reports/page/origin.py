"""How a page was made: model, dictionaries, rows, versions, and the command that makes it again."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from attrs import frozen

from interpretune.questions.result import Effects
from interpretune.replay.effect_noise import noise_text
from interpretune.reports.page.belonging import PageStores
from interpretune.reports.page.text import set_to
from interpretune.store.store import AnalysisStore

MANIFEST_LETTERS = 40_000
"""Letters of a manifest, and of a configuration, that are shown."""
FAITHFUL_MODES = frozenset({"clean_no_sae", "clean_w_sae"})


@frozen
class Run:
    """How well the model does in one kind of run.

    Attributes:
        name: What ran.
        rows: Number of rows.
        correct: Share of correct answers.
        mean: Mean objective.
        unit: What that is counted in.
    """

    name: str
    rows: int
    correct: float
    mean: float
    unit: str


@frozen
class Origin:
    """How a page was made.

    Attributes:
        parts: What is known of each part, line by line.
        faithfulness: Runs with and without dictionaries.
        command: What makes the page again, run in its folder.
        made_by: How the stores came to be: commands or calls, each with its configuration as YAML, empty where there is
            none.
        manifests: Each store's name, and its manifest as JSON.
    """

    parts: tuple[tuple[str, tuple[str, ...]], ...]
    faithfulness: tuple[Run, ...]
    command: str
    made_by: tuple[tuple[str, str], ...]
    manifests: tuple[tuple[str, str], ...]


def origin(stores: PageStores, path: Path) -> Origin:
    """How the page of some stores is made.

    Args:
        stores: The stores.
        path: Where the page goes.
    """
    effects = [*stores.results, *stores.approximations]
    first = effects[0]
    about = first.store.manifest.about
    every = [*(item.store for item in (*effects, *stores.strongest)), *stores.analyses]
    named = {item["name"]: item for store in every for item in store.manifest.about.get("latent_models", [])}
    parts = [
        ("Model", _model(every)),
        ("Dictionaries", tuple(_dictionary(item) for item in named.values())),
        ("Rows", _rows(first, about)),
        ("Questions", tuple(_question(item.question) for item in effects)),
        ("Precision", tuple(noise_text(item.noise, item.question["unit"]) for item in stores.results)),
        ("Stack", tuple(filter(None, [", ".join(map(str, about.get("stack", [])))]))),
        ("Versions", (", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()),)),
        ("Stores", tuple(_store(item, path) for item in every)),
    ]
    folders = [item.folder for item in every]
    command = "interpretune report"
    if all(folders):
        places = [shlex.quote(_beside(folder, path)) for folder in folders if folder]
        command = " ".join([command, *places, "-o", shlex.quote(path.name)])
    else:
        command = f'Effects.report("{path.name}")  # the results were in memory; store=FOLDER keeps them'
    return Origin(
        tuple((name, lines) for name, lines in parts if any(lines)),
        tuple(_faithfulness(stores)),
        command,
        tuple(dict.fromkeys(_made_by(item) for item in every if "made_by" in item.manifest.about)),
        tuple((item.folder.name if item.folder else "the store in memory", _manifest(item)) for item in every),
    )


def model_name(stores: Sequence[AnalysisStore]) -> str:
    """What the model is called; empty where no store says it."""
    for store in stores:
        model = store.manifest.about.get("model", {})
        source = str(model.get("source") or model.get("type") or "")
        if name := source.replace("\\", "/").rstrip("/").rpartition("/")[2]:
            return name
    return ""


def _model(stores: Sequence[AnalysisStore]) -> tuple[str, ...]:
    for store in stores:
        if found := store.manifest.about.get("model"):
            return tuple(
                filter(None, [f"{found.get('source', '')} ({found.get('class', '')})", _hash(found.get("sha256"))])
            )
    return ("not noted: the results were in memory",)


def _dictionary(item: Mapping[str, Any]) -> str:
    size = f", {item['d_sae']:,} latents" if isinstance(item.get("d_sae"), int) else ""
    place = item.get("hook_point")
    return f"{item['name']}{f' at {place}' if place else ''}{size} {_hash(item.get('sha256'))}".strip()


def _rows(effects: Effects, about: Mapping[str, Any]) -> tuple[str, ...]:
    data = about.get("data", {})
    source, split = data.get("source"), about.get("split")
    told = f"{effects.question['rows']:,} rows" + (f" of the split {split}" if split else "")
    return (told + (f", from {source}" if source else ""), _hash(data.get("fingerprint")))


def _question(told: Mapping[str, Any]) -> str:
    budget = f", at most {told['budget']:,} of them" if told.get("budget") else ""
    value = "" if told["method"] == "direct" else f", each {set_to(told['value'])}"
    at = {"answer": "the answer position", "each": "each token"}.get(told["positions"], f"the span {told['positions']}")
    return (
        f"{told['method'].replace('_', ' ')} effects on {told['objective']}: {units_of(told)}{value}, at {at}{budget}"
    )


def units_of(told: Mapping[str, Any]) -> str:
    """The units of a question in words: number, kind and place."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for item in told["units"]:
        kinds.setdefault(item["kind"], []).append(item)
    return ", ".join(_units(kind, items) for kind, items in kinds.items())


def _units(kind: str, items: Sequence[Mapping[str, Any]]) -> str:
    n = sum(item["chosen"] for item in items)
    names = [str(item["name"]) for item in items]
    where = ", ".join(names) if len(names) < 4 else f"{len(names)} places, {names[0]} to {names[-1]}"
    return f"{n:,} {kind}{'s' * (n != 1)} of {where}"


def _store(store: AnalysisStore, path: Path) -> str:
    if store.folder is None:
        return "in memory"
    return f"{_beside(store.folder, path)}, key {store.manifest.key[:16]}"


def _beside(folder: Path, path: Path) -> str:
    """A folder as seen from the page."""
    return Path(os.path.relpath(folder.resolve(), path.resolve().parent)).as_posix()


def _hash(sha256: Any) -> str:
    return f"SHA-256 {str(sha256)[:16]}…" if sha256 else ""


def _faithfulness(stores: PageStores) -> list[Run]:
    found = []
    for effects in stores.results:
        rows = effects.rows()
        if "objective_spliced" not in rows or np.allclose(rows.objective, rows.objective_spliced):
            continue
        unit = str(effects.question["unit"])
        found.append(Run("the model as it is", len(rows), effects.share_correct, float(rows.objective.mean()), unit))
        spliced = float(rows.objective_spliced.mean())
        found.append(Run("with the dictionaries spliced in", len(rows), float("nan"), spliced, unit))
        break
    if stores.analyses:  # these load the libraries of models, which take seconds and are not needed else
        from interpretune.analysis.cache import AnalysisCache, objective_noted
        from interpretune.reports.metrics import compute_correct
    for store in stores.analyses:
        measured = "objective" if "objective" in store.fields else "logit_diffs"
        if not {measured, "preds", "orig_labels"} <= store.fields.keys():
            continue
        cache = AnalysisCache.of(store)
        counted = compute_correct(cache)
        rows_ = store.n_examples
        _, unit = objective_noted(store) or ("logit_diff", "logits")
        values = np.concatenate([item.numpy() for item in getattr(cache, measured)])
        told = str(store.manifest.about.get("analysis", "an analysis"))
        found.append(Run(told, rows_, counted.total_correct / rows_, float(values.mean()), unit))
    return found


def _made_by(store: AnalysisStore) -> tuple[str, str]:
    told = store.manifest.about["made_by"]
    written = told.get("configuration")
    if isinstance(written, dict):  # as files begin
        written = {part: written[part] for part in ("session", "analyses", "runner") if part in written} | written
    style: dict[str, Any] = {"sort_keys": False, "default_flow_style": None, "allow_unicode": True, "width": 120}
    text = yaml.safe_dump(written, **style) if written else ""
    return str(told.get("command") or told.get("call") or ""), text[:MANIFEST_LETTERS]


def _manifest(store: AnalysisStore) -> str:
    text = json.dumps({"key": store.manifest.key, **store.manifest.about}, indent=1, ensure_ascii=False, default=str)
    return text if len(text) <= MANIFEST_LETTERS else f"{text[:MANIFEST_LETTERS]}\n…"
