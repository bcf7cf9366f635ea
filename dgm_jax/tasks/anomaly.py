"""Anomaly detection: how little an example looks like the data of a model, and how well that tells other data apart.

Raw likelihood fails where the other data are simple: a model of Fashion-MNIST finds the digits of MNIST more likely
than its own test set (Nalisnick et al. 2019, arXiv 1810.09136). The other scores here look at the parts of a
likelihood, at how typical it is, or at how simple the example is.

A model with a likelihood is asked for that, another for its importance-weighted bound; what a score asks for besides
is in NEEDS.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from dgm_jax.data import transforms
from dgm_jax.data.dataset import Info
from dgm_jax.evaluation import nll as likelihoods
from dgm_jax.types import Array, Batch, Key, Model, Params

DEAREST = 0.05  # share of the dimensions that `surprise` looks at


class Parts(NamedTuple):
    """What a model says of n examples; None where it does not say it."""

    nll: np.ndarray  # [n], -log p(x) of the data in their own units, or the bound on it; nats
    x: np.ndarray  # [n, *event], the examples as the model has them
    predicted: np.ndarray | None = None  # [n, *event], E[x_d | x_<d], or what is decoded of their codes
    cost: np.ndarray | None = None  # [n, *event], -log p(x_d | x_<d), nats
    length: np.ndarray | None = None  # [n], of the packed examples; nats


# From the parts, and the mean negative log-likelihood of data like the model's: [n], higher where one is stranger.
Score = Callable[[Parts, float], np.ndarray]


def nll(parts: Parts, typical: float) -> np.ndarray:
    """The negative log-likelihood, or the bound on it."""
    return parts.nll


def typicality(parts: Parts, typical: float) -> np.ndarray:
    """How far the negative log-likelihood is from that of data (Nalisnick et al. 2019, arXiv 1906.02994, for one)."""
    return np.abs(parts.nll - typical)


def residual(parts: Parts, typical: float) -> np.ndarray:
    """The mean squared error of the predictions, or of the reconstruction."""
    assert parts.predicted is not None
    return ((parts.x - parts.predicted) ** 2).reshape(len(parts.x), -1).mean(1)


def surprise(parts: Parts, typical: float) -> np.ndarray:
    """The mean cost of the dearest dimensions: parts that do not follow from the others."""
    assert parts.cost is not None
    flat = parts.cost.reshape(len(parts.cost), -1)
    k = max(1, round(DEAREST * flat.shape[1]))
    return np.partition(flat, -k, axis=1)[:, -k:].mean(1)


def complexity(parts: Parts, typical: float) -> np.ndarray:
    """The negative log-likelihood less the length of the packed example (Serra et al. 2020, arXiv 1909.11480)."""
    assert parts.length is not None
    return parts.nll - parts.length


SCORES: dict[str, Score] = {
    "nll": nll,
    "typicality": typicality,
    "residual": residual,
    "surprise": surprise,
    "complexity": complexity,
}
NEEDS = {"residual": "predicted", "surprise": "cost", "complexity": "length"}  # score -> field of Parts


def scored(parts: Parts, typical: float) -> dict[str, np.ndarray]:
    """The scores for which the parts are there, [n] each."""
    return {
        name: score(parts, typical)
        for name, score in SCORES.items()
        if name not in NEEDS or getattr(parts, NEEDS[name]) is not None
    }


def packed(x: np.ndarray, levels: int) -> np.ndarray:
    """Lengths, in nats, of numbers 0..levels-1 [n, *event] that zlib packs, a byte each where that is enough: [n]."""
    dtype = np.uint8 if levels <= 256 else np.uint16
    return 8 * np.log(2) * np.array([len(zlib.compress(one.astype(dtype).tobytes(), 9)) for one in x])


def reader(
    model: Model,
    data: Info,
    transform: transforms.Transform,
    k: int,
    chunk: int = 10,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
) -> Callable[[Params, Key, Iterable[Batch]], Parts]:
    """Compile what a model says of examples.

    Args:
        model: with a likelihood or a bound; what else it can say of them is in the parts.
        data: before the transform.
        transform: from the data's units to the model's.
        k: importance samples of the bound, of a model without likelihood.
        chunk, place, whole: as in `nll.scorers` and `nll.per_example`.

    Returns:
        (params, key, batches) -> Parts, of arguments as in `nll.per_example`, for one seed.

    Raises:
        TypeError: the model has neither likelihood nor bound.
    """
    score = likelihoods.per_example(likelihoods.tightest(model, k, chunk), transform, place=place, whole=whole)

    def read(params: Params, key: Key, raw: Batch) -> dict[str, Array]:
        batch, _ = transforms.apply(transform, jax.random.key(likelihoods.DATA_SEED), raw)
        found = {"x": batch["x"]}
        if model.predict is not None:
            found["predicted"] = model.predict(params, None, batch)
        elif model.encode is not None and model.decode is not None:
            codes = model.encode(params, None, batch)
            if sum(code.size for code in jax.tree.leaves(codes)) != batch["x"].size:  # a flow gives x back as it was
                found["predicted"] = model.decode(params, None, codes, batch.get("cond"))
        if model.log_conditionals is not None:
            found["cost"] = -model.log_conditionals(params, None, batch)
        if data.levels:
            found["levels"] = jax.vmap(transform.inverse)(batch["x"])
        return found

    gathered = likelihoods.gather(read, place=place, whole=whole)

    def parts(params: Params, key: Key, batches: Iterable[Batch]) -> Parts:
        batches = list(batches)
        found = gathered(params, key, batches)
        length = packed(found.pop("levels"), data.levels) if "levels" in found else None
        (scores,) = score(params, key, batches).values()
        return Parts(scores.values, length=length, **found)

    return parts


def auroc(inside: np.ndarray, outside: np.ndarray) -> dict[str, Any]:
    """The probability that a score of other data is higher than one of the model's; ties count half.

    Args:
        inside: [n], scores of data like the model's.
        outside: [m], scores of other data.

    Returns:
        A metric; its standard error is that of DeLong et al. 1988, Biometrics 44:837.
    """
    n, m = len(inside), len(outside)
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    below = (ranks[n:] - stats.rankdata(outside)) / n  # of each of the others, the share of `inside` that is lower
    above = 1 - (ranks[:n] - stats.rankdata(inside)) / m  # and of each inside, that of `outside` that is higher
    stderr = float(np.hypot(stats.sem(below), stats.sem(above)))
    return {"value": float(below.mean()), "stderr": stderr, "n": n + m, "kind": "estimate", "unit": "1"}
