"""Several processes of one run, usually one a host: how they find each other, wait, agree, and which one writes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes a launcher says it started


def join(coordinator: str = "", processes: int = 0, process: int = 0) -> None:
    """Join the other processes of the run, before anything else is asked of JAX.

    Under srun, under mpirun and on TPU pods nothing needs to be said; alone, there is nothing to join.

    Args:
        coordinator: "host:port" of process 0, which all can reach.
        processes: how many there are.
        process: which one this is.
    """
    launched = any(int(os.environ.get(name, 1)) > 1 for name in CLUSTERS)
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/*")]
    on_tpu = chips and importlib.util.find_spec("libtpu") is not None
    if coordinator:
        jax.distributed.initialize(coordinator, processes, process)
    elif launched or on_tpu:
        jax.distributed.initialize()


def wait_for_all(what: str) -> None:
    """Go on when all processes have come here."""
    if not is_alone():
        multihost_utils.sync_global_devices(what)


def is_alone() -> bool:
    """Whether the run has one process."""
    return jax.process_count() == 1


def is_main() -> bool:
    """Whether this process writes the logs, pictures and results."""
    return jax.process_index() == 0


def any_process(mesh: Mesh) -> Callable[[bool], jax.Array]:
    """Ask whether something holds in any process, without waiting for the answer.

    All processes ask equally often; the answer, which is the same in all, is read when it is there.
    """
    devices = Mesh(mesh.devices.reshape(-1), "all")
    own = NamedSharding(devices, PartitionSpec("all"))
    ask = jax.jit(lambda flags: flags.any(), out_shardings=NamedSharding(devices, PartitionSpec()))
    return lambda flag: ask(jax.make_array_from_callback((devices.size,), own, lambda part: np.full(1, flag)))
