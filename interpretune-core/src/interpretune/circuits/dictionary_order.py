"""Which dictionaries run together, and which of them stand above which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from interpretune.activations.hook_names import canonical
from interpretune.activations.inputs import probe_inputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.errors import AnalysisError
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import (
    LatentModel,
    activation_name,
    has_error_term,
    has_skip_connection,
    read_points,
    written_points,
)
from interpretune.questions.units import UnitSet
from interpretune.replay.observed import shared_writers


@frozen(eq=False)
class Order:
    """Dictionaries that run together; all names are activation names.

    Attributes:
        models: The dictionaries.
        above: Those above each: they read something that the model reaches after it has begun to write.
    """

    models: Mapping[str, LatentModel]
    above: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, backend: AnalysisBackend, sets: Sequence[UnitSet]) -> Order:
        """The dictionaries of unit sets.

        Raises:
            AnalysisError: Two of them are at one hook point.
            HookPointError: One does not fit the model.
        """
        readers: dict[str, LatentModel] = {}
        for item in sets:
            model = item.dictionary
            other = readers.setdefault(canonical(model.hook_point), model)
            plain = isinstance(model, IdentityDictionary) and isinstance(other, IdentityDictionary)
            if other is not model and not plain:
                raise AnalysisError(
                    f"{other.name!r} and {model.name!r} are both at {model.hook_point}, where neither stands above the "
                    "other. Ask for one of them, or in two calls."
                )
        models = list(readers.values())
        backend.check_latent_models(models)
        named = list(dict.fromkeys(canonical(p) for m in models for p in (*read_points(m), *written_points(m))))
        reached = {name: place for place, name in enumerate(backend.capture(probe_inputs(backend.model_device), named))}
        reads = {activation_name(m): max(reached[canonical(p)] for p in read_points(m)) for m in models}
        writes = {activation_name(m): min(reached[canonical(p)] for p in written_points(m)) for m in models}
        above = {name: [other for other in reads if reads[other] > writes[name]] for name in writes}
        return cls({activation_name(m): m for m in models}, above)

    @property
    def dictionaries(self) -> list[str]:
        """Those that are no coordinates of hook points."""
        return [name for name, model in self.models.items() if not isinstance(model, IdentityDictionary)]

    def check_targets(self, sources: Sequence[UnitSet], targets: Sequence[UnitSet]) -> None:
        """Refuse target sets that stand above no source (``AnalysisError``)."""
        for target in targets:
            if not any(target.activation_name in self.above[item.activation_name] for item in sources):
                names = ", ".join(item.name for item in sources)
                raise AnalysisError(
                    f"Effects on {target.name} are asked for, which stands above none of the units that are changed "
                    f"({names}): the model reaches it before them. Exchange units and on, or choose units below it."
                )

    def held(self, sources: Sequence[UnitSet]) -> dict[str, list[str]]:
        """The dictionaries above each source, which are held at their clean values for direct effects.

        Raises:
            AnalysisError: There are none, or an error term cannot be.
        """
        held = {
            item.activation_name: [name for name in self.dictionaries if name in self.above[item.activation_name]]
            for item in sources
        }
        between = {name: self.models[name] for names in held.values() for name in names}
        if not between:
            raise AnalysisError(
                "direct=True holds the dictionaries above the units that are changed, and there is none: name their "
                "latents in units or on, or ask for total effects, which are the same here."
            )
        shared = shared_writers(self.models)
        for name in [name for name in between if name in shared]:
            model = between[name]
            if has_error_term(model) or has_skip_connection(model):
                part = "error term" if has_error_term(model) else "skip connection"
                raise AnalysisError(
                    f"direct=True cannot hold the {part} of {model.name!r}: it writes at several hook points, or "
                    f"together with others. Ask for total effects, or use it without {part}."
                )
        return held
