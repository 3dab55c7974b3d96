"""The command line: ``interpretune run | circuit | report | export | demo`` and further commands.

Exit status: 0 done, 1 an error that is explained, 2 a wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from interpretune.cli.argument_types import finite_positive, layer, positive, seed
from interpretune.cli.completion import PrintCompletion
from interpretune.cli.offered_commands import add_offered_commands
from interpretune.errors import InterpretuneError
from interpretune.system.credentials import text_without_credentials
from interpretune.system.ranks import is_first_process

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
CIRCUIT_USAGE = "interpretune circuit CONFIG.yaml [--NAME VALUE ...] [-o PAGE] [--verbose] [--dry-run] [--json]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with these arguments, or those of the process; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser, commands = _parser()
    if not given or given[0] not in commands.choices:  # core's own need not know what else is installed
        add_offered_commands(commands)
    options, further = parser.parse_known_args(given)
    if further and options.run not in (_demo, _circuit):  # which leave others to `interpretune run`
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    options.further = further
    try:
        status: int = options.run(options)
    except InterpretuneError as error:
        told = "\n".join([f"error: {type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        print(text_without_credentials(told), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, nothing is half-written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def _parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog="interpretune", description="Look inside language models.")
    parser.add_argument("--version", action="version", version=f"interpretune-core {version('interpretune-core')}")
    parser.add_argument("--print-completion", action=PrintCompletion)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    adapters = commands.add_parser("adapters", help="list the installed adapters; imports none of them")
    adapters.add_argument("--json", action="store_true", help="print JSON")
    adapters.set_defaults(run=_adapters)

    explain = commands.add_parser("explain", help="show the stack that a list of adapters gives")
    explain.add_argument("adapter", nargs="+", help="names of adapters, in any order")
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.set_defaults(run=_explain)

    hooks = commands.add_parser("hooks", help="list the hook points of a model, with their shapes")
    hooks.add_argument("model", help="folder, GGUF file or hub id")
    hooks.add_argument("--adapters", nargs="+", default=["core"], help="adapters to stack (default: core)")
    hooks.add_argument("--all", action="store_true", help="list the backend's own names as well")
    hooks.add_argument("--cache-dir", type=Path, help="folder for converted models")
    hooks.add_argument("--json", action="store_true", help="print JSON")
    hooks.set_defaults(run=_hooks)

    tasks = commands.add_parser("tasks", help="list the tasks that are ready to ask, or show rows of one")
    tasks.add_argument("name", nargs="?", help="task whose held-out rows are shown (default: list all tasks)")
    tasks.add_argument("--rows", type=positive, default=5, help="rows to show (default: %(default)s)")
    tasks.add_argument("--seed", type=seed, default=0, help="which rows come first (default: %(default)s)")
    tasks.add_argument("--json", action="store_true", help="print JSON")
    tasks.set_defaults(run=_tasks)

    new_adapter = commands.add_parser("new-adapter", help="write the package of a new adapter, complete and tested")
    new_adapter.add_argument("name", help="name of the adapter: lower-case, with underscores between words")
    new_adapter.add_argument(
        "--kind",
        choices=("framework", "model", "latents", "extension"),
        default="extension",
        help="what it should do: run the steps, load the model, load latent models, or anything else "
        "(default: %(default)s)",
    )
    new_adapter.add_argument(
        "--output", type=Path, help="folder of the package, absent or empty (default: interpretune-NAME)"
    )
    new_adapter.add_argument("--json", action="store_true", help="print JSON")
    new_adapter.set_defaults(run=_new_adapter)

    doctor = commands.add_parser("doctor", help="check installed adapters against every rule of the contract")
    doctor.add_argument("adapter", nargs="?", help="name of an adapter (default: all that are installed)")
    doctor.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="ID",
        help="check this rule alone, also where one that it builds on is broken; may be given several times",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--seed", type=int, help="seed of tiny models, latent models and rows (default: the suite's)")
    doctor.add_argument("--architecture", choices=("gpt2", "llama"), help="of the tiny model (default: the suite's)")
    doctor.set_defaults(run=_doctor)

    demo = commands.add_parser(
        "demo",
        help="which units make a model say are or is: effects, proof on other nouns, and a page",
        epilog="All options of `interpretune run` can be given too, such as --analyses.latents.positions answer.",
    )
    demo.add_argument("--model", help="folder, GGUF file or hub id (default: SmolLM2-135M-Instruct, no hub needed)")
    demo.add_argument("--sae-release", help="release or folder of latent models (default: train them)")
    demo.add_argument("--layers", type=layer, nargs="+", help="layers of latents and neurons (default: 9/10 up)")
    demo.add_argument("--hook", help="place in a layer at which to train (default: hook_resid_post)")
    demo.add_argument(
        "--data", help="task, file, folder, or hub data set and subset (default: agreement of verbs with subjects)"
    )
    demo.add_argument("--answers", nargs=2, help="the two answers (default: those of the rows)")
    demo.add_argument("--adapters", nargs="+", help="adapters to stack (default: those of the file)")
    demo.add_argument("--limit", type=positive, help="most rows to rank units on and to prove on (default: 16, all)")
    demo.add_argument("--batch-size", type=positive, help="rows in a batch (default: 8; 4 with --data)")
    demo.add_argument(
        "--training-scale", type=finite_positive, help="length of the training of latent models (default: 0.5)"
    )
    demo.add_argument("--seed", type=seed, help="seed of everything that is trained (default: 0)")
    demo.add_argument(
        "--output", type=Path, default=Path("interpretune-demo"), help="folder for results (default: %(default)s)"
    )
    demo.add_argument("--cache-dir", type=Path, help="folder for models and trained latent models")
    demo.add_argument("--verbose", action="store_true", help="print the whole ranking and the cards")
    demo.add_argument("--json", action="store_true", help="print JSON")
    demo.set_defaults(run=_demo)

    circuit = commands.add_parser(
        "circuit",
        usage=CIRCUIT_USAGE,
        help="run a configuration file whose analyses have a `circuit`, show it, and make a page",
        epilog="All options of `interpretune run` can be given too, such as --limit 16.",
        allow_abbrev=False,
    )
    circuit.add_argument(
        "-o", "--output", type=Path, default=Path("page.html"), help="file of the page (default: %(default)s)"
    )
    circuit.add_argument("--verbose", action="store_true", help="print all nodes and edges")
    circuit.set_defaults(run=_circuit)

    report = commands.add_parser(
        "report",
        help="make a page of the effects of units in stores, and say what they say; no model is loaded",
    )
    report.add_argument(
        "stores",
        nargs="+",
        type=Path,
        metavar="STORE",
        help="folder of effects of units, exact or by gradients, or of another analysis of the same model",
    )
    report.add_argument(
        "-o", "--output", type=Path, default=Path("page.html"), help="file of the page (default: %(default)s)"
    )
    report.add_argument("--verbose", action="store_true", help="print the whole ranking and the cards")
    report.add_argument("--json", action="store_true", help="print JSON")
    report.set_defaults(run=_report)

    plot = commands.add_parser("plot", help="make a figure of results in stores, by name; no model is loaded")
    plot.add_argument("name", metavar="NAME", help="latent_effects, unit_effects, or what an installed package offers")
    plot.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="folder of results")
    plot.add_argument(
        "-o", "--output", type=Path, default=Path("figures"), help="folder of the figures (default: %(default)s)"
    )
    plot.set_defaults(run=_plot)

    export = commands.add_parser(
        "export",
        help="write cards of latents for Neuronpedia or for delphi's automatic interpretation; no model is loaded",
    )
    export.add_argument(
        "stores", nargs="+", type=Path, metavar="STORE", help="folder of effects of latents, with cards"
    )
    export.add_argument("--format", choices=("neuronpedia", "delphi"), required=True, help="what is written")
    export.add_argument("-o", "--output", type=Path, required=True, help="folder to write, absent or empty")
    export.add_argument("--model-id", help="what Neuronpedia calls the model (default: as in the address of its pages)")
    export.add_argument("--source-set", help="what it calls the dictionaries, without the layer (default: likewise)")
    export.add_argument("--creator-id", help="the user there whose all is (default: that of a new Neuronpedia)")
    export.add_argument("--json", action="store_true", help="print JSON")
    export.set_defaults(run=_export)

    run = commands.add_parser(
        "run",
        help="run the analyses of a configuration file, or go on with them",
        add_help=False,
        prefix_chars="\0",  # its options depend on the configuration: all that follows is left to its own parser
    )
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    run.set_defaults(run=_run)
    return parser, commands


def _adapters(options: argparse.Namespace) -> int:
    from interpretune.cli.adapters import adapters_table, listed_adapters

    rows = listed_adapters()
    print(json.dumps(rows, indent=1) if options.json else adapters_table(rows))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from interpretune.plugins.stack import build_context

    context = build_context(options.adapter)
    if options.json:
        stack = [
            {
                "name": item.name,
                "level": str(item.declaration.level),
                "distribution": item.installed.distribution,
                "version": item.installed.version,
                "requires": list(item.declaration.requires),
            }
            for item in context.adapters
        ]
        print(
            json.dumps({"stack": stack, "hooks": {name: list(owners) for name, owners in context.answers()}}, indent=1)
        )
    else:
        print(context)
    return 0


def _new_adapter(options: argparse.Namespace) -> int:
    from interpretune.new_adapter.writing import write_adapter
    from interpretune.plugins.declaration import Level

    folder = write_adapter(options.name, Level(options.kind), options.output)
    if options.json:
        print(json.dumps({"name": options.name, "kind": options.kind, "folder": str(folder)}, indent=1))
        return 0
    print(
        f"The adapter {options.name!r} is in {folder}. What comes next:\n\n"
        f"  cd {folder}\n"
        '  pip install --editable ".[dev]"\n'
        "  interpretune adapters\n"
        "  pytest\n"
        f"  interpretune doctor {options.name}\n\n"
        "src/ says where to go on; choose a license before you publish it."
    )
    return 0


def _hooks(options: argparse.Namespace) -> int:
    from attrs import asdict
    from tabulate import tabulate

    _quiet_libraries()
    from interpretune.cli.hooks import find_hooks

    found = find_hooks(options.model, options.adapters, options.cache_dir)
    if options.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    print(f"{found.model} in the stack {', '.join(found.adapters)}")
    print(tabulate(found.table(), headers="keys", tablefmt="simple", disable_numparse=True))
    if options.all:
        print("\n".join(["", f"The backend's own {len(found.own)} names:", *found.own]))
    return 0


def _tasks(options: argparse.Namespace) -> int:
    from tabulate import tabulate

    from interpretune.cli import tasks

    if options.name is None:
        rows, table, widths = tasks.listed_tasks(), tasks.tasks_table, [None, 40, tasks.WIDTH, None]
    else:
        rows, table, widths = tasks.shown_rows(options.name, options.rows, options.seed), tasks.rows_table, None
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(tabulate(table(rows), headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=widths))
    return 0


def _report(options: argparse.Namespace) -> int:
    from interpretune.cli.report import write_report

    report = write_report(options.stores, options.output)
    text = json.dumps(report.as_dict(), indent=1, allow_nan=False) if options.json else None
    print(text or report.text(verbose=options.verbose))
    return 0


def _plot(options: argparse.Namespace) -> int:
    from interpretune.analysis import plot

    for store in options.stores:
        folder = options.output if len(options.stores) == 1 else options.output / store.name
        plot(store, options.name, folder)
    return 0


def _export(options: argparse.Namespace) -> int:
    from interpretune.sharing import export_latents

    named = {name: getattr(options, name) for name in ("model_id", "source_set", "creator_id")}
    given = {name: value for name, value in named.items() if value is not None}
    folders = list(map(str, export_latents(options.stores, options.output, options.format, **given)))
    print(json.dumps({"format": options.format, "folders": folders}, indent=1) if options.json else "\n".join(folders))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from interpretune.cli.doctor import run_doctor

    return run_doctor(
        options.adapter, rules=options.rule, as_json=options.json, seed=options.seed, architecture=options.architecture
    )


def _demo(options: argparse.Namespace) -> int:
    # the demo has this process to itself; on a busy machine threads that spin while they wait cost a factor of four
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of other libraries, which draw without a terminal too
    from rich.console import Console

    _quiet_libraries()
    from interpretune.cli.demo import run_demo

    try:
        demo = run_demo(options, options.further, Console(stderr=True, markup=False))
    except argparse.ArgumentError as error:
        argparse.ArgumentParser(prog="interpretune demo").error(str(error))
    print(json.dumps(demo.as_dict(), indent=1) if options.json else demo.report.text(verbose=options.verbose))
    return 0


def _circuit(options: argparse.Namespace) -> int:
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    """Run a file, for `interpretune run` and `interpretune circuit`."""
    of_circuit = options.run is _circuit
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # modules of users; at the end, so that they hide no installed one
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    from rich.console import Console

    from interpretune.cli.run_config import USAGE, read_run

    try:
        config = read_run(options.further if of_circuit else options.arguments)
    except argparse.ArgumentError as error:
        name, usage = ("circuit", CIRCUIT_USAGE) if of_circuit else ("run", USAGE)
        argparse.ArgumentParser(prog=f"interpretune {name}", usage=usage).error(str(error))
    _quiet_libraries()
    from interpretune.cli.circuit import run_circuit
    from interpretune.cli.run import RunReport, run_analyses

    progress = Console(stderr=True, markup=False)
    try:
        report = run_circuit(config, options.output, progress) if of_circuit else run_analyses(config, progress)
    except KeyboardInterrupt:
        if config.dry_run:
            raise
        print("interrupted; the same command goes on where this run was stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    if is_first_process():
        told = report.text if isinstance(report, RunReport) else report.text(verbose=options.verbose)
        print(json.dumps(report.as_dict(), indent=1) if config.json else told)
    return 0


def _quiet_libraries() -> None:
    """Leave the terminal to a command: this is its own process, so their settings are its to set."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
