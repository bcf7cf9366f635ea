"""Gradient energy: its definition, its standard error, and the metrics of a run that asks for it."""

import numpy as np
import pytest
import scipy.ndimage

from dgm_jax import api
from dgm_jax.evaluation.sharpness import gradient_energy, relative_energy


def test_it_is_the_mean_over_pairs_of_neighbours():
    x = np.random.default_rng(0).integers(0, 256, size=(3, 4, 5, 2)).astype(np.uint8)
    for image, found in zip(x, gradient_energy(x), strict=True):
        pairs = []
        for i in range(4):
            for j in range(5):
                for k, m in ((i + 1, j), (i, j + 1)):
                    if k < 4 and m < 5:
                        pairs += [(float(image[i, j, c]) - float(image[k, m, c])) ** 2 for c in range(2)]
        np.testing.assert_allclose(found, np.mean(pairs))


def test_blur_lowers_it_noise_raises_it_and_units_do_not_matter():
    rng = np.random.default_rng(1)
    data = (rng.uniform(size=(50, 8, 8, 1)) > 0.7) * 255.0
    blurred = scipy.ndimage.gaussian_filter(data, (0, 0.7, 0.7, 0))
    noise = 20 * rng.normal(size=data.shape)
    ratios = [relative_energy(x, data)["value"] for x in (blurred, data, data + noise)]
    assert ratios[0] < 0.6 and ratios[1] == 1 and ratios[2] > 1
    # of independent noise each difference has twice the variance
    assert gradient_energy(noise).mean() == pytest.approx(2 * 20**2, rel=0.1)
    assert relative_energy(blurred / 255, data / 255)["value"] == pytest.approx(ratios[0])


def test_the_standard_error_is_the_spread_of_the_ratio():
    rng = np.random.default_rng(2)

    def images(n, scale):
        return scale * rng.gamma(2.0, size=(n, 1, 1, 1)) * rng.normal(size=(n, 4, 4, 1))

    found = [relative_energy(images(80, 1.5), images(120, 1.0)) for _ in range(400)]
    spread = np.std([metric["value"] for metric in found])
    assert np.mean([metric["stderr"] for metric in found]) == pytest.approx(spread, rel=0.15)
    assert found[0]["n"] == 80 and found[0]["kind"] == "estimate" and found[0]["unit"] == "1"


def test_what_has_no_neighbours_or_no_gradient_is_an_error():
    with pytest.raises(ValueError, match=r"not of \(5, 64\)"):
        gradient_energy(np.zeros((5, 64)))
    with pytest.raises(ValueError, match="each of the 3 images of the data has one value"):
        relative_energy(np.ones((4, 2, 2, 1)), np.ones((3, 2, 2, 1)))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_that_asks_for_it_compares_images_with_data_as_it_sees_them(tmp_path):
    overrides = {"eval.sharpness": True, "train.duration": "2 steps"}
    overrides |= {"eval.metric_samples": 200, "eval.examples": 0, "eval.samples": 0}
    result = api.train(api.load_config("vae_digits:tiny", overrides), tmp_path, quiet=True)
    samples, means = (result["metrics"][f"test/gradient_energy_{name}"] for name in ("samples", "means"))
    # hardly trained, it draws independent pixels of the right means: rougher than digits, and their mean image smoother
    assert means["value"] < 0.9 < 1.1 < samples["value"] and samples["n"] == 200
    data = (api.prepare(api.load_config("vae_digits:tiny")).data.splits["test"]["x"] >= 8.5) * 16.0
    drawn = gradient_energy(api.sample(tmp_path, 200, seed=5))
    expected = drawn.mean() / gradient_energy(data).mean()
    error = drawn.std() / np.sqrt(200) / gradient_energy(data).mean()
    assert samples["value"] == pytest.approx(expected, abs=5 * error)
    flat = {"eval.sharpness": True, "data.name": "synthetic:parity", "data.transforms": ()}
    with pytest.raises(ValueError, match=r"takes images and a model that samples; .* the shape \(8,\)"):
        api.train(api.load_config("made_digits:tiny", flat), tmp_path / "flat", quiet=True)
