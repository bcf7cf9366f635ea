"""Checkpoints through orbax: the State as a flat {path: array}, and a JSON page with every digest.

orbax keeps no checksum and casts a wrong dtype silently, so both are checked here.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dgm_jax.types import PyTree, State


class CheckpointError(RuntimeError):
    """A checkpoint that is not there, is damaged, or does not fit the run."""


class Damaged(CheckpointError):
    """A checkpoint that cannot be read, or holds other bytes than were saved."""


def open_manager(folder: Path, keep: int = 2, best: str = "", mode: str = "min") -> ocp.CheckpointManager:
    """Open the checkpoints under `folder`, which is made if it is not there.

    Args:
        folder: the run's `checkpoints` folder.
        keep: how many of the newest are kept.
        best: name of the metric whose best checkpoint is kept too; "" = none.
        mode: "min" or "max" of that metric.
    """
    folder = Path(folder).absolute()
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):  # left by a kill while saving
        shutil.rmtree(unfinished)
    policies: list[Any] = [checkpoint_managers.LatestN(keep)]
    chosen: dict[str, Any] = {}
    if best:
        worst = float("inf") if mode == "min" else -float("inf")

        def metric(metrics: Mapping[str, float]) -> float:
            return metrics.get(best, worst)

        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=metric, reverse=mode == "min", n=1, keep_checkpoints_without_metrics=False
            )
        )
        chosen = {"best_fn": metric, "best_mode": mode}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies), **chosen
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
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
    """
    flat = flatten(state)
    page = {**meta, "digests": {name: digest(value) for name, value in flat.items()}}
    manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(page)),
        metrics=dict(metrics) if metrics else None,
    )


def restore(manager: ocp.CheckpointManager, like: State, step: int | None = None) -> tuple[State, dict]:
    """Restore the newest sound checkpoint, or that of `step`: (state, meta).

    A damaged one that is newer is reported as a warning and set aside as <step>.damaged.

    Args:
        manager: from `open_manager`.
        like: a State of arrays or ShapeDtypeStructs with the tree, shapes, dtypes and shardings wanted.
        step: None = the newest.

    Raises:
        CheckpointError: there is none, or its tree, shapes or dtypes are not those of `like`.
        Damaged: that of `step` is, or all are.
    """
    if step is not None:
        return _restore(manager, like, step)
    if not (steps := sorted(manager.all_steps(), reverse=True)):
        raise CheckpointError(f"no checkpoint in {manager.directory}")
    *newer, oldest = steps
    for step in newer:
        try:
            return _restore(manager, like, step)
        except Damaged as error:
            here = manager.directory / str(step)
            aside = here.rename(here.with_name(f"{step}.damaged"))  # orbax saves no step before its newest
            manager.reload()
            warnings.warn(f"{error}\nIt lies in {aside.name} now; the checkpoint before it is used.", stacklevel=2)
    return _restore(manager, like, oldest)


def _restore(manager: ocp.CheckpointManager, like: State, step: int) -> tuple[State, dict]:
    flat = flatten(like)
    here = manager.directory / str(step)
    try:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        saved = manager.item_metadata(step)["state"]
        problems = differences({k: (tuple(v.shape), np.dtype(v.dtype)) for k, v in saved.items()}, flat)
        if problems:
            raise CheckpointError(f"{here} does not fit this run:\n" + "\n".join(problems))
        target = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
            for name, x in flat.items()
        }
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        values = manager.restore(step, args=args)["state"]
    except CheckpointError:
        raise
    except Exception as error:  # orbax raises a bare Exception on truncated files
        raise Damaged(f"{here} cannot be read: {error}") from error
    damaged = [name for name, value in values.items() if digest(value) != meta["digests"].get(name)]
    if damaged:
        raise Damaged(f"{here} is damaged: the digests of {', '.join(damaged)} do not match")
    return unflatten(like, values), meta


def flatten(state: PyTree) -> dict[str, Any]:
    """Leaves by path, such as "params/encoder/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(like: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """The tree of `like` with the leaves of `flat`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


def digest(value: Any) -> str:
    """sha256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(jax.device_get(value)).tobytes()).hexdigest()


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
