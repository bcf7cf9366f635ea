"""Checks of a Learner: what the loop, checkpoints, devices and seeds rely on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.training import checkpoint, parallel
from dgm_jax.training.compilation import jit_once
from dgm_jax.training.wrappers import fully_sharded, with_seeds
from dgm_jax.types import Batch, Key, Learner, Metrics, PyTree, State
from dgm_jax.verification import keys
from dgm_jax.verification.space import NotApplicable, Result, widen

Make = Callable[[int], Learner]  # micro -> the learner, built from scratch
STEPS = 4
CLOSE = 1e-7  # in double precision, between two orders of the same sums


class Program(NamedTuple):
    """What a step compiles to depends on this alone."""

    text: str
    constants: list[bytes]
    effects: bool  # callbacks to Python, which may remember


class Run(NamedTuple):
    """A few steps of one learner, shared by the checks."""

    learner: Learner
    key: Key
    batch: Batch
    states: list[State]  # before the first step, and after each
    metrics: list[Metrics]
    traces: int  # of the step
    init: Callable  # compiled
    step: Callable  # compiled


def run(make: Make, batch: Batch, key: Key) -> Run:
    """Train `STEPS` steps."""
    learner, traces = make(1), 0

    def counted(state: State, key: Key, batch: Batch) -> tuple[State, Metrics]:
        nonlocal traces
        traces += 1
        return learner.step(state, key, batch)

    init, step = jit_once(learner.init), jax.jit(counted)
    states, metrics = [widen(init(key, batch))], []
    for _ in range(STEPS):
        state, values = step(states[-1], key, batch)
        states.append(state)
        metrics.append(values)
    return Run(learner, key, batch, states, metrics, traces, init, step)


def keys_used_once(make: Make, batch: Batch, key: Key) -> Result:
    """init and two steps, of one seed and of two seeds at once, use no key twice."""
    found = {}
    for seeds in (1, 2):
        learner = make(1) if seeds == 1 else with_seeds(make(1), 2)
        step = jax.jit(learner.step)

        def train(key: Key, batch: Batch, learner: Learner = learner, step: Callable = step) -> State:
            state = learner.init(key, batch)
            for _ in range(2):
                state, _ = step(state, key, batch)
            return state

        try:
            found = keys.uses(train, key if seeds == 1 else jax.random.split(key, 2), batch)
        except keys.Unreadable as why:
            raise NotApplicable(str(why)) from why
        if problems := keys.reused(found):
            whose = "" if seeds == 1 else "over two seeds, "
            return False, whose + "; ".join(problems[:3])
    return True, f"{len(found)} keys in init and 2 steps of 2 seeds"


def keeps_its_form(make: Make, batch: Batch, key: Key) -> Result:
    """A step gives back the tree, shapes and dtypes that it was given, in single precision too."""
    for wide in (True, False):
        with jax.enable_x64(wide):
            learner = make(1)
            small = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, _narrow(x.dtype, wide)), batch)
            before = jax.eval_shape(learner.init, key, small)
            after, _ = jax.eval_shape(learner.step, before, key, small)
            there, here = checkpoint.flatten(before), checkpoint.flatten(after)
            changed = [
                f"{name}: {_kind(there.get(name))} -> {_kind(here.get(name))}"
                for name in {**there, **here}
                if _kind(there.get(name)) != _kind(here.get(name))
            ]
            forms: list[Any] = [jax.tree.structure(state) for state in (before, after)]
            if changed or forms[0] != forms[1]:
                return False, "; ".join(changed[:3]) or "the tree's structure changes"
    return True, f"{len(there)} leaves"


def memory_saved(make: Make, run: Run) -> Result:
    """All that a step remembers is in the State: a fresh learner goes on to the bit, and chains move."""
    start = run.states[0], run.key, run.batch
    impure = "the step reads or writes a variable outside of the State: "
    try:
        first = _program(run.learner, *start)
        if _program(run.learner, *start) != first:
            return False, impure + "traced again, it is another program"
        if _program(make(1), *start) != first:
            return False, impure + "built anew, it is another program"
    except (jax.errors.UnexpectedTracerError, jax.errors.TracerArrayConversionError):
        return False, impure + "it holds a value of the call before"
    half = STEPS // 2
    step = jax.jit(make(1).step) if first.effects else run.step
    state = jax.tree.map(np.asarray, run.states[half])
    for _ in range(STEPS - half):
        state, _ = step(state, run.key, run.batch)
    if differing := _differing(state, run.states[-1], 0.0):
        return False, f"resumed half way, not the same: {', '.join(differing[:3])}"
    old, new = (checkpoint.flatten(state.carry) for state in (run.states[0], run.states[-1]))
    chains = [name for name in old if "chains" in name.split("/")]
    if stuck := [name for name in chains if np.array_equal(old[name], new[name])]:
        return False, f"does not move in {STEPS} steps: {', '.join(stuck)}"
    return True, f"{len(old)} arrays in carry, of which {len(chains)} chains"


def compiles_once(run: Run) -> Result:
    """Steps after the first run the program that the first compiled."""
    return run.traces == 1, f"traced {run.traces} times in {STEPS} steps"


def same_without_jit(run: Run) -> Result:
    """A step gives the same without compilation."""
    with jax.disable_jit():
        state, _ = run.learner.step(run.states[0], run.key, run.batch)
    differing = _differing(state, run.states[1], CLOSE)
    return not differing, ", ".join(differing[:3]) or f"to {CLOSE:g}"


def finite(run: Run) -> Result:
    """Losses, gradients and parameters are finite."""
    bad = {name for values in run.metrics for name, value in values.items() if not np.all(np.isfinite(value))}
    for name in list(bad):  # an idle player's metrics are NaN
        seen = [np.asarray(values[name]) for values in run.metrics]
        bad -= {name} if any(np.all(np.isfinite(value)) for value in seen) and "/" in name else set()
    if any(float(values["finite"]) < 1 for values in run.metrics):
        bad.add("finite")
    leaves = checkpoint.flatten(run.states[-1].params)
    bad |= {name for name, value in leaves.items() if not np.all(np.isfinite(value))}
    loss = [value for name, value in run.metrics[-1].items() if name.split("/")[-1] == "loss"]
    return not bad, f"not finite: {', '.join(sorted(bad)[:4])}" if bad else f"loss {float(loss[0]):.4g}"


def micro_batches(make: Make, run: Run) -> Result:
    """Two micro-batches give the same form, and where nothing is drawn the same numbers."""
    learner = make(2)
    state, _ = jax.jit(learner.step)(run.states[0], run.key, run.batch)
    other, _ = run.step(run.states[0], jax.random.fold_in(run.key, 1), run.batch)
    whole = run.states[1]
    if [_kind(x) for x in jax.tree.leaves(state)] != [_kind(x) for x in jax.tree.leaves(whole)]:
        return False, "the state's form changes"
    if _differing(other, whole, 0.0):
        return True, "form; the loss is random"
    differing = _differing(state, whole, CLOSE)
    return not differing, ", ".join(differing[:3]) or f"equal to {CLOSE:g}"


def seeds(make: Make, run: Run) -> Result:
    """Two seeds under vmap are two runs."""
    pair = with_seeds(make(1), 2)
    both = jnp.stack([run.key, jax.random.fold_in(run.key, 1)])
    first = [run.states[0], widen(run.init(both[1], run.batch))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *first)
    state, _ = jax.jit(pair.step)(stacked._replace(step=first[0].step), both, run.batch)
    for i in range(2):
        alone, _ = run.step(first[i], both[i], run.batch)
        own = State(state.step, *jax.tree.map(lambda x, i=i: x[i], tuple(state)[1:]))
        if differing := _differing(own, alone, CLOSE):
            return False, f"seed {i} differs from its own run in {', '.join(differing[:3])}"
    return True, f"equal to {CLOSE:g}"


def devices(run: Run) -> Result:
    """A batch over all devices, with parameters in two parts, gives what one device gives."""
    size = len(jax.tree.leaves(run.batch)[0])
    count = max(n for n in range(1, jax.device_count() + 1) if size % n == 0)
    if count == 1:
        raise NotApplicable("there is one device (XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates more)")
    if "callback" in _program(run.learner, run.states[0], run.key, run.batch).text:
        raise NotApplicable("the step calls back to Python, which may block simulated devices")
    mesh = parallel.make_mesh({"data": -1, "fsdp": math.gcd(count, 2)}, jax.devices()[:count])
    state = parallel.place(run.states[0], parallel.layout(run.states[0], mesh, small=0))
    key = parallel.place(run.key, parallel.replicated(mesh))
    batch = parallel.place(run.batch, parallel.by_example(mesh, axis=0))
    step = jax.jit(fully_sharded(run.learner, mesh, small=0).step)
    for _ in range(2):
        state, _ = step(state, key, batch)
    differing = _differing(state, run.states[2], CLOSE)
    return not differing, ", ".join(differing[:3]) or f"1 and {count} devices, {dict(mesh.shape)}, equal to {CLOSE:g}"


def _program(learner: Learner, state: State, key: Key, batch: Batch) -> Program:
    closed = jax.make_jaxpr(learner.step)(state, key, batch)
    text = re.sub(r"0x[0-9a-f]+", "", str(closed))
    return Program(text, [np.asarray(c).tobytes() for c in closed.consts], bool(closed.effects))


def _differing(one: PyTree, other: PyTree, tolerance: float) -> list[str]:
    """The paths of leaves that differ, relative to the leaf's largest entry."""
    names = []
    there = checkpoint.flatten(other)
    for name, a in checkpoint.flatten(one).items():
        a, b = np.asarray(a), np.asarray(there[name])
        floats = np.issubdtype(a.dtype, np.floating)
        if tolerance and floats and a.shape == b.shape:
            # not relative to the leaf alone: Adam blows up the rounding of gradients that are zero
            scale = 1 + np.abs(b).max(initial=0, where=np.isfinite(b))
            same = np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)
        else:
            same = np.array_equal(a, b, equal_nan=floats)
        if not same:
            names.append(name)
    return names


def _kind(leaf: object) -> tuple | None:
    return None if leaf is None else (tuple(leaf.shape), str(leaf.dtype))  # type: ignore[attr-defined]


def _narrow(dtype: np.dtype, wide: bool) -> np.dtype:
    names = {"float64": "float32", "int64": "int32"}
    return dtype if wide else np.dtype(names.get(str(dtype), dtype))
