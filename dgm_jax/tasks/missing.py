"""Missing data: what is not observed of an example is filled in with its mean given what is.

    E[x_mis | x_obs] = sum_i w_i E[x_mis | z_i],   z_i ~ q(z | x_obs),   w_i = p(x_obs, z_i) / q(z_i | x_obs) / const

by self-normalised importance sampling (Mattei & Frellsen 2019, arXiv 1812.02633, on single imputation), exact as the
number of draws grows. A model without such latents that draws what is missing gives the mean of its draws, in whose
squared error a k-th of their variance is left.

Errors are those of the values that were hidden, squared; of binarized data, those of what was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import transforms
from dgm_jax.data.dataset import Info
from dgm_jax.evaluation import nll
from dgm_jax.inference.importance import posterior_mean
from dgm_jax.numerics import sum_event
from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree

Values = Callable[[Array], Array]  # a batch's x, as the model has it -> the values whose errors are measured


def imputer(model: Model, k: int, chunk: int = 10) -> Callable[[Params, Key, Batch], Array]:
    """What fills in the missing dimensions of a batch with "observed".

    Args:
        model: with draw, log_joint and decode, of which `observed` says that they leave out what is missing, or with
            `complete`.
        k: draws. Draw i has the key fold_in(key, i).
        chunk: draws at once: memory grows with it and not with k.

    Returns:
        (params, key, batch) -> like x, where what is observed is as it was.

    Raises:
        ValueError: k is no number of draws.
        TypeError: the model has neither.
    """
    if k < 1:
        raise ValueError(f"imputation takes at least one draw, not {k}")
    draw, log_joint, decode, complete = model.draw, model.log_joint, model.decode, model.complete
    latent = model.observed and draw is not None and log_joint is not None and decode is not None
    if not latent and complete is None:
        has = ", ".join(name for name in Model._fields if getattr(model, name) is not None)
        raise TypeError(
            "imputation needs a model with draw, log_joint and decode that leaves out what is not observed, or one "
            f"with complete; this one has: {has}"
        )

    def completed(params: Params, key: Key, batch: Batch) -> tuple[PyTree, Array]:
        assert complete is not None
        x = complete(params, key, batch)
        return x, jnp.zeros(x.shape[0], x.dtype)

    def impute(params: Params, key: Key, batch: Batch) -> Array:
        if latent:
            assert draw is not None and log_joint is not None and decode is not None
            mean = posterior_mean(
                draw, log_joint, lambda z: decode(params, None, z, batch.get("cond")), params, key, batch, k, chunk
            )
        else:  # draws of the conditional itself: weights are equal
            alike = lambda params, x, batch: jnp.zeros(x.shape[0], x.dtype)  # noqa: E731
            mean = posterior_mean(completed, alike, lambda x: x, params, key, batch, k, chunk)
        return jnp.where(batch["observed"] != 0, batch["x"], mean)

    return impute


def measured(data: Info, transform: transforms.Transform) -> tuple[Values, str]:
    """What errors are of, and their unit: the data's own values scaled to [0, 1], grey levels as the inverse of the
    transform has them, which of dequantized ones is whole.

    Data without a range are left as the transform gives them.
    """
    if data.range is None:
        return lambda x: x, "squared, of the transformed data"
    low, high = data.range
    return lambda x: (jax.vmap(transform.inverse)(x) - low) / (high - low), "squared, of values in [0, 1]"


def evaluator(
    model: Model,
    data: Info,
    transform: transforms.Transform,
    k: int,
    chunk: int = 10,
    vectorize: bool = True,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
) -> Callable[[Params, Key, Iterable[Batch]], dict[str, nll.Metric]]:
    """Compile the metric "impute_mse", the mean squared error over all hidden dimensions.

    Args:
        model, k, chunk: as in `imputer`.
        data: before the transform.
        transform: one that hides dimensions.
        vectorize, place, whole: as in `nll.evaluator`.

    Returns:
        (params, key, batches) -> metrics by name, of arguments as in `nll.evaluator`.

    Raises:
        ValueError, TypeError: as in `imputer`.
    """
    impute = nll.one_by_one(imputer(model, k, chunk))
    values, unit = measured(data, transform)

    def errors(params: Params, key: Key, batch: Batch) -> tuple[Array, Array]:
        given, truth = _both(transform, batch)
        return _errors(given["observed"], values(impute(params, key, given)), values(truth))

    gathered = nll.gather(errors, vectorize, place, whole)

    def evaluate(params: Params, key: Key, batches: Iterable[Batch]) -> dict[str, nll.Metric]:
        squares, hidden = gathered(params, key, batches)
        return {"impute_mse": mean_over_hidden(squares, hidden, unit, k)}

    return evaluate


def mean_imputation(
    data: Info,
    train: transforms.Transform,
    transform: transforms.Transform,
    train_batches: Iterable[Batch],
    batches: Iterable[Batch],
) -> nll.Metric:
    """The error of filling in the mean of what was observed of a dimension in the training data; no model is asked.

    It is the mean of the values that a model has, and is taken back to the data's as what a model fills in is.

    Args:
        data: before the transforms.
        train, transform: of the training split, and of the split whose error it is; both hide dimensions.
        train_batches, batches: of the two, as pipeline.eval_batches gives them.
    """
    values, unit = measured(data, transform)

    @jax.jit
    def sums(batch: Batch) -> tuple[Array, Array]:
        given, _ = transforms.apply(train, jax.random.key(nll.DATA_SEED), batch)
        observed = given["observed"] * jnp.expand_dims(batch["mask"], range(1, given["observed"].ndim))
        return (observed * given["x"]).sum(0), observed.sum(0)

    def errors(mean: Array, key: Key, batch: Batch) -> tuple[Array, Array]:
        given, truth = _both(transform, batch)
        return _errors(given["observed"], jnp.broadcast_to(mean[None], truth.shape), values(truth))

    found = [jax.tree.map(lambda x: np.asarray(x, np.float64), sums(batch)) for batch in train_batches]
    total, count = (sum(parts) for parts in zip(*found, strict=True))
    mean = values(jnp.asarray(total / np.maximum(count, 1))[None])[0]
    squares, hidden = nll.gather(errors)(mean, jax.random.key(0), batches)
    return mean_over_hidden(squares, hidden, unit)


def mean_over_hidden(squares: np.ndarray, hidden: np.ndarray, unit: str, k: int | None = None) -> nll.Metric:
    """Errors of examples as one over all their hidden dimensions.

    Args:
        squares, hidden: the sum of squared errors of each example, and over how many dimensions: [n], or [N, n] over
            seeds.
        unit, k: as in `nll.metric`.

    Returns:
        A metric. The value is a ratio of means, and its standard error that of the linearised ratio (Cochran 1977,
        Sampling techniques, section 2.11).
    """
    ratio = squares.sum(-1, keepdims=True) / hidden.sum(-1, keepdims=True)
    linear = ratio + (squares - ratio * hidden) / hidden.mean(-1, keepdims=True)  # its mean is the ratio
    return nll.metric(linear, "estimate", unit, k=k)


def _both(transform: transforms.Transform, batch: Batch) -> tuple[Batch, Array]:
    """What is given of a batch, and all of x."""
    key = jax.random.key(nll.DATA_SEED)
    return transforms.apply(transform, key, batch)[0], transforms.apply(transforms.whole(transform), key, batch)[0]["x"]


def _errors(observed: Array, filled: Array, truth: Array) -> tuple[Array, Array]:
    """Of each example the sum of squared errors where it is not observed, and over how many dimensions: [B], [B]."""
    hidden = (observed == 0).astype(filled.dtype)
    return sum_event(hidden * (filled - truth) ** 2), sum_event(hidden)
