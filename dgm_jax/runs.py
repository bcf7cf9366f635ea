"""A run: a resolved config with its data, and what is made of the two.

`prepare` resolves; the rest are functions of the Run that it gives: the learner as the loop runs it, the feed, the
first State, the samples, what a step costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dgm_jax import config as configs
from dgm_jax import zoo
from dgm_jax.data import pipeline, sources, streaming, transforms
from dgm_jax.data.dataset import Dataset
from dgm_jax.training import parallel, processes
from dgm_jax.training.compilation import jit_once
from dgm_jax.training.wrappers import (
    DEVICES,
    fully_sharded,
    gathered,
    over_devices,
    scan_steps,
    transformed,
    with_ema,
    with_seeds,
)
from dgm_jax.types import Array, Batch, Key, Learner, Model, Params, PyTree, State

HINTS = {  # a model's support -> what brings the data there
    "binary": 'put "threshold", "resample" or "fixed" in data.transforms',
    "real": 'put "dequantize" in data.transforms',
    "levels": "leave out of data.transforms what changes the levels",
    "tokens": "use data of tokens, and leave data.transforms empty",
}

CONDITIONS = ("classes", "cond_size", "cond_shape", "cond_map", "map_codes")  # fields of models that take batch["cond"]


class Run(NamedTuple):
    """A resolved config with its data."""

    config: ConfigDict
    data: Dataset
    transform: transforms.Transform


def prepare(config: ConfigDict) -> Run:
    """Load the data and resolve what depends on them: model.shape, and durations to steps.

    Raises:
        ValueError: numbers that no run can have, or as the data and the transforms say.
    """
    config = ConfigDict(config.to_dict())
    zoo.fill(config, known=False)
    configs.check(config)
    data = sources.load(
        config.data.name, config.data.dir or None, lazy=config.data.stream, **config.data.options.to_dict()
    )
    transform = transforms.make(
        config.data.transforms, data.info, data.splits["train"]["x"], missing=config.data.missing
    )
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


def build(run: Run, mesh: jax.sharding.Mesh, params: Params | None = None) -> tuple[Model, Learner]:
    """The model, and the learner as the loop runs it: on what `make_feed` gives; with `params`, from these on."""
    config = run.config
    if config.parallel not in ("jit", "pmap"):
        raise ValueError(f"parallel is 'jit' or 'pmap', not {config.parallel!r}")
    model, learner = zoo.build(config, DEVICES if config.parallel == "pmap" else None, params)
    check_data(model, run)
    return model, wrapped(learner, run, mesh)


def check_data(model: Model, run: Run) -> None:
    """ValueError where the model is none of the run's data: of another kind, other levels or other conditions."""
    config, info = run.config, run.transform.info
    if model.support not in (None, info.kind):
        raise ValueError(
            f"model {config.model.name!r} has the likelihood of {model.support} data, and {info.name} after the "
            f"transforms {config.data.transforms} is {info.kind}: {HINTS[model.support]}"
        )
    if model.support == "levels" and (levels := config.model.get("levels")) not in (None, info.levels):
        raise ValueError(
            f"model.levels={levels}, and {info.name} has {info.levels}: the probabilities would be of other data"
        )
    if model.support in ("levels", "binary") and info.range != (0.0, info.levels - 1.0):
        raise ValueError(
            f"model {config.model.name!r} has the likelihood of the levels 0 to {info.levels - 1}, and {info.name} "
            f"after the transforms {config.data.transforms} lies in {info.range}: leave out what rescales it"
        )
    takes = {name: config.model.get(name) for name in CONDITIONS if config.model.get(name)}
    if config.data.cond and not takes:
        raise ValueError(
            f"data.cond=True gives labels to model {config.model.name!r}, which takes none as it is: set one of "
            f"model.{', model.'.join(name for name in CONDITIONS if name in config.model) or '... of another model'}"
        )
    if config.data.cond and takes.get("classes", info.classes) < info.classes:
        raise ValueError(f"model.classes={takes['classes']}, and {info.name} has {info.classes}")
    if config.data.missing and not model.observed:
        raise ValueError(
            f"data.missing={config.data.missing} hides dimensions, and model {config.model.name!r} reads and scores "
            "them all: it would learn the zeros in their place. Take one for which `dgm list` says 'observed'"
        )


def wrapped(learner: Learner, run: Run, mesh: jax.sharding.Mesh) -> Learner:
    """A learner of single batches as the loop runs it."""
    config = run.config
    if config.parallel == "pmap":
        if not processes.is_alone():
            raise ValueError("parallel='pmap' is for one process; several take 'jit'")
        if mesh.shape["fsdp"] * mesh.shape["tensor"] > 1:
            raise ValueError("parallel='pmap' has the State whole on each device; mesh.fsdp and mesh.tensor take 'jit'")
        learner = over_devices(learner, jax.device_count())
    elif mesh.shape["fsdp"] > 1:
        learner = fully_sharded(learner, mesh, config.sharding)
    learner = transformed(learner, lambda key, batch: transforms.apply(run.transform, key, batch)[0])
    learner = scan_steps(learner, config.train.per_dispatch)
    if config.seeds > 1:
        learner = with_seeds(learner, config.seeds, config.vectorize_seeds)
    return learner if config.data.stream else gathered(learner)


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


def labels_of(run: Run, n: int, cond: int | None) -> Array | None:
    """One label n times; None for None.

    Raises:
        ValueError: the run's model is not conditional on labels, or not on this one.
    """
    if cond is None:
        return None
    config = run.config
    classes = min(run.data.info.classes, config.model.get("classes", 0)) if config.data.cond else 0
    if not classes:
        raise ValueError(
            f"cond={cond}, but this model {config.model.name!r} is not conditional on labels: leave cond out, or train "
            "with data.cond=True and model.classes"
        )
    if cond not in range(classes):
        raise ValueError(f"cond={cond}, but the labels are 0..{classes - 1}")
    return jnp.full((n,), cond, jnp.int32)


def draw_samples(
    model: Model, run: Run, params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0
) -> np.ndarray:
    """Samples [n, *shape] in the data's own units; where none are given, a conditional model's labels count up,
    or are the validation split's.

    They are drawn in batches of eval.batch, batch i by fold_in(key, i); each device draws a part of a batch that can be
    parted.
    """
    assert model.sample is not None
    if cond is None and run.config.data.cond:
        labels, classes = run.data.splits["valid"]["label"], run.data.info.classes
        cond = jnp.arange(n) % classes if classes else jnp.asarray(labels[np.arange(n) % len(labels)])
    there = split = parallel.whole(params)
    size = min(n, run.config.eval.batch)
    if there is not None and size % parallel.parts(there.mesh) == 0:
        split = parallel.by_example(there.mesh, axis=0)
    sample, drawn = jax.jit(model.sample, static_argnums=2, out_shardings=split), []
    for i, low in enumerate(range(0, n, size)):
        own = None if cond is None else cond[np.minimum(np.arange(low, low + size), n - 1)]
        x = sample(params, jax.random.fold_in(key, i), size, own, temperature)
        drawn.append(np.asarray(_inverse(run.transform.inverse, there)(x)))
    return np.concatenate(drawn)[:n]


@functools.lru_cache(maxsize=1)  # the same function, so that it is compiled once
def _inverse(inverse: Callable[[Array], Array], there: jax.sharding.Sharding | None) -> Callable[[Array], Array]:
    """Samples [n, ...] in the data's own units."""
    return jax.jit(jax.vmap(inverse), out_shardings=there)


@functools.lru_cache(maxsize=1)
def of_means(model: Model) -> Model | None:
    """The model that draws, in place of each sample, what its latents decode to: the mean that it is drawn around.

    None where latents are not decoded, or samples not drawn around what is decoded.
    """
    prior, decode = model.prior, model.decode
    if model.log_posterior is None or prior is None or decode is None:
        return None

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        prior_key, decode_key = jax.random.split(key)
        return decode(params, decode_key, prior(params, prior_key, n, cond, temperature), cond)

    return model._replace(sample=sample)


def each_seed(params: PyTree, config: ConfigDict) -> list[PyTree]:
    """Parameters, or keys, of each of the seeds."""
    if config.seeds == 1:
        return [params]
    return [jax.tree.map(lambda x: x[i], params) for i in range(config.seeds)]


def first_seed(params: PyTree, config: ConfigDict) -> PyTree:
    """Those of the first seed."""
    return each_seed(params, config)[0]


def parameters(run: Run, model: Model, mesh: jax.sharding.Mesh) -> State:
    """Shapes, dtypes and shardings of what is used of the run's State after training: parameters and their averages."""

    def init(key: Key, batch: Batch) -> State:
        return State(jnp.zeros((), jnp.int32), model.init(key, batch), (), ())

    learner = Learner(init, lambda state, key, batch: (state, {}))
    learner = with_ema(learner, run.config.train.ema) if run.config.train.ema else learner
    return abstract_state(run, wrapped(learner, run, mesh), mesh)


def abstract_state(run: Run, learner: Learner, mesh: jax.sharding.Mesh) -> State:
    """Shapes, dtypes and shardings of the run's State; nothing is computed."""
    state = jax.eval_shape(learner.init, run_key(run.config), feed_shapes(run))
    return parallel.shaped(state, parallel.layout(state, mesh, run.config.sharding, lead=int(run.config.seeds > 1)))


def fresh_state(learner: Learner, key: Key, feed: Callable[[int], Batch], like: State) -> State:
    """The run's State before the first step, laid out like `like`."""
    there = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jit_once(learner.init, out_shardings=there)(key, feed(0))


def warm_state(run: Run, mesh: jax.sharding.Mesh, params: Params, source: Batch, like: State) -> State:
    """`fresh_state` with these parameters, [N, ...] over N seeds, from which all else in it follows."""
    config = ConfigDict(run.config.to_dict())
    config.seeds = 1
    one = run._replace(config=config)

    def init(key: Key, params: Params, source: Batch) -> State:
        def of_seed(key: Key, params: Params) -> State:
            return build(one, mesh, params)[1].init(key, source)

        if run.config.seeds == 1:
            return of_seed(key, params)
        state = jax.vmap(of_seed)(key, params)
        return state._replace(step=state.step[0])

    there = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jit_once(init, out_shardings=there)(run_key(run.config), params, source)


def in_one_piece(run: Run) -> Run:
    """The run without loops over steps, micro-batches and seeds, whose bodies the analysis of FLOPs counts once."""
    config = ConfigDict(run.config.to_dict())
    config.train.update(per_dispatch=1, micro=1)
    config.vectorize_seeds = True
    return run._replace(config=config)


def step_flops(run: Run, mesh: jax.sharding.Mesh) -> float:
    """FLOPs of a step on all devices together, by the compiler's analysis; nothing is compiled."""
    _, learner = build(run, mesh)
    state = abstract_state(run, learner, mesh)
    lowered = jax.jit(learner.step).lower(state, run_key(run.config), feed_shapes(run))
    return (lowered.cost_analysis() or {}).get("flops", float("nan"))


def uncounted(run: Run, mesh: jax.sharding.Mesh) -> float:
    """A step's FLOPs over those that the analysis counts where it has loops."""
    config = run.config
    if config.train.micro == 1 and (config.vectorize_seeds or config.seeds == 1):
        return 1.0
    return step_flops(in_one_piece(run), mesh) / step_flops(run, mesh)
