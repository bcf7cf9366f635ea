"""What a compiled step keeps on a device and sends between devices, by a VAE on simulated ones."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dgm_jax import api, runs
from dgm_jax.training import parallel
from dgm_jax.types import State

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
MESHES = ({"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 4})


def compiled(mesh: Mapping[str, int], hidden: tuple[int, ...] = (256, 256), batch: int = 32) -> tuple[State, Any, int]:
    """A VAE's step over the first devices, as a run compiles it: shapes of the State, program, bytes of the batch."""
    overrides = {"model.hidden": hidden, "data.batch": batch, "train.per_dispatch": 1, "train.ema": 0.0}
    run = runs.prepare(api.load_config("vae_digits", overrides))
    here = parallel.make_mesh({"data": 1, **mesh}, jax.devices()[: math.prod(mesh.values())])
    _, learner = runs.build(run, here)
    state = runs.abstract_state(run, learner, here)
    there = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(learner.step, donate_argnums=0, out_shardings=(there, parallel.replicated(here)))
    feed, key = runs.make_feed(run, here)(0), runs.run_key(run.config)
    size = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(feed)) + 8  # and the key
    return state, step.lower(state, key, feed).compile(), size


def collectives(program: Any) -> list[tuple[str, int]]:
    """(operation, bytes of its results) of every collective in a compiled program."""
    found = []
    for line in program.as_text().splitlines():
        match = re.search(r"= (.*?) ([a-z]+-[a-z]+(?:-[a-z]+)?)(?:-start)?\(", line)
        if match and match[2] in COLLECTIVES:
            shapes = re.findall(r"f32\[([\d,]*)\]", match[1])
            found.append((match[2], 4 * sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)))
    return found


def bytes_per_device(devices: int) -> int:
    """What a device keeps of the State between steps, under fsdp."""
    _, program, feed = compiled({"fsdp": devices}, hidden=(1024, 1024))
    return program.memory_analysis().argument_size_in_bytes - feed


def on_simulated_devices(folder: Path) -> dict[str, Any]:
    """Run this file in a process that has eight devices."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-m", __name__], env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sent = {}
    for mesh in MESHES:
        kinds: Counter[str] = Counter()
        state, program, _ = compiled(mesh)
        for name, size in collectives(program):
            kinds[name] += size
        sent[" x ".join(f"{axis}={n}" for axis, n in mesh.items())] = dict(kinds)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    kept = {n: bytes_per_device(n) for n in (1, 2, 4, 8)}
    print(json.dumps({"state_bytes": kept, "parameter_bytes": whole, "sent_bytes": sent}))
