"""Names of parameters as TransformerLens writes them: ``blocks.1.attn.W_Q``, ``ln_final.w``, ``unembed.W_U``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformer_lens.model_bridge import TransformerBridge

MATRICES: dict[tuple[str, ...], str] = {
    ("attn", "q"): "Q",
    ("attn", "k"): "K",
    ("attn", "v"): "V",
    ("attn", "o"): "O",
    ("mlp", "in"): "in",
    ("mlp", "gate"): "gate",
    ("mlp", "out"): "out",
}
"""Components of a block whose weight is ``W_`` and whose bias is ``b_`` with this ending, in place of the last name."""
EMBEDDINGS = {"embed": "E", "pos_embed": "pos", "unembed": "U"}
"""The same for components of the whole model, after their own name."""
GROUPED = ("_W_K", "_W_V", "_b_K", "_b_V")
"""Names in ``HookedTransformer`` of keys and values that several heads share; the names without ``_`` are derived."""


def name_parameters(model: nn.Module, prefix: str = "model.") -> dict[str, tuple[str, ...]]:
    """Real names of what each TransformerLens name stands for.

    What TransformerLens has no name for (the experts of a layer, say) gets the path of its component and its own name:
    ``blocks.0.mlp.experts.down_proj``. A name stands for several parameters where a component has more of them than its
    bias and its weight, for example low-rank adapters. Two names stand for one parameter where embedding and
    unembedding are tied.

    Args:
        model: A ``TransformerBridge`` or a ``HookedTransformer``.
        prefix: What ``named_parameters`` of the model's owner puts before the model's own names.

    Returns:
        Names in ``named_parameters`` of the owner, by TransformerLens name.
    """
    if isinstance(model, TransformerBridge):
        return _bridge_names(model, prefix)
    own = [name for name, _ in model.named_parameters()]
    names: dict[str, tuple[str, ...]] = {name: (prefix + name,) for name in own}
    for name in own:
        path, _, leaf = name.rpartition(".")
        if leaf in GROUPED:
            names[f"{path}.{leaf.removeprefix('_')}"] = (prefix + name,)
    return names


def _bridge_names(bridge: Any, prefix: str) -> dict[str, tuple[str, ...]]:
    # the bridge's own named_parameters walks the wrapped model and gives other names than its owner's
    real = {id(item): prefix + name for name, item in nn.Module.named_parameters(bridge)}
    names: dict[str, list[str]] = {}
    for path, component in components(bridge):
        for name, parameter in nn.Module.named_parameters(component):
            written = _written(path, is_bias=name.rpartition(".")[2] == "bias")
            if written is not None and id(parameter) in real:
                names.setdefault(written, []).append(real[id(parameter)])
    named = {name for found in names.values() for name in found}
    for name in [name for name in real.values() if name not in named]:
        names[name.removeprefix(prefix).replace("_original_component.", "")] = [name]
    return {written: tuple(found) for written, found in names.items()}


def components(bridge: Any) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """The components of a bridge and their paths: ``("blocks", "0", "attn", "q")``."""
    for name in bridge.adapter.component_mapping:
        component = getattr(bridge, name, None)
        if isinstance(component, nn.ModuleList):
            for index, block in enumerate(component):
                yield from _within((name, str(index)), block)
        elif isinstance(component, nn.Module):
            yield from _within((name,), component)


def _within(path: tuple[str, ...], component: nn.Module) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    yield path, component
    for name in getattr(component, "submodules", {}):
        inner = getattr(component, name, None)
        if isinstance(inner, nn.Module):
            yield from _within((*path, name), inner)


def _written(path: tuple[str, ...], *, is_bias: bool) -> str | None:
    """TransformerLens's name for the weight or the bias of a component; None: it has none for it."""
    letter = "b" if is_bias else "W"
    if path[-2:] in MATRICES:
        return ".".join((*path[:-1], f"{letter}_{MATRICES[path[-2:]]}"))
    if len(path) == 1 and path[0] in EMBEDDINGS:
        return f"{path[0]}.{letter}_{EMBEDDINGS[path[0]]}"
    if path[-1].startswith("ln") or path[-1].endswith(("_norm", "_ln")):
        return ".".join((*path, letter.lower()))
    return None
