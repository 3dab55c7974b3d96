"""Slow, obvious references: a plain Hugging Face model, torch hooks, and unpadded rows.

Rows of one length may share a forward, since the plain model computes each by itself: what is asked of many edits is
asked of copies of the rows, each with an edit of its own. Nothing here knows of backends. Hook points have canonical
names; where they are in the model is written down for the two architectures that the kit writes, and for what is built
like them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interpretune.activations.hook_names import canonical, split_layer
from interpretune.latents.latent_model import activation_name, read_points, reconstruct, written_points
from interpretune.testing.rule import RuleSkipped

Hook = Callable[[Tensor], Tensor]
Hooks = Sequence[tuple[str, Hook]]
LatentChanges = Mapping[str, Mapping[int, float]]
"""Values of latents: ``{activation name: {latent: value}}``."""

ANSWER = -1
"""The answer position of one unpadded row."""

_LLAMA = {
    "resid_pre": ("", "in"),
    "attn_in": ("input_layernorm", "out"),
    "attn_z": ("self_attn.o_proj", "in"),
    "attn_out": ("self_attn", "out"),
    "mlp_in": ("post_attention_layernorm", "out"),
    "mlp_act": ("mlp.down_proj", "in"),
    "mlp_out": ("mlp", "out"),
    "resid_post": ("", "out"),
}
_GPT2 = {
    "resid_pre": ("", "in"),
    "attn_in": ("ln_1", "out"),
    "attn_z": ("attn.c_proj", "in"),
    "attn_out": ("attn", "out"),
    "mlp_in": ("ln_2", "out"),
    "mlp_act": ("mlp.c_proj", "in"),
    "mlp_out": ("mlp", "out"),
    "resid_post": ("", "out"),
}
_OUTSIDE = {
    "llama": {"embed": "model.embed_tokens", "final_norm": "model.norm", "logits": "lm_head"},
    "gpt2": {"embed": "transformer.wte", "final_norm": "transformer.ln_f", "logits": "lm_head"},
}
_BLOCKS = {"llama": ("model.layers", _LLAMA), "gpt2": ("transformer.h", _GPT2)}


def plain_model(folder: Path) -> Any:
    """The Hugging Face model of a folder in float32, in evaluation mode and frozen."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return model.eval().requires_grad_(False)


def kind_of(model: Any) -> str:
    """Which of the known architectures a model has."""
    kind = {"model.layers": "llama", "transformer.h": "gpt2"}
    for path, name in kind.items():
        with contextlib.suppress(AttributeError):
            block = model.get_submodule(f"{path}.0")
            if all(hasattr(block, member.split(".")[0]) for member, _ in _BLOCKS[name][1].values() if member):
                return name
    raise RuleSkipped(f"the reference does not know where the hook points of a {type(model).__name__} are")


def n_layers(model: Any) -> int:
    """Number of blocks."""
    return int(model.config.num_hidden_layers)


@contextlib.contextmanager
def hooked(model: Any, hooks: Hooks) -> Iterator[None]:
    """Run a block with functions applied at hook points, in the given order."""
    handles: list[Any] = []
    try:
        for name, hook in hooks:
            handles += _attach(model, canonical(name), hook)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(model: Any, name: str, hook: Hook) -> list[Any]:
    kind, found = kind_of(model), split_layer(name)
    if found is None:
        return [_after(model.get_submodule(_OUTSIDE[kind][name]), hook)]
    path, places = _BLOCKS[kind]
    layer, place = found
    block = model.get_submodule(f"{path}.{layer}")
    if place == "resid_mid":
        return _between(block, block.get_submodule(places["attn_out"][0]), hook)
    member, side = places[place]
    module = block.get_submodule(member) if member else block
    return [_before(module, hook) if side == "in" else _after(module, hook)]


def _after(module: nn.Module, hook: Hook) -> Any:
    def run(_: nn.Module, __: Any, output: Any) -> Any:
        return (hook(output[0]), *output[1:]) if isinstance(output, tuple) else hook(output)

    return module.register_forward_hook(run)


def _before(module: nn.Module, hook: Hook) -> Any:
    return module.register_forward_pre_hook(lambda _, args: (hook(args[0]), *args[1:]))


def _between(block: nn.Module, attention: nn.Module, hook: Hook) -> list[Any]:
    """The residual stream after attention: what attention adds is changed by what the stream shall change by."""
    held: list[Tensor] = []

    def note(activations: Tensor) -> Tensor:
        held[:] = [activations]
        return activations

    return [_before(block, note), _after(attention, lambda added: hook(held[0] + added) - held[0])]


def logits_of(model: Any, tokens: Tensor, hooks: Hooks = ()) -> Tensor:
    """Logits ``[pos, vocab]`` of one unpadded row ``[pos]``, or ``[n, pos, vocab]`` of rows of one length."""
    with hooked(model, hooks):
        logits: Tensor = model(input_ids=tokens.reshape(-1, tokens.shape[-1]), use_cache=False).logits
    return logits.reshape(*tokens.shape, -1)


def logits_of_each(model: Any, rows: Tensor, cases: Sequence[Hooks], longest: int = 256) -> Tensor:
    """Logits ``[case, row, pos, vocab]`` of unpadded rows ``[row, pos]`` with the hooks of each case.

    Args:
        model: The plain model.
        rows: Tokens.
        cases: Hooks; each is given ``[row, pos, width]``, as in a forward of these rows alone.
        longest: Rows in a forward; the cases are shared among as many forwards as it takes.
    """
    at_once = max(1, longest // len(rows))
    found = []
    for start in range(0, len(cases), at_once):
        some = cases[start : start + at_once]
        names = dict.fromkeys(name for hooks in some for name, _ in hooks)
        hooks = [(name, _for_each([_in_turn(hooks, name) for hooks in some])) for name in names]
        found.append(logits_of(model, rows.repeat(len(some), 1), hooks).unflatten(0, (len(some), len(rows))))
    return torch.cat(found)


def _in_turn(hooks: Hooks, name: str) -> list[Hook]:
    return [hook for other, hook in hooks if other == name]


def _for_each(cases: Sequence[Sequence[Hook]]) -> Hook:
    """A hook that gives each case its own part of the rows."""

    def run(activations: Tensor) -> Tensor:
        parts = list(activations.chunk(len(cases)))
        for i, hooks in enumerate(cases):
            for hook in hooks:
                parts[i] = hook(parts[i])
        return torch.cat(parts)

    return run


@torch.no_grad()
def activations_of(model: Any, tokens: Tensor, names: Sequence[str], hooks: Hooks = ()) -> dict[str, Tensor]:
    """Activations ``[pos, width]`` of one unpadded row at hook points, ``[n, pos, width]`` of rows of one length."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        def note(activations: Tensor) -> Tensor:
            seen[name] = activations.reshape(*tokens.shape, -1).clone()
            return activations

        return note

    logits_of(model, tokens, [*hooks, *((name, keep(name)) for name in names)])
    return seen


def unspliced(tokens: Tensor, special: Sequence[int]) -> Tensor:
    """Positions of one unpadded row that a latent model which skips special tokens leaves alone, ``[pos]``."""
    alone = torch.tensor([i == 0 or int(token) in special for i, token in enumerate(tokens)])
    alone[ANSWER] = False
    return alone


def splice_hooks(
    model: Any,
    latent_models: Sequence[Any],
    tokens: Tensor,
    special: Sequence[int],
    edit: Callable[[Any, Tensor], Tensor],
) -> list[tuple[str, Hook]]:
    """Hooks that put reconstructions in the place of activations; ``edit`` sees the latents ``[n, pos, d_sae]``.

    A latent model that reads at several hook points reads them here, in a forward with those before it in place.

    Args:
        model: The plain model.
        latent_models: What is spliced in.
        tokens: One unpadded row ``[pos]``, or ``[n, pos]``, the same row again and again.
        special: Ids of special tokens.
        edit: Gives the latents that are decoded.
    """
    hooks: list[tuple[str, Hook]] = []
    written: set[str] = set()
    row = tokens.reshape(-1, tokens.shape[-1])[0]
    for item in latent_models:
        alone = unspliced(row, special) if item.skips_special_tokens else torch.zeros(len(row), dtype=torch.bool)
        reads, writes = read_points(item), written_points(item)
        held: list[Tensor] = []

        def read(x: Tensor, item: Any = item, alone: Tensor = alone, held: list[Tensor] = held) -> Tensor:
            latents = edit(item, item.encode(x) * (~alone).to(x.dtype).reshape(1, -1, 1))
            held[:] = reconstruct(item, latents, x).chunk(len(written_points(item)), dim=-1)
            return x

        def write(i: int, alone: Tensor, held: list[Tensor], adds: bool) -> Hook:
            return lambda x: torch.where(alone.reshape(1, -1, 1), x, x + held[i] if adds else held[i])

        if len(reads) == 1:
            hooks.append((reads[0], read))
        else:
            seen = activations_of(model, tokens, reads, hooks)
            together = torch.cat([seen[name] for name in reads], dim=-1)
            read(together.reshape(-1, *together.shape[-2:]))
        others = written - set(map(canonical, reads))
        hooks += [(name, write(i, alone, held, canonical(name) in others)) for i, name in enumerate(writes)]
        written.update(map(canonical, writes))
    return hooks


def spliced_run(
    model: Any, latent_models: Sequence[Any], tokens: Tensor, special: Sequence[int], objective: Any = None
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits ``[vocab]`` at the answer, latents ``[pos, d_sae]``, and the gradients of an objective of the logits."""
    seen: dict[str, Tensor] = {}

    def keep(item: Any, latents: Tensor) -> Tensor:
        leaf = latents if latents.requires_grad else latents.requires_grad_()
        leaf.retain_grad()
        seen[activation_name(item)] = leaf
        return leaf

    with torch.enable_grad():
        logits = logits_of(model, tokens, splice_hooks(model, latent_models, tokens, special, keep))[ANSWER]
        if objective is not None:
            objective(logits).backward()
    gradients = {name: item.grad[0] for name, item in seen.items() if item.grad is not None}
    return logits.detach(), {name: item[0].detach() for name, item in seen.items()}, gradients


@torch.no_grad()
def ablated_logits(
    model: Any,
    latent_models: Sequence[Any],
    tokens: Tensor,
    special: Sequence[int],
    cases: Sequence[LatentChanges],
    position: int = ANSWER,
) -> Tensor:
    """Logits ``[case, vocab]`` of one unpadded row at one position, where latents are set to values in each case.

    Args:
        model: The plain model.
        latent_models: What is spliced in.
        tokens: The row, ``[pos]``.
        special: Ids of special tokens.
        cases: What is set.
        position: Where.
    """

    def change(item: Any, latents: Tensor) -> Tensor:
        latents = latents.clone()
        for i, changes in enumerate(cases):
            for latent, value in changes.get(activation_name(item), {}).items():
                latents[i, position, latent] = value
        return latents

    copies = tokens.repeat(len(cases), 1)
    return logits_of(model, copies, splice_hooks(model, latent_models, copies, special, change))[:, position]
