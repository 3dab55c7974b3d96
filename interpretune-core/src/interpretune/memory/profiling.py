"""Time and memory of steps and of their phases, on request."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import psutil
import torch

from interpretune.config.memory_profile import MemoryProfileCfg
from interpretune.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import plotly.graph_objects as go

Step = TypeVar("Step", bound=Callable[..., Any])
RECORDED = {"step", "phase", "call", "resident_bytes", "cuda_peak_bytes"}
"""What the figure needs of a record."""


class ProfilerHooksMixin:
    """Gives modules the decorator ``memprofilable`` for steps, and ``memory_phase`` for parts of them.

    What is recorded stands in ``module.step_profile``, a dictionary for each step and phase: ``step``, ``phase`` (empty
    for the whole step), ``call`` (from 0), ``seconds``, ``resident_bytes`` of the process at the end and
    ``resident_growth`` since the beginning, ``peak_bytes`` that the process ever had, and of CUDA ``cuda_bytes`` at the
    end, ``cuda_growth``, and ``cuda_peak_bytes`` in between; 0 where there is no CUDA. All of this is of the process,
    whichever of its threads took the memory.
    """

    @staticmethod
    def memprofilable(step: Step) -> Step:
        """Record a step where ``it_cfg.profile_memory`` is set: True, or a ``MemoryProfileCfg``."""

        @functools.wraps(step)
        def profiled(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked = self.it_cfg.profile_memory
            if not asked:
                return step(self, *args, **kwargs)
            cfg = asked if isinstance(asked, MemoryProfileCfg) else MemoryProfileCfg()
            calls = self.__dict__.setdefault("step_calls", Counter())
            with _guard:
                call, calls[step.__name__] = calls[step.__name__], calls[step.__name__] + 1
            if cfg.file is not None and not call and cfg.takes(step.__name__, cfg.warmup):
                _check_file(Path(cfg.file))
            if not cfg.takes(step.__name__, call):
                return step(self, *args, **kwargs)
            with _recorded(self, cfg, step.__name__, call):
                return step(self, *args, **kwargs)

        return cast("Step", profiled)

    @contextlib.contextmanager
    def memory_phase(self, name: str) -> Iterator[None]:
        """Record a part of a step, ``with self.memory_phase("generate"): ...``, in the calls that are recorded."""
        current = _current.get()
        if current is None or current.module is not self:
            yield
            return
        with current.measured(name):
            yield


_guard = threading.Lock()
_histories: list[str] = []


class _RecordedCall:
    """A call of a step that is being recorded."""

    def __init__(self, module: Any, cfg: MemoryProfileCfg, step: str, call: int) -> None:
        self.module, self.cfg, self.step, self.call = module, cfg, step, call

    @contextlib.contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        resident, on_cuda, start = _resident(), _cuda_bytes(), time.perf_counter()
        peak = _CudaPeak()
        try:
            yield
        finally:
            cuda_peak = peak.end()
            resident_now, cuda_now = _resident(), _cuda_bytes()
            record = {
                "step": self.step,
                "phase": phase,
                "call": self.call,
                "seconds": time.perf_counter() - start,
                "resident_bytes": resident_now,
                "resident_growth": resident_now - resident,
                "peak_bytes": peak_memory_bytes(),
                "cuda_bytes": cuda_now,
                "cuda_growth": cuda_now - on_cuda,
                "cuda_peak_bytes": cuda_peak,
            }
            self.module.__dict__.setdefault("step_profile", []).append(record)
            if self.cfg.file is not None:
                with Path(self.cfg.file).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")


class _CudaPeak:
    """CUDA's peak since this began. CUDA has one counter for all threads: who resets it tells the others first."""

    _open: ClassVar[list[_CudaPeak]] = []

    def __init__(self) -> None:
        self._bytes = 0
        with _guard:
            self._tell()
            self._open.append(self)

    def end(self) -> int:
        with _guard:
            self._tell()
            self._open.remove(self)
        return self._bytes

    @classmethod
    def _tell(cls) -> None:
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
            for item in cls._open:
                item._bytes = max(item._bytes, peak)
            torch.cuda.reset_peak_memory_stats()


_current: ContextVar[_RecordedCall | None] = ContextVar("interpretune_recorded_call", default=None)


@contextlib.contextmanager
def _recorded(module: Any, cfg: MemoryProfileCfg, step: str, call: int) -> Iterator[None]:
    recorded = _RecordedCall(module, cfg, step, call)
    token = _current.set(recorded)
    try:
        with _allocator_history(cfg, f"{step}-{call}"), recorded.measured(""):
            yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def _allocator_history(cfg: MemoryProfileCfg, name: str) -> Iterator[None]:
    if not (cfg.allocator_history and torch.cuda.is_available()):
        yield
        return
    with _guard:
        _histories.append(name)
        if len(_histories) == 1:
            torch.cuda.memory._record_memory_history()
    try:
        yield
        torch.cuda.memory._dump_snapshot(f"{cfg.file or 'memory'}-{name}.pickle")
    finally:
        with _guard:  # it is of the process: the last one to end stops it
            _histories.remove(name)
            if not _histories:
                torch.cuda.memory._record_memory_history(enabled=None)


def _check_file(path: Path) -> None:
    """Refuse a file that cannot be written before the step runs, not when its record is there."""
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigurationError(
            f"MemoryProfileCfg.file is {path}, which cannot be written: {error.strerror}. Make its folder, or name "
            "another file."
        ) from error


def peak_memory_bytes() -> int:
    """Highest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows has no such counter
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def plot_memory_profile(records: Sequence[Mapping[str, Any]] | str | Path) -> go.Figure:
    """Memory after each recorded step and phase, a line each, over the calls.

    Args:
        records: ``module.step_profile``, or the file of JSON lines.

    Raises:
        DataError: A line of the file is no record.
    """
    import plotly.graph_objects as go

    found = _read(Path(records)) if isinstance(records, str | Path) else list(records)
    figure = go.Figure()
    fields = {"resident_bytes": "process"}
    if any(item["cuda_peak_bytes"] for item in found):
        fields["cuda_peak_bytes"] = "CUDA, peak"
    for step, phase in dict.fromkeys((item["step"], item["phase"]) for item in found):
        lines = [item for item in found if (item["step"], item["phase"]) == (step, phase)]
        for field, told in fields.items():
            figure.add_scatter(
                x=[item["call"] for item in lines],
                y=[item[field] / 1e6 for item in lines],
                name=f"{step}{f', {phase}' if phase else ''}: {told}",
                mode="lines+markers",
            )
    figure.update_layout(
        xaxis_title="call of the step", yaxis_title="MB", template="plotly_white", title="Memory of steps"
    )
    return figure


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: {error}. A file of records has one as JSON in each line."
            ) from error
        if not isinstance(record, dict) or not record.keys() >= RECORDED:
            needed = ", ".join(sorted(RECORDED))
            raise DataError(f"{path}, line {number}: this is no record of a step, which has {needed}.")
        records.append(record)
    return records


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _cuda_bytes() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
