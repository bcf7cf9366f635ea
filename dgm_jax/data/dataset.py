"""What every source returns, and how files are found, opened and split."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgm_jax.data.rows import Rows, subset

NAMES = ("train", "valid", "test")
# "x": [N, *shape]; optional "label": int32 [N, ...]; "length": int32 [N]; Rows where they are not in memory
Split = dict[str, Any]


class Info(NamedTuple):
    """What one example is, in the data's own units or after a transform."""

    name: str
    shape: tuple[int, ...]  # of one example; images are (H, W, C)
    kind: str  # "binary", "levels" (grey levels 0..levels-1, perhaps rescaled), "real" or "tokens"
    levels: int = 0  # grey levels or vocabulary; 2 for binary; of real data: the levels it dequantizes, else 0
    classes: int = 0  # 0: no labels
    range: tuple[float, float] | None = None  # where the values lie; None: unbounded, or no numbers
    entropy: float | None = None  # nats per example, in data units, where it is known
    vocabulary: tuple[str, ...] = ()  # the symbol of each token
    class_names: tuple[str, ...] = ()


class Dataset(NamedTuple):
    """Arrays, or Rows that are read when asked for.

    x is uint8 (binary, up to 256 levels), uint16 (more levels), float32 (real) or int32 (tokens).
    """

    info: Info
    splits: dict[str, Split]  # "train", "valid", "test"


def data_dir(dir: str | os.PathLike | None = None) -> Path:
    """Return where data sets are looked for: `dir`, else $DGM_DATA_DIR, else ~/.cache/dgm_jax."""
    return Path(dir or os.environ.get("DGM_DATA_DIR") or Path.home() / ".cache" / "dgm_jax").expanduser()


def missing(what: str, places: Iterable[Path], how: str) -> FileNotFoundError:
    """Return the error that says where `what` was looked for and how to get it."""
    looked = "\n".join(f"  {place.absolute()}" for place in places)
    return FileNotFoundError(
        f"{what} was not found. Looked for\n{looked}\n"
        "(the data directory is data.dir, else the environment variable DGM_DATA_DIR, "
        "else ~/.cache/dgm_jax).\n"
        f"How to get it: {how}"
    )


def find(what: str, places: Sequence[Path], how: str) -> Path:
    """Return the first of `places` that exists, else raise `missing`."""
    for place in places:
        if place.exists():
            return place
    raise missing(what, places, how)


def open_bytes(path: Path) -> bytes:
    """Read a file, unzipped if its name ends in .gz; ValueError names a damaged one."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise ValueError(f"{path}: damaged gzip file ({error})") from error


def permutation(n: int, *key: int) -> np.ndarray:
    """Return a permutation of range(n), int32 [n], that is a pure function of (n, key).

    It sorts the raw stream of Philox, which numpy keeps the same for ever; Generator.permutation it does not.
    """
    return np.argsort(np.random.Philox(key=np.array(key, np.uint64)).random_raw(n), kind="stable").astype(np.int32)


def describe(
    name: str,
    where: Path | str,
    splits: dict[str, Split],
    levels: int | None = None,
    range: tuple[float, float] | None = None,
) -> Info:
    """Find out what "x" holds, and give it that kind's dtype in place.

    Floats are real; integers are binary if only 0 and 1 occur, grey levels (256) if uint8, real if some are
    negative, else tokens. Of Rows it reads all where they lie in one file, once and in order, else the first thousand.

    Args:
      name: what Info.name becomes.
      where: what an error names.
      splits: "x" and perhaps "label".
      levels: number of grey levels, where it is known.
      range: promise that real data lie in [low, high], which some transforms need.

    Raises:
      ValueError: no numbers, not all finite or of one type and shape, or beyond `levels` or `range`.
    """
    arrays = [split["x"] for split in splits.values()]
    stored, shape = arrays[0].dtype, arrays[0].shape[1:]
    if stored.kind not in "buif" or any((x.dtype, x.shape[1:]) != (stored, shape) for x in arrays):
        found = ", ".join(f"{split} {x.shape} {x.dtype}" for split, x in zip(splits, arrays, strict=True))
        raise ValueError(f"{where}: the splits should hold numbers of one type and shape; it has {found}")
    parts = (part for x in arrays for part in (x.looked_at() if isinstance(x, Rows) else [x]))
    ends = np.array([(part.min(), part.max()) for part in parts]).reshape(-1, 2)
    low, high = ends[:, 0].min(), ends[:, 1].max()
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.array((low, high), np.float32)).all()
    if not finite:
        raise ValueError(f"{where}: holds numbers that are not finite, or beyond float32")
    kind: str
    dtype: np.dtype
    if levels is not None and (stored.kind == "f" or low < 0):
        raise ValueError(f"{where}: grey levels should be whole numbers from 0, not {stored} from {low}")
    if stored.kind == "f" or low < 0:
        kind, dtype, count = "real", np.dtype(np.float32), 0
    elif levels is not None or high <= 1 or stored == np.uint8:
        count = levels or (2 if high <= 1 else 256)
        kind, dtype = "binary" if count == 2 else "levels", np.min_scalar_type(count - 1)
        range = (0.0, count - 1.0)
    else:
        kind, dtype, count, range = "tokens", np.dtype(np.int32), int(high) + 1, None
        if count > np.iinfo(dtype).max:
            raise ValueError(f"{where}: tokens are whole numbers below 2^31, not up to {high}")
    range = None if range is None else (float(range[0]), float(range[1]))
    if range is not None and not range[0] <= low <= high <= range[1]:
        raise ValueError(f"{where}: values reach from {low} to {high}, beyond {range}")
    for split in splits.values():
        split["x"] = split["x"].astype(dtype, copy=False)
    labels = [split["label"] for split in splits.values() if isinstance(split.get("label"), np.ndarray)]
    classes = 1 + max(int(label.max()) for label in labels) if labels else 0
    return Info(name, shape, kind, count, classes, range)


def cut(arrays: Split, sizes: Sequence[int]) -> dict[str, Split]:
    """Deal rows into train, valid and test of these sizes by a fixed permutation, the same in every run."""
    order = permutation(len(arrays["x"]), 0, 0)
    bounds = np.cumsum([0, *sizes])
    return {
        name: {key: subset(value, order[low:high]) for key, value in arrays.items()}
        for name, low, high in zip(NAMES, bounds[:-1], bounds[1:], strict=True)
    }


def complete(splits: dict[str, Split], where: Path | str, tail: bool = False) -> dict[str, Split]:
    """Return train, valid and test from what a source has.

    A missing valid is cut from train: 10,000 rows, or a sixth of them if that is less, by a fixed permutation, since
    rows may lie in the order of their classes; both parts keep it. A single split is dealt out 80/10/10 by such a
    permutation. Anything else is a ValueError that begins with `where`.

    Args:
      splits: of the source.
      where: what errors name.
      tail: cut off the end of train instead, as papers do with data whose order is published.
    """
    if len(splits) == 1:
        (arrays,) = splits.values()
        tenth = len(arrays["x"]) // 10
        if not tenth:
            raise ValueError(f"{where}: {len(arrays['x'])} examples are too few to be split 80/10/10")
        return cut(arrays, (len(arrays["x"]) - 2 * tenth, tenth, tenth))
    if not {"train", "test"} <= splits.keys():
        raise ValueError(f"{where}: needs splits train and test (valid may be cut from train), has {sorted(splits)}")
    if "valid" not in splits:
        n = len(splits["train"]["x"])
        kept = n - min(10_000, n // 6)
        if kept == n:
            raise ValueError(f"{where}: {n} examples are too few to cut some off for validation: give a split valid")
        order = permutation(n, 0, 0)
        parts: tuple[slice | np.ndarray, ...] = (np.sort(order[:kept]), np.sort(order[kept:]))
        if tail:
            parts = slice(kept), slice(kept, None)  # views, not copies
        splits = splits | {
            name: {key: subset(value, part) for key, value in splits["train"].items()}
            for name, part in zip(("train", "valid"), parts, strict=True)
        }
    return {name: splits[name] for name in NAMES}
