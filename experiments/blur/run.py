"""How blurred the samples of VAEs are: `python -m experiments.blur.run [name ...]` from the root of the checkout.

Besides the table it draws `samples.png`, from the results and the pictures that are kept and from the test images.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dgm_jax import api
from dgm_jax.data import sources
from dgm_jax.evaluation import plots
from dgm_jax.report import show_value
from experiments.study import Row, main

FOLDER = Path(__file__).parent
MEANS, SAMPLES = "test/gradient_energy_means", "test/gradient_energy_samples"
OTHERS = "test/elbo_bits_per_dim", "test/rate"
LOGISTICS = {
    "objective.warmup": 0,  # these keep their codes without
    "data.transforms": (),
    "model.output": "logistic",
    "model.components": 5,
    "model.shared_scale": False,
}
ROWS = {
    "gaussian": Row("vae_grey_mnist", (MEANS, SAMPLES, *OTHERS)),
    "logistics": Row("vae_grey_mnist", (MEANS, SAMPLES, *OTHERS), LOGISTICS),
    "pixel_vae": Row("pixel_vae_mnist", (SAMPLES, *OTHERS)),
}


class Strip(NamedTuple):
    """A row of the figure."""

    name: str
    run: str
    picture: str  # that is kept of the run
    metric: str


STRIPS = (
    Strip("Gaussian\nE[x | z]", "gaussian", "means.png", MEANS),
    Strip("Gaussian\nx ~ p(x | z)", "gaussian", "samples.png", SAMPLES),
    Strip("logistics\nE[x | z]", "logistics", "means.png", MEANS),
    Strip("logistics\nx ~ p(x | z)", "logistics", "samples.png", SAMPLES),
    Strip("PixelVAE\nx ~ p(x | z)", "pixel_vae", "samples.png", SAMPLES),
)


def first_rows(grid: np.ndarray, images: int) -> np.ndarray:
    """Two rows, side by side, of a picture [H, W] that has so many images in as many rows as columns."""
    tall = len(grid) // round(images**0.5)
    return np.concatenate([grid[:tall], grid[tall : 2 * tall]], axis=1)


def draw_figure(folder: Path) -> None:
    """Draw, below the data, what is kept of each run, and its ratio of gradient energies beside it."""
    config = api.load_config(ROWS["gaussian"].config)
    data, n = sources.load(config.data.name, config.data.dir or None), config.eval.samples
    grid = plots.grid(data.splits["test"]["x"][:n], low=0.0, high=data.info.levels - 1.0)
    rows = [("test images", "1", grid[..., 0])]
    for strip in STRIPS:
        page = folder / strip.run / "result.json"
        if page.exists():
            ratio = show_value(json.loads(page.read_text())["metrics"][strip.metric])
            rows.append((strip.name, ratio, np.asarray(Image.open(folder / strip.run / strip.picture))))
    figure = Figure(figsize=(10, 0.6 * len(rows)), dpi=150)
    figure.subplots_adjust(left=0.12, right=0.99, bottom=0.01, top=0.99)
    for place, (name, ratio, picture) in enumerate(rows, start=1):
        axes = figure.add_subplot(len(rows), 1, place)
        axes.imshow(first_rows(picture, n), cmap="gray", vmin=0, vmax=255, aspect="equal")
        axes.text(-0.01, 0.5, f"{name}\n{ratio}", transform=axes.transAxes, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    plots.save(figure, folder / "samples.png")


if __name__ == "__main__":
    main(FOLDER, ROWS)
    draw_figure(FOLDER)
