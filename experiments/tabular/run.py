"""Tables of numbers and of bits: `python -m experiments.tabular.run [name ...]` from the root of the checkout."""

from pathlib import Path

from experiments.study import Row, main

TREES = "(ID-SPN, mixture of trees, WinMine, as in Rooshenas & Lowd 2014)"
DEBD = {  # data set -> published test nats
    "nltcs": f"6.02, 6.01, 6.03 {TREES}",
    "plants": f"12.54, 12.95, 12.65 {TREES}",
    "mushrooms": "9.68, 9.81, 14.46 (MADE, NADE, mixture of Bernoullis, as in Germain et al. 2015)",
    "jester": f"52.86, 53.08, 53.85 {TREES}",
}


def bits(config: str, data: str) -> Row:
    """A row of the binary density-estimation benchmarks."""
    return Row(config, "test/nll", {"data.name": f"npz:debd/{data}.npz"}, DEBD[data])


ROWS = {
    "red_wine/rnade_gaussian": Row("rnade_red_wine", "test/nll", {}, "9.36 (Uria et al. 2013)", folds=10),
    "red_wine/rnade_laplace": Row(
        "rnade_red_wine", "test/nll", {"model.output": "laplace"}, "9.46 (Uria et al. 2013)", folds=10
    ),
    "red_wine/made_gaussian": Row("made_red_wine", "test/nll", folds=10),
} | {f"debd/{data}_{model}": bits(f"{model}_debd", data) for data in DEBD for model in ("made", "nade")}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
