"""Prints the kit's verdict on every broken adapter: ``python -m tests.broken_adapters.verdicts [--markdown]``."""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # read when libraries are imported
os.environ.setdefault("TQDM_DISABLE", "1")

import warnings

import datasets
import transformers
from tabulate import tabulate

from interpretune.testing.doctor import FAILED
from tests.broken_adapters.checking import rules_for, verdicts_on
from tests.broken_adapters.expected import EXPECTED, SOUND

LONGEST = 140
"""Characters of a message."""


def main() -> None:
    """Show one row for each rule that a broken adapter breaks."""
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for name in (SOUND, *EXPECTED):
        rule, *_ = EXPECTED.get(name, ("",))
        verdicts = verdicts_on(name, rules_for(rule))
        failed = [verdict for verdict in verdicts if verdict.outcome == FAILED]
        for verdict in failed:
            first = verdict.message.splitlines()[0].removeprefix(f"{verdict.rule.id}: ")
            rows.append((name, verdict.rule.id, first if len(first) <= LONGEST else f"{first[:LONGEST]}..."))
        if not failed:
            rows.append((name, "-", "keeps every rule"))
        print(f"{name}: {', '.join(verdict.rule.id for verdict in failed) or '-'}", file=sys.stderr)
    style = "github" if "--markdown" in sys.argv else "simple"
    print(tabulate(rows, headers=("name", "rule", "message"), tablefmt=style))


if __name__ == "__main__":
    main()
