"""The evaluation of a run's splits, by what its model can do: likelihoods and bounds, latents, samples; what is missing
of its data, and what lies outside of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from dgm_jax.data import pipeline, sources, transforms
from dgm_jax.data.dataset import Dataset
from dgm_jax.data.rows import subset
from dgm_jax.evaluation import annealed, latent, nll
from dgm_jax.evaluation.samples import sample_scores
from dgm_jax.inference import marginal
from dgm_jax.runs import Run, draw_samples, first_seed, run_key
from dgm_jax.tasks import anomaly, missing
from dgm_jax.training import parallel
from dgm_jax.types import Batch, Key, Model, Params

# indices in the run's key that no step reaches
EVALUATION, ANNEALING, IMPUTATION, DETECTION = 2**31 - 3, 2**31 - 5, 2**31 - 6, 2**31 - 7


def make_evaluator(
    model: Model, run: Run, split: str, k: int, mesh: jax.sharding.Mesh, at_end: bool = False
) -> Callable[[Params], dict[str, nll.Metric]]:
    """Compile the evaluation of a split, by what the model can do: params -> metrics by name.

    Likelihoods and bounds where there are such, and what latents carry; else samples are compared with the split.

    Args:
        model: any.
        run: its run.
        split: "train", "valid" or "test".
        k: importance samples of the tighter bound.
        mesh: batches are split over it, where they can be.
        at_end: with what is too dear to be computed while a run trains: AIS, imputation.
    """
    config = run.config
    if split not in run.data.splits:
        raise ValueError(f"no split {split!r}; there are {', '.join(run.data.splits)}")
    examples = chosen(run.data, split, config)
    scorers = nll.scorers(model, k, config.eval.chunk)
    divisible = config.eval.batch % parallel.parts(mesh) == 0
    there = parallel.by_example(mesh, axis=0) if divisible else parallel.replicated(mesh)
    options = config.vectorize_seeds, lambda batch: parallel.place(batch, there), parallel.replicated(mesh)
    transform = transforms.of_split(run.transform, split)
    common = transform, model.support != "real", *options
    score, count_units = nll.evaluator(scorers, *common), latent.evaluator(model, transform, *options)

    def fold(index: int) -> Key:
        fold_in = jax.vmap(jax.random.fold_in, (0, None)) if config.seeds > 1 else jax.random.fold_in
        return fold_in(run_key(config), index)

    key = fold(EVALUATION)

    def batches(examples: dict[str, Any]) -> Iterator[Batch]:
        return pipeline.eval_batches(examples, config.eval.batch, config.data.cond)

    def score_examples(params: Params) -> dict[str, nll.Metric]:
        return score(params, key, batches(examples)) | count_units(params, key, batches(examples))

    def score_samples(params: Params) -> dict[str, nll.Metric]:
        found = []
        for own, seed in seeds_apart(params, key, config):
            drawing, comparing = jax.random.split(seed)
            x = draw_samples(model, run, own, drawing, config.eval.drawn)
            found.append(sample_scores(comparing, x, examples["x"][:]))
        return nll.joined_seeds(found)

    parts: list[Callable[[Params], dict[str, nll.Metric]]]
    parts = [score_examples if scorers or model.sample is None else score_samples]
    if at_end and (ais := config.eval).ais:
        few = {name: subset(x, slice(ais.ais_examples or None)) for name, x in examples.items()}
        annealing = marginal.Annealing(ais.ais, ais.ais_chains, ais.ais_leapfrog, ais.chunk)
        labels = run.data.info.classes if config.data.cond else 0
        anneal = annealed.evaluator(model, annealing, ais.ais_start, *common, simulated=ais.bdmc, classes=labels)
        parts.append(lambda params: anneal(params, fold(ANNEALING), batches(few)))
    if at_end and config.eval.impute:
        impute, by_means = make_imputer(model, run, split, *options)
        parts.append(lambda params: impute(params, fold(IMPUTATION), batches(examples)) | by_means())
    if split == "test" and config.eval.outside:
        detect = make_detector(model, run, *options[1:])
        parts.append(lambda params: detect(first_seed(params, config), first_seed(fold(DETECTION), config)))
    return lambda params: {name: metric for part in parts for name, metric in part(params).items()}


def chosen(data: Dataset, split: str, config: ConfigDict) -> dict[str, Any]:
    """The examples of a split that are evaluated."""
    return {name: subset(x, slice(config.eval.examples or None)) for name, x in data.splits[split].items()}


def make_imputer(
    model: Model, run: Run, split: str, *options: Any
) -> tuple[Callable[[Params, Key, Iterable[Batch]], dict[str, nll.Metric]], Callable[[], dict[str, nll.Metric]]]:
    """Compile the errors of what the model fills in, and what those of a dimension's mean are.

    Args:
        model, run, split: as in `make_evaluator`.
        *options: vectorize, place and whole, as in `nll.evaluator`.

    Raises:
        ValueError: nothing is missing.
        TypeError: a model that fills in nothing.
    """
    config, data = run.config, run.data
    if not config.data.missing:
        raise ValueError(
            f"eval.impute={config.eval.impute} fills in what is missing, and nothing is: set data.missing when training"
        )
    transform = transforms.of_split(run.transform, split)
    impute = missing.evaluator(model, data.info, transform, config.eval.impute, config.eval.chunk, *options)

    def by_means() -> dict[str, nll.Metric]:
        train, own = (
            pipeline.eval_batches(examples, config.eval.batch)
            for examples in (data.splits["train"], chosen(data, split, config))
        )
        of_train = transforms.of_split(run.transform, "train")
        return {"mean_impute_mse": missing.mean_imputation(data.info, of_train, transform, train, own)}

    return impute, by_means


def make_detector(model: Model, run: Run, *options: Any) -> Callable[[Params, Key], dict[str, nll.Metric]]:
    """Compile how well the model tells the test split from that of eval.outside.

    Args:
        model, run: as in `make_evaluator`.
        *options: place and whole, as in `nll.evaluator`.

    Returns:
        (params, key) -> AUROC by score, of one seed.

    Raises:
        ValueError: data of another shape, or with missing dimensions.
        TypeError: a model with neither likelihood nor bound.
    """
    config = run.config
    other = sources.load(config.eval.outside, config.data.dir or None)
    if other.info.shape != run.data.info.shape or config.data.missing:
        raise ValueError(
            f"eval.outside={config.eval.outside!r} takes whole data of one shape: these are {run.data.info.shape} with "
            f"data.missing={config.data.missing}, those {other.info.shape}"
        )
    into = transforms.make(config.data.transforms, other.info)
    k, chunk = config.eval.test_k, config.eval.chunk
    read = anomaly.reader(model, run.data.info, run.transform, k, chunk, *options)
    read_other = anomaly.reader(model, other.info, into, k, chunk, *options)

    def batches(data: Dataset, split: str) -> Iterator[Batch]:
        return pipeline.eval_batches(chosen(data, split, config), config.eval.batch, config.data.cond)

    def detect(params: Params, key: Key) -> dict[str, nll.Metric]:
        typical = float(read(params, key, batches(run.data, "valid")).nll.mean())
        inside = anomaly.scored(read(params, key, batches(run.data, "test")), typical)
        outside = anomaly.scored(read_other(params, key, batches(other, "test")), typical)
        # a score that only one of the data sets has is left out
        return {f"auroc_{name}": anomaly.auroc(inside[name], outside[name]) for name in inside if name in outside}

    return detect


def seeds_apart(params: Params, key: Key, config: ConfigDict) -> list[tuple[Params, Key]]:
    """Each seed's parameters and key."""
    if config.seeds == 1:
        return [(params, key)]
    return [(jax.tree.map(lambda x: x[i], params), key[i]) for i in range(config.seeds)]
