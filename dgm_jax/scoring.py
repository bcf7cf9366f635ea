"""The evaluation of a run's splits, by what its model can do: likelihoods and bounds, latents, samples, anomalies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dgm_jax.data import pipeline, sources, transforms
from dgm_jax.data.rows import subset
from dgm_jax.evaluation import annealed, latent, nll
from dgm_jax.evaluation.samples import sample_scores
from dgm_jax.evaluation.sharpness import relative_energy
from dgm_jax.inference import marginal
from dgm_jax.runs import Run, draw_samples, first_seed, of_means, run_key
from dgm_jax.tasks import anomaly
from dgm_jax.training import parallel
from dgm_jax.types import Array, Batch, Key, Model, Params

# indices in the run's key that no step reaches
EVALUATION, ANNEALING, SHARPNESS = 2**31 - 3, 2**31 - 5, 2**31 - 6


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
        at_end: with what is too dear to be computed while a run trains: AIS, sharpness, and what lies outside the data.

    Raises:
        ValueError: no such split, or config.eval asks for what the model or the data do not have.
    """
    config = run.config
    if split not in run.data.splits:
        raise ValueError(f"no split {split!r}; there are {', '.join(run.data.splits)}")
    first = slice(config.eval.examples or None)
    examples = {name: subset(x, first) for name, x in run.data.splits[split].items()}
    scorers = nll.scorers(model, k, config.eval.chunk)
    divisible = config.eval.batch % parallel.parts(mesh) == 0
    there = parallel.by_example(mesh, axis=0) if divisible else parallel.replicated(mesh)
    options = config.vectorize_seeds, lambda batch: parallel.place(batch, there), parallel.replicated(mesh)
    common = run.transform, model.support != "real", *options
    score, count_units = nll.evaluator(scorers, *common), latent.evaluator(model, run.transform, *options)

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

    def score_sharpness(params: Params, key: Key) -> dict[str, nll.Metric]:
        raw = pipeline.take(examples, np.arange(len(examples["x"])), False)
        seen, _ = transforms.apply(run.transform, jax.random.key(nll.DATA_SEED), raw)
        data = np.asarray(jax.vmap(run.transform.inverse)(seen["x"]))  # what is binarized, binary
        drawing = {"samples": model, "means": of_means(model)}  # of one key, the same latents
        found = [
            {
                f"gradient_energy_{name}": relative_energy(draw_samples(drawn, run, own, seed, config.eval.drawn), data)
                for name, drawn in drawing.items()
                if drawn is not None
            }
            for own, seed in seeds_apart(params, key, config)
        ]
        return nll.joined_seeds(found)

    parts: list[Callable[[Params], dict[str, nll.Metric]]]
    parts = [score_examples if scorers or model.sample is None else score_samples]
    if at_end and (ais := config.eval).ais:
        few = {name: subset(x, slice(ais.ais_examples or None)) for name, x in examples.items()}
        annealing = marginal.Annealing(ais.ais, ais.ais_chains, ais.ais_leapfrog, ais.chunk)
        labels = run.data.info.classes if config.data.cond else 0
        anneal = annealed.evaluator(model, annealing, ais.ais_start, *common, simulated=ais.bdmc, classes=labels)
        parts.append(lambda params: anneal(params, fold(ANNEALING), batches(few)))
    if at_end and config.eval.sharpness:
        if model.sample is None or len(run.data.info.shape) != 3:
            raise ValueError(
                f"eval.sharpness takes images and a model that samples; {config.model.name!r} "
                f"{'does' if model.sample else 'does not'}, and the data have the shape {run.data.info.shape}"
            )
        parts.append(lambda params: score_sharpness(params, fold(SHARPNESS)))
    if split == "test" and config.eval.outside:
        parts.append(make_detector(model, run))
    return lambda params: {name: metric for part in parts for name, metric in part(params).items()}


def make_detector(model: Model, run: Run) -> Callable[[Params], dict[str, nll.Metric]]:
    """Compile how well the model tells the test split from that of eval.outside: params -> AUROC by score.

    Raises:
        ValueError: a model without conditionals, or data of another shape.
    """
    config, log_conditionals, predict = run.config, model.log_conditionals, model.predict
    other = sources.load(config.eval.outside, config.data.dir or None)
    if log_conditionals is None or predict is None or other.info.shape != run.data.info.shape:
        raise ValueError(
            f"eval.outside={config.eval.outside!r} takes a model with log_conditionals and predict, and data of the "
            f"shape {run.data.info.shape}; {config.model.name!r} has {log_conditionals} and {predict}, and they have "
            f"{other.info.shape}"
        )
    into = transforms.make(config.data.transforms, other.info)

    @jax.jit
    def parts(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        return batch["x"], -log_conditionals(params, None, batch), predict(params, None, batch)

    def scored(params: Params, split: Mapping[str, Any], transform: transforms.Transform) -> anomaly.Parts:
        first = slice(config.eval.examples or None)
        examples, found = {name: subset(x, first) for name, x in split.items()}, []
        for raw in pipeline.eval_batches(examples, config.eval.batch, config.data.cond):
            batch, _ = transforms.apply(transform, jax.random.key(nll.DATA_SEED), raw)
            real = np.asarray(raw["mask"]) != 0
            found.append([np.asarray(part)[real] for part in parts(params, batch)])
        return anomaly.Parts(*(np.concatenate(part) for part in zip(*found, strict=True)))

    def detect(params: Params) -> dict[str, nll.Metric]:
        params = first_seed(params, config)
        typical = float(anomaly.nll(scored(params, run.data.splits["valid"], run.transform), 0.0).mean())
        inside = scored(params, run.data.splits["test"], run.transform)
        outside = scored(params, other.splits["test"], into)
        return {
            f"auroc_{name}": anomaly.auroc(score(inside, typical), score(outside, typical))
            for name, score in anomaly.SCORES.items()
        }

    return detect


def seeds_apart(params: Params, key: Key, config: ConfigDict) -> list[tuple[Params, Key]]:
    """Each seed's parameters and key."""
    if config.seeds == 1:
        return [(params, key)]
    return [(jax.tree.map(lambda x: x[i], params), key[i]) for i in range(config.seeds)]
