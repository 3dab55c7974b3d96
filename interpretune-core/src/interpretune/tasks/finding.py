"""Tasks by name: those of this package, and those of others, from the entry-point group ``interpretune.tasks``."""

from __future__ import annotations

import importlib.metadata
from difflib import get_close_matches

from attrs import evolve, frozen

from interpretune.errors import TaskError
from interpretune.system.entry_points import load_registered, owner_of, registered, unreadable
from interpretune.tasks.task import Task

GROUP = "interpretune.tasks"
"""Group of entry points that name tasks of installed packages."""
OWN = {
    "agreement": "agreement:task",
    "ioi": "ioi:task",
    "greater_than": "greater_than:task",
    "capitals": "capitals:task",
    "entailment": "entailment:entailment",
    "rte": "entailment:rte",
    "boolq": "entailment:boolq",
}
"""Tasks of this package: module and attribute of each."""


@frozen
class OfferedTask:
    """A task that is known by name and not yet imported.

    Attributes:
        name: Its name.
        target: ``module:attribute`` of the task.
        distribution: The distribution that offers it.
        version: Version of that distribution.
        problem: Why it cannot be loaded, as far as that is known without importing it; empty if nothing is known.
    """

    name: str
    target: str
    distribution: str
    version: str
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.name!r} ({self.distribution} {self.version}, {self.target})"

    def load(self) -> Task:
        """Import the task.

        Raises:
            TaskError: It cannot be imported, is no ``Task``, has another name, or two distributions offer it.
        """
        if self.problem:
            raise TaskError(f"The task {self.name!r} is {self.problem}. Uninstall one of them.")
        task = load_registered(
            importlib.metadata.EntryPoint(self.name, self.target, GROUP),
            lambda told: TaskError(
                f"The task {self} cannot be imported: {told}. Repair it with "
                f"`pip install --force-reinstall {self.distribution}`, or uninstall it."
            ),
        )
        if not isinstance(task, Task):
            raise TaskError(f"The task {self} is a {type(task).__name__}; its entry point must name a Task.")
        if task.name != self.name:
            raise TaskError(f"The task {self} calls itself {task.name!r}; the two names must be equal.")
        return task


def offered_tasks() -> dict[str, OfferedTask]:
    """All tasks by name: those of this package, then those of others, sorted; no package of others is imported."""
    version = importlib.metadata.version("interpretune-core")
    found = {
        name: OfferedTask(name, f"interpretune.tasks.{target}", "interpretune-core", version)
        for name, target in OWN.items()
    }
    for item in sorted(registered(GROUP), key=lambda item: item.name):
        task = OfferedTask(item.name, item.value, *owner_of(item))
        twin = found.setdefault(task.name, task)
        if (twin.distribution, twin.target) != (task.distribution, task.target):
            found[task.name] = evolve(twin, problem=f"offered by {twin.distribution} and {task.distribution}")
    return found


def find_task(name: str) -> Task:
    """A task by name.

    Raises:
        TaskError: There is no such task, or it cannot be loaded, and why.
    """
    offered = offered_tasks()
    if name in offered:
        return offered[name].load()
    near = get_close_matches(name, offered, n=1)
    raise TaskError(
        f"There is no task {name!r}. Tasks: {', '.join(offered)}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + "".join(f" The entry points of {item} cannot be read." for item in unreadable(GROUP))
    )
