"""The proof that a model, an objective and their learner are right, at a size where it can be computed.

`verify(config)` is what `dgm verify` runs. `verify_model`, `verify_objective` and `verify_learner` take what a
prototype has at hand. Checks ask for capabilities: one that does not apply says why.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from dgm_jax import zoo
from dgm_jax.data import sources, transforms
from dgm_jax.types import Batch, Counts, Model
from dgm_jax.verification import bounds, capabilities, drawn, dreams, gradients, learners, objectives, observed
from dgm_jax.verification.gradients import Objective
from dgm_jax.verification.learners import Make
from dgm_jax.verification.space import MAX_STATES, Check, Space, check, random_batch, widen

__all__ = [
    "Check",
    "Space",
    "subject",
    "table",
    "verify",
    "verify_learner",
    "verify_model",
    "verify_objective",
]

LARGEST = {  # hyperparameters of the small model, of a section's field or its entries
    "hidden": 32,
    "width": 16,
    "channels": 8,
    "features": 6,
    "blocks": 1,
    "depth": 2,
    "latent": 2,
    "components": 4,
    "categories": 3,
    "layers": 2,
    "head": 6,
    "first": 3,
    "masks": 3,
    "orders": 3,
    "levels": 3,
    "codes": 8,
    "stages": 2,
    "states": 4,
    "steps": 4,
    "sample_steps": 2,
    "chains": 8,
    "k": 8,
}
BATCH = 8


class Subject(NamedTuple):
    """What `verify` looks at, at its small size and in double precision."""

    model: Model
    space: Space
    objective: Objective
    make: Make
    batch: Batch
    micro: bool


def verify(config: ConfigDict) -> list[Check]:
    """All checks of a config's model, objective and learner, on small events like its data's.

    Args:
        config: from `api.load_config`; data of a name in `sources.DECLARED` need not be there.

    Raises:
        FileNotFoundError: other data are not there.
    """
    one = subject(config)
    return [
        *verify_model(one.model, one.space),
        *verify_objective(one.objective, one.model, one.space),
        *verify_learner(one.make, one.batch, skip=() if one.micro else ("micro-batches",)),
    ]


def subject(config: ConfigDict) -> Subject:
    """What a config makes, at its small size."""
    with jax.enable_x64(True):
        config, space = small(config)
        model = zoo.build_model(config)
        objective = zoo.row(zoo.OBJECTIVES, config.objective, "objective")(model, **zoo.options(config.objective))

    def make(micro: int) -> learners.Learner:
        with config.unlocked():
            config.train.micro = micro
        return zoo.build(config)[1]

    with jax.enable_x64(True):
        return Subject(model, space, objective, make, random_batch(space, 1, BATCH), not isinstance(objective, Counts))


def verify_model(model: Model, space: Space, seed: int = 0) -> list[Check]:
    """Checks of a model's capabilities."""
    with jax.enable_x64(True):
        given = model, space, seed
        return [
            check("normalised", capabilities.normalised, *given),
            check("causal", capabilities.causal, *given),
            check("predicts", capabilities.predicts, *given),
            check("bound", bounds.bound, *given),
            check("rates", bounds.rates, *given),
            check("dream", dreams.dreamt, *given),
            check("gibbs invariant", drawn.gibbs_invariant, *given),
            check("sample", drawn.sampled, *given),
            check("stages", drawn.staged, *given),
            check("complete", drawn.completed, *given),
            check("observed", observed.marginalised, *given),
            check("encode, decode", capabilities.coded, *given),
            check("denoise", capabilities.denoised, *given),
            check("model keys used once", capabilities.keys_used_once, *given),
        ]


def verify_objective(objective: Objective, model: Model, space: Space, seed: int = 0) -> list[Check]:
    """Checks of an objective of `model`."""
    with jax.enable_x64(True):
        given = model, space, seed
        each = functools.cache(lambda: gradients.descents(objective, *given))
        return [
            check("gradient", gradients.gradient_right, each, *given),
            check("padding", objectives.padding_ignored, objective, each, *given),
            check("EM ascends", objectives.em_ascends, objective, *given),
        ]


def verify_learner(make: Make, batch: Batch, seed: int = 0, skip: Collection[str] = ()) -> list[Check]:
    """Checks of a learner.

    Args:
        make: micro -> the learner, built anew, of that many micro-batches.
        batch: of an even number of examples, in double precision.
        seed: of the run.
        skip: the names of checks that are not made.

    Raises:
        ValueError: there is no check of a name in `skip`.
    """
    with jax.enable_x64(True):
        key = jax.random.key(seed)
        run = functools.cache(lambda: learners.run(make, batch, key))
        checks: dict[str, Callable[[], learners.Result]] = {
            "keys used once": lambda: learners.keys_used_once(make, batch, key),
            "keeps its form": lambda: learners.keeps_its_form(make, batch, key),
            "memory is saved": lambda: learners.memory_saved(make, run()),
            "compiles once": lambda: learners.compiles_once(run()),
            "finite": lambda: learners.finite(run()),
            "seeds": lambda: learners.seeds(make, run()),
            "devices": lambda: learners.devices(run()),
            "micro-batches": lambda: learners.micro_batches(make, run()),
            "jit = no jit": lambda: learners.same_without_jit(run()),
        }
        if unknown := set(skip) - checks.keys():
            raise ValueError(f"no such checks to skip: {', '.join(sorted(unknown))}; there are {', '.join(checks)}")
        made = []
        for name in (name for name in checks if name not in skip):
            made.append(check(name, checks[name]))
            if name in ("keeps its form", "memory is saved") and not made[-1].ok:
                break  # what follows would fail too, and say less
        return made


def table(checks: Iterable[Check]) -> str:
    """One line a check, and how many failed."""
    checks = list(checks)
    words = {True: "ok", False: "FAILED", None: "-"}
    width = max(len(one.name) for one in checks)
    lines = [f"{one.name:<{width}}  {words[one.ok]:<6}  {one.detail}" for one in checks]
    failed = sum(one.ok is False for one in checks)
    passed = sum(one.ok is True for one in checks)
    return "\n".join([*lines, f"{passed} passed, {failed} failed, {len(checks) - passed - failed} do not apply"])


def small(config: ConfigDict) -> tuple[ConfigDict, Space]:
    """The config at the smallest event that its model can take, and what such events are.

    Raises:
        Exception: what the model raises even at the size of the data.
    """
    config = ConfigDict(config.to_dict())
    zoo.fill(config)
    info = _info(config)
    for section in (config.model, config.objective):
        for name, largest in LARGEST.items():
            if name in section:
                section[name] = _at_most(section[name], largest)
    config.train.duration = "100"
    if config.optimizer.name == "em" and "every" in config.optimizer:
        del config.optimizer.every  # a duration in text
        config.optimizer.every = 2
    levels = {"binary": 2, "levels": config.model.get("levels", 0)}.get(info.kind, 0)
    values = tuple(float(level) for level in range(levels))
    classes = config.model.get("classes", 0) or (info.classes if config.data.cond else 0)
    for shape in _shapes(tuple(info.shape), levels):
        config.model.shape = shape
        space = Space(shape, values, info.range, classes)
        try:
            _try(zoo.build_model(config), space)
            return config, space
        except Exception:
            if shape == tuple(info.shape):
                raise
    raise AssertionError("the last shape is that of the data")


def _info(config: ConfigDict) -> transforms.Info:
    """What one example of the config's data is."""
    try:
        data = sources.load(config.data.name, config.data.dir or None, **config.data.options.to_dict())
        info, train = data.info, data.splits["train"]["x"]
    except FileNotFoundError as error:
        if config.data.name not in sources.DECLARED:
            text = "Only the data say what their events are like, and the checks are made on such events."
            raise FileNotFoundError(f"{error}\n{text}") from None
        info, train = sources.DECLARED[config.data.name], None
    return transforms.make(config.data.transforms, info, train).info


def _shapes(shape: tuple[int, ...], levels: int) -> list[tuple[int, ...]]:
    """Small shapes of the same rank, then `shape` itself; of entries with so many levels, or 0 for real ones."""
    discrete = levels > 0
    smaller: list[tuple[int, ...]]
    if len(shape) == 3:
        sides = [(2, 4)] * discrete + [(2, 2), (4, 4), (8, 8), (16, 16)]
        smaller = [(*side, shape[-1]) for side in sides]
    elif len(shape) == 2:
        smaller = [(4, 2), (8, 4)]
    else:
        smaller = [(8,)] if discrete else [(2,)]
    if discrete:  # those that can be listed first
        smaller.sort(key=lambda one: levels ** math.prod(one) > MAX_STATES)
    return [*(one for one in smaller if all(a <= b for a, b in zip(one, shape, strict=True))), shape]


def _try(model: Model, space: Space) -> None:
    """Trace what the model does with events of this shape; raises what it raises."""
    key = jax.random.key(0)
    batch = random_batch(space, 0, BATCH)
    params = jax.eval_shape(lambda key: widen(model.init(key, batch)), key)
    for function in (model.log_prob, model.energy, model.critic, model.encode):
        if function is not None:
            jax.eval_shape(lambda params, f=function: f(params, None, batch), params)
    if model.draw is not None:
        jax.eval_shape(model.draw, params, key, batch)
    if model.sample is not None:
        jax.eval_shape(lambda params, key: model.sample(params, key, BATCH, batch.get("cond")), params, key)
    if model.denoise is not None:
        t = batch["x"].reshape(BATCH, -1)[:, 0]
        jax.eval_shape(lambda params: model.denoise(params, None, batch["x"], t, batch.get("cond")), params)


def _at_most(value: object, largest: int) -> object:
    if isinstance(value, tuple | list):
        return type(value)(_at_most(item, largest) for item in value)
    return min(value, largest) if isinstance(value, int) and not isinstance(value, bool) else value
