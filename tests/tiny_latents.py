"""Latent models made of plain torch, and slow references for what analyses compute with them.

The references know nothing of interpretune: a Hugging Face model, torch hooks, and a loop over single unpadded rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

Hook = Callable[[Tensor], Tensor]


class RandomDictionary(nn.Module):
    """A dictionary of random ReLU latents of which a fraction is active; its parameters want gradients."""

    def __init__(
        self,
        hook_point: str,
        d_in: int = 32,
        d_sae: int = 24,
        *,
        output: str | None = None,
        skips: bool = False,
        seed: int = 0,
        url: str | None = None,
    ) -> None:
        super().__init__()
        self.name = f"random at {hook_point}"
        self.hook_point = hook_point
        self.output_hook_point = output or hook_point
        self.d_in, self.d_sae = d_in, d_sae
        self.skips_special_tokens = skips
        self.url = url
        draw = torch.Generator().manual_seed(seed)
        self.w_enc = nn.Parameter(torch.randn(d_in, d_sae, generator=draw) / d_in**0.5)
        self.b_enc = nn.Parameter(torch.randn(d_sae, generator=draw) * 0.2 - 0.3)
        self.w_dec = nn.Parameter(torch.randn(d_sae, d_in, generator=draw) / d_sae**0.5)
        self.b_dec = nn.Parameter(torch.randn(d_in, generator=draw) * 0.2)

    def encode(self, activations: Tensor) -> Tensor:
        """``[batch, pos, d_in]`` to ``[batch, pos, d_sae]``."""
        return torch.relu(activations @ self.w_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        """``[batch, pos, d_sae]`` to ``[batch, pos, d_in]``."""
        return latents @ self.w_dec + self.b_dec

    def dashboard_url(self) -> str | None:
        """The address given at construction."""
        return self.url


class FixedDictionary:
    """A dictionary that is no torch module: the identity on pairs (x, -x), or one that returns zeros."""

    def __init__(self, hook_point: str, d_in: int = 32, *, zero: bool = False, skips: bool = False) -> None:
        self.name = f"{'zero' if zero else 'identity'} at {hook_point}"
        self.hook_point = self.output_hook_point = hook_point
        self.d_in, self.d_sae = d_in, 2 * d_in
        self.skips_special_tokens = skips
        self.gain = 0.0 if zero else 1.0

    def encode(self, activations: Tensor) -> Tensor:
        """Positive and negative parts."""
        return torch.relu(torch.cat([activations, -activations], dim=-1))

    def decode(self, latents: Tensor) -> Tensor:
        """Their difference, or zeros."""
        return self.gain * (latents[..., : self.d_in] - latents[..., self.d_in :])

    def dashboard_url(self) -> str | None:
        """There is none."""


def activations_of(latent_model: Any) -> str:
    """Name of a latent model's activations."""
    return f"{latent_model.hook_point}.hook_sae_acts_post"


# ---------------------------------------------------------------------------------------------------------- references


def module_and_side(model: Any, hook_point: str) -> tuple[nn.Module, str]:
    """Module of a Hugging Face GPT-2 or Llama and the side of it where a hook point lies."""
    if ":" in hook_point:
        path, side = hook_point.split(":")
        return model.get_submodule(path), side
    _, layer, rest = hook_point.split(".", 2)
    is_gpt2 = hasattr(model, "transformer")
    block = (model.transformer.h if is_gpt2 else model.model.layers)[int(layer)]
    return {
        "hook_resid_pre": (block, "in"),
        "hook_resid_post": (block, "out"),
        "hook_mlp_out": (block.mlp, "out"),
        "hook_attn_out": (block.attn if is_gpt2 else block.self_attn, "out"),
        "attn.hook_z": (block.attn.c_proj if is_gpt2 else block.self_attn.o_proj, "in"),
    }[rest]


@contextlib.contextmanager
def hooked(model: Any, hooks: Sequence[tuple[str, Hook]]) -> Iterator[None]:
    """Run a block with functions applied at hook points, in the given order."""

    def after(hook: Hook) -> Any:
        def run(_: nn.Module, __: Any, output: Any) -> Any:
            return (hook(output[0]), *output[1:]) if isinstance(output, tuple) else hook(output)

        return run

    def before(hook: Hook) -> Any:
        return lambda _, args: (hook(args[0]), *args[1:])

    handles = []
    for name, hook in hooks:
        module, side = module_and_side(model, name)
        if side == "in":
            handles.append(module.register_forward_pre_hook(before(hook)))
        else:
            handles.append(module.register_forward_hook(after(hook)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unspliced(tokens: Tensor, special: Sequence[int]) -> Tensor:
    """Positions of one unpadded row that a latent model which skips special tokens leaves alone, ``[pos]``."""
    alone = [i == 0 or int(token) in special for i, token in enumerate(tokens)]
    alone[-1] = False
    return torch.tensor(alone)


def splice_hooks(
    latent_models: Sequence[Any],
    tokens: Tensor,
    special: Sequence[int],
    edit: Callable[[Any, Tensor], Tensor],
) -> list[tuple[str, Hook]]:
    """Hooks that put reconstructions in the place of activations; ``edit`` sees the latents ``[lines, pos, d_sae]``."""
    hooks: list[tuple[str, Hook]] = []
    for item in latent_models:
        alone = unspliced(tokens, special) if item.skips_special_tokens else torch.zeros(len(tokens), dtype=torch.bool)
        held: list[Tensor] = []

        def read(x: Tensor, item: Any = item, alone: Tensor = alone, held: list[Tensor] = held) -> Tensor:
            latents = item.encode(x) * (~alone).to(x.dtype).reshape(1, -1, 1)
            held[:] = [edit(item, latents)]
            return x

        def write(x: Tensor, item: Any = item, alone: Tensor = alone, held: list[Tensor] = held) -> Tensor:
            return torch.where(alone.reshape(1, -1, 1), x, item.decode(held[0]))

        hooks += [(item.hook_point, read), (item.output_hook_point, write)]
    return hooks


@frozen(eq=False)
class ReferenceResult:
    """What the naive definitions give for one row.

    Attributes:
        logits: At the last token, without and with latent models, ``[vocab]``.
        diffs: Logit of the correct answer minus that of the other, for both.
        latents: Activations at the last token, ``[d_sae]``, by activation name.
        ablation: Effect of each latent, ``[d_sae]``.
        attribution: Activation x gradient, ``[d_sae]``.
        everywhere: Activations at every position, ``[pos, d_sae]``.
    """

    logits: tuple[Tensor, Tensor]
    diffs: tuple[float, float]
    latents: Mapping[str, Tensor]
    ablation: Mapping[str, Tensor]
    attribution: Mapping[str, Tensor]
    everywhere: Mapping[str, Tensor]


def last_logits(model: Any, tokens: Tensor, hooks: Sequence[tuple[str, Hook]] = ()) -> Tensor:
    """Logits ``[vocab]`` after the last token of one unpadded row."""
    return logits_in_lines(model, tokens, hooks, 1)[0]


def logits_in_lines(model: Any, tokens: Tensor, hooks: Sequence[tuple[str, Hook]], lines: int) -> Tensor:
    """Logits ``[lines, vocab]`` after the last token of one unpadded row, which each line of a batch has anew."""
    with hooked(model, hooks):
        return model(input_ids=tokens.expand(lines, -1)).logits[:, -1]


def reference_of(
    model: Any, latent_models: Sequence[Any], tokens: Tensor, label: int, answers: Sequence[int], special: Sequence[int]
) -> ReferenceResult:
    """All four analyses of one row; each ablated latent has a line of its own in a batch of whole forwards."""

    def difference(logits: Tensor) -> Tensor:
        return logits[..., answers[label]] - logits[..., answers[1 - label]]

    seen: dict[str, Tensor] = {}

    def keep(item: Any, latents: Tensor) -> Tensor:
        latents.retain_grad()
        seen[activations_of(item)] = latents
        return latents

    clean = last_logits(model, tokens).detach()
    with torch.enable_grad():
        spliced = last_logits(model, tokens, splice_hooks(latent_models, tokens, special, keep))
        difference(spliced).backward()
    attribution = {name: (item.grad * item)[0, -1].detach() for name, item in seen.items()}
    everywhere = {name: item[0].detach() for name, item in seen.items()}
    ablation = {}
    with torch.no_grad():
        for target in latent_models:
            effects = torch.zeros(target.d_sae)
            active = seen[activations_of(target)][0, -1].nonzero().flatten().tolist()

            def zero(item: Any, latents: Tensor, target: Any = target, active: list[int] = active) -> Tensor:
                if item is target:
                    latents[range(len(active)), -1, active] = 0
                return latents

            if active:  # to set another to 0 changes nothing
                hooks = splice_hooks(latent_models, tokens, special, zero)
                without = logits_in_lines(model, tokens, hooks, len(active))
                effects[active] = difference(spliced) - difference(without)
            ablation[activations_of(target)] = effects
    return ReferenceResult(
        logits=(clean, spliced.detach()),
        diffs=(difference(clean).item(), difference(spliced).item()),
        latents={name: item[-1] for name, item in everywhere.items()},
        ablation=ablation,
        attribution=attribution,
        everywhere=everywhere,
    )
