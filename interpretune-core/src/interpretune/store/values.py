"""Values as analyses give them and as they are read from a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen
from torch import Tensor


@frozen(eq=False)
class LatentValues:
    """One number for each example and each alive latent; its size follows the alive latents, not the dictionary.

    Attributes:
        latents: Ids of the alive latents, ascending, ``[n_alive]``.
        values: ``[batch, n_alive]``.
        d_sae: Width of the dictionary.
    """

    latents: Tensor
    values: Tensor
    d_sae: int

    def dense(self) -> Tensor:
        """All latents of the dictionary, ``[batch, d_sae]``, 0 where not alive."""
        full = self.values.new_zeros(self.values.shape[0], self.d_sae)
        full[:, self.latents] = self.values
        return full

    def cpu(self) -> LatentValues:
        """The same on the CPU."""
        return LatentValues(self.latents.cpu(), self.values.detach().cpu(), self.d_sae)


@frozen(eq=False)
class Peaks:
    """Where in each prompt each alive latent is most active.

    Attributes:
        latents: Ids of the alive latents, ``[n_alive]``.
        values: Highest activation in the prompt, ``[batch, n_alive]``.
        positions: Its position, counted without padding, ``[batch, n_alive]``.
    """

    latents: Tensor
    values: Tensor
    positions: Tensor

    def cpu(self) -> Peaks:
        """The same on the CPU."""
        return Peaks(self.latents.cpu(), self.values.cpu(), self.positions.cpu())


def alive_at(activations: Tensor) -> Tensor:
    """Ids of latents that are active (not 0) for some example of ``[batch, d_sae]``, ascending, ``[n_alive]``."""
    return (activations != 0).any(dim=0).nonzero().flatten()


class StoredBatch(Mapping[str, Any]):
    """The results of one batch, as they were given to the writer; tensors are on the CPU and the caller's own.

    Attributes:
        index: Index of the batch.
        examples: Positions of its examples in the analysed split, ``[n]``, int64.
    """

    def __init__(self, index: int, examples: Tensor, values: Mapping[str, Any]) -> None:
        self.index = index
        self.examples = examples
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"StoredBatch({self.index}, {len(self.examples)} examples, {', '.join(self) or 'no fields'})"
