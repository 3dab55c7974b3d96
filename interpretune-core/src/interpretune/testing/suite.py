"""What authors say of their adapter to the kit, and how the kit finds it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from interpretune.testing.reference_latents import ReferenceLatents

CONFORMANCE_GROUP = "interpretune.conformance"
"""Entry points of this group give, under the name of an adapter, its subclass of ``AdapterConformance``."""


class Suite:
    """One adapter, and what the rules need to check it.

    Attributes:
        adapter: Name of the adapter, as its entry point has it.
        stack: Names of the adapters to stack; empty: this one alone, and what it requires.
        answers: Answer words of the labels 0 and 1, each one token of the tiny model's tokenizer.
        prompt_pattern: What prompts are put into; ``{task_prompt}`` is their place.
        conditional_hook_points: Patterns (``re.fullmatch``) of hook points that the backend lists and that fire only
            with options that the tiny model does not have.
        import_limit: How many times as long as that of torch and transformers the adapter's import may take.
        folder: Where the suite may write what its sessions load; the kit makes it.
        architecture: Of the tiny model that most rules run: ``llama`` or ``gpt2``.
        seed: Of all weights, latent models and rows of text; ``interpretune doctor --seed`` sets another.
    """

    adapter: ClassVar[str] = ""
    stack: ClassVar[Sequence[str]] = ()
    answers: ClassVar[tuple[str, str]] = ("Yes", "No")
    prompt_pattern: ClassVar[str] = "{task_prompt} <eos> Answer :"
    conditional_hook_points: ClassVar[Sequence[str]] = (r".*\.attn_dropout:(in|out)",)  # of GPT-2: eager attention only
    import_limit: ClassVar[float] = 3.0
    folder: Path
    architecture: str = "llama"
    seed: int = 0

    def write_tiny_model(self, folder: Path) -> None:
        """Write a tiny model and its tokenizer into an empty folder; random, with dropout, of ``architecture``."""
        from interpretune.testing.tiny_models import save_tiny_model

        save_tiny_model(folder, self.architecture, seed=self.seed, dropout=0.1)

    def write_model_with_learned_positions(self, folder: Path) -> None:
        """Write a tiny model that sees a shift of its positions, as rotary models do not; a random GPT-2.

        Raises ``NotImplementedError`` where the adapter loads no such model.
        """
        from interpretune.testing.tiny_models import save_tiny_model

        save_tiny_model(folder, "gpt2", seed=self.seed, dropout=0.1)

    def write_model_with_twelve_layers(self, folder: Path) -> None:
        """Write a tiny model of which layers 1, 10 and 11 can be mistaken for each other; one of ``architecture``.

        Raises ``NotImplementedError`` where the adapter loads no such model.
        """
        from interpretune.testing.tiny_models import save_tiny_model

        save_tiny_model(folder, self.architecture, seed=self.seed, n_layers=12)

    def module_settings(self) -> Mapping[str, Any]:
        """Further fields of ``ITConfig`` that a session with this adapter needs."""
        return {}

    def reference_latents(self) -> Sequence[ReferenceLatents] | None:
        """The truth about the latent models that ``module_settings`` asks for, in their order; None: it is not given.

        Plain weights and formulas, from where the weights were made and not from the adapter's objects. With them the
        kit checks hook points, centring, biases, and train mode.
        """
        return None

    def reference_model(self, folder: Path) -> Any:
        """The model that naive references run: the plain Hugging Face model of a folder."""
        from interpretune.testing.reference import plain_model

        return plain_model(folder)


def registered_suite(adapter: str) -> Any:
    """What is registered for an adapter, loaded; None where nothing is."""
    for entry_point in importlib.metadata.entry_points(group=CONFORMANCE_GROUP):
        if entry_point.name == adapter:
            return entry_point.load()
    return None
