"""The tables of studies, and the Gaussian by which that of red wine tells that its folds are the published ones."""

import json

import numpy as np
import pytest

from dgm_jax.data.dataset import Dataset, Info
from experiments import study
from experiments.tabular import gaussian


@pytest.mark.parametrize(
    "values, shown, step_s, ms",
    [((1.0, 3.0), "2.0 ± 1.0", 0.002, "2.0"), ((1.0, None), "not finite", 0.002, "2.0"), ((1.0,), "1", None, "")],
)
def test_a_row_of_the_table(values, shown, step_s, ms, tmp_path):
    made = {"seeds": [0], "steps": 9, "step_s": step_s, "device": "cpu", "cores": 2, "commit": "abc"}
    for fold, value in enumerate(values):
        metric = {"value": value, "stderr": None, "kind": "exact", "unit": "nats"}
        page = tmp_path / "wine" / f"fold_{fold}" / "result.json"
        page.parent.mkdir(parents=True)
        page.write_text(json.dumps({"metrics": {"test/nll": metric}, **made}))
    (tmp_path / "README.md").write_text("<!-- table -->\n<!-- end of table -->\n")
    study.write_table(tmp_path, {"wine": study.Row("made_red_wine", "test/nll", folds=len(values))})
    row = (tmp_path / "README.md").read_text().splitlines()[3]
    assert row == f"| [wine](wine) | nll, nats | {shown} |  |  | 1 | 9 | {ms} | cpu, 2 cores | abc |"


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
