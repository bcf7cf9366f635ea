"""Denoising diffusion with a U-Net.

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2),  t = 1/T, ..., 1;    p(x_1) = N(0, I)
    p(x_s | x_t) = N(mean of q(x_s | x_t, x_0 = net(x_t, t)), sigma_t|s^2),  s = t - 1/T

`draw` and `log_joint` give the variational bound of this whole chain at T evaluations of the net. `sample` takes steps
of its own, with eta^2 times the variance of q(x_s | x_t, x_0): the two variances are the two of Ho et al., section 3.2.
Data lie in [-1, 1]; for a bound on a density they are dequantized.

References: Sohl-Dickstein et al. 2015, arXiv 1503.03585; Ho et al. 2020, arXiv 2006.11239; Nichol & Dhariwal
2021, arXiv 2102.09672 (cosine); Salimans & Ho 2022, arXiv 2202.00512 (velocity).
Measured: at most 1.97 bits/dim on the digits (experiments/digits/ddpm), 2.58 on MNIST (experiments/mnist/ddpm).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from dgm_jax.inference import denoising
from dgm_jax.models.condition import label_of, labels
from dgm_jax.models.images import image
from dgm_jax.nets.precision import mixed
from dgm_jax.nets.unet import UNet
from dgm_jax.types import Array, Batch, Key, Model, Params


def make(
    *,
    shape: tuple[int, ...],
    channels: int = 32,
    multipliers: Sequence[int] = (1, 2),
    blocks: int = 1,
    attention: bool = True,
    heads: int = 1,
    dropout: float = 0.0,
    classes: int = 0,
    schedule: str = "cosine",
    steps: int = 1000,
    prediction: str = "velocity",
    clip: float = 1.0,
    sample_steps: int = 100,
    eta: float = 1.0,
    bf16: bool = False,
    remat: bool = False,
) -> Model:
    """A DDPM; its params are those of the net.

    `sample` starts at noise of standard deviation `temperature`, which also scales the noise of the steps;
    without `cond` a conditional model draws its labels uniformly. `stages` are the estimates of x_0 at each step.

    Args:
        shape: (H, W, C) of one image, whose height and width can be halved after every multiplier but the last.
        channels, multipliers, blocks, attention, heads, dropout: of the U-Net, see nets.unet; channels a multiple of 8.
        classes: 0, or the number of labels in batch["cond"] that the model is conditional on.
        schedule: a name in denoising.SCHEDULES; the objective must have the same.
        steps: T; likewise.
        prediction: what the net puts out, a name in denoising.PREDICTIONS.
        clip: in the reverse chain x_0 is clipped to [-clip, clip]; 0: not.
        sample_steps: evaluations of the net in `sample`.
        eta: 1: `sample` is ancestral; 0: deterministic, DDIM; between: between.
        bf16: the net computes in bfloat16; parameters, times and x stay float32.
        remat: the backward pass computes the net's blocks again, and keeps only what lies between them.

    Raises:
        ValueError: an unknown schedule or prediction, an eta beyond [0, 1], or images that cannot be halved so often.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: give a number from 0, deterministic, to 1, ancestral")
    chain = denoising.schedule(schedule, steps)
    if prediction not in denoising.PREDICTIONS:
        raise ValueError(f"unknown prediction {prediction!r}; one of {', '.join(denoising.PREDICTIONS)}")
    _, _, colours = image(shape, len(multipliers) - 1)
    unet = UNet(
        features=colours,
        channels=channels,
        multipliers=tuple(multipliers),
        blocks=blocks,
        attention=attention,
        heads=heads,
        dropout=dropout,
        classes=classes,
        remat=remat,
    )
    net = mixed(unet, bf16)

    def init(key: Key, batch: Batch) -> Params:
        x = batch["x"]
        return net.init(key, x, jnp.ones(x.shape[0], x.dtype), label_of(classes, batch.get("cond")))["params"]

    def denoise(params: Params, key: Key | None, x_t: Array, t: Array, cond: Array | None = None) -> Array:
        rngs = {} if key is None else {"dropout": key}
        value = net.apply({"params": params}, x_t, t, label_of(classes, cond), deterministic=key is None, rngs=rngs)
        return denoising.convert(chain, jnp.asarray(value), x_t, t, prediction, "x0")

    def reverse(params: Params, cond: Array | None) -> Callable[[Array, Array], Array]:
        def clipped(x_t: Array, t: Array) -> Array:
            x_0 = denoise(params, None, x_t, t, cond)
            return jnp.clip(x_0, -clip, clip) if clip else x_0

        return clipped

    def draw(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        return denoising.draw_chain(chain, key, batch["x"])

    def log_joint(params: Params, z: Array, batch: Batch) -> Array:
        return denoising.chain_log_joint(chain, reverse(params, batch.get("cond")), z, batch["x"])

    def log_posterior(params: Params, z: Array, batch: Batch) -> Array:
        return denoising.chain_log_density(z)

    def run(f: Callable[..., Array], params: Params, key: Key, n: int, cond: Array | None, temperature: float) -> Array:
        """What f, of `denoising`, gives of the reverse chain."""
        start_key, label_key, chain_key = jax.random.split(key, 3)
        cond = labels(classes, cond, label_key, n)
        dtype = jax.tree.leaves(params)[0].dtype
        x_1 = temperature * jax.random.normal(start_key, (n, *shape), dtype)
        return f(chain, reverse(params, cond), chain_key, x_1, sample_steps, eta=eta, temperature=temperature)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return run(denoising.sample, params, key, n, cond, temperature)

    def stages(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        return jnp.swapaxes(run(denoising.estimates, params, key, n, cond, temperature), 0, 1)

    return Model(
        init,
        draw=draw,
        log_joint=log_joint,
        log_posterior=log_posterior,
        denoise=denoise,
        sample=sample,
        stages=stages,
        support="real",
    )
