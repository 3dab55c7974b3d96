"""A module that fine-tunes and tests a classifier; nothing of it needs a framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from interpretune.activations.finite import check_rows
from interpretune.models.answer_tokens import logits_of
from interpretune.models.padding import answer_positions, mask_of
from interpretune.session.labels import LABELS, answer_ids
from interpretune.session.module import ITModule


class ClassificationModule(ITModule):
    """Classifies with the answer tokens of a language-model head, or with a classification head.

    Which of the two follows from the model: a head that gives ``[batch, num_labels]`` is a classification head
    (``HFFromPretrainedConfig(model_head="transformers.AutoModelForSequenceClassification")`` and ``num_labels``);
    otherwise ``GenerativeClassificationConfig(answers=...)`` names an answer token for each label, or the rows have
    answers of their own.
    """

    def class_logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits of the labels, ``[batch, num_labels]``, taken at the answer position from a language-model head.

        Minus infinity where a row has fewer answers than others.

        Raises:
            NotFiniteError: One of them is NaN or infinite: there would be no loss, and NaN would count as label 0.
        """
        outputs = self(**{name: value for name, value in batch.items() if name != LABELS})
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        seen = logits
        if logits.ndim != 2:
            rows = torch.arange(len(logits), device=logits.device)
            answers = self.answer_tokens(batch).to(logits.device)
            logits = logits_of(logits[rows, answer_positions(mask_of(batch))], answers)
            seen = logits.masked_fill(answers < 0, 0)
        check_rows(seen, "Logits of the answers", "Does the model rule out an answer? Choose other answers.")
        return logits

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Cross entropy over the labels, in nats."""
        logits = self.class_logits(batch)
        loss = functional.cross_entropy(logits, answer_ids(batch[LABELS], logits.shape[-1]))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_accuracy``."""
        self._log_quality("val", batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_accuracy``."""
        self._log_quality("test", batch)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Mapping[str, Tensor]:
        """Predicted labels, ``predictions`` ``[batch]``, and ``logits`` ``[batch, num_labels]``."""
        logits = self.class_logits(batch)
        return {"predictions": logits.argmax(dim=-1), "logits": logits}

    def _log_quality(self, split: str, batch: Mapping[str, Any]) -> None:
        logits = self.class_logits(batch)
        labels = answer_ids(batch[LABELS], logits.shape[-1])
        share = torch.promote_types(logits.dtype, torch.float32)  # half precision would round the accuracy
        metrics = {
            f"{split}_loss": functional.cross_entropy(logits, labels),
            f"{split}_accuracy": (logits.argmax(dim=-1) == labels).to(share).mean(),
        }
        self.log_dict(metrics, prog_bar=True, sync_dist=True)
