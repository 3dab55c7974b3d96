"""Latents for Neuronpedia: the files that it imports, one folder for each source, which is a dictionary at a layer.

The tables and columns are those of Neuronpedia's database (``apps/webapp/prisma/schema.prisma`` at 008d5040), as its
import inserts them (``app/api/admin/import``); which are filled, and with what, is as in ``neuronpedia_export.py`` of
SAEDashboard at 3ea1249a. Columns that have a default there and nothing here are left out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from attrs import frozen

from interpretune.errors import ConfigurationError, StoreError
from interpretune.evidence.facts import Card, ShadedPrompt
from interpretune.latents.latent_model import layer_of
from interpretune.sharing.exported_latents import ExportedLatents

CREATOR = "clkht01d40000jv08hvalcvly"
"""The user of a new Neuronpedia to whom what is imported belongs, its ``bot``."""
BINS = 50
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PAGE = re.compile(rf"https://(?:www\.)?neuronpedia\.org/({IDENTIFIER.pattern})/(\d+-{IDENTIFIER.pattern})/\d+")
"""The page of a latent: model, source, latent."""


@frozen
class SourceNames:
    """What a dictionary is called there.

    Attributes:
        model: The model's id.
        source: Layer and source set, ``9-res-jb``.
        creator: To whom everything belongs.
    """

    model: str
    source: str
    creator: str = CREATOR

    @property
    def source_set(self) -> str:
        """The same without the layer."""
        return self.source.partition("-")[2]

    @classmethod
    def of(cls, latents: ExportedLatents, model_id: str | None, source_set: str | None, creator_id: str) -> SourceNames:
        """The names given, else those in the address of the latents' pages, else of the model and the hook point.

        Raises:
            ConfigurationError: A given name has letters that an address may not have.
            StoreError: The hook point names no layer.
        """
        for told, given in (("model_id", model_id), ("source_set", source_set), ("creator_id", creator_id)):
            if given is not None and not IDENTIFIER.fullmatch(given):
                raise ConfigurationError(f"{told} is {given!r}; it takes letters, digits, dots, - and _ only.")
        page = PAGE.fullmatch(latents.cards[0].url or "")
        model = latents.effects.store.manifest.about.get("model", {})
        called = (
            page[1]
            if page
            else _identifier(next((str(model[part]) for part in ("source", "type", "class") if model.get(part)), ""))
        )
        model_id = model_id or called
        if source_set is None and page:
            return cls(model_id, page[2], creator_id)
        layer = layer_of(latents.place)
        if layer is None:
            raise StoreError(f"Sources of Neuronpedia are those of a layer, and {latents.place!r} names none.")
        where = re.sub(r"^\w+\.\d+\.", "", latents.place)
        return cls(model_id, f"{layer}-{source_set or _identifier(where)}", creator_id)


def neuronpedia_files(latents: ExportedLatents, names: SourceNames) -> Mapping[str, bytes]:
    """What is written of a dictionary, by path.

    Raises:
        StoreError: A number is NaN or infinite, which JSON has not.
    """
    tables = {
        "release.jsonl": [_release(latents, names)],
        "model.jsonl": [_model(latents, names)],
        "sourceset.jsonl": [_source_set(latents, names)],
        "source.jsonl": [_source(latents, names)],
        "features/batch-0.jsonl.gz": [_feature(card, names) for card in latents.cards],
        "activations/batch-0.jsonl.gz": [
            _activation(card, prompt, latents, names) for card in latents.cards for prompt in card.prompts
        ],
    }
    try:
        found = {f"{names.model}/{names.source}/{path}": _lines(rows) for path, rows in tables.items()}
    except ValueError as error:
        raise StoreError(
            f"A number on the cards of {latents.effects.store} is NaN or infinite, which JSON has not. Gather the "
            "evidence again."
        ) from error
    return {path: gzip.compress(text, mtime=0) if path.endswith(".gz") else text for path, text in found.items()}


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as JSON lines in UTF-8, in which halves of letters become question marks."""
    lines = (json.dumps(row, allow_nan=False, ensure_ascii=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _release(latents: ExportedLatents, names: SourceNames) -> dict[str, Any]:
    return {
        "name": f"{names.model}-{names.source_set}",
        "description": _told(latents),
        "creatorName": "interpretune",
        "creatorId": names.creator,
        "visibility": "PUBLIC",
        "urls": [],
    }


def _model(latents: ExportedLatents, names: SourceNames) -> dict[str, Any]:
    source = str(latents.effects.store.manifest.about.get("model", {}).get("source") or names.model)
    return {
        "id": names.model,
        "displayName": source,
        "displayNameShort": names.model,
        "creatorId": names.creator,
        "visibility": "PUBLIC",
        "owner": source.rpartition("/")[0] or "unknown",
        "layers": 0,  # not known here, and asked for: as SAEDashboard writes them
        "neuronsPerLayer": 0,
    }


def _source_set(latents: ExportedLatents, names: SourceNames) -> dict[str, Any]:
    return {
        "modelId": names.model,
        "name": names.source_set,
        "creatorId": names.creator,
        "creatorName": "interpretune",
        "description": f"Latents at {latents.place}",
        "releaseName": f"{names.model}-{names.source_set}",
        "visibility": "PUBLIC",
        "urls": [],
    }


def _source(latents: ExportedLatents, names: SourceNames) -> dict[str, Any]:
    source = latents.effects.store.manifest.about.get("data", {}).get("source")
    effects = (f"{card.unit}: {card.mean_effect:.4g} ({card.low:.4g} to {card.high:.4g})" for card in latents.cards)
    return {
        "id": names.source,
        "modelId": names.model,
        "setName": names.source_set,
        "creatorId": names.creator,
        "visibility": "PUBLIC",
        "num_prompts": len(latents.prompts.rows),
        "num_tokens_in_prompt": max(map(len, latents.prompts.rows)),
        "dataset": str(source or "rows of a question"),
        "notes": f"{_told(latents)}, means with 95 % intervals: {'; '.join(effects)}",
    }


def _told(latents: ExportedLatents) -> str:
    told = latents.effects.question
    unit = f" in {told['unit']}" if told["unit"] else ""
    return (
        f"Effects of latents at {latents.place} on {told['objective']}{unit}, each set to {told['value']}, over "
        f"{told['rows']} rows"
    )


def _feature(card: Card, names: SourceNames) -> dict[str, Any]:
    active = card.active.values if card.active is not None else ()
    counts, edges = np.histogram(active, bins=BINS) if active else (np.zeros(0), np.zeros(1))
    return {
        **_of(card, names),
        "sourceSetName": names.source_set,
        "maxActApprox": max(active, default=0.0),
        "frac_nonzero": card.share_active,
        "freq_hist_data_bar_heights": counts.tolist(),
        "freq_hist_data_bar_values": _middles(edges.tolist()),
        "logits_hist_data_bar_heights": list(card.logit_counts),
        "logits_hist_data_bar_values": _middles(card.logit_edges),
        "pos_str": [_text(item.token) for item in card.promoted_direct],
        "pos_values": [item.value for item in card.promoted_direct],
        "neg_str": [_text(item.token) for item in card.suppressed_direct],
        "neg_values": [item.value for item in card.suppressed_direct],
    }


def _activation(card: Card, prompt: ShadedPrompt, latents: ExportedLatents, names: SourceNames) -> dict[str, Any]:
    most = max(prompt.activations)
    at = prompt.activations.index(most)
    told = [latents.effects.store.manifest.key, names.model, names.source, card.unit, prompt.row, *prompt.activations]
    return {
        **_of(card, names),
        "id": f"c{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]}",  # importing it again adds nothing
        "tokens": [_text(token) for token in prompt.tokens],
        "values": list(prompt.activations),
        "maxValue": most,
        "maxValueTokenIndex": at,
        "qualifyingTokenIndex": at,
        "minValue": min(prompt.activations),
        "binMin": -1,  # of the strongest prompts, which are in no interval
        "binMax": most,
        "binContains": -1,
    }


def _of(card: Card, names: SourceNames) -> dict[str, str]:
    return {"modelId": names.model, "layer": names.source, "index": str(card.unit), "creatorId": names.creator}


def _text(token: str) -> str:
    return token.replace("\0", "\N{REPLACEMENT CHARACTER}")  # Postgres stores no NUL


def _middles(edges: Sequence[float]) -> list[float]:
    return [(low + high) / 2 for low, high in pairwise(edges)]


def _identifier(text: str) -> str:
    last = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-").lower() or "model"
