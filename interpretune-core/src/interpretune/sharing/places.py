"""Where stores lie: on this machine, at an address, or on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interpretune.sharing.hub import HubRepository, is_hub_address
from interpretune.sharing.remote import RemotePlace


def place_of(
    target: str | Path | HubRepository, storage_options: Mapping[str, Any] | None = None
) -> Path | RemotePlace | HubRepository:
    """What a path, an address or a repository means.

    Raises:
        StoreError: It means nothing.
    """
    if isinstance(target, HubRepository):
        return target
    if isinstance(target, Path) or "://" not in target:
        return Path(target).expanduser()
    if is_hub_address(target):
        return HubRepository.parse(target)
    place = RemotePlace(target, storage_options)
    return place.local or place
