"""NADE and Gated PixelCNN in PyTorch: the functions and parameters of ours, NADE in every formulation that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Params = dict[str, torch.Tensor]
BLOCK = 16  # dimensions at once in `nade_blocks`, as in ours


def tensors(params: Mapping[str, Any], prefix: str = "") -> Params:
    """A nested dict of arrays, flat and as parameters."""
    found: Params = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found |= tensors(value, f"{prefix}{name}/")
        else:
            found[prefix + name] = torch.nn.Parameter(torch.tensor(np.array(value)))
    return found


def nade_loop(p: Params, x: torch.Tensor) -> torch.Tensor:
    """The recursion as published, a dimension at a time: logits [B, D]."""
    a = p["input/bias"].expand(len(x), -1)
    logits = []
    for d in range(x.shape[1]):
        h = functional.relu(a)
        logits.append(h @ p["output/kernel"][d] + p["output/bias"][d])
        a = torch.addcmul(a, x[:, d, None], p["input/kernel"][d])
    return torch.cat(logits, dim=1)


def nade_cumsum(p: Params, x: torch.Tensor) -> torch.Tensor:
    """All hidden units at once, [B, D, H], by a cumulative sum."""
    steps = x[..., None] * p["input/kernel"]
    sums = torch.cumsum(steps, dim=1) - steps + p["input/bias"]
    return (functional.relu(sums) * p["output/kernel"][..., 0]).sum(-1) + p["output/bias"][:, 0]


def nade_blocks(p: Params, x: torch.Tensor, recompute: bool = False) -> torch.Tensor:
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
        a, found = checkpoint(block, *arguments, use_reentrant=False) if recompute else block(*arguments)
        logits.append(found)
    return torch.cat(logits, dim=1) + p["output/bias"][:, 0]


NADES: dict[str, Callable[[Params, torch.Tensor], torch.Tensor]] = {
    "loop": nade_loop,
    "cumsum": nade_cumsum,
    "blocks": nade_blocks,
    "blocks, recomputed": lambda p, x: nade_blocks(p, x, recompute=True),
}


def gated_pixelcnn(p: Params, x: torch.Tensor) -> torch.Tensor:
    """Logits [B, 1, H, W] of binary images x [B, 1, H, W]; the net is that of ours, kernels [kh, kw, in, out]."""
    layers = sum(name.startswith("join_") and name.endswith("kernel") for name in p)

    def point(name: str, h: torch.Tensor) -> torch.Tensor:
        kernel = p[f"{name}/kernel"]
        kernel = kernel[0] if kernel.ndim == 3 else kernel
        return functional.conv2d(h, kernel.T[..., None, None], p[f"{name}/bias"])

    def gate(h: torch.Tensor) -> torch.Tensor:
        a, b = h.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)

    v, h = functional.pad(x, (0, 0, 1, 0))[:, :, :-1], x
    for i in range(layers):
        up, left = p[f"vertical_{i}/kernel"], p[f"horizontal_{i}/kernel"]
        rows, columns = up.shape[:2]
        padded = functional.pad(v, (columns // 2, (columns - 1) // 2, rows - 1, 0))
        a = functional.conv2d(padded, up.permute(3, 2, 0, 1), p[f"vertical_{i}/bias"])
        if i == 0:  # the first layer does not see the pixel itself
            left = left * torch.tensor([1.0] * (len(left) - 1) + [0.0])[:, None, None]
        seen = functional.pad(h, (len(left) - 1, 0))
        b = functional.conv2d(seen, left.permute(2, 1, 0)[:, :, None], p[f"horizontal_{i}/bias"])
        g = point(f"residual_{i}", gate(b + point(f"join_{i}", a)))
        h = g if i == 0 else h + g
        v = gate(a)
    return point("head", functional.relu(point("hidden_head", functional.relu(h))))


def training_step(logits: Callable[[Params, torch.Tensor], torch.Tensor], p: Params) -> Callable[[torch.Tensor], float]:
    """A step of Adam: x -> the loss before it, the mean negative log-likelihood."""
    adam = torch.optim.Adam(p.values(), lr=1e-3, fused=True)

    def step(x: torch.Tensor) -> float:
        adam.zero_grad(set_to_none=True)
        loss = functional.binary_cross_entropy_with_logits(logits(p, x), x, reduction="sum") / len(x)
        loss.backward()
        adam.step()
        return float(loss.detach())

    return step
