"""The module: owns the model and its latent models, and offers what users' steps call."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from interpretune.errors import ConfigurationError
from interpretune.models.answer_pooling import name_padding
from interpretune.models.padding import ATTENTION_MASK
from interpretune.models.row_columns import without_row_columns
from interpretune.models.tokenizer import context_length
from interpretune.session.answers import ModuleAnswers, answers_of_all_rows
from interpretune.session.logged_scalars import EPOCH_MEAN, LoggedScalars
from interpretune.system.model_lock import model_lock
from interpretune.system.placement import input_device, is_placed

if TYPE_CHECKING:
    from interpretune.backends.backend import AnalysisBackend
    from interpretune.config.module import ITConfig
    from interpretune.latents.latent_model import LatentModel
    from interpretune.plugins.contributions import OptimizerSetup
    from interpretune.plugins.stack import ExecutionContext
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.session import ITSessionConfig
    from interpretune.training.metric_log import MetricLog

STEP_OUTPUT = Tensor | Mapping[str, Any] | None
"""What a step may return."""


@dataclass
class ITState:
    """What a module remembers between steps."""

    _init_hparams: dict[str, Any] = field(default_factory=dict)
    _current_epoch: int = 0
    _global_step: int = 0
    initialised: bool = False
    logged_metrics: dict[str, Tensor | float] = field(default_factory=dict)
    metric_log: MetricLog | None = None
    backend: AnalysisBackend | None = None
    optimizers: OptimizerSetup | None = None
    session_cfg: ITSessionConfig | None = None


class ITModule(ModuleAnswers, nn.Module):
    """Base of every composed module; users' classes come before it and call it with ``super()``.

    Attributes:
        it_cfg: The composed configuration.
        model: The model that the stack loaded.
        latent_models: Latent models that analyses splice into the model.
        datamodule: The session's data module, after ``setup``.
        context: The session's execution context.
        passing_state: Attributes of a class that runs change and no result depends on, such as records.
    """

    context: ClassVar[ExecutionContext | None] = None
    passing_state: ClassVar[frozenset[str]] = frozenset()
    routed_steps: ClassVar[frozenset[str]] = frozenset()
    """Steps that are inside ``it_run_step`` already, whoever calls them."""

    def __init__(self, it_cfg: ITConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.it_cfg = self._before_it_cfg_init(it_cfg)
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")
        self._it_state = ITState(_init_hparams={"experiment_id": f"{it_cfg.task_name or 'interpretune'}-{stamp}"})
        self.metric: Any = None
        self.datamodule: ITDataModule | None = None
        self.model: nn.Module = self.hook.it_load_model(module=self)
        if self.it_cfg.freezes_model:
            self.model.requires_grad_(False)
        loaded = self.hook.it_load_latent_models(module=self)
        self.latent_models = [latent_model for group in loaded for latent_model in group]
        if self.latent_models:
            self.backend.check_latent_models(self.latent_models)

    def identity(self) -> Any:
        """What results depend on besides code, model and latent models.

        By default the settings of the configuration, and every attribute set on the module or kept by an adapter's
        class, except those that a class lists in ``passing_state``. Override it to define this yourself.
        """
        from interpretune.session.module_state import module_state

        return module_state(self)

    def _before_it_cfg_init(self, it_cfg: ITConfig) -> ITConfig:
        """Adjust the configuration before anything is built from it; override as needed."""
        return it_cfg

    @property
    def hook(self) -> Any:
        """The hooks of the session's stack: ``module.hook.it_forward(module=module, batch=batch)``."""
        if self.context is None:
            raise ConfigurationError(
                f"{type(self).__name__} was made without a session. Compose it with ITSession(ITSessionConfig(...)), "
                "which stacks the adapters and builds the module."
            )
        return self.context.hook

    @property
    def latent_models(self) -> Sequence[LatentModel]:
        """Latent models that analyses splice into the model; those that are torch modules are submodules."""
        return self._latent_models

    @latent_models.setter
    def latent_models(self, latent_models: Sequence[LatentModel]) -> None:
        self._latent_models = list(latent_models)
        modules = [latent_model for latent_model in self._latent_models if isinstance(latent_model, nn.Module)]
        self.latent_modules = nn.ModuleList(modules).to(self.device).requires_grad_(self.it_cfg.train_latent_models)
        self._it_state.backend = None

    # ------------------------------------------------------------------------------------------------------ life cycle

    def setup(self, datamodule: ITDataModule | None = None, *args: Any, **kwargs: Any) -> None:
        """Connect the data module and load the metric; called by ``it_init`` when the data is ready."""
        if datamodule is not None:
            self.datamodule = datamodule
            self._it_state.backend = None  # one made before knew no tokenizer, hence no special tokens
            name_padding(self.model, datamodule.tokenizer.pad_token_id)
        if self.datamodule is not None or self.it_cfg.generative_step_cfg.answers:
            ids = answers_of_all_rows(self)
            self.register_buffer("_answer_token_ids", None if ids is None else torch.tensor(ids), persistent=False)
            self.to(self.device)
        self.load_metric()

    def load_metric(self) -> None:
        """Load ``self.metric``; override it to use one."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ITModule:
        """What ``to``, ``cuda``, ``half`` and their kin call; a model that accelerate has placed stays where it is.

        Raises:
            ConfigurationError: The numbers of such a model would change, too.
        """
        model = self._modules.get("model")
        if not recurse or model is None or not is_placed(model):
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        dtype = next((item.dtype for item in model.parameters() if item.is_floating_point()), torch.float32)
        if (wanted := fn(torch.empty(0, dtype=dtype)).dtype) != dtype:
            raise ConfigurationError(
                f"The {type(model).__name__} has been placed by accelerate in {dtype}, and cannot be changed to "
                f"{wanted}. Load it so: HFFromPretrainedConfig(pretrained_kwargs={{'dtype': ..., 'device_map': ...}})."
            )
        for part in self.children():
            if part is not model:
                part._apply(fn)
        return super()._apply(fn, recurse=False)  # type: ignore[no-untyped-call]

    def require_datamodule(self) -> ITDataModule:
        """The session's data module.

        Raises:
            ConfigurationError: ``it_init`` has not run.
        """
        if self.datamodule is None:
            raise ConfigurationError("The module has no data module yet. Call it_init(**session) first.")
        return self.datamodule

    def configure_optimizers(self) -> Any:
        """Make the optimizers of a training session; override it, or set ``ITConfig(optimizer_init=...)``.

        Returns:
            Whatever ``interpretune.training.as_optimizer_setup`` reads: an optimizer, a dictionary with
            ``optimizer`` and ``lr_scheduler``, a pair of lists, an ``OptimizerSetup``, or None.
        """
        return self.hook.it_configure_optimizers(module=self)

    def set_training_mode(self) -> None:
        """Put the model and the latent models into train mode if they have trainable parameters, else into eval."""
        self.train()
        for part in (self.model, *self.latent_modules):
            part.train(any(parameter.requires_grad for parameter in part.parameters()))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the model in place, as ``torch.nn.Module.compile`` would; what a session does around it is not.

        Steps then run the compiled model, and analyses the model itself.

        Args:
            *args: Of ``torch.compile``.
            **kwargs: Of ``torch.compile``.
        """
        self.model.compile(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------------------ steps

    def forward(self, *args: Any, **batch: Any) -> Any:
        """Run the model on a batch without labels; padding is accounted for.

        Args:
            *args: The tokens, ``[batch, pos]``, if they are not given by name.
            **batch: Tokens under their name, ``attention_mask`` and further inputs of the model.

        Returns:
            Logits ``[batch, pos, vocab]`` or an object that has them as its attribute ``logits``.

        Raises:
            NotFiniteError: Logits of real tokens are NaN or infinite; minus infinity, to rule a token out, is allowed.
        """
        from interpretune.activations.finite import check_outputs  # analyses know modules

        if torch.compiler.is_compiling():  # then torch goes on without compiling this, or tells the sentence
            raise ConfigurationError(
                "What a session does around its model cannot be compiled. "
                "Compile its model: session.module.compile(...)."
            )
        if args:
            batch = {"input_ids": args[0], **batch}
        with model_lock(self.model):
            outputs = self.hook.it_forward(module=self, batch=without_row_columns(batch))
        check_outputs(self.model, outputs, batch.get(ATTENTION_MASK))
        return outputs

    def it_generate(self, batch: Mapping[str, Any], **generation_kwargs: Any) -> Any:
        """Generate from a batch without labels.

        Returns:
            An object with ``sequences`` ``[batch, pos + new]`` and ``logits``, a tuple of ``[batch, vocab]``.

        Raises:
            NotFiniteError: The logits of a new token are NaN or infinite.
        """
        from interpretune.activations.finite import check_generated  # analyses know modules

        with model_lock(self.model):
            generated = self.hook.it_generate(
                module=self, batch=without_row_columns(batch), generation_kwargs=generation_kwargs
            )
        check_generated(self.model, generated)
        return generated

    def batch_to_device(self, batch: Any) -> Any:
        """Move a batch to the module's device."""
        return self.hook.it_move_batch(module=self, batch=batch)

    def run_step(self, step_name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a step by name, inside the wrappers of the stacked adapters."""
        step: Callable[..., Any] | None = getattr(self, step_name, None)
        if step is None:
            raise ConfigurationError(f"{type(self).__name__} has no {step_name}. Define it, or name another step.")
        if step_name in self.routed_steps:
            return step(*args, **kwargs)
        return self.hook.it_run_step(module=self, step_name=step_name, step=lambda: step(*args, **kwargs))

    # ---------------------------------------------------------------------------------------------------------- logging

    def log(self, name: str, value: Tensor | float, *args: Any, **kwargs: Any) -> None:
        """Log one number; see ``log_dict``."""
        self.log_dict({name: value}, *args, **kwargs)

    def log_dict(self, dictionary: Mapping[str, Tensor | float], *args: Any, **kwargs: Any) -> None:
        """Log numbers by name.

        Args:
            dictionary: Scalars.
            *args: Other arguments that trainers take; not used here.
            **kwargs: Arguments that trainers take. Core's loops use ``batch_size`` (the weight of this batch in means
                over an epoch) and ``on_epoch`` (report the mean over the epoch of a value logged in training).
        """
        if EPOCH_MEAN in kwargs:
            raise ConfigurationError(f"{EPOCH_MEAN} marks what loops report, and is no argument of log. Leave it out.")
        self._call_it_log(dictionary, kwargs)

    def log_means(self, means: Mapping[str, Tensor | float]) -> None:
        """Pass means over an epoch to the stacked adapters; whoever runs the loop calls it at the end of an epoch.

        Adapters receive them in ``it_log`` with the option ``epoch_mean``. ``logged_metrics`` has what steps logged.

        Args:
            means: By name.
        """
        if means:
            self._call_it_log(means, {EPOCH_MEAN: True})

    def _call_it_log(self, metrics: Mapping[str, Tensor | float], options: Mapping[str, Any]) -> None:
        self.hook.it_log(module=self, metrics=LoggedScalars(metrics), options=MappingProxyType(dict(options)))

    @property
    def logged_metrics(self) -> Mapping[str, float]:
        """The latest value of everything logged."""
        return {name: float(value) for name, value in self._it_state.logged_metrics.items()}

    # ------------------------------------------------------------------------------------------------------------ state

    @property
    def device(self) -> torch.device:
        """Device on which the model takes tokens; with a device map, its blocks may be on others."""
        return input_device(self.model)

    @property
    def context_length(self) -> int | None:
        """Largest number of tokens that the model takes, if its configuration says so."""
        return context_length(self.model)

    @property
    def output_device(self) -> torch.device:
        """Device on which logits appear."""
        return self.device

    @property
    def global_step(self) -> int:
        """Batches seen so far."""
        return self._it_state._global_step

    @global_step.setter
    def global_step(self, value: int) -> None:
        self._it_state._global_step = value

    @property
    def current_epoch(self) -> int:
        """The current epoch; a framework with its own loops sets it."""
        return self._it_state._current_epoch

    @current_epoch.setter
    def current_epoch(self, value: int) -> None:
        self._it_state._current_epoch = value

    @property
    def session_cfg(self) -> ITSessionConfig | None:
        """What the session that made the module was made of; None where no session did."""
        return self._it_state.session_cfg

    @property
    def initialised(self) -> bool:
        """Whether the session is alive: after ``it_init``, before ``it_session_end``."""
        return self._it_state.initialised

    @property
    def optimizers_and_schedulers(self) -> OptimizerSetup | None:
        """What ``it_configure_optimizers`` built, after ``it_init``."""
        return self._it_state.optimizers

    @property
    def backend(self) -> AnalysisBackend:
        """The object through which analyses reach into the model, created at its first use."""
        backend = self._it_state.backend
        if backend is None:
            with model_lock(self.model):
                backend = self._it_state.backend
                if backend is None:  # no other thread has made one meanwhile
                    backend = self._it_state.backend = self.hook.it_create_backend(module=self)
        return backend
