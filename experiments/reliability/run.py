"""Kills, feeding, memory, sharding: `python -m experiments.reliability.run [part]` from the root of the checkout."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgm_jax import cli, report
from experiments.reliability import feeding, kill, memory, sharding
from experiments.study import replace_between

HERE = Path(__file__).parent


def killed(folder: Path) -> dict[str, Any]:
    """Twenty kills of each kind of learning."""
    found = {}
    for i, (kind, (config, fields)) in enumerate(kill.KINDS.items()):
        found[kind] = kill.kill_and_compare(config, fields, folder / str(i), kills=20, steps=400)
        print(kind, found[kind], flush=True)
    return found


PARTS: dict[str, Callable[[Path], Any]] = {
    "feeding": feeding.images_per_second,
    "waiting": feeding.waiting,
    "memory": memory.growth,
    "sharding": sharding.on_simulated_devices,
    "kills": killed,
}


NAMES = {"memory": "in memory", "stream": "streaming"}


def table(pages: dict[str, Any]) -> list[str]:
    """Lines of Markdown, from what was measured."""
    found = {name: page["found"] for name, page in pages.items()}
    titles = ["kind of learning", "kills", "while saving", "restarts from a checkpoint", "ends compared", "differences"]
    kills = [titles]
    for kind, row in found.get("kills", {}).items():
        counts = [str(row[name]) for name in ("kills", "while_saving", "resumed", "compared")]
        kills.append([kind, *counts, ", ".join(row["different"]) or "none"])
    rest = [["", ""]]
    for name, rate in found.get("feeding", {}).items():
        rest.append([f"images/s, {NAMES[name]}", f"{rate:,.0f}"])
    for name, row in found.get("waiting", {}).items():
        rest.append([f"time that the VAE waits for data, {NAMES[name]}", f"{100 * row['share']:.1f} %"])
    if used := found.get("memory"):
        grown = used["after_20000"] - used["after_1000"]
        rest.append(["growth of peak memory, steps 1,000 to 20,000", f"{grown:.1f} MB"])
    if lies := found.get("sharding"):
        for n, size in lies["state_bytes"].items():
            rest.append([f"State of a VAE on a device, fsdp={n}", f"{size / 1e6:.2f} MB"])
        rest.append(["parameters of the smaller VAE", f"{lies['parameter_bytes'] / 1e3:.0f} kB"])
        for mesh, sizes in lies["sent_bytes"].items():
            rest.append([f"sent in a step, {mesh}", ", ".join(f"{name} {n / 1e3:.0f} kB" for name, n in sizes.items())])
    return [*markdown(kills), "", *markdown(rest)]


def markdown(rows: list[list[str]]) -> list[str]:
    """A table, the first row its titles."""
    title, *rest = rows
    return [f"| {' | '.join(row)} |" for row in (title, ["---"] * len(title), *rest)]


def main() -> None:
    """Command line: measure the parts named (all without names), keep what was found, rebuild the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none = all")
    options = parser.parse_args()
    cli.set_up_process()
    page = HERE / "results.json"
    pages = json.loads(page.read_text()) if page.exists() else {}
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            pages[name] = {"found": PARTS[name](Path(folder)), **report.environment()}
        report.write_json(page, pages)
    replace_between(HERE / "README.md", "<!-- table -->", "<!-- end of table -->", table(pages))


if __name__ == "__main__":
    main()
