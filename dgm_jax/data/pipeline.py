"""Batches as a pure function of the step: a data set in memory has no iterator, so there is no state to save.

Training takes whole batches in the epoch's order; the few examples left over wait for the next order.
Evaluation goes through a split once, in its own order, and pads and masks the last batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from dgm_jax.data.dataset import Split, permutation
from dgm_jax.data.rows import subset


def steps_per_epoch(n: int, batch: int) -> int:
    """Return how many whole batches n examples give; ValueError if there is not one."""
    if not 0 < batch <= n:
        raise ValueError(f"a batch of {batch} cannot be taken from {n} examples: choose a batch size in 1..{n}")
    return n // batch


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the epoch's order, a permutation int32 [n]: a pure function of (seed, epoch, n). Read-only."""
    order = permutation(n, seed, epoch)
    order.setflags(write=False)
    return order


def indices_at(step: int, *, n: int, batch: int, seed: int, count: int = 1) -> np.ndarray:
    """Return the examples of steps step..step+count-1, int32 [count, batch], of a training split of n."""
    steps = steps_per_epoch(n, batch)
    rows = np.empty((count, batch), np.int32)
    for row, at in enumerate(range(step, step + count)):
        epoch, place = divmod(at, steps)
        rows[row] = epoch_order(seed, epoch, n)[place * batch : (place + 1) * batch]
    return rows


def take(split: Split, indices: np.ndarray, cond: bool = False) -> dict[str, Any]:
    """Gather examples.

    Args:
      split: "x" [N, *shape], optional "label" [N, ...] and "length" [N], and "index" [N] of a part of a split.
      indices: int32 [*lead], such as [batch] or [count, batch].
      cond: whether the label goes along as "cond".

    Returns:
      "x" [*lead, *shape] in its stored dtype (a transform makes floats of it, on the device),
      "index" [*lead], of the examples in the whole split, and "cond" and "length" where there are such.

    Raises:
      ValueError: `cond` is asked of a split without labels.
    """
    if cond and "label" not in split:
        raise ValueError("a conditional model needs labels, and this data set has none")
    index = split["index"][indices] if "index" in split else indices
    batch = {"x": split["x"][indices], "index": np.asarray(index, np.int32)}
    if cond:
        batch["cond"] = split["label"][indices]
    if "length" in split:
        batch["length"] = split["length"][indices]
    return batch


def spread(split: Split, count: int) -> Split:
    """`count` examples from all over a split, whose order may be that of classes or of writers; 0 = all.

    They keep the "index" that they have in the split, which goes into the keys of what is drawn for them.
    """
    n = len(split["x"])
    if not 0 < count < n:
        return split
    rows = np.arange(count) * n // count
    return {"index": rows} | {name: subset(values, rows) for name, values in split.items()}


def eval_batches(split: Split, batch: int, cond: bool = False) -> Iterator[dict[str, Any]]:
    """Go through a split once, in order, in batches of one shape.

    The last batch is padded with repeats of the last example under "mask" 0 (float32 [B]): no example is
    dropped and none counted twice. A split that is smaller than a batch is one batch of its size.
    """
    n = len(split["x"])
    batch = min(batch, n)
    for low in range(0, n, max(batch, 1)):
        rows = np.arange(low, low + batch, dtype=np.int32)
        yield take(split, np.minimum(rows, n - 1), cond) | {"mask": (rows < n).astype(np.float32)}
