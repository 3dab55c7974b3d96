"""A run and the page of its stores."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from attrs import frozen
from rich.console import Console

from interpretune.cli.report import WrittenReport, plain, write_report
from interpretune.cli.run import RunReport, run_analyses
from interpretune.cli.run_config import RunConfig
from interpretune.errors import ConfigurationError
from interpretune.system.ranks import rank_and_processes


@frozen(eq=False)
class Reported:
    """What was done.

    Attributes:
        run: The analyses.
        report: The page of their stores.
    """

    run: RunReport
    report: WrittenReport

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        told: dict[str, Any] = plain({**self.run.as_dict(), **self.report.as_dict()})
        return told


def run_and_report(config: RunConfig, page: Path, progress: Console, names: Collection[str] | None = None) -> Reported:
    """Run the analyses, and write the page of their stores.

    Args:
        config: What is run.
        page: The file.
        progress: Where progress goes.
        names: Analyses that the page is of; None: all.

    Raises:
        InterpretuneError: What is wrong.
    """
    if (processes := rank_and_processes()[1]) > 1:
        raise ConfigurationError(
            f"WORLD_SIZE is {processes}, and a page is written by one process, of complete stores. Share the analyses "
            "by `interpretune run`, then run this in a single process (without RANK and WORLD_SIZE): it finds them."
        )
    run = run_analyses(config, progress)
    folders = [Path(item["folder"]) for item in run.analyses if names is None or item["name"] in names]
    return Reported(run, write_report(folders, page))


def page_file(path: Path, option: str) -> Path:
    """Where the page goes, checked before anything costs time; what is there stays until there is a new page.

    Raises:
        ConfigurationError: It cannot be written; ``option`` names another place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"The output folder {path.parent} cannot be written ({error.strerror}). Name another with {option}."
        ) from error
    return path
