"""How hard the CPU's compiler tries: for large programs that run once it takes longer than they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def jit_once(f: Callable, **options: Any) -> Callable:
    """`jax.jit` of what runs once, such as `init`, without optimization on the CPU; not inside another jit."""
    return _jit(f, 0, options)


def jit_often(f: Callable, **options: Any) -> Callable:
    """`jax.jit` of what runs hundreds of times, optimized whatever XLA_FLAGS say; not inside another jit."""
    return _jit(f, 3, options)


def _jit(f: Callable, effort: int, options: dict[str, Any]) -> Callable:
    level = {"xla_backend_optimization_level": effort} if jax.default_backend() == "cpu" else {}
    return jax.jit(f, compiler_options=level, **options)
