"""Two stages: priors over the codes of a trained autoencoder make it a model of its data.

    log p(x) >= log p(code_top) + log p(code_bottom | code_top) + log p(x | codes),    codes = encode(x)

`dgm train` on data of the name codes:<workdir> trains a prior, which is any model of grey levels; that of a bottom
level names the run of the top one's. Here they are put together: sampling, and the bound, of the last of the priors.

References: van den Oord et al. 2017, arXiv 1711.00937, section 3.3; Razavi et al. 2019, arXiv 1906.00446.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dgm_jax.data import pipeline, transforms
from dgm_jax.evaluation import nll
from dgm_jax.loading import CODES, Stage, mesh_here, stage
from dgm_jax.runs import Run, draw_samples
from dgm_jax.training import parallel
from dgm_jax.types import Array, Key, Model


class TwoStage(NamedTuple):
    """An autoencoder and a prior for each of its levels, top first."""

    first: Stage
    priors: dict[str, Stage]


def is_second(config: ConfigDict) -> bool:
    """Whether a run's data are the codes of another."""
    return config.data.name.startswith(CODES)


def named(config: ConfigDict) -> dict[str, str]:
    """What the result of a second stage says of the first."""
    return {"workdir": config.data.name.removeprefix(CODES), "digest": config.data.options.digest}


def before(run: Run) -> TwoStage | None:
    """The stages before a prior over codes; None where it is not the last, and a prior of a lower level comes after it,
    and for a run whose data are no codes.

    Raises:
        FileNotFoundError: one of them is not complete.
        ValueError: the run of the top level is not named, or is of another first stage; or this run hides or changes
            codes.
    """
    if not is_second(run.config):
        return None
    _check_all_codes(run)
    options, name = run.config.data.options, run.config.data.name
    first, top = stage(name.removeprefix(CODES)), options.get("top", "")
    if options.get("level", "top") == "top":
        return TwoStage(first, {}) if set(first.params["buffers"]["codebook"]) == {"top"} else None
    if not top:
        raise ValueError("a prior over bottom codes comes after one over top codes: name that run by data.options.top")
    other = stage(top)
    theirs = other.run.config.data
    if theirs.options.get("digest") != options.digest or theirs.options.get("level", "top") != "top":
        raise ValueError(f"{top} is not a prior over the top codes of {name}, but of {theirs.name} {theirs.options}")
    return TwoStage(first, {"top": other})


def _check_all_codes(run: Run) -> None:
    """ValueError where what a prior scores is not all of the codes as they are: its score is no bound on them."""
    config, codes = run.config.data, run.data.info
    if config.missing or run.transform.info.levels != codes.levels:
        raise ValueError(
            f"a prior is over all codes as they are, and data.missing={config.missing}, data.transforms="
            f"{config.transforms} hide or change some: leave both out"
        )


def ending_with(two: TwoStage, last: Stage) -> TwoStage:
    """The stages with the last of the priors."""
    return two._replace(priors=two.priors | {last.run.config.data.options.get("level", "top"): last})


def sample(two: TwoStage, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> np.ndarray:
    """The mean images [n, *shape], in the data's own units, of codes that the priors draw.

    Args:
        two: with all priors.
        key: prior i draws with fold_in(key, i).
        n: how many.
        cond: labels [n] for the top prior, where it is conditional.
        temperature: of the priors.
    """
    codes: dict[str, Array] = {}
    for i, (level, (model, params, run)) in enumerate(two.priors.items()):
        given = codes.get("top", cond)
        drawn = draw_samples(model, run, params, jax.random.fold_in(key, i), n, given, temperature)
        codes[level] = jnp.asarray(drawn[..., 0], jnp.int32)
    model, params, run = two.first
    assert model.decode is not None
    decode, size = jax.jit(model.decode), run.config.eval.batch
    parts = [{level: maps[low : low + size] for level, maps in codes.items()} for low in range(0, n, size)]
    return np.concatenate([np.asarray(jax.vmap(run.transform.inverse)(decode(params, None, part))) for part in parts])


def bound(two: TwoStage, split: str, examples: int = 0) -> dict[str, nll.Metric]:
    """The bound on -log p(x) of the data themselves, and in bits/dim where they have levels.

    Args:
        two: with all priors.
        split: "train", "valid" or "test".
        examples: so many of it, as `pipeline.spread` takes them; 0 = all.
    """
    first = two.first
    elbo = {"elbo": nll.scorers(first.model)["elbo"]}
    values = _scores(first, elbo, split, examples) - _uniform_codes(first)
    for prior in two.priors.values():
        values = values + _scores(prior, scorer_of(prior.model, prior.run), split, examples)
    metrics = {"image_nll": nll.metric(values, "bound", "nats")}
    info, mass = first.run.transform.info, first.model.support != "real"
    if info.levels:
        bits = transforms.bits_per_dim(1.0, info, mass)
        metrics["image_nll_bits_per_dim"] = nll.metric(bits * values, "bound", "bits/dim")
    return metrics


def scorer_of(prior: Model, run: Run) -> dict[str, nll.Scorer]:
    """What a prior gives of the bound: its likelihood, or its own tightest bound; TypeError if it has neither."""
    return nll.tightest(prior, run.config.eval.test_k, run.config.eval.chunk)


def _uniform_codes(first: Stage) -> float:
    """-log of the uniform distribution of codes that the first stage's bound has in it."""
    prior, params = first.model.prior, first.params
    assert prior is not None
    maps = jax.eval_shape(lambda key: prior(params, key, 1), jax.random.key(0))
    return sum(maps[level].size * math.log(len(e)) for level, e in params["buffers"]["codebook"].items())


def _scores(of: Stage, scorer: dict[str, nll.Scorer], split: str, examples: int) -> np.ndarray:
    """A score of each example of the split, [n], in nats of the stage's own data."""
    _, params, run = of
    mesh = mesh_here(run.config)
    place, whole = partial(parallel.place_examples, mesh=mesh), parallel.replicated(mesh)
    score = nll.per_example(scorer, run.transform, place=place, whole=whole)
    rows = pipeline.spread(run.data.splits[split], examples)
    batches = pipeline.eval_batches(rows, run.config.eval.batch, run.config.data.cond)
    (scores,) = score(params, jax.random.key(0), batches).values()
    return scores.values
