"""What the README says runs."""

import re
import shlex
from pathlib import Path

import pytest

from dgm_jax import api, cli, config, verification, zoo
from dgm_jax import sweep as sweeps
from dgm_jax.data import sources
from dgm_jax.loading import Stage
from dgm_jax.runs import Run
from dgm_jax.training import processes

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_new_objective_trains_and_is_proven(one_device, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "OBJECTIVES", dict(zoo.OBJECTIVES))
    (source,) = blocks("python")
    function = source[source.index("def renyi") : source.index("zoo.OBJECTIVES")]
    assert len(function.strip().splitlines()) <= 20
    exec(compile(source, "README.md", "exec"), {})
    assert "'kind': 'bound'" in capsys.readouterr().out
    with monkeypatch.context() as elsewhere:  # the objective is not needed to use the model
        elsewhere.delitem(zoo.OBJECTIVES, "renyi")
        assert api.sample("runs/renyi", 2).shape == (2, 8, 8, 1)
    subject = verification.subject(api.load_config("vae_digits:tiny", {"objective.name": "renyi", "objective.k": 3}))
    checks = verification.verify_objective(subject.objective, subject.model, subject.space)
    assert [check.name for check in checks if check.ok] == ["gradient", "padding"], verification.table(checks)


def commands():
    """The README's own commands in their order, as lists of words without `dgm`."""
    lines = [part for block in blocks("bash") for line in block.splitlines() for part in line.split(" && ")]
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words and Path(words[0]).name == "dgm"]


def test_every_command_is_one_that_the_program_takes():
    assert len(commands()) >= 20
    for command in commands():
        options, overrides = cli.parse(command)
        assert options.command
        api.load_config(getattr(options, "config", "vae_digits"), overrides)


def test_every_command_reads_what_one_before_it_made(tmp_path, monkeypatch, capsys):
    """They are run one after the other, and only what computes is left out."""
    made = {}

    def train(config, workdir, quiet=False):
        kind, _, first = config.data.name.partition(":")
        assert kind != "codes" or Path(first) in made
        assert made.setdefault(Path(workdir), config) == config, f"{workdir} holds another run"
        return {"metrics": {}}

    def sweep(spec, folder, overrides):
        assert hasattr(config.module(spec), "sweep")
        folder.mkdir(parents=True)
        (folder / "README.md").touch()
        return []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "train", train)
    monkeypatch.setattr(api, "describe", lambda config: "")
    monkeypatch.setattr(api, "opened", lambda workdir, overrides: Stage(None, {}, Run(made[Path(workdir)], None, None)))
    monkeypatch.setattr(api, "metrics_of", lambda *arguments: lambda params: {})
    monkeypatch.setattr(api, "save_samples", lambda workdir, *arguments: made[Path(workdir)])
    monkeypatch.setattr(api, "list_zoo", lambda: "")
    monkeypatch.setattr(sweeps, "sweep", sweep)
    monkeypatch.setattr(verification, "verify", lambda config: [])
    monkeypatch.setattr(verification, "table", lambda checks: "")
    monkeypatch.setattr(processes, "join", lambda *arguments: None)
    for command in commands():
        assert cli.main(command) == 0, (command, capsys.readouterr().err)
    assert len(made) >= 8


def test_configs_and_data_that_it_names_are_there():
    named = re.findall(r"`(\w+_(?:digits|cifar10|mnist)\w*)`", README)
    assert len(named) >= 4 and set(named) <= set(config.names()) | set(sources.SOURCES)


def test_ci_runs_the_test_command():
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    script = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    for part in command.split(" && "):
        assert part.replace(" install -e", "") in script.replace(" install -q -e", "")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((experiments[^)]*)\)", README))))
def test_links_lead_somewhere(path):
    assert (Path(__file__).parent.parent / path).exists()


def test_the_default_is_the_config_that_it_names():
    assert f"runs/{config.DEFAULT}" in README
