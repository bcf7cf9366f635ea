"""Batches as a function of the step, transforms with their log-determinant, synthetic sources that are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from dgm_jax.data import pipeline, sources, synthetic, transforms
from dgm_jax.data.dataset import Info

GREY = Info("grey", (3, 2, 1), "levels", 17, range=(0.0, 16.0))
BYTES = Info("bytes", (4,), "levels", 256, range=(0.0, 255.0))
REAL = Info("real", (4,), "real")
UNIT = Info("unit", (4,), "real", range=(0.0, 1.0))
BINARY = Info("binary", (4,), "binary", 2, range=(0.0, 1.0))


def grey_examples(n, seed=0, info=GREY):
    return np.random.default_rng(seed).integers(info.levels, size=(n, *info.shape), dtype=np.uint8)


def test_any_steps_batch_from_the_step_alone():
    kwargs = {"n": 23, "batch": 5, "seed": 3}
    run = pipeline.indices_at(0, count=40, **kwargs)
    for step in (39, 0, 17, 4):
        pipeline.epoch_order.cache_clear()
        np.testing.assert_array_equal(pipeline.indices_at(step, **kwargs), run[step : step + 1])
    np.testing.assert_array_equal(pipeline.indices_at(11, count=9, **kwargs), run[11:20])
    assert run.dtype == np.int32


def test_order_never_moves():
    """A run that is resumed under another numpy must go on in the same order."""
    assert pipeline.epoch_order(7, 2, 8).tolist() == [6, 7, 4, 0, 1, 5, 3, 2]
    assert not pipeline.epoch_order(7, 2, 8).flags.writeable


def test_epochs_take_whole_batches_without_repeats():
    n, batch = 23, 5
    steps = pipeline.steps_per_epoch(n, batch)
    epochs = pipeline.indices_at(0, n=n, batch=batch, seed=0, count=30 * steps).reshape(30, -1)
    assert epochs.shape[1] == 20
    for epoch in epochs:
        assert len(set(epoch)) == 20
        assert set(epoch) <= set(range(n))
    assert len({tuple(epoch) for epoch in epochs}) == 30
    # each is left out of an epoch with probability 3/23
    counts = np.bincount(epochs.ravel(), minlength=n)
    assert abs(counts - 30 * 20 / 23).max() < 5 * np.sqrt(30 * 20 / 23 * 3 / 23)
    assert (pipeline.epoch_order(0, 0, n) != pipeline.epoch_order(1, 0, n)).any()


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch of 24 cannot be taken from 23 examples"):
        pipeline.indices_at(0, n=23, batch=24, seed=0)


def test_take_gathers_what_belongs_together():
    split = {"x": np.arange(20).reshape(10, 2), "label": np.arange(10) % 3, "length": np.arange(10) + 5}
    index = np.array([[3, 9], [0, 3]], np.int32)
    batch = pipeline.take(split, index, cond=True)
    np.testing.assert_array_equal(batch["x"], split["x"][index])
    np.testing.assert_array_equal(batch["cond"], index % 3)
    np.testing.assert_array_equal(batch["length"], index + 5)
    np.testing.assert_array_equal(batch["index"], index)
    assert "cond" not in pipeline.take(split, index)
    with pytest.raises(ValueError, match="this data set has none"):
        pipeline.take({"x": split["x"]}, index, cond=True)


@pytest.mark.parametrize(("n", "batch"), [(1, 4), (3, 4), (4, 4), (5, 4), (8, 4), (7, 1), (9, 2)])
def test_evaluation_takes_every_example_once(n, batch):
    seen = []
    for part in pipeline.eval_batches({"x": np.arange(n)}, batch):
        assert part["x"].shape == part["mask"].shape == (min(batch, n),)
        seen += part["x"][part["mask"] == 1].tolist()
        assert set(part["mask"]) <= {0.0, 1.0}
    assert seen == list(range(n))


def test_a_part_of_a_split_is_from_all_over_it():
    split = {"x": np.arange(20.0), "label": np.arange(20) // 5}
    part = pipeline.spread(split, 8)
    assert set(part["label"]) == {0, 1, 2, 3} and len(part["x"]) == 8
    few = pipeline.spread(part, 3)  # a part of a part
    (batch,) = pipeline.eval_batches(few, 4)
    np.testing.assert_array_equal(batch["index"], batch["x"])  # what it is in the whole
    assert len(batch["x"]) == 3 and all(pipeline.spread(split, n) is split for n in (0, 20, 30))


CHAINS = [
    ((), REAL),
    (("standardize",), REAL),
    (("symmetric",), UNIT),
    (("logit(0.1)",), UNIT),
    (("dequantize",), GREY),
    (("dequantize", "symmetric"), GREY),
    (("dequantize", "logit(0.05)"), GREY),
    (("dequantize", "logit"), BYTES),
]


def continuous_example(info):
    rng = np.random.default_rng(1)
    return rng.uniform(0.05, 0.95, info.shape) if info.levels == 0 else grey_examples(1, 1, info)[0] + 0.0


@pytest.mark.parametrize(("specs", "info"), CHAINS, ids=str)
def test_log_det_is_that_of_the_jacobian(specs, info):
    train = np.random.default_rng(0).normal(3.0, 2.0, (50, *info.shape))
    with jax.enable_x64(True):
        transform = transforms.make(specs, info, train)
        x, key = jnp.asarray(continuous_example(info), jnp.float64), jax.random.key(0)

        def applied(x, transform=transform):
            batch, log_det = transforms.apply(transform, key, {"x": x[None], "index": jnp.array([3])})
            return batch, log_det[0]

        jacobian = np.asarray(jax.jacfwd(lambda x: applied(x)[0]["x"])(x)).reshape(x.size, x.size)
        assert applied(x)[1] == pytest.approx(np.linalg.slogdet(jacobian)[1], abs=1e-10)
        assert applied(x)[0]["x"].dtype == jnp.float64
        # where dimensions are missing, that of the others
        batch, log_det = applied(x, transform._replace(missing=0.5))
        seen = np.flatnonzero(batch["observed"])
        assert 0 < len(seen) < x.size
        assert log_det == pytest.approx(np.linalg.slogdet(jacobian[np.ix_(seen, seen)])[1], abs=1e-10)


@pytest.mark.parametrize(
    ("specs", "info"),
    [
        *CHAINS,
        (("unit",), BYTES),
        (("unit", "symmetric"), GREY),
        (("dequantize_logistic(0.5)", "logit"), GREY),
        ((), BINARY),
    ],
    ids=str,
)
def test_inverse_leads_back(specs, info):
    train = np.random.default_rng(0).normal(3.0, 2.0, (50, *info.shape))
    transform = transforms.make(specs, info, train)
    x = np.random.default_rng(2).random((20, *info.shape)) if info.levels == 0 else grey_examples(20, 2, info)
    batch = {"x": jnp.asarray(x), "index": jnp.arange(20)}
    y, log_det = transforms.apply(transform, jax.random.key(0), batch)
    assert y["x"].dtype == jnp.float32
    assert log_det.shape == (20,)
    back = jax.vmap(transform.inverse)(y["x"])
    np.testing.assert_allclose(back, x, atol=0 if info.levels else 1e-5)


@pytest.mark.parametrize("name", ["threshold", "resample", "fixed"])
def test_binarization_shows_as_black_and_white(name):
    transform = transforms.make([name], GREY)
    x = jnp.asarray([0, 16], jnp.uint8)[:, None, None, None] * jnp.ones((1, *GREY.shape), jnp.uint8)
    batch, log_det = transforms.apply(transform, jax.random.key(0), {"x": x, "index": jnp.arange(2)})
    np.testing.assert_array_equal(batch["x"], x / 16)  # black and white are certain
    np.testing.assert_array_equal(jax.vmap(transform.inverse)(batch["x"]), x)
    np.testing.assert_array_equal(log_det, 0)
    assert transform.info._replace(name="") == Info("", GREY.shape, "binary", 2, range=(0.0, 1.0))
    assert (transform.random, transform.fixed) == (name != "threshold", name == "fixed")


def test_threshold_is_at_half_of_the_levels():
    transform = transforms.make(["threshold"], BYTES)
    y, _ = transform.forward(None, jnp.asarray([0, 127, 128, 255], jnp.uint8))
    assert y.tolist() == [0, 0, 1, 1]


def test_resampling_has_the_right_frequencies():
    x = np.tile(np.arange(17, dtype=np.uint8), (4000, 1))
    transform = transforms.make(["resample"], GREY._replace(shape=(17,)))
    y, _ = transforms.apply(transform, jax.random.key(1), {"x": jnp.asarray(x), "index": jnp.arange(4000)})
    p = np.arange(17) / 16
    assert (abs(y["x"].mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / 4000)).all()
    assert set(np.unique(y["x"])) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["fixed", "resample", "dequantize"])
def test_a_draw_depends_on_the_example_and_not_on_its_batch(name):
    transform = transforms.make([name], GREY)
    split = {"x": grey_examples(11)}
    split["x"][7] = split["x"][3]

    def pass_over(key, batch):
        parts = [transforms.apply(transform, key, part) for part in pipeline.eval_batches(split, batch)]
        return np.concatenate([part["x"] for part, _ in parts])[:11]

    first = pass_over(jax.random.key(0), 4)
    np.testing.assert_array_equal(first, pass_over(jax.random.key(0), 11))
    order = np.array([5, 2, 10])
    shuffled = transforms.apply(transform, jax.random.key(0), pipeline.take(split, order))[0]
    np.testing.assert_array_equal(shuffled["x"], first[order])
    assert (first[3] != first[7]).any(), "equal examples share a draw"
    other = pass_over(jax.random.key(1), 4)
    assert (first == other).all() == (name == "fixed")


def test_a_random_transform_asks_for_a_key():
    with pytest.raises(ValueError, match="needs a key"):
        transforms.apply(
            transforms.make(["dequantize"], BYTES), None, {"x": jnp.zeros((1, 4)), "index": jnp.zeros(1, int)}
        )


def test_dequantization_never_reaches_the_next_level():
    transform = transforms.make(["dequantize"], BYTES)
    y, _ = transform.forward(jax.random.key(0), jnp.full(2_000_000, 255, jnp.uint8))
    assert y.max() < 1
    assert (jnp.floor(y * 256) == 255).all()


@pytest.mark.parametrize("info", [GREY, BYTES], ids=lambda info: info.name)
@pytest.mark.parametrize("alpha", [None, 0.01, 0.3])
def test_bits_per_dim_of_a_uniform_density(info, alpha):
    """A model of uniform density in the unit cube has log2(levels) bits/dim, whatever stretches it after."""
    specs = ["dequantize"] + ([] if alpha is None else [f"logit({alpha})"])
    transform = transforms.make(specs, info)
    batch, log_det = transforms.apply(
        transform, jax.random.key(0), {"x": jnp.asarray(grey_examples(5, 0, info)), "index": jnp.arange(5)}
    )
    y = np.asarray(batch["x"], np.float64).reshape(5, -1)
    log_p = np.zeros(5)
    if alpha is not None:
        p = scipy.special.expit(y)
        log_p = np.log(p * (1 - p) / (1 - 2 * alpha)).sum(1)
    bits = transforms.bits_per_dim(-(log_p + np.asarray(log_det)), transform.info)
    np.testing.assert_allclose(bits, np.log2(info.levels), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_logistic_dequantization_accounts_for_its_noise(scale):
    with jax.enable_x64(True):
        transform = transforms.make([f"dequantize_logistic({scale})"], GREY)
        x = jnp.asarray(grey_examples(50))
        batch, log_det = transforms.apply(transform, jax.random.key(0), {"x": x, "index": jnp.arange(50)})
    u = np.asarray(batch["x"]) * 17 - np.asarray(x)
    log_q = scipy.stats.logistic.logpdf(scipy.special.logit(u), scale=scale) - np.log(u * (1 - u))
    np.testing.assert_allclose(log_det, -log_q.sum((1, 2, 3)) - 6 * np.log(17), atol=1e-6)
    assert abs(log_q).max() < 1e-6 or scale != 1.0
    assert np.std(u) == pytest.approx({0.5: 0.18, 1.0: 0.29, 2.0: 0.38}[scale], abs=0.03)


def test_standardize_takes_its_statistics_from_train():
    train = np.random.default_rng(0).normal(5.0, [0.1, 1.0, 10.0, 0.0], (200, 4)).astype(np.float32)
    transform = transforms.make(["standardize"], REAL, train)
    y, log_det = transforms.apply(transform, None, {"x": jnp.asarray(train)})
    np.testing.assert_allclose(y["x"].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(y["x"].std(0), [1, 1, 1, 0], atol=1e-4)
    np.testing.assert_allclose(log_det, -np.log(train.std(0)[:3]).sum(), rtol=1e-5)


def test_standardize_does_not_see_what_is_missing():
    train = np.random.default_rng(0).normal(5, 2, (50, 4)).astype(np.float32)
    batch = {"x": jnp.asarray(train), "index": jnp.arange(50)}
    hidden = transforms.apply(transforms.make(["standardize"], REAL, train, 0.5), None, batch)[0]["observed"] == 0
    seen, _ = transforms.apply(
        transforms.make(["standardize"], REAL, np.where(hidden, np.float32(1e4), train), 0.5), None, batch
    )
    given = np.where(hidden, np.nan, train)
    expected = (train - np.nanmean(given, 0)) / np.nanstd(given, 0)
    np.testing.assert_allclose(seen["x"], np.where(hidden, 0, expected), atol=1e-4)


@pytest.mark.parametrize(
    ("specs", "info", "message"),
    [
        (["sharpen"], GREY, "unknown transform 'sharpen'; there are: threshold, resample"),
        (["logit(0.05"], GREY, "unknown transform"),
        (["logit"], GREY, r"needs values in \[0, 1\]"),
        (["unit", "logit"], GREY, "discrete: put .dequantize. before it"),
        (["dequantize", "logit(0.5)"], GREY, "0 < alpha < 0.5"),
        (["unit", "threshold"], GREY, "needs grey levels"),
        (["threshold", "dequantize"], GREY, "needs grey levels"),
        (["dequantize"], REAL, "needs grey levels"),
        (["symmetric"], REAL, r"needs values in \[0, 1\]"),
        (["standardize"], GREY, "for real data"),
        (["threshold(3)"], GREY, r"'threshold\(3\)' takes fewer numbers"),
        (["standardize(3)"], REAL, "takes fewer numbers"),
        (["dequantize_logistic(0)"], GREY, "scale > 0, not 0.0"),
        (["dequantize", "standardize"], GREY, "first in the chain"),
    ],
)
def test_a_transform_that_does_not_fit_is_refused(specs, info, message):
    with pytest.raises(ValueError, match=message):
        transforms.make(specs, info, np.zeros((2, *info.shape)))


@pytest.mark.parametrize(
    ("specs", "info", "mass", "message"),
    [
        ([], GREY, False, "without its dequantization cannot"),
        (["unit", "symmetric"], GREY, False, "without its dequantization cannot"),
        (["dequantize"], GREY, True, "a density, not a probability"),
        ([], REAL, False, "for grey levels"),
        ([], Info("text", (8,), "tokens", 65), True, "for grey levels"),
    ],
)
def test_bits_per_dim_that_mean_nothing_are_refused(specs, info, mass, message):
    with pytest.raises(ValueError, match=message):
        transforms.bits_per_dim(1.0, transforms.make(specs, info).info, mass)


def test_bits_per_dim_of_probabilities():
    info = transforms.make(["unit"], GREY).info
    assert transforms.bits_per_dim(6 * np.log(17), info, mass=True) == pytest.approx(np.log2(17))


@pytest.mark.parametrize("name", synthetic.SYNTHETIC)
def test_synthetic_entropy_is_that_of_its_draws(name):
    source = synthetic.make(name)
    draws = source.draw(np.random.default_rng(0), 40_000)["x"]
    surprise = -source.log_prob(draws)
    if surprise.std() < 1e-9:
        assert surprise[0] == pytest.approx(source.info.entropy, abs=1e-9)
    else:
        assert abs(surprise.mean() - source.info.entropy) < 5 * surprise.std() / 200
    assert draws.shape[1:] == source.info.shape


@pytest.mark.parametrize("name", ["gaussian", "mixture", "ring", "checkerboard"])
def test_synthetic_densities_are_those_of_their_draws(name):
    source = synthetic.make(name)
    width, cells, fine = 8.0, 16, 32  # the density is summed over midpoints, fine^2 to a cell
    line = (np.arange(cells * fine) + 0.5) * (width / (cells * fine)) - width / 2
    density = np.exp(source.log_prob(np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)))
    mass = density.reshape(cells, fine, cells, fine).sum((1, 3)) * (width / (cells * fine)) ** 2
    draws = source.draw(np.random.default_rng(1), 40_000)["x"]
    edges = np.linspace(-width / 2, width / 2, cells + 1)
    frequency = np.histogram2d(draws[:, 0], draws[:, 1], bins=edges)[0] / 40_000
    assert mass.sum() == pytest.approx(1, abs=2e-3)
    assert (abs(frequency - mass) < 5 * np.sqrt(mass / 40_000) + 1e-4).all()


@pytest.mark.parametrize("name", ["parity", "markov"])
def test_synthetic_probabilities_are_those_of_their_draws(name):
    source = synthetic.make(name, dims=6)
    states = np.array(list(itertools.product((0, 1), repeat=6)))
    p = np.exp(source.log_prob(states))
    assert p.sum() == pytest.approx(1)
    assert -scipy.special.xlogy(p, p).sum() == pytest.approx(source.info.entropy)
    draws = source.draw(np.random.default_rng(1), 40_000)["x"]
    frequency = np.bincount(draws @ (1 << np.arange(5, -1, -1)), minlength=64) / 40_000
    assert (abs(frequency - p) < 5 * np.sqrt(p / 40_000) + 1e-12).all()


def test_synthetic_splits_differ_and_follow_the_seed():
    first = sources.load("synthetic:mixture", seed=1, train=50, valid=20, test=50)
    again = sources.load("synthetic:mixture", seed=1, train=50, valid=20, test=50)
    other = sources.load("synthetic:mixture", seed=2, train=50, valid=20, test=50)
    assert {name: len(split["label"]) for name, split in first.splits.items()} == {
        "train": 50,
        "valid": 20,
        "test": 50,
    }
    np.testing.assert_array_equal(first.splits["train"]["x"], again.splits["train"]["x"])
    assert (first.splits["train"]["x"] != other.splits["train"]["x"]).any()
    assert (first.splits["train"]["x"] != first.splits["test"]["x"]).any()
