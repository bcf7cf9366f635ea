"""Trained runs, read from their work directories; and the codes that they give, which a second stage is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from dgm_jax import config as configs
from dgm_jax import zoo
from dgm_jax.data import codes, pipeline, transforms
from dgm_jax.evaluation import nll
from dgm_jax.runs import Run, first_seed, parameters, prepare
from dgm_jax.training import checkpoint, parallel, processes
from dgm_jax.training.learners import averaged_params
from dgm_jax.types import Batch, Model, Params, PyTree
from dgm_jax.workdir import from_json

CODES = "codes:"  # data.name of a second stage, before the first one's work directory


class Stage(NamedTuple):
    """A trained run."""

    model: Model
    params: Params
    run: Run


def load(workdir: str | Path) -> tuple[Model, Params, ConfigDict]:
    """A trained run: its model, its parameters (averaged, where it averages; the best, where it chooses), its config.

    Raises:
        FileNotFoundError: no run there.
        training.checkpoint.CheckpointError: no checkpoint, or a damaged one.
    """
    trained = opened(workdir)
    return trained.model, trained.params, trained.run.config


def opened(workdir: str | Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> Stage:
    """A trained run as `load` reads it, of all its seeds.

    Args:
        workdir: of the run.
        overrides: of where its data are and of how it is evaluated; a mesh among them has to fit the devices.

    Raises:
        ValueError: it does not.
    """
    workdir = Path(workdir)
    page = workdir / "config.json"
    if not page.exists():
        raise FileNotFoundError(f"no run in {workdir}: {page} is not there")
    config = from_json(json.loads(page.read_text()))
    configs.override(config, overrides)
    run = prepare(ready(config))
    mesh = mesh_here(config, asked=any(key.startswith("mesh.") for key in overrides))
    model = zoo.build_model(run.config)
    like = parameters(run, model, mesh)
    with checkpoints(workdir, config, read_only=True) as manager:
        chosen = checkpoint.best_step(manager, best) if (best := config.checkpoint.best) else None
        state, _ = checkpoint.restore(manager, like, chosen, set_aside=False, part=True)
    return Stage(model, averaged_params(state), run)


def mesh_here(config: ConfigDict, asked: bool = False) -> jax.sharding.Mesh:
    """The config's mesh; where it does not fit the devices that are here, and is not asked for, all along `data`."""
    try:
        return parallel.make_mesh(config.mesh.to_dict())
    except ValueError:
        if asked:
            raise
        return parallel.make_mesh({"data": -1})


def checkpoints(
    workdir: Path, config: ConfigDict, read_only: bool = False
) -> AbstractContextManager[ocp.CheckpointManager]:
    """The checkpoints of a run, open for the time of a block."""
    options = config.checkpoint
    kept = options.keep_every * int(options.every)
    return checkpoint.opened(
        workdir / "checkpoints",
        keep=options.keep,
        keep_steps=kept,
        best=options.best,
        mode=options.mode,
        read_only=read_only,
    )


def stage(workdir: str | Path) -> Stage:
    """A complete run, of several seeds the first.

    Raises:
        FileNotFoundError: there is none, or it is not complete.
    """
    workdir = Path(workdir).expanduser()
    if not (workdir / "result.json").exists():
        raise FileNotFoundError(f"no complete run in {workdir}: train it first; {workdir / 'result.json'} is not there")
    whole = opened(workdir)
    return whole._replace(params=first_seed(whole.params, whole.run.config))


def ready(config: ConfigDict) -> ConfigDict:
    """The config with data that can be loaded: those that are codes are stored, and named by their model's digest.

    The first stage is only ever read. A run of the second stage belongs to that digest, as to the rest of its config.

    Raises:
        FileNotFoundError: no complete run of the first stage.
        ValueError: it gives no codes, or is another one than the config says.
    """
    if not config.data.name.startswith(CODES):
        return config
    workdir = Path(config.data.name.removeprefix(CODES)).expanduser()
    first = stage(workdir)
    found = digest(first.params)
    if (wanted := config.data.options.get("digest") or found) != found:
        raise ValueError(f"{workdir} holds a model with the digest {found}, not {wanted}: it was trained anew")
    if codes.stored_digest(workdir) != found:
        splits = {name: _encoded(first, name) for name in first.run.data.splits}
        sizes = {level: len(vectors) for level, vectors in first.params["buffers"]["codebook"].items()}
        if processes.is_main():
            codes.write(workdir, splits, sizes, found)
        processes.wait_for_all("the codes are stored")
    config = ConfigDict(config.to_dict())
    config.data.options.digest = found
    return config.lock()


def digest(params: Params) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of parameters, by path."""
    found = hashlib.sha256()
    for name, leaf in sorted(checkpoint.flatten(params).items()):
        found.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


def _encoded(first: Stage, split: str) -> dict[str, np.ndarray]:
    """A split's codes by level, [N, h, w], and its labels where it has such."""
    model, params, run = first
    transform = transforms.of_split(run.transform, split)
    if model.encode is None or model.decode is None or "codebook" not in params.get("buffers", {}):
        raise ValueError(f"model {run.config.model.name!r} has no codes for a second stage: it takes a vqvae")
    encode = model.encode

    @jax.jit
    def encoded(params: Params, batch: Batch) -> PyTree:
        batch, _ = transforms.apply(transform, jax.random.key(nll.DATA_SEED), batch)
        return encode(params, None, batch)

    examples, parts = run.data.splits[split], []
    for batch in pipeline.eval_batches(examples, run.config.eval.batch, run.config.data.cond):
        real = batch["mask"] != 0
        parts.append({level: np.asarray(found)[real] for level, found in encoded(params, batch).items()})
    maps = {level: np.concatenate([part[level] for part in parts]) for level in parts[0]}
    return maps | ({"label": examples["label"][:]} if "label" in examples else {})
