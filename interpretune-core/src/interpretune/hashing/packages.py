"""What is known of packages: their versions, and the source of those that have none."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from interpretune.hashing.code_origin import source_of


def identify_packages(packages: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Hashes of the source of packages that count by it, by name, and what is not known of them."""
    sources = {name: source for name in sorted(packages) if (source := source_of(name)) is not None}
    unknown = [
        f"The package {name} is not what it was when it was imported ({', '.join(source.edited[:3])} changed), so that "
        "what runs is not what is there; start Python anew."
        for name, source in sources.items()
        if source.edited
    ]
    return {name: source.sha256 for name, source in sources.items()}, tuple(unknown)


@functools.cache
def version_or_unknown(name: str) -> str:
    """Version of a distribution when it was first asked for, or ``unknown``: what is imported stays as it is."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
