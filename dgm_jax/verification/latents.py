"""Discrete latents that are few enough to be listed: what an objective for q can be held against.

Some estimators follow no gradient of their value in the parameters of q: wake-sleep lowers KL(p(z | x) | q(z | x)),
whose gradient needs p(z | x). Summed over all z it is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.types import Array, Batch, Model, Params, PyTree
from dgm_jax.verification.space import NotApplicable, Space, is_enumerable, labelled, needs, states

MAX_VALUES = 256
DRAWS, ROUNDS = 64, 64  # of every example of a batch, so many times, until nothing is missing


def listed(model: Model, params: Params, batch: Batch) -> PyTree:
    """All values of z for an example, [S, ...]: those that draws give, when their probabilities sum to one.

    Raises:
        NotApplicable: the model's q is not there, or of too many values.
    """
    needs(model, "draw", "log_joint", "log_posterior")
    draw = jax.jit(jax.vmap(lambda key: model.draw(params, key, batch)[0]))
    found = np.zeros((0, 0))
    for i in range(ROUNDS):
        z = draw(jax.random.split(jax.random.key(i), DRAWS))
        leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), z))
        rows = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
        found = np.unique(rows if not found.size else np.concatenate([found, rows]), axis=0)
        if len(found) > MAX_VALUES:
            break
        ends = np.cumsum([leaf[0].size for leaf in leaves])[:-1]
        parts = [
            jnp.asarray(part.reshape(-1, *leaf.shape[1:]), leaf.dtype)
            for part, leaf in zip(np.split(found, ends, axis=1), leaves, strict=True)
        ]
        values = jax.tree.unflatten(tree, parts)
        total = jnp.exp(log_posteriors(model, params, values, batch)).sum(0)
        if bool(jnp.all(jnp.abs(total - 1) < 1e-9)):
            return values
    raise NotApplicable("the latents cannot be listed")


def log_posteriors(model: Model, params: Params, values: PyTree, batch: Batch) -> Array:
    """log q(z | x) of every value of `listed`, [S, B]."""
    assert model.log_posterior is not None
    return _over(model.log_posterior, params, values, batch)


def log_joints(model: Model, params: Params, values: PyTree, batch: Batch) -> Array:
    """log p(x, z) of every value of `listed`, [S, B]."""
    assert model.log_joint is not None
    return _over(model.log_joint, params, values, batch)


def divergences(
    model: Model, space: Space, params: Params, held: Params, values: PyTree, batch: Batch
) -> dict[str, Array]:
    """Divergences between the p(z | x) of `held` and the q(z | x) of `params`, each [], up to what q has no part in.

    "inclusive", KL(p | q), and "exclusive", KL(q | p), on average over the batch; and, where events can be listed,
    "dreamt", KL(p | q) over the events of the model.
    """

    def both(batch: Batch) -> tuple[Array, Array]:
        log_p = log_joints(model, held, values, batch)
        return log_p, log_posteriors(model, params, values, batch)

    log_p, log_q = both(batch)
    found = {
        "inclusive": -jnp.sum(jax.nn.softmax(log_p, axis=0) * log_q, axis=0).mean(),
        "exclusive": jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=0).mean(),
    }
    if is_enumerable(space):
        log_p, log_q = both(labelled(space, states(space)))
        found["dreamt"] = -jnp.sum(jnp.exp(log_p) * log_q)
    return found


def _over(f: Callable[..., Array], params: Params, values: PyTree, batch: Batch) -> Array:
    size = batch["x"].shape[0]

    def one(z: PyTree) -> Array:
        return f(params, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (size, *leaf.shape)), z), batch)

    return jax.vmap(one)(values)
