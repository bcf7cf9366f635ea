"""MNIST and Fashion-MNIST as they were published: four idx files, known by their sha256."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgm_jax.data.dataset import Info, Split, open_bytes

FILES = {  # (split, field) -> file
    ("train", "x"): "train-images-idx3-ubyte.gz",
    ("train", "label"): "train-labels-idx1-ubyte.gz",
    ("test", "x"): "t10k-images-idx3-ubyte.gz",
    ("test", "label"): "t10k-labels-idx1-ubyte.gz",
}


class Original(NamedTuple):
    """Where a data set was published, and what proves a copy of it."""

    url: str
    class_names: tuple[str, ...]
    sha256: Mapping[str, str]


ORIGINALS = {
    "mnist": Original(
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        class_names=tuple("0123456789"),
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Original(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def present(name: str, dir: Path) -> bool:
    """Whether all four files lie in <dir>/<name>."""
    return all((dir / name / file).exists() for file in FILES.values())


def info(name: str) -> Info:
    """Describe the images of `name`: [28, 28, 1], 256 levels."""
    names = ORIGINALS[name].class_names
    return Info(name, (28, 28, 1), "levels", 256, len(names), (0.0, 255.0), class_names=names)


def read(name: str, paths: Mapping[str, Path]) -> dict[str, Split]:
    """Return the train and test splits from files whose checksums are the published ones.

    Args:
      name: key of ORIGINALS.
      paths: file name, as published -> where it is.

    Raises:
      ValueError: a file is not the published one, or not an idx file.
    """
    splits: dict[str, Split] = {"train": {}, "test": {}}
    for (split, field), file in FILES.items():
        found = hashlib.sha256(paths[file].read_bytes()).hexdigest()
        if found != ORIGINALS[name].sha256[file]:
            raise ValueError(
                f"{paths[file]}: not the published {name} file: sha256 {found}, "
                f"should be {ORIGINALS[name].sha256[file]}. Get it from {ORIGINALS[name].url}{file}"
            )
        array = parse(paths[file])
        splits[split][field] = array[..., None] if field == "x" else array.astype(np.int32)
    return splits


def parse(path: Path) -> np.ndarray:
    """Return the array of an idx file of unsigned bytes: a magic number, the sizes, big-endian, the bytes."""
    data = open_bytes(path)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an idx file of unsigned bytes (begins with {data[:4].hex()!r})")
    dims = data[3]
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims]) if len(data) >= 4 + 4 * dims else None
    if shape is None or len(data) != 4 + 4 * dims + int(np.prod(shape)):
        raise ValueError(f"{path}: its header gives the sizes {shape}, which do not fit its {len(data)} bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
