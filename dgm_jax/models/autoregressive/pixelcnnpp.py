"""PixelCNN++: gated residual blocks at several resolutions, and a mixture of logistics for whole pixels of grey levels.

    log p(x | c) = sum_ij log sum_k pi_k prod_d Logistic(x_ijd; mu_kd(x_ij<d), s_kd),   discretized to grey levels
    u'  = u  + gate(D_2x3 elu(D_2x3 elu(u)  + N elu(skip))     + c)
    ul' = ul + gate(D_2x2 elu(D_2x2 elu(ul) + N elu(u', skip)) + c)
    elu(h) = elu of (h, -h),   gate(a, b) = a sigmoid(b)

Stream u sees the rows strictly above a pixel, stream ul besides them the pixels to its left; neither sees the pixel
itself. D is a causal convolution over two rows, N one over single pixels. A block on the way up to full resolution has
for `skip` the one on the way down. At half the resolution, (I, J) sees u up to row 2I, and ul up to row 2I, column 2J,
and so the pixels above (2I, 2J) and to its left; it is handed to the four pixels from there on.

The channels of a pixel hang together in the output alone (`outputs.coupled_logistic`), so that they are drawn from one
evaluation of the net. Other than in the paper, kernels are not weight-normalised, and those of u with stride 2 are 2x2.

References: Salimans, Karpathy, Chen & Kingma 2017, arXiv 1701.05517; sampling from caches as Ramachandran et al. 2017,
arXiv 1704.06001.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.models import outputs
from dgm_jax.models.autoregressive import raster
from dgm_jax.models.images import image
from dgm_jax.models.options import at_least
from dgm_jax.nets.causal import shift_down, shift_right
from dgm_jax.nets.mlp import Dense
from dgm_jax.nets.precision import broadcast
from dgm_jax.nets.stepwise import Causal, Down, Place, Up
from dgm_jax.types import Array, Model, Params, PyTree

Conditions = Array | None  # [B, K]
STATES = ["rows", "left", "above", "below"]  # what the layers keep, see nets.stepwise
small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")  # blocks start near the identity


def concat_elu(x: Array) -> Array:
    """[..., F] -> [..., 2 F]: both signs through an ELU."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


class Block(nn.Module):
    """Gated residual block of a stream, whose convolutions reach `right` columns to the right."""

    right: int
    dropout: float

    @nn.compact
    def __call__(
        self, h: Array, beside: Sequence[Array], c: Conditions, deterministic: bool, at: Place | None
    ) -> Array:
        """h [B, H, W, F], what else it sees of the same pixels, conditions [B, K] -> like h."""
        features = h.shape[-1]
        a = Causal(features, 2, 1, self.right)(concat_elu(h), at)
        if beside:
            a = a + Dense(features)(concat_elu(jnp.concatenate(beside, axis=-1)))
        a = nn.Dropout(self.dropout)(concat_elu(a), deterministic=deterministic)
        a = Causal(2 * features, 2, 1, self.right, kernel_init=small)(a, at)
        if c is not None:
            a = a + broadcast(Dense(2 * features, use_bias=False)(c)[:, None, None], a.shape)
        value, gate = jnp.split(a, 2, axis=-1)
        return h + value * nn.sigmoid(gate)


class Stream(nn.Module):
    """Blocks at falling, then at rising resolution."""

    right: int  # columns that the convolutions reach to the right: 1 in u, 0 in ul
    blocks: int
    stages: int
    dropout: float

    @nn.compact
    def __call__(
        self, h: Array, beside: Sequence[Array], c: Conditions, deterministic: bool, at: Place | None
    ) -> list[Array]:
        """h [B, H, W, F], what the blocks of the other stream gave, or nothing -> what each block gives."""
        places = [None if at is None else at.at_stage(stage) for stage in range(self.stages)]
        found: list[Array] = []

        def block(h: Array, stage: int, *skip: Array) -> Array:
            also = (beside[len(found)], *skip) if beside else skip
            found.append(Block(self.right, self.dropout)(h, also, c, deterministic, places[stage]))
            return found[-1]

        features, skips = h.shape[-1], [h]
        for stage in range(self.stages):
            if stage > 0:
                h = Down(features, left=1 - self.right)(h, places[stage - 1])
                skips.append(h)
            for _ in range(self.blocks):
                h = block(h, stage)
                skips.append(h)
        h = skips.pop()
        for stage in reversed(range(self.stages)):
            for _ in range(self.blocks + (stage < self.stages - 1)):
                h = block(h, stage, skips.pop())
            if stage > 0:
                h = Up(features)(h, places[stage - 1])
        return found


class Network(nn.Module):
    """x [B, H, W, C], conditions [B, K] -> [B, H, W, size]."""

    size: int
    features: int
    blocks: int
    stages: int
    dropout: float

    def setup(self) -> None:
        """The first layers, of x moved down or to the right by a pixel, the streams, and the head."""
        self.first_u = Causal(self.features, rows=2, left=1, right=1)
        self.first_above = Causal(self.features, rows=1, left=1, right=1)
        self.first_left = Causal(self.features, rows=2, left=0, right=0)
        self.u = Stream(1, self.blocks, self.stages, self.dropout)
        self.ul = Stream(0, self.blocks, self.stages, self.dropout)
        self.head = Dense(self.size, kernel_init=nn.initializers.zeros)

    def __call__(self, x: Array, c: Conditions, deterministic: bool = True) -> Array:
        """What the outputs of all pixels are given."""
        x = inside(x)
        return self.left(shift_right(x), self.above(shift_down(x), c, deterministic), c, deterministic)

    def above(self, x: Array, c: Conditions, deterministic: bool = True, at: Place | None = None) -> list[Array]:
        """What ul is given by the rows above: for its first layer, then for each block.

        x is the image moved down by a row, or at a row, the row above it: [B, 1, W, C + 1].
        """
        return [self.first_above(x, at), *self.u(self.first_u(x, at), (), c, deterministic, at)]

    def left(
        self, x: Array, given: Sequence[Array], c: Conditions, deterministic: bool = True, at: Place | None = None
    ) -> Array:
        """The outputs. x is the image moved to the right, or at a pixel, the one to its left: [B, 1, 1, C + 1]."""
        first, *beside = given
        h = self.ul(first + self.first_left(x, at), beside, c, deterministic, at)[-1]
        return self.head(nn.elu(h))


def inside(x: Array) -> Array:
    """With one more channel, of ones, by which a black pixel and what lies outside of the image differ."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def make(
    *,
    shape: tuple[int, ...],
    features: int = 64,
    blocks: int = 2,
    stages: int = 3,
    components: int = 10,
    levels: int = 256,
    dropout: float = 0.0,
    classes: int = 0,
    cond_size: int = 0,
    bf16: bool = False,
) -> Model:
    """PixelCNN++ over images of grey levels 0..levels-1.

    Args:
        shape: of an image, (H, W, C).
        features: of each stream.
        blocks: of each stream at each resolution, on the way down; on the way up one more, but at the lowest.
        stages: resolutions, each half of the one before.
        components: of the mixture.
        levels: grey levels of a channel.
        dropout: rate inside the blocks, where a key is given.
        classes: number of labels in batch["cond"]; 0 for none.
        cond_size: length of the vectors in batch["cond"]; 0 for none.
        bf16: the net computes in bfloat16; parameters and likelihoods stay float32.

    Returns:
        init, log_prob, log_conditionals, predict, sample, complete.

    Raises:
        ValueError: H or W cannot be halved so often, or there are no stages or blocks.
    """
    at_least(1, blocks=blocks, stages=stages)
    _, width, channels = image(shape, stages - 1)
    out = outputs.logistic(components, levels)
    coupled = outputs.coupled_logistic(channels, components, levels)
    network = Network(coupled.size, features, blocks, stages, dropout)

    def cached(params: Params, n: int, c: Conditions) -> raster.Cached:
        def run(method: str, kept: PyTree, *arguments: Any, at: Place) -> Any:
            everything = {"params": params, **kept}
            return network.apply(everything, *arguments, c, at=at, method=method, mutable=STATES)

        def above(memory: tuple[Array, Array, PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            row, x, rows, features = memory
            given, kept = run("above", {"rows": rows}, x, at=Place(row))
            given = [jnp.repeat(a, width // a.shape[2], axis=2) for a in given]
            columns = [jnp.moveaxis(a, 2, 0)[..., None, :] for a in given]
            return (row, x, kept["rows"], features), (columns, features, jnp.full(width, row), jnp.arange(width))

        def pixel(left: PyTree, from_above: PyTree, x: Array) -> tuple[PyTree, PyTree, Array]:
            given, features, row, column = from_above
            before = jnp.where(column > 0, inside(x[-2]), 0)[:, None, None]
            raw, kept = run("left", {"left": left, "above": features}, before, given, at=Place(row, column))
            return kept["left"], kept["below"], raw[:, 0, 0]

        def below(memory: tuple[Array, Array, PyTree, PyTree], features: PyTree, x: Array) -> PyTree:
            row, _, rows, _ = memory
            return row + 1, inside(jnp.swapaxes(x, 0, 1))[:, None], rows, features

        def states() -> tuple[PyTree, PyTree, PyTree]:
            given, of_row = run("above", {}, outside, at=Place(start))
            given = [a[:, :, :1] for a in given]
            _, of_pixel = run("left", {}, outside[:, :, :1], given, at=Place(start, start))
            return of_row["rows"], of_pixel["left"], jax.tree.map(lambda a: jnp.stack([a] * width), of_pixel["above"])

        start, outside = jnp.zeros((), int), jnp.zeros((n, 1, width, channels + 1), params["head"]["bias"].dtype)
        rows, left, features = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(states))
        return raster.Cached(2, (start, outside, rows, features), above, left, pixel, below)

    return raster.model(network, out, shape, cached, coupled=coupled, classes=classes, cond_size=cond_size, bf16=bf16)
