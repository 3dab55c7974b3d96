"""Pages for single latents: the published one where there is one, else the prompts in which the latent is active."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tabulate import tabulate

from interpretune.reports.metrics import Context, LatentMetrics
from interpretune.reports.page.text import web
from interpretune.reports.plots import in_notebook
from interpretune.reports.tables import Sign, top_latents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_BEFORE = 12
TOKENS_AFTER = 4


def display_latent_dashboards(
    metrics: LatentMetrics,
    title: str,
    sae_release: str | None = None,
    top_k: int = 1,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[str]:
    """Show, for each latent model, what the latents with the largest effects of either sign stand for.

    Args:
        metrics: Effects of one analysis.
        title: Heading.
        sae_release: Name of the release, for the heading.
        top_k: Latents of each sign.
        tokenizer: Decodes the prompts in which a latent is active; None: the texts that were saved with the tokens.

    Returns:
        What was shown for each latent: the address of a published page (http or https, any other is passed over), or a
        table of prompts with the most active token in double brackets.
    """
    print(f"{title}" + (f" ({sae_release})" if sae_release else ""))
    signs: tuple[Sign, ...] = ("positive", "negative")
    towards = metrics.told
    shown = []
    for name, table in metrics.tables.items():
        url = metrics.summary.dashboard_urls.get(name)
        for sign in signs:
            for i in top_latents(table, top_k, sign):
                latent = int(table.latents[i])
                head = f"{name}, latent {latent}, total effect{towards} {table.total_effect[i].item():+.4f}"
                page = page_of(url, latent) if url else None
                body = page or _contexts(metrics, name, latent, tokenizer)
                print(f"{head}\n{body}\n")
                if page and in_notebook():
                    _show_frame(page)
                shown.append(body)
    return shown


def page_of(url: str, latent: int) -> str | None:
    """Address of a latent's published page.

    Addresses come out of stores that others wrote: nothing in them is run or formatted.

    Args:
        url: Address with the placeholder ``{latent}``.
        latent: The latent.

    Returns:
        The address, with what has a meaning in HTML percent-encoded; None where it is not one of the web.
    """
    return web(url.replace("{latent}", str(latent)))


def _contexts(metrics: LatentMetrics, name: str, latent: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    found = metrics.summary.contexts.get(name, {}).get(latent, [])
    rows = [[item.example, f"{item.activation:.3f}", item.position, _excerpt(item, tokenizer)] for item in found]
    return tabulate(rows, headers=["example", "activation", "position", "most active at [[...]]"], tablefmt="simple")


def _excerpt(context: Context, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if context.tokens is None:
        return "(tokens were not saved: SaveCfg(tokens=True))"
    known = [tokenizer.decode([token]) for token in context.tokens] if tokenizer else context.pieces
    pieces = known or [f" {int(token)}" for token in context.tokens]
    at = context.position
    before, after = pieces[max(0, at - TOKENS_BEFORE) : at], pieces[at + 1 : at + 1 + TOKENS_AFTER]
    return " ".join("".join([*before, "[[", pieces[at], "]]", *after]).split())


def _show_frame(url: str) -> None:
    display = sys.modules["IPython"].display
    address = f"{url}{'&' if '?' in url else '?'}embed=true"
    display.display(display.IFrame(address, width=1000, height=500))
