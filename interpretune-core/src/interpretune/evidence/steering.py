"""Prompts continued, as they are and with units changed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from interpretune.activations.inputs import ModelInputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.backends.interventions import (
    Intervention,
    Patch,
    Scale,
    SetTo,
    interventions_in_place,
    run_with_interventions,
)
from interpretune.evidence.changed_rows import ChangedBatch, place_of
from interpretune.evidence.chosen import Chosen, ablated_values, counted, members_of, sets_of, told_ablated
from interpretune.evidence.facts import Continuation
from interpretune.evidence.held_out import corrupted
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import LatentModel
from interpretune.models import position_ids
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.question import Question
from interpretune.questions.sequences import padded

AMPLIFIED = 4
"""By what units are multiplied where there are no corrupted prompts."""


def steered(
    question: Question, rows: Sequence[EncodedRow], chosen: Sequence[Chosen], new_tokens: int
) -> list[Continuation]:
    """Continue prompts: as they are, with units ablated at every token, and with units patched or amplified.

    The first new token is the likeliest of those with which the row's answers begin; the others are greedy, up to one
    that ends a text.
    With corrupted prompts they are set to what they are there, at the question's tokens of the prompt; without, they
    are multiplied by ``AMPLIFIED`` at every token, new ones too.

    Args:
        question: The question.
        rows: What is continued.
        chosen: The units, changed together.
        new_tokens: Most new tokens.
    """
    backend, sets = question.backend, sets_of(chosen)
    inputs, first = padded([row.tokens for row in rows], question.pad, "left", backend.model_device)
    spliced = [] if all(isinstance(item.dictionary, IdentityDictionary) for item in sets) else question.groups[-1]
    models, members = [item.dictionary for item in spliced], members_of(chosen)
    to, units = ablated_values(question, sets), counted(len(chosen))
    everywhere: list[Intervention] = [
        SetTo(at=place_of(item), latents=members[item.name], value=to[item.name][members[item.name]]) for item in sets
    ]
    changes = {f"{units} {told_ablated(question)} at every token": everywhere}
    if all(row.corrupted is not None for row in rows):
        where = {"answer": "the answer position", "each": "each token of the prompt"}
        told = where.get(question.positions, f"the tokens of {question.positions}")
        told = f"{units} set to what they are after the corrupted prompt, at {told}"
        changes[told] = _patches(question, rows, chosen, inputs, first)
    else:
        changes[f"{units} times {AMPLIFIED} at every token"] = [
            Scale(at=place_of(item), latents=members[item.name], factor=AMPLIFIED) for item in sets
        ]
    begins = _beginnings(question, rows)
    plain = _continued(question, inputs, begins, [], models, new_tokens)
    return [
        Continuation(i, question.tokenizer.decode(rows[i].tokens), plain[i], text, told)
        for told, change in changes.items()
        for i, text in enumerate(_continued(question, inputs, begins, change, models, new_tokens))
    ]


def ends_of(question: Question) -> set[int]:
    """Tokens that end a text: the tokenizer's, and those at which the model's own ``generate`` stops."""
    own = getattr(getattr(question.backend.model, "generation_config", None), "eos_token_id", None)
    return {question.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


def _patches(
    question: Question, rows: Sequence[EncodedRow], chosen: Sequence[Chosen], inputs: ModelInputs, first: Tensor
) -> list[Intervention]:
    """Changes of units to what they are after the corrupted prompts, at the question's tokens."""
    sets, members = sets_of(chosen), members_of(chosen)
    where = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
    sources: dict[str, Tensor] = {}
    for batch in question.batches(rows):
        examples = batch.points.examples + batch.first
        slots = batch.points.positions + first[examples]
        where[examples, slots] = True
        other = ChangedBatch(question, corrupted(question, batch), sets)
        for item in sets:
            values = other.latents(item.name)
            source = sources.setdefault(item.name, values.new_zeros(*where.shape, values.shape[-1]))
            source[examples, slots] = values
    return [
        Patch(at=place_of(item), positions=where, latents=members[item.name], source=sources[item.name])
        for item in sets
    ]


def _beginnings(question: Question, rows: Sequence[EncodedRow]) -> Tensor:
    """Tokens with which answers begin, ``[n, vocab]``; all where a row has none."""
    backend = question.backend
    found = torch.zeros(len(rows), backend.vocab_size, dtype=torch.bool, device=backend.model_device)
    for flags, row in zip(found, rows, strict=True):
        flags[[ids[0] for ids in row.answers] or slice(None)] = True
    return found


def _continued(
    question: Question,
    inputs: ModelInputs,
    begins: Tensor,
    interventions: Sequence[Intervention],
    latent_models: Sequence[LatentModel],
    new_tokens: int,
) -> list[str]:
    """The texts that follow prompts padded on the left, which begin with certain tokens, ``[n, vocab]``, bool."""
    backend, tokenizer = question.backend, question.tokenizer
    ends = ends_of(question)
    with contextlib.ExitStack() as stack:
        if isinstance(backend.model, PreTrainedModel) and _takes(backend.model, "past_key_values"):
            stack.enter_context(interventions_in_place(backend, inputs, interventions, latent_models))
            step = _with_cache(backend)
        else:
            step = _whole(backend, interventions, latent_models)
        tokens, mask = inputs.tokens, inputs.attention_mask
        for new in range(new_tokens):
            logits = step(tokens, mask)
            logits = logits if new else logits.masked_fill(~begins, -torch.inf)
            following = logits.argmax(-1, keepdim=True)
            tokens, mask = torch.cat([tokens, following], dim=-1), torch.cat([mask, torch.ones_like(following)], dim=-1)
    found = []
    for row in tokens[:, inputs.tokens.shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        found.append(str(tokenizer.decode(row[:stop])))
    return found


def _with_cache(backend: AnalysisBackend) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits after the last token, ``[n, vocab]``, of sequences that grow by a token each time."""
    model: Any = backend.model
    cache: Any = None
    numbered = _takes(model, "position_ids")

    def step(tokens: Tensor, mask: Tensor) -> Tensor:
        nonlocal cache
        new = slice(None) if cache is None else slice(-1, None)
        made = model(
            input_ids=tokens[:, new],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **({"position_ids": position_ids(mask)[:, new]} if numbered else {}),
        )
        cache = made.past_key_values
        logits: Tensor = made.logits[:, -1]
        return logits

    return step


def _takes(model: PreTrainedModel, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


def _whole(
    backend: AnalysisBackend, interventions: Sequence[Intervention], latent_models: Sequence[LatentModel]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same by whole forwards, for models of any library."""

    def step(tokens: Tensor, mask: Tensor) -> Tensor:
        changes = [_longer(item, tokens.shape[1]) for item in interventions]
        return run_with_interventions(backend, ModelInputs(tokens, mask), changes, latent_models)

    return step


def _longer(item: Intervention, length: int) -> Intervention:
    """The same change in sequences that have grown; tokens after the prompts are not among positions of these."""
    if not isinstance(item.positions, Tensor):
        return item
    return evolve(item, positions=functional.pad(item.positions, (0, length - item.positions.shape[1])))
