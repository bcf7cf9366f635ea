"""Scores of strangeness, and the area under their curve against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dgm_jax import api
from dgm_jax.tasks import anomaly


def test_auroc_is_scikit_learns():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(6, size=300), rng.integers(8, size=200)  # with ties
    found = anomaly.auroc(inside, outside)
    labels = np.repeat([0, 1], [300, 200])
    np.testing.assert_allclose(found["value"], roc_auc_score(labels, np.concatenate([inside, outside])), atol=1e-12)
    assert found["kind"] == "estimate" and found["n"] == 500


def test_its_standard_error_is_the_spread_over_samples():
    rng = np.random.default_rng(1)
    found = [anomaly.auroc(rng.normal(size=60), rng.normal(1, 1, size=40)) for _ in range(400)]
    spread = np.std([metric["value"] for metric in found])
    np.testing.assert_allclose(np.mean([metric["stderr"] for metric in found]), spread, rtol=0.15)


def test_scores():
    costs = np.array([[[0.1, 0.1], [0.1, 5.0]], [[2.0, 2.0], [2.0, 2.0]]])
    x = np.array([[[0, 0], [0, 1]], [[0, 1], [1, 0]]])
    predicted = np.array([[[0, 0], [0, 0.5]], [[0.5, 0.5], [0, 0]]])
    parts = anomaly.Parts(x, costs, predicted)
    np.testing.assert_allclose(anomaly.nll(parts, 0.0), [5.3, 8.0])
    np.testing.assert_allclose(anomaly.typicality(parts, 7.0), [1.7, 1.0])
    np.testing.assert_allclose(anomaly.residual(parts, 0.0), [1 / 16, 6 / 16])
    np.testing.assert_allclose(anomaly.surprise(parts, 0.0), [5.0, 2.0])  # one of four parts
    simple, complex_ = np.zeros((1, 400)), np.random.default_rng(0).integers(2, size=(1, 400))
    same = np.ones((1, 400))
    simple, complex_ = (anomaly.Parts(x, same, same) for x in (simple, complex_))
    assert anomaly.complexity(simple, 0.0) > anomaly.complexity(complex_, 0.0)


@pytest.mark.slow
def test_a_run_tells_other_data_apart(tmp_path):
    x = np.zeros((40, 8, 8, 1), np.uint8)
    x[:, ::2] = 1  # stripes one way are the data, the other way they are not
    np.savez(tmp_path / "rows.npz", train=x, test=x)
    np.savez(tmp_path / "columns.npz", train=x.swapaxes(1, 2), test=x.swapaxes(1, 2))
    overrides = {
        "data.name": "npz:rows.npz",
        "data.dir": str(tmp_path),
        "data.transforms": (),
        "eval.outside": "npz:columns.npz",
        "train.duration": "60 steps",
        "optimizer.learning_rate": 0.03,
    }
    config = api.load_config("fvsbn_digits:tiny", overrides)
    metrics = api.train(config, tmp_path / "run", quiet=True)["metrics"]
    assert metrics["test/auroc_nll"]["value"] == metrics["test/auroc_surprise"]["value"] == 1.0
    assert set(metrics) >= {f"test/auroc_{name}" for name in anomaly.SCORES}
    with pytest.raises(ValueError, match="takes a model with log_conditionals"):
        api.train(api.load_config("vae_digits:tiny", {"eval.outside": "digits"}), tmp_path / "vae", quiet=True)
