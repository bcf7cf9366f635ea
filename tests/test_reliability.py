"""Killed and restarted: the same State and the same numbers. experiments/reliability does it twenty times a kind."""

import os

import pytest

from experiments.reliability.kill import KINDS, kill_and_compare

# one of each kind of State, and data that stream; the other kinds save what "bound" saves, or what the mixture does
APART = (
    "bound",
    "two players",
    "energy with persistent chains",
    "counting and EM, mixture",
    "bound, streaming through grain",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", APART)
def test_killed_runs_end_as_if_nothing_had_happened(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1")
    config, fields = KINDS[kind]
    found = kill_and_compare(config, fields, tmp_path / "runs", kills=2, steps=60, saves=10)
    assert found["kills"] == 2 and found["compared"] >= 1 and found["different"] == []
