"""Where arrays lie: the mesh of a config, and the shardings of states and batches on it.

A batch is split over `data` and `fsdp`. Of a State, the chains are split like a batch; everything else lies whole on
every device along `data`, and in parts along `fsdp` and, by rules on paths, along `tensor`. The compiler derives
what is communicated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dgm_jax.training import processes
from dgm_jax.types import Batch

AXES = ("data", "fsdp", "tensor")
SMALL = 4096  # entries of a leaf that is not worth splitting

# (a regular expression that is found in a leaf's path, the mesh axis or None for each of the leaf's first axes)
Rules = Sequence[tuple[str, Sequence[str | None]]]


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lay devices out on the axes `data`, `fsdp` and `tensor`.

    Args:
        shape: axis -> devices along it; -1 = the rest (at most one axis); an axis left out has 1.
        devices: all devices where None.

    Raises:
        ValueError: an unknown axis, a size that is none, or sizes that the devices do not fill.
    """
    devices = jax.devices() if devices is None else list(devices)
    if unknown := set(shape) - set(AXES):
        raise ValueError(f"unknown mesh axis {sorted(unknown)}; there are {', '.join(AXES)}")
    if wrong := {axis: size for axis, size in shape.items() if size < 1 and size != -1}:
        raise ValueError(f"mesh {wrong}: an axis has 1 device or more, or -1 for the rest")
    sizes = [shape.get(axis, 1) for axis in AXES]
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != len(devices) or -1 in sizes:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} does not use all {len(devices)} devices; use -1 once"
        )
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh | AbstractMesh, axis: int) -> NamedSharding:
    """Examples, which lie along `axis`, split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))


def layout(state: Any, mesh: Mesh, rules: Rules = (), lead: int = 0, small: int = SMALL) -> Any:
    """The sharding of every leaf of a State.

    The first rule that is found in the leaf's path decides, unless all axes that it names have one device; paths are
    those of `checkpoint.flatten`, and those of the optimizer's and the averaged parameters end like the parameters'
    own. Without a rule, chains are split over `data` and `fsdp` where these divide them, and other leaves, unless
    small, over `fsdp` along the largest axis that it divides.

    Args:
        state: of arrays or ShapeDtypeStructs.
        mesh: from `make_mesh`.
        rules: for the paths that want another layout.
        lead: axes before a leaf's own that stay whole: 1 with several seeds.
        small: leaves with fewer entries are not split over `fsdp`.

    Raises:
        ValueError: a rule that a leaf cannot follow.
    """

    def of(path: tuple, leaf: Any) -> NamedSharding:
        if leaf.ndim <= lead:
            return replicated(mesh)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(
            mesh, PartitionSpec(*[None] * lead, *_axes_of(name, is_chain(path), leaf.shape[lead:], mesh, rules, small))
        )

    return jax.tree_util.tree_map_with_path(of, state)


def _axes_of(name: str, chain: bool, shape: tuple[int, ...], mesh: Mesh, rules: Rules, small: int) -> Sequence[Any]:
    for pattern, axes in rules:
        named = [axis for axis in axes if axis]
        if named and all(mesh.shape[axis] == 1 for axis in named):
            continue  # it asks for nothing on this mesh
        if re.search(pattern, name):
            if len(axes) > len(shape) or any(n % mesh.shape[a] for n, a in zip(shape, axes, strict=False) if a):
                raise ValueError(f"the rule ({pattern!r}, {axes!r}) does not fit {name} {shape} on {dict(mesh.shape)}")
            return axes
    if chain:
        return [("data", "fsdp")] if shape[0] % parts(mesh) == 0 else []
    n_fsdp = mesh.shape["fsdp"]
    divisible = [axis for axis, n in enumerate(shape) if n % n_fsdp == 0]
    if n_fsdp == 1 or math.prod(shape) < small or not divisible:
        return []
    largest = max(divisible, key=lambda axis: shape[axis])
    return [*[None] * largest, "fsdp"]


def without(sharding: NamedSharding, axis: str) -> NamedSharding:
    """The sharding with nothing split over `axis`."""
    return NamedSharding(sharding.mesh, PartitionSpec(*[None if own == axis else own for own in sharding.spec]))


def is_chain(path: tuple) -> bool:
    """Whether a leaf of a State holds persistent chains, which are split like a batch."""
    return "chains" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def whole(tree: Any) -> NamedSharding | None:
    """The same on every device of the mesh that `tree` lies on; None where it lies on no mesh."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf.sharding, NamedSharding):
            return NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return None


def place(tree: Any, sharding: Any) -> Any:
    """Put `tree` on devices: all leaves by one sharding, or each by its own in a tree of shardings.

    With several processes, leaves of numpy are the same in all of them, and each puts its own part on its devices.
    """
    if processes.is_alone():
        return jax.device_put(tree, sharding)

    def put(x: Any, there: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array):
            return jax.device_put(x, there)
        return jax.make_array_from_callback(x.shape, there, lambda part: x[part])

    shardings = jax.tree.map(lambda _: sharding, tree) if isinstance(sharding, NamedSharding) else sharding
    return jax.tree.map(put, tree, shardings)


def place_examples(batch: Batch, mesh: Mesh) -> Batch:
    """Put a batch of numpy with "mask" [B] on the mesh, a part of its examples on each device.

    Where they do not divide, repeats of the last one follow, under mask 0.
    """
    n = len(batch["mask"])
    if extra := -n % parts(mesh):
        batch = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], extra, axis=0)]), batch)
        batch["mask"][n:] = 0
    return place(batch, by_example(mesh, axis=0))


def own_rows(sharding: NamedSharding, n: int, axis: int) -> np.ndarray:
    """Which of n rows along `axis` lie on this process's devices, in their order."""
    parts = sharding.addressable_devices_indices_map((1,) * axis + (n,)).values()
    return np.unique(np.concatenate([np.arange(n)[part[axis]] for part in parts if part is not None]))


def place_rows(tree: Any, rows: np.ndarray, n: int, sharding: NamedSharding) -> Any:
    """Put leaves [count, len(rows), ...], this process's `rows` of n, on the devices: global arrays [count, n, ...]."""
    if len(rows) == n:
        return place(tree, sharding)

    def put(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # no device is without a part
            low, high, _ = index[1].indices(n)
            return x[:, np.searchsorted(rows, low) : np.searchsorted(rows, high)]

        return jax.make_array_from_callback((len(x), n, *x.shape[2:]), sharding, part)

    return jax.tree.map(put, tree)


def shaped(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of `tree` with a tree of shardings: what a checkpoint is restored into."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
