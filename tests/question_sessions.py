"""Sessions over rows of questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import interpretune as it
from tests.tiny import save_tiny_model

TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}Answer :"
ROWS = [
    it.PromptRow(
        "Ada sees the red dog near the", (" house", " tree"), 0, "Ada sees the old dog near the", {"who": "Ada"}
    ),
    it.PromptRow("Bo likes a boat and", (" Max", " Nora", " Kit"), 1, spans={"thing": (11, 15), "who": "Bo"}),
    it.PromptRow([{"role": "Question", "content": "the small cat was"}], (" red", " blue"), 0),
    it.PromptRow("He has", (" bread", " stone", " hat"), 2, "Ada has"),
]


def session_of(
    folder: Path,
    rows: Any,
    *,
    side: str = "left",
    answers: tuple[str, ...] = (),
    adapters: tuple[str, ...] = ("core",),
    latent_models: Sequence[Any] = (),
    hf_model: Any = None,
    **options: Any,
) -> it.ITSession:
    """A session over rows, in batches of three."""
    if not (folder / "model").exists():
        save_tiny_model(folder / "model", "llama", padding_side=side)
    shared = it.ITSharedConfig(
        model_name_or_path=str(folder / "model"),
        cache_dir=folder / "cache",
        tokenizer_kwargs={"padding_side": side, "chat_template": TEMPLATE},
    )
    session = it.ITSession(
        it.ITSessionConfig(
            adapter_ctx=adapters,
            module_cls=it.ClassificationModule,
            shared_cfg=shared,
            datamodule_cfg=it.ITDataModuleConfig(rows=rows, **{"eval_batch_size": 3, **options}),
            module_cfg=it.ITConfig(
                device="cpu",
                latent_models=list(latent_models),
                hf_model=hf_model,
                generative_step_cfg=it.GenerativeClassificationConfig(answers=answers),
            ),
        )
    )
    it.it_init(**session)
    return session
