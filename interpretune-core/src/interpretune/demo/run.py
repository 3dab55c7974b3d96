"""The demo's main job: session, four analyses, tables, figures and a summary."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from tabulate import tabulate

from interpretune.analysis.cache import AnalysisCache, SaveCfg
from interpretune.analysis.direction import direction_of
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.plan_runner import AnalysisRunner
from interpretune.config.checked import CheckedConfig
from interpretune.config.datamodule import ITDataModuleConfig, PromptConfig
from interpretune.config.latents import LatentRequest
from interpretune.config.module import GenerativeClassificationConfig, ITConfig
from interpretune.config.shared import ITSharedConfig
from interpretune.demo.data import TEXT_FIELDS, demo_files
from interpretune.demo.report import asked_answer, write_report
from interpretune.errors import ConfigurationError, ModelLoadError
from interpretune.latents.quality import measure_latent_quality
from interpretune.memory.profiling import peak_memory_bytes
from interpretune.models.offline_model import is_cached, offline_model
from interpretune.models.tokenizer import load_tokenizer
from interpretune.plugins.declaration import Level
from interpretune.plugins.discovery import installed_adapters
from interpretune.plugins.stack import ExecutionContext, build_context
from interpretune.reports.sections import finite_or_none
from interpretune.session.session import ITSession, ITSessionConfig, it_init, it_session_end
from interpretune.system.credentials import without_credentials
from interpretune.system.whole_file import output_file

if TYPE_CHECKING:
    from interpretune.session.module import ITModule

PATTERN = "Text: {task_prompt}"
JOIN = "\nClaim: "
SUFFIX = "\nThe claim is supported by the text (Yes/No):"
ANSWERS = (" Yes", " No")
QUALITY_ROWS = 24
MIB = 1024 * 1024


@dataclass(kw_only=True)
class DemoOptions(CheckedConfig, checks_types=True):
    """What the command line of the demo sets.

    Attributes:
        adapters: Adapters to stack; None: the installed ones that supply latent models.
        model: Folder, GGUF file or hub id; None: the offline default.
        sae_release: Release or folder of latent models; None: train them.
        layers: Layers with latent models; None: half-way and three quarters up the model.
        hook: Hook point in a layer at which to train.
        data: JSONL file, folder, or hub data set and subset; None: the rows of the package.
        answers: Answer words for the labels 0 and 1.
        towards: The answer whose effects are reported beside those towards the correct one: its word, or its label; the
            figures are made for it too. None: the first, without figures of its own.
        limit: Most rows to analyse.
        ablation_rows: Rows to ablate, rounded up to whole batches; None: all that are analysed.
        batch_size: Rows in a batch.
        top_k: Latents in each table.
        output: Folder for figures, tables and the summary.
        cache_dir: Folder for models, rows and trained latent models.
        seed: Seed of everything that is trained.
        training_scale: Length of the training of latent models, 1.0 being the default.
    """

    adapters: Sequence[str] | None = None
    model: str | None = None
    sae_release: str | None = None
    layers: Sequence[int] | None = None
    hook: str = "hook_resid_post"
    data: str | None = None
    answers: Sequence[str] = ANSWERS
    towards: str | int | None = None
    limit: int | None = None
    ablation_rows: int | None = None
    batch_size: int = 4
    top_k: int = 3
    output: Path = Path("interpretune-demo")
    cache_dir: Path | None = None
    seed: int = 0
    training_scale: float = 1.0


@dataclass
class Stopwatch:
    """Seconds of the named parts of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str, console: Console) -> Iterator[None]:
        """Time a block; on a terminal show that it is running."""
        start = time.perf_counter()
        console.print(f"{name} ...", style="dim", markup=False)
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        console.print(f"{name}: {self.seconds[name]} s", style="dim", markup=False)


def run_demo(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Run the four analyses, write figures, tables and ``summary.json``, return the summary (``InterpretuneError``)."""
    watch = Stopwatch()
    start = time.perf_counter()
    direction_of(asked_answer(options), options.answers)  # before anything costs time
    context = build_context(choose_adapters(options.adapters))
    written = _summary_file(options.output)
    console.print(str(context), highlight=False, markup=False, soft_wrap=True)
    warm = options.model is not None or is_cached(options.cache_dir)
    with watch.part("model and rows" + ("" if warm else " (the model is converted once)"), console):
        session = demo_session(options, context)
    with watch.part("data, latent models", console):
        it_init(**session)
    try:
        summary = _analyse(session, options, watch, console)
    finally:
        it_session_end(**session)
    summary |= {
        "seconds": {**watch.seconds, "total": round(time.perf_counter() - start, 1)},
        "peak_memory_mib": round(peak_memory_bytes() / MIB),
        "threads": torch.get_num_threads(),
    }
    console.rule("run")
    console.print(
        tabulate([[k, v] for k, v in summary["seconds"].items()], headers=["part", "seconds"]), highlight=False
    )
    console.print(f"peak memory: {summary['peak_memory_mib']} MiB; threads: {summary['threads']}", highlight=False)
    with output_file(written, "name another folder with --output") as partial:
        partial.write_text(json.dumps(without_credentials(summary), indent=1, allow_nan=False), encoding="utf-8")
    console.print(
        f"written to {options.output}: figures, a store of results for each mode, summary.json",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return summary


def choose_adapters(named: Sequence[str] | None) -> Sequence[str]:
    """The named adapters, or the one installed adapter that supplies latent models.

    Raises:
        ConfigurationError: Nothing was named, and not exactly one installed adapter supplies latent models.
    """
    if named:
        return named
    installed = installed_adapters().values()
    found = [item.name for item in installed if (about := item.read_declaration()) and about.level is Level.latents]
    if len(found) != 1:
        raise ConfigurationError(
            f"The demo needs an adapter that supplies latent models (level {Level.latents}); installed: "
            f"{', '.join(found) or 'none'}. "
            + ("Name one with --adapters." if found else "Install one; `interpretune adapters` lists what is there.")
        )
    return found


def _summary_file(output: Path) -> Path:
    """Where the summary goes, checked before anything costs time; that of an earlier run is removed."""
    path = output / "summary.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"The output folder {output} cannot be written ({error.strerror}). Name another with --output."
        ) from error
    return path


def demo_session(options: DemoOptions, context: ExecutionContext) -> ITSession:
    """The demo's session, before ``it_init``."""
    model = options.model or str(offline_model(options.cache_dir))
    files = demo_files(options.data, options.limit, options.cache_dir)
    shared = ITSharedConfig(
        model_name_or_path=model,
        task_name="entailment",
        tokenizer_kwargs={"padding_side": "left"},
        cache_dir=options.cache_dir,
    )
    datamodule_cfg = ITDataModuleConfig(
        data=files,
        text_fields=TEXT_FIELDS,
        num_labels=len(options.answers),
        prompt_cfg=PromptConfig(ctx_question_join=JOIN, question_suffix=SUFFIX),
        cust_tokenization_pattern=PATTERN,
        train_batch_size=16,
        eval_batch_size=options.batch_size,
    )
    request = LatentRequest(
        release=options.sae_release,
        layers=options.layers or _default_layers(shared),
        hook=options.hook,
        seed=options.seed,
        scale=options.training_scale,
    )
    module_cfg = ITConfig(
        generative_step_cfg=GenerativeClassificationConfig(answers=tuple(options.answers)), seed=options.seed
    )
    return ITSession(
        ITSessionConfig(
            adapter_ctx=context.names,
            shared_cfg=shared,
            datamodule_cfg=datamodule_cfg,
            module_cfg=module_cfg,
            latents=request,
        )
    )


def _default_layers(shared: ITSharedConfig) -> tuple[int, int]:
    from transformers import AutoConfig

    from interpretune.models.loading import resolve_source

    load_tokenizer(shared)  # reports a source that cannot be reached before anything large is loaded
    source = resolve_source(shared.model_name_or_path, shared.cache_dir)
    try:
        n_layers = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config().num_hidden_layers
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(
            f"The number of layers of {source!r} cannot be read from its configuration: {error}. Name the layers with "
            "--layers; a model that brings its own code is not run by the demo."
        ) from error
    return n_layers // 2, n_layers * 3 // 4


def run_modes(
    session: ITSession, options: DemoOptions, watch: Stopwatch, console: Console
) -> dict[AnalysisMode, AnalysisCache]:
    """Run the four modes into stores: in one pass, unless fewer rows are to be ablated."""
    limited = options.ablation_rows is not None
    passes = [[mode for mode in AnalysisMode if not limited or mode is not AnalysisMode.ablation]]
    passes += [[AnalysisMode.ablation]] if limited else []
    caches: dict[AnalysisMode, AnalysisCache] = {}
    for modes in passes:
        save = SaveCfg(prompts=True, tokens=True)
        cfgs = {str(mode): AnalysisCfg(mode=mode, analysis_cache=AnalysisCache(save)) for mode in modes}
        rows = options.ablation_rows if modes == [AnalysisMode.ablation] else None
        runner = AnalysisRunner(**session, root=options.output / "analyses", limit=rows, console=console)
        with watch.part(f"analyses {', '.join(cfgs)}", console):
            caches |= {AnalysisMode(name): AnalysisCache.of(store) for name, store in runner.run(cfgs).items()}
    return caches


def _analyse(session: ITSession, options: DemoOptions, watch: Stopwatch, console: Console) -> dict[str, Any]:
    module, datamodule = session.module, session.datamodule
    caches = run_modes(session, options, watch, console)
    cost = _ablation_cost(module, caches[AnalysisMode.ablation])
    checked = ""
    if cost["replayed"]:
        checked = f", replayed within {cost['max_abs_error']:.1e} logits of whole forwards where they were compared"
    console.print(
        f"{cost['ablations']} ablations of {cost['alive_latents']} alive latents{checked}. "
        f"Latent by latent they would have cost {cost['loop_forwards']} forward passes of a batch.",
        highlight=False,
        soft_wrap=True,
    )
    with watch.part("quality of the latent models", console):
        batches = itertools.islice(datamodule.test_dataloader(), -(-QUALITY_ROWS // options.batch_size))
        quality = measure_latent_quality(module.backend, module.latent_models, batches)
    return write_report(session, options, caches, quality, console) | {"ablation_cost": cost}


def _ablation_cost(module: ITModule, cache: AnalysisCache) -> dict[str, Any]:
    """What was ablated, and what the loop over single latents would have taken.

    Nothing was replayed where results of an earlier run were found.
    """
    values = [item for batch in cache.activations for item in batch.values()]
    checks = module.backend.replays.checks()
    replayed = bool(checks) and all(check.passed for check in checks)
    worst = max((check.max_abs_error for check in checks), default=math.nan)
    return {
        "ablations": sum(int((item.values > 0).sum()) for item in values),
        "alive_latents": len({(name, i) for b in cache.alive_latents for name, ids in b.items() for i in ids.tolist()}),
        "loop_forwards": sum(len(item.latents) for item in values),
        "replayed": replayed,
        "max_abs_error": finite_or_none(worst),
    }
