"""Data that are read when they are asked for: the same batches, the same runs, as from memory."""

import pickle

import jax
import numpy as np
import pytest
from logs import assert_same_run
from PIL import Image

from dgm_jax import api, runs
from dgm_jax.data import pipeline, sources
from dgm_jax.data.dataset import permutation
from dgm_jax.data.rows import Rows
from dgm_jax.data.streaming import Dispatches, Stream

X = np.arange(50 * 6, dtype=np.uint8).reshape(50, 6)


def source(rows, x=X):
    split = {"x": x, "label": np.arange(50) % 3}
    return Dispatches(split, batch=6, count=2, seed=0, cond=True, rows=np.asarray(rows), total=10)


def in_memory(step, rows):
    index = pipeline.indices_at(step, n=50, batch=6, seed=0, count=2)
    return pipeline.take({"x": X, "label": np.arange(50) % 3}, index[:, rows], True)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_what_was_read_ahead_is_not_read_again(monkeypatch):
    begun, begin = [], Stream._from
    monkeypatch.setattr(Stream, "_from", lambda stream, dispatch: begun.append(dispatch) or begin(stream, dispatch))
    stream = Stream(source(range(6)), prefetch=3, workers=0)
    for step in (0, 0, 0, 2, 4, 4):  # the first State, the compiler and the first step ask for the same
        assert_equal(stream(step), in_memory(step, np.arange(6)))
    assert begun == [0]


def test_batches_are_those_of_memory_from_any_step_on():
    stream = Stream(source(range(6)), prefetch=3, workers=0)
    for step in (0, 2, 4, 12, 14, 2, 4, 18):
        assert_equal(stream(step), in_memory(step, np.arange(6)))


@pytest.mark.slow  # starts processes
def test_processes_that_read_give_the_same(tmp_path):
    np.save(tmp_path / "data.npy", X)
    x = sources.load(f"npy:{tmp_path / 'data.npy'}").splits["train"]["x"]
    alone, helped = (Stream(source(range(6), x), prefetch=2, workers=workers) for workers in (0, 2))
    for step in (4, 6, 8):
        assert_equal(helped(step), alone(step))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_processes_of_a_run_read_a_batch_of_one(parts):
    blocks = np.split(np.arange(6), parts)
    found = [Stream(source(block), prefetch=1, workers=0)(4) for block in blocks]
    joined = {name: np.concatenate([part[name] for part in found], axis=1) for name in found[0]}
    assert_equal(joined, in_memory(4, np.arange(6)))


def test_rows_stand_for_an_array():
    read = []

    def reading(index):
        read.extend(index)
        return X[index]

    rows = Rows(reading, np.arange(10, 40), (6,), np.float32)
    half = rows.subset(slice(5, 15)).reshape(10, 2, 3)
    assert not read and half.shape == (10, 2, 3) and len(rows) == 30
    np.testing.assert_array_equal(half[np.array([[0, 9]])], X[[[15, 24]]].reshape(1, 2, 2, 3))
    assert read == [15, 24] and half[:].dtype == np.float32


def test_npy_files_are_mapped(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype(np.uint8)
    for name, part in (("train", images[:30]), ("test", images[30:])):
        np.save(tmp_path / f"{name}.npy", part)
        np.save(tmp_path / f"{name}_labels.npy", np.arange(len(part)) % 5)
    data = sources.load(f"npy:{tmp_path}")
    assert data.info[1:5] == ((4, 4, 1), "levels", 256, 5)
    assert {name: len(split["x"]) for name, split in data.splits.items()} == {"train": 25, "valid": 5, "test": 10}
    valid = pickle.loads(pickle.dumps(data.splits["valid"]["x"]))  # what a process that reads is given
    np.testing.assert_array_equal(valid[:], images[np.sort(permutation(30, 0, 0)[25:]), ..., None])
    (tmp_path / "test_labels.npy").unlink()
    for labels, found in ((np.zeros(7, int), r"\(7,\) int64"), (np.zeros(30), r"\(30,\) float64")):
        np.save(tmp_path / "train_labels.npy", labels)
        with pytest.raises(ValueError, match=f"train.npy has 30 examples, and its labels are {found}"):
            sources.load(f"npy:{tmp_path}")
    (tmp_path / "train.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"train.npy: not a .npy file of plain numbers"):
        sources.load(f"npy:{tmp_path}")


@pytest.mark.parametrize(
    "late, kind",
    [(700, "tokens"), (1, "binary"), (-1, "real"), (np.nan, None)],
    ids=["tokens", "binary", "real", "nan"],
)
def test_the_kind_of_npy_rows_is_that_of_all_of_them(late, kind, tmp_path):
    x = np.zeros((5000, 3), np.float32 if np.isnan(late) else np.int32)
    x[4999, 2] = late
    np.save(tmp_path / "data.npy", x)
    if kind is None:
        with pytest.raises(ValueError, match="not finite"):
            sources.load(f"npy:{tmp_path / 'data.npy'}")
        return
    data = sources.load(f"npy:{tmp_path / 'data.npy'}")
    assert data.info.kind == kind
    assert late in np.concatenate([split["x"][:] for split in data.splits.values()])


def test_images_are_read_when_they_are_asked_for(tmp_path):
    for i in range(20):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f"{i:02}.png")
    eager, lazy = (sources.load(f"images:{tmp_path}", lazy=lazy) for lazy in (False, True))
    assert lazy.info == eager.info and isinstance(lazy.splits["train"]["x"], Rows)
    for name in eager.splits:
        np.testing.assert_array_equal(lazy.splits[name]["x"][:], eager.splits[name]["x"])


@pytest.mark.slow
def test_a_run_that_streams_is_the_run_in_memory(tmp_path, one_device):
    with jax.enable_x64(True):
        for name, stream in (("memory", False), ("stream", True)):
            config = api.load_config("vae_digits:tiny", {"data.stream": stream, "eval.samples": 0})
            api.train(config, tmp_path / name, quiet=True)
    assert_same_run(tmp_path / "stream", tmp_path / "memory")


def test_the_shapes_of_a_feed_are_known_before_it_is_made():
    for stream in (False, True):
        run = runs.prepare(api.load_config("vae_digits:tiny", {"data.stream": stream}))
        mesh = runs.parallel.make_mesh({"data": -1})
        shapes = {name: (x.shape, x.dtype) for name, x in _flat(runs.make_feed(run, mesh)(0))}
        assert {name: (x.shape, x.dtype) for name, x in _flat(runs.feed_shapes(run))} == shapes


def _flat(tree):
    return runs.jax.tree_util.tree_leaves_with_path(tree)
