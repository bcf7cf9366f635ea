"""The evaluation of a run's splits, by what its model can do: likelihoods and bounds, latents, samples; what is missing
of its data, and what lies outside of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dgm_jax.data import pipeline, sources, transforms
from dgm_jax.data.dataset import Dataset
from dgm_jax.evaluation import annealed, codebook, labels, latent, nll
from dgm_jax.evaluation.samples import sample_scores
from dgm_jax.evaluation.sharpness import relative_energy
from dgm_jax.inference import marginal
from dgm_jax.runs import Run, draw_samples, each_seed, of_means, run_key
from dgm_jax.tasks import anomaly, missing
from dgm_jax.training import parallel
from dgm_jax.types import Array, Batch, Key, Model, Params

# indices in the run's key that no step reaches
EVALUATION, ANNEALING, IMPUTATION, DETECTION, SHARPNESS, LABELS = (2**31 - i for i in (3, 5, 6, 7, 8, 9))


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
        mesh: batches are split over it.
        at_end: with what is too dear to be computed while a run trains: AIS, imputation, sharpness, what labels say.

    Raises:
        ValueError: no such split, or config.eval asks for what the model or the data do not have.
    """
    config = run.config
    if split not in run.data.splits:
        raise ValueError(f"no split {split!r}; there are {', '.join(run.data.splits)}")
    examples = chosen(run.data, split, config)
    scorers = nll.scorers(model, k, config.eval.chunk)
    options = config.vectorize_seeds, partial(parallel.place_examples, mesh=mesh), parallel.replicated(mesh)
    transform = transforms.of_split(run.transform, split)
    common = transform, model.support != "real", *options
    score = nll.evaluator(scorers, *common)
    counters = [module.evaluator(model, transform, *options) for module in (latent, codebook)]

    def fold(index: int) -> Key:
        fold_in = jax.vmap(jax.random.fold_in, (0, None)) if config.seeds > 1 else jax.random.fold_in
        return fold_in(run_key(config), index)

    key, see = fold(EVALUATION), as_seen(run)

    def batches(examples: dict[str, Any]) -> Iterator[Batch]:
        return pipeline.eval_batches(examples, config.eval.batch, config.data.cond)

    def score_examples(params: Params) -> dict[str, nll.Metric]:
        found = [evaluate(params, key, batches(examples)) for evaluate in (score, *counters)]
        return {name: metric for part in found for name, metric in part.items()}

    def score_samples(params: Params) -> dict[str, nll.Metric]:
        data, found = see(examples), []
        for own, seed in each_seed((params, key), config):
            drawing, comparing = jax.random.split(seed)
            x = draw_samples(model, run, own, drawing, config.eval.metric_samples)
            found.append(sample_scores(comparing, x, data))
        return nll.joined_seeds(found)

    def score_sharpness(params: Params, key: Key) -> dict[str, nll.Metric]:
        data = see(examples)
        drawing = {"samples": model, "means": of_means(model)}  # of one key, the same latents
        found = [
            {
                f"gradient_energy_{name}": relative_energy(
                    draw_samples(drawn, run, own, seed, config.eval.metric_samples), data
                )
                for name, drawn in drawing.items()
                if drawn is not None
            }
            for own, seed in each_seed((params, key), config)
        ]
        return nll.joined_seeds(found)

    parts: list[Callable[[Params], dict[str, nll.Metric]]]
    parts = [score_examples if scorers or model.sample is None else score_samples]
    if at_end and (wanted := config.eval).ais:
        few = pipeline.spread(examples, wanted.ais_examples)
        annealing = marginal.Annealing(wanted.ais, wanted.ais_chains, wanted.ais_leapfrog, wanted.chunk)
        classes = run.data.info.classes if config.data.cond else 0
        bound = next(((name, scorers[name]) for name in (f"iwae_{k}", "elbo") if name in scorers), None)
        anneal = annealed.evaluator(model, annealing, wanted.ais_start, *common, wanted.bdmc, classes, bound)
        parts.append(lambda params: anneal(params, fold(ANNEALING), batches(few)))
    if at_end and config.eval.impute:
        impute, by_means = make_imputer(model, run, split, *options)
        parts.append(lambda params: impute(params, fold(IMPUTATION), batches(examples)) | by_means())
    if at_end and config.eval.sharpness:
        if model.sample is None or len(run.data.info.shape) != 3:
            raise ValueError(
                f"eval.sharpness takes images and a model that samples; {config.model.name!r} "
                f"{'does' if model.sample else 'does not'}, and the data have the shape {run.data.info.shape}"
            )
        parts.append(lambda params: score_sharpness(params, fold(SHARPNESS)))
    if at_end and config.eval.labels:
        parts.append(make_judge(model, run, split, fold(LABELS), *options))
    if split == "test" and config.eval.ood:
        detect = make_detector(model, run, *options[1:])
        parts.append(lambda params: detect(params, fold(DETECTION)))
    return lambda params: {name: metric for part in parts for name, metric in part(params).items()}


def make_judge(
    model: Model, run: Run, split: str, key: Key, *options: Any
) -> Callable[[Params], dict[str, nll.Metric]]:
    """Compile what labels say of codes, beside principal components, and of conditional samples: params -> metrics.

    Codes are those of a model that is not told the labels; samples those of one that is.

    Args:
        model, run, split: as in `make_evaluator`; metrics are of what the model can do.
        key: of the codes and samples, or [N] over seeds.
        *options: vectorize, place and whole, as in `nll.evaluator`.

    Raises:
        ValueError: data without classes, or with missing dimensions, which the components beside the codes would see.
    """
    config, info = run.config, run.data.info
    if not info.classes or config.data.missing:
        raise ValueError(
            f"eval.labels=True takes whole data with classes; {info.name} has {info.classes or 'none'}, and "
            f"data.missing={config.data.missing}"
        )
    tables = [
        (latent.code_tables(model, transforms.of_split(run.transform, name), *options), examples)
        for name, examples in ((split, chosen(run.data, split, config)), ("train", run.data.splits["train"]))
    ]
    see = as_seen(run)

    def judge_codes(
        params: Params, key: Key, x: np.ndarray, own: np.ndarray, train_x: np.ndarray, train_own: np.ndarray
    ) -> dict[str, nll.Metric]:
        if config.data.cond:
            return {}
        codes, train_codes = (
            tabulate(params, key, pipeline.eval_batches(examples, config.eval.batch)) for tabulate, examples in tables
        )
        if codes is None or train_codes is None:
            return {}
        components, train_components = labels.principal_components(x, train_x, codes.shape[1])
        name = f"pca_{components.shape[1]}"
        return labels.probes(codes, own, train_codes, train_own) | labels.probes(
            components, own, train_components, train_own, name
        )

    def judge_samples(params: Params, key: Key, *data: np.ndarray) -> dict[str, nll.Metric]:
        if not config.data.cond or model.sample is None:
            return {}
        asked = np.arange(config.eval.metric_samples) % info.classes
        samples = draw_samples(model, run, params, key, len(asked), jnp.asarray(asked))
        return labels.conditional_accuracy(samples, asked, *data)

    def judge(params: Params) -> dict[str, nll.Metric]:
        data = [part for _, examples in tables for part in (see(examples), examples["label"][:])]
        apart = each_seed((params, key), config)
        return nll.joined_seeds([judge_codes(*one, *data) | judge_samples(*one, *data) for one in apart])

    return judge


def as_seen(run: Run) -> Callable[[dict[str, Any]], np.ndarray]:
    """Compile the data as the model sees them, in the data's units: what samples and codes are held against.

    Of what is drawn it is the draw that every evaluation sees; nothing is missing.

    Returns:
        examples of a split -> x [n, *shape].
    """
    transform = transforms.whole(run.transform)

    @jax.jit
    def see(batch: Batch) -> Array:
        seen, _ = transforms.apply(transform, jax.random.key(nll.DATA_SEED), batch)
        return jax.vmap(transform.inverse)(seen["x"])

    def see_all(examples: dict[str, Any]) -> np.ndarray:
        batches = pipeline.eval_batches(examples, run.config.eval.batch)
        return np.concatenate([np.asarray(see(batch))[batch["mask"] != 0] for batch in batches])

    return see_all


def chosen(data: Dataset, split: str, config: ConfigDict) -> dict[str, Any]:
    """The examples of a split that are evaluated."""
    return pipeline.spread(data.splits[split], config.eval.examples)


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
    """Compile how well the model tells the test split from that of eval.ood.

    Args:
        model, run: as in `make_evaluator`.
        *options: place and whole, as in `nll.evaluator`.

    Returns:
        (params, key) -> AUROC by score.

    Raises:
        ValueError: data of another shape, kind or number of levels, or with missing dimensions.
        TypeError: a model with neither likelihood nor bound.
    """
    config = run.config
    other = sources.load(config.eval.ood, config.data.dir or None)
    own, others = ((info.shape, info.kind, info.levels) for info in (run.data.info, other.info))
    if own != others or config.data.missing:
        raise ValueError(
            f"eval.ood={config.eval.ood!r} takes whole data of one shape, kind and number of levels: these are {own} "
            f"with data.missing={config.data.missing}, those {others}"
        )
    k, chunk = config.eval.test_k, config.eval.chunk
    read = anomaly.reader(model, run.data.info, run.transform, k, chunk, *options)

    def batches(data: Dataset, split: str) -> Iterator[Batch]:
        return pipeline.eval_batches(chosen(data, split, config), config.eval.batch, config.data.cond)

    def detect_one(params: Params, key: Key) -> dict[str, nll.Metric]:
        typical = float(read(params, key, batches(run.data, "valid")).nll.mean())
        inside = anomaly.scored(read(params, key, batches(run.data, "test")), typical)
        outside = anomaly.scored(read(params, key, batches(other, "test")), typical)
        # a score that only one of the data sets has is left out
        return {f"auroc_{name}": anomaly.auroc(inside[name], outside[name]) for name in inside if name in outside}

    def detect(params: Params, key: Key) -> dict[str, nll.Metric]:
        return nll.joined_seeds([detect_one(*one) for one in each_seed((params, key), config)])

    return detect
