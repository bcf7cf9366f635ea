"""A config's `sweep()`: each point a run in a process of its own, and one table of them all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgm_jax import config as configs
from dgm_jax.report import show_value, write_json
from dgm_jax.training.loop import caught_signals

Point = Mapping[str, Any]  # "a.b" -> value: overrides of a config
STOPPED = 75  # exit code of a run that a signal ended and that is saved (EX_TEMPFAIL)


def sweep(spec: str, folder: str | Path, overrides: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Run every point, and write the table.

    Called again it goes on: complete points stay, interrupted ones resume, failed ones are tried again. A point whose
    work directory holds a run of another config has failed.

    Args:
        spec: a config, as `config.load` takes it, whose file has sweep(), an iterable of overrides.
        folder: gets a work directory a point, `points.json` and the table `README.md`.
        overrides: of all points.

    Returns:
        A page a point: {"point", "workdir", and "metrics" or "error"}.

    Raises:
        ValueError: the config has no sweep, or two points are one.
        KeyboardInterrupt: a signal came; a run that was training is saved.
    """
    module = configs.module(spec.partition(":")[0])
    if not hasattr(module, "sweep"):
        raise ValueError(f"config {spec!r} has no sweep(): a function that yields overrides such as {{'seed': 1}}")
    points = [dict(point) for point in module.sweep()]
    names = [name_of(point) for point in points]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"sweep() of config {spec!r} yields {', '.join(sorted(twice))} more than once")
    folder, pages = Path(folder), []
    for point, name in zip(points, names, strict=True):
        page: dict[str, Any] = {"point": point, "workdir": name}
        error = run(spec, folder / name, {**(overrides or {}), **point})
        if error is None:
            page["metrics"] = json.loads((folder / name / "result.json").read_text())["metrics"]
        else:
            page["error"] = error
        pages.append(page)
        write_json(folder / "points.json", {"config": spec, "points": pages})
        (folder / "README.md").write_text("\n".join(table(spec, pages)) + "\n")
    return pages


def name_of(point: Point) -> str:
    """A point as a folder's name: its overrides by the last part of their keys."""
    parts = [f"{key.rpartition('.')[2]}={value}" for key, value in point.items()]
    return ",".join(parts).replace("/", "_").replace(" ", "") or "as_it_is"


def run(spec: str, workdir: Path, point: Point) -> str | None:
    """Train one point in a process of its own, which leaves a complete run as it is; its error where it fails."""
    fields = [f"--config.{key}={value}" for key, value in point.items()]
    command = [sys.executable, "-m", "dgm_jax", "train", f"--config={spec}", f"--workdir={workdir}", *fields]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "train.log").open("ab") as log, caught_signals() as caught:
        began = log.tell()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if caught:  # pass it on once, and let the run save itself
                process.terminate()
                process.wait()
            time.sleep(0.1)
        code = process.returncode
    if caught or code == STOPPED:  # outside of its training loop a run dies of a signal, or ends as if none had come
        raise KeyboardInterrupt(f"stopped at {workdir}" + (", which is saved" if code == STOPPED else ""))
    if code == 0:
        return None
    said = (workdir / "train.log").read_bytes()[began:].decode(errors="replace")
    _, found, error = f"\n{said}".rpartition("\ndgm: ")
    text = " ".join(error.partition("\n(DGM_TRACEBACK")[0].split())  # a cell of the table has one line
    return text if found else f"exit code {code}, see {workdir / 'train.log'}"


def table(spec: str, pages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table: a row a point, a column a field and a metric."""
    fields = list(dict.fromkeys(key for page in pages for key in page["point"]))
    metrics = list(dict.fromkeys(name for page in pages for name in page.get("metrics", {})))
    columns = [*fields, *metrics, *(["error"] if any("error" in page for page in pages) else [])]

    def cell(page: Mapping[str, Any], column: str) -> str:
        if column in fields:
            return str(page["point"].get(column, ""))
        if column == "error":
            return page.get("error", "").replace("|", "\\|")
        metric = page.get("metrics", {}).get(column)
        return show_value(metric) if metric else ""

    rows = [columns, ["---"] * len(columns), *([cell(page, column) for column in columns] for page in pages)]
    return [f"# Sweep of {spec}", "", *(f"| {' | '.join(row)} |" for row in rows)]
