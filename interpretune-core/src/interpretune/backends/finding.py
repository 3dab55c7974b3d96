"""The backend of a model in memory: core's own, or one of an installed adapter, which is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from interpretune.backends.backend import AnalysisBackend
from interpretune.backends.hugging_face import HuggingFaceBackend
from interpretune.errors import AdapterImportError, AnalysisError, DuplicateAdapterError
from interpretune.system.compiled import uncompiled
from interpretune.system.entry_points import load_registered, owner_of, registered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUP = "interpretune.backends"
"""Entry points with the name of a package whose models they take: called with a model and a tokenizer."""


def backend_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> AnalysisBackend:
    """The backend of a model; a backend is its own.

    Models of transformers have core's, also beneath what peft puts around them; compiled models run eagerly. For a
    model of another library the adapter is asked that names the package of the model's class, or of one that this
    inherits from.

    Raises:
        AdapterImportError: The adapter for the model cannot be imported.
        AnalysisError: There is no backend for such a model.
        DuplicateAdapterError: Two distributions offer one for it.
    """
    if isinstance(model, AnalysisBackend):
        return model
    if (plain := _plain(model)) is not None:
        return HuggingFaceBackend(_checked(plain), tokenizer)
    model, offered = uncompiled(model), registered(GROUP)
    for library in dict.fromkeys(kind.__module__.partition(".")[0] for kind in type(model).__mro__):
        if mine := {item.value: item for item in offered if item.name == library}:
            if len(mine) > 1:
                owners = " and ".join(sorted(owner_of(item)[0] for item in mine.values()))
                raise DuplicateAdapterError(f"{owners} offer a backend for models of {library}; uninstall one.")
            return _made(next(iter(mine.values())), model, tokenizer)
    names = sorted({item.name for item in offered})
    raise AnalysisError(
        f"A {type(model).__name__} is neither a model of transformers nor a backend, and there is no adapter for it; "
        f"those that are installed take models of {', '.join(names) or 'no other library'}. Give a model in memory, "
        "such as AutoModelForCausalLM.from_pretrained(...), install the adapter for its library, or pass an "
        "AnalysisBackend of your own."
    )


def _plain(model: Any) -> PreTrainedModel | None:
    """The model of transformers, without wrappers that do no more than run it (else ``AnalysisError``)."""
    while not isinstance(model := uncompiled(model), PreTrainedModel):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise AnalysisError(
                f"The {type(model).__name__} puts tokens of its own before each prompt, which have no place in the "
                "rows of a question. Use an adapter that changes the weights, such as LoRA, or the model without it."
            )
        unwrap = getattr(model, "get_base_model", None)
        if unwrap is None:
            return None
        model = unwrap()
    return model


def _checked(model: PreTrainedModel) -> PreTrainedModel:
    """The model, if it gives logits of next tokens and its modules can be reached (else ``AnalysisError``)."""
    name = type(model).__name__
    if model.config.is_encoder_decoder or not model.can_generate():
        raise AnalysisError(
            f"A {name} gives no logits of the token that follows a prompt. Load the model with AutoModelForCausalLM."
        )
    return model


def _made(item: Any, model: Any, tokenizer: PreTrainedTokenizerBase) -> AnalysisBackend:
    owner = " ".join(owner_of(item))
    make = load_registered(
        item,
        lambda told: AdapterImportError(
            f"The backend of {owner} for models of {item.name} cannot be imported from {item.value!r}: {told}. "
            "Repair or uninstall it."
        ),
    )
    backend = make(model, tokenizer)
    if not isinstance(backend, AnalysisBackend):
        raise AnalysisError(
            f"{owner} made a {type(backend).__name__} for a {type(model).__name__}; expected an AnalysisBackend."
        )
    return backend
