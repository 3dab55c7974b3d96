"""Tiny random models of many architectures, in float64, and dictionaries on them with a few active latents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from interpretune.analysis import HuggingFaceBackend, ModelInputs
from tests.tiny_latents import RandomDictionary

VOCABULARY = 101
WIDTH = 32
NEURONS = 48
"""Width of ``mlp_act`` in the models that have one width for all."""
BLOCKS = 4
WINDOW = 5
"""Slots that a token sees in blocks with a sliding window; the texts are longer."""


def _common(*without: str, **more: Any) -> dict[str, Any]:
    settings = {
        "hidden_size": WIDTH,
        "intermediate_size": NEURONS,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }
    return {name: value for name, value in settings.items() if name not in without}


CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**_common()),
    "gpt2": lambda: hf.GPT2Config(
        n_embd=WIDTH, n_layer=BLOCKS, n_head=4, vocab_size=VOCABULARY, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "mistral": lambda: hf.MistralConfig(**_common(sliding_window=WINDOW)),
    "qwen2": lambda: hf.Qwen2Config(
        **_common("head_dim", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2)
    ),
    "qwen3": lambda: hf.Qwen3Config(**_common()),
    "gemma2": lambda: hf.Gemma2Config(**_common(sliding_window=WINDOW, query_pre_attn_scalar=8)),
    "gemma3": lambda: hf.Gemma3TextConfig(**_common(sliding_window=WINDOW, query_pre_attn_scalar=8)),
    "neox": lambda: hf.GPTNeoXConfig(**_common("num_key_value_heads", "head_dim")),
    "granite": lambda: hf.GraniteConfig(**_common("head_dim", logits_scaling=4.0, residual_multiplier=0.5)),
    "phi": lambda: hf.PhiConfig(**_common("head_dim")),
    "olmo2": lambda: hf.Olmo2Config(**_common("head_dim")),
    "opt": lambda: hf.OPTConfig(
        hidden_size=WIDTH,
        ffn_dim=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        word_embed_proj_dim=WIDTH,
    ),
    "cohere": lambda: hf.CohereConfig(**_common("head_dim", logit_scale=0.25)),
}
"""Architectures that are replayed."""

REFUSED = {
    "bloom": lambda: hf.BloomConfig(hidden_size=WIDTH, n_layer=BLOCKS, n_head=4, vocab_size=VOCABULARY),
    "falcon": lambda: hf.FalconConfig(
        hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4, vocab_size=VOCABULARY, alibi=True
    ),
    "gpt_oss": lambda: hf.GptOssConfig(
        **_common(num_local_experts=2, num_experts_per_tok=1, sliding_window=WINDOW, rope_scaling=None)
    ),
    "bert": lambda: hf.BertConfig(**_common("num_key_value_heads", "head_dim")),
    "llama4": lambda: hf.Llama4TextConfig(
        **_common(num_local_experts=2, attention_chunk_size=4, intermediate_size_mlp=48, rope_scaling=None)
    ),
    "mamba": lambda: hf.MambaConfig(hidden_size=WIDTH, num_hidden_layers=BLOCKS, vocab_size=VOCABULARY),
}
"""Architectures that take the plain loop."""


def make_model(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model with random weights, evaluation mode; attention by sdpa where the architecture has it.

    Gemma 2 attends eagerly and gives NaN with padding in float64, in transformers itself. GPT-OSS needs float32. Norms
    of float64 models compute in float64: in transformers they round to float32, where a difference in the last digit of
    float64 may become one of 1e-9.
    """
    config = (CONFIGS | REFUSED)[kind]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 and not re.search(r"(norm|ln_\w+)\.weight", name):  # biases that matter
                parameter.data.normal_(std=0.1)
            elif parameter.ndim == 2:
                parameter.data.normal_(std=0.25)
    model.to(dtype)
    if dtype == torch.float64:
        norms_in_float64(model)
    return model


@torch.no_grad()
def norms_in_float64(model: Any) -> Any:
    """Let norms of a float64 model compute in float64."""
    probe = torch.tensor([[5, 6, 7]])
    before = model(input_ids=probe).logits
    for module in model.modules():
        if type(module).__module__.startswith("transformers.") and type(module).__name__.endswith("Norm"):
            module.__class__ = _in_float64(type(module))
    torch.testing.assert_close(model(input_ids=probe).logits, before, rtol=0, atol=1e-4)
    return model


def _in_float64(norm: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """A norm of transformers that does not round on its way."""

    def forward(self: Any, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True) if norm.__name__.endswith("LayerNorm") else x
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        weight = 1 + self.weight if norm.__name__.startswith("Gemma") else getattr(self, "weight", 1)
        return centered * torch.rsqrt(centered.pow(2).mean(-1, keepdim=True) + eps) * weight

    return type(norm.__name__, (norm,), {"forward": forward})


def backend_of(model: Any, special: Sequence[int] = ()) -> HuggingFaceBackend:
    """Core's backend; of a tokenizer it needs the special tokens alone."""
    tokenizer: Any = SimpleNamespace(all_special_ids=list(special))
    return HuggingFaceBackend(model, tokenizer)


def batch_of(lengths: Sequence[int], side: str, seed: int = 0) -> ModelInputs:
    """Random rows of the given lengths, padded on one side."""
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths)
    tokens = torch.randint(3, VOCABULARY, (len(lengths), width), generator=draw)
    slot = torch.arange(width)
    sizes = torch.tensor(lengths).unsqueeze(-1)
    mask = (slot >= width - sizes) if side == "left" else (slot < sizes)
    return ModelInputs(tokens.masked_fill(~mask, 0), mask.long())


def dictionary(hook_point: str, seed: int, *, d_sae: int = 24, **settings: Any) -> RandomDictionary:
    """A random dictionary in float64 whose decoder is declared linear, unless ``linear=False``."""
    width = NEURONS if hook_point.endswith("mlp.hook_post") else WIDTH
    kind = RandomDictionary if not settings.pop("linear", True) else LinearDictionary
    error = settings.pop("error", False)
    made = kind(hook_point, width, d_sae, seed=seed, **settings).double()
    made.use_error_term = error
    return made


class LinearDictionary(RandomDictionary):
    """A dictionary that says that its decoder is linear."""

    def decoder_rows(self, latents: Tensor) -> Tensor:
        """Rows of the decoder."""
        return self.w_dec[latents]
