"""What ``interpretune run`` does with its configuration: makes the session, runs the analyses, tells the results."""

from __future__ import annotations

import time
from typing import Any

from attrs import asdict, frozen
from rich.console import Console

from interpretune.analysis import AnalysisRunner, QuestionCfg
from interpretune.analysis.plan_runner import Analysis
from interpretune.cli.report import plain
from interpretune.cli.run_config import RunConfig
from interpretune.plugins.contributions import ReportSection
from interpretune.questions import LogitLens
from interpretune.reports.sections import report_sections, section_data, section_text
from interpretune.session.session import ITSession, it_init, it_session_end

N_TOP = 10
"""Units of a question that are shown."""


@frozen
class RunReport:
    """What a run did, or would do.

    Attributes:
        analyses: One entry for each: ``name``, ``folder``, ``rows`` and more.
        sections: What the adapters say of the session; nothing after a dry run.
        text: The same for people.
        seconds: Duration of the analyses, without the making of the session.
    """

    analyses: list[dict[str, Any]]
    sections: list[ReportSection]
    text: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "analyses": self.analyses,
            "report": [section_data(item) for item in self.sections],
            "seconds": round(self.seconds, 3),
        }


def run_analyses(config: RunConfig, progress: Console) -> RunReport:
    """Make the session, and run its analyses or tell what a run would do (``InterpretuneError``: what is wrong)."""
    session = ITSession(config.session)
    progress.print(f"stack: {', '.join(session.context.names)}", style="dim", markup=False)
    it_init(**session)
    try:
        options = config.runner
        runner = AnalysisRunner(
            **session,
            root=options.root,
            limit=options.limit,
            seed=options.seed,
            console=progress,
            made_by=config.made_by,
        )
        analyses: dict[str, Analysis] = {
            name: item if isinstance(item, QuestionCfg) else item.cfg(session.module)
            for name, item in config.analyses.items()
        }
        start, sections = time.perf_counter(), []
        if config.dry_run:
            told = runner.dry_run(analyses)
            rows = [
                {"name": name, **asdict(item), "folder": str(item.folder), "rows": item.examples}
                for name, item in told.items()
            ]
            text = "\n\n".join(f"{name}\n{'=' * len(name)}\n{item}" for name, item in told.items())
        else:
            stores = runner.run(analyses)
            rows = [
                {
                    "name": name,
                    "folder": str(store.folder),
                    "key": store.manifest.key,
                    "rows": store.n_examples,
                    "complete": store.complete,
                    "found": name in runner.found,
                    "tables": sorted(store.tables),
                }
                for name, store in stores.items()
            ]
            found: dict[str, Any] = {
                name: item.result(stores[name])
                for name, item in analyses.items()
                if isinstance(item, QuestionCfg) and stores[name].complete
            }
            tables = {
                name: item.layers() if isinstance(item, LogitLens) else item.top(N_TOP) for name, item in found.items()
            }
            for row in rows:
                if (name := str(row["name"])) in found:
                    row["rows"] = found[name].question["rows"]
                    row["layers" if isinstance(found[name], LogitLens) else "top"] = plain(
                        tables[name].to_dict("records")
                    )
            sections = report_sections(session.module)
            answers = [f"{name}: {item}" for name, item in found.items()]
            text = "\n\n".join([_table(rows), *answers, *map(section_text, sections)])
        return RunReport(rows, sections, text, time.perf_counter() - start)
    finally:
        it_session_end(**session)


def _table(rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate

    shown = [
        {
            "analysis": row["name"],
            "rows": row["rows"],
            "folder": row["folder"] + ("" if row["complete"] else " (incomplete: other processes still run)"),
            "tables": ", ".join(row["tables"]) or "-",
        }
        for row in rows
    ]
    return tabulate(shown, headers="keys", tablefmt="simple")
