"""Every error that interpretune raises on purpose, under one base class.

A message says what failed, where (for an adapter: its name, distribution and version), what was found, what was
expected, and what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BATCH = "the batch"
"""What row numbers of a ``NotFiniteError`` refer to, unless it says otherwise."""
ROWS_TOLD = 20
"""How many rows a message lists."""


class InterpretuneError(Exception):
    """Base class of all errors raised by interpretune and its adapters."""


class AdapterError(InterpretuneError):
    """An adapter cannot be used."""


class UnknownAdapterError(AdapterError, AttributeError, LookupError):
    """A name that no installed distribution registers as an adapter."""


class AdapterImportError(AdapterError, ImportError):
    """An installed adapter that fails on import, or whose libraries are installed in versions that do not fit."""


class AdapterSignatureError(AdapterError, TypeError):
    """An adapter object or one of its hook implementations has the wrong form."""


class DuplicateAdapterError(AdapterError):
    """Two distributions register the same adapter name."""


class ContractVersionError(AdapterError):
    """An adapter was written for a contract version that this core does not support."""


class StackError(AdapterError):
    """The requested adapters cannot be stacked: a conflict, a cycle, or two owners of one task."""


class ConfigurationError(InterpretuneError, ValueError):
    """A session, module or data module is configured in a way that cannot work."""


class ConfigurationFieldError(ConfigurationError, TypeError):
    """A configuration class is given a field it does not have, or a value of the wrong type."""


class DataError(InterpretuneError, ValueError):
    """A data set, a prompt or a batch does not match the configuration."""


class TokenizationError(DataError):
    """Text does not give the tokens that the analysis needs."""


class TaskError(InterpretuneError, LookupError):
    """There is no task of that name, or it cannot be loaded."""


class ModelLoadError(InterpretuneError, RuntimeError):
    """A model or its tokenizer cannot be loaded, or does not behave as its source does."""


class HookPointError(InterpretuneError, LookupError):
    """A hook point that the model does not have, or whose width does not match."""


class LatentModelError(InterpretuneError, ValueError):
    """A latent model (a sparse autoencoder, a transcoder, ...) cannot be loaded or does not fit."""


class TrainingError(InterpretuneError, RuntimeError):
    """A training or evaluation loop cannot start or continue."""


class CheckpointError(InterpretuneError, RuntimeError):
    """A checkpoint is missing, or belongs to another stack or another model."""


class AnalysisError(InterpretuneError, RuntimeError):
    """An analysis needs something that its session or inputs do not provide."""


class NotFiniteError(AnalysisError):
    """Numbers of an analysis are NaN or infinite.

    Attributes:
        what: What they are, in words.
        rows: Indices of the examples.
        of: What the indices refer to: ``the batch``, or a split.
        reason: Where it begins, the likely cause, and what to do.
    """

    def __init__(self, what: str, rows: Sequence[int], reason: str, of: str = BATCH) -> None:
        self.what, self.rows, self.reason, self.of = what, tuple(rows), reason, of
        shown = ", ".join(map(str, self.rows[:ROWS_TOLD])) + (", ..." if len(self.rows) > ROWS_TOLD else "")
        count = f"{len(self.rows)} rows" if len(self.rows) > 1 else "1 row"
        super().__init__(f"{what} are not finite in {count} of {of} ({shown}). {reason}")

    def renamed(self, names: Sequence[int] | Tensor, of: str) -> NotFiniteError:
        """The same error with row ``i`` called ``names[i]``."""
        return type(self)(self.what, sorted({int(names[row]) for row in self.rows}), self.reason, of)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.what, self.rows, self.reason, self.of)


class ReplayRefusedError(AnalysisError):
    """A model or a latent model cannot be replayed exactly; the slow way is used instead where there is one."""


class CacheError(InterpretuneError, OSError):
    """A cache folder cannot be read or written."""


class OutputError(InterpretuneError, OSError):
    """A figure, a summary or a log cannot be written."""


class StoreError(InterpretuneError, RuntimeError):
    """A result store cannot be written or read, is damaged, or belongs to another run."""


class StoreBusyError(StoreError):
    """Another process is writing the result store."""


class PlanError(AnalysisError, ValueError):
    """Operations do not fit together, or an operation did not do what it declares."""


class UnknownContentError(PlanError):
    """Something that results depend on cannot be read, so equal and different settings cannot be told apart."""


class NotReusedWarning(UserWarning):
    """Something is computed again, because it is unknown whether the stored result depends on the same settings."""
