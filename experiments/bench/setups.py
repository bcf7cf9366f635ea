"""What is timed: models with their sizes, and runs of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

SEEDS = 8


class Setup(NamedTuple):
    """A model, its objective, the shape of a batch, and what it is compared in."""

    model: dict[str, Any]
    objective: str
    shape: tuple[int, ...]
    batch: int
    per_dispatch: tuple[int, ...] = (1, 10, 20)
    seeds_per_dispatch: int = 0  # where SEEDS seeds are trained at once, by vmap and by map; 0: nowhere
    bar: float = 0.0  # what ours is to be, times PyTorch's eager step; 0: no rival


MADE = {"name": "made", "hidden": (500,)}
VAE = {"name": "vae", "hidden": (200, 200), "latent": 50}
SMALL_VAE = {"name": "vae", "hidden": (64, 64), "latent": 8}
DDPM = {"name": "ddpm", "channels": 16}
GAN = {"name": "gan", "channels": 16}
SETUPS = {
    "MADE 784-500-784": Setup(MADE, "mle", (784,), 100, seeds_per_dispatch=10, bar=2.5),
    "VAE 784-200-200-50": Setup(VAE, "elbo", (784,), 100, seeds_per_dispatch=10, bar=1.8),
    "VAE 64-64-64-8": Setup(SMALL_VAE, "elbo", (64,), 100, seeds_per_dispatch=10),
    "GAN 8x8": Setup(GAN, "non_saturating", (8, 8, 1), 50, seeds_per_dispatch=1),
    "GAN 28x28": Setup(GAN, "non_saturating", (28, 28, 1), 10, (1, 10)),
    "DDPM 8x8": Setup(DDPM, "denoising", (8, 8, 1), 50),
    "DDPM 28x28": Setup(DDPM, "denoising", (28, 28, 1), 10, (1, 10)),
}
WAYS = ("vmap", "map")  # of training SEEDS seeds at once
STYLES = ("eager", "compiled", "plain")  # of the rivals, see torch_rivals.parameters_and_step


class Run(NamedTuple):
    """One thing that is timed."""

    setup: str
    per_dispatch: int = 1
    seeds: str = ""  # of WAYS; "": one seed
    style: str = ""  # of PyTorch; "": ours
    threads: int = 0  # of PyTorch; 0: ours, on all cores

    @property
    def name(self) -> str:
        """What results.json calls it."""
        if self.threads:
            return f"torch {self.style} {self.threads}"
        return f"{self.seeds} {self.per_dispatch}".strip()


def runs_of(setup: str, cores: int) -> list[Run]:
    """The runs of a setup; they take turns."""
    *_, sizes, seeds_size, bar = SETUPS[setup]
    runs = [Run(setup, n) for n in sizes]
    if seeds_size:
        runs += [Run(setup, seeds_size, way) for way in WAYS]
    if bar:
        runs += [Run(setup, style=style, threads=t) for style in STYLES for t in sorted({1, cores})]
    return runs


def batches(setup: str, n: int) -> np.ndarray:
    """Random bits, [n, B, *shape]: speed does not depend on the data."""
    size = (n, SETUPS[setup].batch, *SETUPS[setup].shape)
    return (np.random.default_rng(0).random(size) < 0.3).astype(np.float32)
