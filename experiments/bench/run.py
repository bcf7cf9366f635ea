"""Training speed: several updates a dispatch, several seeds at once, and ours against PyTorch.

python experiments/bench/run.py            measures: minutes on a quiet machine; needs the extra `bench`
python experiments/bench/run.py --table    writes README.md's tables anew from results.json

Ours runs in one process, PyTorch in one for every number of threads, and only one of them computes at a time. The
runs of a setup take turns in short bursts, so that the machine's drift hits all alike.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from setups import SEEDS, SETUPS, STYLES, Run, runs_of

HERE = Path(__file__).parent
BURSTS = 10
WARM, COUNTED, BURST_S = 2, 5, 0.05  # of a burst: dispatches not counted, at least counted, seconds at least
PARITY_STEPS = 5
TOLERANCE = {"loss": 1e-5, "update": 1e-3}  # between a rival's first steps and ours, see torch_rivals.make
BEGIN, END = "<!-- tables: run.py writes them -->", "<!-- end of tables -->"


def serve(connection: Connection, module: str, threads: int) -> None:
    """A process that makes and times the runs of `module` as it is told."""
    host = importlib.import_module(module)
    host.set_up(threads)
    advance: dict[Run, Callable[[], Any]] = {}
    while (message := connection.recv()) is not None:
        verb, *arguments = message
        answer: Any = None
        if verb == "make":
            run, reference = arguments
            advance[run], *answer = host.make(run, reference)
        elif verb == "time":
            answer = burst(advance[arguments[0]])
        elif verb == "drop":
            advance.clear()
        else:
            answer = getattr(host, verb)(*arguments)
        connection.send(answer)


def burst(advance: Callable[[], Any]) -> list[float]:
    """Seconds of dispatches one after the other."""
    seconds: list[float] = []
    while len(seconds) < WARM + COUNTED or sum(seconds) < BURST_S:
        began = time.perf_counter()
        advance()
        seconds.append(time.perf_counter() - began)
    return seconds[WARM:]


class Host:
    """The other end of `serve`."""

    def __init__(self, module: str, threads: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, module, threads), daemon=True)
        self.process.start()

    def ask(self, verb: str, *arguments: Any) -> Any:
        """What the process answers."""
        self.connection.send((verb, *arguments))
        return self.connection.recv()

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()


def measure(bursts: int) -> dict[str, Any]:
    """The content of results.json."""
    cores = len(os.sched_getaffinity(0))
    results: dict[str, Any] = {"load": os.getloadavg()[0], "setups": {}}
    hosts = {0: Host("ours")} | {threads: Host("torch_rivals", threads) for threads in sorted({1, cores})}
    results["environment"] = hosts[0].ask("environment") | hosts[cores].ask("environment")
    for setup in SETUPS:
        runs = runs_of(setup, cores)
        reference = hosts[0].ask("trajectory", setup, PARITY_STEPS) if SETUPS[setup].bar else None
        rows: dict[Run, dict[str, Any]] = {}
        for run in runs:
            compile_s, parity = hosts[run.threads].ask("make", run, reference)
            for name, distance in parity.items():
                if not distance < TOLERANCE[name]:
                    raise ValueError(f"{setup}, {run.name}: {name} differs from ours by {distance:.1e}")
            rows[run] = {"compile_s": compile_s} | ({"parity": parity} if parity else {})
        seconds: dict[Run, list[float]] = {run: [] for run in runs}
        for _ in range(bursts):
            for run in runs:
                seconds[run] += hosts[run.threads].ask("time", run)
        for run in runs:
            low, median, high = np.percentile(np.array(seconds[run]) / run.per_dispatch, [25, 50, 75])
            rows[run] |= {"update_s": median, "quartiles": [low, high], "n": len(seconds[run])}
            print(f"{setup:20} {run.name:18} {1e3 * median:9.3f} ms  {rows[run]['compile_s']:6.2f} s", flush=True)
        results["setups"][setup] = {run.name: rows[run] for run in runs}
        for host in hosts.values():
            host.ask("drop")
    for host in hosts.values():
        host.close()
    return results


def tables(results: dict[str, Any]) -> str:
    """The three tables of README.md."""
    setups = results["setups"]
    where = results["environment"]
    lines = [
        f"{where['device']}, {where['cores']} cores; jax {where['versions']['jax']}, torch {where['torch']}; commit "
        f"{where['commit']}; load average at the start {results['load']:.1f}.",
        "",
        "### Against PyTorch",
        "",
        "| | ms an update (quartiles) | updates/s | compile s | times ours at 20 |",
        "|---|---|---|---|---|",
    ]
    for setup, rows in setups.items():
        if not SETUPS[setup].bar:
            continue
        ours = rows["20"]["update_s"]
        for name, text in {"1": "ours", "20": "ours, 20 a dispatch"}.items():
            lines.append(rival_row(f"{setup}, {text}", rows[name], ours))
        for style in STYLES:
            found = [name for name in rows if name.startswith(f"torch {style}")]
            best = min(found, key=lambda name: rows[name]["update_s"])
            text = f"{setup}, {best.rpartition(' ')[0]}, {best.rpartition(' ')[2]} threads"
            lines.append(rival_row(text, rows[best], ours))
    lines += ["", verdicts(setups), "", "### Several updates a dispatch", ""]
    lines += ["| ms an update at | 1 | 10 | 20 a dispatch | 1 / best |", "|---|---|---|---|---|"]
    for setup, rows in setups.items():
        times = {n: rows[str(n)]["update_s"] for n in SETUPS[setup].per_dispatch}
        cells = [f"{1e3 * times[n]:.2f}" if n in times else "" for n in (1, 10, 20)]
        best = times[1] / min(time for n, time in times.items() if n > 1)
        lines.append(f"| {setup} | {' | '.join(cells)} | {best:.2f} |")
    lines += ["", f"### {SEEDS} seeds", ""]
    lines += ["| ms an update of all | in turn | vmap | map | in turn / best |", "|---|---|---|---|---|"]
    for setup, rows in setups.items():
        size = SETUPS[setup].seeds_per_dispatch
        ways = {way: rows[f"{way} {size}"]["update_s"] for way in SETUPS[setup].seeds}
        if ways:
            in_turn = SEEDS * rows[str(size)]["update_s"]
            cells = [f"{1e3 * ways[way]:.2f}" if way in ways else "" for way in ("vmap", "map")]
            ratio = in_turn / min(ways.values())
            lines.append(f"| {setup} | {1e3 * in_turn:.2f} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(lines)


def rival_row(text: str, row: dict[str, Any], ours: float) -> str:
    """One row of the first table."""
    update_s, (low, high) = row["update_s"], row["quartiles"]
    return (
        f"| {text} | {1e3 * update_s:.2f} ({1e3 * low:.2f}-{1e3 * high:.2f}) | {1 / update_s:.0f} | "
        f"{row['compile_s']:.1f} | {update_s / ours:.2f} |"
    )


def verdicts(setups: dict[str, Any]) -> str:
    """Whether the bars are met, and how near the rivals are to ours in what they compute."""
    parts = []
    for setup, rows in setups.items():
        if bar := SETUPS[setup].bar:
            eager = min(row["update_s"] for name, row in rows.items() if name.startswith("torch eager"))
            ratio = eager / rows["20"]["update_s"]
            parity = [row["parity"] for row in rows.values() if "parity" in row]
            loss, update = (max(distances[name] for distances in parity) for name in TOLERANCE)
            parts.append(
                f"{setup}: {ratio:.2f} times PyTorch's fastest eager step; the bar of {bar} is "
                f"{'met' if ratio >= bar else 'missed'}. The first losses agree to {loss:.0e}, the first update "
                f"to {update:.0e}."
            )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed; see the file's header.")
    parser.add_argument("--bursts", type=int, default=BURSTS, help="of every run; medians are over all")
    parser.add_argument("--table", action="store_true", help="only write the tables anew")
    options = parser.parse_args()
    page, readme = HERE / "results.json", HERE / "README.md"
    if not options.table:
        with tempfile.TemporaryDirectory() as cache:  # compile times are those of a first run
            os.environ |= {"JAX_ENABLE_COMPILATION_CACHE": "0", "TORCHINDUCTOR_CACHE_DIR": cache}
            page.write_text(json.dumps(measure(options.bursts), indent=1) + "\n")
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n\n{tables(json.loads(page.read_text()))}\n\n{END}{after}")


if __name__ == "__main__":
    main()
