"""Two steps of every row of the zoo against stored numbers: nothing changes unnoticed."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import rows

STORED = Path(__file__).with_name("golden.json")
MOVED = (
    "{}: the numbers of two steps moved from {} to {}. If that is meant (another model, initialization, objective, "
    "order of keys, or small size in dgm_jax/verification), run `python tests/test_golden.py`, look at the "
    "diff of tests/golden.json, and say in the commit why they moved. If it is not, something changed unnoticed."
)


def numbers(name):
    """Losses of the second step and the norm of the parameters after it, in double precision."""
    run = rows.run(name)
    losses = {key: float(value) for key, value in run.metrics[1].items() if key.split("/")[-1] == "loss"}
    norm = float(np.sqrt(sum(np.sum(np.abs(np.asarray(p)) ** 2) for p in jax.tree.leaves(run.states[2].params))))
    return losses | {"norm": norm}


@pytest.mark.parametrize("name", rows.MARKED)
def test_numbers_stay(name):
    stored = json.loads(STORED.read_text()).get(name, {})
    found = numbers(name)
    same = stored.keys() == found.keys() and np.allclose(
        [stored[key] for key in found], [*found.values()], rtol=1e-4, atol=1e-8, equal_nan=True
    )
    assert same, MOVED.format(name, stored, found)


def test_no_row_is_gone():
    gone = json.loads(STORED.read_text()).keys() - set(rows.NAMES)
    assert not gone, f"rows without a config: {sorted(gone)}; run `python tests/test_golden.py`"


if __name__ == "__main__":
    STORED.write_text(json.dumps({name: numbers(name) for name in rows.NAMES}, indent=2) + "\n")
