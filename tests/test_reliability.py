"""Killed and restarted: the same State and the same numbers. experiments/reliability does it twenty times a kind."""

import os

import pytest

from experiments.reliability.kill import KINDS, kill_and_compare

# every kind of State goes on to the bit in test_cli; these two are fed in both ways
APART = ("counting and EM, mixture", "bound, streaming through grain")


@pytest.mark.slow
@pytest.mark.parametrize("kind", APART)
def test_killed_runs_end_as_if_nothing_had_happened(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1")
    config, fields = KINDS[kind]
    fields = fields | {"eval.samples": 0}
    found = kill_and_compare(config, fields, tmp_path / "runs", kills=2, steps=60, saves=10)
    assert found["kills"] == 2 and found["resumed"] >= 1 and found["compared"] >= 1 and found["different"] == []
