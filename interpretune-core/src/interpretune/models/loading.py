"""Loads Hugging Face causal models from a hub id, a local folder, a GGUF file, memory, or a configuration alone."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from interpretune.config.checked import check_argument
from interpretune.errors import ConfigurationError, ModelLoadError
from interpretune.models.lora import add_lora
from interpretune.models.quantization import check_trainable, keep_weights_in_place, quantized_loading
from interpretune.system.cache_folder import build_once, cache_root
from interpretune.system.compiled import compiled_in_place
from interpretune.system.placement import input_device, is_offloaded, is_placed, without_weights
from interpretune.system.plain_files import file_sha256
from interpretune.system.put_back import random_state_put_back

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from interpretune.config.module import ITConfig


def resolve_source(name_or_path: str, cache_dir: str | Path | None = None) -> str:
    """Where ``from_pretrained`` should look: GGUF files are converted once, anything else is returned unchanged.

    Raises:
        ModelLoadError: A GGUF file or a folder is missing, or a file cannot be converted.
    """
    if not name_or_path.lower().endswith(".gguf"):
        if not _may_be_a_hub_id(name_or_path) and not Path(name_or_path).expanduser().exists():
            raise ModelLoadError(
                f"model_name_or_path is {name_or_path!r}, and no such folder exists. Give a folder with a saved model, "
                "a GGUF file, or a hub id (owner/name)."
            )
        return name_or_path
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise ModelLoadError(f"The GGUF file {path} does not exist.")
    target = cache_root(cache_dir) / "models" / f"{path.stem}-{file_sha256(path)[:12]}"
    return str(build_once(target, lambda folder: convert_gguf(path, folder)))


def _may_be_a_hub_id(name_or_path: str) -> bool:
    return (
        name_or_path.count("/") <= 1
        and not name_or_path.startswith(("/", "./", "../", "~"))
        and "\\" not in name_or_path
    )


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as safetensors in float32 (unreadable: ``ModelLoadError``)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise ModelLoadError(f'Reading {path} needs the package gguf: `pip install "interpretune-core[gguf]"`.')
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # readers of a damaged file raise whatever they stumble on, struct.error for one
        raise ModelLoadError(
            f"The GGUF file {path} cannot be read: {type(error).__name__}: {error}. Is it whole, and is its "
            "architecture one that transformers can load?"
        ) from error
    _forget_quantization(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget_quantization(model: PreTrainedModel) -> None:
    """Remove the marks of the GGUF quantizer: the weights are plain tensors now, but saving would fail."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if "quantization_config" in vars(config):
            del config.quantization_config


def load_hf_model(cfg: ITConfig) -> PreTrainedModel:
    """Load the Hugging Face model of a module's configuration.

    Sources, in this order: ``hf_model`` (already in memory), ``hf_config`` (random weights),
    ``model_name_or_path``.

    Returns:
        The model in eval mode, on the device of the configuration.

    Raises:
        ConfigurationError: No source, or an unknown class or dtype.
        ModelLoadError: The source cannot be reached or read.
    """
    model_class = _model_class(cfg)
    quantized = quantized_loading(cfg, device_of(cfg))
    with random_state_put_back():  # of new weights: a whole model, a classification head, LoRA matrices
        torch.manual_seed(cfg.seed)
        if cfg.hf_model is not None:
            model = cast("PreTrainedModel", compiled_in_place(cfg.hf_model))
        elif cfg.hf_config is not None:
            config = copy.deepcopy(cfg.hf_config)
            if _classifies(cfg):
                config.num_labels = cfg.num_labels
            build = getattr(model_class, "from_config", None) or getattr(model_class, "_from_config", model_class)
            model = build(config)
        elif cfg.model_name_or_path:
            model = _from_pretrained(cfg, model_class, quantized)
        else:
            raise ConfigurationError(
                "No model is configured. Set model_name_or_path (hub id, folder or GGUF file), hf_model or hf_config."
            )
        for name, token_id in cfg.tokenizer_id_overrides.items():
            setattr(model.config, name, token_id)
        _check_labels(model, cfg)
        keep_weights_in_place(model)
        if lacking := without_weights(model):
            raise ModelLoadError(lacking)
        mapped = _has_device_map(model, cfg)
        if mapped or is_placed(model):
            _check_placement(model, cfg)
        elif not quantized:
            model = model.to(device_of(cfg))
        if cfg.lora is not None:
            add_lora(model, cfg)
    check_trainable(model, cfg)
    return model.eval()


def _has_device_map(model: PreTrainedModel, cfg: ITConfig) -> bool:
    """Whether somebody has said where the model is to be, be it on one device."""
    from_here = cfg.hf_model is None and cfg.hf_config is None
    asked = cfg.hf_from_pretrained_cfg.pretrained_kwargs.get("device_map") if from_here else None
    return asked is not None or hasattr(model, "hf_device_map")


def _check_placement(model: PreTrainedModel, cfg: ITConfig) -> None:
    """Refuse a second device beside a device map, and training of weights that are in memory during forwards only."""
    at = input_device(model)
    if cfg.device is not None and not _is_same(torch.device(cfg.device), at):
        raise ConfigurationError(
            f"ITConfig.device is {str(cfg.device)!r}, and a device_map has placed the {type(model).__name__}, which "
            f"takes its tokens on {at}. Drop device, or the device_map."
        )
    if is_offloaded(model) and not (cfg.freezes_model and cfg.lora is None):
        raise ConfigurationError(
            f"Weights of the {type(model).__name__} are offloaded: they are in memory during a forward only, and what "
            "an optimizer does to them would be lost. Train without offloading, in a smaller dtype or quantized with "
            "LoRA (ITConfig(lora={'r': 8})), or drop optimizer_init and lora (freeze=True)."
        )


def _is_same(one: torch.device, other: torch.device) -> bool:
    """Whether two names can mean one device; a number counts where both have one."""
    return one.type == other.type and (None in (one.index, other.index) or one.index == other.index)


def _classifies(cfg: ITConfig) -> bool:
    return cfg.num_labels > 0 and (cfg.hf_from_pretrained_cfg.model_head or "").endswith("Classification")


def _check_labels(model: PreTrainedModel, cfg: ITConfig) -> None:
    """Check that a classification head that was already in memory has the configured size."""
    is_classifier = type(model).__name__.endswith("Classification")
    if is_classifier and cfg.num_labels > 0 and model.config.num_labels != cfg.num_labels:
        raise ConfigurationError(
            f"num_labels is {cfg.num_labels}, and the head of the {type(model).__name__} has {model.config.num_labels} "
            f"labels. Make hf_model with num_labels={cfg.num_labels}."
        )


def device_of(cfg: ITConfig) -> torch.device:
    """The configured device, otherwise CUDA if available, otherwise the CPU.

    Of several processes on one machine (``LOCAL_RANK``, as ``torchrun`` sets it) each takes a GPU of its own, in turn.

    Raises:
        ConfigurationError: torch knows no device of this name.
    """
    try:
        found = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigurationError(f"ITConfig.device is {cfg.device!r}, which is no device: {error}") from error
    local = os.environ.get("LOCAL_RANK", "")
    if found == torch.device("cuda") and local.isdecimal() and torch.cuda.is_available():
        return torch.device("cuda", int(local) % torch.cuda.device_count())
    return found


def _from_pretrained(cfg: ITConfig, model_class: Any, quantized: Mapping[str, Any]) -> PreTrainedModel:
    source = resolve_source(cfg.model_name_or_path, cfg.cache_dir)
    options = dict(cfg.hf_from_pretrained_cfg.pretrained_kwargs)
    dtype = options.pop("torch_dtype", options.pop("dtype", torch.float32))
    options["dtype"] = _dtype(dtype)
    given = {name: value for name, value in options.items() if value is not None or name not in quantized}
    options = {**quantized, **given}  # a device map of one's own goes before that of one device
    if _classifies(cfg):
        options["num_labels"] = cfg.num_labels
    try:
        model: PreTrainedModel = model_class.from_pretrained(source, trust_remote_code=cfg.trust_remote_code, **options)
    except Exception as error:  # hub, parser and file errors have many kinds; all mean that the model cannot be had
        what = "folder" if Path(source).expanduser().is_dir() else "hub id"
        raise ModelLoadError(
            f"The model {source!r} ({what}) cannot be loaded: {type(error).__name__}: {error}. Without a network, give "
            "`model_name_or_path` a local folder (saved with `save_pretrained`) or a GGUF file; with one, check the id "
            "and your access to it."
        ) from error
    return model


def _dtype(dtype: Any) -> Any:
    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ConfigurationError(f"Unknown dtype {dtype!r}; use a name such as 'float32' or 'bfloat16'.")
    return found


def _model_class(cfg: ITConfig) -> Any:
    path = cfg.hf_from_pretrained_cfg.model_head or "transformers.AutoModelForCausalLM"
    return import_object(path, "hf_from_pretrained_cfg.model_head")


def import_object(path: str, where: str) -> Any:
    """Import ``package.module.Name``, or raise a ``ConfigurationError`` that names the setting ``where``."""
    check_argument(where, path, str)
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{where} names {path!r}, which cannot be imported: {error}.") from error
