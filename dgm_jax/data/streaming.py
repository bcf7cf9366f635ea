"""Batches that grain reads ahead, of data that do not fit on a device. A batch is a function of the step here too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grain
import numpy as np
from absl import flags

from dgm_jax.data import pipeline
from dgm_jax.data.dataset import Split


@dataclass(frozen=True)
class Dispatches:
    """What grain reads from: element i is the batches of dispatch i, of each of them one process's rows."""

    split: Split
    batch: int
    count: int  # batches of a dispatch
    seed: int
    cond: bool
    rows: np.ndarray  # of a batch
    total: int

    def __len__(self) -> int:
        """How many dispatches there are in the run."""
        return self.total

    def __getitem__(self, dispatch: int) -> dict[str, np.ndarray]:
        """The arrays of `pipeline.take`, [count, rows, ...]."""
        n = len(self.split["x"])
        index = pipeline.indices_at(dispatch * self.count, n=n, batch=self.batch, seed=self.seed, count=self.count)
        return pipeline.take(self.split, index[:, self.rows], self.cond)


class Stream:
    """step -> the batches of the dispatch that begins there, read ahead while others are trained on.

    Asked for another dispatch than the next one or the last, it begins to read there: the step is all the position
    there is.
    """

    def __init__(self, source: Dispatches, prefetch: int, workers: int) -> None:
        """Read nothing yet.

        Args:
            source: what is read.
            prefetch: dispatches that are read ahead, each by a thread.
            workers: processes that read, instead of threads; 0 = none.
        """
        self.source, self.prefetch, self.workers = source, prefetch, workers
        self.at = -1
        self.last: dict[str, np.ndarray] = {}  # the batches of dispatch `at`
        self.iterator: Iterator[dict[str, np.ndarray]] = iter(())

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Arrays [count, rows, ...]."""
        dispatch = step // self.source.count
        if dispatch != self.at:
            if dispatch != self.at + 1 or not self.last:
                self.iterator = self._from(dispatch)
            self.at, self.last = dispatch, next(self.iterator)
        return self.last

    def _from(self, dispatch: int) -> Iterator[dict[str, np.ndarray]]:
        ahead = grain.ReadOptions(num_threads=self.prefetch, prefetch_buffer_size=self.prefetch)
        elements = grain.MapDataset.source(self.source)[dispatch:].to_iter_dataset(ahead)
        if self.workers:
            if not flags.FLAGS.is_parsed():  # grain asks absl's flags, which only absl's own programs parse
                flags.FLAGS.mark_as_parsed()
            elements = elements.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.workers))
        return iter(elements)
