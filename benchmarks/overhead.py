"""What a composed module costs beside the same model in a bare PyTorch loop, and beside an ordinary LightningModule.

Pairs of runs, side by side in one process: the same model, batches, loss and optimizer, once as a composed module and
once as written by hand. With core, that is ``fit`` or ``test`` and a loop in plain PyTorch; with Lightning, its Trainer
runs both. The order alternates from pair to pair.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer as PlainTrainer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

import interpretune as it
from interpretune.models.padding import answer_positions, position_ids
from interpretune_lightning import Trainer

WORDS = 64
"""Words in a row of text."""
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}
QUIET: dict[str, Any] = {"progress": False, "limit_val_batches": 0}
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}
RESULT = Path(__file__).parent / "out" / "overhead.json"


def make_session(folder: Path, rows: int, framework: str) -> it.ITSession:
    """A Llama of 4 layers and 384 dimensions with random weights, and rows of about seventy tokens."""
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
            adapter_ctx=(framework,),
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
                    num_hidden_layers=4,
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


class PlainModule(LightningModule):
    """What a user of Lightning would write around the model."""

    def __init__(self, model: Any, answers: torch.Tensor) -> None:
        super().__init__()
        self.model, self.answers = model, answers

    def configure_optimizers(self) -> Any:
        """The session's optimizer."""
        return torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross entropy, as ``ClassificationModule`` has it."""
        loss = functional.cross_entropy(class_logits(self.model, batch, self.answers), batch["labels"])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Cross entropy and accuracy."""
        logits, labels = class_logits(self.model, batch, self.answers), batch["labels"]
        accuracy = (logits.argmax(-1) == labels).float().mean()
        metrics = {"test_loss": functional.cross_entropy(logits, labels), "test_accuracy": accuracy}
        self.log_dict(metrics, prog_bar=True, sync_dist=True)


def core_times(session: it.ITSession, steps: int, pairs: int) -> dict[str, Any]:
    """Core's loops beside loops in plain PyTorch."""
    fit_cfg, test_cfg = it.LoopConfig(max_steps=steps, **QUIET), it.LoopConfig(**QUIET)
    fits = compare(lambda: it.fit(**session, loop_cfg=fit_cfg), lambda: bare_fit(session, steps), pairs)
    tests = compare(lambda: it.test(**session, loop_cfg=test_cfg), lambda: bare_test(session, steps), pairs)
    return {**summary("train", fits, steps), **summary("test", tests, steps)}


def lightning_times(session: it.ITSession, steps: int, pairs: int) -> dict[str, Any]:
    """A composed module beside an ordinary one, both under Lightning's Trainer."""
    datamodule, plain = session.datamodule, PlainModule(session.module.model, session.module.answer_token_ids)
    options = {**TRAINER, "max_steps": steps}

    def plain_fit() -> None:
        plain.train()
        PlainTrainer(**options).fit(plain, datamodule.train_dataloader())

    def plain_test() -> None:
        PlainTrainer(**options).test(plain, datamodule.test_dataloader(), verbose=False)

    fits = compare(lambda: Trainer(**options).fit(**session), plain_fit, pairs)
    tests = compare(lambda: Trainer(**options).test(**session, verbose=False), plain_test, pairs)
    return {**summary("lightning_train", fits, steps), **summary("lightning_test", tests, steps)}


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
    disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {}
    for framework, times in (("core", core_times), ("lightning", lightning_times)):
        with tempfile.TemporaryDirectory() as folder:
            session = make_session(Path(folder), rows=8 * options.steps, framework=framework)
            found |= times(session, options.steps, options.pairs)
    found |= {
        "pairs": options.pairs,
        "steps": options.steps,
        "threads": options.threads,
        "torch": torch.__version__,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
