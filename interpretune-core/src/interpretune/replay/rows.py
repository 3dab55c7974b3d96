"""What rows of an ablation change: chosen latents of chosen latent models, each to its own value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from interpretune.activations.edits import Edit
from interpretune.errors import AnalysisError


@frozen(eq=False)
class Changes:
    """Latents of one latent model that rows set.

    Attributes:
        rows: The row that each change belongs to, ``[m]``.
        latents: Ids, ``[m]``.
        values: The activations to set, ``[m]``.
    """

    rows: Tensor
    latents: Tensor
    values: Tensor

    def select(self, rows: Tensor, total: int) -> Changes:
        """The changes of some rows, which are renumbered.

        Args:
            rows: Distinct ids, ``[k]``.
            total: Number of rows before.
        """
        new = torch.full((total,), -1, device=self.rows.device)
        new[rows] = torch.arange(len(rows), device=self.rows.device)
        kept = new[self.rows] >= 0
        return Changes(new[self.rows][kept], self.latents[kept], self.values[kept])

    def repeated(self, rows: Tensor, total: int) -> Changes:
        """The changes of rows, which may repeat, as those of new rows in this order.

        Args:
            rows: Ids, ``[m]``.
            total: Number of rows before.
        """
        order = self.rows.argsort(stable=True)
        counts = torch.bincount(self.rows, minlength=total)
        starts, sizes = (counts.cumsum(0) - counts)[rows], counts[rows]
        new = torch.arange(len(rows), device=rows.device).repeat_interleave(sizes)
        within = torch.arange(len(new), device=rows.device) - (sizes.cumsum(0) - sizes)[new]
        which = order[starts[new] + within]
        return Changes(new, self.latents[which], self.values[which])

    def edit(self, positions: Tensor | None = None) -> Edit:
        """An edit of latents ``[n, pos, d_sae]`` that makes the changes.

        Args:
            positions: Position of each row, ``[n]``; None: every position.
        """

        def set_latents(latents: Tensor) -> Tensor:
            changed = latents.clone()
            values = self.values.to(latents.dtype)
            if positions is None:
                changed[self.rows, :, self.latents] = values.unsqueeze(-1)
            else:
                changed[self.rows, positions[self.rows], self.latents] = values
            return changed

        return set_latents


@frozen(eq=False)
class LatentRows:
    """Rows of an ablation: in each, one token runs with some latents set.

    Attributes:
        points: The token of each row, an index into the prefill's points (its examples, unless other points were
            given), ``[n]``.
        changes: What is set, by activation name.
    """

    points: Tensor
    changes: Mapping[str, Changes]

    @classmethod
    def single(cls, name: str, pairs: Tensor, values: Tensor | float = 0.0) -> LatentRows:
        """One latent per row.

        Args:
            name: Activation name.
            pairs: Point and latent, ``[n, 2]``.
            values: The value to set, for each row or for all; 0 ablates the latent.
        """
        points, latents = pairs.unbind(-1)
        rows = torch.arange(len(pairs), device=pairs.device)
        return cls(points, {name: Changes(rows, latents, _spread(values, rows))})

    @classmethod
    def sets(
        cls, name: str, points: Tensor, latents: Sequence[Tensor], values: Sequence[Tensor] | float = 0.0
    ) -> LatentRows:
        """Several latents per row.

        Args:
            name: Activation name.
            points: Point of each row, ``[n]``.
            latents: Ids for each row, ``[k]`` each.
            values: The values to set, ``[k]`` for each row, or one number for all.
        """
        sizes = torch.tensor([len(ids) for ids in latents], dtype=torch.long, device=points.device)
        rows = torch.arange(len(points), device=points.device).repeat_interleave(sizes)
        flat = torch.cat(list(latents)) if len(latents) else points.new_empty(0)
        given: Tensor | float = 0.0
        if isinstance(values, (int, float)):
            given = values
        elif len(values):
            given = torch.cat(list(values))
        return cls(points, {name: Changes(rows, flat, _spread(given, rows))})

    @classmethod
    def joined(cls, parts: Sequence[LatentRows]) -> LatentRows:
        """The rows of several ablations, one after the other."""
        found: dict[str, list[Changes]] = {}
        before = 0
        for part in parts:
            for name, item in part.changes.items():
                found.setdefault(name, []).append(evolve(item, rows=item.rows + before))
            before += len(part)
        changes = {
            name: Changes(
                torch.cat([item.rows for item in items]),
                torch.cat([item.latents for item in items]),
                torch.cat([item.values for item in items]),
            )
            for name, items in found.items()
        }
        return cls(torch.cat([part.points for part in parts]), changes)

    def __len__(self) -> int:
        return len(self.points)

    def select(self, rows: Tensor) -> LatentRows:
        """Some rows, ``[k]``, distinct, in the given order."""
        changes = {name: item.select(rows, len(self)) for name, item in self.changes.items()}
        return LatentRows(self.points[rows], {name: item for name, item in changes.items() if len(item.rows)})

    def repeated(self, rows: Tensor, points: Tensor) -> LatentRows:
        """The changes of rows at other points.

        Args:
            rows: Which row of these, any number of times, ``[m]``.
            points: Its new point, ``[m]``.
        """
        if torch.equal(rows, torch.arange(len(self), device=rows.device)):
            return LatentRows(points, self.changes)
        return LatentRows(points, {name: item.repeated(rows, len(self)) for name, item in self.changes.items()})

    def check(self, points: int, widths: Mapping[str, int]) -> None:
        """Refuse rows that name something that does not exist.

        Args:
            points: Number of points.
            widths: Number of latents by activation name.

        Raises:
            AnalysisError: Something is beyond the batch or the dictionary, no latent model has such activations, or a
                row sets a latent twice.
        """
        for name, item in self.changes.items():
            if name not in widths:
                raise AnalysisError(
                    f"No latent model with the activations {name!r} is spliced in; there are {', '.join(widths)}."
                )
            examples, latents = self.points[item.rows], item.latents
            bad = (examples < 0) | (examples >= points) | (latents < 0) | (latents >= widths[name])
            if bad.any():
                first = int(bad.nonzero()[0])
                raise AnalysisError(
                    f"Rows to ablate at {name} go beyond the batch of {points} examples or the {widths[name]} latents: "
                    f"one names example {int(examples[first])} and latent {int(latents[first])}."
                )
            each = item.rows * widths[name] + latents
            if bool((each[1:] > each[:-1]).all()):
                continue
            changes, times = each.unique(return_counts=True)
            if (times > 1).any():
                row, latent = divmod(int(changes[times > 1][0]), widths[name])
                raise AnalysisError(f"Row {row} sets latent {latent} at {name} twice; name it once.")


def _spread(values: Tensor | float, rows: Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.expand(len(rows))
    dtype = torch.float32 if rows.device.type == "mps" else torch.float64  # as exact as the model may be
    return torch.full((len(rows),), values, dtype=dtype, device=rows.device)
