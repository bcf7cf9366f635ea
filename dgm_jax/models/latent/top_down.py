"""Very deep, top-down VAE of images: many normal latent maps, one after the other, from coarse to fine.

A state h runs from the coarsest resolution to the finest. What doubles it in size adds to the four copies of a pixel
a linear function each, so that they can differ. In every block

    p(z_i | z_<i) and features of h;    q(z_i | z_<i, x) of h and of the encoder's features of that resolution
    h <- h + features;    h <- h + W z_i;    h <- h + residual block of h

and at a resolution without latents the residual block alone. p(x | z) is given what the last h says.
q(z | x) = prod_i q(z_i | z_<i, x) in the same order as p(z): the rate is a sum of divergences of normal distributions,
one for each block.

Reference: Child 2021, arXiv 2011.10650, figure 3; there is no normalization, and the last layers of the residual
branches start small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.distributions import normal_kl, normal_log_prob
from dgm_jax.models import outputs
from dgm_jax.models.condition import vector_of
from dgm_jax.models.images import image
from dgm_jax.models.latent import likelihoods
from dgm_jax.models.latent.posteriors import normal_of
from dgm_jax.nets.conv import Conv, depth_to_space, downsample, upsample
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.precision import mixed
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params

Latents = tuple[Array, ...]  # a resolution with blocks each, coarsest first: [B, blocks, h, w, latent]


class Bottleneck(nn.Module):
    """1x1, 3x3, 3x3 and 1x1 convolutions, each after an activation: [B, h, w, C] -> [B, h, w, features]."""

    middle: int
    features: int
    gain: float = 1.0  # of what the last kernel starts with
    window: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Values of the last, linear layer."""
        h = Dense(self.middle)(nn.gelu(x))
        for _ in range(2):
            h = Conv(self.middle, (self.window, self.window))(nn.gelu(h))
        start = nn.initializers.variance_scaling(self.gain**2, "fan_in", "truncated_normal")
        return Dense(self.features, kernel_init=start if self.gain else nn.initializers.zeros)(nn.gelu(h))


class Block(nn.Module):
    """The three parts of a block; h is [B, h, w, width]."""

    width: int
    middle: int
    latent: int
    gain: float
    window: int

    def setup(self) -> None:
        """Its layers."""
        self.q = Bottleneck(self.middle, 2 * self.latent, window=self.window)
        self.p = Bottleneck(self.middle, 2 * self.latent + self.width, gain=0.0, window=self.window)
        start = nn.initializers.variance_scaling(self.gain**2, "fan_in", "truncated_normal")
        self.of_z = Dense(self.width, kernel_init=start)
        self.residual = Bottleneck(self.middle, self.width, self.gain, self.window)

    def posterior(self, h: Array, features: Array) -> Array:
        """What q(z | ...) is given, [B, h, w, 2 latent]."""
        return self.q(jnp.concatenate([h, features], axis=-1))

    def prior(self, h: Array) -> tuple[Array, Array]:
        """What p(z | ...) is given, and h with its features."""
        y = self.p(h)
        return y[..., : 2 * self.latent], h + y[..., 2 * self.latent :]

    def merge(self, h: Array, z: Array) -> Array:
        """The next h."""
        h = h + self.of_z(z)
        return h + self.residual(h)

    def __call__(self, h: Array, features: Array) -> Array:
        """All of them, to make their parameters."""
        raw, on = self.prior(h)
        return self.merge(on, self.posterior(h, features)[..., : self.latent] + raw[..., : self.latent])


class Encoder(nn.Module):
    """[B, H, W, C] -> features of every resolution, finest first, [B, h, w, width] each."""

    width: int
    middle: int
    blocks: Sequence[int]

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """The features."""
        h, found = Conv(self.width)(x), []
        gain = sum(self.blocks) ** -0.5
        for i, count in enumerate(self.blocks):
            h = downsample(h) if i else h
            for _ in range(max(count, 1)):
                h = h + Bottleneck(self.middle, self.width, gain, window_of(min(h.shape[1:3])))(h)
            found.append(h)
        return found


def window_of(side: int) -> int:
    """3x3 convolutions, but 1x1 where a map is smaller."""
    return 3 if side > 2 else 1


class Pass(NamedTuple):
    """What the blocks come to, [blocks, B] each: the terms of log p(z) and log q(z | x), and the divergences."""

    log_p: Array
    log_q: Array
    kl: Array


def make(
    *,
    shape: tuple[int, ...],
    blocks: Sequence[int] = (1, 4, 6),
    width: int = 64,
    middle: int = 32,
    latent: int = 8,
    output: str = "bernoulli",
    components: int = 1,
    levels: int = 256,
    classes: int = 0,
    cond_size: int = 0,
    bf16: bool = False,
) -> Model:
    """A top-down VAE of images; z and codes are tuples of latent maps, the coarsest first.

    `encode` gives the means of q, each given the means before it; `decode` the mean of p(x | z). Temperature is that of
    the prior of every map.

    Args:
        shape: (H, W, C).
        blocks: at every resolution, from that of the image on, each half of the one before; the encoder has as many,
            and one where there is none.
        width: channels of h and of the encoder.
        middle: channels inside a bottleneck.
        latent: channels of a latent map.
        output: distribution of a dimension, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        classes: number of labels in batch["cond"]; 0 for none. Conditions shift the first h and the encoder's features.
        cond_size: length of the vectors in batch["cond"]; 0 for none.
        bf16: the encoder computes in bfloat16; the top-down path, parameters and likelihoods stay float32.

    Raises:
        ValueError: images that cannot be halved so often, or no blocks at the coarsest resolution.
    """
    depth, total = len(blocks), sum(blocks)
    if not blocks or not blocks[-1]:
        raise ValueError(f"the coarsest resolution, the last of blocks={tuple(blocks)}, needs blocks")
    image(shape, depth - 1)
    out = outputs.make(output, components=components, levels=levels)
    sides = [(shape[0] >> i, shape[1] >> i) for i in range(depth)]
    encoder = mixed(Encoder(width, middle, tuple(blocks)), bf16)
    windows = [window_of(min(side)) for side in sides]
    nets = [Block(width, middle, latent, total**-0.5, window) for window in windows]
    plain = [Bottleneck(middle, width, total**-0.5, window) for window in windows]  # where there are no latents
    start = nn.initializers.variance_scaling(1 / total, "fan_in", "truncated_normal")
    finer = Dense(4 * width, kernel_init=start)  # features of the four pixels that one becomes
    likelihood = likelihoods.independent(shape, mixed(Dense(shape[-1] * out.size), False), out)  # given the last h

    def condition(cond: Array | None, like: Array) -> Array | None:
        return vector_of(classes, cond_size, cond, like)

    def init(key: Key, batch: Batch) -> Params:
        x, keys = likelihood.read(batch), jax.random.split(key, 2 * depth + 3)
        params: dict = {
            "encoder": encoder.init(keys[0], x)["params"],
            "start": jnp.zeros((1, *sides[-1], width), x.dtype),
        } | likelihood.init(keys[1], jnp.zeros((1, *sides[0], width), x.dtype), batch)
        for i, count in enumerate(blocks):
            h = jnp.zeros((1, *sides[i], width), x.dtype)
            if i + 1 < depth:
                params[f"finer_{i}"] = finer.init(keys[3 + depth + i], h)["params"]
            if not count:
                params[f"residual_{i}"] = plain[i].init(keys[3 + i], h)["params"]
                continue
            each = jax.random.split(keys[3 + i], count)
            params[f"blocks_{i}"] = jax.vmap(lambda key, net=nets[i], h=h: net.init(key, h, h)["params"])(each)
        c = condition(batch.get("cond"), x)
        if c is not None:
            start = nn.initializers.lecun_normal()
            params["cond"] = start(keys[2], (c.shape[-1], width), x.dtype)
        return params

    def encoded(params: Params, batch: Batch) -> list[Array]:
        features = encoder.apply({"params": params["encoder"]}, likelihood.read(batch))
        shift = shift_of(params, batch.get("cond"), batch["x"])
        return features if shift is None else [level + shift for level in features]

    def shift_of(params: Params, cond: Array | None, like: Array) -> Array | None:
        c = condition(cond, like)
        return None if c is None else (c @ params["cond"])[:, None, None]

    def top_down(
        params: Params,
        n: int,
        cond: Array | None,
        features: list[Array] | None = None,
        z: Latents | None = None,
        key: Key | None = None,
        temperature: float = 1.0,
    ) -> tuple[Latents, Pass, Array]:
        """All blocks for n examples, with latents that are given, or drawn with a key, or else means.

        They are those of q where there are features, else of p. Gives the latents, [blocks, B] of all blocks, and h.
        """
        h = jnp.broadcast_to(params["start"], (n, *sides[-1], width))
        if (shift := shift_of(params, cond, h)) is not None:
            h = h + shift
        latents: list[Array] = []
        passes: list[Pass] = []
        for i in reversed(range(depth)):
            if i + 1 < depth:
                h = upsample(h) + depth_to_space(jnp.asarray(finer.apply({"params": params[f"finer_{i}"]}, h)))
            if not blocks[i]:
                h = h + jnp.asarray(plain[i].apply({"params": params[f"residual_{i}"]}, h))
                continue
            net, own = nets[i], params[f"blocks_{i}"]
            given = None if z is None else jnp.moveaxis(z[len(latents)], 1, 0)
            keys = None if key is None else jax.random.split(jax.random.fold_in(key, i), blocks[i])

            def step(h: Array, item: tuple, net: Block = net, i: int = i) -> tuple[Array, tuple[Array, Pass]]:
                own, at, key = item
                said, on = net.apply({"params": own}, h, method=net.prior)
                p = q = normal_of(jnp.asarray(said))
                if features is not None:
                    q = normal_of(jnp.asarray(net.apply({"params": own}, h, features[i], method=net.posterior)))
                if at is None:
                    noise = 0.0 if key is None else jax.random.normal(key, q[0].shape, q[0].dtype)
                    at = q[0] + temperature * q[1] * noise
                h = jnp.asarray(net.apply({"params": own}, on, at, method=net.merge))
                terms = normal_log_prob(at, *p), normal_log_prob(at, *q), normal_kl(*q, *p)
                return h, (at, Pass(*map(sum_event, terms)))

            h, (at, found) = jax.lax.scan(step, h, (own, given, keys))
            latents.append(jnp.moveaxis(at, 0, 1))
            passes.append(found)
        return tuple(latents), jax.tree.map(lambda *parts: jnp.concatenate(parts), *passes), h

    def inferred(params: Params, key: Key | None, batch: Batch) -> tuple[Latents, Pass, Array]:
        return top_down(params, batch["x"].shape[0], batch.get("cond"), encoded(params, batch), key=key)

    def draw(params: Params, key: Key, batch: Batch) -> tuple[Latents, Array]:
        z, found, _ = inferred(params, key, batch)
        return z, found.log_q.sum(0)

    def log_posterior(params: Params, z: Latents, batch: Batch) -> Array:
        features = encoded(params, batch)
        return top_down(params, batch["x"].shape[0], batch.get("cond"), features, z)[1].log_q.sum(0)

    def log_prior(params: Params, z: Latents, batch: Batch) -> Array:
        return top_down(params, batch["x"].shape[0], batch.get("cond"), z=z)[1].log_p.sum(0)

    def log_joint(params: Params, z: Latents, batch: Batch) -> Array:
        _, found, h = top_down(params, batch["x"].shape[0], batch.get("cond"), z=z)
        return found.log_p.sum(0) + likelihood.log_prob(params, h, batch)

    def rate_distortion(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        _, found, h = inferred(params, key, batch)
        return found.kl.T, -likelihood.log_prob(params, h, batch)

    def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Latents:
        return top_down(params, n, cond, key=key, temperature=temperature)[0]

    def dream(
        params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
    ) -> tuple[Latents, Array]:
        z_key, x_key = jax.random.split(key)
        z, _, h = top_down(params, n, cond, key=z_key, temperature=temperature)
        return z, likelihood.sample(params, x_key, h)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return dream(params, key, n, cond, temperature)[1]

    def encode(params: Params, key: Key | None, batch: Batch) -> Latents:
        return inferred(params, None, batch)[0]

    def decode(params: Params, key: Key | None, codes: Latents, cond: Array | None = None) -> Array:
        h = top_down(params, codes[0].shape[0], cond, z=codes)[2]
        assert likelihood.mean is not None
        return likelihood.mean(params, h)

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
