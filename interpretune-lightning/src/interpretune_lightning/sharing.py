"""Shares the batches of an evaluation among processes so that each batch is the one that a single process would see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sized
from typing import Any

from torch.utils.data import DataLoader, SequentialSampler
from torch.utils.data.distributed import DistributedSampler


class WholeBatchSampler(DistributedSampler[Any]):
    """Gives each process every n-th batch, rows in order.

    All processes get equally many batches, as collective operations need it: where the batches do not divide evenly,
    the first ones come again at the end. A ``DistributedSampler`` in name, so that Lightning leaves it in place.

    Attributes:
        batches: Batches of the whole data set.
    """

    def __init__(
        self, dataset: Sized, batch_size: int, num_replicas: int, rank: int, *, drop_last: bool = False
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.rows = len(dataset)
        self.batch_size = batch_size
        self.batches = self.rows // batch_size if drop_last else math.ceil(self.rows / batch_size)

    def batch_number(self, batch_idx: int) -> int:
        """Number of a batch of this process among all batches."""
        return batch_idx * self.num_replicas + self.rank

    def is_repeated(self, batch_idx: int) -> bool:
        """Whether a batch of this process is there for evenness only."""
        return self.batch_number(batch_idx) >= self.batches

    @property
    def is_uneven(self) -> bool:
        """Whether the processes have unequally many rows, or some come again."""
        return self.batches * self.batch_size != self.rows or bool(self.batches % self.num_replicas)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[int]:
        for batch_idx in range(math.ceil(self.batches / self.num_replicas)):
            number = self.batch_number(batch_idx) % self.batches
            yield from range(number * self.batch_size, min((number + 1) * self.batch_size, self.rows))


def share_whole_batches(
    loader: DataLoader[Any], processes: int, rank: int, *, keeps_last: bool = False
) -> DataLoader[Any]:
    """The same loader for one of several processes.

    Loaders with samplers of their own are left to Lightning, which a warning says.

    Args:
        loader: The loader of a single process.
        processes: How many there are.
        rank: Which one this is.
        keeps_last: Whether a last batch with fewer rows is read although the loader drops it.
    """
    in_order = isinstance(loader.sampler, (SequentialSampler, WholeBatchSampler))  # loaders may be made of each other
    if not in_order or loader.batch_size is None:
        warnings.warn(
            f"The rows of a loader with the sampler {type(loader.sampler).__name__} cannot be shared among {processes} "
            "processes so that each is counted once: Lightning repeats some, and metrics count them twice. Evaluate "
            "with a loader that reads its rows in order, or in one process.",
            UserWarning,
            stacklevel=2,
        )
        return loader
    drop_last = loader.drop_last and not keeps_last
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=WholeBatchSampler(loader.dataset, loader.batch_size, processes, rank, drop_last=drop_last),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def share_loaders(loaders: Any, processes: int, rank: int, *, keeps_last: bool = False) -> Any:
    """``share_whole_batches`` for a loader or a collection of loaders; anything else comes back as it is."""
    if isinstance(loaders, DataLoader):
        return share_whole_batches(loaders, processes, rank, keeps_last=keeps_last)
    if isinstance(loaders, Mapping):
        return {name: share_loaders(item, processes, rank, keeps_last=keeps_last) for name, item in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        return [share_loaders(item, processes, rank, keeps_last=keeps_last) for item in loaders]
    return loaders


def samplers_of(loaders: Any) -> list[WholeBatchSampler | None]:
    """What shares the batches of each of some loaders among processes; None where nothing does."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return [_sampler_of(item) for item in (loaders if isinstance(loaders, (list, tuple)) else [loaders])]


def _sampler_of(loader: Any) -> WholeBatchSampler | None:
    within = getattr(getattr(loader, "batch_sampler", None), "sampler", None)  # Lightning's loaders of predictions
    found = (getattr(loader, "sampler", None), within)
    return next((item for item in found if isinstance(item, WholeBatchSampler)), None)
