"""Scores of strangeness, and the area under their curve against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dgm_jax import api
from dgm_jax.data import pipeline, transforms
from dgm_jax.data.dataset import Info
from dgm_jax.distributions import standard_normal_log_prob
from dgm_jax.evaluation import nll
from dgm_jax.models.adversarial import gan
from dgm_jax.models.autoregressive import made
from dgm_jax.models.flows import realnvp
from dgm_jax.models.latent import factor_analysis
from dgm_jax.numerics import sum_event
from dgm_jax.tasks import anomaly

KEY = jax.random.key(0)


def test_auroc_is_scikit_learns():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(6, size=300), rng.integers(8, size=200)  # with ties
    found = anomaly.auroc(inside, outside)
    labels = np.repeat([0, 1], [300, 200])
    np.testing.assert_allclose(found["value"], roc_auc_score(labels, np.concatenate([inside, outside])), atol=1e-12)
    assert found["kind"] == "estimate" and found["n"] == 500


@pytest.mark.parametrize("width", [1.0, 0.2])  # scores of smooth images lie closer together than those of the data
def test_its_standard_error_is_the_spread_over_samples(width):
    rng = np.random.default_rng(1)
    found = [anomaly.auroc(rng.normal(size=60), rng.normal(0.5, width, size=40)) for _ in range(1000)]
    spread = np.std([metric["value"] for metric in found])
    np.testing.assert_allclose(np.mean([metric["stderr"] for metric in found]), spread, rtol=0.1)


def test_scores():
    costs = np.array([[[0.1, 0.1], [0.1, 5.0]], [[2.0, 2.0], [2.0, 2.0]]])
    x = np.array([[[0, 0], [0, 1]], [[0, 1], [1, 0]]])
    predicted = np.array([[[0, 0], [0, 0.5]], [[0.5, 0.5], [0, 0]]])
    parts = anomaly.Parts(np.array([5.3, 8.0]), x, predicted, costs, np.array([3.0, 1.0]))
    found = anomaly.scored(parts, 7.0)
    assert found.keys() == anomaly.SCORES.keys()
    np.testing.assert_allclose(found["nll"], [5.3, 8.0])
    np.testing.assert_allclose(found["typicality"], [1.7, 1.0])
    np.testing.assert_allclose(found["residual"], [1 / 16, 6 / 16])
    np.testing.assert_allclose(found["surprise"], [5.0, 2.0])  # one of four parts
    np.testing.assert_allclose(found["complexity"], [2.3, 7.0])


def test_a_score_is_left_out_where_the_model_does_not_say_enough():
    parts = anomaly.Parts(np.zeros(2), np.zeros((2, 3)))
    assert list(anomaly.scored(parts, 0.0)) == ["nll", "typicality"]
    assert list(anomaly.scored(parts._replace(predicted=parts.x), 0.0)) == ["nll", "typicality", "residual"]


def test_what_is_simple_is_packed_shorter():
    rng = np.random.default_rng(0)
    levels = np.stack([np.zeros(400), rng.integers(2, size=400), rng.integers(256, size=400)])
    lengths = anomaly.packed(levels, 256)
    assert (np.diff(lengths) > 0).all()
    assert 400 * 8 * np.log(2) < lengths[2] < 420 * 8 * np.log(2)  # noise is not packed at all
    assert 400 * np.log(2) < lengths[1] < 500 * 8 * np.log(2) / 4


INFO = Info("grey", (3,), "levels", 17, range=(0.0, 16.0))
SPLIT = {"x": np.random.default_rng(2).integers(17, size=(7, 3)).astype(np.uint8)}


def parts_of(model, info, specs, params, k=1):
    read = anomaly.reader(model, info, transforms.make(specs, info), k, chunk=64)
    return read(params, KEY, pipeline.eval_batches(SPLIT, 4))


def test_the_likelihood_is_in_the_units_of_the_data():
    """A model of conditionals; its own functions and scipy's."""
    model = made.make(shape=(3,), hidden=(5,), output="gaussian", components=1)
    batch, _ = transforms.apply(
        transforms.make(("dequantize",), INFO),
        jax.random.key(nll.DATA_SEED),
        {"x": SPLIT["x"], "index": np.arange(7)},
    )
    params = model.init(KEY, batch)
    parts = parts_of(model, INFO, ("dequantize",), params)
    np.testing.assert_allclose(parts.cost, -model.log_conditionals(params, None, batch), rtol=1e-4)
    np.testing.assert_allclose(parts.nll, parts.cost.sum(1) + 3 * np.log(17), rtol=1e-4)
    np.testing.assert_allclose(parts.predicted, model.predict(params, None, batch), rtol=1e-4)
    np.testing.assert_allclose(parts.x, batch["x"])
    np.testing.assert_array_equal(parts.length, anomaly.packed(SPLIT["x"], 17))  # of the levels, not of their noise


def test_a_flow_has_no_residual():
    """Its codes give x back, up to rounding."""
    model = realnvp.make(shape=(2,), net="mlp", width=4, depth=1, couplings=2)
    split = {"x": np.random.default_rng(3).normal(size=(6, 2)).astype(np.float32)}
    info = Info("real", (2,), "real")
    params = jax.jit(model.init)(KEY, {"x": jnp.asarray(split["x"])})
    read = anomaly.reader(model, info, transforms.make((), info), 1)
    parts = read(params, KEY, pipeline.eval_batches(split, 4))
    assert parts.predicted is None and np.isfinite(parts.nll).all()


def test_of_a_bound_the_likelihood_is_near_it_and_the_residual_is_that_of_the_reconstruction():
    """Factor analysis without its likelihood, with a posterior that is too wide: a bound that k draws tighten."""
    info = Info("real", (3,), "real")
    exact = factor_analysis.make(shape=(3,), latent=2)
    rng = np.random.default_rng(1)
    params = {
        "loadings": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
        "mean": jnp.ones(3),
        "log_scale": jnp.ones(3),
    }

    def wide(params, key, batch):
        z = exact.encode(params, None, batch) + 2 * jax.random.normal(key, (len(batch["x"]), 2))
        mean = exact.encode(params, None, batch)
        return z, sum_event(standard_normal_log_prob((z - mean) / 2)) - 2 * jnp.log(2.0)

    bound = exact._replace(log_prob=None, expect=None, draw=wide)
    truth = parts_of(exact, info, (), params)
    loose, tight = (parts_of(bound, info, (), params, k) for k in (1, 4000))
    np.testing.assert_allclose(tight.nll, truth.nll, atol=0.1)
    assert np.abs(loose.nll - truth.nll).mean() > 0.3
    x = {"x": jnp.asarray(SPLIT["x"], jnp.float32)}
    np.testing.assert_allclose(tight.predicted, exact.decode(params, None, exact.encode(params, None, x)), rtol=1e-4)
    assert tight.cost is None and tight.length is None
    blind = parts_of(bound._replace(encode=None), info, (), params, 2)
    assert blind.predicted is None


def test_a_model_that_gives_no_likelihood_is_refused():
    with pytest.raises(TypeError, match="a likelihood or a bound on it; this one has: init, sample"):
        anomaly.reader(gan.make(shape=(8, 8, 1))._replace(critic=None), INFO, transforms.make((), INFO), 1)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["fvsbn", "vae"])
def test_a_run_tells_other_data_apart(name, tmp_path):
    x = np.zeros((40, 8, 8, 1), np.uint8)
    x[:, ::2] = 1  # stripes one way are the data, the other way they are not
    np.savez(tmp_path / "rows.npz", train=x, test=x)
    np.savez(tmp_path / "columns.npz", train=x.swapaxes(1, 2), test=x.swapaxes(1, 2))
    overrides = {
        "data.name": "npz:rows.npz",
        "data.dir": str(tmp_path),
        "data.transforms": (),
        "eval.ood": "npz:columns.npz",
        "eval.samples": 0,
        "train.duration": "60 steps",
        "optimizer.learning_rate": 0.03,
        "seeds": 2,
    }
    config = api.load_config(f"{name}_digits:tiny", overrides)
    metrics = api.train(config, tmp_path / "run", quiet=True)["metrics"]
    found = {key.removeprefix("test/auroc_") for key in metrics if key.startswith("test/auroc_")}
    assert found == anomaly.SCORES.keys() - ({"surprise"} if name == "vae" else set())
    for score in found - {"complexity", "typicality"}:
        assert metrics[f"test/auroc_{score}"]["per_seed"] == [1.0, 1.0]
    np.savez(tmp_path / "bright.npz", train=255 * x, test=255 * x)  # levels of another unit
    for i, other in enumerate(("synthetic:mixture", "npz:bright.npz")):
        overrides = {"eval.ood": other, "data.dir": str(tmp_path)}
        with pytest.raises(ValueError, match="takes whole data of one shape, kind and number of levels"):
            api.train(api.load_config("vae_digits:tiny", overrides), tmp_path / f"other_{i}", quiet=True)
