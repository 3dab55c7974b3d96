"""The stores of a page: what each holds, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from interpretune.circuits import NodeEffects
from interpretune.errors import StoreError
from interpretune.questions.result import Effects, Results
from interpretune.reports.page.strongest import read_strongest
from interpretune.store.store import AnalysisStore

WHAT_WRITES_EFFECTS = (
    "`it.effects(..., store=FOLDER)` writes them, and in a file for `interpretune run` an analysis with `units`, such "
    "as `latents: {units: {latents: all}, evidence: {cards: 10}}`, whose evidence has cards of latents"
)


@frozen(eq=False)
class PageStores:
    """What a page is made of.

    Attributes:
        results: Effects about which the page is: exact ones, or what there is.
        approximations: Effects by gradients beside exact ones.
        analyses: Stores of other analyses of the same model.
        strongest: Effects of units on units, and of components and the edges between them.
    """

    results: tuple[Effects, ...]
    approximations: tuple[Effects, ...]
    analyses: tuple[AnalysisStore, ...]
    strongest: tuple[Results, ...] = ()

    @classmethod
    def of(cls, given: Iterable[str | Path | Results | AnalysisStore]) -> PageStores:
        """Open stores, and see that they belong together.

        Args:
            given: Folders, or what was opened.

        Raises:
            StoreError: One is damaged, is not finished, or does not belong to the others, or none has effects of units.
        """
        effects: list[Effects] = []
        analyses: list[AnalysisStore] = []
        strongest: list[Results] = []
        for item in given:
            store = item.store if isinstance(item, Results) else item
            store = store if isinstance(store, AnalysisStore) else AnalysisStore.open(store)
            _check_finished(store)
            _check_manifest(store)
            if (found := read_strongest(store)) is not None:
                strongest.append(found)
            elif store.manifest.about.get("question", {}).get("method") in Effects.methods:
                effects.append(item if isinstance(item, Effects) else Effects(store))
            else:
                analyses.append(store)
        effects = effects or [item.on_objective for item in strongest if isinstance(item, NodeEffects)]
        if not effects:
            held = "; ".join(f"{item.folder or 'what is in memory'} holds {_what(item)}" for item in analyses)
            raise StoreError(
                f"A page is about effects of units, which no store here has: {held or 'none was given'}. "
                f"{WHAT_WRITES_EFFECTS}. Give such a store, alone or beside these."
            )
        results = [item for item in effects if item.question["method"] == "exact"] or effects
        beside = [item for item in effects if item not in results]
        for item in effects[1:]:
            _check_same(effects[0], item)
        _check_units(results)
        for item in beside:
            _check_beside(item, results)
        for store in (*analyses, *(item.store for item in strongest)):
            _check_model(results[0].store, store)
        return cls(tuple(results), tuple(beside), tuple(analyses), tuple(strongest))


def _check_finished(store: AnalysisStore) -> None:
    if not store.complete:
        there, all_ = store.n_batches, store.manifest.n_batches
        raise StoreError(
            f"{_named(store)} is not finished: {there} of {'its' if all_ is None else all_} batches are there. Run "
            "what writes it again, with the same folder: it goes on where it stopped."
        )
    if not store.n_examples:
        raise StoreError(f"{_named(store)} has no rows, so that there is nothing to show. Ask again, of some rows.")


def _check_manifest(store: AnalysisStore) -> None:
    """Refuse a manifest whose parts are not of the kinds that a page reads: anybody may have written it.

    Raises:
        StoreError: A part is of another kind.
    """
    about = store.manifest.about
    kinds: list[tuple[str, Any, Any]] = [
        (part, about.get(part, {}), dict) for part in ("model", "data", "versions", "question", "made_by")
    ]
    kinds.append(("stack", about.get("stack", []), list))
    if about.get("question", {}) and isinstance(about["question"], dict):
        told = about["question"]
        kinds += [(name, told.get(name), str) for name in ("objective", "unit", "positions", "method")]
        kinds += [("rows", told.get("rows"), int), ("budget", told.get("budget") or 0, int)]
        kinds += [("value", told.get("value", ""), (str, int, float)), ("units", told.get("units"), list)]
        for item in told["units"] if isinstance(told.get("units"), list) else ():
            item = item if isinstance(item, dict) else {}
            kinds += [(f"{name} of a unit set", item.get(name), str) for name in ("name", "kind")]
            kinds += [(f"{name} of a unit set", item.get(name, 0), int) for name in ("size", "chosen")]
    for name, value, kind in kinds:
        if not isinstance(value, kind):
            raise StoreError(
                f"{_named(store)} was not written by a question: the {name} of its manifest is {value!r:.80}. Leave "
                "it out."
            )


def _check_same(one: Effects, other: Effects) -> None:
    """Refuse effects of other rows, of another objective, or of another model."""
    for told, wanted, found in (
        ("objective", one.question["objective"], other.question["objective"]),
        ("positions", one.question["positions"], other.question["positions"]),
        ("data", _rows(one), _rows(other)),
    ):
        if wanted != found:
            raise StoreError(
                f"{_named(one.store)} and {_named(other.store, 'the')} do not belong together: the {told} of the first "
                f"is {wanted:.60}, and of the other {found:.60}. Make a page of each, or ask both of the same."
            )
    _check_model(one.store, other.store)


def _check_model(one: AnalysisStore, other: AnalysisStore) -> None:
    """Refuse another model: by the hashes of both, or by class where results in memory have none."""
    models = [item.manifest.about.get("model", {}) for item in (one, other)]
    name = "sha256" if all(item.get("sha256") for item in models) else "class"
    found = [item.get(name) for item in models]
    if all(found) and found[0] != found[1]:
        raise StoreError(
            f"{_named(one)} and {_named(other, 'the')} do not belong together: the model of the first is "
            f"{_model(one):.60}, and of the other {_model(other):.60}. Make a page of each."
        )


def _check_units(results: Sequence[Effects]) -> None:
    """Refuse the same units twice: they would stand twice in one ranking."""
    seen: dict[tuple[str, str], Effects] = {}
    for item in results:
        for units in item.question["units"]:
            key = (units["name"], str(item.question["value"]))
            if key in seen:
                raise StoreError(
                    f"{_named(seen[key].store)} and {_named(item.store, 'the')} have both effects of {key[0][:60]}, "
                    f"set to {key[1][:40]}. Leave one of them out."
                )
            seen[key] = item


def _check_beside(approximation: Effects, results: Sequence[Effects]) -> None:
    told = approximation.question
    names = {item["name"] for item in told["units"]}
    for item in results:
        same = item.question["value"] == told["value"]
        if same and names & {units["name"] for units in item.question["units"]}:
            return
    raise StoreError(
        f"{_named(approximation.store)} has effects by {told['method']} of {', '.join(sorted(names))[:80]}, set to "
        f"{told['value']}, and no exact ones of these are among the stores. Give the store that has them, or leave "
        "it out."
    )


def _rows(effects: Effects) -> str:
    fingerprint = effects.store.manifest.about.get("data", {}).get("fingerprint")
    return f"{effects.question['rows']} rows with SHA-256 {fingerprint}"


def _model(store: AnalysisStore) -> str:
    model = store.manifest.about.get("model", {})
    return f"{model.get('source') or model.get('class')} with SHA-256 {model.get('sha256', 'unknown')}"


def _named(store: AnalysisStore, article: str = "The") -> str:
    return f"{article} store {store.folder or 'in memory'}"


def _what(store: AnalysisStore) -> str:
    about = store.manifest.about
    if "question" in about:
        return f"results of the method {str(about['question'].get('method'))[:40]}"
    return f"the analysis {str(about.get('analysis', 'of no name'))[:40]}"
