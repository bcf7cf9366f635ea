"""What is timed: models with their sizes, and runs of them, which train or sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
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
    styles: tuple[str, ...] = ()  # of the rivals, see torch_rivals
    bar: float = 0.0  # how many times as fast as its rivals ours is to be; 0: no bar
    samples: bool = False  # a batch is sampled, not trained on
    options: Mapping[str, Any] = MappingProxyType({})  # of the objective


MADE = {"name": "made", "hidden": (500,)}
VAE = {"name": "vae", "hidden": (200, 200), "latent": 50}
SMALL_VAE = {"name": "vae", "hidden": (64, 64), "latent": 8}
DDPM = {"name": "ddpm", "channels": 16}
GAN = {"name": "gan", "channels": 16}
NADE = {"name": "nade", "hidden": 500, "activation": "relu"}
PIXELCNN = {"name": "gated_pixelcnn", "features": 64, "layers": 7, "head": 128}
STYLES = ("eager", "compiled", "plain")
RECURSIONS = ("loop", "cumsum", "blocks", "blocks again")
NADES = (*(f"eager {form}" for form in RECURSIONS), "compiled cumsum", "compiled blocks")
SETUPS = {
    "MADE 784-500-784": Setup(MADE, "mle", (784,), 100, seeds_per_dispatch=10, styles=STYLES, bar=2.5),
    "VAE 784-200-200-50": Setup(VAE, "elbo", (784,), 100, seeds_per_dispatch=10, styles=STYLES, bar=1.8),
    "IWAE 784-200-200-50, k = 50": Setup(
        VAE, "iwae", (784,), 100, (1, 10), styles=STYLES[:2], bar=1.5, options={"k": 50}
    ),
    "VAE 64-64-64-8": Setup(SMALL_VAE, "elbo", (64,), 100, seeds_per_dispatch=10),
    "GAN 8x8": Setup(GAN, "non_saturating", (8, 8, 1), 50, seeds_per_dispatch=1),
    "GAN 28x28": Setup(GAN, "non_saturating", (28, 28, 1), 10, (1, 10)),
    "DDPM 8x8": Setup(DDPM, "denoising", (8, 8, 1), 50),
    "DDPM 28x28": Setup(DDPM, "denoising", (28, 28, 1), 10, (1, 10)),
    "NADE 784-500": Setup(NADE, "mle", (784,), 100, (1, 10), styles=NADES, bar=2.5),
    "Gated PixelCNN 7x64": Setup(PIXELCNN, "mle", (28, 28, 1), 16, (1, 10), styles=STYLES[:2]),
    "100 images of Gated PixelCNN 7x64": Setup(
        PIXELCNN, "mle", (28, 28, 1), 100, (1,), styles=STYLES[:2], bar=200, samples=True
    ),
}
WAYS = ("vmap", "map")  # of training SEEDS seeds at once


class Run(NamedTuple):
    """One thing that is timed."""

    setup: str
    per_dispatch: int = 1
    seeds: str = ""  # of WAYS; "": one seed
    style: str = ""  # of PyTorch, or "passes": samples by a full pass of our net for each value; "": ours
    threads: int = 0  # of PyTorch; 0: ours, on all cores

    @property
    def name(self) -> str:
        """What results.json calls it."""
        if self.threads:
            return f"torch {self.style} {self.threads}"
        return self.style or f"{self.seeds} {self.per_dispatch}".strip()

    @property
    def part(self) -> float:
        """How many updates, or what part of a batch of samples, a dispatch is: of full passes one value's."""
        setup = SETUPS[self.setup]
        return 1 / math.prod(setup.shape) if setup.samples and self.style else self.per_dispatch


def runs_of(setup: str, cores: int) -> list[Run]:
    """The runs of a setup; they take turns."""
    given = SETUPS[setup]
    runs = [Run(setup, n) for n in given.per_dispatch]
    if given.seeds_per_dispatch:
        runs += [Run(setup, given.seeds_per_dispatch, way) for way in WAYS]
    if given.samples:
        runs.append(Run(setup, style="passes"))
    return runs + [Run(setup, style=style, threads=t) for style in given.styles for t in sorted({1, cores})]


def batches(setup: str, n: int) -> np.ndarray:
    """Random bits, [n, B, *shape]: speed does not depend on the data."""
    size = (n, SETUPS[setup].batch, *SETUPS[setup].shape)
    return (np.random.default_rng(0).random(size) < 0.3).astype(np.float32)
