"""Opens and closes the analyses of a run: each adapter that opened one closes it, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from interpretune.plugins.one_by_one import call_all_in_reverse, call_in_order, implementations_of

if TYPE_CHECKING:
    import pluggy

    from interpretune.analysis.analysis_run import AnalysisRun
    from interpretune.session.module import ITModule
    from interpretune.store import AnalysisStore


@frozen(eq=False)
class _Opened:
    """An analysis that adapters have opened.

    Attributes:
        analysis: As they saw it.
        results: Gives its store when it is closed.
        left_out: Adapters whose ``it_open_analysis`` did not return, where a wrapper has kept the error to itself.
    """

    analysis: AnalysisRun
    results: Callable[[], AnalysisStore | None]
    left_out: Sequence[Any]


class OpenAnalyses:
    """The analyses of one run. As a context manager it closes at the end all that were opened, also after an error.

    Implementations of ``it_open_analysis`` are called one by one. Where one fails, those that had returned are asked to
    close the analysis, no others, and the error goes on. Analyses are closed in the opposite order, and so are the
    adapters of each; when one fails to close, the others still do.
    """

    def __init__(self, module: ITModule) -> None:
        self._module = module
        self._opened: list[_Opened] = []

    def open(self, analysis: AnalysisRun, results: Callable[[], AnalysisStore | None] = lambda: None) -> None:
        """Call ``it_open_analysis``; ``results`` gives the store when the analysis is closed."""
        implementations = implementations_of(self._module.hook.it_open_analysis)
        returned: list[pluggy.HookImpl] = []
        try:
            call_in_order(implementations, {"module": self._module, "analysis": analysis}, returned)
        except BaseException as error:
            opened = [item.plugin for item in returned]
            _finish(error, self._close(evolve(analysis, error=error), lambda adapter: _is_in(adapter, opened)))
            raise
        left_out = [item.plugin for item in implementations if item not in returned]
        self._opened.append(_Opened(analysis, results, left_out))

    def close(self, error: BaseException | None = None) -> None:
        """Call ``it_close_analysis`` for all that are open.

        Args:
            error: What ended the run. Errors of adapters that close are noted at it; without it the first of them is
                raised.
        """
        failed: list[BaseException] = []
        while self._opened:
            failed += self._close_one(self._opened.pop(), error)
        _finish(error, failed)

    def __enter__(self) -> OpenAnalyses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def _close_one(self, opened: _Opened, error: BaseException | None) -> list[BaseException]:
        store, failed = None, list[BaseException]()
        try:
            store = opened.results()
        except BaseException as unreadable:  # noqa: BLE001 - raised when all are closed
            failed.append(unreadable)
        ended = evolve(opened.analysis, store=store, error=failed[0] if error is None and failed else error)
        return failed + self._close(ended, lambda adapter: not _is_in(adapter, opened.left_out))

    def _close(self, analysis: AnalysisRun, closes: Callable[[Any], bool]) -> list[BaseException]:
        """Call ``it_close_analysis`` of the adapters that are to close; what they raise."""
        implementations = implementations_of(self._module.hook.it_close_analysis)
        chosen = [item for item in implementations if closes(item.plugin)]
        return call_all_in_reverse(chosen, {"module": self._module, "analysis": analysis})


def _is_in(adapter: Any, adapters: Sequence[Any]) -> bool:
    return any(adapter is item for item in adapters)  # whatever they think of equality


def _finish(error: BaseException | None, failed: Sequence[BaseException]) -> None:
    """Raise the first of the errors that came up in closing, unless another is on its way; the others are noted at it.

    An interrupt goes before errors, which somebody may catch and go on.
    """
    interrupt = next((item for item in failed if not isinstance(item, Exception)), None)
    first = next((item for item in (error, interrupt, *failed) if item is not None), None)
    if first is None:
        return
    for item in failed:
        if item is not first:
            first.add_note(f"While the analysis was closed, there was another error: {type(item).__name__}: {item}")
    if error is None:
        raise first
    if interrupt is not None and isinstance(error, Exception):
        raise interrupt
