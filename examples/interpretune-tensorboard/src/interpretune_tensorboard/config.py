"""Configuration of sessions whose analyses go to TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from interpretune import ITConfig, Positive


@dataclass(kw_only=True)
class TensorBoardConfig(ITConfig, checks_types=True):
    """Module configuration with where event files go.

    Attributes:
        tensorboard_dir: Log folder, which sessions share: each writes to a folder of its own in it. None: nothing is
            written.
        tensorboard_rows: Rows of each table that are shown.
    """

    passing_state: ClassVar[frozenset[str]] = frozenset({"tensorboard_dir", "tensorboard_rows"})
    """No result depends on them, so that stores are found again with another folder."""

    tensorboard_dir: Path | None = None
    tensorboard_rows: Positive = 20
