"""The evaluation of a run's splits, by what its model can do: likelihoods and bounds, latents, samples, anomalies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dgm_jax.data import pipeline, sources, transforms
from dgm_jax.data.dataset import Split
from dgm_jax.data.rows import subset
from dgm_jax.evaluation import annealed, codebook, labels, latent, nll
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
        at_end: with what is too dear to be computed while a run trains: AIS, sharpness, what labels say, and what lies
            outside the data.

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
    score = nll.evaluator(scorers, *common)
    counters = [module.evaluator(model, run.transform, *options) for module in (latent, codebook)]

    def fold(index: int) -> Key:
        fold_in = jax.vmap(jax.random.fold_in, (0, None)) if config.seeds > 1 else jax.random.fold_in
        return fold_in(run_key(config), index)

    key = fold(EVALUATION)

    def batches(examples: dict[str, Any]) -> Iterator[Batch]:
        return pipeline.eval_batches(examples, config.eval.batch, config.data.cond)

    def score_examples(params: Params) -> dict[str, nll.Metric]:
        found = [evaluate(params, key, batches(examples)) for evaluate in (score, *counters)]
        return {name: metric for part in found for name, metric in part.items()}

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
        classes = run.data.info.classes if config.data.cond else 0
        anneal = annealed.evaluator(model, annealing, ais.ais_start, *common, simulated=ais.bdmc, classes=classes)
        parts.append(lambda params: anneal(params, fold(ANNEALING), batches(few)))
    if at_end and config.eval.sharpness:
        if model.sample is None or len(run.data.info.shape) != 3:
            raise ValueError(
                f"eval.sharpness takes images and a model that samples; {config.model.name!r} "
                f"{'does' if model.sample else 'does not'}, and the data have the shape {run.data.info.shape}"
            )
        parts.append(lambda params: score_sharpness(params, fold(SHARPNESS)))
    if at_end and config.eval.labels:
        parts.append(make_judge(model, run, examples, key, options))
    if split == "test" and config.eval.outside:
        parts.append(make_detector(model, run))
    return lambda params: {name: metric for part in parts for name, metric in part(params).items()}


def make_judge(
    model: Model, run: Run, examples: Split, key: Key, options: tuple
) -> Callable[[Params], dict[str, nll.Metric]]:
    """Compile what labels say of codes, beside principal components, and of conditional samples: params -> metrics.

    Args:
        model: any; metrics are of what it can do.
        run: its run.
        examples: of the split that is reported.
        key: of the evaluation.
        options: of `latent.code_tables`.

    Raises:
        ValueError: data without classes.
    """
    config, info, train = run.config, run.data.info, run.data.splits["train"]
    if not info.classes:
        raise ValueError(f"eval.labels=True takes data with classes, and {info.name} has none")
    tabulate = latent.code_tables(model, run.transform, *options)
    x, train_x, own, train_own = examples["x"][:], train["x"][:], examples["label"], train["label"]

    def judge_codes(params: Params, key: Key) -> dict[str, nll.Metric]:
        codes, train_codes = (
            tabulate(params, key, pipeline.eval_batches(split, config.eval.batch, config.data.cond))
            for split in (examples, train)
        )
        if codes is None or train_codes is None:
            return {}
        components, train_components = labels.principal_components(x, train_x, codes.shape[1])
        name = f"pca_{components.shape[1]}"
        return labels.probes(codes, own, train_codes, train_own) | labels.probes(
            components, own, train_components, train_own, name
        )

    def judge_samples(params: Params, key: Key) -> dict[str, nll.Metric]:
        if not config.data.cond or model.sample is None:
            return {}
        asked = np.arange(config.eval.drawn) % info.classes
        samples = draw_samples(model, run, params, key, len(asked), jnp.asarray(asked))
        return labels.named_as_asked(samples, asked, x, own, train_x, train_own)

    return lambda params: nll.joined_seeds(
        [judge_codes(one, key) | judge_samples(one, key) for one, key in seeds_apart(params, key, config)]
    )


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
