"""The user's own files. A malformed one is a ValueError that names the file and what is wrong with it."""

from __future__ import annotations

import csv as csv_lines
import functools
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dgm_jax.data.dataset import NAMES, Dataset, Info, Split, complete, describe, find, open_bytes
from dgm_jax.data.rows import Rows, mapped

IMAGES = (".png", ".jpg", ".jpeg")


def npz(
    what: str,
    dir: Path,
    shape: Sequence[int] | None = None,
    levels: int | None = None,
    range: tuple[float, float] | None = None,
) -> Dataset:
    """Arrays train, test and perhaps valid, or a single one, data; see `read_npz` for what goes with them.

    `describe` tells of which kind they are. Pictures [N, H, W] of whole numbers get a channel axis.

    Args:
      what: path, from here or from the data directory.
      dir: the data directory.
      shape: of one example, if not as stored.
      levels: number of grey levels, where it is not 256.
      range: promise that real data lie in [low, high], for transforms that need it.
    """
    path = _path(what, dir, "npz")
    splits = read_npz(path)
    for split in splits.values():
        if shape is not None:
            try:
                split["x"] = split["x"].reshape(len(split["x"]), *shape)
            except ValueError as error:
                raise ValueError(f"{path}: examples of shape {split['x'].shape[1:]} are not {tuple(shape)}") from error
        elif split["x"].ndim == 3 and split["x"].dtype.kind in "bu" and "length" not in split:
            split["x"] = split["x"][..., None]
    info = describe(what, path, splits, levels, range)
    return Dataset(info, complete(splits, path))


def read_npz(path: Path) -> dict[str, Split]:
    """Read the splits of a .npz file.

    "x" is the array <split> (or data). With n_features in the file its rows are bits, packed by eight. With
    <split>_offsets it is sequences joined along axis 0, which are padded with zeros to the longest; "length"
    has their lengths. "label" is <split>_labels (or labels), or <split>_labels_recovered.
    """
    arrays = read_arrays(path)
    names = [name for name in NAMES if name in arrays] or [name for name in ("data",) if name in arrays]
    if not names:
        raise ValueError(f"{path}: needs arrays train and test (and perhaps valid), or data; has {sorted(arrays)}")
    splits: dict[str, Split] = {}
    for name in names:
        prefix = "" if name == "data" else f"{name}_"
        split = splits[name] = {"x": arrays[name]}
        if split["x"].ndim < 2 or not len(split["x"]):
            raise ValueError(f"{path}: {name} has the shape {split['x'].shape}; it should be [examples, ...]")
        if "n_features" in arrays:
            split["x"] = _unpack(path, name, split["x"], int(arrays["n_features"]))
        if f"{prefix}offsets" in arrays:
            split["offsets"] = arrays[f"{prefix}offsets"]
        for key in (f"{prefix}labels", f"{prefix}labels_recovered"):
            if key in arrays:
                split["label"] = arrays[key]
    if "offsets" in splits[names[0]]:
        longest = max(int(np.diff(split["offsets"]).max()) for split in splits.values())
        for split in splits.values():
            split["x"], split["length"] = _pad(path, split["x"], split.pop("offsets"), longest)
    for name, split in splits.items():
        if "label" in split:
            split["label"] = _labels(f"{path}: {name}", split["label"], len(split["x"]))
    return splits


def _labels(where: str, labels: np.ndarray, n: int) -> np.ndarray:
    """int32 [n, ...]; ValueError for anything but a whole number from 0, or an array of them, for each example."""
    if labels.dtype.kind not in "iu" or labels.shape[:1] != (n,) or labels.min(initial=0) < 0:
        raise ValueError(
            f"{where} has {n} examples, and its labels are {labels.shape} {labels.dtype} from {labels.min(initial=0)}; "
            "they should be one whole number from 0 each"
        )
    return labels.astype(np.int32)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file; nothing in it is ever unpickled."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        ValueError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:
        raise ValueError(f"{path}: not a .npz file of plain arrays ({error})") from error


def read_amat(path: Path) -> np.ndarray:
    """Read lines of numbers 0 or 1, parted by blanks: uint8 [lines, numbers]."""
    data = open_bytes(path)
    rows = data.splitlines()
    values = np.frombuffer(data.translate(None, b" \t\r\n"), np.uint8) - ord("0")
    if not rows or values.size % len(rows) or values.size == 0 or values.max() > 1:
        raise ValueError(f"{path}: should be lines of equally many numbers, each 0 or 1")
    return values.reshape(len(rows), -1)


def npy(what: str, dir: Path, levels: int | None = None, range: tuple[float, float] | None = None) -> Dataset:
    """Rows of .npy files, mapped and never loaded whole: train.npy, test.npy and perhaps valid.npy, or a single file.

    <split>_labels.npy has a whole number a row. Pictures [N, H, W] of whole numbers get a channel axis.

    Args:
      what: path of the folder or the file, from here or from the data directory.
      dir: the data directory.
      levels: number of grey levels, where it is not 256.
      range: promise that real data lie in [low, high], for transforms that need it.
    """
    path = _path(what, dir, "npy")
    paths = {name: path / f"{name}.npy" for name in NAMES} if path.is_dir() else {"data": path}
    splits: dict[str, Split] = {name: {"x": mapped(file)} for name, file in paths.items() if file.exists()}
    if not splits:
        raise ValueError(f"{path}: needs train.npy and test.npy (and perhaps valid.npy)")
    for name, split in splits.items():
        if len(split["x"].shape) == 3 and split["x"].dtype.kind in "bu":
            split["x"] = split["x"].reshape(*split["x"].shape, 1)
        if path.is_dir() and (labels := path / f"{name}_labels.npy").exists():
            split["label"] = _labels(f"{paths[name]}", mapped(labels)[:], len(split["x"]))
    return Dataset(describe(what, path, splits, levels, range), complete(splits, path))


def images(what: str, dir: Path, size: int | None = None, channels: int = 3, lazy: bool = False) -> Dataset:
    """A folder of .png and .jpg files; subfolders train, test (and valid) are splits, others classes.

    Args:
      what: path, from here or from the data directory.
      dir: the data directory.
      size: scale to size x size pixels; else all must have one size.
      channels: 3 for colour, 1 for grey.
      lazy: read a file when it is asked for.
    """
    root = _path(what, dir, "images")
    if channels not in (1, 3):
        raise ValueError(f"images have channels=1 (grey) or 3 (colour), not {channels}")
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    parts = {name: root / name for name in NAMES if name in folders} if "train" in folders else {"data": root}
    first = next(iter(parts.values()))
    class_names = tuple(sorted(path.name for path in first.iterdir() if path.is_dir()))
    splits: dict[str, Split] = {}
    for name, folder in parts.items():
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
        if not paths:
            raise ValueError(f"{folder}: no .png or .jpg file in it")
        read = functools.partial(_read_images, paths, size, channels)
        shape = read(np.zeros(1, int)).shape[1:]
        splits[name] = {"x": Rows(read, np.arange(len(paths)), shape, np.uint8)}
        if not lazy:
            splits[name]["x"] = splits[name]["x"][:]
        if class_names:
            labels = [path.relative_to(folder).parts[0] for path in paths]
            for path, label in zip(paths, labels, strict=True):
                if label not in class_names:
                    raise ValueError(f"{path}: not in one of the class folders {', '.join(class_names)}")
            splits[name]["label"] = np.array([class_names.index(label) for label in labels], np.int32)
    info = describe(what, root, splits, levels=256)._replace(class_names=class_names)
    return Dataset(info, complete(splits, root))


def csv(
    what: str,
    dir: Path,
    columns: Sequence[str | int] | None = None,
    label: str | int | None = None,
    delimiter: str = ",",
) -> Dataset:
    """A table of finite numbers, a row an example, perhaps with a header and gzipped: real vectors.

    Args:
      what: path, from here or from the data directory.
      dir: the data directory.
      columns: names or positions of the columns to take; else all but the label's.
      label: name or position of a column of whole numbers 0, 1, ...
      delimiter: what parts the columns.
    """
    path = _path(what, dir, "csv")
    try:
        lines = list(csv_lines.reader(_text(path).splitlines(), delimiter=delimiter))
    except csv_lines.Error as error:
        raise ValueError(f"{path}: not a table ({error})") from error
    rows = [(number, row) for number, row in enumerate(lines, 1) if row]
    width = len(rows[0][1]) if rows else 0
    names: list[str] = []
    if rows and not any(map(_is_number, rows[0][1])):
        names = [name.strip() for name in rows.pop(0)[1]]
    if not rows:
        raise ValueError(f"{path}: no rows of numbers in it")
    for number, row in rows:
        if len(row) != width:
            raise ValueError(f"{path}, line {number}: {len(row)} columns, but the first line has {width}")
        for value in row:
            if not _is_number(value):
                raise ValueError(f"{path}, line {number}: {value!r} is not a finite number")
    table = np.array([row for _, row in rows], np.float64).reshape(len(rows), width)

    def position(column: str | int) -> int:
        if column in names:
            return names.index(str(column))
        if isinstance(column, int) and 0 <= column < width:
            return column
        raise ValueError(f"{path}: no column {column!r}; there are {width}: {names or 'without names'}")

    at = None if label is None else position(label)
    if columns is None:
        taken = [column for column in range(width) if column != at]
    else:
        taken = [position(column) for column in columns]
    split: Split = {"x": table[:, taken].astype(np.float32)}
    if at is not None:
        split["label"] = table[:, at].astype(np.int32)
        if (split["label"] != table[:, at]).any() or (split["label"] < 0).any():
            raise ValueError(f"{path}: column {label!r} is not of whole numbers 0, 1, ...")
    splits = {"data": split}
    return Dataset(describe(what, path, splits), complete(splits, path))


def text(what: str, dir: Path, length: int = 128, stride: int | None = None) -> Dataset:
    """Characters of a UTF-8 file, perhaps gzipped, as tokens in windows; its first 90% train, then 5% and 5%.

    Args:
      what: path, from here or from the data directory.
      dir: the data directory.
      length: characters in a window.
      stride: from the start of a training window to that of the next; else `length`, so that none overlap,
        as in the other splits. A rest shorter than a window is left out.
    """
    if length < 1 or (stride is not None and stride < 1):
        raise ValueError(f"text:{what}: windows have at least one character, and a stride of one: {length=}, {stride=}")
    path = _path(what, dir, "text")
    characters = np.frombuffer(_text(path).encode("utf-32-le"), np.uint32)
    vocabulary, tokens = np.unique(characters, return_inverse=True)
    tokens = tokens.astype(np.int32)
    n = len(tokens)
    splits: dict[str, Split] = {}
    for name, low, high in zip(
        NAMES, (0, 90 * n // 100, 95 * n // 100), (90 * n // 100, 95 * n // 100, n), strict=True
    ):
        if high - low < length:
            raise ValueError(
                f"{path}: its {n} characters leave {high - low} for {name}, less than a window of {length}"
            )
        windows = np.lib.stride_tricks.sliding_window_view(tokens[low:high], length)
        splits[name] = {"x": windows[:: (stride or length) if name == "train" else length]}
    info = Info(what, (length,), "tokens", len(vocabulary), vocabulary=tuple(map(chr, vocabulary)))
    return Dataset(info, splits)


def _path(what: str, dir: Path, kind: str) -> Path:
    path = Path(what).expanduser()
    return find(f"{kind}:{what}", list(dict.fromkeys((path, dir / path))), "give the path of your own file or folder")


def _text(path: Path) -> str:
    try:
        return open_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error


def _is_number(value: str) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False


def _unpack(path: Path, name: str, packed: np.ndarray, n_features: int) -> np.ndarray:
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-n_features // 8):
        raise ValueError(f"{path}: {name} is {packed.shape} {packed.dtype}, not rows of {n_features} packed bits")
    return np.unpackbits(packed, axis=1, count=n_features)


def _pad(path: Path, joined: np.ndarray, offsets: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets).astype(np.int32)
    if offsets[0] != 0 or offsets[-1] != len(joined) or (lengths < 0).any():
        raise ValueError(f"{path}: offsets should rise from 0 to {len(joined)}, the number of rows")
    padded = np.zeros((len(lengths), longest, *joined.shape[1:]), joined.dtype)
    padded[np.arange(longest) < lengths[:, None]] = joined
    return padded, lengths


def _read_images(paths: Sequence[Path], size: int | None, channels: int, index: np.ndarray) -> np.ndarray:
    first = _read_image(paths[0], size, channels)
    arrays = np.empty((len(index), *first.shape), np.uint8)
    for i, place in enumerate(index):
        array = _read_image(paths[place], size, channels)
        if array.shape != first.shape:
            raise ValueError(
                f"{paths[place]}: {array.shape[:2]} pixels, but {paths[0]} has {first.shape[:2]}: give a size"
            )
        arrays[i] = array
    return arrays


def _read_image(path: Path, size: int | None, channels: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"mode {file.mode}: more than 8 bits a channel")
            image = file.convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
    if size is not None:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels)
