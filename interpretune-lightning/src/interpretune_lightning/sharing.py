"""Shares the batches of a test among processes so that each batch is the one that a single process would see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
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

    def __init__(self, dataset: Sized, batch_size: int, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.rows = len(dataset)
        self.batch_size = batch_size
        self.batches = math.ceil(self.rows / batch_size)

    def batch_number(self, batch_idx: int) -> int:
        """Number of a batch of this process among all batches."""
        return batch_idx * self.num_replicas + self.rank

    def is_repeated(self, batch_idx: int) -> bool:
        """Whether a batch of this process is there for evenness only."""
        return self.batch_number(batch_idx) >= self.batches

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[int]:
        for batch_idx in range(math.ceil(self.batches / self.num_replicas)):
            number = self.batch_number(batch_idx) % self.batches
            yield from range(number * self.batch_size, min((number + 1) * self.batch_size, self.rows))


def share_whole_batches(loader: DataLoader[Any], processes: int, rank: int) -> DataLoader[Any]:
    """The same loader for one of several processes; loaders with samplers of their own are left to Lightning."""
    if not isinstance(loader.sampler, SequentialSampler) or loader.batch_size is None:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=WholeBatchSampler(loader.dataset, loader.batch_size, processes, rank),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
