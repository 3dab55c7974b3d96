"""The training step of a session as a module, for the trainers and wrappers of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interpretune.errors import TrainingError
from interpretune.session.step_routing import TRAINING_STEP, loss_of

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

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """``{"loss": loss}`` of one batch, labels included.

        Raises:
            TrainingError: The step returned no loss, or none that can be trained on.
        """
        loss = loss_of(self.it_module.run_step(TRAINING_STEP, batch, self.batch_idx))
        if loss is None:
            raise TrainingError(
                f"{type(self.it_module).__name__}.training_step returned no loss for batch {self.batch_idx}. A trainer "
                "of another library cannot skip a batch; return a loss for each."
            )
        if self.training:
            self.batch_idx += 1
        return {"loss": loss}

    def train(self, mode: bool = True) -> StepModule:
        """Put what is trained into train mode; a frozen model or latent model stays in eval mode."""
        super().train(mode)
        if mode:
            self.it_module.set_training_mode()
        return self


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
