"""The published figure that the study of red wine rests on."""

import os

import numpy as np
import pytest
import scipy.stats

from dgm_jax.data import sources


@pytest.mark.skipif(not os.environ.get("DGM_DATA_DIR"), reason="needs the real folds")
def test_one_gaussian_has_the_published_likelihood_of_red_wine():
    found = []
    for fold in range(10):
        splits = sources.load("red_wine", fold=fold).splits
        rest = np.concatenate([splits["train"]["x"], splits["valid"]["x"]]).astype(np.float64)
        gaussian = scipy.stats.multivariate_normal(rest.mean(0), np.cov(rest.T, bias=True))
        found.append(gaussian.logpdf(splits["test"]["x"].astype(np.float64)).mean())
    np.testing.assert_allclose(np.mean(found), -13.18, atol=0.005)  # Uria et al. 2013, table 1
