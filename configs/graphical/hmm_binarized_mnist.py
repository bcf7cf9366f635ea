"""HMM over the rows of fixed-binarization MNIST, by EM.

`dgm train --config=hmm_binarized_mnist`: 8 minutes on two CPU cores; 103.0 nats, exact
(experiments/binarized_mnist/hmm). Samples are strokes, few of them digits: the chain does not know which row it is at.
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="hmm", states=400, strength=3.0, chain_strength=0.03)
    config.objective.name = "em"
    config.vectorize_seeds = False  # under vmap every step of the recursion would take its slow, exact way too
    config.optimizer = ConfigDict({"name": "em", "every": "1 epoch"})
    config.data.update(name="binarized_mnist", batch=1000)
    config.train.update(duration="40 epochs", per_dispatch=10)
    config.eval.update(every="10 epochs", batch=1000)
    return finish(config, arg, states=4)
