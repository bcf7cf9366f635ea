"""The command line, from train to result, on the tiny configs; every kind of learning resumes to the bit."""

import json
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
import rows
from conftest import use_one_device
from logs import levels, numbers
from PIL import Image

from dgm_jax import api, cli, loading, report, verification
from dgm_jax.training import checkpoint
from dgm_jax.types import Model
from experiments.reliability.kill import differences

pytestmark = pytest.mark.usefixtures("one_device")


def dgm(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of made_digits:tiny, for others to start from; whoever changes it takes a copy."""
    workdir = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        api.train(api.load_config("made_digits:tiny"), workdir, quiet=True)
    return workdir


@pytest.fixture
def own_made(made, tmp_path):
    """A copy of that run."""
    return shutil.copytree(made, tmp_path / "made")


# one of each kind of State goes on here from half a run; of every row its learner does so in test_contract
KINDS = [f"{name}_digits" for name in ("vae", "mixture", "fgan", "rbm", "vqvae")]


@pytest.mark.parametrize("name", rows.marked(rows.CONFIGS))
def test_train_evaluate_sample(name, tmp_path, capsys):
    """The artefacts of a run are there and are true."""
    whole = tmp_path / "whole"
    result = api.train(api.load_config(f"{name}:tiny"), whole, quiet=True)
    assert result["steps"] == 8 and result["metrics"] and result["config"]["model"]["name"]
    for metric in result["metrics"].values():
        assert np.isfinite(metric["value"]) and metric["kind"] in ("exact", "bound", "estimate")
    assert {line["split"] for line in numbers(whole)} == {"train", "valid", "test"}
    assert len(levels(whole / "samples" / "step_0000008.png")) > 1

    if name in KINDS:
        goes_on(name, whole, tmp_path / "halves")

    assert dgm("train", f"--config={name}:tiny", f"--workdir={whole}") == 0
    assert "complete" in capsys.readouterr().err
    assert dgm("sample", f"--workdir={whole}", "--n=4", f"--out={tmp_path / 'x.npz'}") == 0
    drawn = np.load(tmp_path / "x.npz")["x"]
    assert drawn.shape == (4, 8, 8, 1) and 0 <= drawn.min() < drawn.max() <= 16
    assert dgm("eval", f"--workdir={whole}", "--split=test") == 0
    first = next(iter(result["metrics"]))
    assert report.show_metric(first, result["metrics"][first]) in capsys.readouterr().out


def goes_on(name, whole, halves):
    """Half a run, then the rest, gives what the whole gave."""
    result = json.loads((whole / "result.json").read_text())
    shutil.copytree(whole, halves)  # as a kill between the checkpoints 4 and 8 leaves it
    shutil.rmtree(halves / "checkpoints" / "8")
    (halves / "result.json").unlink()
    with (halves / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "tr')
    again = api.train(api.load_config(f"{name}:tiny"), halves, quiet=True)
    assert differences(whole, halves) == [] and again["metrics"] == result["metrics"]


@pytest.mark.slow
def test_killed_after_the_last_step(own_made):
    page = own_made / "result.json"
    result, before = json.loads(page.read_text()), numbers(own_made)
    page.unlink()
    again = api.train(api.load_config("made_digits:tiny"), own_made)
    assert again["metrics"] == result["metrics"] and numbers(own_made) == before


def test_a_run_of_no_steps_is_complete(tmp_path):
    result = api.train(api.load_config("made_digits:tiny", {"train.duration": "0 steps"}), tmp_path, quiet=True)
    assert result["checkpoint"]["step"] == 0
    assert api.evaluate(tmp_path) == {name[5:]: metric for name, metric in result["metrics"].items()}


def test_a_profile_and_rates_are_written(tmp_path):
    result = api.train(api.load_config("mixture_digits:tiny", {"profile": True}), tmp_path, quiet=True)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    line = next(line for line in map(json.loads, (tmp_path / "metrics.jsonl").open()) if line["split"] == "train")
    assert line["time/examples_per_s"] == pytest.approx(8 / line["time/step_s"])
    assert line["time/memory_bytes"] > 0 and 0 <= line["time/wait_share"] < 1 and result["flops"] > 0


@pytest.mark.slow
def test_seeds_report_mean_and_error(made, tmp_path):
    unseen = {"eval.samples": 0}
    three = api.train(api.load_config("made_digits:tiny", {"seeds": 3} | unseen), tmp_path / "three", quiet=True)
    metric = three["metrics"]["test/nll"]
    alone = [json.loads((made / "result.json").read_text())]
    for seed in (1, 2):
        config = api.load_config("made_digits:tiny", {"seed": seed} | unseen)
        alone.append(api.train(config, tmp_path / str(seed), quiet=True))
    values = [result["metrics"]["test/nll"]["value"] for result in alone]
    np.testing.assert_allclose(metric["per_seed"], values, rtol=1e-4)
    np.testing.assert_allclose(metric["value"], np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(metric["stderr"], np.std(values, ddof=1) / 3**0.5, rtol=0.05)
    assert three["seeds"] == [0, 1, 2] and three["parameters"] == alone[0]["parameters"]


@pytest.mark.slow
def test_best_by_validation_is_reported(tmp_path):
    overrides = {"checkpoint.best": "valid/nll", "checkpoint.mode": "max", "optimizer.learning_rate": 0.1}
    overrides |= {"eval.every": "2 steps", "checkpoint.every": "6 steps"}  # every evaluation competes
    result = api.train(api.load_config("made_digits:tiny", overrides), tmp_path, quiet=True)
    valid = {line["step"]: line["nll"] for line in numbers(tmp_path) if line["split"] == "valid"}
    assert result["checkpoint"] == {"step": max(valid, key=valid.get), "chosen": "best valid/nll", "ema": True}


def test_best_by_no_metric_is_an_error_at_the_first_evaluation(tmp_path, capsys):
    assert dgm("train", "--config=vae_digits:tiny", f"--workdir={tmp_path}", "--config.checkpoint.best=valid/nll") == 1
    error = capsys.readouterr().err
    assert "checkpoint.best='valid/nll' is none of" in error and "with one of valid/elbo" in error
    assert {line["step"] for line in numbers(tmp_path)} == {4}
    assert (tmp_path / "checkpoints" / "4").exists()
    config = api.load_config("vae_digits:tiny", {"checkpoint.best": "valid/nll"})
    for _ in range(2):  # at the last evaluation, and when nothing is left to train
        with pytest.raises(checkpoint.CheckpointError, match="is none of"):
            api.train(config, tmp_path, quiet=True)
    mended = api.load_config("vae_digits:tiny", {"checkpoint.best": "valid/elbo"})
    assert api.train(mended, tmp_path, quiet=True)["checkpoint"]["chosen"] == "best valid/elbo"
    assert api.load(tmp_path)[2].checkpoint.best == "valid/elbo"  # what is loaded later is what the result is of


def test_a_config_that_cannot_be_built_does_not_claim_a_work_directory(tmp_path, capsys):
    train = "train", "--config=vae_digits:tiny", f"--workdir={tmp_path / 'run'}", "--config.eval.samples=0"
    assert dgm(*train, "--config.data.transforms=()") == 1
    assert "Traceback" not in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert dgm(*train) == 0


@pytest.mark.slow
def test_init_from_starts_at_the_other_s_parameters(made, tmp_path):
    overrides = {"init_from": str(made), "optimizer.learning_rate": 0.0, "eval.samples": 0}
    api.train(api.load_config("made_digits:tiny", overrides), tmp_path / "same", quiet=True)
    flat, same = (checkpoint.flatten(api.load(workdir)[1]) for workdir in (made, tmp_path / "same"))
    for name, value in same.items():
        np.testing.assert_allclose(value, flat[name], rtol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match="does not fit"):
        api.train(api.load_config("vae_digits:tiny", {"init_from": str(made)}), tmp_path / "other", quiet=True)


@pytest.mark.slow
def test_init_partial_takes_what_fits_and_says_what_does_not(made, tmp_path):
    overrides = {"init_from": str(made), "model.hidden": (12,), "optimizer.learning_rate": 0.0, "eval.samples": 0}
    difference = r"hidden_0/kernel: checkpoint has \(\(64, 16\).* this run has \(\(64, 12\)"
    with pytest.raises(ValueError, match=difference):
        api.train(api.load_config("made_digits:tiny", overrides), tmp_path / "whole", quiet=True)
    with pytest.warns(UserWarning, match=difference):
        config = api.load_config("made_digits:tiny", overrides | {"init_partial": True})
        api.train(config, tmp_path / "part", quiet=True)
    given, taken = (checkpoint.flatten(api.load(workdir)[1]) for workdir in (made, tmp_path / "part"))
    fit = {name for name in given if given[name].shape == taken[name].shape}
    assert fit and given.keys() - fit == {"hidden_0/kernel", "hidden_0/bias", "output/kernel"}
    for name in fit:
        np.testing.assert_allclose(taken[name], given[name], rtol=1e-6, err_msg=name)


def test_a_work_directory_of_another_run_is_refused(made, capsys):
    train = "train", "--config=made_digits:tiny", f"--workdir={made}"
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert dgm(*train, "--config.seed=3") == 1
    assert "seed: 0 there, 3 asked for" in capsys.readouterr().err
    assert dgm(*train, "--config.checkpoint.every=2 steps", "--config.eval.batch=5", "--config.eval.chunk=1") == 0
    assert before == {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}


def test_a_work_directory_that_is_older_than_a_field_goes_on(own_made, tmp_path):
    page = own_made / "config.json"
    config = json.loads(page.read_text())
    for section, field in (("eval", "impute"), ("data", "missing"), ("model", "classes")):
        del config[section][field]
    page.write_text(json.dumps(config))
    assert dgm("train", "--config=made_digits:tiny", f"--workdir={own_made}") == 0
    assert dgm("sample", f"--workdir={own_made}", "--n=4", f"--out={tmp_path / 'x.png'}") == 0


def test_divergence_is_an_error_with_a_way_out(tmp_path, capsys):
    arguments = ("train", "--config=vae_digits:tiny", f"--workdir={tmp_path}", "--config.optimizer.learning_rate=1e30")
    assert dgm(*arguments) == 1
    error = capsys.readouterr().err
    assert "is not finite: loss" in error and "optimizer.clip" in error


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("train", "--config=vae_digits", "--config.model.latnt=3"), "model.latent"),
        (("train", "--config=vae_digts"), "vae_digits"),
        (("train", "--config=vae_digits:tiny", "--config.data.name=npz:nowhere.npz"), "nowhere.npz"),
        (("eval", "--workdir=nowhere"), "no run in nowhere"),
    ],
)
def test_errors_are_one_line_that_helps(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dgm(*arguments) == 1
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error


def test_no_space_left(tmp_path, capsys, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(checkpoint, "save", full)
    assert dgm("train", "--config=made_digits:tiny", f"--workdir={tmp_path}") == 1
    assert "free some space" in capsys.readouterr().err


def test_unknown_arguments():
    with pytest.raises(SystemExit):
        dgm("train", "--confg=vae_digits")
    with pytest.raises(SystemExit):
        dgm("fly")


def test_dry_run_and_list(capsys):
    assert dgm("train", "--config=vae_digits:tiny", "--dry_run") == 0
    out = capsys.readouterr().out
    assert "parameters" in out and "FLOPs a step" in out and "decoder" in out
    assert dgm("list") == 0
    out = capsys.readouterr().out
    assert "log_joint" in out and "pcd" in out and "vae_digits" in out


def test_the_commit_is_the_package_s_own(tmp_path, monkeypatch):
    def git(*arguments):
        fields = "-c", "user.name=a", "-c", "user.email=a@b"
        done = subprocess.run(["git", *fields, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    monkeypatch.setattr(report, "__file__", str(tmp_path / "dgm_jax" / "report.py"))
    assert report.commit() == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "new.py").touch()  # which a run may have used, and no commit has
    assert report.commit() == git("rev-parse", "--short=12", "HEAD") + "-dirty"
    (tmp_path / "new.py").unlink()
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(report, "__file__", str(tmp_path / "site-packages" / "dgm_jax" / "report.py"))
    assert report.commit() is None


@pytest.fixture
def constant(monkeypatch):
    """Puts in place of a run's model one whose images are its labels all over; takes the run's fields."""

    def draw(params, key, n, cond, temperature):
        return jnp.broadcast_to(0.0 if cond is None else cond[:, None, None, None], (n, 8, 8, 1))

    def put(**fields):
        config = api.load_config("made_digits:tiny", {"data.transforms": (), **fields})
        stage = loading.Stage(Model(init=None, sample=draw), {}, api.prepare(config))
        monkeypatch.setattr(api, "opened", lambda workdir: stage)

    return put


def test_a_label_is_drawn_and_grey_as_in_the_run_s_own_pictures(constant, tmp_path):
    constant(**{"data.cond": True, "model.classes": 10})
    assert (api.sample("run", 2, cond=8) == 8).all()
    assert dgm("sample", "--workdir=run", "--n=1", "--cond=8", f"--out={tmp_path / 'x.png'}") == 0
    assert 128 in np.asarray(Image.open(tmp_path / "x.png"))  # half of the 16 of white


def test_a_mesh_that_is_asked_for_is_not_replaced():
    config = api.load_config("made_digits:tiny", {"mesh.fsdp": 16})
    assert loading.mesh_here(config).shape["fsdp"] == 1
    with pytest.raises(ValueError, match="does not use all"):
        loading.mesh_here(config, asked=True)


@pytest.mark.parametrize(
    "fields, cond, text",
    [
        ({}, 3, "'made' is not conditional on labels"),
        ({"data.cond": True}, 3, "'made' is not conditional on labels"),  # and pays them no heed
        ({"data.cond": True, "model.classes": 10}, 10, "labels are 0..9"),
        ({"data.cond": True, "model.classes": 10}, -1, "labels are 0..9"),
    ],
)
def test_labels_that_a_model_does_not_know(fields, cond, text, constant, tmp_path, capsys):
    constant(**fields)
    assert dgm("sample", "--workdir=run", f"--cond={cond}", f"--out={tmp_path / 'x.npz'}") == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("outcomes, code", [((True, None), 0), ((True, None, False), 1)])
def test_verify_fails_where_a_check_does(outcomes, code, monkeypatch, capsys):
    checks = [verification.Check("bound", ok, "why") for ok in outcomes]
    monkeypatch.setattr(verification, "verify", lambda config: checks)
    assert dgm("verify", "--config=mixture_digits:tiny") == code
    assert f"1 passed, {code} failed, 1 do not apply" in capsys.readouterr().out


@pytest.mark.slow
def test_micro_batches_and_seeds_in_turn_cost_the_flops_of_the_whole(tmp_path, monkeypatch):
    for makes in ("make_evaluator", "metrics_of"):
        monkeypatch.setattr(api, makes, lambda *given: lambda params: {})
    small = {"train.duration": "2 steps", "data.batch": 200, "eval.samples": 0, "seeds": 3}
    flops = [
        api.train(api.load_config("vae_digits:tiny", small | more), tmp_path / str(i), quiet=True)["flops"]
        for i, more in enumerate(({}, {"train.micro": 10, "vectorize_seeds": False}))
    ]
    assert flops[1] == pytest.approx(flops[0], rel=0.05)


@pytest.mark.slow
def test_points_in_the_plane_have_a_density_picture(tmp_path):
    overrides = {"data.name": "synthetic:mixture", "data.transforms": (), "model.net": "mlp", "eval.samples": 4}
    api.train(api.load_config("realnvp_digits:tiny", overrides), tmp_path, quiet=True)
    assert (tmp_path / "samples" / "step_0000008.png").stat().st_size > 10_000
