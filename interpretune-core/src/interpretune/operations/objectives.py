"""Objectives: one number a row, of the logits at its answer position."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from attrs import field, frozen, validators
from torch import Tensor

from interpretune.config.checked import value_and_type
from interpretune.errors import ConfigurationError, DataError

Against = Literal["mean", "max", "logsumexp"]
"""What several other answers are reduced to: mean, maximum, or logarithm of the summed exponentials."""

Reads = Literal["answers", "vocabulary", "row"]
"""What an objective reads of logits: of the answers up to a constant for each row, all, or of the row's own tokens."""

MOST_LOGITS = 2**26
"""Logits of changed rows that are in memory at a time; of a vocabulary of 50,000, those of some 1,300 tokens."""


@frozen(eq=False)
class Outcome:
    """What an objective reads, of ``n`` rows.

    Attributes:
        answers: Log-probability of each answer of the row, ``[n, k]``, of an answer of several tokens the sum of theirs
            given what stands before each. Where the objective reads ``answers`` only, up to a constant for each row:
            logits, if all answers are one token. Rows with fewer answers than others end in minus infinity.
        correct: Index of the correct answer, ``[n]``.
        log_probs: Of the whole vocabulary at the answer position, ``[n, vocab]``; None unless the objective reads it.
        clean: The same of the clean run.
        tokens: How many tokens ``answers`` are of, ``[n]``, where the objective reads ``row``: the log-probability of
            these stands for the only answer then.
    """

    answers: Tensor
    correct: Tensor
    log_probs: Tensor | None = None
    clean: Tensor | None = None
    tokens: Tensor | None = None

    @property
    def of_correct(self) -> Tensor:
        """What ``answers`` says of the correct one, ``[n]``.

        Raises:
            DataError: A row has no answers.
        """
        if bool((self.correct < 0).any()):
            raise DataError("A row has no answers, and the objective is of the correct one. Give it answers.")
        return self.answers.gather(-1, self.correct.unsqueeze(-1)).squeeze(-1)

    @property
    def rated(self) -> Tensor:
        """Index of the answer that is rated highest, ``[n]``; -1 where a row has none, or they are not rated."""
        if self.tokens is not None or not self.answers.shape[-1]:
            return torch.full_like(self.correct, -1)
        return self.answers.argmax(-1).masked_fill(self.correct < 0, -1)


@runtime_checkable
class Objective(Protocol):
    """One number a row; plain attributes work as the properties."""

    @property
    def name(self) -> str:
        """For tables and manifests."""
        ...

    @property
    def unit(self) -> str:
        """What it is counted in."""
        ...

    @property
    def reads(self) -> Reads:
        """What it needs of the logits."""
        ...

    def measure(self, outcome: Outcome) -> Tensor:
        """The number of each row, ``[n]``, with gradient.

        Raises:
            DataError: It is not defined for these rows.
        """
        ...


def _is_against(_: object, __: object, value: object) -> None:
    if value is not None and value not in get_args(Against):
        raise ConfigurationError(f"against is {value!r}; it is one of {', '.join(get_args(Against))}, or left out.")


@frozen
class LogitDiff:
    """Logit of the correct answer minus that of the other, or of what several others are reduced to.

    Of answers of several tokens, their log-probabilities stand for logits; the difference is the same for one token.

    Attributes:
        against: How several other answers are reduced; None: there is one other.
    """

    against: Against | None = field(default=None, validator=_is_against)
    reads: Reads = field(default="answers", init=False)
    unit: str = field(default="logits", init=False)

    @property
    def name(self) -> str:
        """``logit_diff``, with what it is counted against."""
        return "logit_diff" if self.against is None else f"logit_diff against {self.against}"

    def check_answers(self, count: int, where: str) -> None:
        """Refuse a number of answers of which there is no difference.

        Args:
            count: How many answers there are.
            where: The row, for the error.

        Raises:
            DataError: There are fewer than two; or more, and ``against`` does not say what they are reduced to.
        """
        if count < 2:
            raise DataError(
                f"{where} has {count} answers, and a logit difference is of two. Give more, or ask for log_prob."
            )
        if count > 2 and self.against is None:
            raise DataError(
                f"{where} has {count} answers, and a logit difference is of the correct one and one other. Give it "
                "two, or say what several others are reduced to: LogitDiff(against='mean'), 'max' or 'logsumexp'."
            )

    def measure(self, outcome: Outcome) -> Tensor:
        """See ``Objective.measure``."""
        counts = outcome.answers.isfinite().sum(-1)
        for count in (int(counts.min()), int(counts.max())):
            self.check_answers(count, "A row")
        own = torch.zeros_like(outcome.answers, dtype=torch.bool).scatter(-1, outcome.correct.unsqueeze(-1), True)
        there = outcome.answers.isfinite() & ~own
        others = outcome.answers.masked_fill(~there, 0 if self.against in (None, "mean") else -torch.inf)
        if self.against == "max":
            reduced = others.amax(-1)
        elif self.against == "logsumexp":
            reduced = others.logsumexp(-1)
        else:
            reduced = others.sum(-1) / there.sum(-1)
        return outcome.of_correct - reduced


@frozen
class LogProb:
    """Log-probability of the correct answer over the whole vocabulary."""

    name: str = field(default="log_prob", init=False)
    unit: str = field(default="nats", init=False)
    reads: Reads = field(default="vocabulary", init=False)

    def measure(self, outcome: Outcome) -> Tensor:
        """See ``Objective.measure``."""
        return outcome.of_correct


@frozen
class Prob:
    """Probability of the correct answer over the whole vocabulary."""

    name: str = field(default="prob", init=False)
    unit: str = field(default="probability", init=False)
    reads: Reads = field(default="vocabulary", init=False)

    def measure(self, outcome: Outcome) -> Tensor:
        """See ``Objective.measure``."""
        return outcome.of_correct.exp()


@frozen
class KL:
    """Kullback-Leibler divergence of the distribution at the answer position from that of the clean run.

    The sum over the vocabulary of ``p_clean * (log p_clean - log p)``. It is 0 in the clean run, and effects, which are
    clean minus changed, are negative.
    """

    name: str = field(default="kl", init=False)
    unit: str = field(default="nats", init=False)
    reads: Reads = field(default="vocabulary", init=False)

    def measure(self, outcome: Outcome) -> Tensor:
        """See ``Objective.measure``."""
        assert outcome.log_probs is not None, "it reads the vocabulary"
        assert outcome.clean is not None, "it reads the vocabulary"
        return torch.nn.functional.kl_div(outcome.log_probs, outcome.clean, reduction="none", log_target=True).sum(-1)


@frozen
class Loss:
    """Next-token loss: minus the mean log-probability of tokens given those before each.

    The tokens are those of the prompt from the second on and of the correct answer, where the row has one; or those of
    a span. A unit that is changed at a token has no effect on that token and on earlier ones.

    Attributes:
        span: Name of a span of the rows; None: the whole row.
    """

    span: str | None = None
    name: str = field(init=False)
    unit: str = field(default="nats", init=False)
    reads: Reads = field(default="row", init=False)

    @name.default
    def _name_with_span(self) -> str:
        return "loss" if self.span is None else f"loss of {self.span}"

    def measure(self, outcome: Outcome) -> Tensor:
        """See ``Objective.measure``."""
        assert outcome.tokens is not None, "it reads the row"
        return -outcome.of_correct / outcome.tokens


@frozen
class OwnObjective:
    """A function of your own.

    Attributes:
        function: Of an ``Outcome``, with gradient: ``[n]``.
        name: For tables and manifests.
        unit: What it is counted in.
        reads: ``answers`` where log-probabilities of the answers up to a constant for each row suffice.
    """

    function: Callable[[Outcome], Tensor]
    name: str = field()
    unit: str = ""
    reads: Reads = field(default="vocabulary", validator=validators.in_(get_args(Reads)))

    @name.default
    def _name_of_function(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def measure(self, outcome: Outcome) -> Tensor:
        """See ``Objective.measure``.

        Raises:
            DataError: The function gave something else than one number a row.
        """
        found = self.function(outcome)
        n = len(outcome.correct)
        if not isinstance(found, Tensor) or found.shape != (n,) or not found.is_floating_point():
            told = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"The objective {self.name} gave {told} for {n} rows; expected {n} floating-point numbers.")
        return found


LOGIT_DIFF = LogitDiff()
"""The objective of analyses that name none."""

OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "logit_diff": LogitDiff,
    "log_prob": LogProb,
    "prob": Prob,
    "kl": KL,
    "loss": Loss,
}
"""Objectives that can be asked for by name."""


def objective_of(given: Any) -> Objective:
    """An objective by name, by name with options, as it is, or of a function.

    Args:
        given: ``"log_prob"``, or ``{"logit_diff": {"against": "mean"}}`` as files say it, or an ``Objective``, or a
            function of an ``Outcome``.

    Raises:
        ConfigurationError: There is none of that name, or it has no such option.
    """
    if isinstance(given, Mapping) and len(given) == 1:
        ((given, options),) = given.items()
        return _named(given, options or {})
    if isinstance(given, str):
        return _named(given, {})
    if isinstance(given, Objective):
        return given
    if callable(given):
        return OwnObjective(given)
    raise ConfigurationError(
        f"{value_and_type(given)} is no objective. Give a name, {{name: options}}, an Objective, or a function of an "
        "Outcome."
    )


def _named(name: object, options: Any) -> Objective:
    if name not in OBJECTIVES:
        raise ConfigurationError(f"There is no objective {value_and_type(name)}; there are {', '.join(OBJECTIVES)}.")
    made = OBJECTIVES[str(name)]
    known = list(inspect.signature(made).parameters)
    if not isinstance(options, Mapping) or (unknown := [item for item in options if item not in known]):
        wrong = value_and_type(unknown[0]) if isinstance(options, Mapping) else value_and_type(options)
        raise ConfigurationError(
            f"The objective {name} has no option {wrong}; its options are {', '.join(known) or 'none'}."
        )
    return made(**options)


def has_gradient(objective: Objective) -> bool:
    """Whether an objective has a gradient at the clean run; the divergence from it is least there, and has none."""
    return not isinstance(objective, KL)


def check_gradient(objective: Objective, instead: str) -> None:
    """Refuse gradients at the clean run that are 0 by definition.

    Args:
        objective: What is measured.
        instead: How to ask for integrated gradients, for the error.

    Raises:
        ConfigurationError: It is the divergence from the clean run, which is least there.
    """
    if not has_gradient(objective):
        raise ConfigurationError(
            "The divergence from the clean run is 0 there and nowhere less, so that its gradient there is 0 and ranks "
            f"nothing. Ask for exact effects, or for integrated gradients: {instead}."
        )


def log_probs_of(logits: Tensor) -> Tensor:
    """Log-probabilities over the last axis, in float32 at least."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
