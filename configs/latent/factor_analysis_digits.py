"""Factor analysis of the digits, dequantized and logit-transformed, by EM.

`dgm train --config=factor_analysis_digits`
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="factor_analysis", latent=40, noise="diagonal")
    config.objective.name = "em"
    config.optimizer = ConfigDict({"name": "em", "every": "1 epoch"})
    config.data.update(transforms=("dequantize", "logit(0.05)"), batch=1400)
    config.train.update(duration="200 epochs", per_dispatch=20)
    config.log.every = "10 epochs"
    return finish(config, arg, latent=2)


def sweep() -> Iterator[dict[str, Any]]:
    """Noise of each pixel or of all (probabilistic PCA), and numbers of factors."""
    for noise in ("diagonal", "isotropic"):
        for latent in (10, 20, 40):
            yield {"model.noise": noise, "model.latent": latent}
