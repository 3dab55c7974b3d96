"""What an adapter hands to core through the hooks: classes to compose, optimizers and report sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen, validators


@frozen(kw_only=True)
class ClassContribution:
    """Base classes that one adapter adds to the composed classes of a session.

    In the method resolution order, entries come first, then the user's class, then the bases, each from the top of the
    stack down to core.

    Attributes:
        adapter: Name of the contributing adapter.
        module: Bases for the module.
        datamodule: Bases for the data module.
        module_entry: Classes before the user's module class. A framework's calls enter through them and continue to
            the user's methods with ``super()``.
        datamodule_entry: The same for the data module.
        module_cfg: Dataclass bases for the module's configuration; their fields become accepted by ``ITConfig``.
        datamodule_cfg: Dataclass bases for the data module's configuration.
        module_key: The key under which a session maps the module (``trainer.test(**session)`` wants ``model``).
    """

    adapter: str
    module: tuple[type, ...] = field(default=(), converter=tuple[Any, ...])
    datamodule: tuple[type, ...] = field(default=(), converter=tuple[Any, ...])
    module_entry: tuple[type, ...] = field(default=(), converter=tuple[Any, ...])
    datamodule_entry: tuple[type, ...] = field(default=(), converter=tuple[Any, ...])
    module_cfg: tuple[type, ...] = field(default=(), converter=tuple[Any, ...])
    datamodule_cfg: tuple[type, ...] = field(default=(), converter=tuple[Any, ...])
    module_key: str | None = None


@frozen(kw_only=True)
class SchedulerSetup:
    """A learning-rate scheduler and when it steps.

    Attributes:
        scheduler: The scheduler.
        interval: Steps after each ``epoch`` or after each optimizer ``step``.
        frequency: Number of epochs or optimizer steps between its steps.
        monitor: The logged metric that a plateau scheduler watches.
    """

    scheduler: Any
    interval: str = field(default="epoch", validator=validators.in_(("epoch", "step")))
    frequency: int = field(default=1, validator=validators.ge(1))
    monitor: str | None = None


@frozen(kw_only=True)
class OptimizerSetup:
    """Optimizers and learning-rate schedulers of a module."""

    optimizers: tuple[Any, ...] = field(default=(), converter=tuple[Any, ...])
    schedulers: tuple[SchedulerSetup, ...] = field(default=(), converter=tuple[Any, ...])


@frozen(kw_only=True)
class ReportSection:
    """One table of a report.

    Attributes:
        adapter: Name of the adapter that wrote it.
        title: Heading.
        rows: The table, a mapping from column to value for each row.
        note: A sentence below the table.
    """

    adapter: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""
