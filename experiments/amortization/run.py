"""The amortization gap on the digits: `python -m experiments.amortization.run [name ...]` from the checkout.

`amortized` comes first: the rows `refined_*` evaluate its parameters, from the default --workdirs.
"""

from pathlib import Path

from experiments.study import Row, main

METRICS = "test/elbo", "test/iwae_1000"
CHUNK = {"eval.chunk": 100}  # q is refined anew for each chunk of draws
AMORTIZED = {"init_from": "runs/amortization/amortized", "train.duration": "0 steps"}

ROWS = {
    "amortized": Row("vae_digits", METRICS, CHUNK),
    **{
        f"refined_{steps}": Row("vae_digits", METRICS, CHUNK | AMORTIZED | {"model.refine": steps})
        for steps in (1, 5, 20, 100)
    },
    # gradients through the steps have rare spikes, one of which can undo what was learned
    "semi_amortized": Row("vae_digits", METRICS, CHUNK | {"model.refine": 5, "optimizer.clip": 10.0}),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
