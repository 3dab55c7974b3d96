"""Cards of latents written for tools that show or interpret them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from interpretune.errors import ConfigurationError, StoreError
from interpretune.questions.result import Effects
from interpretune.sharing.delphi import delphi_files
from interpretune.sharing.exported_latents import ExportedLatents
from interpretune.sharing.neuronpedia import CREATOR, SourceNames, neuronpedia_files
from interpretune.sharing.staging import move_into, partial_folder, writing

ExportFormat = Literal["neuronpedia", "delphi"]


def export_latents(
    effects: Effects | str | Path | Iterable[Effects | str | Path],
    folder: str | Path,
    format: ExportFormat,  # noqa: A002 - as the command calls it
    *,
    model_id: str | None = None,
    source_set: str | None = None,
    creator_id: str = CREATOR,
) -> list[Path]:
    """Write cards of latents for another tool, from stores alone; the folder appears whole or not at all.

    Args:
        effects: Effects of latents with their evidence, or the folders of their stores: one or several.
        folder: What to write, absent or empty.
        format: ``neuronpedia``: files that a Neuronpedia imports. ``delphi``: a cache of latents that delphi
            interprets.
        model_id: What Neuronpedia calls the model; None: as the address of the latents' pages says, else as the model
            is called.
        source_set: What it calls the dictionaries of all layers together; None: likewise, else as the hook point.
        creator_id: Whose everything is there.

    Returns:
        A folder for each dictionary.

    Raises:
        ConfigurationError: There is no such format, or a name has letters that it cannot have.
        StoreError: A store has no cards of latents (the message says what writes them) or is damaged, two dictionaries
            would be written to one place, or the folder is taken or cannot be written.
    """
    if format not in get_args(ExportFormat):
        raise ConfigurationError(f"There is no format {format!r}; there are {', '.join(get_args(ExportFormat))}.")
    place = Path(folder)
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise StoreError(f"{place} is there already. Export into another folder.")
    files: dict[str, bytes] = {}
    for one in [effects] if isinstance(effects, (Effects, str, Path)) else effects:
        for latents in ExportedLatents.of(one):
            if format == "delphi":
                more = delphi_files(latents)
            else:
                more = neuronpedia_files(latents, SourceNames.of(latents, model_id, source_set, creator_id))
            if again := files.keys() & more.keys():
                raise StoreError(
                    f"Two dictionaries would be written to {Path(min(again)).parent}: export each into a folder of "
                    "its own."
                )
            files |= more
    if not files:
        raise StoreError("There is nothing to export: no store was given.")
    with partial_folder(place) as partial:
        for name, content in files.items():
            with writing(place):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(content)
        move_into(partial, place, replace=False)
    return sorted({place / Path(name).parent for name in files if name.endswith((".safetensors", "/source.jsonl"))})
