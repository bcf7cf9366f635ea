"""MADE with one layer of 8,000 units and three masks on fixed-binarization MNIST.

`dgm train --config=made_masks_binarized_mnist`
"""

from ml_collections import ConfigDict

from dgm_jax.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; arg "tiny" for a smoke run."""
    config = base()
    config.model.update(name="made", hidden=(8000,), masks=3, dropout=0.5, direct=True)
    config.objective.name = "mle"
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "weight_decay": 0.1})
    config.sharding = (  # with mesh.tensor=n a device has an nth of the hidden units; sums meet at the output
        ("hidden_0/kernel$", (None, "tensor")),
        ("hidden_0/bias$", ("tensor",)),
        ("output/kernel$", ("tensor",)),
    )
    config.data.name = "binarized_mnist"
    config.train.update(duration="40 epochs", per_dispatch=10, ema=0.999)
    config.eval.update(every="5 epochs", batch=500)
    config.checkpoint.update(every="5 epochs", best="valid/nll")
    return finish(config, arg, hidden=(16,), masks=2)
