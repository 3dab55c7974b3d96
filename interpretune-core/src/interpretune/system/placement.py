"""Where the weights of a model are that accelerate has placed: on several devices, in memory or on disk.

accelerate's hooks put offloaded weights into a module before its forward and take them out afterwards. In between they
are on the device ``meta``, which holds no numbers. Whoever needs the numbers or the device of a weight asks here.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

HOOK, OWN_FORWARD = "_hf_hook", "_old_forward"
"""Attributes that accelerate sets on a module: its hook, and the forward that the hook's one calls."""
OF_MODELS = frozenset({"hf_device_map", "to", "cuda", "npu", "xpu", "mlu", "musa", "sdaa", "neuron"})
"""Attributes that accelerate sets on a model that it has placed."""
EXPECTED = (
    "Every block must be on a device that computes ('cpu', 0, 'cuda:1'), or offloaded by accelerate, which fills it in "
    "before each forward. Load the model with a device_map that has 'cpu', or 'disk' together with offload_folder, "
    "where it has 'meta', and weights that are tied to others where these are; for a model that was made on meta, load "
    "its weights: load_state_dict(weights, assign=True)."
)


def is_placed(model: nn.Module) -> bool:
    """Whether accelerate has placed the parts of a model, which then must not be moved."""
    return any(HOOK in vars(module) for module in nn.Module.modules(model))


def is_spread(model: nn.Module) -> bool:
    """Whether accelerate runs the parts of a model on several devices."""
    return HOOK in vars(model) and len(devices_of(model)) > 1


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate runs a module; None: wherever its weights are."""
    devices = [item.execution_device for item in _hooks(module) if getattr(item, "execution_device", None) is not None]
    return torch.device(devices[0]) if devices else None


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its tokens and gives its logits: where the first of its weights is when it runs."""
    for module in nn.Module.modules(model):
        for parameter in module.parameters(recurse=False):
            return execution_device(module) or parameter.device
    return torch.device("cpu")


def devices_of(model: nn.Module) -> list[torch.device]:
    """Where the parts of a model run, in the order of their names; the CPU where it has no weights."""
    found = {
        execution_device(module) or parameter.device
        for module in nn.Module.modules(model)
        for parameter in vars(module)["_parameters"].values()  # asked before all replays, hence no generators of torch
        if parameter is not None
    }
    return sorted(found, key=str) or [torch.device("cpu")]


def offloads(module: nn.Module) -> bool:
    """Whether accelerate fills the weights of a module before each forward."""
    return any(_fills(item) for item in _hooks(module))


def is_offloaded(model: nn.Module) -> bool:
    """Whether weights of a model, or of a part of it, are in memory only while it runs."""
    return any(parameter.is_meta for parameter in model.parameters())


@contextlib.contextmanager
def weights_in_place(module: nn.Module) -> Iterator[None]:
    """Let a block read the weights of one module, as a forward of it would find them.

    Args:
        module: A module without parts, or one of whose own weights only are read.
    """
    if not offloads(module):
        yield
        return
    hook = vars(module)[HOOK]
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)


def offloaded_value(module: nn.Module, name: str) -> Tensor | None:
    """The numbers of an offloaded weight of a module, where they are kept; None: it is not offloaded, or they are lost.

    Args:
        module: The module.
        name: Its parameter or buffer.
    """
    for item in _hooks(module):
        if _fills(item):
            kept: Mapping[str, Tensor] = item.weights_map
            with contextlib.suppress(KeyError):
                return kept[name]
    return None


def in_memory(model: nn.Module, name: str) -> Tensor:
    """A parameter by its name in the model; read from where it is kept, if it is offloaded."""
    path, _, own = name.rpartition(".")
    module, parameter = model.get_submodule(path), model.get_parameter(name)
    kept = offloaded_value(module, own) if parameter.is_meta else None
    return parameter if kept is None else kept


def only_placed(module: nn.Module) -> bool:
    """Whether accelerate's hook on a module does nothing but place it, so that the same is computed as without it."""
    hooks = _hooks(module)
    return bool(hooks) and all(type(item).__name__ == "AlignDevicesHook" for item in hooks)


def placed_forward(module: nn.Module) -> Any:
    """The forward that somebody has put on a module itself; None: that of its class runs, maybe within accelerate's."""
    found = vars(module).get("forward")
    if isinstance(found, functools.partial) and only_placed(module):
        found = vars(module).get(OWN_FORWARD)
        if getattr(found, "__func__", None) is type(module).forward:
            return None
    return found


def without_weights(model: nn.Module) -> str | None:
    """What lacks its weights, what was expected and what to do, as sentences; None: nothing lacks them."""
    lacking = [
        path
        for path, module in model.named_modules()
        if any(
            (item.is_meta or offloads(module)) and not _is_kept(module, name)
            for name, item in module.named_parameters(recurse=False)
        )
    ]
    above = [f"{path}." for path, module in model.named_modules() if _fills_parts(module)]
    within = [path for path in lacking if path.startswith(tuple(above))]
    if within:
        return (
            f"Of the {type(model).__name__}, the weights of {within[0]} are filled in with those of a whole block at "
            "once (preload_module_classes of accelerate), which hides where they are and when. Offload the model "
            "without preload_module_classes."
        )
    if not lacking:
        return None
    blocks = list(dict.fromkeys(_block_of(path) for path in lacking))
    told = ", ".join(blocks[:3]) + (f" and {len(blocks) - 3} more" if len(blocks) > 3 else "")
    return (
        f"Of the {type(model).__name__}, {told} {'has' if len(blocks) == 1 else 'have'} weights without values, on the "
        f"device meta, and nothing fills them in before a forward. {EXPECTED}"
    )


def _block_of(path: str) -> str:
    """The block that a module is in, by its number in a list; the module itself where it is in none."""
    found = re.match(r"(.*?\.\d+)(\.|$)", path)
    return found[1] if found else path or "the model itself"


def _hooks(module: nn.Module) -> list[Any]:
    hook = vars(module).get(HOOK)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _fills(hook: Any) -> bool:
    device = getattr(hook, "execution_device", None)
    return (
        bool(getattr(hook, "offload", False))
        and getattr(hook, "weights_map", None) is not None
        and device is not None
        and torch.device(device).type != "meta"
    )


def _is_kept(module: nn.Module, name: str) -> bool:
    """Whether a hook has the numbers of a weight, without reading them."""
    kept = [item.weights_map for item in _hooks(module) if _fills(item)]
    return any(not {name, f"{getattr(item, 'prefix', '')}{name}"}.isdisjoint(item) for item in kept)


def _fills_parts(module: nn.Module) -> bool:
    return any(_fills(item) and item.place_submodules for item in _hooks(module))
