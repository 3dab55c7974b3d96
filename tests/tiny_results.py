"""Random sparse results of an analysis, and the dense arrays that they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from interpretune.analysis import AnalysisBatch, AnalysisCache, LatentValues
from tests.tiny import VOCABULARY

LOWER = "blocks.0.hook_resid_post.hook_sae_acts_post"
UPPER = "blocks.2.hook_mlp_out.hook_sae_acts_post"
D_SAE = 20
SIZES = (4, 3, 1)
"""Rows in each batch."""
PAGE = "https://example.org/sae/{latent}"


class RandomResults:
    """Results of an ablation of 8 examples; at ``UPPER`` a published page is known.

    Attributes:
        cache: What an analysis would have saved.
        labels: ``[example]``.
        predictions: ``[example]``.
        logit_diffs: ``[example]``.
        activations: ``[example, d_sae]`` by activation name.
        effects: ``[example, d_sae]`` by activation name, 0 where the latent is inactive.
        peaks: Highest activation in the prompt, ``[example, d_sae]``, 0 where the latent is not alive in the batch.
        peak_positions: Its position, ``[example, d_sae]``.
        tokens: Tokens of each example.
    """

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        n = sum(SIZES)
        self.labels = draw.integers(0, 2, n)
        self.predictions = np.where(draw.random(n) < 0.6, self.labels, 1 - self.labels)
        self.logit_diffs = draw.normal(size=n)
        self.tokens = [draw.integers(4, len(VOCABULARY), draw.integers(3, 9)) for _ in range(n)]
        self.activations, self.effects, self.peaks, self.peak_positions = {}, {}, {}, {}
        for name in (LOWER, UPPER):
            active = (draw.random((n, D_SAE)) < 0.25) & (draw.random(D_SAE) < 0.8)
            self.activations[name] = np.where(active, draw.random((n, D_SAE)) + 0.1, 0)
            self.effects[name] = np.where(active, draw.normal(size=(n, D_SAE)), 0)
            self.peaks[name] = self.activations[name] + draw.random((n, D_SAE))
            self.peak_positions[name] = np.stack([draw.integers(0, len(row), D_SAE) for row in self.tokens])
        self.cache = AnalysisCache()
        start = 0
        for size in SIZES:
            self.cache.append(self._batch(slice(start, start + size)))
            start += size

    def _batch(self, rows: slice) -> AnalysisBatch:
        batch = AnalysisBatch(
            labels=torch.from_numpy(self.labels[rows]) + 4,
            orig_labels=torch.from_numpy(self.labels[rows]),
            logit_diffs=torch.from_numpy(self.logit_diffs[rows]).float(),
            preds=torch.from_numpy(self.predictions[rows]),
            tokens=[torch.from_numpy(row) for row in self.tokens[rows]],
            dashboard_urls={UPPER: PAGE},
        )
        batch.activations, batch.effects, batch.alive_latents = {}, {}, {}
        batch.peak_values, batch.peak_positions = {}, {}
        for name in (LOWER, UPPER):
            alive = np.flatnonzero((self.activations[name][rows] > 0).any(0))
            dead = np.setdiff1d(np.arange(D_SAE), alive)
            self.peaks[name][rows, dead] = 0
            latents = torch.from_numpy(alive)
            batch.alive_latents[name] = latents
            batch.activations[name] = LatentValues(
                latents, torch.from_numpy(self.activations[name][rows][:, alive]), D_SAE
            )
            batch.effects[name] = LatentValues(latents, torch.from_numpy(self.effects[name][rows][:, alive]), D_SAE)
            for held, kept in ((self.peaks, batch.peak_values), (self.peak_positions, batch.peak_positions)):
                kept[name] = LatentValues(latents, torch.from_numpy(held[name][rows][:, alive]), D_SAE)
        return batch

    def without_effects(self) -> AnalysisCache:
        """The cache of the same analysis with latent models and without effects."""
        return AnalysisCache(batches=[replace(batch, effects={}) for batch in self.cache.batches])
