"""The zoo, a row a digits config, at the small size and in the double precision of `dgm verify`."""

import functools

import jax
import pytest

from dgm_jax import config as configs
from dgm_jax import verification, zoo
from dgm_jax.verification import learners

NAMES = [name for name in configs.names() if name.endswith("_digits")]

QUICK = ("vae_digits", "mixture_digits")  # in the fast subset too
MODELS = [f"{name}_digits" for name in zoo.MODELS]  # a row each
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@functools.cache
def subject(name):
    """What the row makes."""
    return verification.subject(configs.load(f"{name}:tiny", fill=zoo.fill))


@functools.cache
def run(name):
    """A few steps of the row's learner."""
    with jax.enable_x64(True):
        return learners.run(subject(name).make, subject(name).batch, jax.random.key(0))
