"""Loading with quantized weights through bitsandbytes, and what such models cannot do."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interpretune.errors import ConfigurationError, ModelLoadError

if TYPE_CHECKING:
    from interpretune.config.module import ITConfig

PACKAGES = ("bitsandbytes", "accelerate")
BITS = ("load_in_4bit", "load_in_8bit")
BLOCK = 64
"""How many values bitsandbytes quantizes together by default."""


def quantized_loading(cfg: ITConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that quantize the weights while they are loaded; none by default.

    Raises:
        ConfigurationError: A package is missing, an argument is unknown, or the source cannot be quantized.
        ModelLoadError: bitsandbytes does not work here.
    """
    wanted = cfg.hf_from_pretrained_cfg.quantization
    if wanted is None:
        return {}
    if cfg.hf_from_pretrained_cfg.pretrained_kwargs.get("quantization_config") is not None:
        raise ConfigurationError(
            "hf_from_pretrained_cfg has both quantization and pretrained_kwargs['quantization_config'], which say the "
            "same in two ways. Drop one of them."
        )
    _check_source(cfg)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"hf_from_pretrained_cfg.quantization needs {' and '.join(missing)}, which is not installed: "
            '`pip install "interpretune-core[quantization]"`.'
        )
    from transformers import BitsAndBytesConfig

    known = {name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"}
    unknown = sorted(wanted.keys() - known)
    if unknown or sum(bool(wanted.get(name)) for name in BITS) != 1:
        raise ConfigurationError(
            f"hf_from_pretrained_cfg.quantization is {wanted!r}"
            + (f", and BitsAndBytesConfig has no argument {', '.join(map(repr, unknown))}" if unknown else "")
            + ". Give one of load_in_4bit=True and load_in_8bit=True, and further arguments of "
            "transformers.BitsAndBytesConfig as you need them."
        )
    try:
        quantization = BitsAndBytesConfig(**wanted)
    except (TypeError, ValueError, AttributeError) as error:  # AttributeError: a dtype that torch does not have
        raise ConfigurationError(f"hf_from_pretrained_cfg.quantization: {error}.") from error
    _try_on(device, four_bits=bool(wanted.get("load_in_4bit")))
    return {"quantization_config": quantization, "device_map": {"": str(device)}}


def has_integer_weights(model: nn.Module) -> bool:
    """Whether weights are stored as integers, as quantization leaves them."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def check_trainable(model: nn.Module, cfg: ITConfig) -> None:
    """Refuse to fine-tune quantized weights themselves, without LoRA matrices (``ConfigurationError``)."""
    if cfg.freezes_model or cfg.lora is not None or getattr(model, "peft_config", None):
        return
    if has_integer_weights(model):
        raise ConfigurationError(
            f"The weights of {type(model).__name__} are quantized to integers, which cannot be trained. Train LoRA "
            "matrices beside them (ITConfig(lora={'r': 8})), load the model without quantization, or drop "
            "optimizer_init (freeze=True)."
        )


def rounds_activations(model: nn.Module) -> bool:
    """Whether activations are rounded to 8 bits together with the weights, as bitsandbytes' 8-bit layers do."""
    bitsandbytes = sys.modules.get("bitsandbytes")
    return bitsandbytes is not None and any(isinstance(m, bitsandbytes.nn.Linear8bitLt) for m in model.modules())


def keep_weights_in_place(model: nn.Module) -> None:
    """Keep 4-bit weights on a CPU as they were quantized.

    On some CPUs, bitsandbytes repacks them in the first forward in eval mode, for a kernel without a backward. From
    then on, gradients of everything below such a layer are silently lost, and results are in bfloat16. That cannot be
    undone, because the scales are rounded; if it has already happened, a warning says so.
    """
    repacked = []
    for name, module in model.named_modules():
        if "support_avx512bf16_for_cpu" in vars(module):  # hasattr is true of wrappers too
            module.support_avx512bf16_for_cpu = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                repacked.append(name)
    if repacked:
        warnings.warn(
            f"bitsandbytes has repacked the 4-bit weights of {len(repacked)} layers ({repacked[0]}, ...) in an earlier "
            "forward of this model on the CPU: gradients of what lies below them are wrong. Load the model anew, and "
            "hand it over before its first forward.",
            UserWarning,
            stacklevel=3,
        )


def _check_source(cfg: ITConfig) -> None:
    if cfg.hf_model is not None or cfg.hf_config is not None:
        given = "hf_model" if cfg.hf_model is not None else "hf_config"
        raise ConfigurationError(
            f"hf_from_pretrained_cfg.quantization and {given} are both set; weights are quantized while they are read. "
            f"Give model_name_or_path instead of {given}: a hub id, or a folder written by save_pretrained."
        )
    if cfg.model_name_or_path.lower().endswith(".gguf"):
        raise ConfigurationError(
            f"hf_from_pretrained_cfg.quantization is set, and {cfg.model_name_or_path} is a GGUF file, whose weights "
            "are quantized in their own way and are read as floating-point numbers. Drop quantization, or name the "
            "original model."
        )


def _try_on(device: torch.device, *, four_bits: bool) -> None:
    """Try to quantize one block on the device: support depends on the build, the platform and the device."""
    try:
        from bitsandbytes import functional

        sample = torch.zeros(BLOCK, BLOCK, device=device, dtype=torch.float16)
        if four_bits:
            functional.quantize_4bit(sample, blocksize=BLOCK)
        else:
            functional.int8_vectorwise_quant(sample)
    except Exception as error:  # a library for another platform, a missing kernel, a device that is not there
        bits = 4 if four_bits else 8
        raise ModelLoadError(
            f"bitsandbytes cannot quantize to {bits} bits on the device {str(device)!r} of this machine: "
            f"{type(error).__name__}: {error}. Drop hf_from_pretrained_cfg.quantization, or set ITConfig(device=...) "
            "to a device that it supports."
        ) from error
