"""Killed and restarted: the same State and the same numbers.

experiments/reliability does it for every kind of learning, twenty times. Here are the two that keep the most: a
place in a stream, and chains.
"""

import pytest

from experiments.reliability.kill import KINDS, kill_and_compare

HERE = ["bound, streaming through grain", "energy with persistent chains"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", HERE)
def test_killed_runs_end_as_if_nothing_had_happened(kind, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # one device
    config, fields = KINDS[kind]
    found = kill_and_compare(config, fields, tmp_path / "runs", kills=2, steps=120)
    assert found["kills"] == 2 and found["compared"] >= 1 and found["different"] == []
