"""Low-rank adaptation (LoRA) through peft: the model keeps its class and the names of its modules."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interpretune.errors import ConfigurationError, ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from interpretune.config.module import ITConfig

CLASSIFIERS = "Classification"
"""transformers classes whose names end like this have a head whose weights no language model provides."""
SHOWN = 3
"""How many parameter names an error message lists."""
INSTALL = '`pip install -U "interpretune-core[lora]"`'


def add_lora(model: PreTrainedModel, cfg: ITConfig) -> None:
    """Follow ``ITConfig.lora``: add new or saved LoRA matrices to the model, whose weights are frozen.

    A classification head is usually new, so it is trained as a whole and saved with the matrices.

    Raises:
        ConfigurationError: peft is missing, or does not take the arguments; target modules do not exist.
        ModelLoadError: A saved adapter cannot be loaded.
    """
    lora = cfg.lora
    if importlib.util.find_spec("peft") is None:
        raise ConfigurationError(f"ITConfig.lora needs the package peft: {INSTALL}.")
    if isinstance(lora, (str, Path)):
        _load(model, str(Path(lora).expanduser()), trainable=not cfg.freezes_model)
    else:
        _make(model, lora)
    for name, parameter in model.named_parameters():
        # steps of an optimizer are smaller than what half precision can tell apart
        if parameter.requires_grad and ".lora_" in name and parameter.element_size() < torch.float32.itemsize:
            parameter.data = parameter.data.float()


def merge_lora(model: PreTrainedModel) -> None:
    """Add the LoRA matrices to the weights and remove the LoRA adapters. The ordinary model computes the same.

    Raises:
        ConfigurationError: The weights are quantized, and merging would round the matrices away.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    from interpretune.models.quantization import has_integer_weights

    if has_integer_weights(model):
        raise ConfigurationError(
            f"The weights of {type(model).__name__} are quantized: merging LoRA matrices into them would round most of "
            "what was learnt away. Load the model without quantization and merge there."
        )
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    del model.peft_config
    model._hf_peft_config_loaded = False


def _make(model: PreTrainedModel, lora: Any) -> None:
    from peft import LoraConfig, PeftConfig

    if isinstance(lora, Mapping):
        try:
            config = LoraConfig(**lora)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"ITConfig.lora: {str(error).rstrip('.')}. It takes the arguments of peft.LoraConfig."
            ) from error
    elif isinstance(lora, PeftConfig):
        config = copy.deepcopy(lora)  # peft writes into it
    else:
        raise ConfigurationError(
            f"ITConfig.lora is a {type(lora).__name__}. Give the arguments of peft.LoraConfig as a dictionary, a "
            "LoraConfig, or the folder of a saved adapter."
        )
    _check_targets(model, config.target_modules)
    heads = [*_fresh_heads(model)]
    if heads:
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *heads})
    try:
        with _orientation_is_found_out():
            model.add_adapter(config)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"ITConfig.lora cannot be added to {type(model).__name__}: {str(error).rstrip('.')}. Its linear modules "
            f"are {', '.join(_linear_modules(model))}. If the installed peft is too old: {INSTALL}."
        ) from error


def _load(model: PreTrainedModel, source: str, *, trainable: bool) -> None:
    try:
        with _orientation_is_found_out():
            info = model.load_adapter(source, is_trainable=trainable, use_safetensors=True)
    except Exception as error:  # as many kinds as for a model: hub, files, versions, shapes
        what = "folder" if Path(source).is_dir() else "hub id"
        raise ModelLoadError(
            f"The LoRA adapter {source!r} ({what}) cannot be loaded into {type(model).__name__}: "
            f"{type(error).__name__}: {str(error).rstrip('.')}. ITConfig.lora takes a folder that "
            "model.save_pretrained wrote while the model had an adapter, and the model must be the one that it was "
            "trained with."
        ) from error
    astray = sorted({*getattr(info, "missing_keys", ()), *getattr(info, "unexpected_keys", ())})
    if astray:
        raise ModelLoadError(
            f"The LoRA adapter {source!r} belongs to another model than this {type(model).__name__}: only one of the "
            f"two has {', '.join(astray[:SHOWN])}{', ...' if len(astray) > SHOWN else ''}. Load the model that it was "
            "trained with."
        )


@contextlib.contextmanager
def _orientation_is_found_out() -> Iterator[None]:
    """Silence peft's warning that GPT-2 stores its weights transposed; peft handles that itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        yield


def _check_targets(model: nn.Module, targets: Any) -> None:
    """Check that all target modules exist; peft only needs one of them."""
    if targets is None or isinstance(targets, str):
        return
    names = [name for name, _ in model.named_modules()]
    absent = sorted(
        target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)
    )
    if absent:
        raise ConfigurationError(
            f"ITConfig.lora names target_modules that {type(model).__name__} does not have: {', '.join(absent)}. Its "
            f"linear modules are {', '.join(_linear_modules(model))}; without target_modules, peft chooses for the "
            "architectures that it knows."
        )


def _linear_modules(model: nn.Module) -> list[str]:
    """Last parts of the names of modules that LoRA can adapt; GPT-2's ``Conv1D`` has ``nf`` outputs."""
    found = (name for name, module in model.named_modules() if hasattr(module, "in_features") or hasattr(module, "nf"))
    return sorted({name.rpartition(".")[2] for name in found})


def _fresh_heads(model: PreTrainedModel) -> Iterator[str]:
    if type(model).__name__.endswith(CLASSIFIERS):
        for name, child in model.named_children():
            if name != model.base_model_prefix and any(True for _ in child.parameters()):
                yield name
