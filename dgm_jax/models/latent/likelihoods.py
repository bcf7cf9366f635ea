"""Likelihoods p(x | h) of a VAE, where h [B, K] is z and, beside it, a condition.

independent   the dimensions of x are independent given h, each an `outputs.Output` whose parameters a decoder gives
of_model      any Model that is conditional on an array, which a decoder makes of h
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.models.outputs import Output
from dgm_jax.nets.precision import Net
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params


class Likelihood(NamedTuple):
    """p(x | h). params are those of the whole model, with the likelihood's own entries among them."""

    init: Callable[[Key, Array, Batch], Params]  # (key, h, batch) -> its own entries
    log_prob: Callable[[Params, Array, Batch], Array]  # (params, h, batch) -> [B]
    sample: Callable[[Params, Key, Array], Array]  # (params, key, h) -> x [B, *event]
    mean: Callable[[Params, Array], Array] | None  # (params, h) -> E[x | h]; None: it has no closed form
    read: Callable[[Batch], Array]  # x as a net reads it: of the order of 1, and 0 where it is not observed
    support: str | None  # Model.support
    observed: bool | None  # Model.observed


def independent(shape: tuple[int, ...], decoder: Net, out: Output, shared: int = 0) -> Likelihood:
    """A distribution of its own for each dimension; its params are "decoder", "offset", and "scale" where it is shared.

    `offset`, a bias of the decoder, starts at the data's marginals, and a shared scale at that of all values as one
    variable: the mean over dimensions is drawn to nothing by those that are constant.

    Args:
        shape: of one example.
        decoder: h -> out.size - shared numbers for each dimension, in the order of `shape`.
        out: of a dimension.
        shared: how many of the last numbers that `out` takes are parameters, the same for all dimensions and all h.
    """
    dims, size = math.prod(shape), out.size - shared

    def init(key: Key, h: Array, batch: Batch) -> Params:
        x, counted = batch["x"], _counted(batch)
        marginals = out.fit(x, counted).reshape(dims, out.size)
        params = {"decoder": decoder.init(key, h)["params"], "offset": marginals[:, :size].reshape(-1)}
        if not shared:
            return params
        if counted is not None:
            counted = jnp.broadcast_to(jnp.expand_dims(counted, range(counted.ndim, x.ndim)), x.shape).reshape(-1)
        return params | {"scale": out.fit(x.reshape(-1), counted)[size:]}

    def raw(params: Params, h: Array) -> Array:
        """What the outputs are given, [B, D, out.size]."""
        y = jnp.asarray(decoder.apply({"params": params["decoder"]}, h))
        # of images in one row: elementwise functions of [..., 28, 28, 1] are far slower on the CPU
        y = (y.reshape(h.shape[0], -1) + params["offset"][None]).reshape(h.shape[0], dims, size)
        if not shared:
            return y
        return jnp.concatenate([y, jnp.broadcast_to(params["scale"], (*y.shape[:2], shared))], axis=-1)

    def log_prob(params: Params, h: Array, batch: Batch) -> Array:
        each = out.log_prob(batch["x"].reshape(-1, dims), raw(params, h))
        return sum_event(each if "observed" not in batch else batch["observed"].reshape(-1, dims) * each)

    def sample(params: Params, key: Key, h: Array) -> Array:
        return out.sample(key, raw(params, h), 1.0).reshape(-1, *shape)

    def mean(params: Params, h: Array) -> Array:
        return out.mean(raw(params, h)).reshape(-1, *shape)

    def read(batch: Batch) -> Array:
        x = out.read(batch["x"])
        return x * batch["observed"] if "observed" in batch else x

    return Likelihood(init, log_prob, sample, mean, read, out.support, observed=True)


def _counted(batch: Batch) -> Array | None:
    """What of x is neither padding nor missing: [B], or like x; None for all of it."""
    mask, observed = batch.get("mask"), batch.get("observed")
    if mask is None or observed is None:
        return mask if observed is None else observed
    return jnp.where(jnp.expand_dims(mask != 0, range(1, observed.ndim)), observed, 0)


def of_model(model: Model, decoder: Net, cond_shape: tuple[int, ...], read: Callable[[Array], Array]) -> Likelihood:
    """The likelihood that a conditional model is; its params are "decoder" and "model".

    Args:
        model: has log_prob and sample, and is conditional on arrays.
        decoder: h -> as many numbers as the array has.
        cond_shape: of the array, batch["cond"] [B, *cond_shape] of the model.
        read: x as nets read it.
    """
    assert model.log_prob is not None and model.sample is not None
    model_log_prob, model_sample = model.log_prob, model.sample

    def condition(params: Params, h: Array) -> Array:
        return jnp.asarray(decoder.apply({"params": params["decoder"]}, h)).reshape(-1, *cond_shape)

    def init(key: Key, h: Array, batch: Batch) -> Params:
        decoder_key, model_key = jax.random.split(key)
        params = {"decoder": decoder.init(decoder_key, h)["params"]}
        return params | {"model": model.init(model_key, {**batch, "cond": condition(params, h)})}

    def log_prob(params: Params, h: Array, batch: Batch) -> Array:
        if "observed" in batch:
            raise ValueError(
                'batch["observed"] leaves out dimensions, and those of this p(x | z) are not independent: '
                "give whole examples"
            )
        return model_log_prob(params["model"], None, {**batch, "cond": condition(params, h)})

    def sample(params: Params, key: Key, h: Array) -> Array:
        return model_sample(params["model"], key, h.shape[0], condition(params, h))

    return Likelihood(init, log_prob, sample, None, lambda batch: read(batch["x"]), model.support, observed=None)
