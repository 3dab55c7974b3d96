"""The analysis backend of interp-engine: its hook manager makes the edits at the modules that its points name."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from interpretune import ModelLoadError
from interpretune.activations import CARRIED, OUT, in_place, split_layer
from interpretune.analysis import Edit, HuggingFaceBackend
from interpretune_interp_engine.library import import_interp_engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POINTS: Mapping[str, tuple[str, ...]] = {
    "embed": ("embeddings",),
    "resid_pre": ("resid_pre",),
    "attn_z": ("z",),
    "attn_out": ("attn_out", "attn_out_post"),
    "resid_mid": ("resid_mid",),
    "mlp_in": ("mlp_in",),
    "mlp_act": ("mlp_act",),
    "mlp_out": ("mlp_out", "mlp_out_post"),
    "resid_post": ("resid_post",),
    "final_norm": ("final_norm",),
    "logits": ("lm_head",),
}
"""Points of interp-engine that may be what a canonical name means; of two, which one depends on the model's norms."""


class InterpEngineBackend(HuggingFaceBackend):
    """Runs a causal model of Hugging Face with edits made by interp-engine's ``HookManager``.

    Hook points, the forward and the replay are those of the model's class. Edits at names that are no point of
    interp-engine (``MODULE:in``, ``MODULE:out``, attention patterns, and canonical names that it places elsewhere or
    refuses for this model) are made by torch hooks, as there.
    """

    passing_state = frozenset({"_library", "_engine"})

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Make a backend; the model keeps its modes and which of its parameters are trained.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer, for the ids of special tokens.

        Raises:
            ModelLoadError: interp-engine is missing or of another version, or cannot read the structure of the model.
        """
        super().__init__(model, tokenizer)
        self._library = import_interp_engine()
        self._engine = _engine_of(self._library, self.model)

    def point_of(self, hook_point: str) -> Any:
        """The ``interp_engine.Address`` through which edits at a hook point are made; None: torch hooks make them.

        Args:
            hook_point: A name from ``hook_point_names``.
        """
        layer, part = split_layer(hook_point) or (None, hook_point)
        if part not in POINTS:
            return None
        path, side = self.module_and_side(hook_point)
        place = self.modules[path], "output" if side == OUT else "input"
        for name in POINTS[part]:
            address = self._library.Address(name, layer)
            if self._engine.serves(address) and self._engine.resolve_point(name, layer) == place:
                return address
        return None

    @contextlib.contextmanager
    def hooked(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Let interp-engine make the edits at its points, and torch hooks the others; in the order of ``edits``."""
        manager = self._library.HookManager()
        try:
            try:
                with self.patterns_edited(edits) as others, contextlib.ExitStack() as stack:
                    for name, edit in others.items():
                        if (address := self.point_of(name)) is None:
                            stack.enter_context(super().hooked({name: edit}))
                            continue
                        module, side = self._engine.resolve_point(address.name, address.layer)
                        carried = self.module_and_side(name)[1] == CARRIED
                        manager.write(module, in_place(edit) if carried else edit, point=side)
                    yield
            finally:
                manager.remove_all()
        finally:
            manager.remove_all()  # an interrupt may have come in the first


def backend_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> InterpEngineBackend:
    """The backend of a model that interp-engine has loaded.

    Args:
        model: Such as ``interp_engine.load_model(name, backend="eager")``.
        tokenizer: Its tokenizer.

    Raises:
        ModelLoadError: It is not of interp-engine's eager backend, such as a model in vLLM.
    """
    wrapped = getattr(model, "hf_model", None)
    if not isinstance(wrapped, PreTrainedModel):
        raise ModelLoadError(
            f"The {type(model).__name__} holds no model of transformers; the adapter interp_engine runs models of "
            'interp-engine\'s eager backend. Load it with interp_engine.load_model(name, backend="eager").'
        )
    return InterpEngineBackend(wrapped, tokenizer)


def _engine_of(library: Any, model: nn.Module) -> Any:
    """What knows where interp-engine's points are.

    Making it would freeze the model and set it to evaluation, so it gets a copy that has the same modules and does not
    do that. It gets no tokenizer, which it would give a padding token.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    given: Any = copy.copy(base)
    given.eval = given.requires_grad_ = lambda *_: None
    try:
        return library.EagerModel(type(base).__name__, hf_model=given, tokenizer=SimpleNamespace())
    except (ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise ModelLoadError(
            f"interp-engine cannot read the structure of {type(base).__name__}: {error} Stack ('core',) without "
            "interp_engine."
        ) from error
