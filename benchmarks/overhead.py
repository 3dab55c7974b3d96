"""What a composed module costs beside the same model in a bare PyTorch loop.

Pairs of runs, side by side in one process: the same model, batches, loss and optimizer, once through ``fit`` or
``test`` of core and once in a loop written by hand. The order alternates from pair to pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging

import interpretune as it
from interpretune.tokenization import answer_positions, position_ids

WORDS = 96
"""Words in a row of text."""
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}
QUIET: dict[str, Any] = {"progress": False, "limit_val_batches": 0}
RESULT = Path(__file__).parent / "out" / "overhead.json"


def make_session(folder: Path, rows: int) -> it.ITSession:
    """A Llama of 6 layers and 384 dimensions with random weights, and rows of about a hundred tokens."""
    words = ["<bos>", "<unk>", "Yes", "No", *(f"w{index}" for index in range(4000))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<bos>", "pad_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "tokenizer")
    draw = torch.Generator().manual_seed(0)
    for split in ("train", "validation"):
        lines = []
        for row in range(rows):
            text = " ".join(f"w{index}" for index in torch.randint(4000, (WORDS + row % 9,), generator=draw).tolist())
            lines.append(json.dumps({"premise": text, "hypothesis": "w1 w2", "label": row % 2}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    session = it.ITSession(
        it.ITSessionConfig(
            module_cls=it.ClassificationModule,
            shared_cfg=it.ITSharedConfig(tokenizer_name=str(folder / "tokenizer"), cache_dir=folder / "cache"),
            datamodule_cfg=it.ITDataModuleConfig(
                data={split: folder / f"{split}.jsonl" for split in ("train", "validation")},
                text_fields=("premise", "hypothesis"),
                num_labels=2,
            ),
            module_cfg=it.ITConfig(
                hf_config=LlamaConfig(
                    vocab_size=len(words),
                    hidden_size=384,
                    intermediate_size=1024,
                    num_hidden_layers=6,
                    num_attention_heads=6,
                    num_key_value_heads=3,
                ),
                generative_step_cfg=it.GenerativeClassificationConfig(answers=("Yes", "No")),
                optimizer_init=ADAM,
                device="cpu",
            ),
        )
    )
    it.it_init(**session)
    return session


def class_logits(model: Any, batch: Any, answers: torch.Tensor) -> torch.Tensor:
    """What ``ClassificationModule`` computes, without it."""
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=position_ids(mask)).logits
    return logits[torch.arange(len(logits)), answer_positions(mask)][:, answers]


def bare_fit(session: it.ITSession, steps: int) -> None:
    """A training loop in plain PyTorch."""
    model, answers = session.module.model, session.module.answer_token_ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    for step, batch in enumerate(session.datamodule.train_dataloader(), start=1):
        loss = functional.cross_entropy(class_logits(model, batch, answers), batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == steps:
            break
    model.eval()


@torch.no_grad()
def bare_test(session: it.ITSession, steps: int) -> None:
    """An evaluation loop in plain PyTorch."""
    model, answers = session.module.model, session.module.answer_token_ids
    loss, correct, rows = torch.zeros(()), torch.zeros(()), 0
    for step, batch in enumerate(session.datamodule.test_dataloader(), start=1):
        logits, labels = class_logits(model, batch, answers), batch["labels"]
        loss += functional.cross_entropy(logits, labels) * len(labels)
        correct += (logits.argmax(-1) == labels).sum()
        rows += len(labels)
        if step == steps:
            break
    assert (loss / rows).isfinite()
    assert 0 <= correct <= rows


def compare(composed: Callable[[], Any], bare: Callable[[], Any], pairs: int) -> list[tuple[float, float]]:
    """Seconds of both, pair by pair."""
    times = []
    for pair in range(-1, pairs):  # the first warms up
        order = (composed, bare) if pair % 2 else (bare, composed)
        seconds = {}
        for run in order:
            start = time.perf_counter()
            run()
            seconds[run] = time.perf_counter() - start
        if pair >= 0:
            times.append((seconds[composed], seconds[bare]))
    return times


def summary(name: str, times: list[tuple[float, float]], steps: int) -> dict[str, Any]:
    """Median and quartiles of the ratios, and microseconds a step."""
    ratios = [composed / bare for composed, bare in times]
    extra = [(composed - bare) / steps * 1e6 for composed, bare in times]
    return {
        f"{name}_ratio": round(statistics.median(ratios), 4),
        f"{name}_ratio_quartiles": [round(value, 4) for value in statistics.quantiles(ratios, n=4)],
        f"{name}_overhead_us": round(statistics.median(extra)),
        f"{name}_step_ms": round(statistics.median(bare for _, bare in times) / steps * 1e3, 1),
    }


def main() -> None:
    """Run the benchmark and write ``benchmarks/out/overhead.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30, help="paired runs of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps in a run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    steps = options.steps
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(Path(folder), rows=8 * steps)
        fit_cfg, test_cfg = it.LoopConfig(max_steps=steps, **QUIET), it.LoopConfig(**QUIET)
        fits = compare(lambda: it.fit(**session, loop_cfg=fit_cfg), lambda: bare_fit(session, steps), options.pairs)
        tests = compare(lambda: it.test(**session, loop_cfg=test_cfg), lambda: bare_test(session, steps), options.pairs)
    found = {
        **summary("train", fits, steps),
        **summary("test", tests, steps),
        "pairs": options.pairs,
        "steps": steps,
        "threads": options.threads,
        "torch": torch.__version__,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
