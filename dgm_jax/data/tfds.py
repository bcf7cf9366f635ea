"""tensorflow-datasets without TensorFlow: array_record files, read at random, decoded once to numpy.

The stock builders of MNIST and Fashion-MNIST need TensorFlow to unzip; `prepare` makes the same data set,
under the same name and version, from the published files.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from dgm_jax.data import idx
from dgm_jax.data.dataset import Dataset, Split, complete, describe
from dgm_jax.data.rows import Rows

SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}


def tfds(what: str, dir: Path, tfds_dir: str | None = None, lazy: bool = False) -> Dataset:
    """Return the prepared data set `what` of images, with its labels where it has them.

    Args:
      what: name[/config][:version], as tensorflow-datasets writes it.
      dir: the data directory; published files of mnist or fashion_mnist that lie there are prepared.
      tfds_dir: where prepared data sets are; else $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      lazy: decode an example when it is asked for.

    Raises:
      FileNotFoundError: not prepared; it says how to.
      ValueError: not a data set of equally large images.
    """
    import tensorflow_datasets

    if not prepared(what, tfds_dir):
        if what not in idx.ORIGINALS or not idx.present(what, dir):
            raise FileNotFoundError(_how_to_get(what, dir, tfds_dir))
        prepare(what, dir, tfds_dir)
    sources = tensorflow_datasets.data_source(what, data_dir=tfds_dir, download=False)
    features = dict(next(iter(sources.values())).dataset_info.features.items())
    image = features.get("image")
    if image is None or len(image.shape) != 3 or None in image.shape or image.np_dtype != np.uint8:
        raise ValueError(f'tfds:{what}: needs a feature "image" of one size, uint8; it has {features}')
    label = features.get("label")
    class_names = tuple(label.names) if isinstance(label, tensorflow_datasets.features.ClassLabel) else ()
    splits = {}
    for name, source in sources.items():
        if name in SPLITS:
            index = np.arange(len(source))
            split = {"x": Rows(partial(_decode, what, tfds_dir, name, "image"), index, image.shape, np.uint8)}
            if class_names:
                split["label"] = Rows(partial(_decode, what, tfds_dir, name, "label"), index, (), np.int32)
            splits[SPLITS[name]] = split if lazy else {key: _read_all(rows) for key, rows in split.items()}
    info = describe(f"tfds:{what}", f"tfds:{what}", splits)._replace(classes=len(class_names), class_names=class_names)
    return Dataset(info, complete(splits, info.name))


def prepared(what: str, tfds_dir: str | None = None) -> bool:
    """Whether `what` can be read from `tfds_dir` without TensorFlow."""
    import tensorflow_datasets
    from tensorflow_datasets.core import DatasetNotFoundError

    try:
        builder = tensorflow_datasets.builder(what, data_dir=tfds_dir)
    except DatasetNotFoundError:
        return False
    return builder.is_prepared() and builder.info.file_format.value == "array_record"


def prepare(name: str, dir: Path, tfds_dir: str | None = None) -> None:
    """Prepare "mnist" or "fashion_mnist" as array_record from <dir>/<name>/*.gz, else from a download.

    Raises:
      ValueError: a file's sha256 is not the published one.
    """
    import tensorflow_datasets
    from PIL import Image

    stock: Any = tensorflow_datasets.builder_cls(name)

    class Builder(stock, skip_registration=True):  # type: ignore[call-arg]
        name = stock.name
        VERSION = stock.VERSION

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            if idx.present(stock.name, dir):
                paths = {file: dir / stock.name / file for file in idx.FILES.values()}
            else:
                paths = dl_manager.download({file: self.URL + file for file in idx.FILES.values()})
            splits = idx.read(stock.name, {file: Path(path) for file, path in paths.items()})
            return {name: self._generate_examples(split) for name, split in splits.items()}

        def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict]]:
            for i, (image, label) in enumerate(zip(split["x"], split["label"], strict=True)):
                yield i, {"image": Image.fromarray(image[..., 0]), "label": int(label)}

    Builder(data_dir=tfds_dir, file_format="array_record").download_and_prepare()


@lru_cache
def _open(what: str, tfds_dir: str | None, split: str, feature: str) -> Any:
    import tensorflow_datasets

    skip = {} if feature == "image" else {"image": tensorflow_datasets.decode.SkipDecoding()}
    return tensorflow_datasets.data_source(what, split=split, data_dir=tfds_dir, download=False, decoders=skip)


def _decode(what: str, tfds_dir: str | None, split: str, feature: str, index: np.ndarray) -> np.ndarray:
    records = _open(what, tfds_dir, split, feature).__getitems__(index.tolist())
    return np.stack([record[feature] for record in records])


def _read_all(rows: Rows, chunk: int = 500) -> np.ndarray:
    with ThreadPoolExecutor() as pool:  # PNG decoding lets go of the interpreter's lock
        parts = pool.map(lambda low: rows[low : low + chunk], range(0, len(rows), chunk))
        return np.concatenate(list(parts))


def _how_to_get(what: str, dir: Path, tfds_dir: str | None) -> str:
    place = tfds_dir or "$TFDS_DATA_DIR, else ~/tensorflow_datasets"
    if what in idx.ORIGINALS:
        how = (
            f"put the four files of {idx.ORIGINALS[what].url} into {dir / what}, or let it download them:\n"
            f'  python -c "from pathlib import Path; from dgm_jax.data.tfds import prepare; '
            f"prepare('{what}', Path('{dir}'))\""
        )
    else:
        how = (
            "where TensorFlow is installed,\n"
            f"  python -c \"import tensorflow_datasets as t; t.builder('{what}', file_format='array_record')"
            '.download_and_prepare()"'
        )
    return f"tfds:{what} is not prepared as array_record in {place}.\nHow to get it: {how}"
