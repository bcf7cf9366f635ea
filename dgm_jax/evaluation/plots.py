"""Pictures: grids of images as uint8 arrays [H, W, C], curves and densities as matplotlib Figures.

`save` writes either. Nothing here touches pyplot or other global state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

Picture = np.ndarray  # uint8 [H, W, C], C = 1 or 3

SIZE = 800  # pixels that the longer side of a grid fills, at a whole-number magnification
SEPARATOR = 112  # grey level between images
MISSING = (58, 84, 130)  # colour of what was not observed
NONFINITE = (255, 0, 255)  # colour of NaN and infinity
COLOURS = ("#1f5fa8", "#d1661b", "#3c8a3f", "#7b4ea3", "#a83244", "#5a5a5a")
HOTTEST = 0.995  # share of pixels below the top of a heat map of bits: a few surprises would darken the rest
DEPTH = 12.0  # nats below the highest log-density where the heat map ends


def save(picture: Picture | Figure, path: str | os.PathLike) -> None:
    """Write a picture in the format that the name ends in; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Figure):
        picture.savefig(path)
    else:
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path)


def pixels(figure: Figure) -> Picture:
    """Draw a Figure into an array [H, W, 3], for loggers that take images."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def as_images(x: np.ndarray, low: float = 0.0, high: float = 1.0) -> Picture:
    """Turn examples into images: uint8 [n, H, W, C], in colour where there are values that are not finite.

    Args:
        x: [n, H, W, C] images with C = 1 or 3; [n, T, D] sequences, time downwards; or [n, D] vectors, squares
            where D is a square and else rows.
        low: the value that is drawn black.
        high: the value that is drawn white.

    Raises:
        ValueError: another rank or number of channels.
    """
    x = np.asarray(x)
    if x.ndim == 2:
        side = math.isqrt(x.shape[1])
        x = x.reshape(-1, side, side) if side**2 == x.shape[1] else x[:, None]
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"{x.shape} cannot be drawn: [n, H, W, 1 or 3], [n, T, D] and [n, D] can")
    level = (x.astype(np.float64) - low) / (high - low or 1.0)
    images = np.round(255 * np.clip(np.nan_to_num(level), 0, 1)).astype(np.uint8)
    return images if np.isfinite(level).all() else _paint(images, ~np.isfinite(level), NONFINITE)


def grid(x: np.ndarray, columns: int | None = None, low: float = 0.0, high: float = 1.0) -> Picture:
    """Lay examples out in rows, magnified without blur, with lines between.

    Args:
        x: [n, *event], with low and high as `as_images` takes them.
        columns: images in a row; None for a picture that is nearly square and leaves few places empty.
        low: the value that is drawn black.
        high: the value that is drawn white.
    """
    return _lay_out([as_images(x, low, high)], columns)


def comparison(*versions: np.ndarray, columns: int | None = None, low: float = 0.0, high: float = 1.0) -> Picture:
    """Lay versions of the same examples one above the other: data above reconstructions, and the like.

    Args:
        versions: each [n, *event], as `as_images` takes it; the i-th of each belong together.
        columns: examples side by side in a block; None as in `grid`.
        low: the value that is drawn black.
        high: the value that is drawn white.

    Raises:
        ValueError: the versions differ in shape.
    """
    return _lay_out([as_images(version, low, high) for version in versions], columns)


def completion(
    x: np.ndarray,
    observed: np.ndarray,
    *completed: np.ndarray,
    columns: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Picture:
    """Lay examples above what a model was shown of them, and above its completions.

    Args:
        x: [n, *event], the whole examples.
        observed: like x, 1 = shown; what is not has a colour of its own.
        completed: one or more, like x.
        columns: examples side by side in a block; None as in `grid`.
        low: the value that is drawn black.
        high: the value that is drawn white.

    Raises:
        ValueError: the versions differ in shape.
    """
    whole, *filled = (as_images(version, low, high) for version in (x, *completed))
    shown = _paint(whole, as_images(np.asarray(observed) == 0) > 0, MISSING)
    return _lay_out([whole, shown, *filled], columns)


def bits(
    x: np.ndarray,
    cost: np.ndarray,
    *predicted: np.ndarray,
    columns: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Picture:
    """Lay examples above what was predicted of them, and above heat maps of what each of their pixels costs.

    Args:
        x: [n, H, W, C].
        cost: like x, in bits; the channels of a pixel are added.
        predicted: none or more, like x.
        columns: examples side by side in a block; None as in `grid`.
        low: the value of x that is drawn black.
        high: the value of x that is drawn white.
    """
    total = np.asarray(cost, np.float64).sum(-1)
    top = np.quantile(total[np.isfinite(total)], HOTTEST) if np.isfinite(total).any() else 1.0
    level = np.clip(np.nan_to_num(total / (top or 1.0)), 0, 1)
    heat = np.round(255 * colormaps["inferno"](level)[..., :3]).astype(np.uint8)
    shown = [np.broadcast_to(as_images(version, low, high), heat.shape) for version in (x, *predicted)]
    return _lay_out([*shown, _paint(heat, ~np.isfinite(total)[..., None], NONFINITE)], columns)


def curves(records: Sequence[Mapping[str, float | str | None]], names: Sequence[str] = ()) -> Figure:
    """Draw training curves as they were logged, a panel a metric and a line a split; nothing is smoothed.

    A metric that spans a factor of 50 after the first twentieth of the run has a logarithmic axis. Elsewhere what
    that first twentieth alone reaches may lie outside the frame.

    Args:
        records: the lines of metrics.jsonl: {"step", "split", name: number, ...}; None stands for not finite.
        names: the metrics to draw; () for all but the times and "finite".

    Raises:
        ValueError: there is nothing to draw.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in names}
    for record in records:
        for name, value in record.items():
            wanted = name in names if names else not (name in ("step", "finite") or name.startswith("time/"))
            if wanted and isinstance(value, int | float) and math.isfinite(value):
                line = panels.setdefault(name, {}).setdefault(str(record["split"]), [])
                line.append((float(record["step"] or 0), float(value)))
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        raise ValueError(f"{len(records)} records hold nothing to draw{f' of {list(names)}' if names else ''}")

    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.3), dpi=120, layout="constrained")
    splits = list(dict.fromkeys(split for lines in panels.values() for split in lines))
    handles: dict[str, Any] = {}
    for place, (name, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for split, line in lines.items():
            step, value = np.array(sorted(line)).T
            colour = COLOURS[splits.index(split) % len(COLOURS)]
            dots = "o" if len(step) <= 40 else ""
            (handles[split],) = axes.plot(step, value, color=colour, linewidth=1.3, marker=dots, markersize=3)
        _frame(axes, np.concatenate([np.array(line) for line in lines.values()]))
        axes.set_title(name, fontsize=10, loc="left")
    figure.supxlabel("step", fontsize=9)
    figure.legend(list(handles.values()), list(handles), loc="outside upper right", ncols=9, frameon=False, fontsize=9)
    return figure


def density(
    data: np.ndarray,
    samples: np.ndarray | None = None,
    log_prob: Callable[[np.ndarray], np.ndarray] | None = None,
    resolution: int = 200,
) -> Figure:
    """Draw two-dimensional data beside a model's samples and log-density, all in the data's frame.

    Args:
        data: [n, 2].
        samples: [m, 2] or None.
        log_prob: points [g, 2] -> nats [g], called once; or None. Below 12 nats under its highest value all has
            one colour.
        resolution: points along an axis, g = resolution**2.
    """
    data = np.asarray(data)
    low, high = data.min(axis=0), data.max(axis=0)
    half = 0.56 * (high - low).max() * np.array([-1, 1])
    x_range, y_range = (low + high)[:, None] / 2 + half[None]
    panels = 1 + (samples is not None) + (log_prob is not None)
    figure = Figure(figsize=(3.5 * panels + 0.6 * (log_prob is not None), 3.7), dpi=120, layout="constrained")

    def panel(place: int, title: str) -> Axes:
        axes = figure.add_subplot(1, panels, place)
        axes.set(xlim=x_range, ylim=y_range, aspect="equal")
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(labelsize=8, color="0.6", labelleft=place == 1)
        axes.spines[:].set_color("0.6")
        return axes

    clouds = [("data", data, "0.15")] + ([] if samples is None else [("samples", samples, COLOURS[0])])
    for place, (title, points, colour) in enumerate(clouds, start=1):
        size = float(np.clip(6000 / len(points), 1.5, 12))
        panel(place, title).scatter(points[:, 0], points[:, 1], s=size, color=colour, alpha=0.5, linewidths=0)
    if log_prob is not None:
        edges = (np.linspace(ends[0], ends[1], resolution + 1) for ends in (x_range, y_range))
        x, y = ((edge[1:] + edge[:-1]) / 2 for edge in edges)
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)
        values = np.asarray(log_prob(points), np.float64).reshape(resolution, resolution)
        finite = values[np.isfinite(values)]
        top = finite.max() if finite.size else 0.0
        axes = panel(panels, "log density")
        image = axes.imshow(
            np.where(values == -np.inf, top - DEPTH, values),
            extent=(*x_range, *y_range),
            origin="lower",
            vmin=top - DEPTH,
            vmax=top,
            cmap="magma",
            interpolation="bilinear",
        )
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, extend="min")
        bar.set_label("nats", fontsize=8)
        bar.ax.tick_params(labelsize=8, color="0.6")
        bar.outline.set_edgecolor("0.6")
    return figure


def _frame(axes: Axes, points: np.ndarray) -> None:
    """Choose scale and limits of a panel of curves with points [n, 2], and draw its frame."""
    late = points[points[:, 0] >= points[:, 0].max() / 20, 1]
    low, high = late.min(), late.max()
    if low > 0 and high > 50 * low:
        axes.set_yscale("log")
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8, color="0.6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.grid(color="0.92", linewidth=0.7)


def _paint(images: Picture, where: np.ndarray, colour: tuple[int, int, int]) -> Picture:
    """Colour, in images [n, H, W, C], the pixels of which `where` names any channel; grey becomes RGB."""
    return np.where(where.any(-1, keepdims=True), np.array(colour, np.uint8), images)


def _columns(n: int, ideal: float) -> int:
    """How many of n in a row: about `ideal`, but rather a number that leaves few places empty."""
    return min(range(1, n + 1), key=lambda c: abs(math.log(c / (1.15 * ideal))) + 3 * (math.ceil(n / c) * c / n - 1))


def separator(scale: int) -> int:
    """Width of the lines between images that are magnified `scale` times: small images need room to be told apart."""
    return 1 if scale == 1 else max(2, scale // 3)


def _lay_out(versions: Sequence[Picture], columns: int | None) -> Picture:
    """Draw versions [n, H, W, C] of the same n images in blocks of as many rows."""
    if len({version.shape[:3] for version in versions}) > 1:
        raise ValueError(f"versions of the same examples differ in shape: {[v.shape for v in versions]}")
    n, height, width = versions[0].shape[:3]
    columns = columns or _columns(n, math.sqrt(n * len(versions) * height / width))
    blocks = math.ceil(n / columns)
    scale = max(1, SIZE // max(blocks * len(versions) * height, columns * width))
    line = separator(scale)
    gap = 4 * line if len(versions) > 1 else 0  # more between blocks
    tall, wide = scale * height + line, scale * width + line
    block = len(versions) * tall + gap
    shape = (blocks * block - gap + line, columns * wide + line, max(version.shape[3] for version in versions))
    picture = np.full(shape, SEPARATOR, np.uint8)
    for row, version in enumerate(versions):
        for i, image in enumerate(version.repeat(scale, axis=1).repeat(scale, axis=2)):
            top = line + (i // columns) * block + row * tall
            left = line + (i % columns) * wide
            picture[top : top + scale * height, left : left + scale * width] = image
    return picture
