"""RBM with 500 hidden units on fixed-binarization MNIST, by persistent contrastive divergence.

`dgm train --config=rbm_binarized_mnist`: 8 minutes on two CPU cores, half of them for AIS; 91.6 nats, an estimate
(experiments/binarized_mnist/rbm_500).
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="rbm", hidden=500, ais_betas=20000)  # fewer find a log Z that is nats too low
    config.objective.update(name="pcd", k=5, chains=100)
    config.optimizer.update(learning_rate=1e-3, schedule="linear")
    config.data.name = "binarized_mnist"
    config.train.update(duration="50 epochs", per_dispatch=20, ema=0.999)
    config.eval.update(batch=1000)
    return finish(config, arg, hidden=8, sample_steps=10, ais_betas=20, ais_chains=4)
