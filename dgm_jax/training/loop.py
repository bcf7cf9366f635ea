"""The one training loop. It knows a Learner, a feed of batches and hooks; no model, no objective."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.training.compilation import jit_once
from dgm_jax.training.parallel import whole
from dgm_jax.types import Array, Batch, Key, Learner, Metrics, PyTree, State

REMEDIES = (
    "Lower the learning rate, clip gradients (optimizer.clip), or look at the data. What checkpoints there are hold "
    "good states."
)
TRACED = (2, 5)  # the dispatches where a trace begins and ends
Log = Callable[[int, str, dict[str, float]], None]  # (step, split, values)


class Progress(NamedTuple):
    """What hooks see of the log, and what a checkpoint keeps of it."""

    window: dict[str, list[float]]  # metric -> [sum, count] since the last logged step
    evaluated: dict[str, float]  # "split/metric" -> value: the evaluations made at this very step


class Hook(NamedTuple):
    """What happens besides training: evaluation, pictures, checkpoints."""

    every: int  # steps; acts after the dispatch that reaches each multiple, and at the end; 0 = only there
    apply: Callable[[int, State, Progress], None]


class Timing(NamedTuple):
    """What a run cost; nan where nothing was trained."""

    compile_s: float = float("nan")
    step_s: float = float("nan")  # median
    wait_share: float = float("nan")  # of the time of training, that the loop waited for data
    flops: float = float("nan")  # of a step, by the compiler's analysis; it counts the body of a loop once


class Diverged(FloatingPointError):
    """The loss, a gradient or a parameter is not finite; no checkpoint holds that state."""


class Stopped(Exception):
    """A signal ended the run after it was saved."""


def fit(
    learner: Learner,
    state: State,
    key: Key,
    feed: Callable[[int], Batch],
    *,
    steps: int,
    per_dispatch: int,
    log_every: int,
    log: Log,
    hooks: Sequence[Hook] = (),
    save: Hook | None = None,
    window: dict[str, list[float]] | None = None,
    account: Callable[[Timing], dict[str, float]] = lambda timing: {},
    trace: Path | None = None,
    donate: bool = True,
    deterministic: bool = False,
    any_process: Callable[[bool], Any] | None = None,
) -> tuple[State, Timing]:
    """Train from `state` until `steps`.

    Args:
        learner: takes `per_dispatch` batches a call (`wrappers.scan_steps`).
        state: new, or what a checkpoint restored; every leaf stays where it lies.
        key: the run's key; over N seeds, [N] keys.
        feed: step -> the batches of the dispatch that begins there, on the devices.
        steps: a multiple of per_dispatch.
        per_dispatch: updates a call.
        log_every: steps between lines of the log; a line holds the means over the steps since the last.
        log: where lines go.
        hooks: called in order after a dispatch, with (step, state, progress).
        save: the last hook; called also after SIGTERM or SIGINT, and where there is nothing to train.
        window: what a checkpoint restored of the line not yet logged.
        account: what else a line says of the time since the last.
        trace: a folder for a profile of the dispatches TRACED.
        donate: the step may write the new state over the old one's memory.
        deterministic: a GPU adds in the same order every time, which is slower; a CPU and a TPU always do.
        any_process: with several processes, `processes.any_process`: so that all of them stop at the same step.

    Returns:
        The final state, and the timing.

    Raises:
        Diverged: names the step, the seed and the metrics that are not finite. No hook sees that state.
        Stopped: a signal came, and the state is saved.
    """
    first = int(state.step)
    if first >= steps:
        if save is not None:
            save.apply(first, state, Progress({} if window is None else window, {}))
        return state, Timing()
    began = time.perf_counter()
    there = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(learner.step, donate_argnums=0 if donate else (), out_shardings=(there, whole(state)))
    options: dict[str, str | bool] | None = {"xla_gpu_deterministic_ops": True} if deterministic else None
    step_fn = step.lower(state, key, feed(first)).compile(options)
    flops = (step_fn.cost_analysis() or {}).get("flops", float("nan"))
    timing = Timing(time.perf_counter() - began, flops=flops)

    all_finite = jit_once(_all_finite, out_shardings=whole(state))
    hooks = [*hooks, save] if save is not None else hooks
    progress = Progress({} if window is None else window, {})
    unread: deque[tuple[int, Metrics]] = deque()
    seconds: deque[float] = deque(maxlen=1000)  # of a step, by dispatch
    waits: deque[float] = deque(maxlen=1000)
    heard: deque[Any] = deque()  # whether a signal came to any process, by dispatch
    traced = [first + n * per_dispatch for n in TRACED]
    with caught_signals() as caught:
        mark = time.perf_counter()
        for begin in range(first, steps, per_dispatch):
            if trace is not None and begin == traced[0]:
                jax.block_until_ready(state)
                jax.profiler.start_trace(str(trace))
            asked = time.perf_counter()
            batches = feed(begin)
            waits.append((time.perf_counter() - asked) / per_dispatch)
            state, metrics = step_fn(state, key, batches)
            unread.append((begin, metrics))
            end = begin + per_dispatch
            if any_process is not None:
                heard.append(any_process(bool(caught)))
            stop = bool(caught) if any_process is None else len(heard) > 1 and bool(heard.popleft())
            logs = _reached(log_every, begin, end, steps)
            due = [hook for hook in hooks if _reached(hook.every, begin, end, steps)]
            # metrics are read a dispatch late, while the next one runs, unless somebody waits for them
            while len(unread) > (0 if logs or due or stop else 1):
                _read(progress.window, *unread.popleft(), per_dispatch)
            if trace is not None and traced[0] < end and end in (traced[1], steps):
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
                trace = None
            now = time.perf_counter()
            seconds.append((now - mark) / per_dispatch)
            if logs:
                means = {name: total / n for name, (total, n) in progress.window.items() if n}
                timing = timing._replace(step_s=float(np.median(seconds)), wait_share=sum(waits) / sum(seconds))
                log(end, "train", means | {"time/step_s": timing.step_s} | account(timing))
                progress.window.clear()
            progress.evaluated.clear()
            if (due or stop) and not all_finite(state.params):
                raise Diverged(f"step {end}: the update made parameters that are not finite. {REMEDIES}")
            for hook in due:
                hook.apply(end, state, progress)
            if stop and end < steps:
                if save is not None and save not in due:
                    save.apply(end, state, progress)
                raise Stopped(f"stopped by {caught[0] if caught else 'another process'} at step {end}")
            mark = time.perf_counter() if logs or due else now
    return state, timing


def _reached(every: int, begin: int, end: int, last: int) -> bool:
    """Whether the dispatch from `begin` to `end` reaches a multiple of `every`, or the last step."""
    return end >= last or (every > 0 and end // every > begin // every)


def _all_finite(tree: PyTree) -> Array:
    """Whether all numbers of a tree are: []."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.asarray([jnp.isfinite(x).all() for x in floats]).all()


def _read(window: dict[str, list[float]], begin: int, metrics: Metrics, per_dispatch: int) -> None:
    """Add a dispatch's metrics to the window; [N] over seeds become their mean and `_std`."""
    values = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
    finite = values.pop("finite")
    own = {name.removesuffix("/finite"): values.pop(name) for name in list(values) if name.endswith("/finite")}
    if (finite < 1).any():
        seed = int(np.argmin(finite))
        step = begin + round(float(finite[seed]) * per_dispatch) + 1
        idle = tuple(f"{player}/" for player, value in own.items() if np.isnan(value[seed]))
        bad = [name for name, value in values.items() if not np.isfinite(value[seed]) and not name.startswith(idle)]
        bad.sort(key=lambda name: not name.endswith("loss"))
        whose = f" with seed config.seed + {seed} (of {len(finite)})" if len(finite) > 1 else ""
        raise Diverged(f"step {step}{whose} is not finite: {', '.join(bad) or 'a gradient'}. {REMEDIES}")
    for name, value in values.items():
        spread = {f"{name}_std": value.std(ddof=1)} if len(value) > 1 else {}
        for key, number in ({name: value.mean()} | spread).items():
            if np.isfinite(number):  # an idle player's metrics are NaN
                total = window.setdefault(key, [0.0, 0])
                total[0] += float(number)
                total[1] += 1


@contextmanager
def caught_signals() -> Iterator[list[str]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a second one acts as usual."""
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def catch(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        signal.signal(number, old[signal.Signals(number)])

    for number in old:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
