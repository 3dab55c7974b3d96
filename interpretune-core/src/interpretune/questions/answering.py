"""Answers a question batch by batch into a store, alone or as one of several processes that share the batches."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from interpretune.errors import StoreBusyError, UnknownContentError
from interpretune.hashing.content_hash import WHAT_TO_DO
from interpretune.store.store import AnalysisStore
from interpretune.store.writer import StoreWriter
from interpretune.system.progress import progress_bar

if TYPE_CHECKING:
    from interpretune.questions.question import Question


@frozen
class Share:
    """Which batches a process runs: every ``processes``-th, from number ``rank`` on."""

    rank: int = 0
    processes: int = 1

    def has(self, number: int) -> bool:
        """Whether a batch is of this share."""
        return number % self.processes == self.rank


ALL = Share()


def answer(
    question: Question, folder: str | Path | None, about: Mapping[str, Any] | None, share: Share, *, shown: bool
) -> AnalysisStore:
    """Compute what is not in the store yet; see ``Question.answered``.

    Args:
        question: What is asked.
        folder: The store; None: in memory, of all batches.
        about: What its manifest says beside the question.
        share: Which batches; the store is complete where other processes have written theirs.
        shown: Whether a terminal shows how many batches are done.

    Raises:
        UnknownContentError: Several processes cannot meet, since something that results depend on cannot be read.
    """
    noted = {**(about or {}), **question.about()}
    parts = question.about_parts(hashed=folder is not None)
    noted |= {**parts, "model": {**parts["model"], **noted.get("model", {})}}
    batches = list(question.batches(question.rows))
    if folder is None:
        _, writer = StoreWriter.in_memory(question.fields, noted)
    else:
        if share.processes > 1 and question.unknown:
            raise UnknownContentError(
                "Several processes meet in one store by what its results depend on, and that cannot be known: "
                f"{question.unknown[0]} {WHAT_TO_DO}"
            )
        writer = StoreWriter.create(
            folder,
            question.fields,
            noted,
            key=question.key,
            n_batches=len(batches),
            rank=share.rank,
            world_size=share.processes,
        )
    with writer, progress_bar(shown=shown) as progress:
        start, own = 0, [number for number in range(len(batches)) if share.has(number)]
        firsts = []
        for batch in batches:
            firsts.append(start)
            start += len(batch.points)
        for number in progress.track(own, description="batches of rows"):
            if number not in writer.done:
                examples = range(firsts[number], firsts[number] + len(batches[number].points))
                writer.write(number, examples, question.computed(batches[number]))
        if writer.folder is None or share.processes == 1:
            return writer.seal()
        writer.close()
        if not writer.missing():
            with contextlib.suppress(StoreBusyError):  # another has written its last batch, and seals when it closes
                writer.seal()
        return AnalysisStore.open(writer.folder)
