"""Monte Carlo estimators: expectations, their gradients, divergences.

Draw i of n has the key fold_in(key, i). `chunk` draws run at once (None: all n); it bounds the memory of the
work, not of the kept results, and changes nothing else. Standard errors are those of the mean of the n draws.
Functions see one draw, without a batch dimension: samplers and integrands are vmapped here.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dgm_jax.inference.divergences import Divergence
from dgm_jax.numerics import mean_and_stderr
from dgm_jax.types import Array, Key, Params, PyTree


def draws(key: Key, sample: Callable[[Key], PyTree], n: int, chunk: int | None = None) -> PyTree:
    """sample(fold_in(key, i)) for i < n, stacked: leaves [n, ...]."""

    def one(i: Array) -> PyTree:
        return sample(jax.random.fold_in(key, i))

    return jax.lax.map(one, jnp.arange(n), batch_size=min(chunk or n, n))


def expectation(
    key: Key, sample: Callable[[Key], PyTree], f: Callable[[PyTree], PyTree], n: int, chunk: int | None = None
) -> tuple[PyTree, PyTree]:
    """Estimate E[f(x)] with x = sample(key).

    Returns:
        (mean, stderr), each like f(x): a pytree of arrays of any shapes.
    """
    return _moments(draws(key, lambda k: f(sample(k)), n, chunk))


def pathwise_gradient(
    params: Params,
    key: Key,
    sample: Callable[[Params, Key], PyTree],
    f: Callable[[Params, PyTree], Array],
    n: int,
    chunk: int | None = None,
) -> tuple[Params, Params]:
    """Reparametrised estimate of d/dparams E[f(params, x)] with x = sample(params, key) differentiable.

    Args:
        params: a pytree of float arrays.
        key: of all draws.
        sample: (params, key) -> x.
        f: (params, x) -> [].
        n: draws.
        chunk: draws at once.

    Returns:
        (gradient, stderr), each like params. Source: Kingma & Welling 2014, arXiv 1312.6114, section 2.4.
    """
    gradient = jax.grad(lambda p, k: f(p, sample(p, k)))
    return _moments(draws(key, lambda k: gradient(params, k), n, chunk))


def score_gradient(
    params: Params,
    key: Key,
    sample: Callable[[Params, Key], PyTree],
    log_prob: Callable[[Params, PyTree], Array],
    f: Callable[[Params, PyTree], Array],
    n: int,
    baseline: bool = True,
    chunk: int | None = None,
) -> tuple[Params, Params]:
    """Score-function estimate of d/dparams E[f(params, x)], for x discrete too.

    Args:
        params: a pytree of float arrays.
        key: of all draws.
        sample: (params, key) -> x; no gradient flows through it.
        log_prob: (params, x) -> []: the log-probability under which x was drawn.
        f: (params, x) -> [].
        n: draws.
        baseline: subtract from each f the mean of the other n - 1, which leaves the estimate unbiased
            (Mnih & Rezende 2016, arXiv 1602.06725, eq. 7).
        chunk: draws at once.

    Returns:
        (gradient, stderr), each like params. With the baseline the terms are correlated to order 1/n,
        which stderr leaves out.

    Raises:
        ValueError: for a baseline with n < 2.
    """
    if baseline and n < 2:
        raise ValueError(f"a leave-one-out baseline takes n >= 2 draws, not {n}")

    def one(key: Key) -> tuple[Array, Params, Params]:
        x = jax.lax.stop_gradient(sample(params, key))
        value, direct = jax.value_and_grad(f)(params, x)
        return value, jax.grad(log_prob)(params, x), direct

    values, scores, direct = draws(key, one, n, chunk)
    if baseline:
        values = (values - jnp.mean(values)) * (n / (n - 1))  # f_i minus the mean of the others
    weigh = jax.vmap(lambda value, score, rest: jax.tree.map(lambda s, r: value * s + r, score, rest))
    return _moments(weigh(values, scores, direct))


def kl_divergence(
    key: Key,
    log_p: Callable[[PyTree], Array],
    log_q: Callable[[PyTree], Array],
    sample_p: Callable[[Key], PyTree],
    n: int,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """Estimate KL(p | q) from draws of p; the reverse by exchanging p and q.

    Args:
        key: of all draws.
        log_p, log_q: x -> [], both normalised.
        sample_p: key -> x.
        n: draws.
        chunk: draws at once.

    Returns:
        (value, stderr) in nats.
    """
    return expectation(key, sample_p, lambda x: log_p(x) - log_q(x), n, chunk)


def f_divergence(
    key: Key,
    divergence: Divergence,
    log_p: Callable[[PyTree], Array],
    log_q: Callable[[PyTree], Array],
    sample_q: Callable[[Key], PyTree],
    n: int,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """Estimate D_f(P | Q) = E_q[f(p / q)] from draws of q; arguments and result as in kl_divergence."""
    return expectation(key, sample_q, lambda x: divergence.f(jnp.exp(log_p(x) - log_q(x))), n, chunk)


def f_divergence_bound(divergence: Divergence, critic_p: Array, critic_q: Array) -> tuple[Array, Array]:
    """Variational lower bound E_P[g_f(v)] - E_Q[f*(g_f(v))] of D_f(P | Q).

    Args:
        divergence: a row of DIVERGENCES.
        critic_p: [n], the critic's free outputs v on draws of P.
        critic_q: [m], on draws of Q.

    Returns:
        (value, stderr). Source: Nowozin et al. 2016, arXiv 1606.00709, eq. 6.
    """
    mean_p, stderr_p = mean_and_stderr(divergence.activation(critic_p))
    mean_q, stderr_q = mean_and_stderr(divergence.conjugate_activation(critic_q))
    return mean_p - mean_q, jnp.hypot(stderr_p, stderr_q)


def _moments(values: PyTree) -> tuple[PyTree, PyTree]:
    """Mean and standard error over the leading axis of every leaf."""
    pairs = jax.tree.map(mean_and_stderr, values)
    return jax.tree.transpose(jax.tree.structure(values), jax.tree.structure((0, 0)), pairs)
