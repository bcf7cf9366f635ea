"""What is refused before anything is computed, and what the refusal says to do."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from dgm_jax import api, cli, loading, report, runs, scoring, sweep, two_stage, workdir, zoo
from dgm_jax.data import transforms
from dgm_jax.data.dataset import Dataset, Info
from dgm_jax.models import condition, outputs
from dgm_jax.models.autoregressive import deep_nade, gated_pixelcnn, pixelcnn, pixelrnn
from dgm_jax.models.diffusion import ddpm
from dgm_jax.models.latent import vae
from dgm_jax.training import parallel, processes
from dgm_jax.types import Model


def prepared(**fields):
    return runs.prepare(api.load_config("made_digits:tiny", {name.replace("__", "."): x for name, x in fields.items()}))


def mesh():
    return parallel.make_mesh({"data": -1})


def built(support, *transforms):
    """A run of digits whose model has the likelihood of data of this kind."""

    def build(monkeypatch, tmp_path):
        monkeypatch.setattr(zoo, "build", lambda config, axis, params: (Model(None, support=support), None))
        runs.build(prepared(data__transforms=transforms, model__levels=17), mesh())

    return build


def pmap_of_several_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "is_alone", lambda: False)
    runs.build(prepared(parallel="pmap"), mesh())


def training_field_in_an_evaluation(monkeypatch, tmp_path):
    api.evaluate(tmp_path, overrides={"eval.k": 5, "model.hidden": (3,), "data.batch": 7, "mesh.data": 1})


def a_point_twice(monkeypatch, tmp_path):
    config = tmp_path / "few.py"
    config.write_text("def sweep():\n    for seed in (1, 2, 1):\n        yield {'seed': seed}\n")
    sweep.sweep(str(config), tmp_path / "sweep")


def stages(monkeypatch, missing=0.0, specs=(), **top):
    """The stages before a prior over bottom codes, where the run that it names as the top one's has other options.

    The prior's own run may hide codes or change them.
    """
    codes = Info("codes", (2, 2, 1), "levels", 8, range=(0.0, 7.0))

    def stage(name, **options):
        data = {"name": f"codes:{name}", "options": options, "missing": missing, "transforms": specs}
        run = runs.Run(ConfigDict({"data": data}), Dataset(codes, {}), transforms.make(specs, codes))
        return loading.Stage(None, {"buffers": {"codebook": {"top": None, "bottom": None}}}, run)

    first, other = stage("first"), stage("first", **{"digest": "abc", "level": "top"} | top)
    monkeypatch.setattr(two_stage, "stage", {"first": first, "prior": other}.get)
    bottom = stage("first", digest="abc", level="bottom", top="prior")
    assert two_stage.before(bottom.run) == two_stage.TwoStage(first, {"top": other})


def two_in_one_place(monkeypatch, tmp_path):
    with workdir.held(tmp_path), workdir.held(tmp_path):
        pass


GREYS = {"data__transforms": (), "model__output": "logistic"}
GUARDS = {
    "binary likelihood": (
        built("binary"),
        r"likelihood of binary data, and digits after the transforms \(\) is levels: put \"threshold\", \"resample\" "
        r"or \"fixed\" in data.transforms",
    ),
    "density": (built("real"), 'of real data, .* is levels: put "dequantize" in data.transforms'),
    "grey levels": (
        built("levels", "threshold"),
        r"of levels data, .*\('threshold',\) is binary: leave out of data.transforms what changes the levels",
    ),
    "tokens": (built("tokens"), "of tokens data, .* is levels: use data of tokens, and leave data.transforms empty"),
    "rescaled levels": (
        built("levels", "unit"),
        r"likelihood of the levels 0 to 16, and digits after the transforms \('unit',\) lies in \(0.0, 1.0\)",
    ),
    "rescaled bits": (built("binary", "threshold", "symmetric"), r"levels 0 to 1, .* lies in \(-1.0, 1.0\)"),
    "negative temperature": (lambda _, tmp_path: api.sample(tmp_path, 1, temperature=-1.0), "temperature=-1.0: from 0"),
    "too few levels": (
        lambda *_: runs.build(prepared(**GREYS, model__levels=4), mesh()),
        "model.levels=4, and digits has 17: the probabilities would be of other data",
    ),
    "too few classes": (
        lambda *_: runs.build(prepared(data__cond=True, model__classes=3), mesh()),
        "model.classes=3, and digits has 10",
    ),
    "labels that go nowhere": (
        lambda *_: runs.build(prepared(data__cond=True), mesh()),
        "gives labels to model 'made', which takes none as it is: set one of model.classes, model.cond_size",
    ),
    "two chains of noise": (
        lambda *_: zoo.build(ConfigDict({"model": {"steps": 10}, "objective": {"steps": 20}})),
        "model.steps=10 and objective.steps=20 are of one chain: give one value",
    ),
    "fsdp under pmap": (
        lambda *_: runs.build(prepared(parallel="pmap"), parallel.make_mesh({"data": -1, "fsdp": 2})),
        "parallel='pmap' has the State whole on each device; mesh.fsdp and mesh.tensor take 'jit'",
    ),
    "micro-batches of EM": (
        lambda *_: runs.build(runs.prepare(api.load_config("mixture_digits:tiny", {"train.micro": 2})), mesh()),
        "train.micro=2 accumulates gradients, and EM has none",
    ),
    "two runs in one place": (two_in_one_place, "another process is running in .*: wait for it, or stop it first"),
    "no batch": (lambda *_: prepared(eval__batch=0), "eval.batch=0: give a whole number from 1"),
    "no checkpoint": (lambda *_: prepared(checkpoint__keep=0), "checkpoint.keep=0: give a whole number from 1"),
    "no order": (lambda *_: prepared(data__seed=-1), "data.seed=-1: give a whole number from 0"),
    "no level": (lambda *_: vae.make(shape=(4, 4, 1), net="conv", hidden=()), r"a conv net needs a level: hidden=\(\)"),
    "steps backwards": (lambda *_: vae.make(shape=(4,), refine=-1), "refine=-1: give a whole number from 0"),
    "no average": (lambda *_: prepared(train__ema=1.0), "train.ema=1.0: a decay is at least 0, .* and below 1"),
    "numbers for names": (lambda *_: prepared(data__transforms=(1,)), r"data.transforms=\(1,\): give names, such as"),
    "a time before now": (
        lambda *_: prepared(train__duration="-5 epochs"),
        "cannot read the duration '-5 epochs': write '500 steps'",
    ),
    "no end": (lambda *_: prepared(train__duration="inf epochs"), "cannot read the duration 'inf epochs'"),
    "no hidden layer": (lambda *_: deep_nade.make(shape=(4,), hidden=()), r"needs a hidden layer: hidden=\(\)"),
    "no layers": (lambda *_: gated_pixelcnn.make(shape=(4, 4, 1), layers=0), "layers=0: give a whole number from 1"),
    "kernel of one pixel": (lambda *_: pixelcnn.make(shape=(4, 4, 1), first=1), "first=1: .* odd, and at least 3"),
    "no masks": (lambda *_: zoo.MODELS["made"](shape=(4,), masks=0), "masks=0: give a whole number from 1"),
    "no units": (lambda *_: zoo.MODELS["deep_nade"](shape=(4,), hidden=(5, 0)), "hidden=0: give a whole number from 1"),
    "one level": (lambda *_: outputs.make("categorical", levels=1), "levels=1: give a whole number from 2"),
    "labels one-hot": (
        lambda *_: condition.vector_of(3, 0, jnp.eye(3), jnp.zeros((3, 1))),
        r"labels are whole numbers, one an example: `cond` \[B\], and it has the shape \(3, 3\)",
    ),
    "one vector for all": (
        lambda *_: condition.vector_of(0, 2, jnp.zeros(2), jnp.zeros((3, 1))),
        r"vectors of 2 numbers: give them as `cond`; it has the shape \(2,\)",
    ),
    "second kernel of one pixel": (
        lambda *_: gated_pixelcnn.make(shape=(4, 4, 1), kernel=1),
        "kernel=1: .* odd, and at least 3",
    ),
    "even kernel": (lambda *_: pixelrnn.make(shape=(4, 4, 1), first=4), "first=4: .* odd, and at least 3"),
    "more noise than ancestral": (lambda *_: ddpm.make(shape=(8, 8, 1), eta=2.0), "eta=2.0: give a number from 0"),
    "step too far": (
        lambda *_: vae.make(shape=(4,), refine=1, refine_rate=5.0),
        "refine_rate=5.0: give a number from 0 to 1",
    ),
    "parallel": (
        lambda *_: runs.build(prepared(parallel="pjit"), mesh()),
        "parallel is 'jit' or 'pmap', not 'pjit'",
    ),
    "pmap": (pmap_of_several_processes, "parallel='pmap' is for one process; several take 'jit'"),
    "batch": (
        lambda *_: runs.make_feed(prepared(data__batch=12), mesh()),
        "data.batch=12 does not divide over the 8 parts of .*'data': 8.*choose a multiple, or another config.mesh",
    ),
    "eval": (
        training_field_in_an_evaluation,
        r"^model.hidden, data.batch belong to training; dgm eval changes eval.\*, mesh.\* and data.dir",
    ),
    "samples": (
        lambda _, tmp_path: api.save_samples(tmp_path, tmp_path / "x.jpg", 1),
        r"written as .png or .npz, not .jpg: .*x.jpg",
    ),
    "samples without a suffix": (
        lambda _, tmp_path: api.save_samples(tmp_path, tmp_path / "x", 1),
        "written as .png or .npz, not without a suffix: ",
    ),
    "sweep": (a_point_twice, r"few.py' yields seed=1 more than once"),
    "split": (
        lambda *_: scoring.make_evaluator(Model(None), prepared(), "dev", 1, mesh()),
        "no split 'dev'; there are train, valid, test",
    ),
    "labels beside what is missing": (
        lambda *_: scoring.make_evaluator(
            Model(None), prepared(eval__labels=True, data__missing=0.5), "test", 1, mesh(), at_end=True
        ),
        "eval.labels=True takes whole data with classes; digits has 10, and data.missing=0.5",
    ),
    "top codes of another model": (
        lambda monkeypatch, _: stages(monkeypatch, digest="xyz"),
        "prior is not a prior over the top codes of codes:first, but of codes:first digest: xyz",
    ),
    "hidden codes": (
        lambda monkeypatch, _: stages(monkeypatch, missing=0.5),
        r"a prior is over all codes as they are, and data.missing=0.5, data.transforms=\(\) hide or change some",
    ),
    "codes of two kinds": (
        lambda monkeypatch, _: stages(monkeypatch, specs=("threshold",)),
        r"a prior is over all codes as they are, .* data.transforms=\('threshold',\)",
    ),
    "bottom codes for top ones": (
        lambda monkeypatch, _: stages(monkeypatch, level="bottom"),
        "(?s)prior is not a prior over the top codes of codes:first, but of .*level: bottom",
    ),
}


IN_HALVES = {  # models of images that are halved twice
    "ddpm": {"channels": 8, "multipliers": (1, 1, 1)},
    "gan": {"stages": 2},
    "pixelcnnpp": {"stages": 3},
    "realnvp": {"scales": 3},
    "top_down_vae": {"blocks": (1, 1, 1)},
    "vae": {"net": "conv", "hidden": (4, 4)},
    "vqvae": {"scales": (2, 2)},
}


@pytest.mark.parametrize("name", IN_HALVES)
def test_images_are_images_that_can_be_halved(name):
    make = zoo.MODELS[name]
    make(shape=(4, 8, 1), **IN_HALVES[name])
    with pytest.raises(ValueError, match="images of 6x8 pixels cannot be halved 2 times"):
        make(shape=(6, 8, 1), **IN_HALVES[name])
    with pytest.raises(ValueError, match=r"needs events \(H, W, C\), not \(8,\)"):
        make(shape=(8,), **IN_HALVES[name])


@pytest.mark.parametrize("name", GUARDS)
def test_guards(name, monkeypatch, tmp_path):
    call, text = GUARDS[name]
    with pytest.raises(ValueError, match=text):
        call(monkeypatch, tmp_path)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("support", [None, "levels"])
def test_a_likelihood_of_the_data_at_hand_is_taken(support, monkeypatch, tmp_path):
    built(support)(monkeypatch, tmp_path)


def test_top_codes_of_the_same_model_are_taken(monkeypatch):
    stages(monkeypatch)


def test_every_likelihood_has_a_hint():
    declared = {make(shape=(8, 8, 1)).support for make in zoo.MODELS.values()}
    assert declared - {None} <= set(runs.HINTS)


def test_samples_take_no_fields_of_a_config(capsys):
    assert cli.main(["sample", "--workdir=run", "--config.eval.samples=3"]) == 1
    assert "dgm: dgm sample takes the config of the work directory; it has no --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),  # of which "NVIDIA H100" is the beginning
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("NVIDIA of tomorrow", None),
    ],
)
def test_utilisation_is_the_share_of_the_devices_peak(kind, peak, monkeypatch):
    class Device:
        device_kind = kind

        def memory_stats(self):
            return {"peak_bytes_in_use": 5}

    monkeypatch.setattr(jax, "devices", lambda: [Device()] * 8)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert report.peak_flops() == (8 * peak if peak else None)
    rates = report.rates(step_s=0.5, examples=100, flops=1e12)  # of a device
    utilisation = {"time/utilisation": 2e12 / peak} if peak else {}
    expected = {"time/steps_per_s": 2.0, "time/examples_per_s": 200.0, "time/flops_per_s": 16e12, **utilisation}
    assert rates == pytest.approx(expected | {"time/memory_bytes": 5.0})
