"""Transcoders of the last layers, trained for seconds on prompts of the tasks, and how much they explain."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.workload import Workload, tokenized

BATCH = 16
"""Prompts in a forward."""
SEEN_AT_A_TIME, LEARNING_RATE = 512, 2e-3
"""Tokens of a training step, and Adam's."""


class TrainedTranscoder(nn.Module):
    """``mlp_in`` to ``mlp_out`` of a layer by the largest ReLU latents; the rest of ``mlp_out`` is an error term."""

    use_error_term, skips_special_tokens = True, True

    def __init__(self, layer: int, reads: Tensor, writes: Tensor, d_sae: int, alive: int, steps: int) -> None:
        """Train on activations ``[n, d_in]`` of tokens."""
        super().__init__()
        self.name = self.hook_point = f"layers.{layer}.mlp_in"
        self.output_hook_point = f"layers.{layer}.mlp_out"
        self.d_in, self.d_sae, self._alive = reads.shape[1], d_sae, alive
        draw = torch.Generator().manual_seed(layer)
        self.w_enc = nn.Parameter(torch.randn(d_sae, self.d_in, generator=draw) / self.d_in**0.5)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.w_dec = nn.Parameter(0.3 * torch.randn(d_sae, self.d_in, generator=draw) / d_sae**0.5)
        self.b_dec = nn.Parameter(torch.zeros(self.d_in))
        means, scales = [x.mean(0) for x in (reads, writes)], [x.std(0).mean() + 1e-6 for x in (reads, writes)]
        scaled = [(x - mean) / scale for x, mean, scale in zip((reads, writes), means, scales, strict=True)]
        optimizer = torch.optim.Adam(self.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
        with torch.enable_grad():
            for _ in range(steps):
                some = torch.randint(len(reads), (SEEN_AT_A_TIME,), generator=draw)
                loss = (self.decode(self.encode(scaled[0][some])) - scaled[1][some]).square().sum(-1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():  # of activations as they are
            self.w_enc.div_(scales[0])
            self.b_enc.sub_(self.w_enc @ means[0])
            self.w_dec.mul_(scales[1])
            self.b_dec.mul_(scales[1]).add_(means[1])
        self.requires_grad_(requires_grad=False)

    def encode(self, activations: Tensor) -> Tensor:
        """``[..., d_in]`` to ``[..., d_sae]``."""
        found = nn.functional.linear(activations, self.w_enc, self.b_enc).relu()
        return found * (found >= found.topk(self._alive, -1).values[..., -1:])

    def decode(self, latents: Tensor) -> Tensor:
        """``[..., d_sae]`` to ``[..., d_in]``."""
        return latents @ self.w_dec + self.b_dec

    def decoder_rows(self, latents: Tensor) -> Tensor:
        """Rows of the decoder."""
        return self.w_dec[latents]

    def dashboard_url(self) -> str | None:
        """There is none."""


def trained_transcoders(
    work: Workload, tokenizer: Any, texts: Sequence[str], options: argparse.Namespace
) -> list[TrainedTranscoder]:
    """Transcoders of the last layers, trained on all tokens of prompts but the first of each."""
    n = work.backend.n_layers
    layers = range(n - options.graph_layers, n)
    seen = activations_of(work, tokenizer, texts, layers)
    made = [
        TrainedTranscoder(layer, reads, writes, options.graph_width, options.graph_alive, options.graph_steps)
        for layer, (reads, writes, _) in zip(layers, seen, strict=True)
    ]
    return [item.to(work.backend.model.dtype) for item in made]


def explained_variance(
    work: Workload, tokenizer: Any, texts: Sequence[str], transcoders: Sequence[TrainedTranscoder]
) -> list[float]:
    """The share of the variance of what each MLP writes at the last tokens of prompts that its transcoder explains."""
    layers = [int(item.name.split(".")[1]) for item in transcoders]
    shares = []
    for item, (reads, writes, last) in zip(transcoders, activations_of(work, tokenizer, texts, layers), strict=True):
        wanted = writes[last]
        left = (wanted - item.decode(item.encode(reads[last].to(item.w_enc.dtype)))).square().sum()
        shares.append(1 - float(left / (wanted - wanted.mean(0)).square().sum()))
    return shares


def activations_of(
    work: Workload, tokenizer: Any, texts: Sequence[str], layers: Sequence[int]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """``mlp_in`` and ``mlp_out`` of layers, ``[n, d_in]``, and which tokens are the last of their prompts."""
    names = [f"layers.{layer}.mlp_{side}" for layer in layers for side in ("in", "out")]
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    last: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            inputs = tokenized(tokenizer, texts[start : start + BATCH], "left", work.backend.model_device)
            mask = inputs.attention_mask.bool() & (inputs.attention_mask.cumsum(-1) > 1)
            ends = torch.zeros_like(mask)
            ends[:, -1] = True
            last.append(ends[mask])
            for name, found in work.backend.capture(inputs, names).items():
                seen[name].append(found[mask].float())
    found = [torch.cat(seen[name]) for name in names]
    return [(*pair, torch.cat(last)) for pair in zip(found[::2], found[1::2], strict=True)]
