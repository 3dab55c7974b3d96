"""Rules of what an adapter's package offers by name."""

from __future__ import annotations

from interpretune.errors import AdapterError
from interpretune.system.offered import KINDS
from interpretune.testing.rule import RuleBroken, RuleSkipped, rule
from interpretune.testing.workbench import Bench


@rule()
def offers_can_be_used(bench: Bench) -> None:
    """What the package offers by name can be imported and called, and takes no name of core or of another package."""
    owner = bench.installed.distribution
    offers = [item for kind in KINDS for item in kind.offered().values() if owner in (item.distribution, item.twin)]
    if not offers:
        raise RuleSkipped(f"the package registers nothing in {', '.join(kind.group for kind in KINDS)}")
    for item in offers:
        try:
            item.load()
        except AdapterError as error:
            raise RuleBroken(str(error), "a function, under a name of its own") from error
