"""The configuration of ``interpretune run``: a file and options of the command line become a session and analyses.

Which fields there are depends on the stack, so reading has two stages: adapters and mixins first, then everything
else with a parser that is made of the configuration classes that the session composes.
"""

from __future__ import annotations

import copy
import shlex
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from interpretune.analysis import QuestionCfg
from interpretune.analysis.modes import mode_named
from interpretune.cli.run_arguments import CommandLine, check_shape, read_file, split_arguments, with_options
from interpretune.cli.written_analysis import RunnerOptions, WrittenAnalysis
from interpretune.cli.written_fields import dataclasses_of, default_of, init_fields, takes_mapping, written_fields
from interpretune.cli.written_names import check_fields, import_class, init_args
from interpretune.config.datamodule import ITDataModuleConfig
from interpretune.config.latents import LatentRequest
from interpretune.config.module import AutoCompConfig, ITConfig
from interpretune.config.shared import ITSharedConfig
from interpretune.errors import ConfigurationError, InterpretuneError
from interpretune.plugins.stack import ExecutionContext, build_context
from interpretune.questions.in_words import told
from interpretune.session.composition import compose_datamodule_cfg, compose_module_cfg
from interpretune.session.session import ITSessionConfig

USAGE = "interpretune run [CONFIG.yaml] [--dry-run] [--json] [--NAME VALUE ...]"
ABOUT = """Run analyses over a data set, and go on where an earlier run was stopped.

--dry-run shows plans, rows, forward passes and bytes, and writes nothing; --json prints for programs. Every field of
the configuration is an option, which takes precedence over the file; `session.` and `runner.` may be left out:
--limit 100 --datamodule_cfg.eval_batch_size 16 --analyses.NAME.row_budget 64. Fields depend on session.adapter_ctx;
--print_config shows all of them, as a file that can be read again."""
WRONG_VALUES = (ArgumentError, TypeError, ValueError, ImportError, AttributeError)
"""What the parser raises where a value is not of its type, or names what is not there."""


@frozen
class RunConfig:
    """What a run is made of.

    Attributes:
        session: The session.
        analyses: By name.
        runner: How they are run.
        made_by: What stores note: the command, and the file with the options in it.
        dry_run: Whether nothing is to be written.
        json: Whether it is told for programs.
    """

    session: ITSessionConfig
    analyses: Mapping[str, WrittenAnalysis | QuestionCfg]
    runner: RunnerOptions
    made_by: Mapping[str, Any]
    dry_run: bool
    json: bool


def read_run(arguments: Sequence[str]) -> RunConfig:
    """Read the arguments of ``interpretune run``; a request for help or for the configuration is answered.

    Raises:
        ConfigurationError: The file cannot be read, or says something that does not fit.
        AdapterError: An adapter cannot be stacked.
        ArgumentError: The command line is wrong.
        SystemExit: Help or the configuration was asked for and is printed.
    """
    line = split_arguments(arguments)
    written = read_file(line.file)
    check_shape(written)
    wanted = with_options(written, line.options)
    try:
        check_shape(wanted)
    except ConfigurationError as error:
        raise ArgumentError(None, str(error)) from error
    made_by = {
        "command": f"interpretune run {shlex.quote(Path(line.file or 'CONFIG.yaml').name)}",
        "configuration": told({part: value for part, value in wanted.items() if value}),
    }
    values, types = _read_values(written, wanted, line)
    if not wanted["analyses"]:
        problem = "There are no analyses. Add some, `analyses: {clean: {mode: clean_no_sae}}` for one."
        raise ConfigurationError(problem) if line.file else ArgumentError(None, f"{problem} Which CONFIG.yaml is it?")
    return _build(values, types, wanted["analyses"], line, made_by)


def read_session(written: Mapping[str, Any]) -> ITSessionConfig:
    """The configuration of a session from plain values, as a YAML file has them: ``session`` of ``interpretune run``.

    Args:
        written: ``adapter_ctx``, ``module_cls``, ``shared_cfg``, ``datamodule_cfg``, ``module_cfg``, ``latents``;
            classes by their paths.

    Raises:
        ConfigurationError: Something in it does not fit.
        AdapterError: An adapter cannot be stacked.
    """
    wanted = {"session": copy.deepcopy(dict(written)), "analyses": {}, "runner": {}}
    check_shape(wanted)
    line = CommandLine(None, (), (), dry_run=False, json=False)
    values, types = _read_values(wanted, copy.deepcopy(wanted), line)
    return _build(values, types, (), line, {}).session


def _read_values(
    written: Mapping[str, Any], wanted: dict[str, Any], line: CommandLine
) -> tuple[Namespace, dict[str, type]]:
    """The values of all parts, and the types of the parts, which depend on the stack."""
    context, recipe = _read_stack(wanted["session"])
    asks_for_latents = wanted["session"].get("latents") is not None or any("help" in item for item in line.asks)
    types = {
        "session.shared_cfg": ITSharedConfig,
        "session.datamodule_cfg": _type_of(ITDataModuleConfig(), recipe, context, "datamodule_cfg"),
        "session.module_cfg": _type_of(ITConfig(), recipe, context, "module_cfg"),
        **({"session.latents": LatentRequest} if asks_for_latents else {}),
        **{f"analyses.{name}": _kind_of(item) for name, item in wanted["analyses"].items()},
        "runner": RunnerOptions,
    }
    _check_names(written, types, context)
    try:
        _check_names(wanted, types, context)
    except ConfigurationError as error:
        raise ArgumentError(None, str(error)) from error
    parser = _parser(types)
    file, options = _fold_options(written, wanted, line, types)
    return _parse(parser, file, options, line), types


def _kind_of(analysis: Any) -> type:
    """What an analysis with units or a method is: a question; others are modes."""
    asks = isinstance(analysis, Mapping) and not analysis.keys().isdisjoint({"units", "method"})
    return QuestionCfg if asks else WrittenAnalysis


def _read_stack(session: Mapping[str, Any]) -> tuple[ExecutionContext, AutoCompConfig]:
    """The stack, and the classes by path that decide which fields there are."""
    for name in ("module_cls", "datamodule_cls"):
        if session.get(name) is not None:
            import_class(session[name], f"session.{name}")
    recipe, where = AutoCompConfig(), "session.module_cfg.auto_comp_cfg"
    module_cfg = session.get("module_cfg")
    written = init_args(module_cfg.get("auto_comp_cfg")) if isinstance(module_cfg, Mapping) else None
    if written:
        check_fields(written, AutoCompConfig, where)
        for name, value in written.items():
            if name.endswith("_mixin"):
                paths = value if isinstance(value, list) else [value] if value else []
                setattr(recipe, name, [import_class(path, f"{where}.{name}") for path in paths])
            else:
                setattr(recipe, name, value)
    return build_context(session.get("adapter_ctx") or ("core",)), recipe


def _type_of(cfg: Any, recipe: AutoCompConfig, context: ExecutionContext, kind: str) -> type:
    """The class that the session would compose of a configuration."""
    added = [*getattr(recipe, f"{kind}_mixin"), *(base for _, base in context.bases(kind))]
    needed = [item.name for base in added if is_dataclass(base) for item in fields(base) if _has_no_default(item)]
    cfg.awaiting_composition = dict.fromkeys(needed)  # only the class is wanted
    if kind == "datamodule_cfg":
        return type(compose_datamodule_cfg(cfg, context, recipe))
    cfg.auto_comp_cfg = recipe
    return type(compose_module_cfg(cfg, context))


def _has_no_default(item: Any) -> bool:
    return item.init and item.default is MISSING and item.default_factory is MISSING


def _check_names(wanted: Mapping[str, Any], types: Mapping[str, type], context: ExecutionContext) -> None:
    for prefix, cls in types.items():
        hint = ""
        if prefix in ("session.module_cfg", "session.datamodule_cfg"):
            hint = f"Stacked: {', '.join(context.names)}; adapters that add fields are named in session.adapter_ctx. "
        elif cls is QuestionCfg:
            hint = "An analysis with units or a method is a question, which has no mode. "
        check_fields(_section(wanted, prefix), cls, prefix, hint)
        if cls is WrittenAnalysis and isinstance(mode := _section(wanted, prefix).get("mode"), str):
            mode_named(mode, f"{prefix}.mode")


def _section(wanted: Mapping[str, Any], prefix: str) -> Any:
    """The part of a configuration with a class's fields; it is made where it is absent."""
    part, _, name = prefix.partition(".")
    if not name:
        return wanted[part]
    if wanted[part].get(name) is None:
        wanted[part][name] = {}
    return wanted[part][name]


def _parser(types: Mapping[str, type]) -> ArgumentParser:
    set_parsing_settings(instantiate_subclass_spec_in_any=False)  # only fields that want an object of a class get one
    parser = ArgumentParser(prog="interpretune run", usage=USAGE, description=ABOUT, exit_on_error=False)
    parser.add_argument("--config", action="config", help=SUPPRESS)
    session = parser.add_argument_group("session")
    session.add_argument(
        "--session.adapter_ctx", type=list[str] | str, default=["core"], help="Names of adapters to stack."
    )
    defaults = ITSessionConfig()
    for name, about in (("module_cls", "The module's class."), ("datamodule_cls", "The data module's class.")):
        session.add_argument(f"--session.{name}", type=type, default=getattr(defaults, name), help=about)
    for prefix, cls in types.items():
        _add_fields(parser.add_argument_group(prefix), prefix, cls, expands=not prefix.startswith("session."))
    return parser


def _add_fields(group: Any, prefix: str, cls: type, *, expands: bool) -> None:
    """Add options for the fields of a class.

    Args:
        group: Of the parser.
        prefix: Before the names of the fields.
        cls: A dataclass.
        expands: Whether the fields of a field that is a dataclass are options too; else its class can be chosen.
    """
    for item in written_fields(cls):
        name = f"{prefix}.{item.name}"
        if expands and isinstance(item.type, type) and is_dataclass(item.type):
            _add_fields(group, name, item.type, expands=True)
            continue
        choosable: list[type | str] = [
            found for found in dataclasses_of(item.type, item.default) if found is not AutoCompConfig
        ]
        set_parsing_settings(subclasses_enabled=choosable)
        options: dict[str, Any] = {"required": True} if item.default is MISSING else {"default": SUPPRESS}
        if item.default is not MISSING and item.shows_default:
            options["default"] = item.default
        group.add_argument(f"--{name}", dest=name, type=item.type, help=item.about or None, **options)


def _fold_options(
    written: Mapping[str, Any], wanted: Mapping[str, Any], line: CommandLine, types: Mapping[str, type]
) -> tuple[dict[str, Any], list[str]]:
    """What the parser reads as the file and as options.

    Where a mapping has a ``class_path``, as ``optimizer_init`` does, the parser would take options for those of a
    class, and of a field that takes anything it reads no parts: such options become part of the file.
    """
    file, left = copy.deepcopy(dict(written)), list(line.options)
    for prefix, cls in types.items():
        for item in written_fields(cls):
            value = _section(wanted, prefix).get(item.name)
            of_field = [pair for pair in left if f"{pair[0]}.".startswith(f"{prefix}.{item.name}.")]
            has_class = isinstance(value, dict) and "class_path" in value and takes_mapping(item.type)
            if of_field and (has_class or item.type is Any):
                _section(file, prefix)[item.name] = value
                left = [pair for pair in left if pair not in of_field]
    return file, [f"--{name}={text}" for name, text in left]


def _parse(parser: ArgumentParser, written: Mapping[str, Any], options: Sequence[str], line: CommandLine) -> Namespace:
    """Parse the file and the options; what is wrong in the file alone is a matter of the file."""
    file = ["--config", yaml.safe_dump(dict(written), sort_keys=False)]
    try:
        parsed: Namespace = parser.parse_args([*file, *options, *line.asks])
        return parser.instantiate(parsed)
    except InterpretuneError:
        raise
    except WRONG_VALUES as error:
        if options and _is_fine(parser, file):
            raise ArgumentError(None, str(error)) from error
        raise ConfigurationError(f"{line.file or 'The configuration'}: {error}") from error


def _is_fine(parser: ArgumentParser, file: Sequence[str]) -> bool:
    try:
        parser.parse_args(file)
    except WRONG_VALUES:
        return False
    return True


def _build(
    values: Namespace, types: Mapping[str, type], names: Iterable[str], line: CommandLine, made_by: Mapping[str, Any]
) -> RunConfig:
    def build(prefix: str) -> Any:
        cls = types[prefix]
        written = written_fields(cls)
        found, kinds = values.get(prefix), {item.name: item.type for item in written}
        tuples = {item.name for item in written if isinstance(item.default, tuple)}  # the parser makes lists of them
        given = {
            name: kinds[name](**vars(value))
            if is_dataclass(kinds[name]) and isinstance(value, Namespace)
            else _settled(value)
            for name, value in (vars(found) if found is not None else {}).items()
        }
        given |= {name: tuple(given[name]) for name in tuples & given.keys() if isinstance(given[name], list)}
        if "auto_comp_cfg" in given:
            given["auto_comp_cfg"] = None  # the class is composed already
        try:
            return cls(**given)
        except InterpretuneError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{prefix} is refused by {cls.__qualname__}: {error}") from error

    session = values.session
    return RunConfig(
        session=ITSessionConfig(
            adapter_ctx=session.adapter_ctx,
            datamodule_cls=session.datamodule_cls,
            module_cls=session.module_cls,
            shared_cfg=build("session.shared_cfg"),
            datamodule_cfg=build("session.datamodule_cfg"),
            module_cfg=build("session.module_cfg"),
            latents=build("session.latents") if "session.latents" in types else None,
        ),
        analyses={str(name): build(f"analyses.{name}") for name in names},
        runner=build("runner"),
        made_by=made_by,
        dry_run=line.dry_run,
        json=line.json,
    )


def _settled(value: Any) -> Any:
    """Make what the parser leaves as it is: mappings, and objects where ``Any`` has a configuration as its default."""
    if isinstance(value, Namespace):
        return value.as_dict()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_settled, value))
    if isinstance(value, dict):
        return {name: _settled(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        for item in init_fields(type(value)):
            given, default = _settled(getattr(value, item.name)), default_of(item)
            if isinstance(given, Mapping) and "class_path" in given and is_dataclass(default):
                given = import_class(given["class_path"], item.name)(**given.get("init_args", {}))
            object.__setattr__(value, item.name, given)
    return value
