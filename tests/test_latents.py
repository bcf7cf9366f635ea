"""What an evaluation says of latents: rate and distortion, active units, annealed bounds, and walks between codes."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logs import levels

from dgm_jax import api, pictures
from dgm_jax.data import pipeline, transforms
from dgm_jax.data.dataset import Info
from dgm_jax.evaluation import annealed, latent, nll
from dgm_jax.inference.marginal import Annealing
from dgm_jax.models.latent import factor_analysis

KEY = jax.random.key(0)
DIMS, LATENT = 4, 3
MODEL = factor_analysis.make(shape=(DIMS,), latent=LATENT, noise="isotropic")
X = np.random.default_rng(0).normal(size=(40, DIMS)).astype(np.float32) * 3
STANDARD = transforms.make(("standardize",), Info("toy", (DIMS,), "real"), X)
LOADINGS = np.zeros((LATENT, DIMS), np.float32)
LOADINGS[0], LOADINGS[1, 0] = [1.0, 0.5, -0.5, 1.0], 1.0  # the last factor is not used
PARAMS = {"loadings": jnp.asarray(LOADINGS), "mean": jnp.zeros(DIMS), "log_scale": jnp.asarray(-0.5)}


def batches(size=16):
    return pipeline.eval_batches({"x": X}, size)


@pytest.mark.slow
def test_rate_and_distortion_are_the_parts_of_the_elbo():
    scored = nll.per_example(nll.scorers(MODEL, k=3), STANDARD)(PARAMS, KEY, batches())
    assert list(scored) == ["nll", "elbo", "iwae_3", "rate", "distortion"]
    np.testing.assert_allclose(scored["rate"].values + scored["distortion"].values, scored["elbo"].values, rtol=1e-4)
    # the exact KL of normal densities, and the exact posterior's ELBO
    z = (X - X.mean(0)) / X.std(0)
    precision = np.eye(LATENT) + LOADINGS @ LOADINGS.T * math.e
    mean = z @ LOADINGS.T * math.e @ np.linalg.inv(precision)
    kl = 0.5 * ((mean**2).sum(1) + np.trace(np.linalg.inv(precision)) - LATENT + np.linalg.slogdet(precision)[1])
    many = {"x": np.tile(X, (100, 1))}
    rate = nll.evaluator(nll.scorers(MODEL), STANDARD)(PARAMS, KEY, pipeline.eval_batches(many, 4000))["rate"]
    assert rate["value"] == pytest.approx(kl.mean(), abs=4 * rate["stderr"]) and rate["stderr"] < 0.05
    assert rate["kind"] == "estimate" and rate["unit"] == "nats"


def test_bits_per_dim_are_of_x_alone():
    levels = transforms.make(("dequantize",), Info("toy", (DIMS,), "levels", levels=4, range=(0.0, 3.0)))
    split = {"x": np.random.default_rng(0).integers(0, 4, (9, DIMS)).astype(np.uint8)}
    found = nll.evaluator(nll.scorers(MODEL), levels)(PARAMS, KEY, pipeline.eval_batches(split, 9))
    assert "distortion_bits_per_dim" in found and "rate_bits_per_dim" not in found
    parts = found["rate"]["value"] / (DIMS * math.log(2)) + found["distortion_bits_per_dim"]["value"]
    assert parts == pytest.approx(found["elbo_bits_per_dim"]["value"], rel=1e-4)


def test_active_units_are_those_whose_posterior_mean_moves():
    metric = latent.evaluator(MODEL, STANDARD)(PARAMS, KEY, batches())["active_units"]
    assert (metric["value"], metric["n"], metric["unit"]) == (2, 40, "of 3 units")
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), PARAMS)
    joined = latent.evaluator(MODEL, STANDARD)(seeds, jax.random.split(KEY), batches())["active_units"]
    assert joined["per_seed"] == [2, 0]
    for missing in ({"encode": None}, {"log_posterior": None}, {"encode": lambda params, key, batch: batch["x"]}):
        assert latent.evaluator(MODEL._replace(**missing), STANDARD)(PARAMS, KEY, batches()) == {}


def test_the_error_of_a_count_is_that_of_units_near_the_threshold():
    rng = np.random.default_rng(1)
    scales = np.array([1.0, math.sqrt(latent.ACTIVE), 0.01])
    counts = [latent.active_units(scales * rng.normal(size=(200, 3))) for _ in range(300)]
    assert np.std([count["value"] for count in counts]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([count["stderr"] for count in counts]) == pytest.approx(0.5, abs=0.15)
    assert latent.active_units(rng.normal(size=(200, 3)))["stderr"] == 0


@pytest.mark.slow
def test_annealed_metrics_say_what_they_are():
    run = annealed.evaluator(MODEL, Annealing(6, 4, 3, 4), "prior", STANDARD, simulated=5)
    exact = nll.evaluator(nll.scorers(MODEL), STANDARD)(PARAMS, KEY, batches(40))["nll"]["value"]
    found = run(PARAMS, KEY, batches(40))
    assert list(found) == ["ais_6", "ais_6_gap"]
    assert found["ais_6"]["kind"] == "bound" and found["ais_6"]["k"] == 4 and found["ais_6"]["n"] == 40
    assert exact - 0.1 < found["ais_6"]["value"] < exact + 1
    assert found["ais_6_gap"]["n"] == 5 and found["ais_6_gap"]["value"] > 0


@pytest.mark.slow
def test_annealing_is_held_against_another_bound_on_the_same_examples():
    bound = "iwae_3", nll.scorers(MODEL, k=3)["iwae_3"]
    run = annealed.evaluator(MODEL, Annealing(6, 4, 3, 4), "prior", STANDARD, bound=bound)
    found = run(PARAMS, KEY, batches(40))
    assert list(found) == ["ais_6", "ais_6_iwae_3", "ais_6_gain"] and found["ais_6_iwae_3"]["k"] == 3
    gain = found["ais_6_iwae_3"]["value"] - found["ais_6"]["value"]
    assert found["ais_6_gain"]["value"] == pytest.approx(gain, abs=1e-4) and found["ais_6_gain"]["kind"] == "estimate"
    # examples differ by far more than the two bounds of one
    assert found["ais_6_gain"]["stderr"] < found["ais_6"]["stderr"]


def test_annealing_asks_for_what_it_needs():
    with pytest.raises(ValueError, match="unknown start 'middle'"):
        annealed.paths(MODEL, "middle")
    with pytest.raises(TypeError, match="from the posterior needs the capability 'log_posterior'"):
        annealed.paths(MODEL._replace(log_posterior=None))
    with pytest.raises(TypeError, match="'dream'"):
        annealed.evaluator(MODEL._replace(dream=None), Annealing(), "prior", STANDARD, simulated=1)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_can_be_annealed_and_draws_its_walks(tmp_path):
    result = api.train(api.load_config("vae_digits:tiny"), tmp_path, quiet=True)
    assert {"test/rate", "test/distortion", "test/active_units"} <= result["metrics"].keys()
    for name in ("interpolations", "traversals"):
        assert len(levels(tmp_path / "samples" / f"{name}.png")) > 1
    few = {"eval.ais": 3, "eval.ais_chains": 2, "eval.ais_examples": 5, "eval.ais_leapfrog": 2, "eval.bdmc": 2}
    found = api.evaluate(tmp_path, "valid", few)
    assert found["ais_3"]["n"] == 5 and found["ais_3_gap"]["n"] == 2 and found["elbo"]["n"] == 20
    assert found["ais_3_gain"]["n"] == 5
    assert math.isfinite(found["ais_3"]["value"])
    json.dumps(found)
    with pytest.raises(TypeError, match="needs the capability 'draw'"):
        api.train(api.load_config("mixture_digits:tiny", {"eval.ais": 3}), tmp_path / "other", quiet=True)


def test_walks_go_from_code_to_code_and_along_one_coordinate():
    x = jnp.asarray(X[:6])
    found = pictures.walks(MODEL)(PARAMS, KEY, {"x": x})
    steps = pictures.STEPS
    lines = np.asarray(found["interpolations"]).reshape(3, steps, DIMS)
    decoded = np.asarray(MODEL.decode(PARAMS, None, MODEL.encode(PARAMS, None, {"x": x})))
    np.testing.assert_allclose(lines[:, 0], decoded[:3], atol=1e-5)
    np.testing.assert_allclose(lines[:, -1], decoded[3:], atol=1e-5)
    np.testing.assert_allclose(lines[:, steps // 2], (decoded[:3] + decoded[3:]) / 2, atol=1e-5)
    along = np.asarray(found["traversals"]).reshape(LATENT, steps, DIMS)
    # a coordinate moves the image along its loadings; the one that is not used comes last, and moves nothing
    assert (np.abs(along[-1] - along[-1, :1]) < 1e-6).all()
    for row in along[:2]:
        direction = row[-1] - row[0]
        cosines = LOADINGS[:2] @ direction / np.linalg.norm(LOADINGS[:2], axis=1) / np.linalg.norm(direction)
        assert np.abs(cosines).max() > 0.999


def test_codes_without_a_prior_of_their_form_are_not_walked_between():
    batch = {"x": jnp.asarray(X[:6])}
    assert pictures.has_code_space(MODEL, PARAMS, batch)
    whole = MODEL._replace(encode=lambda params, key, batch: jnp.zeros((len(batch["x"]), LATENT), int))
    other = MODEL._replace(encode=lambda params, key, batch: batch["x"])
    for model in (whole, other, MODEL._replace(prior=None)):
        assert not pictures.has_code_space(model, PARAMS, batch)
