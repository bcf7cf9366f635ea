"""What a result says of itself: device, versions, commit, and the metrics with their kinds."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("dgm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict[str, Any]:
    """The device, cores, versions and commit of this process."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else processor(),
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": commit(),
    }


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu ({line.partition(':')[2].strip()})"
    return f"cpu ({platform.machine()})"


def commit() -> str | None:
    """The checkout's commit, -dirty where Python files differ from it or are not in it; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)

    try:
        top = git("rev-parse", "--show-toplevel")
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", "*.py")
    except OSError:
        return None
    if head.returncode or Path(top.stdout.rstrip("\n")) != root:  # perhaps that of a project it is installed in
        return None
    return head.stdout.strip() + ("-dirty" if changed.stdout else "")


# of a device's matrix units a second, bfloat16, dense, by how its name starts: the first that fits; from data sheets
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops() -> float | None:
    """FLOP/s of all devices together at their best in bfloat16; None where it is not known."""
    kind = jax.devices()[0].device_kind
    found = [flops for name, flops in PEAK_FLOPS.items() if kind.startswith(name)]
    return jax.device_count() * found[0] if found else None


def rates(step_s: float, examples: int, flops: float) -> dict[str, float]:
    """What the log says of speed: steps, examples and FLOPs a second, utilisation, memory.

    Args:
        step_s: seconds of a step.
        examples: of a step.
        flops: of a step, on one device.
    """
    per_second = flops * jax.device_count() / step_s
    peak = peak_flops()
    return {
        "time/steps_per_s": 1 / step_s,
        "time/examples_per_s": examples / step_s,
        "time/flops_per_s": per_second,
        **({"time/utilisation": per_second / peak} if peak else {}),
        "time/memory_bytes": float(peak_memory()),
    }


def peak_memory() -> int:
    """Bytes at the peak: of the first device where it tells, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON page whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


def finite(value: Any) -> Any:
    """A JSON value with null in place of NaN and infinities, which JSON lacks."""
    if isinstance(value, Mapping):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_value(metric: Mapping[str, Any]) -> str:
    """Value with its standard error, as many digits as it bears; a bound on a cost is marked <=, an estimate ~."""
    if metric["value"] is None or not math.isfinite(metric["value"]):  # null in JSON
        return "not finite"
    sign = {"bound": "<= ", "estimate": "~ "}.get(metric["kind"], "")
    if metric.get("stderr") is None or not math.isfinite(metric["stderr"]):
        return f"{sign}{metric['value']:.4g}"
    if metric["stderr"] < 1e-7:  # beyond the digits of float32: that of a count that is certain, for one
        return f"{sign}{metric['value']:.7g} ± {metric['stderr']:.1g}"
    digits = max(0, 1 - math.floor(math.log10(metric["stderr"])))
    return f"{sign}{metric['value']:.{digits}f} ± {metric['stderr']:.{digits}f}"


def show_metric(name: str, metric: Mapping[str, Any]) -> str:
    """One line: name, value with its standard error, unit, kind, and over how many examples or seeds."""
    over = f"{len(metric['per_seed'])} seeds" if "per_seed" in metric else f"{metric['n']} examples"
    unit = "" if metric["unit"] == "1" else f" {metric['unit']}"
    return f"{name}: {show_value(metric)}{unit} ({metric['kind']}, {over})"
