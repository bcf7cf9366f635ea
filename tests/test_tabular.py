"""The Gaussian by which the study of red wine tells that its folds are the published ones."""

import numpy as np

from dgm_jax.data.dataset import Dataset, Info
from experiments.tabular import gaussian


def test_one_gaussian_is_fitted_to_all_but_what_is_tested(monkeypatch):
    rng = np.random.default_rng(0)
    sizes = {"train": 50, "valid": 9, "test": 8}
    folds = [{name: {"x": rng.normal(size=(n, 2))} for name, n in sizes.items()} for _ in range(gaussian.FOLDS)]
    monkeypatch.setattr(gaussian.sources, "load", lambda name, fold: Dataset(Info(name, (2,), "real"), folds[fold]))
    expected = []
    for fold in folds:
        rest = np.concatenate([fold["train"]["x"], fold["valid"]["x"]])
        z, covariance = fold["test"]["x"] - rest.mean(0), np.cov(rest.T, bias=True)
        distances = np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z)
        expected.append(-0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + distances.mean()))
    np.testing.assert_allclose(gaussian.log_likelihoods(), expected)
