"""Installs an animal of the zoo for a while and has the kit look at it."""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from interpretune.testing import RULES, AdapterConformance, Rule
from interpretune.testing.doctor import Verdict, check_suite

PACKAGE = "tests.broken_adapters"
OTHERS = "stacks-in-every-order"
"""Stacks every other adapter that is installed, which takes long: checked on the animals that it is about, too."""

IMPORT_RULES = ("listed-without-import", "import-is-cheap", "import-changes-nothing")
"""Each starts a process: they are checked on the animals that they are about, and on the sound one."""


class ZooSuite(AdapterConformance):
    """All animals are called the same."""

    adapter = "zoo"
    import_limit = 0.2


@contextlib.contextmanager
def installed(animal: str) -> Iterator[None]:
    """An animal's module, registered as the adapter ``zoo`` of a distribution of its own."""
    before = set(sys.modules)
    with tempfile.TemporaryDirectory(prefix="interpretune-zoo-") as site:
        info = Path(site) / "interpretune_zoo-3.1.4.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: interpretune-zoo\nVersion: 3.1.4\n")
        (info / "entry_points.txt").write_text(f"[interpretune.adapters]\nzoo = {PACKAGE}.{animal}:adapter\n")
        sys.path.insert(0, site)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(site)
            for name in [name for name in sys.modules if name not in before and name.startswith(f"{PACKAGE}.")]:
                del sys.modules[name]


def rules_for(expected: str) -> list[Rule] | None:
    """The rules to check on an animal that breaks a given one; None: all but the slow ones."""
    if expected in IMPORT_RULES:
        return [RULES[name] for name in IMPORT_RULES]
    return [rule for rule in RULES.values() if rule.id not in IMPORT_RULES] if expected == OTHERS else None


def verdicts_on(animal: str, rules: Iterable[Rule] | None = None) -> list[Verdict]:
    """Every verdict of the kit on an animal.

    Args:
        animal: Path of its module, below ``tests.broken_adapters``.
        rules: The rules; None: all but the slow ones.
    """
    slow = (*IMPORT_RULES, OTHERS)
    chosen = [rule for rule in RULES.values() if rule.id not in slow] if rules is None else list(rules)
    with installed(animal), tempfile.TemporaryDirectory(prefix="interpretune-zoo-") as folder:
        return list(check_suite(ZooSuite(), Path(folder), chosen))
