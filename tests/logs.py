"""What a run logged, for two runs to be compared; and what it drew."""

import json

import numpy as np
from PIL import Image

from dgm_jax.evaluation import plots


def numbers(workdir):
    """The lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def assert_same_run(one, other):
    """Of two programs in double precision: equal but for the order of sums."""
    assert len(numbers(one)) == len(numbers(other))
    for a, b in zip(numbers(one), numbers(other), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(
            [value for value in a.values() if not isinstance(value, str)],
            [value for value in b.values() if not isinstance(value, str)],
            rtol=1e-9,
        )


def levels(picture):
    """The greys of a picture without the lines between its images: of a blank one there is one."""
    return set(np.unique(Image.open(picture).convert("L"))) - {plots.SEPARATOR}
