"""What models ask of the numbers among their options."""

from __future__ import annotations


def at_least(least: int, **counts: int) -> None:
    """ValueError for counts that are below the least, by their names."""
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"{name}={count}: give a whole number from {least}")


def odd_from(least: int, **widths: int) -> None:
    """ValueError for widths of kernels that are not least, least + 2, least + 4, ..., by their names; least is odd."""
    for name, width in widths.items():
        if width < least or width % 2 == 0:
            raise ValueError(f"{name}={width}: the width of this kernel is odd, and at least {least}")
