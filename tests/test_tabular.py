"""The Gaussian by which the study of red wine tells that its folds are the published ones."""

import numpy as np

from dgm_jax.data.dataset import Dataset, Info
from experiments.tabular import gaussian


def test_one_gaussian_is_fitted_to_all_but_what_is_tested(monkeypatch):
    rng = np.random.default_rng(0)
    folds = [{name: {"x": rng.normal(size=(n, 1))} for name, n in (("train", 50), ("valid", 9), ("test", 8))}] * 10
    monkeypatch.setattr(gaussian.sources, "load", lambda name, fold: Dataset(Info(name, (1,), "real"), folds[fold]))
    rest, x = np.concatenate([folds[0]["train"]["x"], folds[0]["valid"]["x"]]), folds[0]["test"]["x"]
    expected = -0.5 * np.log(2 * np.pi * rest.var()) - ((x - rest.mean()) ** 2).mean() / (2 * rest.var())
    np.testing.assert_allclose(gaussian.log_likelihoods(), [expected] * 10)
