"""How much of a codebook is used."""

import math

import jax
import numpy as np
import pytest

from dgm_jax.data import pipeline, transforms
from dgm_jax.data.dataset import Info
from dgm_jax.evaluation import codebook
from dgm_jax.models.latent import vqvae

KEY = jax.random.key(0)


def test_use_and_perplexity_of_known_codes():
    found = codebook.codebook_use(np.array([[0, 1], [1, 2], [1, 1]]), 8)
    assert found["codes_used"]["value"] == 3 / 8 and found["codes_used"]["n"] == 3
    entropy = -(1 / 6 * math.log(1 / 6) * 2 + 4 / 6 * math.log(4 / 6))
    assert found["perplexity"]["value"] == pytest.approx(math.exp(entropy))
    even = codebook.codebook_use(np.arange(64).reshape(4, 16) % 16, 16)
    assert even["codes_used"]["value"] == 1 and even["perplexity"]["value"] == pytest.approx(16)


def test_the_jackknife_is_that_of_leaving_examples_out():
    codes = np.random.default_rng(0).geometric(0.3, (7, 3)) % 8
    for name, metric in codebook.codebook_use(codes, 8).items():
        values = [codebook.codebook_use(np.delete(codes, i, axis=0), 8)[name]["value"] for i in range(7)]
        assert metric["stderr"] == pytest.approx(math.sqrt(6 / 7 * np.sum((values - np.mean(values)) ** 2)))


@pytest.mark.slow
def test_an_evaluation_counts_what_encode_gives_at_any_number_of_seeds():
    model = vqvae.make(shape=(8, 8, 1), scales=(2, 2), codes=4, latent=2, width=4, blocks=1, levels=17)
    x = np.random.default_rng(0).integers(0, 17, (6, 8, 8, 1)).astype(np.uint8)
    as_is = transforms.make((), Info("toy", (8, 8, 1), "levels", levels=17, range=(0.0, 16.0)))
    batch = transforms.apply(as_is, None, {"x": x, "index": np.arange(6)})[0]
    params = jax.jit(model.init)(KEY, batch)
    found = codebook.evaluator(model, as_is)(params, KEY, pipeline.eval_batches({"x": x}, 4))
    assert set(found) == {f"{name}_{level}" for name in ("codes_used", "perplexity") for level in ("top", "bottom")}
    codes = np.asarray(jax.jit(model.encode)(params, None, batch)["bottom"])
    assert found["codes_used_bottom"]["value"] == len(np.unique(codes)) / 4

    seeds = jax.jit(jax.vmap(model.init, (0, None)))(jax.random.split(KEY), batch)
    joined = codebook.evaluator(model, as_is)(seeds, jax.random.split(KEY), pipeline.eval_batches({"x": x}, 6))
    assert len(joined["perplexity_top"]["per_seed"]) == 2
    assert codebook.evaluator(model, as_is)({"net": 0}, KEY, []) == {}
