"""What studies share: train named runs, keep their results and pictures here, build a table from what is kept."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgm_jax import api, cli
from dgm_jax.report import show_value

KINDS = ("exact", "bound", "estimate")  # never in one column


class Row(NamedTuple):
    """A run of a study beside what was published."""

    config: str
    metric: str | tuple[str, ...]  # of the result: what stands in the table, a line each
    overrides: Mapping[str, Any] = {}
    published: str = ""  # the figure of the first metric, with where it stands
    folds: int = 0  # of the data: a run each, and their mean in the table


def main(folder: Path, rows: Mapping[str, Row]) -> None:
    """Command line of a study: train the runs named (all without names), then rebuild its table."""
    parser = argparse.ArgumentParser(description=f"The study {folder.name}: trains, keeps results, writes the table.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(rows)}; none = all")
    parser.add_argument("--workdirs", type=Path, default=Path("runs") / folder.name)
    parser.add_argument("--table", action="store_true", help="only rebuild the table")
    options = parser.parse_args()
    cli.set_up_process()
    for name in [] if options.table else options.names or rows:
        for place, overrides in runs(name, rows[name]):
            api.train(api.load_config(rows[name].config, overrides), options.workdirs / place)
            keep(options.workdirs / place, folder / place)
    write_table(folder, rows)


def runs(name: str, row: Row) -> list[tuple[str, dict[str, Any]]]:
    """The runs of a row: where each is kept, and its overrides."""
    if not row.folds:
        return [(name, dict(row.overrides))]
    return [(f"{name}/fold_{k}", {**row.overrides, "data.options.fold": k}) for k in range(row.folds)]


def keep(workdir: Path, folder: Path) -> None:
    """Copy a run's result and its last pictures into the study."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(workdir / "result.json", folder)
    last = {"step_*[0-9].png": "samples.png", "step_*_means.png": "means.png", "step_*_stages.png": "stages.png"}
    for pattern, name in last.items():
        if pictures := sorted((workdir / "samples").glob(pattern)):
            shutil.copy(pictures[-1], folder / name)
    for name in ("curves", "reconstructions", "completions", "imputations", "bits", "images"):
        if (workdir / "samples" / f"{name}.png").exists():
            shutil.copy(workdir / "samples" / f"{name}.png", folder)


def write_table(folder: Path, rows: Mapping[str, Row]) -> None:
    """Rebuild the table in the study's README, between its two marks, from the results that are kept."""
    published = ["published"] if any(row.published for row in rows.values()) else []
    titles = ["run", "metric", *KINDS, *published, "seeds", "steps", "ms a step", "device", "commit"]
    lines = [titles, ["---"] * len(titles)]
    for name, row in rows.items():
        pages = [folder / place / "result.json" for place, _ in runs(name, row)]
        if not all(page.exists() for page in pages):
            continue
        results = [json.loads(page.read_text()) for page in pages]
        result = results[0]
        for i, shown in enumerate((row.metric,) if isinstance(row.metric, str) else row.metric):
            metric = joined_folds([result["metrics"][shown] for result in results])
            unit = "" if metric["unit"] == "1" else f", {metric['unit']}"
            lines.append(
                [
                    f"[{name}]({name})",
                    shown.removeprefix("test/").removesuffix("_bits_per_dim") + unit,
                    *[show_value(metric) if metric["kind"] == kind else "" for kind in KINDS],
                    *["" if i else row.published for _ in published],
                    str(len(result["seeds"])),
                    f"{result['steps']:,}",
                    f"{1e3 * result['step_s']:.1f}" if result["step_s"] else "",  # null where it took no step
                    f"{result['device']}, {result['cores']} cores",
                    result["commit"],
                ]
            )
    replace_between(
        folder / "README.md", "<!-- table -->", "<!-- end of table -->", [f"| {' | '.join(line)} |" for line in lines]
    )


def joined_folds(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Mean and standard error over the folds, NaN where one is not finite; of one run, its own."""
    if len(metrics) == 1:
        return metrics[0]
    values = np.array([metric["value"] for metric in metrics], float)  # None becomes NaN
    return {**metrics[0], "value": values.mean(), "stderr": values.std(ddof=1) / len(values) ** 0.5}


def replace_between(page: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Put lines between two marks of a Markdown page."""
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(before + "\n".join([begin, *lines, end]) + after)
