"""Sources of data: what they give, what they refuse, what they say when nothing is there. No download, no skip."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from dgm_jax.data import files, idx, sources, tfds
from dgm_jax.data.dataset import complete


def rng(seed=0):
    return np.random.default_rng(seed)


def rows(array):
    """Rows as a sorted list, to compare sets."""
    return sorted(row.tobytes() for row in np.ascontiguousarray(array))


@pytest.fixture
def originals(tmp_path, monkeypatch):
    """A tiny MNIST as idx files in <tmp>/mnist, whose checksums are the published ones for the while."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    sums = {}
    for (split, field), name in idx.FILES.items():
        n = 60 if split == "train" else 20
        shape, high = ((n, 28, 28), 256) if field == "x" else ((n,), 10)
        array = rng(len(sums)).integers(high, size=shape, dtype=np.uint8)
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes()))
        sums[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    monkeypatch.setitem(idx.ORIGINALS, "mnist", idx.ORIGINALS["mnist"]._replace(sha256=sums))
    return tmp_path


def test_digits_are_all_there_once():
    data = sources.load("digits")
    assert {name: split["x"].shape for name, split in data.splits.items()} == {
        "train": (1400, 8, 8, 1),
        "valid": (197, 8, 8, 1),
        "test": (200, 8, 8, 1),
    }
    assert (data.info.kind, data.info.levels, data.info.classes, data.info.range) == ("levels", 17, 10, (0.0, 16.0))
    from sklearn.datasets import load_digits

    raw = load_digits()
    expected = np.c_[raw.data, raw.target].astype(np.int32)
    found = np.concatenate([np.c_[s["x"].reshape(len(s["x"]), -1), s["label"]] for s in data.splits.values()])
    assert rows(found.astype(np.int32)) == rows(expected)
    assert (found != expected).any()


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match="unknown data set 'digit'; there are: digits, mnist"):
        sources.load("digit")
    with pytest.raises(ValueError, match="unknown data set 'npz'"):
        sources.load("npz")
    with pytest.raises(TypeError, match="levels"):
        sources.load("digits", levels=3)
    with pytest.raises(ValueError, match="unknown synthetic source 'moons'; there are: gaussian"):
        sources.load("synthetic:moons")


@pytest.mark.parametrize(
    "name", ["mnist", "fashion_mnist", "binarized_mnist", "red_wine", "npz:my.npz", "tfds:mnist", "tfds:no"]
)
def test_missing_data_say_where_and_how(name, tmp_path):
    options = {} if name.startswith(("npz", "bin", "red")) else {"tfds_dir": str(tmp_path / "tfds")}
    with pytest.raises(FileNotFoundError) as error:
        sources.load(name, tmp_path, **options)
    assert str(tmp_path) in str(error.value)
    assert "How to get it:" in str(error.value)
    if name.endswith("mnist"):
        assert "http" in str(error.value)


def test_red_wine_in_folds(tmp_path):
    x, fold = rng().normal(3, 2, size=(100, 11)), np.arange(100) % 10
    np.savez(tmp_path / "red_wine_folds.npz", data=x, fold=fold.astype(np.uint8))
    splits = sources.load("red_wine", tmp_path, fold=9).splits
    assert {name: len(split["x"]) for name, split in splits.items()} == {"train": 80, "valid": 10, "test": 10}
    rest = x[fold != 9]
    np.testing.assert_allclose(splits["test"]["x"], (x[9::10] - rest.mean(0)) / rest.std(0), atol=1e-6)
    np.testing.assert_allclose(splits["valid"]["x"], (x[::10] - rest.mean(0)) / rest.std(0), atol=1e-6)
    with pytest.raises(ValueError, match=r"folds 0\.\.9, not 10"):
        sources.load("red_wine", tmp_path, fold=10)
    np.savez(tmp_path / "red_wine_folds.npz", data=x)
    with pytest.raises(ValueError, match=r"red_wine_folds\.npz: should hold data"):
        sources.load("red_wine", tmp_path)


def test_the_data_directory_is_found(originals, tmp_path, monkeypatch):
    monkeypatch.setenv("DGM_DATA_DIR", str(originals))
    assert len(sources.load("mnist").splits["test"]["x"]) == 20
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        sources.load("mnist", tmp_path / "elsewhere", tfds_dir=str(tmp_path / "none"))
    monkeypatch.delenv("DGM_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError, match=r"home/\.cache/dgm_jax/mnist"):
        sources.load("mnist", tfds_dir=str(tmp_path / "none"))


def test_mnist_keeps_its_order(originals):
    data = sources.load("mnist", originals)
    raw = np.frombuffer(gzip.decompress((originals / "mnist/train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    assert {name: split["x"].shape for name, split in data.splits.items()} == {
        "train": (50, 28, 28, 1),
        "valid": (10, 28, 28, 1),
        "test": (20, 28, 28, 1),
    }
    joined = np.concatenate([data.splits["train"]["x"], data.splits["valid"]["x"]])
    np.testing.assert_array_equal(joined.ravel(), raw)
    assert data.splits["train"]["label"].dtype == np.int32


def test_the_published_checksums_are_those_of_tensorflow_datasets():
    import tensorflow_datasets

    for name, original in idx.ORIGINALS.items():
        published = tensorflow_datasets.builder_cls(name).url_infos
        assert {original.url + file: sum for file, sum in original.sha256.items()} == {
            url: info.checksum for url, info in published.items()
        }


@pytest.mark.parametrize("source", ["mnist", "tfds:mnist"])
def test_a_file_that_is_not_the_published_one_is_refused(source, originals):
    path = originals / "mnist/t10k-labels-idx1-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz: not the published mnist file: sha256"):
        sources.load(source, originals, tfds_dir=str(originals / "tfds"))
    assert not tfds.prepared("mnist", str(originals / "tfds"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"PNG and such", "not an idx file"),
        (struct.pack(">HBB", 0, 8, 3), "do not fit"),
        (struct.pack(">HBB2I", 0, 8, 2, 3, 3) + bytes(8), r"sizes \(3, 3\)"),
    ],
)
def test_malformed_idx_files_are_named(content, message, tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=f"file.gz: .*{message}"):
        idx.parse(path)
    whole = gzip.compress(content + rng().bytes(99))
    for damaged in (whole[:-9], whole[:10] + b"\xff" * 9 + whole[19:], whole[:-5] + b"12345", b"\n" + whole):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"file.gz: damaged gzip file"):
            idx.parse(path)


def test_tensorflow_datasets_without_tensorflow(originals):
    """Prepared from the published files, then read by name: also when those are gone, also as plain mnist."""
    import tensorflow_datasets

    where = str(originals / "tfds")
    raw = sources.load("mnist", originals)
    data = sources.load("tfds:mnist", originals, tfds_dir=where)
    by_name = tensorflow_datasets.data_source("mnist", split="test", data_dir=where, download=False)
    assert sorted(int(record["label"]) for record in by_name) == sorted(raw.splits["test"]["label"])
    assert {name: len(split["x"]) for name, split in data.splits.items()} == {"train": 50, "valid": 10, "test": 20}
    assert data.info._replace(name="") == raw.info._replace(name="")

    def flat(splits):
        return np.concatenate([np.c_[s["label"], s["x"].reshape(len(s["x"]), -1)].astype(np.int32) for s in splits])

    for names in (("test",), ("train", "valid")):
        assert rows(flat([data.splits[n] for n in names])) == rows(flat([raw.splits[n] for n in names]))
    for path in (originals / "mnist").iterdir():
        path.unlink()
    for name in ("tfds:mnist", "mnist"):
        again = sources.load(name, originals, tfds_dir=where)
        np.testing.assert_array_equal(again.splits["train"]["x"], data.splits["train"]["x"])


def test_binarized_mnist_from_either_file(tmp_path):
    bits = {name: rng(i).integers(2, size=(5 + i, 784), dtype=np.uint8) for i, name in enumerate(sources.NAMES)}
    labels = {f"{name}_labels_recovered": np.arange(len(x), dtype=np.uint8) for name, x in bits.items()}
    (tmp_path / "amat" / "binarized_mnist").mkdir(parents=True)
    for name, x in bits.items():
        path = tmp_path / "amat" / "binarized_mnist" / f"binarized_mnist_{name}.amat"
        path.write_text("\n".join(" ".join(map(str, row)) for row in x) + " \n")
    packed = {name: np.packbits(x, axis=1) for name, x in bits.items()}
    np.savez(tmp_path / "binarized_mnist.npz", **packed, **labels, n_features=784)
    from_lines = sources.load("binarized_mnist", tmp_path / "amat")
    from_bits = sources.load("binarized_mnist", tmp_path)
    assert from_lines.info == from_bits.info._replace(classes=0)
    assert (from_lines.info.kind, from_lines.info.shape) == ("binary", (28, 28, 1))
    for name, x in bits.items():
        np.testing.assert_array_equal(from_lines.splits[name]["x"].reshape(-1, 784), x)
        np.testing.assert_array_equal(from_bits.splits[name]["x"], from_lines.splits[name]["x"])
        np.testing.assert_array_equal(from_bits.splits[name]["label"], np.arange(len(x)))


@pytest.mark.parametrize("content", ["", "0 1\n0\n", "0 2\n", "0.5 1\n"])
def test_malformed_amat_files_are_named(content, tmp_path):
    path = tmp_path / "file.amat"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"file.amat: should be lines"):
        files.read_amat(path)


@pytest.mark.parametrize(
    ("x", "options", "expected"),
    [
        (rng().random((20, 3)), {}, ("real", 0, None, np.float32, (3,))),
        (rng().random((20, 3)), {"range": (0, 1)}, ("real", 0, (0, 1), np.float32, (3,))),
        (rng().integers(256, size=(20, 4, 6), dtype=np.uint8), {}, ("levels", 256, (0, 255), np.uint8, (4, 6, 1))),
        (rng().integers(16, size=(20, 5)), {"levels": 16}, ("levels", 16, (0, 15), np.uint8, (5,))),
        (rng().integers(2, size=(20, 6)) > 0, {"shape": (2, 3, 1)}, ("binary", 2, (0, 1), np.uint8, (2, 3, 1))),
        (np.arange(80).reshape(20, 4), {}, ("tokens", 80, None, np.int32, (4,))),
        (-np.arange(80).reshape(20, 4), {}, ("real", 0, None, np.float32, (4,))),
    ],
)
def test_npz_kinds(x, options, expected, tmp_path):
    np.savez(tmp_path / "a.npz", data=x, labels=np.arange(20, dtype=np.uint8) % 3)
    data = sources.load("npz:a.npz", tmp_path, **options)
    info = data.info
    assert (info.kind, info.levels, info.range, data.splits["test"]["x"].dtype, info.shape) == expected
    assert info.classes == 3
    assert {name: len(split["x"]) for name, split in data.splits.items()} == {"train": 16, "valid": 2, "test": 2}
    found = np.concatenate([split["x"] for split in data.splits.values()])
    assert rows(found) == rows(x.reshape(20, *info.shape).astype(found.dtype))


def test_npz_of_joined_sequences(tmp_path):
    """Packed bits with offsets, as in the polyphonic music sets."""
    bits = rng().integers(2, size=(9, 11), dtype=np.uint8)
    split = {"train": np.packbits(bits, axis=1), "train_offsets": [0, 2, 2, 9]}
    test = {"test": np.packbits(bits[:3], axis=1), "test_offsets": [0, 3]}
    np.savez(tmp_path / "a.npz", **split, **test, n_features=11)
    read = files.read_npz(tmp_path / "a.npz")
    assert read["train"]["length"].tolist() == [2, 0, 7]
    assert read["test"]["x"].shape == (1, 7, 11)
    np.testing.assert_array_equal(read["train"]["x"][2], bits[2:])
    np.testing.assert_array_equal(read["train"]["x"][0], np.r_[bits[:2], np.zeros((5, 11))])


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("inside", [True, False])
def test_nothing_is_unpickled(inside, tmp_path):
    path, trace = tmp_path / "a.npz", tmp_path / "trace"
    if inside:
        np.savez(path, train=np.zeros((4, 2)), test=np.zeros((4, 2)), other=np.array([Bomb(str(trace))], object))
    else:
        path.write_bytes(pickle.dumps(Bomb(str(trace))))
    with pytest.raises(ValueError, match=r"a.npz: not a .npz file of plain arrays"):
        sources.load("npz:a.npz", tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(str(trace)))).close()
    assert trace.exists(), "the bomb is a dud, and the test proves nothing"


ONES = np.ones((12, 2), np.float32)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": ONES}, {}, "needs arrays train and test"),
        ({"train": ONES, "valid": ONES}, {}, r"needs splits train and test .*has \['train', 'valid'\]"),
        ({"data": ONES[:5]}, {}, "5 examples are too few"),
        ({"data": np.ones(12)}, {}, r"should be \[examples, ...\]"),
        ({"data": np.array([["a"]] * 12)}, {}, "numbers of one type"),
        ({"data": np.full((12, 2), np.nan)}, {}, "not finite"),
        ({"train": ONES, "test": ONES[:, :1]}, {}, r"test \(12, 1\) float32"),
        ({"data": ONES, "labels": np.zeros(11, int)}, {}, "12 examples, and its labels are"),
        ({"data": ONES, "labels": np.zeros(12)}, {}, "one whole number from 0 each"),
        ({"data": np.zeros((12, 2), np.uint8), "n_features": 17}, {}, "not rows of 17 packed bits"),
        ({"data": ONES, "offsets": [0, 5]}, {}, "offsets should rise from 0 to 12"),
        ({"data": ONES}, {"shape": (3,)}, r"\(2,\) are not \(3,\)"),
        ({"data": ONES}, {"levels": 2}, "whole numbers from 0"),
        ({"data": 300 * ONES.astype(int)}, {"levels": 256}, "beyond"),
        ({"data": 3 * ONES}, {"range": (0, 1)}, "from 3.0 to 3.0, beyond"),
        ({"data": np.full((12, 2), 1e39)}, {}, "not finite, or beyond float32"),
        ({"data": np.full((12, 2), 2**40)}, {}, "whole numbers below 2"),
        ({"data": ONES, "labels": np.full(12, -1)}, {}, r"labels are \(12,\) int64 from -1"),
        ({"train": ONES[:5], "test": ONES}, {}, "5 examples are too few to cut some off for validation"),
    ],
)
def test_malformed_npz_files_are_named(arrays, options, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=f"a.npz: .*{message}"):
        sources.load("npz:a.npz", tmp_path, **options)


@pytest.mark.parametrize("damage", ["cut", "flip", "npy", "text"])
def test_damaged_npz_files_are_named(damage, tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, data=rng().random((100, 5)))
    content = bytearray(path.read_bytes())
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, ONES)
    elif damage == "text":
        path.write_text("1,2,3\n")
    else:
        content[500] ^= 255
        path.write_bytes(content[:1000] if damage == "cut" else content)
    with pytest.raises(ValueError, match=r"a.npz: not a .npz file"):
        sources.load("npz:a.npz", tmp_path)


def write_image(path, seed, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else size[::-1]
    array = rng(seed).integers(256, size=shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(array).save(path)
    return array


def test_image_folders(tmp_path):
    arrays = [write_image(tmp_path / "all" / f"{i % 2}" / f"{i:02}.png", i) for i in range(20)]
    data = sources.load("images:all", tmp_path)
    assert data.info[:4] == ("all", (4, 6, 3), "levels", 256)
    assert data.info.class_names == ("0", "1")
    assert {name: len(split["x"]) for name, split in data.splits.items()} == {"train": 16, "valid": 2, "test": 2}
    for split in data.splits.values():
        for x, label in zip(split["x"], split["label"], strict=True):
            assert any((x == array).all() for array in arrays[label::2])
    small = sources.load(f"images:{tmp_path / 'all'}", size=3, channels=1)
    assert small.info.shape == (3, 3, 1)


def test_image_folders_that_are_splits(tmp_path):
    for name, n in {"train": 6, "test": 2}.items():
        for i in range(n):
            write_image(tmp_path / name / f"{i}.png", i)
    data = sources.load(f"images:{tmp_path}")
    assert data.info.classes == 0
    assert {name: len(split["x"]) for name, split in data.splits.items()} == {"train": 5, "valid": 1, "test": 2}


def test_validation_is_a_part_of_train_whatever_its_order():
    """Rows that lie in the order of their classes: all classes are in both parts, which keep the order."""
    split = {"x": np.arange(240), "label": np.repeat(np.arange(3), 80)}
    found = complete({"train": split, "test": split}, "here")
    assert {name: len(part["x"]) for name, part in found.items()} == {"train": 200, "valid": 40, "test": 240}
    for name in ("train", "valid"):
        assert set(found[name]["label"]) == {0, 1, 2} and (np.diff(found[name]["x"]) > 0).all()
    np.testing.assert_array_equal(np.sort(np.r_[found["train"]["x"], found["valid"]["x"]]), split["x"])
    np.testing.assert_array_equal(complete({"train": split, "test": split}, "here", tail=True)["valid"]["x"][0], 200)


def test_malformed_image_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no .png or .jpg file in it"):
        sources.load(f"images:{tmp_path}")
    for i in range(10):
        write_image(tmp_path / f"{i}.png", i)
    write_image(tmp_path / "odd.png", 0, size=(5, 5))
    with pytest.raises(ValueError, match=r"odd.png: \(5, 5\) pixels, but .*0.png has \(4, 6\): give a size"):
        sources.load(f"images:{tmp_path}")
    write_image(tmp_path / "odd.png", 0, mode="I;16")
    with pytest.raises(ValueError, match=r"odd.png: .*more than 8 bits"):
        sources.load(f"images:{tmp_path}")
    (tmp_path / "odd.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"odd.png: cannot be read as an image"):
        sources.load(f"images:{tmp_path}")
    (tmp_path / "odd.png").unlink()
    write_image(tmp_path / "class" / "0.png", 0)
    with pytest.raises(ValueError, match=r"0.png: not in one of the class folders class"):
        sources.load(f"images:{tmp_path}")


def test_csv_tables(tmp_path):
    table = np.c_[rng().normal(size=(20, 3)).round(3), np.arange(20) % 4]
    body = "\n".join(",".join(f"{value:g}" for value in row) for row in table)
    (tmp_path / "plain.csv").write_text(body)
    (tmp_path / "named.csv.gz").write_bytes(gzip.compress(f"a, b, c, kind\n{body}\n\n".encode()))
    plain = sources.load("csv:plain.csv", tmp_path)
    named = sources.load("csv:named.csv.gz", tmp_path, label="kind", columns=("c", "a"))
    assert plain.info[:3] == ("plain.csv", (4,), "real")
    assert (named.info.shape, named.info.classes) == ((2,), 4)
    for name in sources.NAMES:
        np.testing.assert_array_equal(named.splits[name]["x"], plain.splits[name]["x"][:, [2, 0]])
        np.testing.assert_array_equal(named.splits[name]["label"], plain.splits[name]["x"][:, 3])
    found = np.concatenate([split["x"] for split in plain.splits.values()])
    assert rows(found) == rows(table.astype(np.float32))
    assert sources.load("csv:plain.csv", tmp_path, label=3).info.shape == (3,)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "no rows"),
        (b"a,b\n", {}, "no rows"),
        (b"1,2\n3\n", {}, "line 2: 1 columns, but the first line has 2"),
        (b"a,b\n1,2\n3,x\n", {}, "line 3: 'x' is not a finite number"),
        (b"1,x\n1,2\n", {}, "line 1: 'x' is not a finite number"),
        (b"1,nan\n", {}, "line 1: 'nan' is not a finite number"),
        (b"a,b\n1,2\n", {"label": "c"}, "no column 'c'"),
        (b"1,2\n", {"columns": (2,)}, "no column 2"),
        (b"a,b\n1,2.5\n", {"label": "b"}, "not of whole numbers"),
        (b"1,2\n3,4\n", {}, "2 examples are too few"),
        (b"\xff\xfe1", {}, "not UTF-8"),
    ],
)
def test_malformed_csv_files_are_named(content, options, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.csv[:,] .*{message}"):
        sources.load("csv:a.csv", tmp_path, **options)


@pytest.mark.parametrize("zipped", [False, True])
def test_text_becomes_windows_of_tokens(zipped, tmp_path):
    content = "".join(rng().choice(list("abcé\n😀"), 1000))
    path = tmp_path / ("a.txt.gz" if zipped else "a.txt")
    path.write_bytes(gzip.compress(content.encode()) if zipped else content.encode())
    data = sources.load(f"text:{path.name}", tmp_path, length=16)
    assert data.info.vocabulary == tuple(sorted(set(content)))
    assert (data.info.kind, data.info.levels, data.info.shape) == ("tokens", 6, (16,))
    bounds = {"train": (0, 900), "valid": (900, 950), "test": (950, 1000)}
    for name, (low, high) in bounds.items():
        x = data.splits[name]["x"]
        text = "".join(data.info.vocabulary[token] for token in x.ravel())
        assert text == content[low : low + (high - low) // 16 * 16]
        assert x.dtype == np.int32
    dense = sources.load(f"text:{path.name}", tmp_path, length=16, stride=1)
    assert [len(split["x"]) for split in dense.splits.values()] == [885, 3, 3]


def test_malformed_text_files_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(ValueError, match=r"a.txt: its 9 characters leave 8 for train"):
        sources.load("text:a.txt", tmp_path)
    for options in ({"length": 0}, {"length": 4, "stride": -1}):
        with pytest.raises(ValueError, match="at least one character, and a stride of one"):
            sources.load("text:a.txt", tmp_path, **options)
    (tmp_path / "a.txt").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"a.txt: not UTF-8"):
        sources.load("text:a.txt", tmp_path)
