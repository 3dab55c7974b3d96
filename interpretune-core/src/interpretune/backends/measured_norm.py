"""Norms as their values show them, so that none has to be known by its class or by the names of its weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor

from interpretune.errors import AnalysisError

LARGE, SMALL = 2.0**12, 2.0**-10
"""Sizes of probes: beside the one, a norm's epsilon is nothing; beside the other, it counts."""


@frozen(eq=False)
class MeasuredNorm:
    """``weight * centred(x) / scale + bias``, with ``scale ** 2`` the mean of ``centred(x) ** 2``, plus ``eps``.

    All in float64.

    Attributes:
        weight: ``[d]``; of Gemma's norms one more than the parameter.
        bias: ``[d]``.
        eps: Under the root.
        centres: Whether the mean is taken off, as layer norms do.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    centres: bool

    @classmethod
    @torch.no_grad()
    def of(cls, norm: Callable[[Tensor], Tensor], like: Tensor) -> MeasuredNorm:
        """Measure a norm by a few vectors.

        Args:
            norm: ``[n, d]`` to the same.
            like: A vector ``[..., d]`` with the dtype and device of what it reads.
        """
        signs = 1.0 - 2.0 * (torch.arange(like.shape[-1], device=like.device) % 2)
        probes = torch.stack([LARGE * signs, -LARGE * signs, LARGE * (signs + 1), SMALL * signs, -SMALL * signs])
        up, down, moved, small, turned = norm(probes.to(like)).double()
        bias = (up + down) / 2
        centres = bool((moved - up).abs().max() < 1e-2 * (up - bias).abs().max())
        found = cls(torch.ones_like(bias), bias, 0.0, centres)
        reads = found.centred(probes.double())
        weight = (up - bias) * reads[0].square().mean().sqrt() / reads[0]
        along = weight * reads[3]
        scale = along.square().sum() / (along * (small - turned) / 2).sum()
        eps = max(0.0, float(scale.square() - reads[3].square().mean()))
        return cls(weight, bias, eps, centres)

    def centred(self, vectors: Tensor) -> Tensor:
        """Vectors ``[..., d]`` without their mean, where the norm takes it off."""
        return vectors - vectors.mean(-1, keepdim=True) if self.centres else vectors

    def size(self, vectors: Tensor) -> Tensor:
        """Root of the mean square of what the norm divides, without ``eps``, ``[..., d]`` to ``[...]``."""
        return self.centred(vectors).square().mean(-1).sqrt()

    def scales(self, read: Tensor, made: Tensor, where: str) -> Tensor:
        """The scales by which the norm divided vectors.

        Args:
            read: ``[n, d]``, float64.
            made: What it made of them.
            where: Which norm it is, for the error.

        Returns:
            ``[n]``.

        Raises:
            AnalysisError: It did something else.
        """
        along, rest = self.weight * self.centred(read), made - self.bias
        scales = along.square().sum(-1) / (along * rest).sum(-1)
        left = (rest - along / scales.unsqueeze(-1)).norm(dim=-1)
        if not bool((left <= TOLERANCE * rest.norm(dim=-1)).all()):
            raise AnalysisError(
                f"{where} is neither a layer norm nor one by root mean square: with its scale held, it is not linear. "
                "Direct attribution needs a model with such norms."
            )
        return scales

    def pulled_back(self, slopes: Tensor, scales: Tensor) -> Tensor:
        """Slopes by what the norm reads, its scales held, from those by what it makes, ``[n, d]``."""
        return self.centred(slopes * self.weight) / scales.unsqueeze(-1)


TOLERANCE = 0.05
"""Largest share of what a norm makes that may be unexplained; weights of 16 bits round."""


@frozen(eq=False)
class NormAt:
    """A norm of a model.

    Attributes:
        reads: Hook point of what it reads.
        makes: Hook point of what it makes of that.
        norm: ``[n, d]`` to the same.
        divided: Hook point of what it has divided by the scale, before gain and bias; None: there is none.
    """

    reads: str
    makes: str
    norm: Callable[[Tensor], Tensor]
    divided: str | None = None

    @torch.no_grad()
    def held(self, read: Tensor, made: Tensor) -> HeldNorm:
        """The norm with the scales that it had in a forward.

        Args:
            read: What it read there, ``[1, pos, d]``.
            made: What it made of that.

        Raises:
            AnalysisError: It is no layer norm, and none by root mean square.
        """
        measured = MeasuredNorm.of(self.norm, read)
        scales = measured.scales(read[0].double(), made[0].double(), f"The norm at {self.makes}").unsqueeze(-1)
        return HeldNorm(self, measured, read, made, scales.to(read))


@frozen(eq=False)
class HeldNorm:
    """A norm with the scales of a forward: linear, but for a constant.

    Attributes:
        at: Where it is.
        measured: What it does.
        read: What it read in the forward, ``[1, pos, d]``.
        made: What it made of that.
        scales: By what it divided, ``[pos, 1]``.
    """

    at: NormAt
    measured: MeasuredNorm
    read: Tensor
    made: Tensor
    scales: Tensor

    def divided(self, given: Tensor) -> Tensor:
        """What it divides of ``[n, pos, d]``, less that of the forward."""
        return self.measured.centred(given - self.read) / self.scales

    def makes(self, divided: Tensor) -> Tensor:
        """What it makes then; of nothing, what it made in the forward."""
        return self.made + self.measured.weight.to(self.made) * divided
