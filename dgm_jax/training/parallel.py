"""Where arrays lie: the mesh of a config, and the shardings of states and batches on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lay devices out on the axes `data`, `fsdp` and `tensor`.

    Args:
        shape: axis -> devices along it; -1 = the rest (at most one axis); an axis left out has 1.
        devices: all devices where None.

    Raises:
        ValueError: an unknown axis, or sizes that the devices do not fill.
    """
    devices = jax.devices() if devices is None else list(devices)
    if unknown := set(shape) - set(AXES):
        raise ValueError(f"unknown mesh axis {sorted(unknown)}; there are {', '.join(AXES)}")
    sizes = [shape.get(axis, 1) for axis in AXES]
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != len(devices) or -1 in sizes:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} does not use all {len(devices)} devices; use -1 once"
        )
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh, axis: int) -> NamedSharding:
    """Examples, which lie along `axis`, split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Put every leaf of `tree` on the devices of `sharding`."""
    return jax.device_put(tree, sharding)


def shaped(tree: Any, sharding: NamedSharding) -> Any:
    """ShapeDtypeStructs of `tree` with a sharding: what a checkpoint is restored into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
