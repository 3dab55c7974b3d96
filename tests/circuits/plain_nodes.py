"""Effects of nodes on nodes by plain loops: a whole forward for each changed node, from the definitions alone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.questions.plain_loops import Coder, PlainLoops


@dataclass
class Place:
    """Units of one set: its name, where they are, and the coordinates of each."""

    name: str
    layer: int
    at: str | Coder
    members: Mapping[int, Sequence[int]]


@dataclass
class Seen:
    """Of runs of one prompt, a line for each: logits after each token, at each place its activations, and what
    dictionaries have written."""

    logits: Tensor
    activations: dict[str, Tensor]
    written: dict[str, Tensor]


class PlainNodes:
    """A model of transformers with dictionaries spliced in at several blocks."""

    def __init__(self, model: Any, layers: int, special: Sequence[int], coders: Mapping[Coder, int] | Any) -> None:
        self.model, self.special, self.coders = model, special, coders
        self.blocks = [PlainLoops(model, layer, special) for layer in range(layers)]

    @torch.no_grad()
    def run(
        self,
        tokens: Sequence[int],
        places: Sequence[Place],
        changes: Sequence[tuple[Place, int, int, float] | None] = (None,),
        held: Mapping[str, Tensor] | None = None,
    ) -> Seen:
        """A whole forward for each change, all as one batch; a change is of a unit at a token, to a number."""
        seen = Seen(torch.zeros(0), {}, {})

        def changed(activations: Tensor, at: str | Coder, layer: int) -> Tensor:
            for line, change in enumerate(changes):
                if change is not None:
                    place, unit, token, value = change
                    here = (place.layer, place.at) == (layer, at) if isinstance(at, str) else place.at is at
                    if here:
                        activations[line, token, list(place.members[unit])] = value
            return activations

        with contextlib.ExitStack() as stack:
            for coder, layer in self.coders:
                block = self.blocks[layer]

                def edit(latents: Tensor, coder: Coder = coder, layer: int = layer) -> Tensor:
                    seen.activations[coder.name] = latents.clone()
                    return changed(latents, coder, layer)

                def written(stream: Tensor, coder: Coder = coder) -> Tensor:
                    if held and coder.name in held:
                        alone = [i == 0 or token in self.special for i, token in enumerate(tokens)]
                        alone[-1] = False
                        skipped = torch.tensor(alone).unsqueeze(-1) & coder.skips_special_tokens
                        stream = torch.where(skipped, stream, held[coder.name])
                    seen.written[coder.name] = stream.clone()
                    return stream

                stack.enter_context(block.spliced(coder, tokens, len(tokens), edit))
                stack.enter_context(block.edited(coder.output_hook_point.rpartition(".")[2], written))
            for place in places:
                if isinstance(place.at, str):

                    def note(activations: Tensor, place: Place = place) -> Tensor:
                        seen.activations[place.name] = activations.clone()
                        return changed(activations, place.at, place.layer)

                    stack.enter_context(self.blocks[place.layer].edited(place.at, note))
            seen.logits = self.model(input_ids=torch.tensor([list(tokens)] * len(changes))).logits
        return seen


def effects_in_loops(
    nodes: PlainNodes,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Place],
    targets: Sequence[Place],
    changed: Sequence[Sequence[int]],
    read: Sequence[Sequence[int]] | None,
    held: Mapping[str, Sequence[str]] | None = None,
) -> dict[tuple[Any, ...], float]:
    """Every effect by row, source, and target; units that are 0 already are left out.

    Args:
        nodes: The model.
        prompts: Tokens of the rows.
        sources: What is set to 0.
        targets: What effects are on; all are recorded, whether they stand above or not.
        changed: Tokens of each row at which sources are changed.
        read: Tokens of each row at which targets are read, from the changed one on; None: at the changed one.
        held: By source set, the dictionaries that write what they write in the clean run.
    """
    found = {}
    for row, tokens in enumerate(prompts):
        places = [*sources, *(place for place in targets if all(place.name != other.name for other in sources))]
        clean = nodes.run(tokens, places)
        for source in sources:
            kept = {name: clean.written[name] for name in (held or {}).get(source.name, ())}
            points = [
                (token, unit)
                for token in changed[row]
                for unit, members in source.members.items()
                if clean.activations[source.name][0, token, list(members)].any()
            ]
            if not points:
                continue
            now = nodes.run(tokens, places, [(source, unit, token, 0.0) for token, unit in points], kept)
            for line, (token, unit) in enumerate(points):
                found[row, token, source.name, unit, "logits"] = clean.logits[0, -1] - now.logits[line, -1]
                for target in targets:
                    if target.name == source.name:
                        continue
                    for at in [token] if read is None else [item for item in read[row] if item >= token]:
                        change = clean.activations[target.name][0, at] - now.activations[target.name][line, at]
                        for other, theirs in target.members.items():
                            several = change[list(theirs)]
                            size = several.norm() if len(theirs) > 1 else several[0]
                            found[row, token, source.name, unit, at, target.name, other] = size.item()
    return found
