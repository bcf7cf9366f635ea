"""Killed and restarted: the same State and the same numbers. experiments/reliability does it twenty times a kind."""

import pytest

from experiments.reliability.kill import KINDS, kill_and_compare


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "HMM" not in kind])
def test_killed_runs_end_as_if_nothing_had_happened(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # and one device
    config, fields = KINDS[kind]
    found = kill_and_compare(config, fields, tmp_path / "runs", kills=2, steps=60, saves=10)
    assert found["kills"] == 2 and found["compared"] >= 1 and found["different"] == []
