"""VAEs with several layers of normal latents z_1 (next to x) .. z_L.

    p(x, z) = p(z_L) prod_{l<L} p(z_l | z_{l+1}) p(x | z_1)          p(z_L) = N(0, I)

What infers them is, as IWAE has it, of the bottom upward, or Ladder VAE's, of the top downward as the model itself:

    bottom_up   q(z | x) = q(z_1 | x) prod_l q(z_{l+1} | z_l)
    ladder      q(z | x) = q(z_L | x) prod_l q(z_l | z_{l+1}, x), where the last multiplies, and normalises, the normal
                p(z_l | z_{l+1}) and what deterministic layers over x say of z_l

There is no batch normalization, which the authors of the Ladder VAE found that deep ones need.

References: Burda et al. 2016, arXiv 1509.00519, section 5; Sonderby et al. 2016, arXiv 1602.02282, eq. 16-19.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.distributions import normal_kl, normal_log_prob
from dgm_jax.models import outputs
from dgm_jax.models.condition import beside, vector_of
from dgm_jax.models.latent import likelihoods
from dgm_jax.models.latent.posteriors import Normal, normal_of
from dgm_jax.nets.mlp import MLP, Dense
from dgm_jax.nets.mlp import activation as activation_of
from dgm_jax.nets.precision import Net, mixed
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params

INFERENCE = ("bottom_up", "ladder")
Latents = tuple[Array, ...]  # z_1 .. z_L


class Layers(nn.Module):
    """Hidden layers and a linear one: [B, D] -> (the last hidden layer, [B, features])."""

    hidden: Sequence[int]
    features: int
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """The last hidden layer, and the linear one above it."""
        for width in self.hidden:
            x = activation_of(self.activation)(Dense(width)(x))
        return x, Dense(self.features)(x)


def make(
    *,
    shape: tuple[int, ...],
    latent: Sequence[int] = (100, 50),
    hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
    inference: str = "bottom_up",
    activation: str = "tanh",
    output: str = "bernoulli",
    components: int = 1,
    levels: int = 256,
    classes: int = 0,
    cond_size: int = 0,
    bf16: bool = False,
) -> Model:
    """A VAE with a layer of latents for each entry of `latent`; z and codes are tuples, z_1 first.

    `encode` gives the means of q, each given the means before it; `decode` the mean of p(x | z_1).

    Args:
        shape: of one example.
        latent: sizes of z_1 .. z_L.
        hidden: for each of them, the widths of the layers between it and what lies below, from below.
        inference: "bottom_up" or "ladder".
        activation: of the hidden layers.
        output: distribution of a dimension, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        classes: number of labels in batch["cond"]; 0 for none. Conditions are read beside x, and beside every z.
        cond_size: length of the vectors in batch["cond"]; 0 for none.
        bf16: the nets compute in bfloat16; parameters, latents and likelihoods stay float32.

    Raises:
        ValueError: an unknown inference, or not as many entries of hidden as of latent.
    """
    if inference not in INFERENCE:
        raise ValueError(f"unknown inference {inference!r}; one of {', '.join(INFERENCE)}")
    if not latent or len(latent) != len(hidden) or not all(hidden):
        raise ValueError(
            f"latent and hidden have an entry for each layer of latents, with hidden layers; not {latent} and {hidden}"
        )
    ladder, depth, dims = inference == "ladder", len(latent), math.prod(shape)
    out = outputs.make(output, components=components, levels=levels)
    up = [mixed(Layers(hidden[i], 2 * latent[i], activation), bf16) for i in range(depth)]  # to z_l
    below = [dims * out.size, *(2 * size for size in latent)]
    decoder, *down = (mixed(MLP((*reversed(hidden[i]), below[i]), activation), bf16) for i in range(depth))  # from z_l
    likelihood = likelihoods.independent(shape, decoder, out)

    def given(z: Array, cond: Array | None) -> Array:
        return beside(z, vector_of(classes, cond_size, cond, z))

    def init(key: Key, batch: Batch) -> Params:
        x, cond = likelihood.read(batch).reshape(-1, dims), batch.get("cond")
        up_keys, (likelihood_key, *down_keys) = jax.random.split(key, (2, depth))
        lower = [layers[-1] for layers in hidden] if ladder else list(latent)

        def read(width: int) -> Array:
            return given(jnp.zeros((x.shape[0], width), x.dtype), cond)

        def start(net: Net, key: Key, width: int) -> Params:
            return net.init(key, read(width))["params"]

        return {
            "up": list(map(start, up, up_keys, [dims, *lower[:-1]])),
            "down": list(map(start, down, down_keys, latent[1:])),
        } | likelihood.init(likelihood_key, read(latent[0]), batch)

    def prior_of(params: Params, layer: int, above: Array | None, cond: Array | None, n: int) -> Normal:
        """p(z_l | z_{l+1}), for n examples."""
        if above is None:
            like = jnp.zeros((n, latent[layer]), params["offset"].dtype)
            return like, like + 1
        return normal_of(jnp.asarray(down[layer].apply({"params": params["down"][layer]}, given(above, cond))))

    def infer(params: Params, batch: Batch, choose: Callable[[int, Normal], Array]) -> tuple[Latents, list[Normal]]:
        """z and the factors of q, where choose gives z_l from its number and its factor."""
        x, cond = likelihood.read(batch).reshape(-1, dims), batch.get("cond")
        z, q = [x] * depth, [(x, x)] * depth
        said, h = [], x
        for i in range(depth):
            h, raw = map(jnp.asarray, up[i].apply({"params": params["up"][i]}, given(h, cond)))
            said.append(normal_of(raw))
            if not ladder:
                q[i] = said[i]
                h = z[i] = choose(i, q[i])
        above = None
        for i in reversed(range(depth if ladder else 0)):
            q[i] = said[i] if above is None else _product(said[i], prior_of(params, i, above, cond, x.shape[0]))
            above = z[i] = choose(i, q[i])
        return tuple(z), q

    def priors_of(params: Params, z: Latents, cond: Array | None) -> list[Normal]:
        return [prior_of(params, i, z[i + 1] if i + 1 < depth else None, cond, z[i].shape[0]) for i in range(depth)]

    def log_prob_of(z: Latents, factors: list[Normal]) -> Array:
        return sum_event(
            jnp.concatenate([normal_log_prob(at, *factor) for at, factor in zip(z, factors, strict=True)], axis=-1)
        )

    def log_likelihood(params: Params, z: Latents, batch: Batch) -> Array:
        return likelihood.log_prob(params, given(z[0], batch.get("cond")), batch)

    def drawn(params: Params, key: Key, batch: Batch) -> tuple[Latents, list[Normal]]:
        def choose(layer: int, factor: Normal) -> Array:
            noise = jax.random.normal(jax.random.fold_in(key, layer), factor[0].shape, factor[0].dtype)
            return factor[0] + factor[1] * noise

        return infer(params, batch, choose)

    def draw(params: Params, key: Key, batch: Batch) -> tuple[Latents, Array]:
        z, q = drawn(params, key, batch)
        return z, log_prob_of(z, q)

    def log_posterior(params: Params, z: Latents, batch: Batch) -> Array:
        return log_prob_of(z, infer(params, batch, lambda layer, factor: z[layer])[1])

    def log_prior(params: Params, z: Latents, batch: Batch) -> Array:
        return log_prob_of(z, priors_of(params, z, batch.get("cond")))

    def log_joint(params: Params, z: Latents, batch: Batch) -> Array:
        return log_likelihood(params, z, batch) + log_prior(params, z, batch)

    def rate_distortion(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        z, q = drawn(params, key, batch)
        p = priors_of(params, z, batch.get("cond"))
        if ladder:  # both are of z_l given z_{l+1}: layer by layer a divergence
            rates = jnp.stack([sum_event(normal_kl(*a, *b)) for a, b in zip(q, p, strict=True)], axis=-1)
        else:
            rates = (log_prob_of(z, q) - log_prob_of(z, p))[:, None]
        return rates, -log_likelihood(params, z, batch)

    def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Latents:
        above, z = None, []
        for i in reversed(range(depth)):
            loc, scale = prior_of(params, i, above, cond, n)
            noise = jax.random.normal(jax.random.fold_in(key, i), loc.shape, loc.dtype)
            above = loc + temperature * scale * noise
            z.append(above)
        return tuple(reversed(z))

    def dream(
        params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
    ) -> tuple[Latents, Array]:
        z_key, x_key = jax.random.split(key)
        z = prior(params, z_key, n, cond, temperature)
        return z, likelihood.sample(params, x_key, given(z[0], cond))

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return dream(params, key, n, cond, temperature)[1]

    def encode(params: Params, key: Key | None, batch: Batch) -> Latents:
        return infer(params, batch, lambda layer, factor: factor[0])[0]

    def decode(params: Params, key: Key | None, codes: Latents, cond: Array | None = None) -> Array:
        assert likelihood.mean is not None
        return likelihood.mean(params, given(codes[0], cond))

    return Model(
        init,
        draw=draw,
        log_joint=log_joint,
        log_prior=log_prior,
        log_posterior=log_posterior,
        rate_distortion=rate_distortion,
        dream=dream,
        sample=sample,
        prior=prior,
        encode=encode,
        decode=decode,
        support=likelihood.support,
        observed=likelihood.observed,
    )


def _product(a: Normal, b: Normal) -> Normal:
    """The normalised product of two normal densities."""
    precision_a, precision_b = a[1] ** -2, b[1] ** -2
    variance = 1 / (precision_a + precision_b)
    return variance * (a[0] * precision_a + b[0] * precision_b), jnp.sqrt(variance)
