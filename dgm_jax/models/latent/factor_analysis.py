"""Factor analysis and probabilistic PCA: a linear Gaussian model, in which all is exact.

    p(z) = N(0, I)        p(x | z) = N(W^T z + mu, Psi),   Psi = diag(psi), or psi I: probabilistic PCA
    p(x) = N(mu, W^T W + Psi)
    p(z | x) = N(m, M^-1),   M = I + W Psi^-1 W^T,   m = M^-1 W Psi^-1 (x - mu)

M is K x K, one for each example where pixels are missing: no D x D matrix is built. The likelihood is
log p(x) = log p(x, z) - log p(z | x), which holds at any z; at z = m both sides are sums of squares, which do not
cancel as they do in Woodbury's identity.

EM: with z~ = (z, 1) and W~ = (W, mu - c) a regression of x - c on z~, from E[z~ z~^T | x] and E[(x - c) z~^T | x].
The noise is a difference of sums of squares, which float32 loses where they are large beside it: hence the centre c,
the mean of the first batch.

References: Rubin & Thayer 1982, EM algorithms for ML factor analysis; Tipping & Bishop 1999, Probabilistic
principal component analysis; Ghahramani & Hinton 1996, The EM algorithm for mixtures of factor analyzers.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from dgm_jax.distributions import normal_log_prob, normal_sample, standard_normal_log_prob
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree

NOISES = ("diagonal", "isotropic")
MIN_SCALE = 1e-3  # of the noise: the likelihood of a constant pixel has no upper bound
EXACT = jax.lax.Precision.HIGHEST  # accelerators round factors by default: nats, in a sum over pixels


def make(*, shape: tuple[int, ...], latent: int = 20, noise: str = "diagonal") -> Model:
    """A linear Gaussian model; its params are {"loadings" W [K, D], "mean" mu [D], "log_scale" [D] or [],
    "buffers": {"centre" c [D]}}.

    Where the batch has "observed", all but dream, sample and decode leave out the other pixels.

    Args:
        shape: of an event of D real numbers.
        latent: K, the number of factors.
        noise: "diagonal" (factor analysis), or "isotropic" (probabilistic PCA).

    Returns:
        init, log_prob, draw (the exact posterior), log_joint, log_prior, log_posterior, dream, expect, maximize,
        sample, complete, prior, encode (m, [B, K]), decode. Temperature multiplies the standard deviation of z.

    Raises:
        ValueError: an unknown noise.
    """
    if noise not in NOISES:
        raise ValueError(f"unknown noise {noise!r}; one of {', '.join(NOISES)}")
    dims = math.prod(shape)

    def pixels(batch: Batch) -> tuple[Array, Array | None]:
        """x [B, D], and 1 where it is observed; None for everywhere. What is neither observed nor data is 0."""
        x = batch["x"].reshape(-1, dims)
        observed = batch["observed"].reshape(-1, dims) != 0 if "observed" in batch else None
        if "mask" in batch:
            x = jnp.where(batch["mask"][:, None] != 0, x, 0)
        return (x, None) if observed is None else (jnp.where(observed, x, 0), observed.astype(x.dtype))

    def scales(params: Params) -> Array:
        return jnp.broadcast_to(jnp.exp(params["log_scale"]), (dims,))

    def posterior(params: Params, batch: Batch) -> tuple[Array, Array]:
        """The mean of p(z | x) [B, K], and the Cholesky factor of its precision [B, K, K]; [1, K, K] for all alike."""
        x, observed = pixels(batch)
        seen = jnp.ones((1, dims), x.dtype) if observed is None else observed
        weights = params["loadings"] / scales(params)[None]
        gram = jnp.einsum("kd,nd,ld->nkl", weights, seen, weights, precision=EXACT)
        factor = jnp.linalg.cholesky(jnp.eye(latent, dtype=x.dtype)[None] + gram)
        centred = seen * (x - params["mean"][None]) / scales(params)[None]
        return solve(factor, solve(factor, jnp.matmul(centred, weights.T, precision=EXACT)), transpose=True), factor

    def log_density(factor: Array, noise: Array) -> Array:
        """log N(z; m, M^-1) at z = m + L^-T noise, with M = L L^T: [B]."""
        return sum_event(standard_normal_log_prob(noise)) + sum_event(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)))

    def init(key: Key, batch: Batch) -> Params:
        x, observed = pixels(batch)
        seen = jnp.ones_like(x) if observed is None else observed
        if "mask" in batch:
            seen = seen * (batch["mask"] != 0)[:, None].astype(x.dtype)
        count = jnp.maximum(seen.sum(0), 1)
        mean = (seen * x).sum(0) / count
        variance = (seen * (x - mean[None]) ** 2).sum(0) / count
        # directions at random, of the size of the data, which half of the variance goes to
        spread = jnp.sqrt(variance / (2 * latent))
        loadings = spread[None] * jax.random.normal(key, (latent, dims), x.dtype)
        return parameters(loadings, mean, variance / 2, mean)

    def parameters(loadings: Array, mean: Array, variance: Array, centre: Array) -> Params:
        return {"loadings": loadings, "mean": mean, "log_scale": log_scale_of(variance), "buffers": {"centre": centre}}

    def log_scale_of(variance: Array) -> Array:
        variance = variance.mean() if noise == "isotropic" else variance
        return 0.5 * jnp.log(jnp.maximum(variance, MIN_SCALE**2))

    def location(params: Params, z: Array) -> Array:
        return jnp.matmul(z, params["loadings"], precision=EXACT) + params["mean"][None]

    def log_prior(params: Params, z: Array, batch: Batch) -> Array:
        return sum_event(standard_normal_log_prob(z))

    def log_joint(params: Params, z: Array, batch: Batch) -> Array:
        x, observed = pixels(batch)
        each = normal_log_prob(x, location(params, z), scales(params)[None])
        return sum_event(each if observed is None else observed * each) + log_prior(params, z, batch)

    def log_posterior(params: Params, z: Array, batch: Batch) -> Array:
        mean, factor = posterior(params, batch)
        return log_density(factor, jnp.einsum("nkl,nk->nl", wide(factor, z), z - mean, precision=EXACT))

    def log_prob(params: Params, key: Key | None, batch: Batch) -> Array:
        mean, factor = posterior(params, batch)
        return log_joint(params, mean, batch) - log_density(factor, jnp.zeros_like(mean))

    def draw(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        mean, factor = posterior(params, batch)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + solve(factor, noise, transpose=True), log_density(factor, noise)

    def expect(params: Params, key: Key, batch: Batch) -> tuple[PyTree, Array]:
        (x, observed), (mean, factor) = pixels(batch), posterior(params, batch)
        counts = (batch["mask"] != 0).astype(x.dtype) if "mask" in batch else jnp.ones_like(x[:, 0])
        extended = jnp.concatenate([mean, jnp.ones_like(mean[:, :1])], axis=1)  # E[z~ | x]
        centre = params["buffers"]["centre"]
        x = x - centre[None]
        root = jax.vmap(lambda one: solve_triangular(one, jnp.eye(latent, dtype=x.dtype), lower=True))(factor)
        covariance = jnp.einsum("nli,nlj->nij", root, root, precision=EXACT)
        covariance = jnp.pad(covariance, ((0, 0), (0, 1), (0, 1)))  # of z~
        if observed is None:
            extra = {"second": counts.sum() * covariance[0], "cross": 0, "square": 0}
        else:  # a missing pixel is latent too: x = W~^T z~ + noise
            both = jnp.concatenate([params["loadings"], (params["mean"] - centre)[None]])
            x = jnp.where(observed != 0, x, jnp.matmul(extended, both, precision=EXACT))
            missing = counts[:, None] * (1 - observed)
            cross = jnp.einsum("nd,nij,jd->id", missing, covariance, both, precision=EXACT)
            square = (both * cross).sum(0) + missing.sum(0) * scales(params) ** 2
            second = jnp.einsum("n,nij->ij", counts, covariance, precision=EXACT)
            extra = {"second": second, "cross": cross, "square": square}
        weighted = counts[:, None] * extended
        statistics = {
            "second": jnp.matmul(weighted.T, extended, precision=EXACT) + extra["second"],  # sum of E[z~ z~^T | x]
            "cross": jnp.matmul(weighted.T, x, precision=EXACT) + extra["cross"],  # of E[z~ (x - c)^T | x]
            "square": jnp.matmul(counts, x**2, precision=EXACT) + extra["square"],
            "centre": counts.sum() * centre,
        }
        return statistics, log_prob(params, key, batch)

    def maximize(statistics: PyTree) -> Params:
        second, cross = statistics["second"], statistics["cross"]
        count = second[-1, -1]
        both, centre = jnp.linalg.solve(second, cross), statistics["centre"] / count  # W~ [K + 1, D]
        variance = (statistics["square"] - (both * cross).sum(0)) / count
        return parameters(both[:-1], centre + both[-1], variance, centre)

    def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return temperature * jax.random.normal(key, (n, latent), params["mean"].dtype)

    def emit(params: Params, key: Key, z: Array) -> Array:
        return normal_sample(key, location(params, z), scales(params)[None]).reshape(-1, *shape)

    def dream(
        params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
    ) -> tuple[Array, Array]:
        z_key, x_key = jax.random.split(key)
        z = prior(params, z_key, n, cond, temperature)
        return z, emit(params, x_key, z)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return dream(params, key, n, cond, temperature)[1]

    def complete(params: Params, key: Key, batch: Batch) -> Array:
        """Draws what is not observed from its exact conditional."""
        z_key, x_key = jax.random.split(key)
        z, _ = draw(params, z_key, batch)
        return jnp.where(batch["observed"] != 0, batch["x"], emit(params, x_key, z))

    def encode(params: Params, key: Key | None, batch: Batch) -> Array:
        return posterior(params, batch)[0]

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        return location(params, codes).reshape(-1, *shape)

    return Model(
        init,
        log_prob=log_prob,
        draw=draw,
        log_joint=log_joint,
        log_prior=log_prior,
        log_posterior=log_posterior,
        dream=dream,
        expect=expect,
        maximize=maximize,
        sample=sample,
        complete=complete,
        prior=prior,
        encode=encode,
        decode=decode,
        support="real",
        observed=True,
    )


def principal_components(x: Array, latent: int) -> Params:
    """The params of greatest likelihood for isotropic noise, in closed form (Tipping & Bishop, eq. 7 and 8).

    Args:
        x: [N, *event].
        latent: K, below the number of dimensions.

    Returns:
        As `make(noise="isotropic")` takes them. W is one of those that rotations of z make of each other.

    Raises:
        ValueError: no dimension is left for the noise.
    """
    x = x.reshape(x.shape[0], -1)
    if latent >= x.shape[1]:
        raise ValueError(f"{latent} factors of {x.shape[1]} dimensions leave none for the noise: take fewer")
    mean = x.mean(0)
    covariance = jnp.matmul((x - mean[None]).T, x - mean[None], precision=EXACT) / x.shape[0]
    values, vectors = jnp.linalg.eigh(covariance)  # ascending
    variance = jnp.maximum(values[:-latent].mean(), MIN_SCALE**2)
    loadings = jnp.sqrt(jnp.maximum(values[-latent:] - variance, 0))[:, None] * vectors[:, -latent:].T
    return {"loadings": loadings, "mean": mean, "log_scale": 0.5 * jnp.log(variance), "buffers": {"centre": mean}}


def solve(factor: Array, right: Array, transpose: bool = False) -> Array:
    """L^-1 b, or L^-T b, of lower triangular L [B or 1, K, K] and b [B, K]."""
    if factor.shape[0] == 1:
        return solve_triangular(factor[0], right.T, lower=True, trans=int(transpose)).T
    return jax.vmap(lambda one, b: solve_triangular(one, b, lower=True, trans=int(transpose)))(factor, right)


def wide(matrices: Array, like: Array) -> Array:
    """One matrix [1, K, K] for all examples of `like` [B, ...], or their own as they are."""
    return jnp.broadcast_to(matrices, (like.shape[0], *matrices.shape[1:]))
