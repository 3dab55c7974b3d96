"""The command ``interpretune doctor``: nothing of it touches a network or the user's caches."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

EXIT_FAILED = 1


def run_doctor(
    adapter: str | None,
    *,
    rules: Sequence[str] = (),
    as_json: bool,
    seed: int | None = None,
    architecture: str | None = None,
) -> int:
    """Check adapters, or all, by all rules or those that are named; the exit status is 0 where nothing failed."""
    with tempfile.TemporaryDirectory(prefix="interpretune-doctor-") as folder:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when libraries are imported, hence before them; this is our process
        os.environ["HF_DATASETS_CACHE"] = os.environ["INTERPRETUNE_CACHE"] = folder
        os.environ.setdefault("TQDM_DISABLE", "1")
        return _check(adapter, rules, as_json, {"seed": seed, "architecture": architecture})


def _check(adapter: str | None, rules: Sequence[str], as_json: bool, drawn: Mapping[str, Any]) -> int:
    import datasets
    import transformers

    from interpretune.cli.doctor_report import as_text
    from interpretune.testing.doctor import NOT_CHECKED, SKIPPED, Verdict, adapters_to_check, diagnose, rules_named

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    def report(verdict: Verdict) -> None:
        if verdict.outcome not in (SKIPPED, NOT_CHECKED):
            print(f"  {verdict.rule.id}: {verdict.outcome}, {verdict.seconds:.1f} s", file=sys.stderr)

    diagnoses, chosen = [], rules_named(rules)
    for name in adapters_to_check(adapter):
        print(f"checking {name}", file=sys.stderr)
        diagnoses.append(diagnose(name, report, chosen, **drawn))
    failed = sum(len(item.failures) for item in diagnoses)
    if as_json:
        print(json.dumps({"failed": failed, "adapters": [item.as_dict() for item in diagnoses]}, indent=1))
    else:
        print(as_text(diagnoses))
    return EXIT_FAILED if failed else 0
