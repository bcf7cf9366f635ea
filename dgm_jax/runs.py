"""A run: a resolved config with its data, and what is made of the two.

`prepare` resolves; the rest are functions of the Run that it gives: the learner as the loop runs it, the feed,
the evaluation, the samples. A work directory belongs to one resolved config (`claim`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dgm_jax import config as configs
from dgm_jax import zoo
from dgm_jax.data import pipeline, sources, streaming, transforms
from dgm_jax.data.dataset import Dataset
from dgm_jax.data.rows import subset
from dgm_jax.evaluation import annealed, latent, nll
from dgm_jax.evaluation.samples import sample_scores
from dgm_jax.inference import marginal
from dgm_jax.report import write_json
from dgm_jax.tasks import anomaly
from dgm_jax.training import parallel, processes
from dgm_jax.training.compilation import jit_once
from dgm_jax.training.wrappers import (
    DEVICES,
    fully_sharded,
    gathered,
    over_devices,
    scan_steps,
    transformed,
    with_seeds,
)
from dgm_jax.types import Array, Batch, Key, Learner, Model, Params, State

EVALUATION, ANNEALING = 2**31 - 3, 2**31 - 5  # indices in the run's key that no step reaches

HINTS = {  # a model's support -> what brings the data there
    "binary": '"threshold", "resample" or "fixed"',
    "real": '"dequantize"',
    "levels": "nothing that changes the levels",
    "tokens": "nothing, with data of tokens,",
}

# fields that say where and how a run is computed, and not what: it may go on with others
ANYWHERE = ("data.dir", "data.stream", "data.prefetch", "data.workers", "mesh.", "sharding", "profile", "train.donate")


class WorkdirError(ValueError):
    """The work directory holds another run."""


class Run(NamedTuple):
    """A resolved config with its data."""

    config: ConfigDict
    data: Dataset
    transform: transforms.Transform


def prepare(config: ConfigDict) -> Run:
    """Load the data and resolve what depends on them: model.shape, and durations to steps."""
    config = ConfigDict(config.to_dict())
    zoo.fill(config)
    data = sources.load(
        config.data.name, config.data.dir or None, lazy=config.data.stream, **config.data.options.to_dict()
    )
    transform = transforms.make(config.data.transforms, data.info, data.splits["train"]["x"])
    epoch = pipeline.steps_per_epoch(len(data.splits["train"]["x"]), config.data.batch)

    def steps(duration: str | int, per_dispatch: int = config.train.per_dispatch) -> int:
        return configs.in_steps(duration, config.data.batch, epoch, per_dispatch)

    config.model.shape = tuple(transform.info.shape)
    for section in (config.log, config.eval, config.checkpoint):
        section.every = str(steps(section.every))
    config.train.duration = str(steps(config.train.duration))
    if config.optimizer.name == "em":
        config.optimizer.every = str(steps(config.optimizer.every, 1))
    return Run(config.lock(), data, transform)


def run_key(config: ConfigDict) -> Key:
    """The run's key; over several seeds [N] keys, each that of a run alone."""
    if config.seeds == 1:
        return jax.random.key(config.seed)
    return jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds))


def build(run: Run, mesh: jax.sharding.Mesh) -> tuple[Model, Learner]:
    """The model, and the learner as the loop runs it: on what `make_feed` gives."""
    config, info = run.config, run.transform.info
    if config.parallel not in ("jit", "pmap"):
        raise ValueError(f"parallel is 'jit' or 'pmap', not {config.parallel!r}")
    model, learner = zoo.build(config, DEVICES if config.parallel == "pmap" else None)
    if model.support not in (None, info.kind):
        raise ValueError(
            f"model {config.model.name!r} has the likelihood of {model.support} data, and {info.name} after the "
            f"transforms {config.data.transforms} is {info.kind}: put {HINTS[model.support]} in data.transforms"
        )
    if config.parallel == "pmap":
        if not processes.is_alone():
            raise ValueError("parallel='pmap' is for one process; several take 'jit'")
        learner = over_devices(learner, jax.device_count())
    elif mesh.shape["fsdp"] > 1:
        learner = fully_sharded(learner, mesh, config.sharding)
    learner = transformed(learner, lambda key, batch: transforms.apply(run.transform, key, batch)[0])
    learner = scan_steps(learner, config.train.per_dispatch)
    if config.seeds > 1:
        learner = with_seeds(learner, config.seeds, config.vectorize_seeds)
    return model, learner if config.data.stream else gathered(learner)


def make_feed(run: Run, mesh: jax.sharding.Mesh) -> Callable[[int], Batch]:
    """Step -> what the built learner takes of the training split, on the devices.

    With data.stream, batches that are read ahead; else the data, which stay on every device, and indices.

    Raises:
        ValueError: a batch that the devices cannot share.
    """
    config, split = run.config, run.data.splits["train"]
    if config.data.batch % (parts := parallel.parts(mesh)):
        raise ValueError(
            f"data.batch={config.data.batch} does not divide over the {parts} parts of {dict(mesh.shape)}: choose "
            "a multiple, or another config.mesh"
        )
    there = parallel.by_example(mesh, axis=1)
    size, count, seed = config.data.batch, config.train.per_dispatch, config.data.seed
    if config.data.stream:
        rows = parallel.own_rows(there, size, axis=1)
        total = int(config.train.duration) // count
        source = streaming.Dispatches(split, size, count, seed, config.data.cond, rows, total)
        stream = streaming.Stream(source, config.data.prefetch, config.data.workers)
        return lambda step: parallel.place_rows(stream(step), rows, size, there)

    data = parallel.place(_in_memory(run), parallel.replicated(mesh))

    def feed(step: int) -> Batch:
        index = pipeline.indices_at(step, n=len(split["x"]), batch=size, seed=seed, count=count)
        return {"data": data, "index": parallel.place(index, there)}

    return feed


def feed_shapes(run: Run) -> Batch:
    """Shapes and dtypes of what `make_feed` gives; nothing is read but an example."""
    config = run.config
    index = np.zeros((config.train.per_dispatch, config.data.batch), np.int32)

    def shapes(lead: tuple[int, ...]) -> Batch:
        one = pipeline.take(run.data.splits["train"], np.zeros(1, np.int32), config.data.cond)
        return {name: jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype) for name, x in one.items()}

    if config.data.stream:
        return shapes(index.shape)
    data = shapes((len(run.data.splits["train"]["x"]),))
    del data["index"]
    return {"data": data, "index": jax.ShapeDtypeStruct(index.shape, index.dtype)}


def _in_memory(run: Run) -> Batch:
    split = run.data.splits["train"]
    data = pipeline.take(split, np.arange(len(split["x"])), run.config.data.cond)
    del data["index"]
    return data


def draw_samples(
    model: Model, run: Run, params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
) -> np.ndarray:
    """Samples [n, *shape] in the data's own units; where none are given, a conditional model's labels count up,
    or are the validation split's.

    Each device draws a part of them, where n can be parted.
    """
    assert model.sample is not None
    if cond is None and run.config.data.cond:
        labels, classes = run.data.splits["valid"]["label"], run.data.info.classes
        cond = jnp.arange(n) % classes if classes else jnp.asarray(labels[np.arange(n) % len(labels)])
    there = split = parallel.whole(params)
    if there is not None and n % parallel.parts(there.mesh) == 0:
        split = parallel.by_example(there.mesh, axis=0)
    x = jax.jit(model.sample, static_argnums=2, out_shardings=split)(params, key, n, cond, temperature)
    return np.asarray(jax.jit(jax.vmap(run.transform.inverse), out_shardings=there)(x))


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
        at_end: with what is too dear to be computed while a run trains: AIS, and what lies outside the data.
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

    parts: list[Callable[[Params], dict[str, nll.Metric]]]
    parts = [score_examples if scorers or model.sample is None else score_samples]
    if at_end and (ais := config.eval).ais:
        few = {name: subset(x, slice(ais.ais_examples or None)) for name, x in examples.items()}
        annealing = marginal.Annealing(ais.ais, ais.ais_chains, ais.ais_leapfrog, ais.chunk)
        labels = run.data.info.classes if config.data.cond else 0
        anneal = annealed.evaluator(model, annealing, ais.ais_start, *common, simulated=ais.bdmc, classes=labels)
        parts.append(lambda params: anneal(params, fold(ANNEALING), batches(few)))
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


def first_seed(params: Params, config: ConfigDict) -> Params:
    """Parameters of the first of several seeds."""
    return jax.tree.map(lambda x: x[0], params) if config.seeds > 1 else params


def abstract_state(run: Run, learner: Learner, mesh: jax.sharding.Mesh) -> State:
    """Shapes, dtypes and shardings of the run's State; nothing is computed."""
    state = jax.eval_shape(learner.init, run_key(run.config), feed_shapes(run))
    return parallel.shaped(state, parallel.layout(state, mesh, run.config.sharding, lead=int(run.config.seeds > 1)))


def fresh_state(learner: Learner, key: Key, feed: Callable[[int], Batch], like: State) -> State:
    """The run's State before the first step, laid out like `like`."""
    there = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jit_once(learner.init, out_shardings=there)(key, feed(0))


def claim(workdir: Path, config: ConfigDict) -> None:
    """Write config.json into a new work directory, or check that it holds this very run, wherever it was computed.

    Raises:
        WorkdirError: says what differs.
    """
    page = workdir / "config.json"
    if not page.exists():
        write_json(page, as_json(config))
        return
    old, new = (configs.flatten(c) for c in (json.loads(page.read_text()), as_json(config)))
    different = [key for key in sorted(old | new) if old.get(key) != new.get(key) and not key.startswith(ANYWHERE)]
    if different:
        lines = "\n".join(f"  {key}: {old.get(key)!r} there, {new.get(key)!r} asked for" for key in different)
        raise WorkdirError(
            f"{workdir} holds another run; nothing was changed. They differ in\n{lines}\nGive another --workdir."
        )


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON holds it: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(page: Mapping[str, Any]) -> ConfigDict:
    """A resolved config from its page: lists become tuples."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(v) for name, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(page))
