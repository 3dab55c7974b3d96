"""Which parameters of a bridge are trained: those that a forward uses and that the wrapped model has too."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attrs import frozen
from torch import nn

from interpretune import ModelLoadError
from interpretune_tlens.parameter_names import components

KINDS = ("weight", "bias")


@frozen
class Inventory:
    """What a Hugging Face model consists of before TransformerLens wraps it; it keeps all of it, so that ids stay.

    Attributes:
        parameters: Its parameters by id.
        modules: Its modules and their names by id.
    """

    parameters: dict[int, nn.Parameter]
    modules: dict[int, tuple[str, nn.Module]]

    @classmethod
    def of(cls, model: nn.Module) -> Inventory:
        """Take stock of a model."""
        return cls(
            {id(item): item for item in model.parameters()},
            {id(item): (name, item) for name, item in model.named_modules()},
        )


def freeze_joint_parameters(bridge: Any, before: Inventory) -> None:
    """Freeze the joint matrices of attention and of gated layers that TransformerLens has split.

    Some models have one matrix for queries, keys and values. The bridge computes with three parameters of its own
    instead, views of the matrix or copies, and never uses the matrix again: left trainable, it would get no gradient.
    The pieces are trained where the matrix was to be.

    Args:
        bridge: A bridge whose weights have not been processed.
        before: What its model was before it was wrapped.

    Raises:
        ModelLoadError: A joint matrix has an adapter (LoRA), which the bridge would not compute.
    """
    joint = {}
    for _, component in components(bridge):
        inner = [getattr(component, name, None) for name in getattr(component, "submodules", {})]
        wrapped = [getattr(item, "original_component", None) for item in inner]
        new = [item for item in wrapped if isinstance(item, nn.Module) and id(item) not in before.modules]
        for kind in KINDS:
            pieces = [item for module in new if isinstance(item := getattr(module, kind, None), nn.Parameter)]
            size = sum(item.numel() for item in pieces)
            for name, item in component.named_parameters():
                if id(item) in before.parameters and name.rpartition(".")[2] == kind and item.numel() == size:
                    joint[id(item)] = (item, pieces)
    _check_adapters(before, joint)
    for matrix, pieces in joint.values():
        for piece in pieces:
            piece.requires_grad_(matrix.requires_grad)
        matrix.requires_grad_(False)


def freeze_added_parameters(before: Inventory) -> None:
    """Freeze what TransformerLens has put into modules of the wrapped model, which could not take it back.

    An unembedding without bias gets a bias of zeros. Trained, it would make a model that Hugging Face's class cannot
    hold, and another one than the same training without TransformerLens.

    Args:
        before: What the model was before it was wrapped.
    """
    for _, module in before.modules.values():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in before.parameters:
                parameter.requires_grad_(False)


def _check_adapters(before: Inventory, joint: Collection[int]) -> None:
    for name, module in before.modules.values():
        adapted = getattr(module, "base_layer", None)  # so peft calls what an adapter's layer adapts
        if isinstance(adapted, nn.Module) and any(id(item) in joint for item in adapted.parameters()):
            raise ModelLoadError(
                f"The layer {name} has an adapter, and TransformerLens splits this layer into several that the adapter "
                "does not reach: it would be lost. Adapt other layers (target_modules), or stack ('core',) without "
                "transformer_lens."
            )
