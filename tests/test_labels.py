"""What labels say of codes and of conditional samples."""

import jax
import numpy as np
import pytest
from logs import numbers
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from dgm_jax import api, runs, scoring
from dgm_jax.data import pipeline, transforms
from dgm_jax.data.rows import Rows
from dgm_jax.evaluation import labels, nll
from dgm_jax.training import parallel

RNG = np.random.default_rng(0)


def classes_apart(n, distance):
    """Codes [n, 3] of two classes, `distance` standard deviations apart along an axis."""
    label = np.arange(n) % 2
    return RNG.normal(size=(n, 3)) + distance * label[:, None] * np.array([1.0, 0.0, 0.0]), label


def test_a_linear_probe_finds_what_the_best_rule_can():
    codes, label = classes_apart(4000, 2.0)
    found = labels.probes(codes[:2000], label[:2000], codes[2000:], label[2000:])
    metric = found["linear_codes_accuracy"]  # of the best rule: Phi(distance / 2)
    assert metric["value"] == pytest.approx(0.8413, abs=4 * metric["stderr"]) and metric["n"] == 2000
    assert metric["stderr"] == pytest.approx((0.8413 * 0.1587 / 2000) ** 0.5, rel=0.1)


def test_neighbours_vote_as_scikit_learn_has_it():
    codes, label = classes_apart(300, 1.5)
    found = labels.probes(codes[:100], label[:100], codes[100:], label[100:], "toy")
    theirs = KNeighborsClassifier(labels.NEIGHBOURS, algorithm="brute").fit(codes[100:], label[100:])
    assert found["knn_5_toy_accuracy"]["value"] == theirs.score(codes[:100], label[:100])


def test_neighbours_see_what_no_line_can_part():
    angle = RNG.uniform(0, 2 * np.pi, 2000)
    label = np.arange(2000) % 2
    codes = (1 + 2 * label)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = labels.probes(codes[:1000], label[:1000], codes[1000:], label[1000:])
    assert found["knn_5_codes_accuracy"]["value"] == 1 and found["linear_codes_accuracy"]["value"] < 0.7


def test_principal_components_are_of_the_training_split():
    train, x = RNG.normal(size=(50, 4)) * [3.0, 2.0, 1.0, 0.1], RNG.normal(size=(5, 4))
    components, train_components = labels.principal_components(x, train, 2)
    _, _, axes = np.linalg.svd(train - train.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(components), np.abs((x - train.mean(0)) @ axes[:2].T), rtol=1e-3, atol=1e-3)
    assert train_components.shape == (50, 2)


@pytest.mark.slow
def test_real_digits_are_named_and_mislabelled_ones_are_not():
    x, label = load_digits(return_X_y=True)
    found = labels.conditional_accuracy(x[1400:], label[1400:], x[1200:1400], label[1200:1400], x[:1200], label[:1200])
    assert found["conditional_accuracy"]["value"] > 0.85 < found["classifier_accuracy"]["value"]
    wrong = labels.conditional_accuracy(x[1400:], (label[1400:] + 1) % 10, x[:9], label[:9], x[:1200], label[:1200])
    assert wrong["conditional_accuracy"]["value"] < 0.1


SMALL = {"model.latent": 2, "model.hidden": "(8,)", "eval.labels": True, "eval.examples": 50, "seed": 1}


def small_run(**overrides):
    """An untrained VAE of a hundred digits: its run, and how to evaluate it on the test split."""
    run = runs.prepare(api.load_config("vae_digits:tiny", SMALL | overrides))
    run.data.splits["train"] = {name: values[:100] for name, values in run.data.splits["train"].items()}
    mesh = parallel.make_mesh({"data": -1})
    model, _ = runs.build(run, mesh)
    batch = {"x": np.zeros((2, *run.transform.info.shape), np.float32), "cond": np.zeros(2, np.int32)}
    params = model.init(runs.run_key(run.config), batch)
    return run, lambda run: scoring.make_evaluator(model, run, "test", 1, mesh, at_end=True)(params)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_labels_may_be_read_when_they_are_asked_for():
    run, evaluate = small_run()

    def lazy(label):
        return Rows(lambda index: label[index], np.arange(len(label)), (), np.int32)

    splits = {name: split | {"label": lazy(split["label"])} for name, split in run.data.splits.items()}
    assert evaluate(run) == evaluate(run._replace(data=run.data._replace(splits=splits)))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_samples_and_components_are_held_against_the_data_as_the_model_sees_them(monkeypatch):
    run, evaluate = small_run(**{"data.transforms": '("resample",)'})
    told, evaluate_told = small_run(**{"data.transforms": '("resample",)', "data.cond": True, "model.classes": 10})
    part = pipeline.spread(run.data.splits["test"], 50)
    batch = {"x": part["x"], "index": part["index"]}
    drawn, _ = transforms.apply(run.transform, jax.random.key(nll.DATA_SEED), batch)
    seen, components = [], labels.principal_components
    monkeypatch.setattr(labels, "conditional_accuracy", lambda samples, asked, x, *_: seen.append(x) or {})
    monkeypatch.setattr(labels, "principal_components", lambda x, *rest: seen.append(x) or components(x, *rest))
    evaluate(run), evaluate_told(told)
    assert len(seen) == 2
    for x in seen:
        np.testing.assert_array_equal(x, 16 * drawn["x"])
    levels = run._replace(transform=transforms.make(("dequantize",), run.data.info))
    np.testing.assert_array_equal(scoring.as_seen(levels)(part), batch["x"])


@pytest.mark.slow
def test_an_evaluation_asks_by_capabilities(tmp_path, one_device):
    small = {"model.latent": 2, "model.hidden": "(8,)", "train.duration": "4 steps", "seeds": 2}
    small |= {"eval.examples": 50, "eval.samples": 0}
    config = api.load_config("vae_digits:tiny", {"eval.labels": True, "data.cond": True, "model.classes": 10, **small})
    found = api.train(config, tmp_path / "conditional", quiet=True)["metrics"]
    assert found["test/conditional_accuracy"]["n"] == 20 and found["test/classifier_accuracy"]["n"] == 50
    assert not any("codes" in name for name in found)  # its encoder is told the label

    config = api.load_config("vae_digits:tiny", {"eval.labels": True, **small})
    found = api.train(config, tmp_path / "told_nothing", quiet=True)["metrics"]
    names = {"linear_codes", "knn_5_codes", "linear_pca_2", "knn_5_pca_2"}
    assert {f"test/{name}_accuracy" for name in names} < set(found) and "test/conditional_accuracy" not in found
    assert len(found["test/knn_5_codes_accuracy"]["per_seed"]) == 2
    valid = [line for line in numbers(tmp_path / "conditional") if line["split"] == "valid"]
    assert valid and not any("accuracy" in name for line in valid for name in line)

    no_images = {"data.name": "synthetic:parity", "data.transforms": ()}
    unlabelled = api.load_config("vae_digits:tiny", {"eval.labels": True, **no_images, **small})
    with pytest.raises(ValueError, match="takes whole data with classes; synthetic:parity has none"):
        api.train(unlabelled, tmp_path / "unlabelled", quiet=True)
