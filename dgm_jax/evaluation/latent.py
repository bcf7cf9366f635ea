"""Active units: how many latents the model uses (Burda et al. 2016, arXiv 1509.00519, section 5.2).

A unit is active where its posterior mean depends on x: Var_x(E_q[z | x]) > 0.01. That mean is what `encode` gives of
a posterior whose latents are independent and normal. Elsewhere it stands for it: of latents in layers, each one's mean
where those before it are at theirs; of a flow, where the mean of its base comes to lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from dgm_jax.data import transforms
from dgm_jax.evaluation.nll import DATA_SEED, Metric, gather, joined_seeds
from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree

ACTIVE = 0.01  # variance over examples


def evaluator(
    model: Model,
    transform: transforms.Transform,
    vectorize: bool = True,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
) -> Callable[[Params, Key, Iterable[Batch]], dict[str, Metric]]:
    """Compile the count of active units; arguments and result as those of `nll.evaluator`.

    It counts where `encode` gives real codes of the latents' shapes, of a model that knows its log_posterior. Elsewhere
    the result has no metrics.
    """
    tabulate = code_tables(model._replace(encode=_latent_codes(model)), transform, vectorize, place, whole)

    def evaluate(params: Params, key: Key, batches: Iterable[Batch]) -> dict[str, Metric]:
        table = tabulate(params, key, batches)
        if table is None:
            return {}
        return joined_seeds([{"active_units": active_units(one)} for one in (table if key.ndim else table[None])])

    return evaluate


def code_tables(
    model: Model,
    transform: transforms.Transform,
    vectorize: bool = True,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
) -> Callable[[Params, Key, Iterable[Batch]], np.ndarray | None]:
    """Compile the codes of examples, where `encode` gives real ones; arguments as those of `nll.evaluator`.

    Returns:
        (params, key, batches) -> codes [n, units], over seeds [N, n, units], without the draws of a random `encode`;
        or None.
    """

    def codes(params: Params, key: Key, batch: Batch) -> list[Array]:
        leaves = jax.tree.leaves(flat_codes(model, transform)(params, key, batch))
        return leaves if all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves) else []

    gathered = gather(codes, vectorize, place, whole)

    def tabulate(params: Params, key: Key, batches: Iterable[Batch]) -> np.ndarray | None:
        leaves = gathered(params, key, batches) if model.encode is not None else []
        return np.concatenate(leaves, axis=-1) if leaves else None

    return tabulate


def flat_codes(model: Model, transform: transforms.Transform) -> Callable[[Params, Key, Batch], PyTree]:
    """(params, key, batch in the data's units) -> what `encode` gives, every leaf [B, units]."""

    def codes(params: Params, key: Key, batch: Batch) -> PyTree:
        assert model.encode is not None
        batch, _ = transforms.apply(transform, jax.random.key(DATA_SEED), batch)
        return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), model.encode(params, None, batch))

    return codes


def active_units(means: np.ndarray) -> Metric:
    """Count the active ones of codes [n, units], of n > 1 examples.

    The standard error is that of a count of independent units, each on its side of the threshold with the
    probability that the standard error of its variance leaves it.
    """
    n, units = means.shape
    square = (means - means.mean(0)) ** 2
    variance = square.sum(0) / (n - 1)
    error = square.std(0, ddof=1) / np.sqrt(n)
    chance = stats.norm.cdf((variance - ACTIVE) / np.maximum(error, np.finfo(float).tiny))
    value, stderr = float((variance > ACTIVE).sum()), float(np.sqrt((chance * (1 - chance)).sum()))
    return {"value": value, "stderr": stderr, "n": n, "kind": "estimate", "unit": f"of {units} units"}


def _latent_codes(model: Model) -> Callable[[Params, Key | None, Batch], PyTree] | None:
    """`encode`, with nothing where it gives something else than latents."""
    encode, draw = model.encode, model.draw
    if encode is None or draw is None or model.log_posterior is None:
        return None

    def mean(params: Params, key: Key | None, batch: Batch) -> PyTree:
        codes, (z, _) = encode(params, key, batch), jax.eval_shape(draw, params, jax.random.key(0), batch)
        return codes if jax.tree.map(jnp.shape, codes) == jax.tree.map(jnp.shape, z) else ()

    return mean
