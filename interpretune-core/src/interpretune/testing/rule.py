"""A rule that adapters keep, and what is raised where one does not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from interpretune.plugins.declaration import Level

if TYPE_CHECKING:
    from interpretune.testing.workbench import Bench

DOCUMENTATION = "docs/adapters/rules.md"

RULES: dict[str, Rule] = {}
"""All rules by id, in the order in which they are checked."""


class RuleBroken(AssertionError):  # noqa: N818 - it says what happened
    """An adapter breaks a rule.

    Attributes:
        seen: What was found.
        expected: What should have been found.
        rule: The rule; filled in where the rule is checked.
    """

    def __init__(self, seen: str, expected: str, rule: Rule | None = None) -> None:
        super().__init__(seen, expected)
        self.seen, self.expected, self.rule = seen, expected, rule

    def __str__(self) -> str:
        name = f"{self.rule.id}: " if self.rule is not None else ""
        where = f"\n  documented: {self.rule.documented}" if self.rule is not None else ""
        return f"{name}{self.seen}\n  expected: {self.expected}{where}"


class RuleSkipped(Exception):  # noqa: N818 - it says what happened
    """A rule does not apply, or cannot be checked; the message says why."""


class RuleHidden(RuleSkipped):
    """A rule was not checked, since others that it builds on are not kept."""

    def __init__(self, message: str, because: Sequence[str]) -> None:
        super().__init__(message)
        self.because = tuple(because)


@frozen(eq=False)
class Rule:
    """One thing that must be so.

    Attributes:
        id: Its name, in kebab-case; the heading in the documentation.
        about: What must be so, in a sentence.
        function: Checks it; raises ``RuleBroken`` or ``RuleSkipped``.
        levels: Levels of adapters that it applies to; empty: all.
        capabilities: What the backend must offer for the rule to apply.
        after: Ids of rules that it builds on; where one of them is broken, this one says nothing.
        stack: Whether it says something of adapters that share a stack.
    """

    id: str
    about: str
    function: Callable[[Bench], None] = field(repr=False)
    levels: tuple[Level, ...] = ()
    capabilities: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    stack: bool = False

    @property
    def documented(self) -> str:
        """Where the rule is explained."""
        return f"{DOCUMENTATION}#{self.id}"

    @property
    def test_name(self) -> str:
        """Name of its test in a suite."""
        return f"test_{self.id.replace('-', '_')}"

    def check(self, bench: Bench) -> None:
        """Check it.

        Raises:
            RuleBroken: The adapter breaks it.
            RuleHidden: A rule that it builds on is broken.
            RuleSkipped: It does not apply.
        """
        try:
            self._check(bench)
        except RuleHidden as hidden:
            bench.broken[self.id] = hidden.because
            raise
        except RuleSkipped:
            raise
        except RuleBroken as broken:
            broken.rule = self
            bench.broken[self.id] = (self.id,)
            raise
        except (Exception, SystemExit) as error:  # an adapter may raise anything; it is reported as this rule's failure
            bench.broken[self.id] = (self.id,)
            raise RuleBroken(f"{type(error).__name__}: {error}", self.about, self) from error

    def _check(self, bench: Bench) -> None:
        if self.levels:
            level = bench.level
            if level not in self.levels:
                raise RuleSkipped(
                    f"only for adapters of the level {' or '.join(map(str, self.levels))}; this is {level}"
                )
        if because := tuple(dict.fromkeys(root for id_ in self.after for root in bench.broken.get(id_, ()))):
            one, kept = (("rule", "is"), ("rules", "are"))[len(because) > 1]
            raise RuleHidden(f"it builds on the {one} {' and '.join(because)}, which {kept} not kept", because)
        missing = [name for name in self.capabilities if name not in bench.capabilities]
        if missing:
            raise RuleSkipped(f"the backend does not offer {', '.join(missing)}")
        self.function(bench)


def rule(
    *, levels: Sequence[str] = (), capabilities: Sequence[str] = (), after: Sequence[str] = (), stack: bool = False
) -> Callable[[Callable[[Bench], None]], Rule]:
    """Make a rule of a function; its name is the id, the first line of its docstring what must be so."""

    def make(function: Callable[[Bench], None]) -> Rule:
        made = Rule(
            id=function.__name__.replace("_", "-"),
            about=(function.__doc__ or "").strip().splitlines()[0],
            function=function,
            levels=tuple(map(Level, levels)),
            capabilities=tuple(capabilities),
            after=tuple(after),
            stack=stack,
        )
        if made.id in RULES or not RULES.keys() >= set(made.after):
            raise ValueError(f"The rule {made.id!r} exists twice, or builds on one that is not checked before it.")
        RULES[made.id] = made
        return made

    return make


def expect(condition: object, seen: str, expected: str) -> None:
    """Raise ``RuleBroken`` unless something is so."""
    if not condition:
        raise RuleBroken(seen, expected)


@contextlib.contextmanager
def expect_no_error(seen: str, expected: str) -> Iterator[None]:
    """Raise ``RuleBroken`` where a block fails, but for rules that are skipped."""
    try:
        yield
    except RuleSkipped:
        raise
    except Exception as error:
        raise RuleBroken(f"{seen}: {type(error).__name__}: {error}", expected) from error


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first names, for messages: there may be hundreds."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
