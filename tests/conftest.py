"""The process that tests run in: 8 simulated devices, strict ranks, and a cache of compiled programs.

The environment is set before jax is imported, and child processes inherit it.
"""

import importlib.metadata
import itertools
import os
from pathlib import Path

import pytest

FLAGS = {
    # tests compile for longer than they compute: level 0 of 3, and the older code generator, which is quicker
    "--xla_backend_optimization_level": 0,
    "--xla_force_host_platform_device_count": 8,
    # on a busy machine a simulated device may wait long for the others; XLA aborts the process after 40 s
    "--xla_cpu_collective_call_terminate_timeout_seconds": 600,
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds": 300,
}
if importlib.metadata.version("jaxlib") < "0.11":  # from then on there is but the new one, and XLA ends at the flag
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"{name}={value}" for name, value in FLAGS.items() if name not in given)])
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


MAPS, MOST_MAPS = Path("/proc/self/maps"), 40_000  # Linux allows a process 65,530, and beyond them XLA crashes
ended = itertools.count(1)


@pytest.fixture(autouse=True)
def _forget_programs():
    """A compiled program takes about four of the process's memory maps: now and then all of them are let go."""
    yield
    if next(ended) % 5 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()


@pytest.fixture
def one_device(monkeypatch):
    """Runs lie on one device, as on a laptop: collectives over simulated devices are slow."""
    use_one_device(monkeypatch)


def use_one_device(patch):
    """The same for what a fixture of a module runs."""
    import jax

    from dgm_jax.training import parallel

    make_mesh = parallel.make_mesh
    patch.setattr(parallel, "make_mesh", lambda shape, devices=None: make_mesh(shape, devices or jax.devices()[:1]))
