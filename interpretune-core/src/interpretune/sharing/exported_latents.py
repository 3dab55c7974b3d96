"""Cards of the latents of one dictionary, with what other tools want to know of them."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from interpretune.errors import StoreError
from interpretune.evidence.facts import Card, PromptTokens
from interpretune.evidence.stored import Evidence
from interpretune.latents.latent_model import ACTIVATION_HOOK
from interpretune.questions.result import Effects
from interpretune.store.store import AnalysisStore

WHAT_WRITES_CARDS = (
    "`it.evidence_of(effects, cards=10)` writes them after `it.effects(..., units=latent_models)`, and in a file for "
    "`interpretune run` an analysis with `units: {latents: all}` and `evidence: {cards: 10}`"
)


@frozen(eq=False)
class ExportedLatents:
    """Cards of the latents of one dictionary.

    Attributes:
        effects: The effects that the cards are about.
        place: The dictionary's hook point, the first one of several.
        width: Number of its latents.
        cards: Largest mean size of effects first.
        prompts: Tokens of the prompts in which the latents are active.
    """

    effects: Effects
    place: str
    width: int
    cards: tuple[Card, ...]
    prompts: PromptTokens

    @classmethod
    def of(cls, given: Effects | AnalysisStore | str | Path) -> list[ExportedLatents]:
        """The dictionaries of effects, or of their store, that have cards of latents.

        Raises:
            StoreError: There are no such cards (the message says what writes them), or the store is damaged.
        """
        given = given.store if isinstance(given, Effects) else given
        store = given if isinstance(given, AnalysisStore) else AnalysisStore.open(given)
        evidence = Evidence.of(store)
        cards = [card for card in evidence.cards if card.active is not None]
        if not cards or evidence.prompts is None:
            raise StoreError(f"{store} has no cards of latents. {WHAT_WRITES_CARDS}.")
        effects = Effects(store)
        try:
            sets = {str(item["name"]): item for item in effects.question["units"]}
            return [
                cls(
                    effects,
                    str(sets[name]["activation"]).removesuffix(f".{ACTIVATION_HOOK}"),
                    int(sets[name]["size"]),
                    tuple(card for card in cards if card.units == name),
                    evidence.prompts,
                )
                for name in dict.fromkeys(card.units for card in cards)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{store} was not written by a question: its manifest names no dictionary.") from error
