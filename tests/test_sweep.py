"""dgm sweep: every point is run, a failed one does not stop the others, and what is complete stays."""

import json
import subprocess
import sys
import time

import pytest

from dgm_jax import cli, report, sweep

CONFIG = """
from dgm_jax import config as configs

def get_config(arg=None):
    config = configs.module("mixture_digits").get_config("tiny")
    config.eval.samples = 0
    return config

def sweep():
    for components in (2, 3):
        yield {"model.components": components}
    yield {"data.batch": 5000}
"""


@pytest.mark.slow
def test_points_are_run_once_and_failures_are_listed(tmp_path, capsys):
    config, folder = tmp_path / "few.py", tmp_path / "sweep"
    config.write_text(CONFIG)
    arguments = ["sweep", f"--config={config}", f"--workdir={folder}", "--config.seed=3"]
    assert cli.main(arguments) == 1
    rows = capsys.readouterr().out.splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| 2", "| 3", "| "]
    assert "batch of 5000" in rows[2]
    pages = json.loads((folder / "points.json").read_text())["points"]
    assert ["metrics" in page for page in pages] == [True, True, False]
    result = folder / "components=3" / "result.json"
    assert json.loads(result.read_text())["seeds"] == [3]
    written = result.stat().st_mtime_ns
    assert sweep.run(str(config), result.parent, {"model.components": 3, "seed": 3}) is None
    assert result.stat().st_mtime_ns == written


def test_a_config_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no sweep"):
        sweep.sweep("mixture_digits", tmp_path)


def test_names_are_folders():
    assert sweep.name_of({"model.hidden": (2, 3), "data.name": "npz:a/b"}) == "hidden=(2,3),name=npz:a_b"


def test_a_value_that_is_not_finite_is_said_to_be_none(tmp_path):
    metric = {"value": float("inf"), "stderr": float("nan"), "n": 8, "kind": "bound", "unit": "nats"}
    report.write_json(tmp_path / "result.json", {"metrics": {"test/nll": metric}})
    page = json.loads((tmp_path / "result.json").read_text())
    assert sweep.table("few", [{"point": {}, **page}])[-1] == "| not finite |"
    assert report.show_metric("test/nll", metric) == "test/nll: not finite nats (bound, 8 examples)"


@pytest.mark.parametrize("spec, folder", [("few.py", "few_sweep"), ("vae_digits:tiny", "vae_digits_tiny_sweep")])
def test_a_folder_has_the_name_of_its_config(spec, folder, tmp_path, monkeypatch):
    def swept(spec, folder, overrides):
        folder.mkdir(parents=True)
        (folder / "README.md").touch()
        return []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "sweep", swept)
    assert cli.main(["sweep", f"--config={spec}"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder]


@pytest.mark.parametrize("end", ["exec sleep 60", "exit 0"])
def test_a_signal_outside_of_training_stops_the_sweep(end, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.write_text(f"#!/bin/sh\nkill -INT $PPID\n{end}\n")
    run.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(run))
    with pytest.raises(KeyboardInterrupt, match=r"stopped at .*point$"):
        sweep.run("mixture_digits", tmp_path / "point", {})


@pytest.mark.slow
def test_a_signal_stops_the_sweep_and_saves_its_run(tmp_path):
    config, folder = tmp_path / "few.py", tmp_path / "sweep"
    config.write_text(CONFIG)
    fields = [f"--config.{name}.every=0 steps" for name in ("eval", "checkpoint")]
    fields.append("--config.train.duration=1000000 steps")
    command = [sys.executable, "-m", "dgm_jax", "sweep", f"--config={config}", f"--workdir={folder}", *fields]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = folder / "components=2" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode == sweep.STOPPED and "The same command goes on." in error
    assert [path.name.isdigit() for path in (folder / "components=2" / "checkpoints").iterdir()] == [True]
    assert not (folder / "components=3").exists()
