"""Configuration of TransformerLens models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from interpretune import CheckedConfig, ITConfig

if TYPE_CHECKING:
    from transformer_lens import HookedTransformerConfig


@dataclass(kw_only=True)
class TLensGenerationConfig(CheckedConfig, checks_types=True):
    """Arguments of generation with a TransformerLens model.

    Attributes:
        max_new_tokens: Tokens to generate.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Divides the logits before sampling.
        top_k: Sample from so many likeliest tokens only.
        top_p: Sample from the likeliest tokens with this much probability only.
        stop_at_eos: Stop rows at the end token.
    """

    max_new_tokens: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop_at_eos: bool = True

    @property
    def generate_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``module.it_generate``."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(kw_only=True)
class ITLensFromPretrainedConfig(CheckedConfig, checks_types=True):
    """A TransformerLens model made from a Hugging Face model, with TransformerLens's weight processing.

    Attributes:
        model_name: Name for TransformerLens, where ``model_name_or_path`` of the session is empty; the session then
            needs a ``tokenizer_name``.
        use_bridge: A ``TransformerBridge``; False: a ``HookedTransformer``, which TransformerLens has before version 4.
        fold_ln: Fold the weights of layer norms into the following layers.
        center_writing_weights: Center weights that write to the residual stream.
        center_unembed: Center the unembedding.
        fold_value_biases: Fold the value biases into the output bias of attention.
        refactor_factored_attn_matrices: Rewrite attention matrices by singular value decomposition.
        default_padding_side: Padding side for text that the model tokenizes itself; batches carry their own mask.
    """

    model_name: str | None = None
    use_bridge: bool = True
    fold_ln: bool = True
    center_writing_weights: bool = True
    center_unembed: bool = True
    fold_value_biases: bool = True
    refactor_factored_attn_matrices: bool = False
    default_padding_side: Literal["left", "right"] | None = None

    @property
    def processing(self) -> dict[str, bool]:
        """The flags of weight processing."""
        return {
            "fold_ln": self.fold_ln,
            "center_writing_weights": self.center_writing_weights,
            "center_unembed": self.center_unembed,
            "fold_value_biases": self.fold_value_biases,
            "refactor_factored_attn_matrices": self.refactor_factored_attn_matrices,
        }


@dataclass(kw_only=True)
class ITLensFromPretrainedNoProcessingConfig(ITLensFromPretrainedConfig, checks_types=True):
    """The same without weight processing: activations are those of the Hugging Face model."""

    fold_ln: bool = False
    center_writing_weights: bool = False
    center_unembed: bool = False
    fold_value_biases: bool = False


@dataclass(kw_only=True)
class ITLensCustomConfig(CheckedConfig, checks_types=True):
    """A ``HookedTransformer`` with random weights, which TransformerLens has before version 4.

    Attributes:
        cfg: Its configuration, or the arguments of one.
        default_padding_side: Padding side for text that the model tokenizes itself.
    """

    cfg: HookedTransformerConfig | dict[str, Any]
    default_padding_side: Literal["left", "right"] | None = None


@dataclass(kw_only=True)
class ITLensConfig(ITConfig, checks_types=True):
    """Module configuration with a TransformerLens model.

    Attributes:
        tl_cfg: How the model is made.
    """

    tl_cfg: ITLensFromPretrainedConfig | ITLensCustomConfig = field(
        default_factory=ITLensFromPretrainedNoProcessingConfig
    )
