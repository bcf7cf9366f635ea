"""Two processes on this machine are one run: the same numbers, one writer, one step where both stop."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from logs import assert_same_run, numbers

from dgm_jax import api

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def slurm(i, processes, job):
    """What srun tells a process, on one node."""
    values = {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": processes, "PROCID": i, "LOCALID": i}
    return {f"SLURM_{name}": str(value) for name, value in (values | {"STEP_NUM_TASKS": processes}).items()}


def start(workdir, processes, *fields, devices=4, srun=False):
    """`dgm train` in double precision over 4 simulated devices, split among so many processes."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices // processes}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-m", "dgm_jax", "train", "--config=vae_digits:tiny", f"--workdir={workdir}", *fields]
    port = free_port()
    several = [f"--coordinator=localhost:{port}", f"--processes={processes}"] if processes > 1 and not srun else []
    workdir.mkdir(parents=True, exist_ok=True)
    started = []
    for i in range(processes):
        own = [*several, f"--process={i}"] if several else []
        told = slurm(i, processes, port) if srun else {}
        with (workdir / f"{i}.log").open("w") as log:
            started.append(subprocess.Popen([*command, *own], env=env | told, stdout=log, stderr=subprocess.STDOUT))
    return started


def finish(started):
    try:
        return [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()


STREAM = ("--config.data.stream=True", "--config.mesh.fsdp=4", "--config.mesh.data=1")


def test_two_processes_are_one(tmp_path):
    """A signal to one stops both at one step; they go on with other feeding, on another mesh, as one would have."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    fields = ("--config.train.duration=200 steps", "--config.log.every=50 steps", "--config.checkpoint.every=0 steps")
    fields += ("--config.eval.every=0 steps",)
    running = start(stopped, 2, *fields, *STREAM, srun=True)
    for _ in range(2400):
        if (stopped / "metrics.jsonl").exists() and numbers(stopped):
            break
        time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    assert finish(running) == [75, 75]
    logs = [(stopped / f"{i}.log").read_text() for i in range(2)]
    assert "stopped by another process at step" in logs[0] and "stopped by SIGTERM at step" in logs[1]
    assert logs[0].split("at step ")[1] == logs[1].split("at step ")[1]
    saved = [int(folder.name) for folder in (stopped / "checkpoints").iterdir()]
    assert [f"at step {step};" in logs[0] for step in saved] == [True]

    assert finish(start(stopped, 2, *fields)) == [0, 0]
    assert finish(start(whole, 1, *fields)) == [0]
    assert_same_run(whole, stopped)
    assert {path.name for path in (stopped / "samples").iterdir()} == {p.name for p in (whole / "samples").iterdir()}
    assert "result.json" in (stopped / "0.log").read_text()  # one writes
    assert "step 200/200" not in (stopped / "1.log").read_text()
    with jax.enable_x64(True):  # one process reads what two saved
        jax.tree.map(np.testing.assert_allclose, api.load(stopped)[1], api.load(whole)[1])
