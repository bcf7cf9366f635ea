"""Kill a run with SIGKILL at random moments, also while it saves, restart it, and compare with a run left in peace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from dgm_jax.training import checkpoint

KINDS = {  # each kind of learning, and data that stream
    "exact likelihood, autoregressive": ("made_digits", {}),
    "exact likelihood, flow": ("realnvp_digits", {}),
    "bound": ("vae_digits", {}),
    "two players": ("gan_digits", {}),
    "energy with persistent chains": ("rbm_digits", {}),
    "counting and EM, mixture": ("mixture_digits", {}),
    "counting and EM, HMM": ("hmm_digits", {}),
    "denoising": ("ddpm_digits", {}),
    "bound, streaming through grain": ("vae_digits", {"data.stream": True}),
}


def kill_and_compare(
    config: str, fields: Mapping[str, Any], folder: Path, kills: int, steps: int, saves: int = 20
) -> dict[str, Any]:
    """Train once in peace, and again under `kills` kills; a run that ends between them is compared and begun anew.

    Args:
        config: its `:tiny` variant is trained.
        fields: of the config.
        folder: for the work directories.
        kills: how many, at times uniform over the run; every other one waits for a checkpoint that is being saved.
        steps: of the run.
        saves: how many checkpoints it saves.

    Returns:
        How many kills there were, how many left a checkpoint half saved, how often a run went on from a checkpoint,
        how many runs were compared, and what differed.
    """
    every = {"checkpoint.every": steps // saves, "log.every": steps // 10, "eval.every": steps // 2}
    durations = {"train.duration": steps} | every
    command = [sys.executable, "-m", "dgm_jax", "train", f"--config={config}:tiny"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    command += [f"--config.{name}={value} steps" for name, value in durations.items()]
    env = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(workdir: Path) -> subprocess.Popen:
        log = (folder / "log.txt").open("a")
        return subprocess.Popen([*command, f"--workdir={workdir}"], stdout=log, stderr=log, env=env)

    folder.mkdir(parents=True)
    began = time.perf_counter()
    ended(start(folder / "whole"), folder)
    lasts = time.perf_counter() - began
    rng = np.random.default_rng(0)
    done = unfinished = resumed = compared = 0
    different: list[str] = []
    while True:
        workdir = folder / f"run_{compared}"
        process = start(workdir)
        if done < kills:
            wait(process, workdir, rng, lasts, saves if done % 2 == 1 else 0)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                saved = workdir / "checkpoints"
                unfinished += any(saved.glob("*.orbax-checkpoint-tmp*"))
                resumed += any(path.name.isdigit() for path in saved.glob("*"))
                continue
        ended(process, folder)
        different += differences(workdir, folder / "whole")
        compared += 1
        if done == kills:
            break
    return {
        "kills": done,
        "while_saving": unfinished,
        "resumed": resumed,
        "compared": compared,
        "different": different,
        "seconds": round(lasts, 1),
    }


def wait(process: subprocess.Popen, workdir: Path, rng: np.random.Generator, lasts: float, saves: int) -> None:
    """Wait for a random moment of a run that lasts so many seconds; or for the 2nd to `saves` / 2-th checkpoint."""
    until = time.perf_counter() + rng.uniform(0, lasts)
    while not saves and time.perf_counter() < until and process.poll() is None:
        time.sleep(0.001)
    seen: set[str] = set()
    wanted = rng.integers(2, saves // 2 + 1) if saves else 0  # of which all but the last are there
    while len(seen) < wanted and process.poll() is None:
        seen |= {path.name for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")}
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.02))


def ended(process: subprocess.Popen, folder: Path) -> None:
    """Wait for the end; RuntimeError where that is not a good one."""
    if code := process.wait():
        raise RuntimeError(f"exit code {code}:\n{(folder / 'log.txt').read_text()[-2000:]}")


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same, to the bit: leaves of the last State, and logged numbers that are not times."""
    a, b = last_state(one), last_state(other)
    wrong = [name for name in sorted(a.keys() | b.keys()) if name not in a or name not in b or a[name] != b[name]]
    lines = enumerate(zip(log(one), log(other), strict=True), 1)
    return wrong + [f"line {i} of metrics.jsonl" for i, (here, there) in lines if here != there]


def last_state(workdir: Path) -> dict[str, bytes]:
    """The newest checkpoint's leaves."""
    with checkpoint.opened(workdir / "checkpoints") as manager:
        step = manager.latest_step()
        flat = manager.restore(step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))["state"]
    return {name: np.asarray(leaf).tobytes() for name, leaf in flat.items()}


def log(workdir: Path) -> list[str]:
    """The lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in line.items() if not k.startswith("time/")}) for line in lines]
