"""Analysis modes of installed packages: a name beside those of core, in code and in configuration files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from interpretune.errors import AdapterSignatureError, AnalysisError, ConfigurationError
from interpretune.operations import latent_analyses, lenses, objective_analyses
from interpretune.operations.definition import Operation
from interpretune.operations.loading import find_operation
from interpretune.system.offered import MODES, Offer

if TYPE_CHECKING:
    from interpretune.analysis.modes import AnalysisCfg
    from interpretune.latents.latent_model import LatentModel


class OfferedMode(str):
    """A mode that a package offers, equal to its name.

    The package's function gets the configuration and the latent models of the session, and returns operations, or
    names of operations that core or installed packages offer. What they write is stored. They run as those of core's
    modes do: the same hooks see them, and their code and options are in the key of the store.
    """

    offer: Offer

    @classmethod
    def named(cls, name: str) -> OfferedMode:
        """The mode of a name; nothing is imported yet.

        Raises:
            AdapterError: What is offered under the name cannot be used.
            ConfigurationError: No package offers one.
        """
        offer = MODES.find(name, ConfigurationError)
        if (refusal := offer.refusal()) is not None:
            raise refusal
        found = cls(name)
        found.offer = offer
        return found

    def __reduce__(self) -> tuple[Callable[[str], OfferedMode], tuple[str]]:
        return OfferedMode.named, (str(self),)

    def operations(self, cfg: AnalysisCfg, latent_models: Sequence[LatentModel]) -> list[Operation]:
        """What runs.

        Raises:
            AdapterError: The package cannot be imported, or returns no operations.
            AnalysisError: The function fails.
            PlanError: It names an operation that there is not.
        """
        given: Any = self.offer.call(AnalysisError, cfg, latent_models)
        found = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
        wrong = [item for item in found if not isinstance(item, Operation | str)]
        if wrong or not found:
            told = type(wrong[0]).__name__ if wrong else "nothing"
            raise AdapterSignatureError(
                f"The analysis mode {self.offer} gave {told}; it must return operations, or names of operations."
            )
        return [find_operation(item, _OF_CORE) if isinstance(item, str) else item for item in found]


_OF_CORE = {
    item.name: item
    for part in (latent_analyses, lenses, objective_analyses)
    for item in vars(part).values()
    if isinstance(item, Operation)
}
