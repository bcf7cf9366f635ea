"""The zoo, a row a digits config, at the small size and in the double precision of `dgm verify`."""

import functools

import jax
import pytest

from dgm_jax import config as configs
from dgm_jax import verification, zoo
from dgm_jax.verification import learners

CONFIGS = [name for name in configs.names() if name.endswith("_digits")]
ALIKE = ("fvsbn_digits", "pixelrnn_row_digits", "vae_conv_digits")  # the model and the objective of another
NAMES = [name for name in CONFIGS if name not in ALIKE]

QUICK = ("vae_digits", "mixture_digits")  # in the fast subset too


def marked(names):
    """As parameters of a test: a row's tests share a process and what it compiles; those not quick are slow."""
    slow = {name: [] if name in QUICK else [pytest.mark.slow] for name in names}
    return [pytest.param(name, marks=[pytest.mark.xdist_group(name), *marks]) for name, marks in slow.items()]


MARKED = marked(NAMES)


@functools.cache
def subject(name):
    """What the row makes."""
    return verification.subject(configs.load(f"{name}:tiny", fill=zoo.fill))


@functools.cache
def run(name):
    """A few steps of the row's learner."""
    with jax.enable_x64(True):
        return learners.run(subject(name).make, subject(name).batch, jax.random.key(0))


def passed(checks):
    """The names of what passed; raises the table if anything failed."""
    assert not any(check.ok is False for check in checks), "\n" + verification.table(checks)
    return {check.name for check in checks if check.ok}
