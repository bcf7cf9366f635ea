"""What the README says runs."""

import re
import shlex
from pathlib import Path

import pytest

from dgm_jax import api, cli, config, verification, zoo

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
    subject = verification.subject(api.load_config("vae_digits:tiny", {"objective.name": "renyi", "objective.k": 3}))
    checks = verification.verify_objective(subject.objective, subject.model, subject.space)
    assert [check.name for check in checks if check.ok] == ["gradient", "padding"], verification.table(checks)


def test_every_command_is_one_that_the_program_takes():
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("dgm ")]
    assert len(commands) >= 6
    for command in commands:
        options, overrides = cli.parse(shlex.split(command, comments=True)[1:])
        assert options.command
        api.load_config(getattr(options, "config", "vae_digits"), overrides)


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
