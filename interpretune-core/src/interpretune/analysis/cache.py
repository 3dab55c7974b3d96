"""The results of an analysis as lists with one entry for each batch: a view over a result store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import torch

from interpretune.analysis.batch import BATCH_FIELDS, FIELDS, INTERMEDIATES, AnalysisBatch
from interpretune.analysis.finite_results import check_results
from interpretune.config.checked import CheckedConfig
from interpretune.errors import AnalysisError, StoreError
from interpretune.models.padding import mask_of, real_tokens, tokens_of
from interpretune.models.tokenizer import token_texts
from interpretune.operations.objectives import LOGIT_DIFF, Objective
from interpretune.store import AnalysisStore, StoredBatch, StoreWriter
from interpretune.store.fields import Field, Per
from interpretune.store.folder import MANIFEST
from interpretune.store.store import BatchSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interpretune.analysis.analysis_run import AnalysisRun

T = TypeVar("T")
LABELS = ("labels", "orig_labels")
READ = {"peaks": ("peak_values", "peak_positions"), "alive_latents": ("activations",)}
"""What is read of a store for attributes that are not named like one field."""
OF_LATENTS = frozenset([*READ, *(name for name, item in FIELDS.items() if item.per is Per.latent)])
PLAIN = (LOGIT_DIFF.name, LOGIT_DIFF.unit)
"""Objective and unit of results that name none."""
ATTRIBUTES = BATCH_FIELDS | READ.keys()


@dataclass(kw_only=True)
class SaveCfg(CheckedConfig, checks_types=True):
    """What a cache keeps beside numbers.

    Attributes:
        prompts: The text of each example.
        tokens: The real tokens of each example.
        intermediates: Logits over the vocabulary, gradients, and the logits of each ablation.
    """

    prompts: bool = False
    tokens: bool = False
    intermediates: bool = False


class AnalysisCache:
    """The results of one analysis, on the CPU.

    Every field of ``AnalysisBatch`` is an attribute of the cache with one entry for each batch (``cache.logit_diffs``,
    ``cache.alive_latents``, ...): a list, or for what is said of latents a sequence that reads each entry when it is
    asked for. Rows live in memory, or in the folder of a store that an ``AnalysisRunner`` wrote:
    ``AnalysisCache.of(store)``.

    Attributes:
        save_cfg: What is kept.
        answers: The answer words by label, where they are known: of the store, or as an analysis that fills the cache
            finds them in the session.
        objective_name: What effects are measured by, where it is known, as ``answers`` is.
        unit: What that is counted in.
        analysis: The analysis of an ``AnalysisRunner`` whose step saves into this cache; None: there is none.
    """

    analysis: AnalysisRun | None = None

    def __init__(
        self, save_cfg: SaveCfg | None = None, batches: Iterable[AnalysisBatch] = (), store: AnalysisStore | None = None
    ) -> None:
        """An empty cache, one of given batches, or a view of a store.

        Args:
            save_cfg: What ``save`` keeps; None: numbers only.
            batches: Results to begin with.
            store: Results to look at; nothing can be added to them.
        """
        self.save_cfg = save_cfg if save_cfg is not None else SaveCfg()
        self._store = store
        self._writer: StoreWriter | None = None
        self._declared: dict[str, Field] = {}
        self._urls: dict[str, str] = {} if store is None else _urls_of(store)
        self.answers: tuple[str, ...] = () if store is None else answers_of(store)
        self.objective_name, self.unit = (None if store is None else objective_noted(store)) or PLAIN
        for batch in batches:
            self.append(batch)

    @classmethod
    def of(cls, store: AnalysisStore | str | Path) -> AnalysisCache:
        """A view of a store, or of the folder of one.

        Raises:
            StoreError: The folder is no store.
        """
        return cls(store=store if isinstance(store, AnalysisStore) else AnalysisStore.open(store))

    @property
    def store(self) -> AnalysisStore | None:
        """Where the results are; None: there are none yet."""
        return self._store

    @property
    def batches(self) -> Sequence[AnalysisBatch]:
        """The results batch by batch, decoded when they are asked for; assign to replace them."""
        self._check_labels(*LABELS)
        return self._sequence(self._stored, lambda batch: batch)

    @batches.setter
    def batches(self, batches: Iterable[AnalysisBatch]) -> None:
        replacement = list(batches)
        self._store = self._writer = None
        for batch in replacement:
            self.append(batch)

    def __getattr__(self, name: str) -> Any:
        if name not in ATTRIBUTES:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; results are {', '.join(sorted(ATTRIBUTES))}.")
        if name in LABELS:
            self._check_labels(name)
        wanted = self._stored - FIELDS.keys() if name == "further" else self._stored & {*READ.get(name, (name,))}
        column = self._sequence(wanted, attrgetter(name))
        return column if name in OF_LATENTS else list(column)

    @property
    def _stored(self) -> Set[str]:
        there = {} if self._store is None else self._store.fields
        return {name for name, item in there.items() if item.per is not Per.run}

    def _check_labels(self, *names: str) -> None:
        if self._store is not None and (missing := [name for name in names if name not in self._store.fields]):
            raise AnalysisError(f"The store keeps no {', '.join(missing)}. Name them in the plan's keep=[...].")

    def _sequence(self, names: Set[str], make: Callable[[AnalysisBatch], T]) -> BatchSequence[T]:
        urls = self._urls
        return BatchSequence(self._store, sorted(names), lambda batch: make(_batch_of(batch, urls)))

    def save(
        self, analysis_batch: AnalysisBatch, batch: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Keep the results of one batch.

        Args:
            analysis_batch: The results; it is not changed.
            batch: The batch that they belong to, for its tokens.
            tokenizer: Decodes prompts and tokens, where they are saved.

        Raises:
            AnalysisError: Prompts are to be saved and no tokenizer is given.
            StoreError: The results are not of the fields of the batches before.
        """
        dropped = () if self.save_cfg.intermediates else INTERMEDIATES
        saved = replace(analysis_batch, **dict.fromkeys(dropped))  # type: ignore[arg-type]  # None counts as absent
        if self.save_cfg.tokens or self.save_cfg.prompts:
            rows = real_tokens(tokens_of(batch)[1].cpu(), mask_of(batch).cpu())
            if self.save_cfg.tokens:
                saved.tokens = rows
                saved.pieces = token_texts(tokenizer, rows) if tokenizer else None
            if self.save_cfg.prompts:
                if tokenizer is None:
                    raise AnalysisError("SaveCfg(prompts=True) needs a tokenizer: save(..., tokenizer=...).")
                saved.prompts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        self.append(saved)

    def append(self, batch: AnalysisBatch) -> None:
        """Keep all results of one batch.

        Raises:
            AnalysisError: The cache is a view of a folder.
            NotFiniteError: Results are NaN or infinite.
            StoreError: The results are not of the fields of the batches before.
        """
        known = FIELDS.keys() | self._declared.keys()
        values = {name: value for name, value in batch.as_fields().items() if name in known}
        check_results(values)
        self.add(values, len(batch))
        self._urls |= batch.dashboard_urls

    def add(self, values: Mapping[str, Any], examples: int) -> None:
        """Keep values of fields of one batch, as operations write them.

        Args:
            values: By field.
            examples: Number of examples in the batch.

        Raises:
            AnalysisError: The cache is a view of a folder.
            StoreError: The results are not of the fields of the batches before.
        """
        if self._store is None:
            known = {**FIELDS, **self._declared}
            self._store, self._writer = StoreWriter.in_memory([known[name] for name in known if name in values])
        if self._writer is None:
            raise AnalysisError("This cache is a view of a store; use a new AnalysisCache() for new results.")
        first = self._store.n_examples
        with torch.inference_mode(mode=False):  # what a trainer's test made can be used without restrictions later
            self._writer.write(self._store.n_batches, range(first, first + examples), values)

    def begin(
        self,
        answers: Iterable[str],
        dashboard_urls: Mapping[str, str],
        kept: Iterable[Field],
        objective: Objective = LOGIT_DIFF,
    ) -> None:
        """Note what an analysis that fills the cache finds in the session.

        Args:
            answers: The answer words by label.
            dashboard_urls: Published page of each latent, with the placeholder ``{latent}``, by activation name.
            kept: Fields that come beside those of ``AnalysisBatch``, or in their place.
            objective: What effects are measured by.
        """
        self.objective_name, self.unit = objective.name, objective.unit
        self.answers = self.answers or tuple(answers)
        self._urls |= dashboard_urls
        self._declared |= {item.name: item for item in kept}

    def to_tables(self) -> dict[str, pa.Table]:
        """Results as Arrow tables.

        Returns:
            ``examples``: one row an example; ``latents``: one row for each example and latent of which something is
            said.
        """
        store = self._store
        if store is None:
            return {"examples": pa.table({}), "latents": pa.table({})}
        numbers = [name for name, item in store.fields.items() if item.per in (Per.example, Per.batch)]
        sparse = any(item.per is Per.latent for item in store.fields.values())
        found = {
            "examples": list(store.record_batches(["example", *numbers])),
            "latents": list(store.latents()) if sparse else [],
        }
        return {name: pa.Table.from_batches(rows) if rows else pa.table({}) for name, rows in found.items()}

    def write(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> AnalysisStore:
        """Write the results to a folder that any Parquet reader opens.

        Args:
            folder: New, or empty.
            about: What to note of the analysis in the manifest: JSON.

        Raises:
            AnalysisError: There are no results.
            StoreError: The folder cannot be written or holds other results.
        """
        store = self._store
        if store is None:
            raise AnalysisError("The cache is empty: run the analysis first.")
        if (Path(folder) / MANIFEST).exists():
            raise StoreError(f"{folder} holds results already. Write to another folder, or remove it.")
        noted: dict[str, Any] = {
            "objective": self.objective_name,
            "unit": self.unit,
            "latent_models": [{"name": name, "dashboard_url": url} for name, url in self._urls.items()],
        }
        if self.answers:
            noted["answers"] = list(self.answers)
        with StoreWriter.create(
            folder, list(store.fields.values()), {**noted, **(about or {})}, key="", n_batches=store.n_batches
        ) as writer:
            for batch in store.batches():
                writer.write(batch.index, batch.examples.tolist(), dict(batch))
            for name, table in store.tables.items():
                writer.write_table(name, table)
            return writer.seal()

    def __repr__(self) -> str:
        where = "in memory" if self._store is None or self._store.folder is None else str(self._store.folder)
        return f"AnalysisCache({len(self.batches)} batches, {where})"


def _batch_of(batch: StoredBatch, urls: Mapping[str, str]) -> AnalysisBatch:
    """Values of fields as a batch; what is not stored stays None or empty."""
    labels = torch.zeros(len(batch.examples), dtype=torch.long)
    made = AnalysisBatch(labels=batch.get("labels", labels), orig_labels=batch.get("orig_labels", labels))
    made.take(batch)
    made.further = {name: value for name, value in batch.items() if name not in FIELDS}
    made.alive_latents = {name: item.latents for name, item in batch.get("activations", {}).items()}
    made.dashboard_urls = dict(urls)
    return made


def _urls_of(store: AnalysisStore) -> dict[str, str]:
    listed = store.manifest.about.get("latent_models", [])
    return {item["name"]: item["dashboard_url"] for item in listed if item.get("dashboard_url")}


def objective_noted(store: AnalysisStore) -> tuple[str, str] | None:
    """The objective that a store's manifest notes, of an analysis or of ``effects``, and its unit."""
    about: Any = store.manifest.about
    told = about.get("question", about)
    return (told["objective"], told.get("unit", "")) if "objective" in told else None


def answers_of(store: AnalysisStore) -> tuple[str, ...]:
    """The answer words by label that a store's manifest notes; none where it notes none."""
    about: Any = store.manifest.about
    found: Any = about.get("answers")
    if found is None:  # a run notes them with the configuration of its module
        found = about
        for name in ("configs", "module", "generative_step_cfg", "answers"):
            found = found.get(name) if isinstance(found, Mapping) else None
    words = found if isinstance(found, (list, tuple)) and all(isinstance(word, str) for word in found) else ()
    return tuple(words)
