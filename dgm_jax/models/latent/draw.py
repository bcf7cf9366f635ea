"""DRAW: a VAE that draws an image in T steps, and looks at a part of it at each.

With x^_t = x - E[x | c_{t-1}], what the canvas c lacks of x, for t = 1, ..., T

    r_t = read(x, x^_t; h_{t-1}),   e_t = LSTM(e_{t-1}, [r_t, h_{t-1}]),   q(z_t | x, z_<t) = N(m(e_t), s(e_t)^2)
    h_t = LSTM(h_{t-1}, z_t),       c_t = c_{t-1} + write(h_t)

and p(z) = N(0, I), p(x | z) = Output(c_T): log p(x, z) takes the decoder, h and c, alone. `read` and `write` look
through grids of Gaussian filters (nets.filterbank) that linear functions of h place; without attention read = [x, x^]
and write = W h. e_0, h_0 and c_0 are learned. With labels y both LSTMs read them too.

References: Gregor et al. 2015, arXiv 1502.04623.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.distributions import normal_kl, standard_normal_log_prob
from dgm_jax.models import outputs
from dgm_jax.models.condition import vector_of
from dgm_jax.nets import filterbank
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.rnn import LSTM, Pair
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params


class Encoder(nn.Module):
    """What looks at x: a step of its LSTM, and the moments of q(z_t | x, z_<t)."""

    shape: tuple[int, ...]  # of x
    hidden: int
    latent: int
    window: int  # filters of `read` in each direction; 0: the whole image

    @nn.compact
    def __call__(self, state: Pair, x: Array, error: Array, h: Array, label: Array | None) -> tuple[Pair, Array, Array]:
        """One step.

        Args:
            state: of the LSTM, h and c [B, hidden].
            x, error: the data and what the canvas lacks of them, [B, D] each.
            h: of the decoder before this step, [B, hidden].
            label: [B, K] or None.

        Returns:
            The state, and mean and log standard deviation of z_t, [B, latent] each.
        """
        seen = jnp.stack([x, error], axis=-1)
        if self.window:
            height, width, channels = self.shape
            images = seen.reshape(-1, height, width, 2 * channels)
            seen = jax.vmap(filterbank.read)(grid(h, self.window, self.shape, "read"), images)
        state = LSTM(self.hidden, name="lstm")(state, seen.reshape(seen.shape[0], -1), h, *given(label))
        loc, log_scale = jnp.split(Dense(2 * self.latent, name="moments")(state[0]), 2, axis=-1)
        return state, loc, log_scale


class Decoder(nn.Module):
    """What draws: a step of its LSTM, and what is added to the canvas."""

    shape: tuple[int, ...]  # of x
    size: int  # numbers that the canvas holds of an entry of x
    hidden: int
    window: int  # filters of `write` in each direction; 0: the whole image

    @nn.compact
    def __call__(self, state: Pair, z: Array, label: Array | None) -> tuple[Pair, Array]:
        """From the state (h, c) [B, hidden] and z_t [B, latent] to the state and what is added, [B, D, size]."""
        state = LSTM(self.hidden, name="lstm")(state, z, *given(label))
        h, entries = state[0], math.prod(self.shape)
        if not self.window:
            return state, Dense(entries * self.size, name="patch")(h).reshape(-1, entries, self.size)
        channels = self.shape[-1] * self.size
        patch = Dense(self.window**2 * channels, name="patch")(h).reshape(-1, self.window, self.window, channels)
        filters = grid(h, self.window, self.shape, "write")
        return state, jax.vmap(filterbank.write)(filters, patch).reshape(-1, entries, self.size)


def grid(h: Array, window: int, shape: tuple[int, ...], name: str) -> filterbank.Filters:
    """The grids that a linear layer of that name places in images (H, W, C), from h [B, hidden]: one an example."""
    numbers = Dense(filterbank.NUMBERS, name=name)(h)
    return jax.vmap(lambda numbers: filterbank.place(numbers, window, *shape[:2]))(numbers)


def given(label: Array | None) -> list[Array]:
    """What an LSTM reads besides: the label, where there is one."""
    return [] if label is None else [label]


def make(
    *,
    shape: tuple[int, ...],
    steps: int = 16,
    latent: int = 10,
    hidden: int = 128,
    read: int = 2,
    write: int = 5,
    output: str = "bernoulli",
    components: int = 1,
    levels: int = 256,
    classes: int = 0,
) -> Model:
    """DRAW; z is [B, steps, latent].

    Its params are {"encoder", "decoder", "start", "canvas"}: the two nets, the LSTMs' states and the canvas before the
    first step. The canvas [*shape, size] holds what the output is given, and starts at the data's marginals.

    `sample` draws x ~ p(x | z); temperature scales the standard deviation of z. `decode` gives the mean of p(x | z),
    `encode` z_t at the mean of q(z_t | x, z_<t) for each t in turn. `stages` are the means of x on the canvas after
    each step.

    Args:
        shape: of one example; (H, W, C) for attention.
        steps: T, also called glimpses.
        latent: number of latent variables of a step.
        hidden: features of each of the two LSTMs.
        read: filters of the reading grid in each direction; 0: no attention.
        write: of the writing grid; likewise.
        output: distribution of an entry of x, one of `outputs.OUTPUTS`; a mean is taken at each step, which is a loop
            over the levels for "logistic".
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        classes: 0, or the number of labels in batch["cond"] that the model is conditional on.

    Raises:
        ValueError: an unknown output; or attention to what are not images.
    """
    if (read or write) and len(shape) != 3:
        raise ValueError(
            f"attention is to images (H, W, C), not to the shape {shape}: read={read} and write={write} must be 0"
        )
    out = outputs.make(output, components=components, levels=levels)
    encoder, decoder = Encoder(shape, hidden, latent, read), Decoder(shape, out.size, hidden, write)

    def label(cond: Array | None, like: Array) -> Array | None:
        return vector_of(classes, 0, cond, like)

    def flat(x: Array) -> Array:
        return x.reshape(x.shape[0], -1)

    def init(key: Key, batch: Batch) -> Params:
        x = flat(batch["x"])
        y = label(batch.get("cond"), x)
        encoder_key, decoder_key = jax.random.split(key)
        h = jnp.zeros((x.shape[0], hidden), x.dtype)
        z = jnp.zeros((x.shape[0], latent), x.dtype)
        return {
            "encoder": encoder.init(encoder_key, (h, h), x, x, h, y)["params"],
            "decoder": decoder.init(decoder_key, (h, h), z, y)["params"],
            "start": {name: jnp.zeros(2 * hidden, x.dtype) for name in ("encoder", "decoder")},
            "canvas": out.fit(batch["x"], batch.get("mask")),
        }

    def start(params: Params, n: int) -> tuple[Pair, Pair, Array]:
        """The LSTMs' states and the canvas before the first step, for n examples."""

        def state(name: str) -> Pair:
            h, c = jnp.broadcast_to(params["start"][name].reshape(2, 1, hidden), (2, n, hidden))
            return h, c

        canvas = params["canvas"].reshape(1, -1, out.size)
        return state("encoder"), state("decoder"), jnp.broadcast_to(canvas, (n, *canvas.shape[1:]))

    def written(params: Params, decoding: Pair, z: Array, y: Array | None) -> tuple[Pair, Array]:
        found: Any = decoder.apply({"params": params["decoder"]}, decoding, z, y)
        return found

    def infer(params: Params, batch: Batch, chosen: Array, choose: Callable) -> tuple[Array, Array, Array, Array]:
        """Both nets: z, mean and log standard deviation of q(z_t | x, z_<t), [B, T, latent] each, and the last canvas.

        z_t is choose(chosen_t, mean, log standard deviation), of `chosen` [B, T, .].
        """
        x = flat(batch["x"])
        y, seen = label(batch.get("cond"), x), out.read(x)

        def step(carry: tuple[Pair, Pair, Array], chosen: Array) -> tuple[tuple, tuple[Array, Array, Array]]:
            encoding, decoding, canvas = carry
            error = seen - out.read(out.mean(canvas))
            moments: Any = encoder.apply({"params": params["encoder"]}, encoding, seen, error, decoding[0], y)
            encoding, loc, log_scale = moments
            z = choose(chosen, loc, log_scale)
            decoding, added = written(params, decoding, z, y)
            return (encoding, decoding, canvas + added), (z, loc, log_scale)

        (*_, canvas), found = jax.lax.scan(step, start(params, x.shape[0]), jnp.swapaxes(chosen, 0, 1))
        z, loc, log_scale = (jnp.swapaxes(a, 0, 1) for a in found)
        return z, loc, log_scale, canvas

    def paint(params: Params, z: Array, cond: Array | None) -> tuple[Array, Array]:
        """The decoder alone: the last canvas [B, D, size], and the canvases of all steps [T, B, D, size]."""
        y = label(cond, z)

        def step(carry: tuple[Pair, Array], z: Array) -> tuple[tuple[Pair, Array], Array]:
            decoding, canvas = carry
            decoding, added = written(params, decoding, z, y)
            return (decoding, canvas + added), canvas + added

        (_, canvas), canvases = jax.lax.scan(step, start(params, z.shape[0])[1:], jnp.swapaxes(z, 0, 1))
        return canvas, canvases

    def drawn(noise: Array, loc: Array, log_scale: Array) -> Array:
        return loc + jnp.exp(log_scale) * noise

    def noise_of(params: Params, key: Key, n: int) -> Array:
        return jax.random.normal(key, (n, steps, latent), params["canvas"].dtype)

    def draw(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        noise = noise_of(params, key, batch["x"].shape[0])
        z, _, log_scale, _ = infer(params, batch, noise, drawn)
        return z, sum_event(standard_normal_log_prob(noise) - log_scale)

    def log_posterior(params: Params, z: Array, batch: Batch) -> Array:
        _, loc, log_scale, _ = infer(params, batch, z, lambda z, loc, log_scale: z)
        return sum_event(standard_normal_log_prob((z - loc) * jnp.exp(-log_scale)) - log_scale)

    def log_likelihood(params: Params, z: Array, batch: Batch) -> Array:
        return sum_event(out.log_prob(flat(batch["x"]), paint(params, z, batch.get("cond"))[0]))

    def log_prior(params: Params, z: Array, batch: Batch) -> Array:
        return sum_event(standard_normal_log_prob(z))

    def log_joint(params: Params, z: Array, batch: Batch) -> Array:
        return log_likelihood(params, z, batch) + log_prior(params, z, batch)

    def rate_distortion(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        _, loc, log_scale, canvas = infer(params, batch, noise_of(params, key, batch["x"].shape[0]), drawn)
        rates = normal_kl(loc, jnp.exp(log_scale), 0.0, 1.0).sum(-1)  # of each step
        return rates, -sum_event(out.log_prob(flat(batch["x"]), canvas))

    def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return temperature * noise_of(params, key, n)

    def dream(
        params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
    ) -> tuple[Array, Array]:
        z_key, x_key = jax.random.split(key)
        z = prior(params, z_key, n, cond, temperature)
        return z, out.sample(x_key, paint(params, z, cond)[0], 1.0).reshape(n, *shape)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return dream(params, key, n, cond, temperature)[1]

    def stages(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        z_key, _ = jax.random.split(key)
        _, canvases = paint(params, prior(params, z_key, n, cond, temperature), cond)
        return jnp.swapaxes(out.mean(canvases), 0, 1).reshape(n, steps, *shape)

    def encode(params: Params, key: Key | None, batch: Batch) -> Array:
        still = jnp.zeros((batch["x"].shape[0], steps, latent), params["canvas"].dtype)
        return infer(params, batch, still, drawn)[0]

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        return out.mean(paint(params, codes, cond)[0]).reshape(-1, *shape)

    return Model(
        init,
        draw=draw,
        log_joint=log_joint,
        log_prior=log_prior,
        log_posterior=log_posterior,
        rate_distortion=rate_distortion,
        dream=dream,
        sample=sample,
        stages=stages,
        prior=prior,
        encode=encode,
        decode=decode,
        support=out.support,
    )
