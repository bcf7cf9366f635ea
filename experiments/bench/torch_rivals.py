"""The models of the setups in PyTorch: the functions, parameters and optimizer of ours, written for speed.

Before it is timed, a rival repeats the first steps of ours: it starts from our parameters and takes the noise that
ours drew. A sampler's net has the likelihood of ours. The styles:

    eager     as fast as it goes: functions in place of modules, the fused Adam, gradients set to None, and MADE's masks
              applied to the gradients alone, as kernels that start masked stay so
    compiled  torch.compile of the loss, with the masks inside, and the fused Adam (its other modes, and compiling the
              optimizer or the whole step, are slower on the CPU)
    plain     as it is mostly written: Adam as it comes, and masks in the forward pass

and for NADE a formulation after it, one of NADES.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from experiments.bench.setups import SETUPS, Run, batches

Params = Mapping[str, torch.Tensor]
Step = Callable[..., torch.Tensor]
BLOCK = 16  # dimensions at once in `nade_blocks`, as in ours


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


def encode(params: Params, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Location and log-scale of q(z | x)."""
    h = torch.tanh(dense(params, "encoder/Dense_0", x))
    h = torch.tanh(dense(params, "encoder/Dense_1", h))
    return dense(params, "encoder/Dense_2", h).chunk(2, dim=-1)


def decode(params: Params, z: torch.Tensor) -> torch.Tensor:
    """Logits of p(x | z)."""
    h = torch.tanh(dense(params, "decoder/Dense_0", z))
    h = torch.tanh(dense(params, "decoder/Dense_1", h))
    return dense(params, "decoder/Dense_2", h) + params["offset"]


def vae_loss(params: Params, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Minus the bound of one draw, log p(x, z) - log q(z | x); noise [1, B, latent] is drawn where it is None."""
    loc, log_scale = encode(params, x)
    noise = torch.randn_like(loc) if noise is None else noise[0]
    z = loc + log_scale.exp() * noise
    log_ratio = 0.5 * (z.square() - noise.square()) - log_scale  # log q(z | x) - log p(z)
    return (cross_entropy(decode(params, z), x) + log_ratio.sum()) / len(x)


def iwae_loss(params: Params, x: torch.Tensor, noise: torch.Tensor | None, k: int) -> torch.Tensor:
    """Minus the importance-weighted bound; noise [k, B, latent] is drawn where it is None."""
    loc, log_scale = encode(params, x)
    noise = torch.randn(k, *loc.shape) if noise is None else noise
    z = loc + log_scale.exp() * noise
    logits = decode(params, z)
    log_likelihood = (x * logits - functional.softplus(logits)).sum(-1)
    log_ratio = (0.5 * (z.square() - noise.square()) - log_scale).sum(-1)
    return -(torch.logsumexp(log_likelihood - log_ratio, dim=0) - math.log(k)).mean()


def nade_loop(p: Params, x: torch.Tensor) -> torch.Tensor:
    """The recursion as published, a dimension at a time: logits [B, D]."""
    a = p["input/bias"].expand(len(x), -1)
    logits = []
    for d in range(x.shape[1]):
        logits.append(functional.relu(a) @ p["output/kernel"][d] + p["output/bias"][d])
        a = torch.addcmul(a, x[:, d, None], p["input/kernel"][d])
    return torch.cat(logits, dim=1)


def nade_cumsum(p: Params, x: torch.Tensor) -> torch.Tensor:
    """All hidden units at once, [B, D, H], by a cumulative sum."""
    steps = x[..., None] * p["input/kernel"]
    sums = torch.cumsum(steps, dim=1) - steps + p["input/bias"]
    return (functional.relu(sums) * p["output/kernel"][..., 0]).sum(-1) + p["output/bias"][:, 0]


def nade_blocks(p: Params, x: torch.Tensor, again: bool = False) -> torch.Tensor:
    """A block of dimensions at a time, by a triangular product; perhaps computed again for the gradient."""
    strictly = torch.tril(torch.ones(BLOCK, BLOCK), -1)

    def block(a: torch.Tensor, x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        earlier = strictly[None] * x[:, None]  # [B, block, block]
        h = functional.relu(torch.matmul(earlier, w) + a[:, None])
        return a + x @ w, (h * v[None, ..., 0]).sum(-1)

    a, logits = p["input/bias"].expand(len(x), -1), []
    for low in range(0, x.shape[1], BLOCK):
        part = slice(low, low + BLOCK)
        arguments = a, x[:, part], p["input/kernel"][part], p["output/kernel"][part]
        a, found = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
        logits.append(found)
    return torch.cat(logits, dim=1) + p["output/bias"][:, 0]


NADES: dict[str, Callable[[Params, torch.Tensor], torch.Tensor]] = {
    "loop": nade_loop,
    "cumsum": nade_cumsum,
    "blocks": nade_blocks,
    "blocks again": functools.partial(nade_blocks, again=True),
}


def gated_pixelcnn(p: Params, x: torch.Tensor) -> torch.Tensor:
    """Logits [B, 1, H, W] of binary images x [B, 1, H, W]."""
    layers = sum(name.startswith("join_") and name.endswith("kernel") for name in p)

    def point(name: str, h: torch.Tensor) -> torch.Tensor:
        kernel = p[f"{name}/kernel"]
        return functional.conv2d(h, kernel.reshape(*kernel.shape[:2], 1, 1), p[f"{name}/bias"])

    def gate(h: torch.Tensor) -> torch.Tensor:
        a, b = h.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)

    v, h = functional.pad(x, (0, 0, 1, 0))[:, :, :-1], x
    for i in range(layers):
        up, left = p[f"vertical_{i}/kernel"], p[f"horizontal_{i}/kernel"]
        rows, columns = up.shape[2:]
        padded = functional.pad(v, (columns // 2, (columns - 1) // 2, rows - 1, 0))
        a = functional.conv2d(padded, up, p[f"vertical_{i}/bias"])
        if i == 0:  # the first layer does not see the pixel itself
            left = left * torch.tensor([1.0] * (left.shape[2] - 1) + [0.0])
        seen = functional.pad(h, (left.shape[2] - 1, 0))
        b = functional.conv2d(seen, left[:, :, None], p[f"horizontal_{i}/bias"])
        g = point(f"residual_{i}", gate(b + point(f"join_{i}", a)))
        h = g if i == 0 else h + g
        v = gate(a)
    return point("head", functional.relu(point("hidden_head", functional.relu(h))))


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"made": made_loss, "vae": vae_loss}


def loss_of(run: Run) -> Callable[..., torch.Tensor]:
    """(params, x, noise) -> the loss of a rival, as it is in every style."""
    name, options = SETUPS[run.setup].model["name"], SETUPS[run.setup].options
    if name in LOSSES:
        return functools.partial(iwae_loss, **options) if options else LOSSES[name]
    logits_of = NADES[run.style.partition(" ")[2]] if name == "nade" else gated_pixelcnn
    return lambda params, x, noise: cross_entropy(logits_of(params, x), x) / len(x)


def as_torch(setup: str, value: np.ndarray) -> np.ndarray:
    """A kernel [..., inputs, outputs] with these two first, in the other order; NADE's tables as they are."""
    if SETUPS[setup].model["name"] == "nade" or value.ndim < 2:
        return value.copy()
    return np.ascontiguousarray(np.moveaxis(value, (-1, -2), (0, 1)))


def inputs(setup: str, n: int) -> list[torch.Tensor]:
    """The batches, [B, D], or [B, C, H, W] for images."""
    xs = torch.tensor(batches(setup, n))
    return list(xs.movedim(-1, 2).contiguous() if xs.ndim == 5 else xs)


def parameters_and_step(
    run: Run, start: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]
) -> tuple[Params, torch.optim.Adam, Step]:
    """Parameters, their optimizer, and a training step from (x, noise or None) to the loss before it.

    Args:
        run: its `style` is explained at the top of the file.
        start: path -> our parameter, as PyTorch has it.
        masks: path -> mask of that shape, for the kernels that have one.
    """
    params = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in start.items()}
    filters = {path: torch.tensor(mask.astype(np.float32)) for path, mask in masks.items()}
    style = run.style.partition(" ")[0]
    adam = torch.optim.Adam(params.values(), lr=1e-3, fused=None if style == "plain" else True)
    loss = loss_of(run)

    def masked_loss(x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        return loss({**params, **{path: params[path] * keep for path, keep in filters.items()}}, x, noise)

    def eager_loss(x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        return loss(params, x, noise)

    styled = {"eager": eager_loss, "plain": masked_loss, "compiled": torch.compile(masked_loss)}[style]

    def step(x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        adam.zero_grad(set_to_none=True)
        value = styled(x, noise)
        value.backward()
        if style == "eager":
            for path, keep in filters.items():
                gradient = params[path].grad
                assert gradient is not None
                gradient *= keep
        adam.step()
        return value.detach()

    return params, adam, step


def make(run: Run, reference: dict[str, Any]) -> tuple[Callable[[], Any], float, dict[str, float]]:
    """A function that makes one dispatch, the seconds that the first one took, and how far it is from ours.

    Args:
        run: a rival.
        reference: what `ours.reference` returns.

    Returns:
        Of the distances, "loss" is the largest relative one, and "gradient" that of the first step's gradient (Adam's
        moving mean, whose update has but its signs), relative in the norm over all parameters.
    """
    return sampler(run, reference) if SETUPS[run.setup].samples else trainer(run, reference)


def sampler(run: Run, reference: dict[str, Any]) -> tuple[Callable[[], Any], float, dict[str, float]]:
    """`make` of samples: a dispatch is a pass of the net and a draw of the next pixel."""
    params = {path: torch.tensor(as_torch(run.setup, value)) for path, value in reference["params"].items()}
    net = torch.compile(gated_pixelcnn) if run.style == "compiled" else gated_pixelcnn
    height, width = SETUPS[run.setup].shape[:2]
    pixels = itertools.cycle(itertools.product(range(height), range(width)))
    x = inputs(run.setup, 1)[0]
    with torch.inference_mode():
        began = time.perf_counter()
        logits = net(params, x)
        first_s = time.perf_counter() - began
        loss = float(cross_entropy(logits, x) / len(x))

    @torch.inference_mode()
    def advance() -> None:
        row, column = next(pixels)
        x[:, :, row, column] = torch.bernoulli(torch.sigmoid(net(params, x)[:, :, row, column]))

    return advance, first_s, {"loss": abs(loss / reference["loss"] - 1)}


def trainer(run: Run, reference: dict[str, Any]) -> tuple[Callable[[], Any], float, dict[str, float]]:
    """`make` of training."""

    def here(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {path: as_torch(run.setup, value) for path, value in values.items()}

    masks, ours_start, ours = (here(reference[name]) for name in ("masks", "params", "moments"))
    start = {path: value * masks.get(path, 1) for path, value in ours_start.items()}
    params, adam, step = parameters_and_step(run, start, masks)
    losses, moments, first_s = [], {}, 0.0
    for i, x in enumerate(inputs(run.setup, len(reference["losses"]))):
        noise = torch.tensor(reference["noises"][i]) if SETUPS[run.setup].model["name"] == "vae" else None
        began = time.perf_counter()
        losses.append(float(step(x, noise)))
        if i == 0:
            first_s = time.perf_counter() - began
            of = {path: adam.state[value].get("exp_avg", torch.zeros(())) for path, value in params.items()}
            moments = {path: mean.numpy().copy() for path, mean in of.items()}  # 0 of what the loss does not read
    distance = sum(np.sum((moments[path] - ours[path]) ** 2) for path in start)
    parity = {
        "loss": float(np.max(np.abs(np.array(losses) / np.array(reference["losses"]) - 1))),
        "gradient": float(np.sqrt(distance / sum(np.sum(ours[path] ** 2) for path in start))),
    }
    xs = itertools.cycle(inputs(run.setup, 20))
    return lambda: step(next(xs)), first_s, parity
