"""Multi-scale PixelRNN: a PixelRNN of every s-th pixel, and one of the others that is given the first one's image.

    p(x | c) = p(x_small | c) prod_d p(x_d | x_<d, x_small, c),    x_small = x[::s, ::s],    d over the other pixels

The small image is upsampled by a convolutional net to features of every pixel, which are added to the first
convolution and to the gates of every LSTM, as conditions are. Pixels of the small image are not drawn twice: in the
large PixelRNN they are known, and their conditionals do not count.

References: van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv 1601.06759, section 3.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dgm_jax.models import outputs
from dgm_jax.models.autoregressive import chain, pixelrnn, raster
from dgm_jax.models.condition import beside, vector_of
from dgm_jax.models.images import image
from dgm_jax.nets.conv import Upsample
from dgm_jax.nets.precision import mixed
from dgm_jax.types import Array, Batch, Key, Model, Params


def make(
    *,
    shape: tuple[int, ...],
    scale: int = 2,
    small: Mapping[str, Any] | None = None,
    context: int = 32,
    kind: str = "diagonal",
    features: int = 32,
    layers: int = 7,
    first: int = 7,
    kernel: int = 3,
    head: int = 64,
    output: str = "bernoulli",
    components: int = 10,
    levels: int = 256,
    dropout: float = 0.0,
    classes: int = 0,
    cond_size: int = 0,
    bf16: bool = False,
) -> Model:
    """Multi-scale PixelRNN over images; its params are those of "small", "upsample" and "large".

    Args:
        shape: of an image, (H, W, C).
        scale: the small image has every so manyth row and column, from the first on; 2, 4, 8, ...
        small: of the options `kind` to `head` and `dropout`, those that are others in the small image's PixelRNN.
        context: features that the small image is upsampled to.
        kind, features, layers, first, kernel, head, dropout: of the PixelRNNs, see pixelrnn.make.
        output: distribution of a channel of a pixel, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        classes: number of labels in batch["cond"]; 0 for none.
        cond_size: length of the vectors in batch["cond"]; 0 for none.
        bf16: the nets compute in bfloat16; parameters and likelihoods stay float32.

    Returns:
        init, log_prob, log_conditionals, predict, sample, complete.

    Raises:
        ValueError: the scale is no power of 2 from 2 on.
    """
    doublings = scale.bit_length() - 1
    if scale < 2 or scale != 2**doublings:
        raise ValueError(f"scale is 2, 4, 8, ...; not {scale}")
    height, width, channels = image(shape)
    out = outputs.make(output, components=components, levels=levels)
    options: dict[str, Any] = {
        "kind": kind,
        "features": features,
        "layers": layers,
        "first": first,
        "kernel": kernel,
        "head": head,
        "dropout": dropout,
    }
    small_shape = (-(-height // scale), -(-width // scale), channels)
    small_net, small_cached = pixelrnn.net(
        small_shape, out.size, bool(classes or cond_size), **{**options, **(small or {})}
    )
    large_net, large_cached = pixelrnn.net(shape, out.size, True, **options)
    of_small = raster.pixels(small_net, out, small_cached, bf16=bf16)
    of_large = raster.pixels(large_net, out, large_cached, bf16=bf16)
    up = mixed(Upsample(context, doublings), bf16)

    def conditions(params: Params, x_small: Array, c: Array | None) -> Array:
        """Of the large net: what the small image is upsampled to, and c at every pixel."""
        found = jnp.asarray(up.apply({"params": params["upsample"]}, out.read(x_small)))[:, :height, :width]
        return beside(found, c)

    def init(key: Key, batch: Batch) -> Params:
        x, mask = batch["x"], batch.get("mask")
        c, x_small = vector_of(classes, cond_size, batch.get("cond"), x), x[:, ::scale, ::scale]
        small_key, up_key, large_key = jax.random.split(key, 3)
        params = {
            "small": of_small.init(small_key, x_small, c, mask),
            "upsample": up.init(up_key, out.read(x_small))["params"],
        }
        return {**params, "large": of_large.init(large_key, x, conditions(params, x_small, c), mask)}

    def raw(params: Params, key: Key | None, batch: Batch) -> Array:
        x = batch["x"]
        c, x_small = vector_of(classes, cond_size, batch.get("cond"), x), x[:, ::scale, ::scale]
        small_key, large_key = (None, None) if key is None else jax.random.split(key)
        first = of_small.raw(params["small"], small_key, x_small, c)
        others = of_large.raw(params["large"], large_key, x, conditions(params, x_small, c))
        return others.at[:, ::scale, ::scale].set(first)

    def drawn(params: Params, key: Key, given: Array, observed: Array, cond: Array | None, temperature: float) -> Array:
        c = vector_of(classes, cond_size, cond, given)
        small_key, large_key = jax.random.split(key)
        given_small, observed_small = (table[:, ::scale, ::scale] for table in (given, observed))
        x_small = of_small.draw(params["small"], small_key, given_small, observed_small, c, temperature)
        known = conditions(params, x_small, c)
        given, observed = (
            table.at[:, ::scale, ::scale].set(values) for table, values in ((given, x_small), (observed, 1))
        )
        return of_large.draw(params["large"], large_key, given, observed, known, temperature)

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        nothing = jnp.zeros((n, *shape), jax.tree.leaves(params)[0].dtype)
        return drawn(params, key, nothing, nothing, cond, temperature)

    def complete(params: Params, key: Key, batch: Batch) -> Array:
        """Draws what is not observed, the small image first, each pixel given all that come before it in this order.

        Exact if the observed pixels come first: those of the small image alone, for super-resolution, or also those
        above in the large one.
        """
        return drawn(params, key, batch["x"], batch["observed"], batch.get("cond"), 1.0)

    parts = chain.make(out, raw)
    return Model(
        init,
        parts.log_prob,
        log_conditionals=parts.log_conditionals,
        predict=parts.predict,
        sample=sample,
        complete=complete,
        support=out.support,
    )
