"""Negative log-likelihoods of a split, each with its standard error and with its kind: exact, bound or estimate.

A number is for the data in its own units: the transform's log-determinant is in it. Draws of the data
(dequantization, resampled binarization) are the same in every evaluation, whatever the model, seed or step.
Those of a bound depend on the evaluation's key and the example's index alone. So batch size and padding
change nothing.

Where the prior of z has a density, the ELBO is shown in its two parts as well: the rate, E[log q(z | x) - log p(z)],
what z costs, and the distortion, E[-log p(x | z)], what x costs then (Alemi et al. 2018, arXiv 1711.00464).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from dgm_jax.data import transforms
from dgm_jax.inference.importance import importance_bound
from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree

DATA_SEED = 2**31 - 1  # of the one draw of the data that every evaluation sees

Metric = dict[str, Any]


class Scorer(NamedTuple):
    """A negative log-likelihood in the model's space, a part of one, or what stands for one: lower is better."""

    kind: str  # "exact", "bound" (from above) or "estimate"
    apply: Callable[[Params, Key, Batch], Array]  # -> nats [B]
    # (params, key) -> (nats to add to every score [], their standard error []), computed once an evaluation. What
    # is exact but for its offset is an estimate where that error is not 0
    offset: Callable[[Params, Key], tuple[Array, Array]] | None = None
    k: int | None = None  # importance samples, or chains
    keys_of: str = ""  # the scorer whose draws it looks at; "" for its own
    of_x: bool = True  # it counts x, in the data's units: with the log-determinant, and in bits/dim


def scorers(model: Model, k: int = 1, chunk: int = 16) -> dict[str, Scorer]:
    """Choose scores by what the model can do.

    Args:
        model: any; one with neither likelihood nor bound has no scorer: see `samples.sample_scores`.
        k: importance samples of the tighter bound; 1 for the ELBO alone.
        chunk: draws at once: memory grows with it, and the result is that of any other.

    Returns:
        "nll" of log_prob, of expect, or of energy and log_partition, the first that there is; and where there
        are draw and log_joint, "elbo" (its negative) and "iwae_<k>", and with log_prior the "rate" and "distortion"
        of the draws of the ELBO, which they add up to.
    """
    found: dict[str, Scorer] = {}
    if (log_prob := model.log_prob) is not None:
        found["nll"] = Scorer("exact", lambda params, key, batch: -log_prob(params, None, batch))
    elif (expect := model.expect) is not None:
        found["nll"] = Scorer("exact", lambda params, key, batch: -expect(params, None, batch)[1])
    elif (energy := model.energy) is not None and model.log_partition is not None:
        found["nll"] = Scorer("exact", lambda params, key, batch: energy(params, None, batch), model.log_partition)
    if (draw := model.draw) is not None and (log_joint := model.log_joint) is not None:
        found["elbo"] = Scorer("bound", _negative_bound(draw, log_joint, 1, 1), k=1)
        if k > 1:
            found[f"iwae_{k}"] = Scorer("bound", _negative_bound(draw, log_joint, k, chunk), k=k)
        if (log_prior := model.log_prior) is not None:

            def rate(params: Params, key: Key, batch: Batch) -> Array:
                z, log_q = draw(params, jax.random.fold_in(key, 0), batch)
                return log_q - log_prior(params, z, batch)

            def distortion(params: Params, key: Key, batch: Batch) -> Array:
                z, _ = draw(params, jax.random.fold_in(key, 0), batch)
                return log_prior(params, z, batch) - log_joint(params, z, batch)

            found["rate"] = Scorer("estimate", one_by_one(rate), k=1, keys_of="elbo", of_x=False)
            found["distortion"] = Scorer("estimate", one_by_one(distortion), k=1, keys_of="elbo")
    return found


def tightest(model: Model, k: int, chunk: int = 16) -> dict[str, Scorer]:
    """The scorer of the likelihood or else of the tightest bound on it, by its name; arguments as in `scorers`.

    Raises:
        TypeError: the model has neither.
    """
    found = scorers(model, k, chunk)
    for name in ("nll", f"iwae_{k}", "elbo"):
        if name in found:
            return {name: found[name]}
    has = ", ".join(name for name in Model._fields if getattr(model, name) is not None)
    raise TypeError(f"what is asked for takes a model with a likelihood or a bound on it; this one has: {has}")


def _negative_bound(draw: Callable, log_joint: Callable, k: int, chunk: int) -> Callable:
    """The negative of the importance-weighted bound."""
    return one_by_one(lambda params, key, batch: -importance_bound(draw, log_joint, params, key, batch, k, chunk))


def one_by_one(f: Callable[[Params, Key, Batch], Array]) -> Callable[[Params, Key, Batch], Array]:
    """f of each example as a batch of one, with the key fold_in(key, index)."""

    def apply(params: Params, key: Key, batch: Batch) -> Array:
        def one(example: Batch) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], example)
            return f(params, jax.random.fold_in(key, example["index"]), alone)[0]

        return jax.vmap(one)(batch)

    return apply


def gather(
    f: Callable[[Params, Key, Batch], PyTree],
    vectorize: bool = True,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
) -> Callable[[Params, Key, Iterable[Batch]], PyTree]:
    """Compile f, once for all evaluations of a run, and what joins its results over batches without their padding.

    Args:
        f: (params, key, batch) -> a pytree of leaves [B, ...].
        vectorize, place, whole: as in `per_example`.

    Returns:
        (params, key, batches) -> the pytree, leaves [n, ...] in double precision, or [N, n, ...] given keys [N].
    """

    @partial(jax.jit, out_shardings=whole)
    def run(params: Params, key: Key, batch: Batch) -> PyTree:
        return over_seeds(lambda params, key: f(params, key, batch), params, key, vectorize)

    def run_all(params: Params, key: Key, batches: Iterable[Batch]) -> PyTree:
        parts = []
        for batch in batches:
            real = np.asarray(batch["mask"]) != 0  # `compress` drops what lies beyond it too: padding by `place`
            found = run(params, key, place(batch))
            parts.append(jax.tree.map(lambda x: np.compress(real, np.asarray(x, np.float64), axis=key.ndim), found))
        if not parts:
            raise ValueError("there are no examples to evaluate")
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=key.ndim), *parts)

    return run_all


def over_seeds(f: Callable[[Params, Key], PyTree], params: Params, key: Key, vectorize: bool) -> PyTree:
    """f(params, key), or of each of N seeds where the keys are [N]."""
    if key.ndim == 0:
        return f(params, key)
    return jax.vmap(f)(params, key) if vectorize else jax.lax.map(lambda both: f(*both), (params, key))


class Scores(NamedTuple):
    """Scores of every example, in nats, for the data in its own units."""

    values: np.ndarray  # [n] in the order of the batches, or [N, n] over seeds
    offset_stderr: np.ndarray  # [] or [N]


def per_example(
    scorers: Mapping[str, Scorer],
    transform: transforms.Transform,
    vectorize: bool = True,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
) -> Callable[[Params, Key, Iterable[Batch]], dict[str, Scores]]:
    """Compile the scoring of examples, once for all evaluations of a run.

    Args:
        scorers: by name.
        transform: from the data's units to the model's.
        vectorize: seeds under vmap; else in turn under lax.map, faster for convolutions on the CPU.
        place: puts a batch on the devices, perhaps a part on each, and perhaps with more padding at its end.
        whole: where scores are put, so that every process can read them.

    Returns:
        (params, key, batches) -> scores by name. The batches are of one shape, with "x" in the data's units,
        "index" [B] and "mask" [B], as pipeline.eval_batches gives them. Given keys [N], params have a leading
        [N]: so many seeds.
    """

    index = {name: j for j, name in enumerate(scorers)}

    def score(params: Params, key: Key, batch: Batch) -> dict[str, Array]:
        batch, log_det = transforms.apply(transform, jax.random.key(DATA_SEED), batch)
        return {
            name: scorer.apply(params, jax.random.fold_in(key, index[scorer.keys_of or name]), batch)
            - (log_det if scorer.of_x else 0)
            for name, scorer in scorers.items()
        }

    gathered = gather(score, vectorize, place, whole)

    @partial(jax.jit, out_shardings=whole)
    def offsets(params: Params, key: Key) -> dict[str, tuple[Array, Array]]:
        def run(params: Params, key: Key) -> dict[str, tuple[Array, Array]]:
            return {
                name: scorer.offset(params, jax.random.fold_in(key, len(scorers) + j))
                for j, (name, scorer) in enumerate(scorers.items())
                if scorer.offset is not None
            }

        return over_seeds(run, params, key, vectorize)

    def score_all(params: Params, key: Key, batches: Iterable[Batch]) -> dict[str, Scores]:
        found = gathered(params, key, batches)
        added = offsets(params, key)
        scores = {}
        for name in scorers:
            offset, stderr = (np.asarray(a, np.float64) for a in added.get(name, (0.0, 0.0)))
            scores[name] = Scores(found[name] + offset[..., None], stderr)
        return scores

    return score_all


def evaluator(
    scorers: Mapping[str, Scorer],
    transform: transforms.Transform,
    mass: bool = False,
    vectorize: bool = True,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
    differences: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Callable[[Params, Key, Iterable[Batch]], dict[str, Metric]]:
    """Compile an evaluation, once for all of a run.

    Args:
        scorers: by name.
        transform: from the data's units to the model's; by its levels it says whether there are bits/dim.
        mass: the model gives probabilities of binary values or of grey levels, not a density.
        vectorize, place, whole: as in `per_example`.
        differences: name -> (a, b), metrics that are score a less score b, example by example.

    Returns:
        (params, key, batches) -> metrics by name, of arguments as in `per_example`. Where bits/dim mean
        something, each score of x has a second row, "<name>_bits_per_dim"; of dequantized data they are a bound.
        Where dimensions are missing, numbers are of what is observed, and there are no bits/dim.
    """
    info = transform.info
    dequantized = info.kind == "real" and info.levels > 0
    in_bits = not transform.missing and (dequantized or (mass and info.kind in ("binary", "levels")))
    unit = "nats of what is observed" if transform.missing else "nats"
    score = per_example(scorers, transform, vectorize, place, whole)

    def evaluate(params: Params, key: Key, batches: Iterable[Batch]) -> dict[str, Metric]:
        metrics, scores = {}, score(params, key, batches)
        for name, (values, stderr) in scores.items():
            kind, k = scorers[name].kind, scorers[name].k
            if kind == "exact" and np.any(stderr != 0):
                kind = "estimate"
            if kind == "exact" and transform.variational:
                kind = "bound"
            metrics[name] = metric(values, kind, unit, stderr, k)
            if in_bits and scorers[name].of_x:
                bits = transforms.bits_per_dim(1.0, info, mass)
                if kind == "exact" and dequantized:
                    kind = "bound"
                metrics[f"{name}_bits_per_dim"] = metric(bits * values, kind, "bits/dim", bits * stderr, k)
        for name, (a, b) in differences.items():
            metrics[name] = metric(scores[a].values - scores[b].values, "estimate", unit)
        return metrics

    return evaluate


def metric(
    values: np.ndarray,
    kind: str,
    unit: str,
    offset_stderr: np.ndarray | float = 0.0,
    k: int | None = None,
) -> Metric:
    """Reduce scores of examples to a number that says what it is.

    Args:
        values: [n], or [N, n] over seeds.
        kind: "exact", "bound" or "estimate".
        unit: of the values.
        offset_stderr: standard error of what was added to all n values alike, [] or [N].
        k: importance samples.

    Returns:
        {"value", "stderr", "n", "kind", "unit"}, and "k" where given. Over seeds, value and stderr are of the
        mean over seeds, and "per_seed" lists their means. Values that are not finite are not left out: they
        make the mean so, and "nonfinite" counts them.

    Raises:
        ValueError: no examples.
    """
    n = values.shape[-1]
    if n == 0:
        raise ValueError("there are no examples to evaluate")
    with np.errstate(invalid="ignore"):  # inf - inf
        means = values.mean(axis=-1)
        stderr = _stderr(means) if values.ndim == 2 else np.hypot(_stderr(values), offset_stderr)
    result = {"value": float(means.mean()), "stderr": float(stderr), "n": n, "kind": kind, "unit": unit}
    if k is not None:
        result["k"] = k
    if values.ndim == 2:
        result["per_seed"] = means.tolist()
    if nonfinite := int(np.sum(~np.isfinite(values))):
        result["nonfinite"] = nonfinite
    return result


def joined_seeds(found: Sequence[dict[str, Metric]]) -> dict[str, Metric]:
    """Join the metrics of seeds that were evaluated one by one: mean and standard error over the seeds."""
    if len(found) == 1:
        return found[0]
    joined = {}
    for name, first in found[0].items():
        values = np.array([metrics[name]["value"] for metrics in found])
        spread = {"value": float(values.mean()), "stderr": float(_stderr(values)), "per_seed": values.tolist()}
        joined[name] = {k: v for k, v in first.items() if k not in ("p_value", "nonfinite")} | spread
        if bad := sum(metrics[name].get("nonfinite", 0) for metrics in found):
            joined[name]["nonfinite"] = bad
    return joined


def _stderr(values: np.ndarray) -> float:
    """Standard error of the mean of values [n]; infinite for one value, which shows no spread."""
    return values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
