"""Models and latent models by their content: what a manifest says of them, and what the key of a store hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from interpretune.hashing.content_hash import content_hash
from interpretune.hashing.packages import version_or_unknown
from interpretune.latents.latent_model import HasHookPoints, LatentModel, activation_name, read_points, written_points

if TYPE_CHECKING:
    from interpretune.backends.backend import AnalysisBackend

LIBRARIES = ("interpretune-core", "torch", "transformers")
"""Libraries whose version may change a number."""


@frozen
class Identity:
    """What is known of a part of a run.

    Attributes:
        about: What a manifest says of it, hashes included.
        unknown: What cannot be known, in words; if there is anything, equal hashes mean nothing.
    """

    about: dict[str, Any]
    unknown: tuple[str, ...] = ()


def identify_model(backend: AnalysisBackend, source: str) -> Identity:
    """A model: where it came from, its class, and a hash of all that it and its configuration hold."""
    model: Any = backend.model
    configs = [config for name in ("config", "cfg") if (config := getattr(model, name, None)) is not None]
    about = [_entries(config) for config in configs]
    named = [entries.get("model_type", entries.get("model_name")) for entries in about]
    noted, library = backend.passing_model_state, backend.passing_model_library
    content = content_hash(model, "The model", noted, configs, library=library)
    return Identity(
        {
            "source": without_folders(source),
            "class": _name_of(type(model)),
            "type": str(next(filter(None, named), "")),
            "sha256": content.sha256,
        },
        content.unknown,
    )


def identify_latents(latent_model: LatentModel) -> Identity:
    """A latent model: hook points, class, plain settings, and a hash of all that it holds, with its code."""
    settings = {**getattr(latent_model, "__dict__", {}), **_entries(getattr(latent_model, "cfg", None))}
    noted = getattr(latent_model, "passing_state", ())
    content = content_hash(latent_model, f"The latent model {latent_model.name}", noted)
    return Identity(
        {
            "name": activation_name(latent_model),
            "hook_point": latent_model.hook_point,
            "output_hook_point": latent_model.output_hook_point,
            **_several_points(latent_model),
            "d_sae": latent_model.d_sae,
            "class": _name_of(type(latent_model)),
            "settings": _plain(settings),
            "dashboard_url": latent_model.dashboard_url(),
            "sha256": content.sha256,
        },
        content.unknown,
    )


def _several_points(latent_model: LatentModel) -> dict[str, list[str]]:
    """Its hook points if there are several."""
    if not isinstance(latent_model, HasHookPoints):
        return {}
    points = {"hook_points": read_points(latent_model), "output_hook_points": written_points(latent_model)}
    return {name: list(found) for name, found in points.items()}


def versions() -> dict[str, str]:
    """Versions of ``LIBRARIES``."""
    return {name: version_or_unknown(name) for name in LIBRARIES}


def _entries(config: Any) -> Mapping[str, Any]:
    """A configuration by name, whatever kind it is of."""
    if isinstance(config, Mapping):
        return {str(name): value for name, value in config.items()}
    if hasattr(config, "to_dict"):
        return dict(config.to_dict())
    return dict(getattr(config, "__dict__", {}))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Public settings that are numbers or words, to be read; what counts is the hash."""
    return {
        name: value
        for name, value in sorted(values.items())
        if not name.startswith("_") and type(value) in (bool, int, float, str) and name not in ("training", "device")
    }


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def without_folders(place: str) -> str:
    """The last part of an absolute path; anything else as it is. Stores are shared, folders of a machine are not."""
    return Path(place).name if Path(place).is_absolute() else place
