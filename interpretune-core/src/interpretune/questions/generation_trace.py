"""Prompts continued step by step: what the model reads, and what it finds likeliest at each token."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from tabulate import tabulate
from torch import Tensor

from interpretune.errors import AnalysisError
from interpretune.questions.encoding import encode
from interpretune.questions.model_and_rows import check_count
from interpretune.questions.prompt_row import Prompt, PromptRow
from interpretune.system.model_lock import model_lock
from interpretune.system.torch_state import eval_mode

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@frozen
class GeneratedToken:
    """A token that the model wrote.

    Attributes:
        token: Its text.
        log_prob: Its log-probability over the whole vocabulary, in nats, before any setting of generation acts.
        likeliest: The likeliest tokens in its place, each with its log-probability, from the top.
    """

    token: str
    log_prob: float
    likeliest: tuple[tuple[str, float], ...]


@frozen(repr=False)
class GenerationTrace:
    """A prompt and how it was continued.

    The texts of single tokens lack spaces with some tokenizers, and parts of letters are no letters.

    Attributes:
        prompt: What was given.
        read: What the model reads: the prompt with the special tokens, and in the chat template.
        tokens: The texts of the tokens of that.
        generated: What the model wrote, in order; a token that ends the text is the last.
        text: The same as one text.
    """

    prompt: Prompt
    read: str
    tokens: tuple[str, ...]
    generated: tuple[GeneratedToken, ...]
    text: str

    def to_pandas(self) -> pd.DataFrame:
        """A line for each generated token: ``token, log_prob, likeliest``."""
        import pandas as pd

        rows = [(item.token, item.log_prob, dict(item.likeliest)) for item in self.generated]
        return pd.DataFrame(rows, columns=["token", "log_prob", "likeliest"])

    def __repr__(self) -> str:
        return f"{self.read}\n{tabulate(self._shown, headers='keys', floatfmt='.2f')}"

    def _repr_html_(self) -> str:
        table = tabulate(self._shown, headers="keys", floatfmt=".2f", tablefmt="html")
        return f"<pre>{escape(self.read)}</pre>{table}"

    @property
    def _shown(self) -> list[dict[str, Any]]:
        return [
            {
                "token": repr(item.token),
                "log-prob": item.log_prob,
                "likeliest": ", ".join(f"{token!r} {log_prob:.2f}" for token, log_prob in item.likeliest),
            }
            for item in self.generated
        ]


def trace_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompt | PromptRow | Sequence[Prompt | PromptRow],
    *,
    max_new_tokens: int = 10,
    top: int = 5,
    **generate_kwargs: Any,
) -> list[GenerationTrace]:
    """Continue prompts one by one, and note at each token what the model finds likeliest.

    Args:
        model: A causal model of transformers.
        tokenizer: Its tokenizer.
        prompts: A text, chat messages (they go through the tokenizer's chat template), a row, or a list of such.
        max_new_tokens: Most tokens to write.
        top: How many of the likeliest tokens to note.
        generate_kwargs: For ``model.generate``; without them, the likeliest token is taken each time.

    Raises:
        AnalysisError: The model does not generate as causal models of transformers do, or searches with beams.
        ConfigurationError: A number is out of range.
        DataError: A prompt is none, or the tokenizer has no chat template.
        TokenizationError: A prompt has no tokens.
    """
    check_count("max_new_tokens", max_new_tokens)
    check_count("top", top)
    if not hasattr(model, "generation_config"):
        raise AnalysisError(f"{type(model).__name__} has no generate as models of transformers do. Give one of those.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise AnalysisError(f"{type(model).__name__} writes no continuation of what it reads. Give a causal model.")
    beams = generate_kwargs.get("num_beams", model.generation_config.num_beams)
    if beams not in (None, 1):
        raise AnalysisError(
            f"num_beams is {beams}: the logits of a step are then of several continuations, of which one is kept at "
            "the end. Trace with num_beams=1."
        )
    rows = [item if isinstance(item, PromptRow) else PromptRow(item) for item in _listed(prompts)]
    return [
        _traced(model, tokenizer, row.prompt, item.tokens, max_new_tokens, top, generate_kwargs)
        for row, item in zip(rows, encode(rows, tokenizer), strict=True)
    ]


def _traced(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    tokens: Tensor,
    max_new_tokens: int,
    top: int,
    generate_kwargs: dict[str, Any],
) -> GenerationTrace:
    inputs = tokens[None].to(model.device)
    with model_lock(model), eval_mode(model), torch.no_grad():
        found: Any = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            **{"do_sample": False, "pad_token_id": _pad(tokenizer), **generate_kwargs},
            max_new_tokens=max_new_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
    new = found.sequences[0, len(tokens) :].tolist()
    generated = []
    for chosen, logits in zip(new, found.logits, strict=True):
        log_probs = logits[0].float().log_softmax(-1)
        best = log_probs.topk(min(top, len(log_probs)))
        likeliest = zip(map(tokenizer.decode, best.indices.tolist()), best.values.tolist(), strict=True)
        generated.append(GeneratedToken(tokenizer.decode(chosen), float(log_probs[chosen]), tuple(likeliest)))
    shown = tuple(map(tokenizer.decode, tokens.tolist()))
    return GenerationTrace(prompt, tokenizer.decode(tokens), shown, tuple(generated), tokenizer.decode(new))


def _pad(tokenizer: PreTrainedTokenizerBase) -> Any:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _listed(prompts: Any) -> list[Any]:
    """Prompts as a list: one text, one row and one chat are lists of one."""
    single = isinstance(prompts, str | PromptRow) or (prompts and isinstance(prompts[0], dict))
    return [prompts] if single else list(prompts)
