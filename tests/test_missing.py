"""Missing data: what is hidden stays hidden, and what fills it in against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logs import levels
from scipy import stats

from dgm_jax import api, zoo
from dgm_jax.data import pipeline, transforms
from dgm_jax.data.dataset import Info
from dgm_jax.distributions import standard_normal_log_prob
from dgm_jax.evaluation import nll
from dgm_jax.inference.importance import importance_bound, posterior_mean
from dgm_jax.models.autoregressive import deep_nade, made
from dgm_jax.models.graphical import mixture
from dgm_jax.models.latent import factor_analysis, vae
from dgm_jax.numerics import sum_event
from dgm_jax.tasks import missing

KEY = jax.random.key(0)
GREY = Info("grey", (5, 4), "levels", 17, range=(0.0, 16.0))
CHAINS = [("dequantize",), ("dequantize", "logit(0.05)"), ("dequantize_logistic(0.5)",), ("resample",), ("unit",), ()]


def examples(n=12, seed=0):
    return np.random.default_rng(seed).integers(17, size=(n, *GREY.shape), dtype=np.uint8)


def applied(transform, x, index=None, key=KEY):
    return transforms.apply(transform, key, {"x": x, "index": np.arange(len(x)) if index is None else index})


def test_what_is_missing_depends_on_the_split_and_the_index_alone():
    transform = transforms.make(("dequantize",), GREY, missing=0.3)
    first = applied(transform, examples())[0]["observed"]
    index = np.array([7, 2, 7])
    again = applied(transforms.make(("threshold",), GREY, missing=0.3), examples(3, 1), index, jax.random.key(5))[0][
        "observed"
    ]
    np.testing.assert_array_equal(again, first[index])
    assert (first[2] != first[7]).any()
    for split in ("valid", "test"):
        other = applied(transforms.of_split(transform, split), examples())[0]["observed"]
        assert 0.2 < (other != first).mean() < 0.7  # 2 * 0.3 * 0.7 of independent draws
    assert "observed" not in applied(transforms.whole(transform), examples())[0]


def test_what_is_missing_never_moves():
    """A run goes on, and another compares with it, on the same half of the data."""
    info, indices = Info("toy", (8,), "real"), np.array([0, 2, 49_999])
    transform = transforms.make((), info, missing=0.5)
    for wide in (False, True):
        with jax.enable_x64(wide):
            found = applied(transform, jnp.zeros((3, 8)), indices)[0]["observed"]
        assert ["".join(str(int(bit)) for bit in row) for row in found] == NEVER


NEVER = ["10111011", "11101011", "01011111"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_of_missing_dimensions(share):
    observed = applied(transforms.make((), GREY, missing=share), examples(2000))[0]["observed"]
    error = np.sqrt(share * (1 - share) / observed.size)
    assert abs(1 - observed.mean() - share) < 4 * error
    assert (abs(1 - observed.mean(0) - share) < 5 * np.sqrt(share * (1 - share) / 2000)).all()  # every dimension alike


@pytest.mark.parametrize("specs", CHAINS, ids=str)
def test_nothing_of_what_is_hidden_is_left(specs):
    transform = transforms.make(specs, GREY, missing=0.5)
    x = examples()
    batch, log_det = applied(transform, x)
    hidden = np.asarray(batch["observed"]) == 0
    assert not np.asarray(batch["x"])[hidden].any()
    other, other_det = applied(transform, np.where(hidden, 16 - x, x))
    for name in ("x", "observed"):
        np.testing.assert_array_equal(batch[name], other[name])
    np.testing.assert_array_equal(log_det, other_det)
    full, _ = applied(transforms.whole(transform), x)
    np.testing.assert_array_equal(np.asarray(full["x"])[~hidden], np.asarray(batch["x"])[~hidden])  # of the same draws
    assert np.asarray(full["x"])[hidden].any()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        transforms.make((), GREY, missing=share)


DIMS, LATENT = 5, 2
LINEAR = vae.make(shape=(DIMS,), latent=LATENT, hidden=(), output="gaussian", shared_scale=True)


@functools.cache
def linear():
    """A VAE that is linear and Gaussian, examples with missing dimensions, and what is known of both in closed form."""
    rng = np.random.default_rng(2)
    observed = np.array([[1, 0, 1, 1, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0.0]])
    params = LINEAR.init(KEY, {"x": jnp.asarray(rng.normal(size=observed.shape), jnp.float32)})
    params["offset"] = jnp.asarray(rng.normal(size=params["offset"].shape), jnp.float32)
    params["scale"] = jnp.zeros(1)
    params["encoder"] = jax.tree.map(
        lambda leaf: 0.2 * leaf, params["encoder"]
    )  # near the prior, and not the posterior
    loadings = np.asarray(params["decoder"]["Dense_0"]["kernel"], np.float64)
    mean = np.asarray(params["decoder"]["Dense_0"]["bias"] + params["offset"], np.float64)
    noise = 1e-3 + np.log(2)
    covariance = loadings.T @ loadings + noise**2 * np.eye(DIMS)
    x = rng.multivariate_normal(mean, covariance, size=4)
    batch = {"x": jnp.asarray(x * observed, jnp.float32), "observed": jnp.asarray(observed, jnp.float32)}
    filled, log_p = x * observed, np.zeros(4)
    for row, seen in enumerate(observed == 1):
        gain = covariance[np.ix_(~seen, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        filled[row, ~seen] = mean[~seen] + gain @ (x[row, seen] - mean[seen])
        if seen.any():
            log_p[row] = stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(x[row, seen])
    return params, batch, filled, log_p


@pytest.mark.slow
def test_a_bound_with_missing_dimensions_is_one_of_what_is_observed():
    params, batch, _, log_p = linear()

    def bounds(k, n):
        one = lambda key: importance_bound(LINEAR.draw, LINEAR.log_joint, params, key, batch, k, 4000)  # noqa: E731
        return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(KEY, n)))

    few, many = bounds(1, 100), bounds(40_000, 3)
    assert (few.mean(0) <= log_p + 4 * few.std(0) / 10).all() and (few.mean(0)[:3] < log_p[:3] - 0.01).all()
    np.testing.assert_allclose(many.mean(0), log_p, atol=0.05)


def test_imputations_converge_to_the_conditional_mean():
    params, batch, filled, _ = linear()
    hidden = np.asarray(batch["observed"]) == 0

    def error(k):
        impute = jax.jit(missing.imputer(LINEAR, k, chunk=500))
        found = np.stack([impute(params, key, batch) for key in jax.random.split(KEY, 4)])
        np.testing.assert_array_equal(found[:, ~hidden], np.tile(filled[~hidden].astype(np.float32), (4, 1)))
        return np.sqrt(((found - filled)[:, hidden] ** 2).mean())

    rough, fine = error(20), error(8000)
    assert fine < 0.03 and fine < rough / 4  # of the order k^-1/2: 20 times


@pytest.mark.slow
def test_the_draws_are_those_of_any_chunk():
    params, batch, _, _ = linear()
    found = [missing.imputer(LINEAR, 7, chunk)(params, KEY, batch) for chunk in (1, 3, 7, 50)]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, atol=1e-5)
    draws = [LINEAR.draw(params, jax.random.fold_in(KEY, i), batch) for i in range(7)]
    weights = jax.nn.softmax(jnp.stack([LINEAR.log_joint(params, z, batch) - log_q for z, log_q in draws]), axis=0)
    means = jnp.stack([LINEAR.decode(params, None, z) for z, _ in draws])
    expected = (weights[..., None] * means).sum(0)
    np.testing.assert_allclose(found[0], jnp.where(batch["observed"] != 0, batch["x"], expected), atol=1e-5)


def test_weights_count_and_not_only_where_the_posterior_draws():
    """From a proposal that is the prior, exact for factor analysis, which knows the answer."""
    model = factor_analysis.make(shape=(4,), latent=2)
    rng = np.random.default_rng(3)
    params = {
        "loadings": jnp.asarray(rng.normal(size=(2, 4)), jnp.float32),
        "mean": jnp.ones(4),
        "log_scale": -jnp.ones(4),
    }
    observed = jnp.array([[1, 1, 0, 0], [0, 1, 1, 0.0]])
    batch = {"x": observed * jnp.asarray(rng.normal(size=(2, 4)), jnp.float32), "observed": observed}

    def from_prior(params, key, batch):
        z = jax.random.normal(key, (2, 2))
        return z, sum_event(standard_normal_log_prob(z))

    exact = model.decode(params, None, model.encode(params, None, batch))
    found = posterior_mean(
        from_prior, model.log_joint, lambda z: model.decode(params, None, z), params, KEY, batch, 20_000, 1000
    )
    np.testing.assert_allclose(found, exact, atol=0.05)
    assert np.abs(exact - model.decode(params, None, jnp.zeros((2, 2)))).max() > 0.5
    np.testing.assert_allclose(
        missing.imputer(model, 2000, 500)(params, KEY, batch), jnp.where(observed != 0, batch["x"], exact), atol=0.05
    )


def test_completions_are_averaged():
    model = mixture.make(shape=(4,), components=2)
    params = {
        "weights": jnp.log(jnp.array([0.3, 0.7])),
        "emission": jax.scipy.special.logit(jnp.array([[0.9, 0.8, 0.9, 0.7], [0.1, 0.3, 0.2, 0.1]])),
    }
    batch = {"x": jnp.array([[1.0, 1, 0, 0]]), "observed": jnp.array([[1.0, 1, 0, 0]])}
    posterior = np.array([0.3 * 0.9 * 0.8, 0.7 * 0.1 * 0.3])
    posterior /= posterior.sum()
    found = missing.imputer(model, 4000, 500)(params, KEY, batch)[0]
    expected = [1, 1, posterior @ [0.9, 0.2], posterior @ [0.7, 0.1]]
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / np.sqrt(4000))
    assert missing.imputer(deep_nade.make(shape=(4,)), 1) is not None  # it reads "observed" in `complete`


def test_a_model_that_fills_in_nothing_is_refused():
    with pytest.raises(TypeError, match="draw, log_joint and decode that leaves out"):
        missing.imputer(LINEAR._replace(observed=None), 5)
    with pytest.raises(ValueError, match="at least one draw"):
        missing.imputer(LINEAR, 0)


def split_of(n, seed):
    x = np.random.default_rng(seed).integers(17, size=(n, 6)).astype(np.uint8)
    return {"x": x, "label": np.zeros(n, np.int32)}


@pytest.mark.slow
def test_errors_are_those_of_hidden_values_alone():
    """Against a loop over examples; in batches with padding."""
    info, k = Info("grey", (6,), "levels", 17, range=(0.0, 16.0)), 3
    of_train = transforms.make(("dequantize",), info, missing=0.5)
    of_test = transforms.of_split(of_train, "test")
    train, test = split_of(50, 0), split_of(9, 1)
    model = vae.make(shape=(6,), latent=2, hidden=(4,), output="gaussian")
    given = applied(of_test, test["x"])[0]
    params = model.init(KEY, given)
    evaluate = missing.evaluator(model, info, of_test, k, chunk=2)
    metric = evaluate(params, KEY, pipeline.eval_batches(test, 4))["impute_mse"]
    fill = jax.jit(missing.imputer(model, k))

    def single(i):
        key = jax.random.key(nll.DATA_SEED)
        one = applied(of_test, test["x"][i : i + 1], np.array([i]), key)[0]
        filled = fill(params, jax.random.fold_in(KEY, i), one)[0]
        levels = np.clip(np.floor(np.asarray(filled) * 17), 0, 16)
        return (((levels - test["x"][i]) / 16.0) ** 2)[np.asarray(given["observed"][i]) == 0]

    errors = [single(i) for i in range(9)]
    assert metric["value"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-5)
    assert (metric["n"], metric["k"], metric["kind"], metric["unit"]) == (
        9,
        k,
        "estimate",
        "squared, of values in [0, 1]",
    )
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    both = evaluate(seeds, jnp.stack([KEY, KEY]), pipeline.eval_batches(test, 4))["impute_mse"]
    assert both["per_seed"] == pytest.approx([metric["value"]] * 2, rel=1e-5)

    of_train_x = applied(of_train, train["x"], key=jax.random.key(nll.DATA_SEED))[0]
    seen = np.asarray(of_train_x["observed"])
    means = (seen * np.asarray(of_train_x["x"])).sum(0) / seen.sum(0)  # of the dequantized levels, in [0, 1]
    means = np.floor(17 * means) / 16
    hidden = np.asarray(given["observed"]) == 0
    expected = ((np.broadcast_to(means, hidden.shape) - test["x"] / 16)[hidden] ** 2).mean()
    batches = pipeline.eval_batches(train, 8), pipeline.eval_batches(test, 4)
    assert missing.mean_imputation(info, of_train, of_test, *batches)["value"] == pytest.approx(expected, rel=1e-5)
    # hidden values of the training data are not read
    changed = {**train, "x": np.where(seen == 0, 16 - train["x"], train["x"])}
    batches = pipeline.eval_batches(changed, 8), pipeline.eval_batches(test, 4)
    assert missing.mean_imputation(info, of_train, of_test, *batches)["value"] == pytest.approx(expected, rel=1e-5)


def test_the_mean_of_bits_is_filled_in_as_it_is():
    info = Info("bits", (4,), "binary", 2, range=(0.0, 1.0))
    x = (np.random.default_rng(6).random((4000, 4)) < 0.35).astype(np.uint8)
    transform = transforms.make((), info, missing=0.5)
    batches = pipeline.eval_batches({"x": x[2000:]}, 500), pipeline.eval_batches({"x": x[:2000]}, 500)
    found = missing.mean_imputation(info, transform, transforms.of_split(transform, "test"), *batches)
    assert found["value"] == pytest.approx(0.35 * 0.65, abs=4 * found["stderr"]) and found["stderr"] < 0.005


def test_the_error_of_an_error_is_its_spread():
    rng = np.random.default_rng(4)

    def drawn():
        hidden = rng.integers(1, 20, size=200).astype(float)
        return missing.mean_over_hidden(hidden * rng.gamma(2, size=200), hidden, "1")

    found = [drawn() for _ in range(400)]
    spread = np.std([metric["value"] for metric in found])
    assert np.mean([metric["stderr"] for metric in found]) == pytest.approx(spread, rel=0.15)
    assert np.mean([metric["value"] for metric in found]) == pytest.approx(2, abs=0.05)


def test_data_without_a_range_are_measured_as_the_model_has_them():
    info = Info("real", (4,), "real")
    values, unit = missing.measured(info, transforms.make((), info))
    x = jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(values(x), x)
    assert unit == "squared, of the transformed data"


def test_likelihoods_are_of_what_is_observed_and_have_no_bits_per_dim():
    info = Info("grey", (DIMS,), "levels", 17, range=(0.0, 16.0))
    transform = transforms.of_split(transforms.make(("dequantize",), info, missing=0.5), "test")
    split = {"x": np.random.default_rng(5).integers(17, size=(9, DIMS)).astype(np.uint8)}
    params = linear()[0]
    evaluate = nll.evaluator(nll.scorers(LINEAR, k=4), transform)
    found = evaluate(params, KEY, pipeline.eval_batches(split, 4))
    assert list(found) == ["elbo", "iwae_4", "rate", "distortion"]
    assert found["elbo"]["unit"] == "nats of what is observed"
    hidden = np.asarray(applied(transform, split["x"])[0]["observed"]) == 0
    other = {"x": np.where(hidden, 16 - split["x"], split["x"])}
    assert evaluate(params, KEY, pipeline.eval_batches(other, 4)) == found


def test_a_model_that_would_learn_zeros_is_refused():
    for name in ("made_digits", "deep_nade_digits"):
        run = api.prepare(api.load_config(f"{name}:tiny", {"data.missing": 0.5}))
        with pytest.raises(ValueError, match=r"data\.missing=0\.5 hides dimensions, and model '\w+' reads and scores"):
            api.build(run, api.parallel.make_mesh({"data": 1}, jax.devices()[:1]))
    assert made.make(shape=(4,)).observed is None
    takes = {name for name, make in zoo.MODELS.items() if make(shape=(8, 8, 1)).observed}
    assert takes == {
        *("vae", "layered_vae", "top_down_vae", "sbn", "categorical_vae"),
        *("factor_analysis", "mixture", "hmm"),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_with_missing_data(tmp_path):
    overrides = {
        "data.missing": 0.5,
        "eval.impute": 20,
        "model.latent": 8,
        "model.hidden": (50,),
        "train.duration": "600 steps",
        "optimizer.learning_rate": 5e-3,
        "data.batch": 50,
        "train.per_dispatch": 50,
        "eval.every": "0 steps",
        "checkpoint.every": "0 steps",
        "log.every": "100 steps",
        "eval.batch": 100,
        "eval.examples": 100,
    }
    metrics = api.train(api.load_config("vae_digits:tiny", overrides), tmp_path, quiet=True)["metrics"]
    assert metrics["test/impute_mse"]["value"] < 0.9 * metrics["test/mean_impute_mse"]["value"]
    assert metrics["test/impute_mse"]["n"] == 100 and metrics["test/impute_mse"]["k"] == 20
    assert not any("bits_per_dim" in name for name in metrics)
    # greys besides the data's black and white and the colour of what is missing
    assert len(levels(tmp_path / "samples" / "imputations.png")) > 3
    again = api.evaluate(tmp_path, "valid", {"eval.impute": 3})
    assert again["impute_mse"]["k"] == 3 and "mean_impute_mse" in again
    with pytest.raises(ValueError, match=r"eval\.impute=3 fills in what is missing, and nothing is"):
        api.train(api.load_config("vae_digits:tiny", {"eval.impute": 3}), tmp_path / "whole", quiet=True)
    with pytest.raises(ValueError, match="takes whole data of one shape"):
        api.train(
            api.load_config("vae_digits:tiny", {"eval.ood": "digits", "data.missing": 0.5}),
            tmp_path / "outside",
            quiet=True,
        )
