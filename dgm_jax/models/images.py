"""What models of images ask of a shape."""

from __future__ import annotations


def image(shape: tuple[int, ...], halvings: int = 0) -> tuple[int, int, int]:
    """The shape of one example, (H, W, C), of images whose height and width can be halved so often.

    Raises:
        ValueError: it is not that of an image, or of one that cannot be.
    """
    if len(shape) != 3:
        raise ValueError(f"a model of images needs events (H, W, C), not {tuple(shape)}")
    height, width, channels = shape
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(f"images of {height}x{width} pixels cannot be halved {halvings} times: ask for fewer, or pad")
    return height, width, channels
