"""The codes that a trained model gives to its own data: the data of the second of two stages.

`loading.ready` computes them once and stores them in the first stage's work directory; they are read here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dgm_jax.data.dataset import NAMES, Dataset, Info, Split, find
from dgm_jax.data.files import read_arrays

FILE = "codes.npz"  # in the work directory of the first stage


def write(folder: Path, splits: Mapping[str, Split], codes: Mapping[str, int], digest: str) -> None:
    """Store codes, whole or not at all.

    Args:
        folder: the work directory of the model that gives them.
        splits: name -> level -> codes [N, h, w], and perhaps "label" [N].
        codes: level -> how many there are.
        digest: of the model's parameters.
    """
    arrays = {f"{name}_{key}": values for name, split in splits.items() for key, values in split.items()}
    arrays |= {f"codes_{level}": np.asarray(n) for level, n in codes.items()}
    temporary = folder / f"{FILE}.{os.getpid()}.tmp"  # of several runs that start together, each has its own
    with temporary.open("wb") as file:
        np.savez_compressed(file, digest=np.asarray(digest), **arrays)
    temporary.replace(folder / FILE)


def stored_digest(folder: Path) -> str | None:
    """Of which parameters the codes in a work directory are; None where there are none."""
    return str(read_arrays(folder / FILE)["digest"]) if (folder / FILE).exists() else None


def source(what: str, dir: Path, level: str = "top", top: str = "", digest: str = "") -> Dataset:
    """One level's map of codes, [h, w, 1]; with the bottom one goes the top one, [h', w'], as its label.

    The splits are those of the first stage's data, in their order, and the top map has their labels.

    Args:
        what: the work directory of the first stage.
        dir: not used.
        level: "top", which is the only one of a single level, or "bottom".
        top: for the bottom, the work directory of the prior over the top, which sampling begins with.
        digest: of the first stage's parameters, where codes of no others will do.

    Raises:
        FileNotFoundError: there are no codes.
        ValueError: no such level, or codes of other parameters.
    """
    how = f"train the first stage in {what}, then run this config"
    path = find(f"codes:{what}", [Path(what).expanduser() / FILE], how)
    arrays = read_arrays(path)
    levels = [name.removeprefix("codes_") for name in arrays if name.startswith("codes_")]
    if level not in levels:
        raise ValueError(f"{path}: no level {level!r}; there is {' and '.join(levels)}")
    if digest and digest != str(arrays["digest"]):
        raise ValueError(
            f"{path}: codes of a model with the digest {arrays['digest']}, not {digest}: it was trained anew"
        )
    codes = int(arrays[f"codes_{level}"])
    dtype, splits = np.min_scalar_type(codes - 1), {}
    for name in NAMES:
        splits[name] = {"x": arrays[f"{name}_{level}"].astype(dtype)[..., None]}
        label = arrays[f"{name}_top"] if level == "bottom" else arrays.get(f"{name}_label")
        if label is not None:
            splits[name]["label"] = label.astype(np.int32)
    classes = 1 + max(int(split["label"].max()) for split in splits.values()) if "label" in splits["train"] else 0
    info = Info(f"codes:{what}", splits["train"]["x"].shape[1:], "levels", codes, 0, (0.0, codes - 1.0))
    return Dataset(info if level == "bottom" else info._replace(classes=classes), splits)
