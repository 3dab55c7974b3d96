"""Tiny random models, their tokenizer and rows of text: everything that tests need instead of downloaded weights.

They are written as Hugging Face folders, so that any adapter loads them as it loads real ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<bos>", "<eos>", "<unk>", "<pad>")
NAMES = tuple("Ada Bo Cleo Dan Eve Finn Gus Hana Ivo June Kit Lena Max Nora Otto Pia".split())
VERBS = tuple("sees likes buys finds paints carries leaves opens follows hides draws washes sells breaks mends".split())
ADJECTIVES = tuple("red blue green old new small large cold warm dark bright heavy light quiet loud clean".split())
NOUNS = tuple(
    "dog cat boat house tree book lamp chair table bread apple stone river train bus letter garden window door "
    "bridge coat hat shoe cup plate horse bird fish clock".split()
)
PLACES = tuple("harbor market school station park library kitchen office field tower".split())
OTHER = tuple(
    "Yes No yes no the a an and or but not never always in at on near with after before is was did does has had it he "
    "she they who what where when why Question Answer Context true false maybe today yesterday every some all none "
    ". , ? : ! ' -".split()
)
WORDS = tuple(dict.fromkeys((*OTHER, *NAMES, *VERBS, *ADJECTIVES, *NOUNS, *PLACES)))
VOCABULARY = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
CONTEXT_LENGTH = 128
"""Longest prompt of the tiny models and their tokenizer, in tokens."""


def tiny_tokenizer(padding_side: str = "left", bos_is_pad: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that puts ``<bos>`` first; where ``bos_is_pad``, masks cannot be read from the tokens."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", VOCABULARY["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<bos>" if bos_is_pad else "<pad>",
        padding_side=padding_side,
        model_max_length=CONTEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_gpt2(seed: int = 0, dropout: float = 0.0, n_layers: int = 3) -> GPT2LMHeadModel:
    """A random GPT-2 of width 32, with tied embeddings and biases that are not zero."""
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=CONTEXT_LENGTH,
        n_embd=32,
        n_layer=n_layers,
        n_head=4,
        n_inner=64,
        bos_token_id=VOCABULARY["<bos>"],
        eos_token_id=VOCABULARY["<eos>"],
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return _with_random_weights(GPT2LMHeadModel, config, seed)


def tiny_llama(seed: int = 0, dropout: float = 0.0, n_layers: int = 3) -> LlamaForCausalLM:
    """A random Llama of width 32, four heads that share two keys, and an unembedding of its own."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        attention_dropout=dropout,
        bos_token_id=VOCABULARY["<bos>"],
        eos_token_id=VOCABULARY["<eos>"],
    )
    return _with_random_weights(LlamaForCausalLM, config, seed)


TINY_MODELS: Mapping[str, Callable[..., PreTrainedModel]] = {"gpt2": tiny_gpt2, "llama": tiny_llama}


def save_tiny_model(
    folder: str | Path,
    kind: str,
    *,
    seed: int = 0,
    padding_side: str = "left",
    bos_is_pad: bool = True,
    dropout: float = 0.0,
    n_layers: int = 3,
) -> Path:
    """Save a tiny model (``gpt2`` or ``llama``) and its tokenizer to a folder usable as ``model_name_or_path``."""
    TINY_MODELS[kind](seed, dropout, n_layers).save_pretrained(folder)
    tiny_tokenizer(padding_side, bos_is_pad).save_pretrained(folder)
    return Path(folder)


def nli_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of premise, hypothesis and label (0 and 1 in turn), of unequal lengths, in the tokenizer's vocabulary."""
    draw = random.Random(seed)
    rows = []
    for index in range(n):
        name, verb, noun = draw.choice(NAMES), draw.choice(VERBS), draw.choice(NOUNS)
        adjectives = draw.sample(ADJECTIVES, k=index % 4)
        premise = f"{name} {verb} the {' '.join([*adjectives, noun])} in the {draw.choice(PLACES)}"
        if draw.random() < 0.5:
            premise += f" and {draw.choice(NAMES)} {draw.choice(VERBS)} a {draw.choice(NOUNS)}"
        label = index % 2
        hypothesis = f"{name} {verb} {'the' if label == 0 else 'no'} {noun}."
        rows.append({"idx": index, "premise": f"{premise}.", "hypothesis": hypothesis, "label": label})
    return rows


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a JSONL file."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Path(path)


def _with_random_weights(model_class: type[PreTrainedModel], config: Any, seed: int) -> Any:
    """Build a model whose norms, biases and weights are all random, large enough that logits differ clearly."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = "ln_" in name or "norm" in name
                if name.endswith("bias"):
                    parameter.normal_(0.0, 0.1)
                elif is_norm:
                    parameter.normal_(1.0, 0.1)
                else:
                    parameter.normal_(0.0, 0.3)
    return model
