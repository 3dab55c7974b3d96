"""Sessions around tiny random models, for every stack that is installed."""

from __future__ import annotations

import copy
import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import interpretune as it
from tests.installed import transformer_lens_before_4
from tests.tiny import TINY_MODELS, nli_rows, saved_tiny_model

STACKS = ["core"]
if importlib.util.find_spec("interpretune_tlens"):
    STACKS += ["bridge", "hooked"] if transformer_lens_before_4() else ["bridge"]
ANSWERS = ("Yes", "No")
N_ROWS = 7
BATCH_SIZE = 3
"""Seven rows in batches of three: the last batch has one."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stack_options(stack: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Adapters and module settings of a stack by its short name."""
    if stack == "core":
        return ("core",), {}
    from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig

    return ("transformer_lens",), {"tl_cfg": ITLensFromPretrainedNoProcessingConfig(use_bridge=stack == "bridge")}


_PREPARED = tempfile.TemporaryDirectory(prefix="interpretune-prepared-")
"""Prepared data of all sessions: their folders are named by all that they depend on, the path of the model too."""


def make_session(
    folder: Path,
    kind: str = "gpt2",
    stack: str = "core",
    side: str = "left",
    *,
    bos_is_pad: bool = True,
    adapters: tuple[str, ...] | None = None,
    pattern: str = "{task_prompt} <eos> Answer :",
    n_rows: int = N_ROWS,
    init: bool = True,
    module_cls: type = it.ITModule,
    **module_settings: Any,
) -> it.ITSession:
    """A session over rows of unequal length, with a special token in the middle of each prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if not model.exists():
        model.symlink_to(saved_tiny_model(kind, padding_side=side, bos_is_pad=bos_is_pad))
    prepared = folder / "cache" / "datasets"
    if not prepared.exists():
        prepared.parent.mkdir(exist_ok=True)
        prepared.symlink_to(_PREPARED.name)
    names, settings = stack_options(stack)
    session = it.ITSession(
        it.ITSessionConfig(
            adapter_ctx=adapters or names,
            module_cls=module_cls,
            shared_cfg=it.ITSharedConfig(model_name_or_path=str(model.resolve()), cache_dir=folder / "cache"),
            datamodule_cfg=it.ITDataModuleConfig(
                data={
                    "train": write_rows(folder / "train.jsonl", nli_rows(24, seed=1)),
                    "validation": write_rows(folder / "validation.jsonl", nli_rows(n_rows)),
                },
                text_fields=("premise", "hypothesis"),
                num_labels=2,
                prompt_cfg=it.PromptConfig(ctx_question_join=" Question : "),
                cust_tokenization_pattern=pattern,
                eval_batch_size=BATCH_SIZE,
            ),
            module_cfg=it.ITConfig(
                generative_step_cfg=it.GenerativeClassificationConfig(answers=ANSWERS),
                device="cpu",
                **{**settings, **module_settings},
            ),
        )
    )
    if init:
        it.it_init(**session)
    return session


def plain_model(kind: str) -> Any:
    """The model of ``make_session`` as transformers has it."""
    return TINY_MODELS[kind]()


def unpadded_rows(session: it.ITSession) -> list[tuple[Tensor, int]]:
    """Tokens ``[pos]`` and label of each row that an analysis sees."""
    rows = session.datamodule.dataset["validation"]
    return [(torch.tensor(row["input_ids"]), row["labels"]) for row in rows]


def padded(rows: Sequence[Tensor], side: str, pad: int) -> dict[str, Tensor]:
    """A batch of rows with padding on one side."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, where] = row
        mask[i, where] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def copy_of(batch: Mapping[str, Any]) -> Any:
    """A batch that a step may take apart."""
    return copy.deepcopy(batch)
