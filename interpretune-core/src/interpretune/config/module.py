"""Configuration of the module: model loading, generation, optimizers, and automatic composition."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from interpretune.config.checked import Between, CheckedConfig, Seed
from interpretune.config.memory_profile import MemoryProfileCfg
from interpretune.config.shared import ITSharedConfig

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel

    from interpretune.latents.latent_model import LatentModel


@dataclass(kw_only=True)
class HFFromPretrainedConfig(CheckedConfig, checks_types=True):
    """How a Hugging Face model is loaded.

    Attributes:
        pretrained_kwargs: Passed to ``from_pretrained`` (``dtype`` or ``torch_dtype`` as a name works).
        model_head: Dotted path of the model class; None: ``transformers.AutoModelForCausalLM``.
        quantization: Arguments of ``transformers.BitsAndBytesConfig``, for example ``{"load_in_4bit": True}``; None:
            load the weights as they are.
    """

    pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    model_head: str | None = None
    quantization: dict[str, Any] | None = None


@dataclass(kw_only=True)
class HFGenerationConfig(CheckedConfig, checks_types=True):
    """Arguments of generation with a Hugging Face model.

    Attributes:
        max_new_tokens: Tokens to generate.
        do_sample: Sample instead of taking the likeliest token.
        model_kwargs: Further arguments of ``generate``.
    """

    max_new_tokens: int = 1
    do_sample: bool = False
    model_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def generate_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``module.it_generate``."""
        return {"max_new_tokens": self.max_new_tokens, "do_sample": self.do_sample, **self.model_kwargs}


@dataclass(kw_only=True)
class GenerativeClassificationConfig(CheckedConfig, checks_types=True):
    """Classification by generated answers.

    Attributes:
        enabled: Whether steps generate.
        lm_generation_cfg: Arguments of generation; any object with ``generate_kwargs``.
        answers: Answer words by label, each a single token of the tokenizer; empty: the module's class defines them.
    """

    enabled: bool = False
    lm_generation_cfg: Any = field(default_factory=HFGenerationConfig)
    answers: tuple[str, ...] = ()


@dataclass(kw_only=True)
class AutoCompConfig(CheckedConfig):
    """Composes the configuration classes of a session from the stacked adapters and the user's mixins.

    Attributes:
        module_cfg_name: Name of the composed module configuration class.
        module_cfg_mixin: Dataclass or dataclasses whose fields the module configuration gains.
        datamodule_cfg_name: Name of the composed data module configuration class.
        datamodule_cfg_mixin: Dataclass or dataclasses whose fields the data module configuration gains.
    """

    module_cfg_name: str | None = None
    module_cfg_mixin: type | Sequence[type] = ()
    datamodule_cfg_name: str | None = None
    datamodule_cfg_mixin: type | Sequence[type] = ()


def keeps_unknown_fields(cls: type) -> type:
    """Let a configuration class accept fields of adapters before the session knows which adapters are stacked.

    Unknown keyword arguments are kept in ``awaiting_composition``. The session composes a class that has these fields,
    or says which of them nothing declares. Subclasses made with ``@dataclass`` have their own constructors and are
    strict.
    """
    generated_init: Callable[..., None] = vars(cls)["__init__"]

    @functools.wraps(generated_init)
    def init(self: Any, **values: Any) -> None:
        known = {item.name for item in fields(self)}
        generated_init(self, **{name: value for name, value in values.items() if name in known})
        self.awaiting_composition = {name: value for name, value in values.items() if name not in known}

    cls.__init__ = init  # type: ignore[misc]
    return cls


@keeps_unknown_fields
@dataclass(kw_only=True)
class ITConfig(ITSharedConfig, checks_types=True):
    """Configuration of an ``ITModule``; adapters add fields to it when they are stacked.

    Attributes:
        auto_comp_cfg: Name and mixins of the composed configuration class.
        hf_from_pretrained_cfg: How a Hugging Face model is loaded.
        hf_model: A Hugging Face model in memory; it is used as it is, and then belongs to the session.
        hf_config: Configuration of a model to build with random weights.
        lora: Arguments of ``peft.LoraConfig`` (or one) for new LoRA matrices beside the model's weights, or the folder
            of a saved LoRA adapter; None: no LoRA. The weights themselves stay frozen.
        generative_step_cfg: Classification by generated answers.
        latent_models: Latent models made by the caller, spliced like those that adapters load.
        train_latent_models: Whether the latent models' parameters are trained; otherwise they are frozen.
        num_labels: Number of labels of a classification head.
        optimizer_init: ``{"class_path": ..., "init_args": {...}}``; None: no optimizer.
        lr_scheduler_init: The same for a learning-rate scheduler; ``interval`` (``epoch``, the default, or ``step``),
            ``frequency`` and ``monitor`` say when it steps.
        device: Device of the model; None: where a ``device_map`` of ``hf_from_pretrained_cfg`` puts it, else CUDA if
            available.
        freeze: Freeze the model's parameters; None: freeze them if no optimizer is configured, or if it is for the
            latent models.
        profile_memory: Record time and memory of the steps decorated with ``ProfilerHooksMixin.memprofilable``; a
            ``MemoryProfileCfg`` says which calls, and where to.
        seed: Seed of random weights.
    """

    auto_comp_cfg: AutoCompConfig | None = None
    hf_from_pretrained_cfg: HFFromPretrainedConfig = field(default_factory=HFFromPretrainedConfig)
    hf_model: PreTrainedModel | None = None
    hf_config: PretrainedConfig | None = None
    lora: dict[str, Any] | LoraConfig | str | Path | None = None
    generative_step_cfg: GenerativeClassificationConfig = field(default_factory=GenerativeClassificationConfig)
    latent_models: Sequence[LatentModel] = ()
    train_latent_models: bool = False
    num_labels: Annotated[int, Between(0)] = 0
    optimizer_init: dict[str, Any] | None = None
    lr_scheduler_init: dict[str, Any] | None = None
    device: str | torch.device | None = None
    freeze: bool | None = None
    profile_memory: bool | MemoryProfileCfg = False
    seed: Seed = 0

    @property
    def freezes_model(self) -> bool:
        """Whether the model's parameters are frozen after loading."""
        if self.freeze is not None:
            return self.freeze
        return self.optimizer_init is None or self.train_latent_models
