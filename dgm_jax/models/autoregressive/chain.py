"""The chain rule: what a model says of an event and of its parts, from what the outputs of all dimensions are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dgm_jax.models.outputs import Output
from dgm_jax.types import Array, Batch, Key, Params


class Chain(NamedTuple):
    """What `Model` has by these names."""

    log_prob: Callable[[Params, Key | None, Batch], Array]
    log_conditionals: Callable[[Params, Key | None, Batch], Array]
    predict: Callable[[Params, Key | None, Batch], Array]


def make(output: Output, raw: Callable[[Params, Key | None, Batch], Array]) -> Chain:
    """The chain of a causal net.

    Args:
        output: of a dimension.
        raw: (params, key, batch) -> what the outputs are given, [B, *event, size] or [B, D, size].
    """

    def log_conditionals(params: Params, key: Key | None, batch: Batch) -> Array:
        x = batch["x"]
        flat = x.reshape(x.shape[0], -1)  # a last axis of one channel is many times slower on the CPU
        found = raw(params, key, batch).reshape(*flat.shape, output.size)
        return output.log_prob(flat, found).reshape(x.shape)

    def log_prob(params: Params, key: Key | None, batch: Batch) -> Array:
        return log_conditionals(params, key, batch).reshape(batch["x"].shape[0], -1).sum(-1)

    def predict(params: Params, key: Key | None, batch: Batch) -> Array:
        return output.mean(raw(params, key, batch)).reshape(batch["x"].shape)

    return Chain(log_prob, log_conditionals, predict)
