"""Where data come from: `load("name")`, or `load("kind:what")`.

To add a source: a function (what, dir, **options) -> Dataset and its row in SOURCES. `what` is the text after the colon
(the name itself where there is none), `dir` the data directory; the options, with their defaults, are the config's
data.options. Splits of real data depend on no seed, so that numbers stay comparable.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dgm_jax.data import codes, files, idx, synthetic
from dgm_jax.data.dataset import NAMES, Dataset, Info, complete, cut, data_dir, find, missing
from dgm_jax.data.tfds import prepared, tfds

__all__ = ["DECLARED", "SOURCES", "Dataset", "Info", "defaults", "load"]


def load(name: str, dir: str | os.PathLike | None = None, lazy: bool = False, **options: object) -> Dataset:
    """Load a data set into memory, or know where its examples are.

    Args:
      name: a key of SOURCES; where the key ends in a colon, followed by a path or name.
      dir: the data directory; else $DGM_DATA_DIR, else ~/.cache/dgm_jax.
      lazy: examples are read when they are asked for, where the source can do that; "npy:" always does.
      options: of the source.

    Raises:
      ValueError: an unknown name, or a malformed file; it names the file.
      FileNotFoundError: it says where the data were looked for and how to get them.
      TypeError: an option that the source does not take.
    """
    kind, colon, what = name.partition(":")
    if kind + colon not in SOURCES:
        raise ValueError(f"unknown data set {name!r}; there are: {', '.join(SOURCES)}")
    if lazy and kind + colon in LAZY:
        options["lazy"] = True
    return SOURCES[kind + colon](what or kind, data_dir(dir), **options)


def defaults(name: str) -> dict[str, object]:
    """The options of a data set with their defaults; none where there is no such name, which `load` says."""
    kind, colon, what = name.partition(":")
    takers = [SOURCES.get(kind + colon), synthetic.SYNTHETIC.get(what) if kind == "synthetic" else None]
    given = {one.name: one.default for f in takers if f for one in inspect.signature(f).parameters.values()}
    return {key: value for key, value in given.items() if value is not inspect.Parameter.empty and key != "lazy"}


def digits(what: str, dir: Path) -> Dataset:
    """Handwritten digits that come with scikit-learn: 8x8, 17 levels, 10 classes, 1400/197/200."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    arrays = {"x": raw.images.astype(np.uint8)[..., None], "label": raw.target.astype(np.int32)}
    info = Info(what, (8, 8, 1), "levels", 17, 10, (0.0, 16.0), class_names=tuple("0123456789"))
    return Dataset(info, cut(arrays, (1400, 197, 200)))


def mnist(what: str, dir: Path, tfds_dir: str | None = None) -> Dataset:
    """MNIST or Fashion-MNIST, 28x28, 256 levels: 50,000/10,000/10,000, valid being the end of the 60,000.

    From the published files in <dir>/<name>, in their order; else from tensorflow-datasets, if prepared.
    """
    if idx.present(what, dir):
        paths = {file: dir / what / file for file in idx.FILES.values()}
        return Dataset(idx.info(what), complete(idx.read(what, paths), what, tail=True))
    if prepared(what, tfds_dir):
        return tfds(what, dir, tfds_dir)
    places = [dir / what / file for file in idx.FILES.values()]
    how = f"download these four files from {idx.ORIGINALS[what].url}, or prepare tfds:{what}"
    raise missing(what, places, how)


def binarized_mnist(what: str, dir: Path) -> Dataset:
    """The fixed binarization of MNIST by Salakhutdinov & Murray (2008): 28x28 bits, 50,000/10,000/10,000.

    From binarized_mnist_{train,valid,test}.amat (lines of 784 numbers 0 or 1), as published, or from
    binarized_mnist.npz (bit-packed, with labels that were recovered by matching). Not what "resample" or
    "fixed" make of MNIST.
    """
    amat = [f"binarized_mnist_{name}.amat" for name in NAMES]
    places = [dir / amat[0], dir / what / amat[0], dir / f"{what}.npz", dir / what / f"{what}.npz"]
    url = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
    path = find(what, places, f"download {', '.join(amat)} from {url} into {dir}")
    if path.suffix == ".npz":
        splits = files.read_npz(path)
    else:
        splits = {name: {"x": files.read_amat(path.parent / file)} for name, file in zip(NAMES, amat, strict=True)}
    for name, split in splits.items():
        if split["x"].shape[1:] != (784,):
            raise ValueError(f"{path}: {name} has rows of {split['x'].shape[1:]}, not of 784 bits")
        split["x"] = split["x"].reshape(-1, 28, 28, 1)
    classes = 10 if "label" in splits["train"] else 0
    return Dataset(DECLARED[what]._replace(classes=classes), complete(splits, path))


def red_wine(what: str, dir: Path, fold: int = 0) -> Dataset:
    """UCI red wine, 11 measurements of 1,599 wines, in the ten folds of Uria et al. 2013 (arXiv 1306.0186).

    Test is fold `fold`, valid the next one, train the other eight. Values are standardized by all but the test's, the
    units in which likelihoods were published.

    Args:
      what: the name.
      dir: has red_wine_folds.npz, with data [1599, 11] and fold [1599].
      fold: 0..9.
    """
    places = [dir / f"{what}_folds.npz", dir / what / f"{what}_folds.npz"]
    how = "of deepnade/red_wine.hdf5 in github.com/MarcCote/NADE make it: data [1599, 11], and fold [1599], 0..9"
    path = find(what, places, how)
    arrays = files.read_arrays(path)
    if set(arrays) != {"data", "fold"} or arrays["data"].shape != (*arrays["fold"].shape, 11):
        raise ValueError(f"{path}: should hold data [n, 11] and fold [n], not {sorted(arrays)}")
    if fold not in range(10):
        raise ValueError(f"red wine has the folds 0..9, not {fold}")
    x, folds = arrays["data"].astype(np.float64), arrays["fold"]
    rest = x[folds != fold]
    x = ((x - rest.mean(0)) / rest.std(0)).astype(np.float32)
    chosen = {"test": folds == fold, "valid": folds == (fold + 1) % 10}
    chosen["train"] = ~(chosen["test"] | chosen["valid"])
    return Dataset(DECLARED[what], {name: {"x": x[chosen[name]]} for name in NAMES})


SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": mnist,
    "binarized_mnist": binarized_mnist,
    "red_wine": red_wine,
    "tfds:": tfds,
    "npz:": files.npz,
    "npy:": files.npy,
    "images:": files.images,
    "csv:": files.csv,
    "text:": files.text,
    "synthetic:": synthetic.source,
    "codes:": codes.source,
}
LAZY = ("tfds:", "images:")
DECLARED = {  # what is known of data that are files, where these are not
    "mnist": idx.info("mnist"),
    "fashion_mnist": idx.info("fashion_mnist"),
    "binarized_mnist": Info("binarized_mnist", (28, 28, 1), "binary", 2, 10, (0.0, 1.0)),
    "red_wine": Info("red_wine", (11,), "real"),
}
