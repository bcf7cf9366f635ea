"""Two stages end to end, on tiny runs: codes of a VQ-VAE-2, priors over them, images, and the bound."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logs import numbers

from dgm_jax import api, cli, loading
from dgm_jax.data import codes, pipeline, sources
from dgm_jax.runs import prepare

pytestmark = pytest.mark.usefixtures("one_device")


def train(name, workdir, **overrides):
    overrides = {"eval.samples": 0, "eval.every": "0 steps"} | overrides
    return api.train(api.load_config(f"{name}:tiny", overrides), workdir, quiet=True)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != codes.FILE}


def test_stored_codes_are_a_source(tmp_path):
    rng = np.random.default_rng(0)
    splits = {
        name: {
            "top": rng.integers(300, size=(n, 2, 2), dtype=np.int32),
            "bottom": rng.integers(5, size=(n, 4, 4), dtype=np.int32),
            "label": rng.integers(10, size=n, dtype=np.uint8),
        }
        for name, n in (("train", 30), ("valid", 4), ("test", 5))
    }
    codes.write(tmp_path, splits, {"top": 300, "bottom": 5}, "abc")
    assert codes.stored_digest(tmp_path) == "abc" and [path.name for path in tmp_path.iterdir()] == [codes.FILE]
    top = sources.load(f"codes:{tmp_path}", digest="abc")
    bottom = sources.load(f"codes:{tmp_path}", level="bottom", top="elsewhere")
    for name, split in splits.items():
        np.testing.assert_array_equal(top.splits[name]["x"], split["top"][..., None])
        np.testing.assert_array_equal(top.splits[name]["label"], split["label"])
        np.testing.assert_array_equal(bottom.splits[name]["x"], split["bottom"][..., None])
        np.testing.assert_array_equal(bottom.splits[name]["label"], split["top"])
    assert (top.info.kind, top.info.levels, top.info.range) == ("levels", 300, (0.0, 299.0))
    assert (bottom.info.levels, bottom.info.classes, bottom.splits["train"]["x"].dtype) == (5, 0, np.uint8)
    with pytest.raises(ValueError, match="digest abc, not abd"):
        sources.load(f"codes:{tmp_path}", digest="abd")
    with pytest.raises(ValueError, match="no level 'middle'; there is top and bottom"):
        sources.load(f"codes:{tmp_path}", level="middle")
    with pytest.raises(FileNotFoundError, match="train the first stage in"):
        sources.load(f"codes:{tmp_path / 'nowhere'}")


@pytest.mark.slow
def test_two_stages(tmp_path):
    """An autoencoder of two levels and the priors over both: one test, so that they are trained once."""
    first, top, bottom = (tmp_path / name for name in ("first", "top", "bottom"))
    train("vqvae_digits", first, **{"model.scales": (2, 2)})
    before, data = contents(first), {"data.name": f"codes:{first}"}
    results = {"top": train("vqvae_digits_prior", top, **data)}
    results["bottom"] = train(
        "vqvae2_cifar10_bottom", bottom, **data, **{"data.options.top": str(top), "eval.samples": 2}
    )
    check_data_are_what_the_trained_model_encodes(tmp_path, results)
    check_bound_is_the_sum_of_its_parts(tmp_path, results)
    check_images_are_drawn_through_both_priors(tmp_path)
    check_a_second_stage_resumes_to_the_bit(tmp_path, results)
    check_a_first_stage_that_is_not_there_or_another_is_refused(tmp_path)
    assert before == contents(first)  # it is read, and never trained on


def check_data_are_what_the_trained_model_encodes(folder, results):
    model, params, config = api.load(folder / "first")
    digits = prepare(config).data
    top, bottom = (sources.load(f"codes:{folder / 'first'}", level=level) for level in ("top", "bottom"))
    encode = jax.jit(lambda params, batch: model.encode(params, None, batch))
    for name, split in digits.splits.items():
        found = encode(params, {"x": jnp.asarray(split["x"], float)})
        np.testing.assert_array_equal(top.splits[name]["x"][..., 0], found["top"])
        np.testing.assert_array_equal(bottom.splits[name]["x"][..., 0], found["bottom"])
        np.testing.assert_array_equal(bottom.splits[name]["label"], found["top"])
        np.testing.assert_array_equal(top.splits[name]["label"], split["label"])
    assert (top.info.shape, bottom.info.shape, top.info.levels, top.info.classes) == ((2, 2, 1), (4, 4, 1), 8, 10)
    named = {"workdir": str(folder / "first"), "digest": loading.digest(params)}
    assert all(result["first_stage"] == named for result in results.values())


def check_bound_is_the_sum_of_its_parts(folder, results):
    assert "test/image_nll" not in results["top"]["metrics"]  # the bottom is missing
    found = results["bottom"]["metrics"]["test/image_nll"]
    (first, params, config), top, bottom = (api.load(folder / name) for name in ("first", "top", "bottom"))
    x = jnp.asarray(pipeline.spread(prepare(config).data.splits["test"], 20)["x"], float)  # eval.examples

    @jax.jit
    def parts(x):
        z, _ = first.draw(params, None, {"x": x})
        maps = first.encode(params, None, {"x": x})
        of_x = first.log_joint(params, z, {"x": x}) + (4 + 16) * jnp.log(8)  # uniform codes taken out
        of_top = top[0].log_prob(top[1], None, {"x": maps["top"][..., None] * 1.0})
        given = {"x": maps["bottom"][..., None] * 1.0, "cond": maps["top"]}
        return -(of_x + of_top + bottom[0].log_prob(bottom[1], None, given))

    np.testing.assert_allclose(found["value"], np.mean(parts(x)), rtol=1e-4)
    assert found["kind"] == "bound" and found["n"] == 20
    bits = results["bottom"]["metrics"]["test/image_nll_bits_per_dim"]
    np.testing.assert_allclose(bits["value"], found["value"] / (64 * np.log(2)), rtol=1e-6)
    assert api.evaluate(folder / "bottom")["image_nll"] == found


def check_images_are_drawn_through_both_priors(folder):
    out = folder / "x.npz"
    assert cli.main(["sample", f"--workdir={folder / 'bottom'}", "--n=3", f"--out={out}"]) == 0
    x = np.load(out)["x"]
    assert x.shape == (3, 8, 8, 1) and 0 <= x.min() < x.max() <= 16
    assert (folder / "bottom" / "samples" / "images.png").exists()
    assert not (folder / "top" / "samples" / "images.png").exists()
    maps = api.sample(folder / "top", 3)  # its codes, since the bottom ones are still missing
    assert maps.shape == (3, 2, 2, 1) and set(np.unique(maps)) <= set(range(8))


def check_a_second_stage_resumes_to_the_bit(folder, results):
    halves = folder / "halves"
    shutil.copytree(folder / "top", halves)
    shutil.rmtree(halves / "checkpoints" / "8")  # as a kill between the checkpoints 4 and 8 leaves it
    (halves / "result.json").unlink()
    (folder / "first" / codes.FILE).unlink()  # they are made again
    again = train("vqvae_digits_prior", halves, **{"data.name": f"codes:{folder / 'first'}"})
    assert numbers(halves) == numbers(folder / "top") and again["metrics"] == results["top"]["metrics"]


def check_a_first_stage_that_is_not_there_or_another_is_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"no complete run in .*nowhere"):
        train("vqvae_digits_prior", folder / "none", **{"data.name": f"codes:{folder / 'nowhere'}"})
    with pytest.raises(ValueError, match=r"name that run by data\.options\.top"):
        data = {"data.name": f"codes:{folder / 'first'}", "data.options.top": ""}
        train("vqvae2_cifar10_bottom", folder / "topless", **data)
    other = folder / "other"
    shutil.copytree(folder / "top", other)
    page = json.loads((other / "config.json").read_text())
    page["data"]["options"]["digest"] = "0" * 16
    (other / "config.json").write_text(json.dumps(page))
    with pytest.raises(ValueError, match=f"not {'0' * 16}: it was trained anew"):
        api.load(other)
