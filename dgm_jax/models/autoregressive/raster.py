"""Models of images in raster order, from a causal net that can also be computed a pixel at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.models.autoregressive import chain
from dgm_jax.models.condition import array_of, map_of, vector_of
from dgm_jax.models.outputs import Coupled, Output
from dgm_jax.nets.causal import push
from dgm_jax.nets.precision import mixed, rounded
from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree


class Cached(NamedTuple):
    """A causal net, computed a row and a pixel at a time; n images at once.

    A pixel's channels are drawn in order: `pixel` is called with the first c of them known and the others 0, and its
    output for channel c is used. No feature of a pixel sees its last channel, so that those of the last call stay.
    Where the channels are coupled in the output alone, no feature sees any of them, and there is one call.
    """

    reach: int  # how many values of its own row, its own included, the first layer sees
    memory: PyTree  # of completed rows, before the first one
    # memory -> (memory, what the next row's pixels are given from above, [W, n, ...])
    above: Callable[[PyTree], tuple[PyTree, PyTree]]
    left: PyTree  # of completed pixels of a row, before its first one
    # (left, from above [n, ...], x [reach, n, C] as nets read it) -> (left with this pixel, features, raw); raw is
    # [n, C, size], or as `Coupled` takes it, [n, size]
    pixel: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree, Array]]
    # (memory, features [W, n, ...], x [W, n, C] as nets read it) -> memory with this row
    below: Callable[[PyTree, PyTree, Array], PyTree]


def draw(
    output: Output,
    cached: Cached,
    key: Key,
    given: Array,
    observed: Array,
    temperature: float,
    coupled: Coupled | None = None,
) -> Array:
    """Draw images [n, H, W, C]; what is `observed` is as `given`, both like the images."""
    n, height, width, channels = given.shape

    def a_pixel(carry: tuple[PyTree, Array], at: tuple) -> tuple[tuple[PyTree, Array], tuple[PyTree, Array, Array]]:
        left, seen = carry
        from_above, keys, given, observed = at
        seen, x = push(seen, jnp.zeros((n, channels), given.dtype)), jnp.zeros((n, channels), given.dtype)
        for c in range(channels):
            if c == 0 or coupled is None:
                moved, features, found = cached.pixel(left, from_above, seen)
            raw = found if coupled is None else coupled.channels(found, seen[-1])
            drawn = output.sample(keys[c], raw[:, c], temperature)
            value = jnp.where(observed[:, c] != 0, given[:, c], drawn)
            x, seen = x.at[:, c].set(value), seen.at[-1, :, c].set(output.read(value))
        return (moved, seen), (features, seen[-1], x)

    def a_row(memory: PyTree, at: tuple) -> tuple[PyTree, Array]:
        memory, from_above = cached.above(memory)
        start = cached.left, jnp.zeros((cached.reach, n, channels), given.dtype)
        _, (features, seen, x) = jax.lax.scan(a_pixel, start, (from_above, *at))
        return cached.below(memory, features, seen), x

    keys = jax.random.split(key, (height, width, channels))
    rows, marks = (jnp.transpose(table, (1, 2, 0, 3)) for table in (given, observed))
    _, x = jax.lax.scan(a_row, cached.memory, (keys, rows, marks))
    return jnp.transpose(x, (2, 0, 1, 3))


class Pixels(NamedTuple):
    """A causal net and the output of its pixels; c are the conditions as the net takes them."""

    init: Callable[..., Params]  # (key, x, c, mask [B] or None) -> params
    raw: Callable[..., Array]  # (params, key, x, c) -> what the outputs are given, [B, H, W, C, size]
    draw: Callable[..., Array]  # (params, key, given, observed, c, temperature) -> [n, H, W, C], as `draw` does


def pixels(
    network: nn.Module,
    output: Output,
    cached: Callable[[Params, int, PyTree], Cached],
    *,
    bf16: bool,
    coupled: Coupled | None = None,
) -> Pixels:
    """The functions of a causal net; the arguments are those of `model`, with any conditions that the net takes."""
    net = mixed(network, bf16)

    def init(key: Key, x: Array, c: PyTree, mask: Array | None) -> Params:
        params = net.init(key, output.read(x), c)["params"]
        of_pixels = None if mask is None else jnp.repeat(mask, x[0, ..., 0].size)
        bias = output.fit(x.reshape(-1, x.shape[-1]), of_pixels)
        bias = bias.reshape(-1) if coupled is None else coupled.fit(bias)
        return {**params, "head": {**params["head"], "bias": bias}}

    def raw(params: Params, key: Key | None, x: Array, c: PyTree) -> Array:
        read, rngs = output.read(x), None if key is None else {"dropout": key}
        c = rounded(c) if bf16 else c
        found = jnp.asarray(net.apply({"params": params}, read, c, deterministic=key is None, rngs=rngs))
        return found if coupled is None else coupled.channels(found, read)

    def drawn(params: Params, key: Key, given: Array, observed: Array, c: PyTree, temperature: float) -> Array:
        return draw(output, cached(params, given.shape[0], c), key, given, observed, temperature, coupled)

    return Pixels(init, raw, drawn)


def model(
    network: nn.Module,
    output: Output,
    shape: tuple[int, ...],
    cached: Callable[[Params, int, Array | None], Cached],
    *,
    classes: int,
    cond_size: int,
    bf16: bool,
    coupled: Coupled | None = None,
    cond_map: int = 0,
    map_codes: int = 0,
) -> Model:
    """The model of a causal net over images.

    Args:
        network: (x as the output reads it [B, H, W, C], conditions [B, K], or a map [B, H, W, K], or [B, h, w, K] of
            codes, or None, deterministic) -> what the outputs are given, [B, H, W, C, size], or as `coupled` takes
            it, [B, H, W, size]; its last layer, "head", has a bias of as many numbers as a pixel.
        output: of a channel of a pixel.
        shape: of an image, (H, W, C).
        cached: (params, n, conditions as the network takes them) -> the same for n images, a pixel at a time.
        classes: number of labels in batch["cond"]; 0 for none.
        cond_size: length of the vectors in batch["cond"]; 0 for none.
        bf16: the net computes in bfloat16; parameters and likelihoods stay float32.
        coupled: of the channels of a pixel, which the net itself keeps apart where it is None.
        cond_map: K, of maps of features in batch["cond"], [B, H, W, K]; 0 for none.
        map_codes: how many codes the map in batch["cond"] has; 0 for none.

    Returns:
        init, log_prob, log_conditionals, predict, sample, complete.
    """
    net = pixels(network, output, cached, bf16=bf16, coupled=coupled)

    def conditions(cond: Array | None, like: Array) -> Array | None:
        if cond_map:
            return array_of(0, (*shape[:2], cond_map), cond, like)
        return map_of(map_codes, cond, like) if map_codes else vector_of(classes, cond_size, cond, like)

    def init(key: Key, batch: Batch) -> Params:
        x = batch["x"]
        return net.init(key, x, conditions(batch.get("cond"), x), batch.get("mask"))

    def raw(params: Params, key: Key | None, batch: Batch) -> Array:
        x = batch["x"]
        return net.raw(params, key, x, conditions(batch.get("cond"), x))

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        nothing = jnp.zeros((n, *shape), jax.tree.leaves(params)[0].dtype)
        return net.draw(params, key, nothing, nothing, conditions(cond, nothing), temperature)

    def complete(params: Params, key: Key, batch: Batch) -> Array:
        """Draws what is not observed in raster order, given all that comes before: exact if that is the upper part."""
        x = batch["x"]
        return net.draw(params, key, x, batch["observed"], conditions(batch.get("cond"), x), 1.0)

    parts = chain.make(output, raw)
    return Model(
        init,
        parts.log_prob,
        log_conditionals=parts.log_conditionals,
        predict=parts.predict,
        sample=sample,
        complete=complete,
        support=output.support,
    )
