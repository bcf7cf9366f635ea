"""The rate-distortion curve of a VAE: `python -m experiments.rate_distortion.run [name ...]` from the checkout."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

from dgm_jax import config as configs
from experiments.study import Row, main

HERE = Path(__file__).parent
METRICS = ("test/rate", "test/distortion", "test/active_units")
ROWS = {
    f"beta_{point['objective.beta']:g}": Row("beta_vae_mnist", METRICS, point)
    for point in configs.module("beta_vae_mnist").sweep()
}


def draw_curve() -> None:
    """Rate against distortion of the kept results, with standard errors, into curve.png."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    points = []
    for name in ROWS:
        if (page := HERE / name / "result.json").exists():
            rate, distortion = (json.loads(page.read_text())["metrics"][metric] for metric in METRICS[:2])
            points.append((rate["value"], distortion["value"]))
            axes.errorbar(*points[-1], xerr=rate["stderr"], yerr=distortion["stderr"], fmt="o", color="C0", ms=4)
            axes.annotate(name.replace("beta_", "β = "), points[-1], xytext=(6, 4), textcoords="offset points")
    if not points:
        return
    axes.plot(*zip(*sorted(points), strict=True), color="C0", lw=1)
    elbo = min(map(sum, points))
    axes.axline((0, elbo), slope=-1, color="grey", lw=0.8, ls="--", label=f"rate + distortion = {elbo:.1f}")
    axes.set(xlabel="rate, nats", ylabel="distortion, nats", xlim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(HERE / "curve.png", dpi=150)


if __name__ == "__main__":
    main(HERE, ROWS)
    draw_curve()
