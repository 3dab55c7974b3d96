"""Operations that the adapters of a session offer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from interpretune.operations.definition import Operation
from interpretune.operations.loading import by_name

if TYPE_CHECKING:
    from interpretune.session.module import ITModule


def offered_operations(module: ITModule) -> dict[str, Operation]:
    """The operations that the adapters of a session offer, by name.

    Raises:
        PlanError: Two of them have the same name.
    """
    offers: list[Iterable[Operation]] = module.hook.it_contribute_operations(module=module)
    return by_name((op for offer in offers for op in offer), "the session's adapters")
