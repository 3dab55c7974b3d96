"""Collects the results of an analysis, batch by batch, and hands them out as lists or as Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from interpretune.analysis.batch import AnalysisBatch
from interpretune.errors import AnalysisError
from interpretune.tokenization import mask_of, tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_FIELDS = frozenset(item.name for item in fields(AnalysisBatch))
DROPPED_FIELDS = ("answer_logits", "gradients", "ablated_logits")
"""Large intermediate results that no report reads: logits over the vocabulary and what effects are computed from."""


@dataclass(kw_only=True)
class SaveCfg:
    """What a cache keeps beside numbers.

    Attributes:
        prompts: The text of each example.
        tokens: The real tokens of each example.
        intermediates: Logits over the vocabulary, gradients, and the logits of each ablation.
    """

    prompts: bool = False
    tokens: bool = False
    intermediates: bool = False


@dataclass
class AnalysisCache:
    """The results of one analysis.

    Every field of ``AnalysisBatch`` is an attribute of the cache: a list with one entry for each batch
    (``cache.logit_diffs``, ``cache.alive_latents``, ...).

    Attributes:
        save_cfg: What is kept.
        batches: One entry for each saved batch, on the CPU.
    """

    save_cfg: SaveCfg = field(default_factory=SaveCfg)
    batches: list[AnalysisBatch] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        if name in BATCH_FIELDS:
            return [getattr(batch, name) for batch in self.batches]
        raise AttributeError(f"{type(self).__name__} has no {name!r}; results are {', '.join(sorted(BATCH_FIELDS))}.")

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
        """
        kept = {item.name: _to_cpu(getattr(analysis_batch, item.name)) for item in fields(AnalysisBatch)}
        if not self.save_cfg.intermediates:
            kept |= {name: _EMPTY[name] for name in DROPPED_FIELDS}
        saved = AnalysisBatch(**kept)
        if self.save_cfg.tokens or self.save_cfg.prompts:
            tokens, mask = tokens_of(batch)[1].cpu(), mask_of(batch).cpu().bool()
            rows = [row[keep] for row, keep in zip(tokens, mask, strict=True)]
            if self.save_cfg.tokens:
                saved.tokens = rows
                saved.pieces = [[tokenizer.decode([token]) for token in row] for row in rows] if tokenizer else None
            if self.save_cfg.prompts:
                if tokenizer is None:
                    raise AnalysisError("SaveCfg(prompts=True) needs a tokenizer: save(..., tokenizer=...).")
                saved.prompts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        self.batches.append(saved)

    def to_tables(self) -> dict[str, pa.Table]:
        """Results as Arrow tables.

        Returns:
            ``examples``: one row an example; ``latents``: one row for each example and alive latent with an activation
            above 0.
        """
        examples: list[dict[str, Any]] = []
        latents: list[dict[str, Any]] = []
        for batch in self.batches:
            first = len(examples)
            for i, label in enumerate(batch.orig_labels.tolist()):
                examples.append(
                    {
                        "example": first + i,
                        "label": label,
                        "prediction": batch.preds[i].item() if batch.preds is not None else None,
                        "logit_diff": batch.logit_diffs[i].item() if batch.logit_diffs is not None else None,
                        "prompt": batch.prompts[i] if batch.prompts is not None else None,
                    }
                )
            for name, activations in batch.activations.items():
                effects = batch.effects.get(name)
                for row, column in (activations.values > 0).nonzero().tolist():
                    latents.append(
                        {
                            "example": first + row,
                            "hook": name,
                            "latent": activations.latents[column].item(),
                            "activation": activations.values[row, column].item(),
                            "effect": effects.values[row, column].item() if effects is not None else None,
                        }
                    )
        return {
            "examples": pa.Table.from_pylist(examples, schema=EXAMPLES_SCHEMA),
            "latents": pa.Table.from_pylist(latents, schema=LATENTS_SCHEMA),
        }

    def write_parquet(self, folder: Path) -> list[Path]:
        """Write the tables of ``to_tables`` to Parquet files that any Arrow reader opens.

        Returns:
            The files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, table in self.to_tables().items():
            path = folder / f"{name}.parquet"
            partial = path.with_suffix(".partial")
            pq.write_table(table, partial)
            partial.replace(path)
            written.append(path)
        return written


EXAMPLES_SCHEMA = pa.schema(
    [
        pa.field("example", pa.int64(), metadata={"about": "position in the analysed split"}),
        pa.field("label", pa.int64(), metadata={"about": "correct answer"}),
        pa.field("prediction", pa.int64(), metadata={"about": "answer with the highest logit"}),
        pa.field("logit_diff", pa.float64(), metadata={"about": "correct minus other answer, logits"}),
        pa.field("prompt", pa.string(), metadata={"about": "text of the example"}),
    ]
)
LATENTS_SCHEMA = pa.schema(
    [
        pa.field("example", pa.int64(), metadata={"about": "row of the examples table"}),
        pa.field("hook", pa.string(), metadata={"about": "activation name of the latent model"}),
        pa.field("latent", pa.int64(), metadata={"about": "id in the dictionary"}),
        pa.field("activation", pa.float64(), metadata={"about": "at the answer position"}),
        pa.field("effect", pa.float64(), metadata={"about": "on the logit difference, logits"}),
    ]
)
_EMPTY: Mapping[str, Any] = {"answer_logits": None, "gradients": {}, "ablated_logits": {}}


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_cpu(item) for name, item in value.items()}
    if isinstance(value, Tensor):
        with torch.inference_mode(mode=False):  # what a trainer's test made can be used without restrictions later
            return (
                value.detach().clone() if value.is_inference() and value.device.type == "cpu" else value.detach().cpu()
            )
    return value.cpu() if hasattr(value, "cpu") else value
