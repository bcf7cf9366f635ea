"""Whether the folds of red wine are the published ones: `python -m experiments.tabular.gaussian`.

Uria et al. 2013, table 1, have -13.18 nats for one Gaussian of full covariance. Keeps `red_wine/gaussian.json`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.stats

from dgm_jax import report
from dgm_jax.data import sources

FOLDS, PUBLISHED = 10, -13.18


def log_likelihoods() -> list[float]:
    """Mean test log-likelihood in nats of each fold, the Gaussian being fitted to all but what is tested."""
    found = []
    for fold in range(FOLDS):
        splits = sources.load("red_wine", fold=fold).splits
        rest = np.concatenate([splits["train"]["x"], splits["valid"]["x"]]).astype(np.float64)
        gaussian = scipy.stats.multivariate_normal(rest.mean(0), np.cov(rest.T, bias=True))
        found.append(float(gaussian.logpdf(splits["test"]["x"].astype(np.float64)).mean()))
    return found


def main() -> None:
    """Measure, keep, and fail where the folds are others."""
    found = log_likelihoods()
    page = Path(__file__).parent / "red_wine" / "gaussian.json"
    page.parent.mkdir(exist_ok=True)
    report.write_json(page, {"mean": float(np.mean(found)), "folds": found, **report.environment()})
    print(f"{np.mean(found):.4f} nats, published {PUBLISHED}")
    if abs(np.mean(found) - PUBLISHED) > 0.005:
        raise SystemExit("these are not the folds of Uria et al. 2013")


if __name__ == "__main__":
    main()
