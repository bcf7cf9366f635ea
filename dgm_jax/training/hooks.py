"""What a run writes while it trains: metrics.jsonl, TensorBoard events, progress, checkpoints."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from dgm_jax.training import checkpoint
from dgm_jax.training.loop import Hook, Log
from dgm_jax.training.loop import Progress as LoopProgress
from dgm_jax.training.processes import is_main
from dgm_jax.types import State


@contextmanager
def run_log(workdir: Path, start: int, steps: int, quiet: bool = False) -> Iterator[Log]:
    """Open the run's log, cut back to the step `start` that was restored.

    Args:
        workdir: holds metrics.jsonl and the TensorBoard events.
        start: lines beyond this step are removed.
        steps: length of the run, for the progress bar.
        quiet: nothing on the terminal.

    Of several processes, one writes.

    Yields:
        log(step, split, values): writes a line; times have names under "time/".
    """
    if not is_main():
        yield lambda step, split, values: None
        return
    path = workdir / "metrics.jsonl"
    cut_back(path, start)
    events = SummaryWriter(str(workdir / "events"), purge_step=start + 1)
    show = _quiet if quiet else (_bar if sys.stderr.isatty() else _lines)
    with path.open("a") as file, show(start, steps) as update:

        def log(step: int, split: str, values: Mapping[str, float]) -> None:
            line = {"step": step, "split": split}
            line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            for name, value in values.items():
                events.add_scalar(name if name.startswith("time/") else f"{split}/{name}", value, step)
            update(step, split, values)

        try:
            yield log
        finally:
            events.close()


def cut_back(path: Path, step: int) -> None:
    """Remove the lines of a metrics.jsonl beyond `step`, those of the test, and one that a kill left half written."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= step and line["split"] != "test"]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.replace(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that a kill left half written is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def checkpoint_hook(manager: ocp.CheckpointManager, every: int, meta: Mapping[str, Any], best: str = "") -> Hook:
    """Save the state and the unlogged metrics every `every` steps, and at the end.

    Args:
        manager: from `checkpoint.open_manager`.
        every: steps.
        meta: what else the checkpoint's JSON page holds.
        best: the metric that the manager chooses by. Applied after an evaluation that lacks it, the hook raises a
            CheckpointError, but saves before.
    """

    def apply(step: int, state: State, progress: LoopProgress) -> None:
        if step != manager.latest_step():
            # a copy: orbax writes in the background, and the loop goes on adding to the window
            page = {**meta, "window": {name: list(total) for name, total in progress.window.items()}}
            checkpoint.save(manager, step, state, page, progress.evaluated)
        if best and progress.evaluated and best not in progress.evaluated:
            raise checkpoint.unknown_metric(best, progress.evaluated)

    return Hook(every, apply)


def headline(values: Mapping[str, float]) -> list[str]:
    """Which metrics the progress bar has room for: the loss, in a game those of all players; else the first."""
    names = [name for name in values if not name.startswith("time/")]
    return [name for name in names if name.rpartition("/")[2] == "loss"] or names[:1]


@contextmanager
def _quiet(start: int, steps: int) -> Iterator[Any]:
    yield lambda step, split, values: None


@contextmanager
def _lines(start: int, steps: int) -> Iterator[Any]:
    seconds = [0.0]

    def update(step: int, split: str, values: Mapping[str, float]) -> None:
        seconds.append(values.get("time/step_s", seconds.pop()))
        shown = "  ".join(f"{name} {v:.4g}" for name, v in values.items() if not name.startswith("time/"))
        rate = f"  {1 / seconds[0]:.0f}/s  eta {(steps - step) * seconds[0]:.0f}s" if seconds[0] else ""
        print(f"step {step}/{steps}{rate}  {split}: {shown}", file=sys.stderr, flush=True)

    yield update


@contextmanager
def _bar(start: int, steps: int) -> Iterator[Any]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    latest: dict[str, float] = {}
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=start, rate="compiling", text="")

        def update(step: int, split: str, values: Mapping[str, float]) -> None:
            latest.update({f"{split} {name}": values[name] for name in headline(values)})
            if "time/step_s" in values:
                bar.update(task, rate=f"{1 / values['time/step_s']:.0f}/s")
            bar.update(task, completed=step, text="  ".join(f"{s} {v:.4g}" for s, v in latest.items()))

        yield update
