"""Operations: functions that declare what they read and write, to be put into plans."""

from __future__ import annotations

from interpretune.operations import Field, operation
from torch import Tensor


@operation(writes=Field("adapter_name_certainty", about="probability of the likelier answer"))
def adapter_name_certainty(answers: Tensor) -> Tensor:
    """How sure the model is, ``[batch]``, of its logits of the answers, ``[batch, answers]``."""
    return answers.softmax(dim=-1).amax(dim=-1)
