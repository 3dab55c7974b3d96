"""Fine-tuning schedules by the names that a session's users know."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interpretune import ConfigurationError, ITModule

SHOWN = 5
"""Near names that an error message gives."""


def finetuning_schedule(
    module: ITModule, phases: Mapping[int, Sequence[str] | Mapping[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Write a schedule for ``finetuning_scheduler.FinetuningScheduler(ft_schedule=...)``.

    Call it when the module is ready and nothing of it was frozen for a schedule: a schedule thaws what is marked
    trainable now, and leaves alone what is frozen (weights under an adapter, for example).

    Args:
        module: The session's module, ``session["model"]``.
        phases: For each phase, counted from 0, regular expressions that match whole names: those in
            ``module.named_parameters()`` or the further names of the stack (``it_name_parameters``). A parameter that
            several phases match is thawed in the first of them, so that ``".*"`` means the rest. For learning rates and
            transitions write a mapping: ``params`` holds the expressions, other keys are those of the scheduler
            (``lr``, ``max_transition_epoch``, ``new_optimizer``, ...) and go on as they are.

    Returns:
        The schedule with names of parameters.

    Raises:
        ConfigurationError: finetuning-scheduler is not installed, phases are not numbered 0, 1, 2, ..., or an
            expression is wrong or matches nothing that can be trained.
    """
    if importlib.util.find_spec("finetuning_scheduler") is None:
        raise ConfigurationError(
            "A fine-tuning schedule needs the package finetuning-scheduler: `pip install "
            '"interpretune-lightning[fts]"`.'
        )
    if sorted(phases) != list(range(len(phases))) or not phases:
        raise ConfigurationError(f"The phases of the schedule are {list(phases)}; number them 0, 1, 2, ...")
    names = _names(module)
    trainable = {name for name, item in module.named_parameters() if item.requires_grad}
    taken: set[str] = set()
    schedule = {}
    for number in range(len(phases)):
        phase = phases[number]
        options = dict(phase) if isinstance(phase, Mapping) else {"params": phase}
        patterns = options.get("params", ())
        if isinstance(patterns, str) or not patterns:
            raise ConfigurationError(f"Phase {number} of the schedule has params {patterns!r}; write a list of names.")
        wanted = {name for pattern in patterns for name in _matching(pattern, names, trainable, number)}
        own = [name for name, _ in module.named_parameters() if name in wanted and name not in taken]
        if not own:
            raise ConfigurationError(
                f"Phase {number} of the schedule thaws nothing: earlier phases have all that {list(patterns)} match. "
                "Leave the phase out, or narrow the earlier ones."
            )
        taken.update(own)
        schedule[number] = {**options, "params": own}
    return schedule


def _names(module: ITModule) -> dict[str, tuple[str, ...]]:
    """Real names by real and by further name."""
    names: dict[str, tuple[str, ...]] = {}
    for further in module.hook.it_name_parameters(module=module):
        for name, real in further.items():
            names[name] = (*names.get(name, ()), *real)
    return {**names, **{name: (name,) for name, _ in module.named_parameters()}}


def _matching(pattern: str, names: Mapping[str, tuple[str, ...]], trainable: set[str], number: int) -> Iterator[str]:
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise ConfigurationError(
            f"Phase {number} of the schedule: {pattern!r} is no regular expression: {error}."
        ) from error
    found = [real for name, reals in names.items() if name == pattern or matches(name) for real in reals]
    if not found:
        near = difflib.get_close_matches(pattern.replace("\\", ""), names, n=SHOWN, cutoff=0.3)
        raise ConfigurationError(
            f"Phase {number} of the schedule: {pattern!r} matches no parameter; it must match a whole name. "
            f"Near names: {', '.join(near) or ', '.join(list(names)[:SHOWN])}."
        )
    if trainable.isdisjoint(found):
        raise ConfigurationError(
            f"Phase {number} of the schedule: {pattern!r} matches frozen parameters only ({found[0]}, ...). A schedule "
            "thaws what is marked trainable when it is written: set freeze=False, or leave this out."
        )
    yield from (name for name in found if name in trainable)
