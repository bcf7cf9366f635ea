"""Examples that are read when they are asked for, of data that do not fit in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


class Rows:
    """Stands for an array [n, *shape] of which nothing is in memory: indexing it reads.

    It can be pickled, for processes that read, where `read` can be.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        index: np.ndarray,
        shape: tuple[int, ...],
        dtype: np.dtype | type,
        in_order: bool = False,
    ) -> None:
        """Read nothing yet.

        Args:
            read: indices [m] -> examples [m, *shape], or what can be reshaped to that.
            index: the examples that there are, by their place in what is read.
            shape: of one example.
            dtype: what examples are converted to.
            in_order: they lie in one file, of which all is soon read.
        """
        self.read, self.index, self.shape, self.dtype = read, index, (len(index), *shape), np.dtype(dtype)
        self.in_order = in_order

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.index)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        """Read examples: [*lead, *shape] of indices [*lead], or those of a slice."""
        places = self.index[which]
        values = self.read(places.reshape(-1)).astype(self.dtype, copy=False)
        return values.reshape(*places.shape, *self.shape[1:])

    def subset(self, which: slice | np.ndarray) -> Rows:
        """Some of the examples; nothing is read."""
        return Rows(self.read, self.index[which], self.shape[1:], self.dtype, self.in_order)

    def reshape(self, n: int, *shape: int) -> Rows:
        """The same examples in another shape."""
        return Rows(self.read, self.index, shape, self.dtype, self.in_order)

    def astype(self, dtype: np.dtype | type, copy: bool = False) -> Rows:
        """The same examples as another type."""
        return Rows(self.read, self.index, self.shape[1:], dtype, self.in_order)

    def looked_at(self) -> Iterator[np.ndarray]:
        """What tells of what kind the examples are: all of them, a part at a time, or the first thousand."""
        size = max(1, 2**24 // max(1, math.prod(self.shape[1:]))) if self.in_order else 1000
        for low in range(0, len(self) if self.in_order else 1, size):
            yield self[low : low + size]


def subset(x: np.ndarray | Rows, which: slice | np.ndarray) -> np.ndarray | Rows:
    """Some of the examples."""
    return x.subset(which) if isinstance(x, Rows) else x[which]


def mapped(path: Path) -> Rows:
    """The rows of a .npy file; ValueError where it is none of plain numbers."""
    try:
        changed = path.stat().st_mtime_ns
        array = _open(path, changed)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f"{path}: not a .npy file of plain numbers ({error})") from error
    if array.ndim == 0:
        raise ValueError(f"{path}: holds one number, not rows")
    read = functools.partial(_read, path, changed)
    return Rows(read, np.arange(len(array)), array.shape[1:], array.dtype, in_order=True)


@functools.lru_cache
def _open(path: Path, changed: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read(path: Path, changed: int, index: np.ndarray) -> np.ndarray:
    return np.asarray(_open(path, changed)[index])
