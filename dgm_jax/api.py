"""From Python: train(config, workdir), load(workdir), evaluate(...), sample(...). The command line calls these."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from dgm_jax import config as configs
from dgm_jax import pictures, report, two_stage, zoo
from dgm_jax.evaluation import nll, plots
from dgm_jax.loading import Stage, checkpoints, load, mesh_here, opened, ready
from dgm_jax.runs import (
    Run,
    abstract_state,
    build,
    draw_samples,
    each_seed,
    first_seed,
    fresh_state,
    in_one_piece,
    labels_of,
    make_feed,
    prepare,
    run_key,
    step_flops,
    uncounted,
    warm_state,
)
from dgm_jax.scoring import make_evaluator
from dgm_jax.training import checkpoint, hooks, parallel, processes
from dgm_jax.training.learners import averaged_params
from dgm_jax.training.loop import Hook, Log, Progress, fit
from dgm_jax.types import Batch, Key, Learner, Model, Params, State
from dgm_jax.workdir import as_json, check, claim, held

COLDEST = 1e-6  # a temperature, by which samplers divide
PICTURES = 2**31 - 4  # an index in the run's key that no step reaches


def load_config(spec: str = configs.DEFAULT, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """A config by path or short name, completed with all defaults and changed by "a.b" -> value."""
    return configs.load(spec, overrides, zoo.fill)


def train(config: ConfigDict, workdir: str | Path, quiet: bool = False) -> dict[str, Any]:
    """Train, evaluate and write everything of a run; called again, go on where it stopped.

    Args:
        config: from `load_config`.
        workdir: made if it is not there.
        quiet: nothing on the terminal.

    Returns:
        The content of result.json.

    Raises:
        WorkdirError: workdir holds a run of another config, or another process is running there.
        training.loop.Diverged: no checkpoint holds the bad state.
        training.loop.Stopped: a signal came, and the state is saved.
    """
    workdir = Path(workdir)
    run = prepare(ready(config))
    config = run.config
    check(workdir, config)
    if (workdir / "result.json").exists():
        return json.loads((workdir / "result.json").read_text())

    here = report.environment()  # of the code that is loaded, whatever the checkout becomes during the run
    mesh = parallel.make_mesh(config.mesh.to_dict())
    model, learner = build(run, mesh)
    key, feed = run_key(config), make_feed(run, mesh)
    best, steps, chosen_by = config.checkpoint.best, int(config.train.duration), "last"
    evaluate_valid = make_evaluator(model, run, "valid", config.eval.k, mesh)
    two = two_stage.before(run)
    evaluate_test = metrics_of(model, run, two, "test", mesh)  # errors come early
    more = uncounted(run, mesh)
    meta = {"config": as_json(config), "versions": here["versions"]}
    with ExitStack() as stack:
        if processes.is_main():
            stack.enter_context(held(workdir))
            claim(workdir, config)  # once all is built: a config that cannot be leaves nothing behind
        processes.wait_for_all("the work directory is claimed")
        manager = stack.enter_context(checkpoints(workdir, config))
        state, window = resume_or_warm_start(run, learner, key, feed, manager, mesh)
        log = stack.enter_context(hooks.run_log(workdir, int(state.step), steps, quiet=quiet))
        save = hooks.checkpoint_hook(manager, int(config.checkpoint.every), meta, best)
        competing = [save._replace(every=int(config.eval.every))] if best else []  # whatever is evaluated
        state, timing = fit(
            learner,
            state,
            key,
            feed,
            steps=steps,
            per_dispatch=config.train.per_dispatch,
            log_every=int(config.log.every),
            log=log,
            hooks=[evaluation_hook(evaluate_valid, run, log), picture_hook(model, run, two, workdir), *competing],
            save=save,
            window=window,
            account=lambda timing: (
                report.rates(timing.step_s, config.data.batch * config.seeds, more * timing.flops)
                | {"time/wait_share": timing.wait_share}
            ),
            trace=workdir / "profile" if config.profile else None,
            donate=config.train.donate,
            deterministic=config.train.deterministic,
            any_process=None if processes.is_alone() else processes.any_process(mesh),
        )
        checkpoint.finish(manager)
        chosen = int(state.step)
        if best and (step := checkpoint.best_step(manager, best)) is not None:
            chosen, chosen_by = step, f"best {best}"
            state, _ = checkpoint.restore(manager, state, chosen)
        metrics = evaluate_test(averaged_params(state))
        log(steps, "test", {name: metric["value"] for name, metric in metrics.items()})
    result = {
        "metrics": {f"test/{name}": metric for name, metric in metrics.items()},
        "checkpoint": {
            "step": chosen,
            "chosen": chosen_by,
            "ema": bool(config.train.ema),
        },
        "seeds": [config.seed + i for i in range(config.seeds)],
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)) // config.seeds,
        "steps": steps,
        "step_s": timing.step_s,
        "compile_s": timing.compile_s,
        "flops": more * timing.flops,
        "wait_share": timing.wait_share,
        "peak_memory_bytes": report.peak_memory(),
        **here,
        **({"first_stage": two_stage.named(config)} if two_stage.is_second(config) else {}),
        "config": as_json(config),
    }
    if processes.is_main():
        plots.save(plots.curves(hooks.read_metrics(workdir / "metrics.jsonl")), workdir / "samples" / "curves.png")
        report.write_json(workdir / "result.json", result)
    return result


def evaluate(
    workdir: str | Path, split: str = "test", overrides: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluate a trained run on a split.

    Args:
        workdir: of the run.
        split: "train", "valid" or "test".
        overrides: of the config's `eval` and `mesh` sections, such as {"eval.test_k": 5000}, and of data.dir.

    Returns:
        Metrics by name, as in result.json.

    Raises:
        ValueError: an override of what the run was trained with, or a mesh that does not fit the devices.
    """
    if wrong := [key for key in overrides or {} if not key.startswith(("eval.", "mesh.")) and key != "data.dir"]:
        raise ValueError(f"{', '.join(wrong)} belong to training; dgm eval changes eval.*, mesh.* and data.dir")
    model, params, run = opened(workdir, overrides or {})
    return metrics_of(model, run, two_stage.before(run), split, mesh_here(run.config))(params)


def metrics_of(
    model: Model, run: Run, two: two_stage.TwoStage | None, split: str, mesh: jax.sharding.Mesh
) -> Callable[[Params], dict[str, dict[str, Any]]]:
    """Compile what is reported of a split: of the run's data, and where they are codes, and `two` are the stages before
    it, of the images.

    Raises:
        TypeError: a prior over codes with neither likelihood nor bound.
    """
    config = run.config
    evaluate = make_evaluator(model, run, split, config.eval.test_k, mesh, at_end=True)
    if two is None:
        return evaluate
    two_stage.scorer_of(model, run)  # errors come early

    def both(params: Params) -> dict[str, dict[str, Any]]:
        wholes = [two_stage.ending_with(two, Stage(model, own, run)) for own in each_seed(params, config)]
        bounds = [two_stage.bound(whole, split, config.eval.examples) for whole in wholes]
        return evaluate(params) | nll.joined_seeds(bounds)

    return both


def sample(workdir: str | Path, n: int, cond: int | None = None, temperature: float = 1.0, seed: int = 0) -> np.ndarray:
    """Draw n examples, in the data's own units, from a trained run (of several seeds, the first).

    A prior over codes draws images: those of its first stage, or its codes where a lower level's are still missing.

    Args:
        workdir: of the run.
        n: how many.
        cond: the class label to draw, for a conditional model.
        temperature: below 1 nearer the mode, as the model defines it.
        seed: of the draw.

    Raises:
        ValueError: the model has no sampler, or does not know this label.
    """
    return _sample(workdir, n, cond, temperature, seed)[0]


def _sample(workdir: str | Path, n: int, cond: int | None, temperature: float, seed: int) -> tuple[np.ndarray, Run]:
    """What `sample` draws, and the run whose data it is like."""
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: from 0, which takes what is most probable, upwards")
    temperature = max(temperature, COLDEST)
    model, params, run = opened(workdir)
    if model.sample is None:
        raise ValueError(f"model {run.config.model.name!r} has no sampler")
    params, key = first_seed(params, run.config), jax.random.key(seed)
    two = two_stage.before(run)
    if two is None:
        return draw_samples(model, run, params, key, n, labels_of(run, n, cond), temperature), run
    two = two_stage.ending_with(two, Stage(model, params, run))
    top = next(iter(two.priors.values()))
    return two_stage.sample(two, key, n, labels_of(top.run, n, cond), temperature), two.first.run


def save_samples(
    workdir: str | Path, out: Path, n: int, cond: int | None = None, temperature: float = 1.0, seed: int = 0
) -> None:
    """Draw as `sample` does into a picture (.png), of the greys of the run's own, or an array "x" (.npz).

    Of several processes, one writes.
    """
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"samples are written as .png or .npz, not {out.suffix or 'without a suffix'}: {out}")
    x, run = _sample(workdir, n, cond, temperature, seed)
    if not processes.is_main():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        np.savez_compressed(out, x=x)
    else:
        is_images = len(run.data.info.shape) == 3
        low, high = pictures.grey_range(run) if is_images else (float(x.min()), float(x.max()))
        plots.save(plots.grid(x, low=low, high=high), out)


def evaluation_hook(evaluate: Callable[[Params], dict[str, dict[str, Any]]], run: Run, log: Log) -> Hook:
    """Evaluate the validation split, log it, and tell the checkpoints."""

    def apply(step: int, state: State, progress: Progress) -> None:
        values = {name: metric["value"] for name, metric in evaluate(averaged_params(state)).items()}
        log(step, "valid", values)
        progress.evaluated.update({f"valid/{name}": value for name, value in values.items()})

    return Hook(int(run.config.eval.every), apply)


def picture_hook(model: Model, run: Run, two: two_stage.TwoStage | None, workdir: Path) -> Hook:
    """Draw samples at every evaluation, and at the end reconstructions, completions, and images through the stages
    before, into samples/.
    """
    config, folder = run.config, workdir / "samples"
    key = jax.random.fold_in(jax.random.key(config.seed), PICTURES)

    def apply(step: int, state: State, progress: Progress) -> None:
        params = first_seed(averaged_params(state), config)
        pictures.write_samples(model, run, params, jax.random.fold_in(key, 0), folder, f"step_{step:07d}")
        if step >= int(config.train.duration):
            pictures.write_reconstructions(model, run, params, jax.random.fold_in(key, 1), folder)
            if two is not None and (n := config.eval.samples):
                whole = two_stage.ending_with(two, Stage(model, params, run))
                images = two_stage.sample(whole, jax.random.fold_in(key, 2), n)
                low, high = pictures.grey_range(two.first.run)
                pictures.saver()(plots.grid(images, low=low, high=high), folder / "images.png")

    return Hook(int(config.eval.every), apply)


def resume_or_warm_start(
    run: Run,
    learner: Learner,
    key: Key,
    feed: Callable[[int], Batch],
    manager: ocp.CheckpointManager,
    mesh: jax.sharding.Mesh,
) -> tuple[State, dict]:
    """The newest checkpoint with its unlogged metrics; else a new state, with init_from's parameters if it says so."""
    like = abstract_state(run, learner, mesh)
    if manager.latest_step() is not None:
        state, meta = checkpoint.restore(manager, like)
        return state, meta["window"]
    if not run.config.init_from:
        return fresh_state(learner, key, feed, like), {}
    _, params, _ = load(run.config.init_from)
    wanted, given = checkpoint.flatten(like.params), checkpoint.flatten(params)
    if problems := checkpoint.differences({k: (x.shape, x.dtype) for k, x in given.items()}, wanted):
        text = "\n".join([f"init_from={run.config.init_from} does not fit:", *problems])
        if not run.config.init_partial:
            raise ValueError(f"{text}\nWith init_partial=True a run takes what fits.")
        warnings.warn(f"{text}\nThe rest is taken from there.", stacklevel=2)
        fits = {
            k: x for k, x in given.items() if k in wanted and (x.shape, x.dtype) == (wanted[k].shape, wanted[k].dtype)
        }
        own = checkpoint.flatten(fresh_state(learner, key, feed, like).params)
        params = checkpoint.unflatten(like.params, own | fits)
    return warm_state(run, mesh, params, feed(0), like), {}


def describe(config: ConfigDict) -> str:
    """What `dgm train --dry_run` prints: the resolved config, the parameters, the batch, the FLOPs of a step."""
    run = prepare(ready(config))
    mesh = parallel.make_mesh(run.config.mesh.to_dict())
    state = abstract_state(run, build(run, mesh)[1], mesh)
    rows = [(name, str(x.shape), str(x.dtype), x.size) for name, x in checkpoint.flatten(state.params).items()]
    width = max(len(row[0]) for row in rows)
    flops = step_flops(in_one_piece(run), mesh)
    sizes = {name: len(split["x"]) for name, split in run.data.splits.items()}
    return "\n".join(
        [
            json.dumps(as_json(run.config), indent=1),
            *(f"{name:{width}}  {shape:20} {dtype:10} {size:>12,}" for name, shape, dtype, size in rows),
            f"{sum(row[3] for row in rows):,} parameters",
            f"data: {run.data.info.name} {sizes}, examples {run.data.info.shape} -> {run.transform.info.kind}",
            f"{run.config.train.duration} steps of batch {run.config.data.batch}; {flops:.3g} FLOPs a step",
        ]
    )


def list_zoo() -> str:
    """What `dgm list` prints: models with capabilities, objectives, configs."""
    lines = ["models"]
    for name, make in zoo.MODELS.items():
        model = make(shape=(8, 8, 1))
        has = [field for field in Model._fields if getattr(model, field) is not None]
        lines.append(f"  {name:10} {' '.join(has)}")
    lines += ["objectives", "  " + " ".join(zoo.OBJECTIVES), "configs"]
    for name, path in configs.names().items():
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        lines.append(f"  {name:22} {about}")
    return "\n".join(lines)
