"""Scores of samples, for models that have no likelihood. None of them is one."""

from __future__ import annotations

from typing import SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA

from dgm_jax.data.pipeline import spread
from dgm_jax.evaluation.frechet import frechet
from dgm_jax.evaluation.jackknife import jackknife
from dgm_jax.evaluation.neighbours import precision_recall
from dgm_jax.evaluation.nll import Metric
from dgm_jax.evaluation.two_sample import TwoSample, energy_distance, mmd
from dgm_jax.types import Array, Key

LEAST = 20  # of which a jackknife takes groups


def sample_scores(
    key: Key,
    samples: np.ndarray,
    reference: np.ndarray,
    components: int = 32,
    limit: int = 2000,
) -> dict[str, Metric]:
    """Compare samples with data that the model was not trained on.

    Args:
        key: of the permutations.
        samples: [m, *event], in the units of the data.
        reference: [n, *event], the split that is reported.
        components: of the features of the Frechet distance: the reference's first principal components.
        limit: examples of each kind that the kernel statistics and neighbours take, whose cost is quadratic: the first
            samples, and of the reference some from all over, since neighbours in it may be alike.

    Returns:
        Estimates by name. "mmd" and "energy_distance" also have the "p_value" of equality.

    Raises:
        ValueError: fewer than 20 samples or examples.
    """
    if min(len(samples), len(reference)) < LEAST:
        raise ValueError(
            f"{len(samples)} samples (eval.metric_samples) beside {len(reference)} examples: errors of their scores "
            f"take at least {LEAST} of each"
        )
    flat, real = (np.asarray(x, np.float32).reshape(len(x), -1) for x in (samples, reference))
    few, few_real = jnp.asarray(flat[:limit]), jnp.asarray(spread({"x": real}, limit)["x"])
    pca = PCA(min(components, *real.shape), random_state=0).fit(real)
    found = _precision_recall(few, few_real)
    errors = jackknife(_precision_recall, few, few_real)  # of neighbours it is too high, where theirs alone is too low
    return {
        "mmd": _two_sample(mmd(jax.random.fold_in(key, 0), few, few_real), "1", len(few)),
        "energy_distance": _two_sample(
            energy_distance(jax.random.fold_in(key, 1), few, few_real), "data units", len(few)
        ),
        f"frechet_pca_{pca.n_components_}": _estimate(
            *frechet(pca.transform(flat), pca.transform(real)), "squared data units", len(flat)
        ),
        "precision": _estimate(found[0], errors[0], "1", len(few)),
        "recall": _estimate(found[1], errors[1], "1", len(few_real)),
    }


def _precision_recall(samples: Array, reference: Array) -> np.ndarray:
    return np.array([np.mean(found) for found in precision_recall(samples, reference)])


def _two_sample(result: TwoSample, unit: str, n: int) -> Metric:
    return _estimate(result.value, result.stderr, unit, n) | {"p_value": float(result.p_value)}


def _estimate(value: SupportsFloat, stderr: SupportsFloat, unit: str, n: int) -> Metric:
    return {"value": float(value), "stderr": float(stderr), "n": n, "kind": "estimate", "unit": unit}
