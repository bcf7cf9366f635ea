"""A whole run under pmap, as config.parallel asks for it."""

import pytest
from logs import numbers

from dgm_jax import api


@pytest.mark.slow
def test_a_run_under_pmap_is_one_of_as_many_micro_batches(tmp_path):
    """The eight devices take an example each, with the keys of eight micro-batches: dropout leaves out the same."""
    results = {}
    for name, fields in {"micro": {"train.micro": 8}, "pmap": {"parallel": "pmap"}}.items():
        config = api.load_config("made_digits:tiny", {"eval.samples": 0, **fields})
        assert config.data.batch == 8 and config.model.dropout > 0
        results[name] = api.train(config, tmp_path / name, quiet=True)
    micro, pmap = ({name: m["value"] for name, m in results[of]["metrics"].items()} for of in ("micro", "pmap"))
    assert pmap == pytest.approx(micro, rel=1e-5) and "test/nll" in pmap
    for one, other in zip(numbers(tmp_path / "pmap"), numbers(tmp_path / "micro"), strict=True):
        assert one.pop("split") == other.pop("split") and one == pytest.approx(other, rel=1e-5)
