"""The bound of annealed importance sampling on a split, and its gap on examples that the model makes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import transforms
from dgm_jax.evaluation import nll
from dgm_jax.inference import marginal
from dgm_jax.types import Array, Batch, Key, Model, Params

STARTS: dict[str, tuple[Callable[..., marginal.PathOf], tuple[str, ...]]] = {
    "posterior": (marginal.from_posterior, ("draw", "log_posterior", "log_joint")),
    "prior": (marginal.from_prior, ("prior", "log_prior", "log_joint")),
}


def paths(model: Model, start: str = "posterior") -> marginal.PathOf:
    """Paths to p(x, z) from a row of STARTS.

    Raises:
        ValueError: an unknown start.
        TypeError: the model lacks a capability.
    """
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r} of annealed importance sampling; one of {', '.join(STARTS)}")
    function, names = STARTS[start]
    if missing := [name for name in names if getattr(model, name) is None]:
        raise TypeError(
            f"annealed importance sampling from the {start} needs the capability {missing[0]!r}, which the model lacks"
        )
    return function(*(getattr(model, name) for name in names))


def evaluator(
    model: Model,
    annealing: marginal.Annealing,
    start: str,
    transform: transforms.Transform,
    mass: bool = False,
    vectorize: bool = True,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
    simulated: int = 0,
    classes: int = 0,
    bound: tuple[str, nll.Scorer] | None = None,
) -> Callable[[Params, Key, Iterable[Batch]], dict[str, nll.Metric]]:
    """Compile the metrics "ais_<T>", a bound on the negative log-likelihood, and "ais_<T>_gap".

    The gap is BDMC's, and a bound on the error that AIS makes on average, on examples drawn from the model.
    "ais_<T>_<bound>" is another bound on the same examples, and "ais_<T>_gain" how much lower AIS is.

    Args:
        model: any with what `paths` asks for; for the gap, with `dream`.
        annealing, start: as in `inference.marginal` and `paths`.
        transform, mass, vectorize, place, whole: as in `nll.evaluator`.
        simulated: examples of the gap; 0 for none.
        classes: of their labels, which count up; 0 for none.
        bound: the name of another bound, and the bound; None for no other.

    Returns:
        (params, key, batches) -> metrics by name, of arguments as in `nll.per_example`.

    Raises:
        ValueError, TypeError: as in `paths`; or a gap is asked for, and the model has no `dream`.
    """
    path_of, dream, name = paths(model, start), model.dream, f"ais_{annealing.temperatures}"
    if simulated and dream is None:
        raise TypeError("the gap of BDMC needs the capability 'dream', which the model lacks: set eval.bdmc=0")

    def apply(params: Params, key: Key, batch: Batch) -> Array:
        def one(example: Batch) -> Array:
            own_key = jax.random.fold_in(key, example["index"])
            return -marginal.log_marginal(own_key, path_of(params, example), annealing).log_z

        return jax.vmap(one)(batch)

    scorers = {name: nll.Scorer("bound", apply, k=annealing.chains)}
    gains = {}
    if bound is not None:
        other = f"{name}_{bound[0]}"
        scorers[other], gains[f"{name}_gain"] = bound[1], (other, name)
    score = nll.evaluator(scorers, transform, mass, vectorize, place, whole, gains)

    @partial(jax.jit, out_shardings=whole)
    def gaps(params: Params, key: Key) -> Array:
        def run(params: Params, key: Key) -> Array:
            assert dream is not None
            cond = jnp.arange(simulated) % classes if classes else None
            found = marginal.bdmc(path_of, dream, params, key, simulated, annealing, cond)
            return found.upper - found.lower

        return nll.over_seeds(run, params, key, vectorize)

    def evaluate(params: Params, key: Key, batches: Iterable[Batch]) -> dict[str, nll.Metric]:
        score_key, gap_key = _both(key)
        metrics = score(params, score_key, batches)
        if simulated:
            values = np.asarray(gaps(params, gap_key), np.float64)
            metrics[f"{name}_gap"] = nll.metric(values, "bound", "nats", k=annealing.chains)
        return metrics

    return evaluate


def _both(key: Key) -> tuple[Key, Key]:
    """Two keys of one, or of each of N."""
    pair = jax.random.split(key) if key.ndim == 0 else jnp.swapaxes(jax.vmap(jax.random.split)(key), 0, 1)
    return pair[0], pair[1]
