"""Checkpoints through orbax: the State as a flat {path: array}, and a JSON page with every checksum.

orbax keeps no checksum and casts a wrong dtype silently, so both are checked here. With several processes each writes
and reads what lies on its own devices, and all of them call every function here.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dgm_jax.training.processes import is_main, wait_for_all
from dgm_jax.types import Array, PyTree, State


class CheckpointError(RuntimeError):
    """A checkpoint that is not there, is damaged, or does not fit the run."""


class Damaged(CheckpointError):
    """A checkpoint that cannot be read, or holds other bytes than were saved."""


def open_manager(
    folder: Path, keep: int = 2, keep_steps: int = 0, best: str = "", mode: str = "min", read_only: bool = False
) -> ocp.CheckpointManager:
    """Open the checkpoints under `folder`, which is made if it is not there.

    Args:
        folder: the run's `checkpoints` folder.
        keep: how many of the newest are kept, at least 1.
        keep_steps: those at multiples of so many steps are kept for ever; 0 = none.
        best: name of the metric whose best checkpoint is kept too, of those that were saved with metrics; "" = none.
        mode: "min" or "max" of that metric.
        read_only: another process may be saving there.
    """
    folder = Path(folder).absolute()
    if is_main() and not read_only:
        for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):  # left by a kill while saving
            shutil.rmtree(unfinished)
    wait_for_all("unfinished checkpoints are removed")
    policies: list[Any] = [checkpoint_managers.LatestN(keep)]
    if keep_steps:
        policies.append(checkpoint_managers.EveryNSteps(keep_steps))
    chosen: dict[str, Any] = {}
    if best:
        worst = float("inf") if mode == "min" else -float("inf")

        def metric(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best, worst)
            return worst if math.isnan(value) else value  # NaN has no place in an order

        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=metric, reverse=mode == "min", n=1, keep_checkpoints_without_metrics=False
            )
        )
        chosen = {"best_fn": metric, "best_mode": mode}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies), read_only=read_only, **chosen
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: State,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Save `state` and the JSON page `meta` as one checkpoint; saving goes on in the background.

    Args:
        manager: from `open_manager`.
        step: its name.
        state: what `restore` gives back.
        meta: anything JSON can hold.
        metrics: the validation metrics at this step, by which the best is chosen.

    Raises:
        CheckpointError: the one before could not be written.
    """
    flat = flatten(state)
    page = {**meta, "checksums": checksums(flat)}
    _give_back_memory()
    with _reported(manager):
        manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(flat), meta=ocp.args.JsonSave(page)),
            metrics=dict(metrics) if metrics else None,
        )


def _give_back_memory() -> None:
    """Give the system what the threads of earlier saves have freed: glibc keeps it for each, and a run grows by it."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc, not musl
        libc.malloc_trim(0)


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[ocp.CheckpointManager]:
    """`open_manager` for the time of a block, at whose end all that was saved is written.

    Raises:
        CheckpointError: it could not be.
    """
    manager = open_manager(folder, **options)
    try:
        yield manager
    finally:
        with _reported(manager):
            manager.close()


def best_step(manager: ocp.CheckpointManager, best: str) -> int | None:
    """The step of the best checkpoint by the metric `best`, which the manager was opened with; None: none has metrics.

    Raises:
        CheckpointError: the metrics that were saved do not have this one among them.
    """
    step = manager.best_step()
    if step is not None and best not in (saved := manager.metrics(step)):
        raise unknown_metric(best, saved)
    return step


def unknown_metric(best: str, evaluated: Iterable[str]) -> CheckpointError:
    """The error of a checkpoint.best that is not evaluated."""
    return CheckpointError(
        f"checkpoint.best={best!r} is none of the metrics that are evaluated. All is saved: give the same command "
        f"again with one of {', '.join(evaluated)}"
    )


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until all that was saved is written; CheckpointError where it could not be."""
    with _reported(manager):
        manager.wait_until_finished()


@contextmanager
def _reported(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Errors of background saves surface in a later call of orbax, as varying types; raise them as CheckpointError."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"a checkpoint could not be written in {manager.directory}: {error}\nThose saved before are kept. Free "
            "some space, or mend what else is wrong, and give the same command: it goes on from the last of them."
        ) from error


def restore(
    manager: ocp.CheckpointManager, like: State, step: int | None = None, set_aside: bool = True, part: bool = False
) -> tuple[State, dict]:
    """Restore the newest sound checkpoint, or that of `step`: (state, meta).

    A damaged one that is newer is reported as a warning.

    Args:
        manager: from `open_manager`.
        like: a State of arrays or ShapeDtypeStructs with the tree, shapes, dtypes and shardings wanted.
        step: None = the newest.
        set_aside: a damaged one becomes <step>.damaged, or .damaged1 ...: orbax saves no step before its newest.
        part: `like` may lack what the checkpoint has, which is not read then.

    Raises:
        CheckpointError: there is none, or its tree, shapes or dtypes are not those of `like`.
        Damaged: that of `step` is, or all are.
    """
    if step is not None:
        try:
            return _restore(manager, like, step, part)
        except Damaged as error:
            raise Damaged(f"{error}\nMove it away, and the best of the others is taken.") from error
    if not (steps := sorted(manager.all_steps(), reverse=True)):
        raise CheckpointError(f"no checkpoint in {manager.directory}")
    *newer, oldest = steps
    for step in newer:
        try:
            return _restore(manager, like, step, part)
        except Damaged as error:
            text = f"{error}\nThe checkpoint before it is used."
            if set_aside:
                here = manager.directory / str(step)
                names = (f"{step}.damaged{n or ''}" for n in itertools.count())
                aside = next(name for name in names if not here.with_name(name).exists())
                wait_for_all(f"a name for checkpoint {step} is found")
                if is_main():
                    here.rename(here.with_name(aside))
                wait_for_all(f"checkpoint {step} is set aside")
                manager.reload()
                text += f" The damaged one lies in {aside} now."
            warnings.warn(text, stacklevel=2)
    return _restore(manager, like, oldest, part)


def _restore(manager: ocp.CheckpointManager, like: State, step: int, part: bool) -> tuple[State, dict]:
    flat = flatten(like)
    here = manager.directory / str(step)
    try:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        saved = manager.item_metadata(step)["state"]
        if part:
            saved = {name: saved[name] for name in flat if name in saved}
        problems = differences({k: (tuple(v.shape), np.dtype(v.dtype)) for k, v in saved.items()}, flat)
        if problems:
            raise CheckpointError(f"{here} does not fit this run:\n" + "\n".join(problems))
        target = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
            for name, x in flat.items()
        }
        how = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(target, how, partial_restore=part))
        values = manager.restore(step, args=args)["state"]
    except CheckpointError:
        raise
    except Exception as error:  # orbax raises a bare Exception on truncated files
        if isinstance(error, MemoryError | jax.errors.JaxRuntimeError) or (
            isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        ):
            raise CheckpointError(f"{here} cannot be read, which says nothing of what it holds: {error}") from error
        raise Damaged(f"{here} cannot be read: {error}") from error
    damaged = [name for name, found in checksums(values).items() if found != meta["checksums"].get(name)]
    if damaged:
        raise Damaged(f"{here} is damaged: the checksums of {', '.join(damaged)} do not match")
    return unflatten(like, values), meta


def flatten(state: PyTree) -> dict[str, Any]:
    """Leaves by path, such as "params/encoder/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(like: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """The tree of `like` with the leaves of `flat`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


def checksums(flat: Mapping[str, Any]) -> dict[str, int]:
    """A checksum of each array's bits, computed where the array lies and the same on any mesh."""
    return {name: int(value) for name, value in jax.device_get(_checksums(dict(flat))).items()}


@jax.jit
def _checksums(flat: dict[str, Array]) -> dict[str, Array]:
    return {name: _checksum(jnp.asarray(value)) for name, value in flat.items()}


def _checksum(x: Array) -> Array:
    """The sum of 32-bit words, each times an odd number that is its place's own: no one changed word goes unseen."""
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = min(8 * x.dtype.itemsize, 32)
    words = jax.lax.bitcast_convert_type(x, f"uint{bits}").astype(jnp.uint32)  # of 64 bits, [..., 2]
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = (place + np.uint32(1)) * np.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x85EBCA77)
    return jnp.sum(words * (mixed | np.uint32(1)), dtype=jnp.uint32)


def differences(saved: Mapping[str, tuple], wanted: Mapping[str, Any]) -> list[str]:
    """One line for each path whose presence, shape or dtype differs."""
    lines = []
    for name in sorted(set(saved) | set(wanted)):
        if name not in saved:
            lines.append(f"  {name}: not in the checkpoint")
        elif name not in wanted:
            lines.append(f"  {name}: only in the checkpoint")
        else:
            here = (tuple(wanted[name].shape), np.dtype(wanted[name].dtype))
            if here != saved[name]:
                lines.append(f"  {name}: checkpoint has {saved[name]}, this run has {here}")
    return lines
