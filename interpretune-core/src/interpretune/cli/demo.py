"""``interpretune demo``: a configuration file of the package for ``interpretune run``, and the page of its results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files

from rich.console import Console

from interpretune.cli.demo_rows import demo_rows
from interpretune.cli.reported import Reported, page_file, run_and_report
from interpretune.cli.run_config import read_run
from interpretune.config.shared import ITSharedConfig
from interpretune.errors import ModelLoadError
from interpretune.models.offline_model import offline_model
from interpretune.models.tokenizer import load_tokenizer

AGREEMENT, OTHER_ROWS = "agreement.yaml", "rows.yaml"
"""The files: the question of the demo, and one for any rows."""


def run_demo(options: argparse.Namespace, further: Sequence[str], progress: Console) -> Reported:
    """Run the analyses of the file, and write the page.

    Args:
        options: Of the command line of the demo.
        further: Options of ``interpretune run``, which take precedence.
        progress: Where progress goes.

    Raises:
        InterpretuneError: What is wrong.
        ArgumentError: A further option is wrong.
    """
    page = page_file(options.output / "page.html", "--output")
    page.unlink(missing_ok=True)  # that of an earlier run, in a folder of the demo's own
    name = AGREEMENT if options.data is None else OTHER_ROWS
    with as_file(files("interpretune").joinpath(f"cli/demo_files/{name}")) as file:
        config = read_run([str(file), *_overrides(options, further), *further])
    return run_and_report(config, page, progress)


def _overrides(options: argparse.Namespace, further: Sequence[str]) -> Iterator[str]:
    """What the options of the demo change in the file."""
    model = options.model
    if model is None and not any(item.partition("=")[0].endswith("model_name_or_path") for item in further):
        model = str(offline_model(options.cache_dir))
    layers = options.layers
    if layers is None and options.model is not None:
        layers = [late_layer(ITSharedConfig(model_name_or_path=model, cache_dir=options.cache_dir))]
    values = {
        "shared_cfg.model_name_or_path": model,
        "shared_cfg.cache_dir": None if options.cache_dir is None else str(options.cache_dir),
        "adapter_ctx": options.adapters,
        "latents.release": options.sae_release,
        "latents.layers": layers,
        "latents.hook": options.hook,
        "latents.seed": options.seed,
        "latents.scale": options.training_scale,
        "analyses.model.units": None if layers is None else ["heads", {"neurons": layers}],
        "datamodule_cfg.eval_batch_size": options.batch_size,
        "root": str(options.output / "analyses"),
        **dict.fromkeys(("limit", "analyses.model.limit", "analyses.latents.limit"), options.limit),
    }
    if options.data is not None:
        values["datamodule_cfg.rows"] = demo_rows(options.data, options.answers, options.cache_dir)
    elif options.answers is not None:
        values["datamodule_cfg.answers"] = options.answers
    for name, value in values.items():
        if value is not None:
            yield f"--{name}={value if isinstance(value, str) else json.dumps(value)}"


def late_layer(shared: ITSharedConfig) -> int:
    """The layer nine tenths up a model.

    Raises:
        ModelLoadError: The model cannot be reached, or its number of layers cannot be read without running its code.
    """
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
    return n_layers * 9 // 10
