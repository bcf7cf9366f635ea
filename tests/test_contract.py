"""Every row of the zoo keeps the contract: its learner, its objective and its model pass `dgm verify`."""

import jax
import pytest
import rows

from dgm_jax import zoo
from dgm_jax.types import Counts
from dgm_jax.verification import learners, table, verify_learner, verify_model, verify_objective

# an operation at a time, each compiled by itself, takes half a minute of these: gan_digits stands for them
CONVOLUTIONAL = [
    f"{name}_digits"
    for name in ("ddpm", "fgan", "realnvp", "pixelcnn", "gated_pixelcnn", "pixelcnnpp", "multiscale_pixelrnn")
]
LEARNER = {
    "keys used once",
    "keeps its form",
    "memory is saved",
    "compiles once",
    "finite",
    "seeds",
    "devices",
    "micro-batches",
    "jit = no jit",
}


def passed(checks):
    """The names of what passed; raises the table if anything failed."""
    assert not any(check.ok is False for check in checks), "\n" + table(checks)
    return {check.name for check in checks if check.ok}


@pytest.mark.parametrize("name", rows.MARKED)
def test_learner(name):
    row = rows.subject(name)
    skip = {"jit = no jit"}  # test_without_jit
    skip |= {"devices"} if name not in rows.QUICK else set()  # test_parallel
    skip |= {"micro-batches"} if not row.micro else set()
    assert passed(verify_learner(row.make, row.batch, skip=skip)) == LEARNER - skip


@pytest.mark.parametrize("name", rows.MARKED)
def test_objective(name):
    row = rows.subject(name)
    found = passed(verify_objective(row.objective, row.model, row.space))
    assert found == {"padding", "EM ascends" if isinstance(row.objective, Counts) else "gradient"}


@pytest.mark.parametrize("name", rows.MARKED)
def test_model(name):
    row = rows.subject(name)
    checks = {  # capability -> the check that it must pass
        "log_prob": "normalised",
        "log_partition": "normalised",
        "log_conditionals": "causal",
        "predict": "predicts",
        "log_joint": "bound",
        "gibbs": "gibbs invariant",
        "sample": "sample",
        "stages": "stages",
        "complete": "complete",
        "encode": "encode, decode",
        "denoise": "denoise",
    }
    expected = {check for capability, check in checks.items() if getattr(row.model, capability) is not None}
    assert passed(verify_model(row.model, row.space)) == expected | {"model keys used once"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in rows.NAMES if name not in CONVOLUTIONAL])
def test_without_jit(name):
    with jax.enable_x64(True):
        same, detail = learners.same_without_jit(rows.run(name))
    assert same, detail


def test_every_model_and_objective_has_a_row():
    assert {name.removesuffix("_digits") for name in rows.NAMES} >= set(zoo.MODELS)
