"""VQ-VAE and VQ-VAE-2: an autoencoder whose code is a map of indices, or two, the lower given the upper.

    z_top = f(x),   z_bottom = g(x, e_top)        code_l = argmin_k |z_l - e_lk|        p(x | codes) = Output(d(e))

q(codes | x) is a point mass on the nearest codes, and p(codes) uniform while the autoencoder is trained, so that
log p(x | codes) - sum_l (cells of map l) log K is a bound on log p(x). A second model that learns p(codes) tightens it
(`two_stage`). Gradients pass from the decoder to the encoder straight through the codes.

References: van den Oord, Vinyals & Kavukcuoglu 2017, arXiv 1711.00937; two levels: Razavi, van den Oord & Vinyals
2019, arXiv 1906.00446. Unlike there, images shrink by space-to-depth and grow by depth-to-space around convolutions
of stride 1, residual blocks are normalised, and the width of a normal or logistic output is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.models import outputs
from dgm_jax.models.images import image
from dgm_jax.nets.conv import Conv, depth_to_space, space_to_depth, upsample
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.precision import mixed
from dgm_jax.nets.quantizer import first_codebook, nearest, straight_through
from dgm_jax.nets.resnet import trunk
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params

LEVELS = ("top", "bottom")
Maps = dict[str, Array]  # by level, top first: codes int32 [B, h, w], or vectors [B, h, w, D]


class Residual(nn.Module):
    """[B, H, W, C] -> [B, H, W, width]: a convolution and residual blocks."""

    width: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Activations after a norm."""
        return trunk(x, self.width, self.blocks, "relu", math.gcd(8, self.width))


class Down(nn.Module):
    """[B, H, W, C] -> [B, H / scale, W / scale, width]."""

    width: int
    blocks: int
    scale: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Halved as often as the scale says, then residual blocks."""
        for _ in range(self.scale.bit_length() - 2):
            x = nn.relu(Conv(self.width)(space_to_depth(x)))
        return Residual(self.width, self.blocks)(space_to_depth(x))


class Up(nn.Module):
    """[B, h, w, D] -> [B, scale h, scale w, features]: the mirror image of Down."""

    features: int
    width: int
    blocks: int
    scale: int
    start: Callable[..., Array] = nn.initializers.lecun_normal()  # of the last kernel

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Values of the last, linear layer, which has no bias."""
        h = Residual(self.width, self.blocks)(x)
        for _ in range(self.scale.bit_length() - 2):
            h = nn.relu(depth_to_space(Conv(4 * self.width)(h)))
        return depth_to_space(Conv(4 * self.features, use_bias=False, kernel_init=self.start)(h))


def stacked(e: Maps, scales: Sequence[int]) -> Array:
    """The vectors of all levels at the resolution of the lowest, [B, h, w, levels D]."""
    if len(scales) == 1:
        return e["top"]
    return jnp.concatenate([upsample(e["top"], scales[1]), e["bottom"]], axis=-1)


def make(
    *,
    shape: tuple[int, ...],
    scales: Sequence[int] = (4,),
    codes: int = 512,
    latent: int = 64,
    width: int = 128,
    blocks: int = 2,
    output: str = "logistic",
    components: int = 1,
    levels: int = 256,
    shared_scale: bool = False,
    bf16: bool = False,
) -> Model:
    """A VQ-VAE; its params are each net's, "bias" [C, size], and "buffers": {"codebook": level -> [codes, latent]}.

    `draw` gives the encoder's vectors, level -> [B, h, w, latent], which stand for their nearest codes, with
    log q = 0; `log_joint` quantizes them. `encode` gives the codes, level -> int32 [B, h, w], and `decode` the mean
    image of such. The levels are "top", and where there are two "bottom". The first codebook is drawn from the
    encoder's vectors of the batch that `init` is given; nothing here changes it. Codes are drawn uniformly: the
    temperature of `sample` is that of p(x | codes).

    Args:
        shape: of an image, (H, W, C).
        scales: how many pixels to a side make one cell of the lowest map, and for two levels how many of its cells
            one of the top map; powers of 2.
        codes: of each level.
        latent: length of a code's vector.
        width: channels of the convolutions.
        blocks: residual blocks of each encoder and decoder.
        output: distribution of a channel of a pixel given the codes, one of `outputs.OUTPUTS`; "gaussian" with one
            component and `shared_scale` is the squared error of the paper.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        shared_scale: the scales of such a mixture are the same at all pixels, and do not depend on the codes.
        bf16: the nets compute in bfloat16; parameters, codes and likelihoods stay float32.

    Returns:
        init, draw, log_joint, sample, prior, encode, decode.

    Raises:
        ValueError: no image, not one or two scales, scales that are no powers of 2 or that the sides are no multiples
            of, or a shared scale for an output without any.
    """
    if len(scales) not in (1, 2) or any(scale < 2 or scale & (scale - 1) for scale in scales):
        raise ValueError(f"scales are one or two of 2, 4, 8, ...; not {tuple(scales)}")
    image(shape, math.prod(scales).bit_length() - 1)
    shared = outputs.shared_scales(output, components, shared_scale)
    out = outputs.make(output, components=components, levels=levels)
    channels, names = shape[-1], LEVELS[: len(scales)]
    per_cell = dict(zip(names, (math.prod(scales), scales[0]), strict=False))  # pixels to a side
    sides = {name: (shape[0] // per_cell[name], shape[1] // per_cell[name]) for name in names}
    log_uniform = -sum(math.prod(side) for side in sides.values()) * math.log(codes)
    last = Up(channels * out.size, width, blocks, scales[0], nn.initializers.zeros)
    modules: dict[str, nn.Module] = {"decoder": last}
    for name, scale in zip(reversed(names), scales, strict=True):
        modules |= {f"encoder_{name}": Down(width, blocks, scale), f"vectors_{name}": Dense(latent)}
    if "bottom" in names:
        modules["lift"] = Up(latent, width, blocks, scales[1])
    nets = {name: mixed(module, bf16) for name, module in modules.items()}

    def encoded(
        run: Callable[[str, Array], Array], x: Array, quantized: Callable[[str, Array], Array]
    ) -> tuple[Maps, Maps]:
        """Each level's vectors, and what `quantized` (level, z) makes of them; `run` (net, its input) runs a net."""
        h = {}
        for name in reversed(names):
            x = h[name] = run(f"encoder_{name}", x)
        z = {"top": run("vectors_top", h["top"])}
        e = {"top": quantized("top", z["top"])}
        if "bottom" in names:
            z["bottom"] = run("vectors_bottom", jnp.concatenate([h["bottom"], run("lift", e["top"])], axis=-1))
            e["bottom"] = quantized("bottom", z["bottom"])
        return z, e

    def running(params: Params) -> Callable[[str, Array], Array]:
        return lambda name, x: jnp.asarray(nets[name].apply({"params": params[name]}, x))

    def raw(params: Params, e: Maps) -> Array:
        """Vectors of the codebook -> what the outputs are given, [B, H, W, C, size]."""
        y = running(params)("decoder", stacked(e, scales)).reshape(-1, *shape, out.size)
        if shared:
            is_scale = jnp.expand_dims(jnp.arange(out.size) >= out.size - shared, range(y.ndim - 1))
            y = jnp.where(is_scale, 0, y)
        return y + jnp.expand_dims(params["bias"], (0, 1, 2))

    def looked_up(params: Params, codes: Maps) -> Maps:
        return {name: params["buffers"]["codebook"][name][codes[name]] for name in names}

    def init(key: Key, batch: Batch) -> Params:
        """Parameters are made as the net is run: a codebook takes the vectors that there are."""
        x, mask = batch["x"], batch.get("mask")
        keys = dict(zip([*nets, *names], jax.random.split(key, len(nets) + len(names)), strict=True))
        of_pixels = None if mask is None else jnp.repeat(mask, x[0, ..., 0].size)
        codebook: Maps = {}
        params = {"bias": out.fit(x.reshape(-1, channels), of_pixels), "buffers": {"codebook": codebook}}

        def run(name: str, x: Array) -> Array:
            params[name] = nets[name].init(keys[name], x)["params"]
            return running(params)(name, x)

        def quantized(name: str, z: Array) -> Array:
            codebook[name] = first_codebook(keys[name], z, codes)
            return straight_through(z, codebook[name])

        run("decoder", stacked(encoded(run, out.read(x), quantized)[1], scales))
        return params

    def draw(params: Params, key: Key | None, batch: Batch) -> tuple[Maps, Array]:
        x, codebook = batch["x"], params["buffers"]["codebook"]
        z, _ = encoded(running(params), out.read(x), lambda name, z: straight_through(z, codebook[name]))
        return z, jnp.zeros(x.shape[0], x.dtype)

    def log_joint(params: Params, z: Maps, batch: Batch) -> Array:
        codebook = params["buffers"]["codebook"]
        e = {name: straight_through(z[name], codebook[name]) for name in names}
        return sum_event(out.log_prob(batch["x"], raw(params, e))) + log_uniform

    def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Maps:
        """Uniform at any temperature."""
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        return {name: jax.random.randint(keys[name], (n, *sides[name]), 0, codes) for name in names}

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        code_key, x_key = jax.random.split(key)
        drawn = prior(params, code_key, n)
        return out.sample(x_key, raw(params, looked_up(params, drawn)), temperature)

    def encode(params: Params, key: Key | None, batch: Batch) -> Maps:
        z, _ = draw(params, key, batch)
        return {name: nearest(z[name], params["buffers"]["codebook"][name]) for name in names}

    def decode(params: Params, key: Key | None, codes: Maps, cond: Array | None = None) -> Array:
        return out.mean(raw(params, looked_up(params, codes)))

    return Model(
        init,
        draw=draw,
        log_joint=log_joint,
        sample=sample,
        prior=prior,
        encode=encode,
        decode=decode,
        support=out.support,
    )
