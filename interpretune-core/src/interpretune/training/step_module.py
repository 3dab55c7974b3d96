"""The training step of a session as a module, for the trainers and wrappers of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interpretune.errors import TrainingError
from interpretune.session.labels import LABELS
from interpretune.session.step_routing import PREDICT_STEP, TRAINING_STEP, loss_of

if TYPE_CHECKING:
    from interpretune.session.module import ITModule


class StepModule(nn.Module):
    """Gives the loss of ``training_step`` from its ``forward``, where trainers of other libraries expect it.

    What wraps a model (distributed training, mixed precision) acts on its ``forward``. A training step that is called
    as a method goes past the wrapper: in several processes, gradients would stay apart. The session's module remains
    the same object, so analyses of it need no unwrapping.

    Attributes:
        it_module: The session's module.
        batch_idx: Batches trained on so far.
        accepts_loss_kwargs: Read by trainers: the loss is a mean over the batch that nobody else scales.
    """

    accepts_loss_kwargs = False

    def __init__(self, it_module: ITModule) -> None:
        super().__init__()
        self.it_module = it_module
        self.batch_idx = 0
        self.register_state_dict_post_hook(_drop_further_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_restore_further_names)  # type: ignore[no-untyped-call]

    def forward(self, **batch: Any) -> dict[str, Any]:
        """``{"loss": loss}`` of one batch, labels included.

        In eval mode also what the trainer shall predict, ``logits``: what ``training_step`` returned beside its loss;
        if it returned the loss alone, what ``predict_step`` returns, where the module has that step.

        Args:
            **batch: One batch. In eval mode it may lack labels; then there is no loss.

        Raises:
            TrainingError: The step returned no loss, or none that can be trained on.
        """
        if not self.training and LABELS not in batch and hasattr(self.it_module, PREDICT_STEP):
            return self._predicted(batch)
        result = self.it_module.run_step(TRAINING_STEP, dict(batch), self.batch_idx)
        loss = loss_of(result)
        if loss is None:
            raise TrainingError(
                f"{type(self.it_module).__name__}.training_step returned no loss for batch {self.batch_idx}. A trainer "
                "of another library cannot skip a batch; return a loss for each."
            )
        if self.training:
            self.batch_idx += 1
            return {"loss": loss}
        return {"loss": loss, **(_predictions(result) or self._predicted(batch))}

    def _predicted(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if not hasattr(self.it_module, PREDICT_STEP):
            return {}
        return _predictions(self.it_module.run_step(PREDICT_STEP, dict(batch), self.batch_idx))

    # ------------------------------------------------------------------------------- what trainers ask of their models

    def get_input_embeddings(self) -> nn.Module:
        """The module that embeds tokens, to which the Trainer of transformers adds NEFTune's noise.

        Raises:
            TrainingError: The session's model does not tell it.
        """
        return self._ask_model("get_input_embeddings", "neftune_noise_alpha")()

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Keep less of each forward for the backward pass; the session's model does it (``gradient_checkpointing``).

        Args:
            activation_checkpointing_kwargs: Of ``torch.utils.checkpoint.checkpoint``. With ``use_reentrant=True`` the
                embeddings' outputs get gradients, without which nothing behind frozen embeddings would.
            **options: Further options of the model's method, such as ``every_n_layers``.

        Raises:
            TrainingError: The session's model cannot do it.
        """
        kwargs = None if activation_checkpointing_kwargs is None else dict(activation_checkpointing_kwargs)
        enable = self._ask_model("activation_checkpointing_enable", "gradient_checkpointing")
        enable(activation_checkpointing_kwargs=kwargs, **options)
        self._let_gradients_in(kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """``activation_checkpointing_enable`` by the name that earlier versions of transformers call.

        Args:
            gradient_checkpointing_kwargs: Of ``torch.utils.checkpoint.checkpoint``.
            **options: Further options of the model's method.

        Raises:
            TrainingError: The session's model cannot do it.
        """
        kwargs = None if gradient_checkpointing_kwargs is None else dict(gradient_checkpointing_kwargs)
        enable = self._ask_model("gradient_checkpointing_enable", "gradient_checkpointing")
        enable(gradient_checkpointing_kwargs=kwargs, **options)
        self._let_gradients_in(kwargs)

    def _let_gradients_in(self, kwargs: Mapping[str, Any] | None) -> None:
        if kwargs and kwargs.get("use_reentrant"):
            self._ask_model("enable_input_require_grads", "use_reentrant=True")()

    def _ask_model(self, method: str, option: str) -> Any:
        model = self.it_module.model
        found = getattr(model, method, None)
        if found is None:
            raise TrainingError(
                f"{type(model).__name__} has no {method}, which the trainer's option {option} needs. Leave the option "
                "out, or compose the session so that its model is one of transformers: adapter_ctx=('core',)."
            )
        return found

    def train(self, mode: bool = True) -> StepModule:
        """Put what is trained into train mode; a frozen model or latent model stays in eval mode."""
        super().train(mode)
        if mode:
            self.it_module.set_training_mode()
        return self


def _predictions(result: Any) -> dict[str, Any]:
    """What a step returned to be predicted: its ``logits`` alone if it names any; no loss."""
    if isinstance(result, Mapping):
        if "logits" in result:
            return {"logits": result["logits"]}
        return {name: value for name, value in result.items() if name != "loss" and isinstance(value, Tensor)}
    return {"logits": result} if isinstance(result, Tensor) and result.ndim else {}


def _first_names(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """For each further name of a tensor (tied weights have several) the first one."""
    first: dict[Any, str] = {}
    further = {}
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and value.numel():
            tensor = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if first.setdefault(tensor, name) != name:
                further[name] = first[tensor]
    return further


def _drop_further_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leave tensors that share no memory, as safetensors wants them."""
    own = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
    for name in _first_names(own):
        del state_dict[name], own[name]
    storages: set[int] = set()
    for name, value in own.items():
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            is_whole = value.is_contiguous() and value.nbytes == storage.nbytes()
            if storage.data_ptr() in storages or not is_whole:
                state_dict[name] = value.clone(memory_format=torch.contiguous_format)
            else:
                storages.add(storage.data_ptr())


def _restore_further_names(module: StepModule, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    everything = module.it_module.state_dict(prefix=f"{prefix}it_module.", keep_vars=True)
    for name, first in _first_names(everything).items():
        if first in state_dict:
            state_dict.setdefault(name, state_dict[first])
