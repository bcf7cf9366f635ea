"""MADE and the VAE in PyTorch: the functions, parameters and optimizer of ours, written for speed.

Before it is timed, a rival repeats the first steps of ours: it starts from our parameters and takes the noise that
ours drew. What makes the eager step fast: functions in place of modules, the fused Adam, gradients set to None, and
MADE's masks applied to the gradients alone, as kernels that start masked stay so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from experiments.bench.setups import SETUPS, Run, batches

Params = Mapping[str, torch.Tensor]
Step = Callable[..., torch.Tensor]


def set_up(threads: int) -> None:
    torch.set_num_threads(threads)


def environment() -> dict[str, Any]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def dense(params: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, params[f"{name}/kernel"], params[f"{name}/bias"])


def cross_entropy(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Summed over the batch."""
    return functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def made_loss(params: Params, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Mean negative log-likelihood; the kernels are masked."""
    hidden = functional.relu(dense(params, "hidden_0", x))
    return cross_entropy(dense(params, "output", hidden), x) / len(x)


def vae_loss(params: Params, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Minus the bound of one draw, log p(x, z) - log q(z | x); noise [B, latent] is drawn where it is None."""
    h = torch.tanh(dense(params, "encoder/Dense_0", x))
    h = torch.tanh(dense(params, "encoder/Dense_1", h))
    loc, log_scale = dense(params, "encoder/Dense_2", h).chunk(2, dim=-1)
    noise = torch.randn_like(loc) if noise is None else noise
    z = loc + log_scale.exp() * noise
    h = torch.tanh(dense(params, "decoder/Dense_0", z))
    h = torch.tanh(dense(params, "decoder/Dense_1", h))
    logits = dense(params, "decoder/Dense_2", h) + params["offset"]
    log_ratio = 0.5 * (z.square() - noise.square()) - log_scale  # log q(z | x) - log p(z)
    return (cross_entropy(logits, x) + log_ratio.sum()) / len(x)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"made": made_loss, "vae": vae_loss}


def parameters_and_step(
    run: Run, start: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]
) -> tuple[Params, Step]:
    """Parameters, and a training step from (x [B, D], noise or None) to the loss before it.

    Args:
        run: its `style` is "eager", as fast as it goes; "compiled", torch.compile of the loss, with the masks
            inside, and the fused Adam (its other modes, and compiling the optimizer or the whole step, are slower
            on the CPU); or "plain", as it is mostly written: Adam as it comes, and masks in the forward pass.
        start: path -> our parameter; kernels are [inputs, outputs].
        masks: path -> mask of that shape, for the kernels that have one.
    """
    params = {path: torch.nn.Parameter(torch.tensor(value.T.copy())) for path, value in start.items()}
    filters = {path: torch.tensor(mask.T.astype(np.float32)) for path, mask in masks.items()}
    adam = torch.optim.Adam(params.values(), lr=1e-3, fused=None if run.style == "plain" else True)
    loss = LOSSES[SETUPS[run.setup].model["name"]]

    def masked_loss(x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        return loss({**params, **{path: params[path] * keep for path, keep in filters.items()}}, x, noise)

    def eager_loss(x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        return loss(params, x, noise)

    loss_of = {"eager": eager_loss, "plain": masked_loss, "compiled": torch.compile(masked_loss)}[run.style]

    def step(x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        adam.zero_grad(set_to_none=True)
        value = loss_of(x, noise)
        value.backward()
        if run.style == "eager":
            for path, keep in filters.items():
                gradient = params[path].grad
                assert gradient is not None
                gradient *= keep
        adam.step()
        return value.detach()

    return params, step


def make(run: Run, trajectory: dict[str, Any]) -> tuple[Callable[[], Any], float, dict[str, float]]:
    """A function that makes one step, the seconds that the first one took, and how far it is from ours.

    Args:
        run: a rival.
        trajectory: what `ours.trajectory` returns.

    Returns:
        Of the distances, "loss" is the largest relative one of the steps, and "update" that of the first update of
        Adam, relative in the norm over all parameters.
    """
    masks, (ours_start, ours_after) = trajectory["masks"], trajectory["params"]
    start = {path: value * masks.get(path, 1) for path, value in ours_start.items()}
    params, step = parameters_and_step(run, start, masks)
    losses, after, first_s = [], {}, 0.0
    for i, x in enumerate(batches(run.setup, len(trajectory["losses"]))):
        noise = torch.tensor(trajectory["noises"][i]) if "VAE" in run.setup else None
        began = time.perf_counter()
        losses.append(float(step(torch.tensor(x), noise)))
        if i == 0:
            first_s = time.perf_counter() - began
            after = {path: value.detach().numpy().T.copy() for path, value in params.items()}
    ours = np.concatenate([(ours_after[path] - ours_start[path]).ravel() for path in start])
    theirs = np.concatenate([(after[path] - start[path]).ravel() for path in start])
    parity = {
        "loss": float(np.max(np.abs(np.array(losses) / np.array(trajectory["losses"]) - 1))),
        "update": float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)),
    }
    xs = itertools.cycle([torch.tensor(x) for x in batches(run.setup, 20)])
    return lambda: step(next(xs)), first_s, parity
