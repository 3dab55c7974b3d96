"""What is measured on: a backend of one kind, a batch of prompts, and two dictionaries fitted to the model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from transformers import AutoTokenizer

import interpretune as it
from benchmarks.dictionaries import FittedDictionary
from interpretune.analysis import (
    AnalysisBackend,
    HuggingFaceBackend,
    LatentRows,
    ModelInputs,
    ablate,
    activation_name,
    attribute,
)
from interpretune.replay.prefill import Prefill

QUESTION = "{premise}\nClaim: {hypothesis}\nSupported (Yes/No):"
ANSWERS = (" Yes", " No")
FITTED_ON = 4000
"""Tokens that dictionaries are fitted on."""
BACKENDS = ("transformers", "bridge", "hooked")


def load_backend(kind: str, folder: str, dtype: str) -> AnalysisBackend:
    """A backend of one kind over a model in a folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    loading = it.HFFromPretrainedConfig(pretrained_kwargs={"dtype": dtype})
    if kind == "transformers":
        model = it.load_hf_model(it.ITConfig(model_name_or_path=folder, hf_from_pretrained_cfg=loading))
        return HuggingFaceBackend(model.eval(), tokenizer)
    from interpretune_tlens import ITLensConfig, ITLensFromPretrainedNoProcessingConfig
    from interpretune_tlens.backend import TransformerLensBackend
    from interpretune_tlens.loading import load_model

    tl_cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=kind == "bridge")
    cfg = ITLensConfig(model_name_or_path=folder, tl_cfg=tl_cfg, hf_from_pretrained_cfg=loading)
    return TransformerLensBackend(load_model(cfg).eval(), tokenizer)


def prompts(data: Path | None, shots: int, most: int) -> list[str]:
    """Prompts, each of ``shots`` answered questions and an open one."""
    source = files("interpretune.tasks").joinpath("rows/entailment/train.jsonl") if data is None else data
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    made = []
    for index in range(min(most, len(rows) // (shots + 1))):
        *shown, asked = rows[index * (shots + 1) : (index + 1) * (shots + 1)]
        solved = [QUESTION.format(**row) + ANSWERS[row["label"]] + "\n\n" for row in shown]
        made.append("".join(solved) + QUESTION.format(**asked))
    return made


def tokenized(tokenizer: Any, texts: Sequence[str], side: str, device: torch.device) -> ModelInputs:
    """A padded batch."""
    tokenizer.padding_side = side
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(list(texts), return_tensors="pt", padding=True).to(device)
    return ModelInputs(batch["input_ids"], batch["attention_mask"])


def fit(backend: AnalysisBackend, batches: Sequence[ModelInputs], options: argparse.Namespace) -> list[Any]:
    """Two dictionaries, the upper one fitted with the lower one spliced in."""
    fitted: list[Any] = []
    for name in options.sites:
        seen = []
        for inputs in batches:
            kept: list[Tensor] = []
            edits, _ = backend.splice_edits(inputs, fitted)
            before = edits.get(name, lambda x: x)
            edits[name] = lambda x, before=before, kept=kept: (kept.append(before(x)), kept[-1])[1]
            with torch.no_grad():
                backend.forward(inputs, edits, inputs.answers)
            flat = kept[0].flatten(2)
            mask = inputs.attention_mask.bool() & (inputs.attention_mask.cumsum(-1) > 1)
            seen.append(flat[mask].float())
        dictionary = FittedDictionary(name, torch.cat(seen)[:FITTED_ON], options.width, options.alive)
        fitted.append(dictionary.to(flat.dtype))
    return fitted


@frozen(eq=False)
class Workload:
    """One backend with its batch and dictionaries, and what is done with them by replays.

    Attributes:
        backend: Runs the model; no parameter wants a gradient.
        inputs: The batch.
        dictionaries: The lower one and the upper one.
        columns: Ids of the two answers.
        row_budget: Most rows of one replay; None: chosen from the free memory.
    """

    backend: AnalysisBackend
    inputs: ModelInputs
    dictionaries: list[Any]
    columns: Tensor
    row_budget: int | None

    @property
    def names(self) -> list[str]:
        """Activation names of the dictionaries."""
        return [activation_name(item) for item in self.dictionaries]

    def prefill(self) -> Prefill:
        """A prefill without its self-check."""
        return self.backend.prefill(self.inputs, self.dictionaries, self_check=False)

    def replay(self, clean: Prefill) -> dict[str, Tensor]:
        """Every alive latent ablated, ``[rows, 2]`` by activation name."""
        parts = alive_rows(clean)
        logits = ablate(clean, LatentRows.joined(list(parts.values())), self.columns, self.row_budget)
        return dict(zip(parts, logits.split(list(map(len, parts.values()))), strict=True))

    def attribution(self) -> dict[str, Tensor]:
        """Gradients of the logit differences, with their prefill."""
        return attribute(
            self.prefill(), lambda logits, _: (logits[:, 0] - logits[:, 1]).sum(), self.names, self.columns
        )


def make_workload(kind: str, folder: str, options: argparse.Namespace, fitted: list[Any] | None) -> Workload:
    """Load a model, tokenize the batch and, unless they are given, fit the dictionaries."""
    backend = load_backend(kind, folder, options.dtype)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    device = backend.model_device
    for parameter in backend.model.parameters():
        parameter.requires_grad_(False)
    texts = prompts(options.data, options.shots, 1000)
    inputs = tokenized(tokenizer, texts[: options.batch], options.side, device)
    if fitted is None:
        others = [texts[i : i + 8] for i in range(0, min(len(texts), 64), 8)]
        fitted = fit(backend, [tokenized(tokenizer, part, options.side, device) for part in others], options)
    columns = torch.tensor([tokenizer.encode(a, add_special_tokens=False)[-1] for a in ANSWERS], device=device)
    return Workload(backend, inputs, fitted, columns, options.row_budget)


def alive_rows(clean: Prefill) -> dict[str, LatentRows]:
    """All (example, alive latent) rows, by activation name."""
    return {name: LatentRows.single(name, (latents > 0).nonzero()) for name, latents in clean.latents.items()}
