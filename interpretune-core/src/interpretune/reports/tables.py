"""Result tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from tabulate import tabulate
from torch import Tensor

from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.finite_results import check_stored
from interpretune.errors import AnalysisError
from interpretune.operations.objectives import LOGIT_DIFF
from interpretune.replay.effect_noise import noise_text
from interpretune.reports.metrics import LatentMetrics, LatentTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_WIDTH = 60
EFFECT_COLUMNS = ("latent", "total effect", "mean effect", "mean activation", "active in", "share of samples")

Sign = Literal["positive", "negative"]


def display_ref_vs_sae_logit_diffs(
    sae: AnalysisCache,
    no_sae_ref: AnalysisCache,
    tokenizer: PreTrainedTokenizerBase | None = None,
    top_k: int = 10,
) -> str:
    """Print the examples whose logit difference, or other objective, the latent models change most.

    Args:
        sae: Results of ``clean_w_sae``.
        no_sae_ref: Results of ``clean_no_sae`` on the same batches.
        tokenizer: Decodes prompts from saved tokens, where no prompts were saved.
        top_k: Number of examples.

    Returns:
        The printed table.

    Raises:
        AnalysisError: The two caches have different numbers of examples, or measure different things.
        NotFiniteError: One of them holds numbers that are NaN.
    """
    if sae.objective_name != no_sae_ref.objective_name:
        raise AnalysisError(f"One analysis measures {sae.objective_name}, the other {no_sae_ref.objective_name}.")
    plain = sae.objective_name == LOGIT_DIFF.name
    field, told = ("logit_diffs", "logit diff") if plain else ("objective", sae.objective_name)
    for cache in (sae, no_sae_ref):
        check_stored(cache, field)
    spliced, clean = torch.cat(getattr(sae, field)), torch.cat(getattr(no_sae_ref, field))
    if spliced.shape != clean.shape:
        raise AnalysisError(
            f"The analyses have {len(spliced)} and {len(clean)} examples; run both over the same batches to "
            "compare them."
        )
    labels = torch.cat(sae.orig_labels)
    prompts = _prompts(sae, no_sae_ref, tokenizer)
    change = spliced - clean
    rows = [
        [i, shorten(prompts[i], PROMPT_WIDTH), int(labels[i]), clean[i].item(), spliced[i].item(), change[i].item()]
        for i in change.abs().argsort(descending=True, stable=True)[:top_k].tolist()
    ]
    headers = ["example", "prompt", "label", f"clean {told}", f"SAE {told}", "change"]
    table = tabulate(rows, headers=headers, tablefmt="grid", floatfmt=".3f")
    print(table)
    return table


def create_attribution_tables(
    metrics: LatentMetrics,
    top_k: int = 5,
    filter_type: Literal["both", "positive", "negative"] = "both",
    per_sae: bool = True,
) -> dict[str, str]:
    """Tables of the latents with the largest positive and negative total effects.

    Args:
        metrics: Effects of one analysis, towards the answer that they were calculated for.
        top_k: Latents in each table.
        filter_type: Which signs to show.
        per_sae: A table for each latent model instead of one for all.

    Returns:
        Tables by title.
    """
    signs: Sequence[Sign] = ("positive", "negative") if filter_type == "both" else (filter_type,)
    tables = {}
    for sign in signs:
        groups = [[name] for name in metrics.tables] if per_sae else [list(metrics.tables)]
        for names in groups:
            rows = [row for name in names for row in _effect_rows(name, metrics.tables[name], top_k, sign)]
            rows = sorted(rows, key=lambda row: row[2], reverse=sign == "positive")[:top_k]
            where = f" at {names[0]}" if per_sae else ""
            title = f"Top {sign} {metrics.run_name} effects{metrics.told}{where} ({metrics.selection})"
            shown = [row[1:] for row in rows] if per_sae else rows
            headers = EFFECT_COLUMNS if per_sae else ("hook", *EFFECT_COLUMNS)
            table = tabulate(shown, headers=headers, tablefmt="grid", floatfmt=".4f")
            noise = noise_text(metrics.effect_noise, metrics.unit)
            tables[title] = f"{table}\n({noise})" if noise else table
    return tables


def top_latents(table: LatentTable, top_k: int, sign: Sign) -> list[int]:
    """Row numbers of the latents with the largest total effects of one sign, largest first."""
    signed = table.total_effect if sign == "positive" else -table.total_effect
    order = signed.argsort(descending=True, stable=True)[:top_k]
    return [int(i) for i in order if signed[i] > 0]


def _effect_rows(name: str, table: LatentTable, top_k: int, sign: Sign) -> list[list[Any]]:
    return [
        [
            name,
            int(table.latents[i]),
            table.total_effect[i].item(),
            table.mean_effect[i].item(),
            table.mean_activation[i].item(),
            int(table.num_samples_active[i]),
            table.proportion_samples_active[i].item(),
        ]
        for i in top_latents(table, top_k, sign)
    ]


def _prompts(first: AnalysisCache, second: AnalysisCache, tokenizer: PreTrainedTokenizerBase | None) -> Sequence[str]:
    for cache in (first, second):
        if all(prompts is not None for prompts in cache.prompts):
            return [text for prompts in cache.prompts for text in prompts]
        if tokenizer is not None and all(tokens is not None for tokens in cache.tokens):
            saved: list[Tensor] = [row for rows in cache.tokens for row in rows]
            return tokenizer.batch_decode(saved, skip_special_tokens=True)
    return [""] * sum(len(labels) for labels in first.orig_labels)


def shorten(text: str, width: int) -> str:
    """One line of at most ``width`` characters, from the beginning of a text."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
