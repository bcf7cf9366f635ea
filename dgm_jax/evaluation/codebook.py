"""How much of a codebook is used: a code that no example of the split has is dead, and does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np

from dgm_jax.data import transforms
from dgm_jax.evaluation.latent import flat_codes
from dgm_jax.evaluation.nll import Metric, gather, joined_seeds
from dgm_jax.types import Batch, Key, Model, Params

GROUPS = 100  # of the examples, for the jackknife


def evaluator(
    model: Model,
    transform: transforms.Transform,
    vectorize: bool = True,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    whole: jax.sharding.Sharding | None = None,
) -> Callable[[Params, Key, Iterable[Batch]], dict[str, Metric]]:
    """Compile the use of params["buffers"]["codebook"]; arguments and result as those of `nll.evaluator`.

    The codes are those that `encode` gives, under the codebook's levels. Without a codebook there are no metrics.
    """

    gathered = gather(flat_codes(model, transform), vectorize, place, whole)

    def evaluate(params: Params, key: Key, batches: Iterable[Batch]) -> dict[str, Metric]:
        buffers = params.get("buffers", {}) if isinstance(params, dict) else {}
        if "codebook" not in buffers:
            return {}
        sizes = {level: vectors.shape[-2] for level, vectors in buffers["codebook"].items()}
        found = gathered(params, key, batches)
        seeds = found if key.ndim else {level: x[None] for level, x in found.items()}
        return joined_seeds(
            [
                {
                    f"{name}_{level}": metric
                    for level, size in sizes.items()
                    for name, metric in codebook_use(seeds[level][i].astype(int), size).items()
                }
                for i in range(len(key) if key.ndim else 1)
            ]
        )

    return evaluate


def codebook_use(codes: np.ndarray, size: int) -> dict[str, Metric]:
    """The share of a codebook's `size` codes that occur in codes [n, cells], and the perplexity of their frequencies.

    Standard errors are over examples, by the jackknife; of the perplexity by that of GROUPS groups of them.
    """
    n = len(codes)
    groups = np.array_split(codes, min(n, GROUPS))
    counts = np.stack([np.bincount(group.ravel(), minlength=size) for group in groups])  # [groups, size]
    total = counts.sum(0)

    def jackknife(values: np.ndarray) -> float:
        return float(np.sqrt((len(values) - 1) * np.var(values))) if n > 1 else np.inf

    def perplexity(counts: np.ndarray) -> np.ndarray:
        p = counts / counts.sum(-1, keepdims=True)
        return np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum(-1))

    example, code = np.divmod(np.unique(np.arange(n)[:, None] * size + codes), size)  # which has which
    only = np.bincount(example[np.bincount(code)[code] == 1], minlength=n)  # codes that no other example has
    used = {"value": float((total > 0).mean()), "stderr": jackknife(only / size)}
    rest = total - counts if n > 1 else total[None]
    spread = {"value": float(perplexity(total)), "stderr": jackknife(perplexity(rest))}
    kind = {"n": n, "kind": "estimate"}
    return {"codes_used": used | kind | {"unit": "1"}, "perplexity": spread | kind | {"unit": f"of {size} codes"}}
