"""Evaluation: numbers against closed forms and other implementations, pictures by reading their pixels."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from PIL import Image
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KernelDensity, NearestNeighbors

from dgm_jax.data import pipeline, transforms
from dgm_jax.data.dataset import Info
from dgm_jax.evaluation import frechet, jackknife, neighbours, nll, parzen, plots, samples, two_sample
from dgm_jax.types import Model

KEY = jax.random.key(0)
LEVELS = Info("toy", (3,), "levels", levels=4, range=(0.0, 3.0))
REAL = Info("toy", (3,), "real")
SPLIT = {"x": np.random.default_rng(0).integers(0, 4, (23, 3)).astype(np.uint8)}
REAL_SPLIT = {"x": np.random.default_rng(1).normal(size=(23, 3)).astype(np.float32)}
PLAIN = transforms.make((), REAL)
DEQUANTIZED = transforms.make(("dequantize",), LEVELS)


def init(key, batch):
    return {"mean": jnp.zeros(3)}


def log_prob(params, key, batch):
    assert key is None  # evaluation is deterministic
    return jax.scipy.stats.norm.logpdf(batch["x"], params["mean"][None]).sum(-1)


def energy(params, key, batch):
    return 0.5 * jnp.sum((batch["x"] - params["mean"][None]) ** 2, -1)


def log_partition(params, key):
    return jnp.asarray(1.5 * math.log(2 * math.pi)), jnp.asarray(0.0)


def noisy_partition(params, key):
    return 1.5 * math.log(2 * math.pi) + jax.random.normal(key), jnp.asarray(0.25)


def expect(params, key, batch):
    return (), log_prob(params, key, batch)


def draw(params, key, batch):
    """q(z | x) of x = z + e, with z and e standard normal, but too wide."""
    mean = batch["x"] / 2
    z = mean + jax.random.normal(key, mean.shape)
    return z, jax.scipy.stats.norm.logpdf(z, mean).sum(-1)


def draw_posterior(params, key, batch):
    mean, scale = batch["x"] / 2, math.sqrt(0.5)
    z = mean + scale * jax.random.normal(key, mean.shape)
    return z, jax.scipy.stats.norm.logpdf(z, mean, scale).sum(-1)


def log_joint(params, z, batch):
    normal = jax.scipy.stats.norm.logpdf
    return (normal(z) + normal(batch["x"], z)).sum(-1)


LATENT = Model(init, draw=draw, log_joint=log_joint)
DENSITY = Model(init, log_prob=log_prob)
PARAMS = {"mean": jnp.array([0.3, -0.2, 0.1])}


def evaluate(model, split=REAL_SPLIT, transform=PLAIN, batch=8, params=PARAMS, key=KEY, k=1, **options):
    run = nll.evaluator(nll.scorers(model, k), transform, **options)
    return run(params, key, pipeline.eval_batches(split, batch))


def gaussian_nll(x, mean, scale=1.0):
    z = (x - np.asarray(mean)) / scale
    return (0.5 * z**2 + 0.5 * math.log(2 * math.pi) + math.log(scale)).sum(-1)


# Likelihoods


def test_value_and_stderr_are_those_of_the_closed_form():
    expected = gaussian_nll(REAL_SPLIT["x"].astype(np.float64), PARAMS["mean"])
    metric = evaluate(DENSITY)["nll"]
    assert metric["value"] == pytest.approx(expected.mean(), rel=1e-6)
    assert metric["stderr"] == pytest.approx(expected.std(ddof=1) / math.sqrt(23), rel=1e-5)
    assert (metric["n"], metric["kind"], metric["unit"]) == (23, "exact", "nats")
    json.dumps(metric)


def test_batch_size_and_padding_change_nothing():
    run = nll.evaluator(nll.scorers(LATENT._replace(log_prob=log_prob), k=5, chunk=2), DEQUANTIZED)
    whole, parts = (run(PARAMS, KEY, pipeline.eval_batches(SPLIT, batch)) for batch in (7, 100))
    assert list(whole) == [a + b for a in ("nll", "elbo", "iwae_5") for b in ("", "_bits_per_dim")]
    for name, metric in whole.items():
        assert parts[name]["value"] == pytest.approx(metric["value"], rel=1e-6), name
        assert parts[name]["n"] == metric["n"] == 23


def test_padding_may_hold_anything():
    batch = {"x": REAL_SPLIT["x"][:4].copy(), "index": np.arange(4), "mask": np.array([1, 1, 1, 0], np.float32)}
    batch["x"][3] = np.nan
    metric = nll.evaluator(nll.scorers(DENSITY), PLAIN)(PARAMS, KEY, [batch])["nll"]
    assert metric["value"] == pytest.approx(gaussian_nll(REAL_SPLIT["x"][:3], PARAMS["mean"]).mean(), rel=1e-6)
    assert metric["n"] == 3 and "nonfinite" not in metric


def test_the_log_determinant_makes_the_value_that_of_the_data():
    """y = (x - m) / s is scored by a standard normal: that is x under N(m, s)."""
    data = {"x": 5 + 3 * REAL_SPLIT["x"]}
    standardize = transforms.make(("standardize",), REAL, data["x"])
    metric = evaluate(DENSITY, data, standardize, params={"mean": jnp.zeros(3)})["nll"]
    expected = -scipy.stats.norm.logpdf(data["x"], data["x"].mean(0), data["x"].std(0)).sum(-1)
    assert metric["value"] == pytest.approx(expected.mean(), rel=1e-5)


def test_bits_per_dim_of_the_uniform_density_are_the_levels_bits():
    uniform = Model(init, log_prob=lambda params, key, batch: jnp.zeros(len(batch["x"])))
    metrics = evaluate(uniform, SPLIT, DEQUANTIZED)
    assert metrics["nll"]["value"] == pytest.approx(3 * math.log(4), rel=1e-6)
    assert metrics["nll"]["kind"] == "exact"  # the density of the dequantized data
    assert metrics["nll_bits_per_dim"]["value"] == pytest.approx(2, rel=1e-6)
    assert metrics["nll_bits_per_dim"]["stderr"] == pytest.approx(0, abs=1e-6)
    assert (metrics["nll_bits_per_dim"]["kind"], metrics["nll_bits_per_dim"]["unit"]) == ("bound", "bits/dim")
    other = evaluate(uniform, SPLIT, transforms.make(("dequantize_logistic(0.5)",), LEVELS))["nll"]
    assert other["value"] > 3 * math.log(4) and other["kind"] == "bound"


def test_bits_per_dim_are_given_only_where_they_mean_something():
    mass = Model(init, log_prob=lambda params, key, batch: jnp.full(len(batch["x"]), -3 * math.log(4)))
    discrete = transforms.make((), LEVELS)
    assert list(evaluate(mass, SPLIT, discrete)) == ["nll"]
    metric = evaluate(mass, SPLIT, discrete, mass=True)["nll_bits_per_dim"]
    assert metric["value"] == pytest.approx(2, rel=1e-6)
    assert metric["kind"] == "exact"
    assert list(evaluate(DENSITY, mass=True)) == ["nll"]  # real data have no levels


def test_the_data_are_drawn_alike_in_every_evaluation():
    reads = Model(init, log_prob=lambda params, key, batch: batch["x"].sum(-1))
    one, other = (evaluate(reads, SPLIT, DEQUANTIZED, key=jax.random.key(i))["nll"]["value"] for i in (1, 2))
    assert one == other


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (DENSITY, {"nll": "exact"}),
        (Model(init, expect=expect), {"nll": "exact"}),
        (Model(init, energy=energy, log_partition=log_partition), {"nll": "exact"}),
        (Model(init, energy=energy, log_partition=noisy_partition), {"nll": "estimate"}),
        (LATENT, {"elbo": "bound", "iwae_8": "bound"}),
        (LATENT._replace(log_prob=log_prob), {"nll": "exact", "elbo": "bound", "iwae_8": "bound"}),
        (Model(init, energy=energy), {}),
        (Model(init, draw=draw), {}),
        (Model(init, critic=energy, sample=lambda params, key, n: None), {}),
    ],
)
def test_kinds_follow_from_capabilities(model, kinds):
    metrics = evaluate(model, k=8)
    assert {name: metric["kind"] for name, metric in metrics.items()} == kinds
    for metric in metrics.values():
        assert math.isfinite(metric["value"]) and metric["stderr"] > 0
    assert metrics.get("iwae_8", {"k": 8})["k"] == 8


def test_three_roads_to_the_same_likelihood():
    models = [DENSITY, Model(init, expect=expect), Model(init, energy=energy, log_partition=log_partition)]
    values = [evaluate(model)["nll"]["value"] for model in models]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_log_partition_is_computed_once_and_its_error_counts():
    calls = []

    def counted(params, key):
        jax.debug.callback(lambda: calls.append(1))
        return noisy_partition(params, key)

    model = Model(init, energy=energy, log_partition=counted)
    batches = list(pipeline.eval_batches(REAL_SPLIT, 4))
    scores = nll.per_example(nll.scorers(model), PLAIN)(PARAMS, KEY, batches)["nll"]
    jax.effects_barrier()
    assert len(batches) == 6 and len(calls) == 1
    added = scores.values - gaussian_nll(REAL_SPLIT["x"], PARAMS["mean"])
    np.testing.assert_allclose(added, added[0], atol=1e-5)
    alone = evaluate(DENSITY)["nll"]["stderr"]
    assert evaluate(model)["nll"]["stderr"] == pytest.approx(math.hypot(alone, 0.25), rel=1e-5)


def test_bounds_lie_above_the_exact_value_and_tighten():
    exact = gaussian_nll(REAL_SPLIT["x"], 0, math.sqrt(2)).mean()
    many = {"x": np.tile(REAL_SPLIT["x"], (200, 1))}
    elbo, iwae = (evaluate(LATENT, many, batch=1000, k=50)[name] for name in ("elbo", "iwae_50"))
    # KL(N(m, 1) || N(m, 1/2)) of three dimensions is what the ELBO loses
    loss = 3 * (0.5 * math.log(0.5) + 1 - 0.5)
    assert elbo["n"] == 4600  # every copy has its own index, so its own draws
    assert elbo["value"] == pytest.approx(exact + loss, abs=0.05)
    assert exact - 0.02 < iwae["value"] < exact + 0.1 < elbo["value"]


def test_a_bound_with_the_true_posterior_is_exact():
    metrics = evaluate(Model(init, draw=draw_posterior, log_joint=log_joint), k=3)
    exact = gaussian_nll(REAL_SPLIT["x"], 0, math.sqrt(2)).mean()
    for name in ("elbo", "iwae_3"):
        assert metrics[name]["value"] == pytest.approx(exact, rel=1e-5)


def test_draws_of_a_bound_follow_the_key_and_differ_between_examples():
    same = {"x": np.repeat(REAL_SPLIT["x"][:1], 6, axis=0)}
    score = nll.per_example(nll.scorers(LATENT), PLAIN)
    first, again, other = (
        score(PARAMS, jax.random.key(i), pipeline.eval_batches(same, 6))["elbo"].values for i in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.concatenate([first, other]))) == 12


@pytest.mark.parametrize("vectorize", [True, False])
def test_seeds_together_are_the_seeds_alone(vectorize):
    run = nll.evaluator(nll.scorers(LATENT._replace(log_prob=log_prob)), DEQUANTIZED, vectorize=vectorize)
    means = jnp.arange(9.0).reshape(3, 3) / 5
    keys = jax.random.split(KEY, 3)
    batches = list(pipeline.eval_batches(SPLIT, 8))
    together = run({"mean": means}, keys, batches)
    alone = [run({"mean": mean}, key, batches) for mean, key in zip(means, keys, strict=True)]
    for name, metric in together.items():
        values = np.array([metrics[name]["value"] for metrics in alone])
        np.testing.assert_allclose(metric["per_seed"], values, rtol=1e-6)
        assert metric["value"] == pytest.approx(values.mean(), rel=1e-6)
        assert metric["stderr"] == pytest.approx(values.std(ddof=1) / math.sqrt(3), rel=1e-4)
        assert metric["n"] == 23 and metric["kind"] == alone[0][name]["kind"]


def test_offsets_belong_to_their_seeds():
    model = Model(init, energy=energy, log_partition=lambda params, key: (params["mean"].sum(), jnp.asarray(0.0)))
    means = jnp.arange(6.0).reshape(2, 3)
    metric = evaluate(model, params={"mean": means}, key=jax.random.split(KEY))["nll"]
    expected = [(0.5 * (REAL_SPLIT["x"] - m) ** 2).sum(-1).mean() + m.sum() for m in np.asarray(means)]
    np.testing.assert_allclose(metric["per_seed"], expected, rtol=1e-6)
    assert metric["kind"] == "exact"


def test_values_that_are_not_finite_are_counted_and_not_averaged_away():
    model = Model(init, log_prob=lambda params, key, batch: jnp.log(batch["x"][:, 0] - params["mean"][0]))
    data = {"x": np.linspace(1, 2, 30).reshape(10, 3).astype(np.float32)}
    at_edge = {"mean": jnp.full(3, data["x"][0, 0])}
    metric = evaluate(model, data, params=at_edge)["nll"]
    assert metric["value"] == math.inf and metric["nonfinite"] == 1 and metric["n"] == 10
    beyond = {"mean": jnp.full(3, data["x"][2, 0])}  # log of negative numbers too
    metric = evaluate(model, data, params=beyond)["nll"]
    assert math.isnan(metric["value"]) and metric["nonfinite"] == 3
    both = {"mean": jnp.stack([jnp.zeros(3), at_edge["mean"]])}
    metric = evaluate(model, data, params=both, key=jax.random.split(KEY))["nll"]
    assert metric["nonfinite"] == 1 and math.isfinite(metric["per_seed"][0]) and metric["per_seed"][1] == math.inf


def test_an_evaluation_compiles_once():
    traces = []

    def counted(params, key, batch):
        traces.append(1)
        return log_prob(params, key, batch)

    run = nll.evaluator(nll.scorers(Model(init, log_prob=counted)), PLAIN)
    values = [
        run({"mean": jnp.full(3, m)}, jax.random.key(i), pipeline.eval_batches(REAL_SPLIT, 8))["nll"]["value"]
        for i, m in enumerate((0.0, 1.0, 2.0))
    ]
    assert len(traces) == 1 and len(set(values)) == 3


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        nll.metric(np.zeros(0), "exact", "nats")


# Two samples


def naive_statistic(kernel, m):
    """The unbiased statistic by its definition, over pairs."""
    total = len(kernel)
    pairs = {"xx": [], "yy": [], "xy": []}
    for i in range(total):
        for j in range(total):
            if i != j:
                pairs["xx" if i < m and j < m else "yy" if i >= m and j >= m else "xy"].append(kernel[i, j])
    return np.mean(pairs["xx"]) + np.mean(pairs["yy"]) - 2 * np.mean(pairs["xy"])


def test_kernel_statistics_by_their_definitions():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 2, 2)).astype(np.float32), rng.normal(1, 1, size=(5, 2, 2)).astype(np.float32)
    distances = pairwise_distances(np.concatenate([x, y]).reshape(12, -1).astype(np.float64))
    median = np.median(distances[np.triu_indices(12, 1)])
    for bandwidth, used in ((1.3, 1.3), (None, median)):
        expected = naive_statistic(np.exp(-(distances**2) / (2 * used**2)), 7)
        result = two_sample.mmd(KEY, jnp.asarray(x), jnp.asarray(y), bandwidth, permutations=0)
        assert float(result.value) == pytest.approx(expected, rel=1e-4)
        assert math.isnan(result.p_value)
    result = two_sample.energy_distance(KEY, jnp.asarray(x), jnp.asarray(y))
    assert float(result.value) == pytest.approx(naive_statistic(-distances, 7), rel=1e-4)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_mmd_is_unbiased_and_its_stderr_right(shift):
    """Between N(0, I) and N(shift, I): closed form of the Gaussian kernel's mean."""
    m, n, d, s = 30, 20, 2, 1.5

    def one(key):
        a, b = jax.random.split(key)
        x, y = jax.random.normal(a, (m, d)), shift + jax.random.normal(b, (n, d))
        return two_sample.mmd(key, x, y, s, permutations=0)

    result = jax.jit(jax.vmap(one))(jax.random.split(KEY, 600))
    values = np.asarray(result.value, np.float64)
    same = (s**2 / (s**2 + 2)) ** (d / 2)
    expected = 2 * same * (1 - math.exp(-d * shift**2 / (2 * (s**2 + 2))))
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(600)
    if shift:
        assert float(result.stderr.mean()) == pytest.approx(values.std(), rel=0.15)


@pytest.mark.parametrize("statistic", [two_sample.mmd, two_sample.energy_distance])
def test_p_values_are_uniform_under_equality_and_small_otherwise(statistic):
    def one(key, shift):
        a, b, c = jax.random.split(key, 3)
        x, y = jax.random.normal(a, (20, 2)), shift + jax.random.normal(b, (25, 2))
        return statistic(c, x, y, permutations=19).p_value

    keys = jax.random.split(KEY, 150)
    apply = jax.jit(jax.vmap(one, (0, None)))
    equal = np.asarray(apply(keys, 0.0))
    for level in (0.1, 0.5):
        assert abs((equal <= level).mean() - level) < 4 * math.sqrt(level * (1 - level) / 150)
    different = np.asarray(apply(keys, 1.5))
    assert np.isclose(different, 1 / 20).mean() > 0.95


def test_equal_points_are_at_distance_nothing_far_from_the_origin():
    x = 1e3 + np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    distances = two_sample.squared_distances(jnp.asarray(x), jnp.asarray(x))
    np.testing.assert_array_equal(np.diagonal(distances), 0)
    np.testing.assert_allclose(distances, pairwise_distances(x.astype(np.float64)) ** 2, rtol=1e-3, atol=1e-3)


def test_frechet_against_closed_forms_and_scipy():
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 5))
    # commuting covariances: sum (sqrt a - sqrt b)^2
    a, b = rng.uniform(0.5, 2, (2, 5))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet.gaussians(mean_a, np.diag(a), mean_b, np.diag(b)) == pytest.approx(expected)
    for rank in (5, 2):  # singular ones too
        left, right = rng.normal(size=(2, 5, rank))
        cov_a, cov_b = left @ left.T, right @ right.T
        root = scipy.linalg.sqrtm((cov_a @ cov_b).astype(complex)).real
        expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
        assert frechet.gaussians(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-5)
        assert frechet.gaussians(mean_a, cov_a, mean_a, cov_a) == pytest.approx(0, abs=1e-6)


def test_frechet_of_features_and_its_stderr():
    def one(seed):
        rng = np.random.default_rng(seed)
        return frechet.frechet(rng.normal(size=(400, 2)), rng.normal(1, 2, size=(500, 2)))

    values, stderrs = np.array([one(seed) for seed in range(60)]).T
    assert values.mean() == pytest.approx(2 + 2, abs=0.1)  # |shift|^2 + 2 (2 - 1)^2
    assert stderrs.mean() == pytest.approx(values.std(ddof=1), rel=0.4)


def test_parzen_is_the_kernel_density_of_scikit_learn():
    rng = np.random.default_rng(0)
    centres, x = rng.normal(5, 1, size=(40, 2, 2)).astype(np.float32), rng.normal(5, 1, size=(70, 2, 2))
    sigmas = [0.05, 0.4, 2.0]
    ours = parzen.log_density(jnp.asarray(centres), jnp.asarray(x, jnp.float32), jnp.array(sigmas), chunk=16)
    for sigma, row in zip(sigmas, ours, strict=True):
        theirs = KernelDensity(bandwidth=sigma).fit(centres.reshape(40, 4)).score_samples(x.reshape(70, 4))
        np.testing.assert_allclose(row, theirs, rtol=2e-4, atol=1e-3)


def test_parzen_chooses_sigma_on_the_validation_data():
    rng = np.random.default_rng(0)
    points, valid, test = (rng.normal(size=(n, 2)).astype(np.float32) for n in (300, 200, 150))
    sigmas = [0.01, 0.1, 0.3, 1.0, 3.0]
    densities = [KernelDensity(bandwidth=sigma).fit(points) for sigma in sigmas]
    best = int(np.argmax([density.score(valid) for density in densities]))
    metric = parzen.parzen(points, valid, 2 * test, sigmas)  # a wider one would be better at the test data
    assert metric["sigma"] == pytest.approx(sigmas[best]) and 0 < best < 4
    expected = densities[best].score_samples(2 * test)
    assert densities[best + 1].score(2 * test) > expected.sum()
    assert metric["value"] == pytest.approx(expected.mean(), rel=1e-4)
    assert metric["kind"] == "estimate" and metric["n"] == 150


def test_nearest_neighbours_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x, reference = rng.normal(3, 1, size=(37, 2, 3)), rng.normal(3, 1, size=(90, 2, 3))
    index, distance = neighbours.nearest(jnp.asarray(x, jnp.float32), jnp.asarray(reference, jnp.float32), k=4, chunk=8)
    theirs = NearestNeighbors(n_neighbors=4).fit(reference.reshape(90, 6))
    expected_distance, expected_index = theirs.kneighbors(x.reshape(37, 6))
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-4)


def test_precision_and_recall_by_their_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)), rng.normal(0.7, 1, size=(40, 2))

    def inside(points, reference, k):
        own = np.sort(pairwise_distances(reference), axis=1)[:, k]
        return (pairwise_distances(points, reference) <= own).any(1)

    like_data, like_samples = neighbours.precision_recall(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_array_equal(like_data, inside(x, y, 3))
    np.testing.assert_array_equal(like_samples, inside(y, x, 3))
    assert 0 < like_data.mean() < 1 and 0 < like_samples.mean() < 1


@pytest.mark.slow
def test_the_jackknife_of_precision_and_recall_is_on_the_safe_side():
    """Of the asked points alone, the standard error of precision would be half the spread here."""
    rng = np.random.default_rng(0)

    def both(x, y):
        return [like.mean() for like in neighbours.precision_recall(x, y)]

    sets = [[jnp.asarray(rng.normal(size=(n, 8)), jnp.float32) for n in (400, 100)] for _ in range(25)]
    spread = np.std([both(*pair) for pair in sets], axis=0)
    errors = np.mean([jackknife.jackknife(both, *pair) for pair in sets], axis=0)
    assert (errors > spread).all() and (errors < 2 * spread).all()


@pytest.mark.slow
def test_sample_scores_tell_a_good_model_from_one_that_misses_a_mode():
    rng = np.random.default_rng(0)

    def draw(n, modes):
        return (3 * rng.integers(0, modes, (n, 1, 1, 1)) + 0.3 * rng.normal(size=(n, 2, 2, 1))).astype(np.float32)

    reference, half = draw(200, 2), draw(150, 1)
    good, poor = (samples.sample_scores(KEY, x, reference) for x in (draw(150, 2), half))
    assert set(good) == {"mmd", "energy_distance", "frechet_pca_4", "precision", "recall"}
    assert all(metric["kind"] == "estimate" for metric in good.values())
    assert good["mmd"]["p_value"] > 0.05 and good["energy_distance"]["p_value"] > 0.05
    assert poor["mmd"]["p_value"] < 0.01 and poor["energy_distance"]["p_value"] < 0.01
    assert good["frechet_pca_4"]["value"] < 0.1 * poor["frechet_pca_4"]["value"]
    assert poor["precision"]["value"] > 0.9 and poor["recall"]["value"] < 0.6 < 0.9 < good["recall"]["value"]
    stretched = samples.sample_scores(KEY, 10 * half, 10 * reference)
    scale = {"1": 1, "data units": 10, "squared data units": 100}
    for name, metric in poor.items():
        assert stretched[name]["value"] == pytest.approx(scale[metric["unit"]] * metric["value"], rel=1e-3), name
    json.dumps(good)


# Pictures


def tiles(picture, height, width, scale, columns):
    """Cut a grid of one row a block back into its images, at their own resolution."""
    line = plots.separator(scale)
    found = []
    for top in range(line, picture.shape[0] - scale * height + 1, scale * height + line):
        for left in range(line, columns * (scale * width + line), scale * width + line):
            found.append(picture[top : top + scale * height, left : left + scale * width])
    return np.stack(found)


def test_grid_holds_the_images_in_order_magnified_without_blur(tmp_path):
    x = np.random.default_rng(0).integers(0, 17, (6, 8, 8, 1))
    plots.save(plots.grid(x, columns=3, high=16), tmp_path / "deep" / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "deep" / "grid.png"))
    scale = plots.SIZE // 24
    line = plots.separator(scale)
    assert picture.shape == (2 * (8 * scale + line) + line, 3 * (8 * scale + line) + line)
    assert picture.dtype == np.uint8
    cut = tiles(picture, 8, 8, scale, 3)
    np.testing.assert_array_equal(cut[:, ::scale, ::scale], np.round(x[..., 0] * 255 / 16))
    np.testing.assert_array_equal(cut, cut[:, ::scale, ::scale].repeat(scale, 1).repeat(scale, 2))
    assert (picture[:line] == plots.SEPARATOR).all() and (picture[:, :line] == plots.SEPARATOR).all()
    assert (picture[8 * scale + line : 8 * scale + 2 * line] == plots.SEPARATOR).all()


def test_grid_of_colours_and_of_another_range(tmp_path):
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 5, 4, 3))
    plots.save(plots.grid(x, columns=2, low=-1), tmp_path / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    scale = plots.SIZE // 8
    cut = tiles(picture, 5, 4, scale, 2)[:, ::scale, ::scale]
    np.testing.assert_allclose(cut, np.clip((x + 1) / 2, 0, 1) * 255, atol=0.5 + 1e-9)


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((784,), (28, 28, 1)),
        ((64,), (8, 8, 1)),
        ((100, 30), (100, 30, 1)),
        ((7,), (1, 7, 1)),
        ((4, 5, 3), (4, 5, 3)),
    ],
)
def test_every_shape_of_example_is_drawn(shape, drawn):
    x = np.random.default_rng(0).random((3, *shape))
    images = plots.as_images(x)
    assert images.shape == (3, *drawn)
    np.testing.assert_allclose(images.reshape(3, -1), x.reshape(3, -1) * 255, atol=0.5)
    assert plots.grid(x).ndim == 3


def test_what_cannot_be_drawn_is_an_error():
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 2\)"):
        plots.grid(np.zeros((3, 4, 4, 2)))
    with pytest.raises(ValueError, match="differ in shape"):
        plots.comparison(np.zeros((3, 4, 4, 1)), np.zeros((2, 4, 4, 1)))


def test_values_that_are_not_finite_are_seen():
    x = np.zeros((1, 4, 4, 1))
    x[0, 1, 2], x[0, 3, 3] = np.nan, np.inf
    images = plots.as_images(x)
    assert images.shape == (1, 4, 4, 3)
    painted = (images == np.array(plots.NONFINITE)).all(-1)[0]
    np.testing.assert_array_equal(np.argwhere(painted), [[1, 2], [3, 3]])
    assert (images[0][~painted] == 0).all()


def test_comparison_has_versions_below_each_other_in_blocks():
    data = np.full((4, 2, 2, 1), 0.2)
    other = np.full((4, 2, 2, 1), 0.8)
    picture = plots.comparison(data, other, columns=2)[..., 0]
    scale = plots.SIZE // 8
    line = plots.separator(scale)
    tall, gap = 2 * scale + line, 4 * line
    assert picture.shape == (4 * tall + gap + line, 2 * tall + line)
    middles = [tall // 2, tall + tall // 2, 2 * tall + gap + tall // 2, 3 * tall + gap + tall // 2]
    np.testing.assert_array_equal(picture[middles, tall // 2], [51, 204, 51, 204])
    assert (picture[2 * tall : 2 * tall + gap + line] == plots.SEPARATOR).all()


def test_completion_shows_what_was_observed():
    x = np.full((1, 2, 2, 1), 1.0)
    observed = np.array([1, 1, 0, 0]).reshape(1, 2, 2, 1)
    picture = plots.completion(x, observed, x * 0.4)
    scale = plots.SIZE // 6
    line = plots.separator(scale)
    assert picture.shape == (3 * (2 * scale + line) + line, 2 * scale + 2 * line, 3)
    whole, shown, filled = tiles(picture, 2, 2, scale, 1)
    assert (whole == 255).all() and (filled == 102).all()
    assert (shown[:scale] == 255).all() and (shown[scale:] == np.array(plots.MISSING)).all()


def test_bits_are_brighter_where_pixels_cost_more():
    x = np.zeros((1, 2, 2, 1))
    cost = np.array([0.0, 0.5, 1.0, np.nan]).reshape(1, 2, 2, 1)
    picture = plots.bits(x, cost)
    scale = plots.SIZE // 4
    images, heat = tiles(picture, 2, 2, scale, 1)
    assert (images == 0).all()
    cheap, medium, dear = (heat[i * scale, j * scale].astype(int).sum() for i, j in ((0, 0), (0, 1), (1, 0)))
    assert cheap < medium < dear
    assert (heat[scale:, scale:] == np.array(plots.NONFINITE)).all()


def test_what_was_predicted_lies_between():
    x, predicted = np.zeros((1, 2, 2, 1)), np.full((1, 2, 2, 1), 0.4)
    images, middle, _ = tiles(plots.bits(x, x + 1, predicted), 2, 2, plots.SIZE // 6, 1)
    assert (images == 0).all() and (middle == 102).all()


def test_default_columns_fill_the_last_row_where_they_can():
    for n in (1, 4, 10, 16, 36, 64, 100):
        picture = plots.grid(np.zeros((n, 8, 8, 1)))[..., 0]
        edge = picture.shape[1] // 20
        assert (picture[-edge, -edge], picture[edge, edge]) == (0, 0), n
        assert 0.3 < picture.shape[0] / picture.shape[1] <= 1.1 or n == 1


def test_curves_are_what_was_logged(tmp_path):
    falling = [90 + 5 / (i + 1) for i in range(60)]
    records = [{"step": 10 * i, "split": "train", "loss": falling[i], "time/s": 1.0, "finite": 1} for i in range(60)]
    records += [{"step": 100 * i, "split": "valid", "loss": 92.0 - i, "nll": 10.0 ** (5 - i)} for i in range(6)]
    records += [{"step": 605, "split": "train", "loss": None}]
    figure = plots.curves(records)
    loss, error = figure.axes
    assert (loss.get_title(loc="left"), error.get_title(loc="left")) == ("loss", "nll")
    train, valid = loss.lines
    np.testing.assert_allclose(train.get_ydata(), falling)
    np.testing.assert_allclose(valid.get_xdata(), [0, 100, 200, 300, 400, 500])
    assert (loss.get_yscale(), error.get_yscale()) == ("linear", "log")
    assert error.lines[0].get_color() == valid.get_color() != train.get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "valid"]
    plots.save(figure, tmp_path / "curves.png")
    width, height = Image.open(tmp_path / "curves.png").size
    assert plots.pixels(figure).shape == (height, width, 3)
    assert len(plots.curves(records, ["nll"]).axes) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.curves(records[:3], ["missing"])


@pytest.mark.parametrize("height", [0.0, -100.0])
def test_density_is_drawn_where_it_is(tmp_path, height):
    data = np.array([[0.0, 0.0], [4.0, 2.0]])
    peak = np.array([3.0, 1.5])
    figure = plots.density(data, data + 0.1, lambda x: height - 10 * ((x - peak) ** 2).sum(-1), resolution=50)
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == ["data", "samples", "log density"]
    np.testing.assert_allclose(figure.axes[1].collections[0].get_offsets(), data + 0.1)
    heat = figure.axes[2]
    (image,) = heat.images
    row, column = np.unravel_index(np.argmax(image.get_array()), (50, 50))
    left, right, bottom, top = image.get_extent()
    assert image.origin == "lower"
    assert left + (column + 0.5) * (right - left) / 50 == pytest.approx(peak[0], abs=0.06)
    assert bottom + (row + 0.5) * (top - bottom) / 50 == pytest.approx(peak[1], abs=0.06)
    # and so it looks: the brightest pixel of the picture's heat map lies at the peak
    picture = plots.pixels(figure).astype(int)
    (x, y), (x_far, y_far) = heat.transData.transform([peak, (0, 0)]).round().astype(int)
    spot, far = picture[len(picture) - y, x], picture[len(picture) - y_far, x_far]
    assert spot.sum() > 600 and far.sum() < 60
    plots.save(figure, tmp_path / "density.png")
    assert Image.open(tmp_path / "density.png").size == picture.shape[1::-1]


def test_density_that_is_zero_in_places_can_be_drawn():
    def log_prob(x):
        return np.where(np.abs(x).max(-1) < 1, 0.0, -np.inf)

    figure = plots.density(np.random.default_rng(0).uniform(-2, 2, (50, 2)), log_prob=log_prob)
    assert np.isfinite(figure.axes[1].images[0].get_array()).all()
