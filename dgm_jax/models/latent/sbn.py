"""Sigmoid belief network with a recognition network: layers of binary latents (a Helmholtz machine).

    p(x, z) = p(x | z_1) p(z_1 | z_2) ... p(z_L)        units of layer l: Bernoulli(sigmoid f_l(z_l+1)); on top, b
    q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | ..)  units of layer l: Bernoulli(sigmoid g_l(z_l-1))

f_l and g_l are linear, as in the papers, or have hidden units. The draws are discrete, so that no gradient passes
through z: what trains q is an estimator of objectives/discrete.py, or a relaxation. With labels y, b and every net read
them.

References: Neal 1992, "Connectionist learning of belief networks"; Hinton, Dayan, Frey & Neal 1995, "The wake-sleep
algorithm for unsupervised neural networks"; Mnih & Gregor 2014, arXiv 1402.0030 (NVIL).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from dgm_jax.models import outputs
from dgm_jax.models.condition import beside, label_of, vector_of
from dgm_jax.models.latent import likelihoods
from dgm_jax.models.latent.units import Units, binary, relaxed_binary
from dgm_jax.nets.mlp import MLP
from dgm_jax.nets.precision import mixed
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params


def make(
    *,
    shape: tuple[int, ...],
    latent: Sequence[int] = (200,),
    hidden: Sequence[int] = (),
    activation: str = "tanh",
    classes: int = 0,
    bf16: bool = False,
) -> Model:
    """A sigmoid belief network with params {"prior", "encoder_0", ..., "decoder", "offset", "decoder_1", ...}.

    z is a tuple of the layers [B, latent[l]], from x upward. `encode` gives the probabilities q(z_1 | x), `decode`
    those of p(x | z_1), and `prior` draws z_1 from the layers above; temperature divides the logits of all latents.
    params["prior"] is b, [latent[-1]], or a row of it for each class; "decoder" and "offset" are those of p(x | z_1).

    Args:
        shape: of one example, of entries in [0, 1].
        latent: number of binary variables of each layer, from x upward.
        hidden: widths of the deterministic layers between every two; () for none.
        activation: of those; a name that nets.mlp knows.
        classes: 0, or the number of labels in batch["cond"] that the model is conditional on.
        bf16: the nets compute in bfloat16; parameters and likelihoods stay float32.

    Raises:
        ValueError: no layer.
    """
    depth = len(latent)
    if not latent:
        raise ValueError("a belief network has at least one layer of latents: latent=(200,)")
    decoder, *decoders = (mixed(MLP((*hidden, width), activation), bf16) for width in (math.prod(shape), *latent[:-1]))
    encoders = [mixed(MLP((*hidden, width), activation), bf16) for width in latent]
    likelihood = likelihoods.independent(shape, decoder, outputs.bernoulli())

    def given(z: Array, cond: Array | None) -> Array:
        return beside(z, vector_of(classes, 0, cond, z))

    def visible(batch: Batch) -> Array:
        """x as layer 0, [B, D]."""
        return likelihood.read(batch).reshape(batch["x"].shape[0], -1)

    def init(key: Key, batch: Batch) -> Params:
        x, cond = visible(batch), batch.get("cond")
        layers = [given(x, cond), *(given(jnp.zeros((x.shape[0], width), x.dtype), cond) for width in latent)]
        keys = jax.random.split(key, (depth, 2))
        params = {"prior": jnp.zeros((classes, latent[-1]) if classes else (latent[-1],), x.dtype)}
        params |= likelihood.init(keys[0, 1], layers[1], batch)
        for l in range(depth):
            params[f"encoder_{l}"] = encoders[l].init(keys[l, 0], layers[l])["params"]
        for l in range(1, depth):
            params[f"decoder_{l}"] = decoders[l - 1].init(keys[l, 1], layers[l + 1])["params"]
        return params

    def total(layers: Iterable[Array]) -> Array:
        return functools.reduce(jnp.add, layers)

    def top(params: Params, n: int, cond: Array | None) -> Array:
        """Logits of p(z_L), [n, latent[-1]]."""
        label = label_of(classes, cond)
        rows = params["prior"]
        return jnp.broadcast_to(rows[None], (n, latent[-1])) if label is None else rows[label]

    def down(params: Params, l: int, z: Array, cond: Array | None) -> Array:
        """Logits of the latents of layer l >= 1 given what is read of the layer above."""
        return jnp.asarray(decoders[l - 1].apply({"params": params[f"decoder_{l}"]}, given(z, cond)))

    def up(params: Params, l: int, z: Array, cond: Array | None) -> Array:
        """Logits of q of layer l + 1 given what is read of layer l."""
        return jnp.asarray(encoders[l].apply({"params": params[f"encoder_{l}"]}, given(z, cond)))

    def of(units: Units) -> Model:
        """The model whose latents are such units."""

        def draw(params: Params, key: Key, batch: Batch) -> tuple[tuple[Array, ...], Array]:
            below, z, log_q = visible(batch), [], []
            for l, layer_key in enumerate(jax.random.split(key, depth)):
                logits = up(params, l, below, batch.get("cond"))
                z.append(units.draw(layer_key, logits))
                log_q.append(sum_event(units.log_prob(z[-1], logits)))
                below = units.read(z[-1])
            return tuple(z), total(log_q)

        def log_posterior(params: Params, z: tuple[Array, ...], batch: Batch) -> Array:
            layers = [visible(batch), *map(units.read, z[:-1])]
            logits = [up(params, l, layer, batch.get("cond")) for l, layer in enumerate(layers)]
            return total(sum_event(units.log_prob(*one)) for one in zip(z, logits, strict=True))

        def log_joint(params: Params, z: tuple[Array, ...], batch: Batch) -> Array:
            cond, read = batch.get("cond"), [units.read(layer) for layer in z]
            logits = [*(down(params, l, read[l], cond) for l in range(1, depth)), top(params, z[0].shape[0], cond)]
            log_prior = total(sum_event(units.log_prob(*one)) for one in zip(z, logits, strict=True))
            return likelihood.log_prob(params, given(read[0], cond), batch) + log_prior

        def latents(params: Params, key: Key, n: int, cond: Array | None, temperature: float) -> list[Array]:
            """Draws of all layers, from x upward."""
            z: list[Array] = []
            keys, logits = jax.random.split(key, depth), top(params, n, cond)
            for l in reversed(range(depth)):
                z.insert(0, units.draw(keys[l], logits / temperature))
                logits = down(params, l, units.read(z[0]), cond) if l else logits
            return z

        def prior(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
            return units.read(latents(params, key, n, cond, temperature)[0])

        def dream(
            params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
        ) -> tuple[tuple[Array, ...], Array]:
            z_key, x_key = jax.random.split(key)
            z = latents(params, z_key, n, cond, temperature)
            return tuple(z), likelihood.sample(params, x_key, given(units.read(z[0]), cond))

        def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
            return dream(params, key, n, cond, temperature)[1]

        return Model(
            init,
            draw=draw,
            log_joint=log_joint,
            log_posterior=log_posterior,
            dream=dream,
            sample=sample,
            prior=prior,
            encode=lambda params, key, batch: jax.nn.sigmoid(up(params, 0, visible(batch), batch.get("cond"))),
            decode=decode,
            support=likelihood.support,
            observed=likelihood.observed,
        )

    def decode(params: Params, key: Key | None, codes: Array, cond: Array | None = None) -> Array:
        assert likelihood.mean is not None
        return likelihood.mean(params, given(codes, cond))

    def relax(temperature: Array | float, kind: str = "concrete") -> Model:
        return of(relaxed_binary(temperature, kind))

    return of(binary())._replace(relax=relax)
