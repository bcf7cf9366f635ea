"""Speed of training and sampling: several updates a dispatch, several seeds at once, and ours against PyTorch.

python -m experiments.bench.run            measures: minutes on a quiet machine; needs the extra `bench`
python -m experiments.bench.run "NADE 784-500" ...    only these setups; results.json keeps the others
python -m experiments.bench.run --table    only rebuilds README.md's tables from results.json

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
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.setups import SEEDS, SETUPS, WAYS, Run, runs_of

HERE = Path(__file__).parent
BURSTS = 10
WARM, COUNTED, BURST_S = 3, 5, 0.1  # of a burst: dispatches not counted, at least counted, seconds at least
LONG_S = 1.0  # a burst of two or more dispatches that took so long ends, and its second half is counted
PARITY_STEPS = 5
TOLERANCE = {"loss": 1e-5, "gradient": 1e-4}  # between a rival's first steps and ours, see torch_rivals.make


def serve(connection: Connection, module: str, threads: int) -> None:
    """A process that makes and times the runs of `module` as it is told."""
    host = importlib.import_module(f"experiments.bench.{module}")
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
        if len(seconds) > 1 and sum(seconds) > LONG_S:
            break
    return seconds[min(WARM, len(seconds) // 2) :]


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


def measure(setups: Sequence[str], bursts: int) -> dict[str, Any]:
    """What results.json holds of these setups."""
    cores = len(os.sched_getaffinity(0))
    hosts = {0: Host("ours")} | {threads: Host("torch_rivals", threads) for threads in sorted({1, cores})}
    where = {"load": os.getloadavg()[0]} | hosts[0].ask("environment") | hosts[cores].ask("environment")
    results = {}
    for setup in setups:
        runs = runs_of(setup, cores)
        reference = hosts[0].ask("reference", setup, PARITY_STEPS) if SETUPS[setup].styles else None
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
            low, median, high = np.percentile(np.array(seconds[run]) / run.part, [25, 50, 75])
            rows[run] |= {"update_s": median, "quartiles": [low, high], "n": len(seconds[run])}
            print(f"{setup:20} {run.name:18} {1e3 * median:9.3f} ms  {rows[run]['compile_s']:6.2f} s", flush=True)
        results[setup] = {"where": where, "runs": {run.name: rows[run] for run in runs}}
        for host in hosts.values():
            host.ask("drop")
    for host in hosts.values():
        host.close()
    return results


def tables(results: dict[str, Any]) -> list[str]:
    """Lines of README.md: the machines, and the tables."""
    machines: dict[str, list[str]] = {}
    for setup, result in results.items():
        where = result["where"]
        machine = (
            f"{where['device']}, {where['cores']} cores, load average {where['load']:.1f} at the start; jax "
            f"{where['versions']['jax']}, torch {where['torch']}; commit {where['commit']}"
        )
        machines.setdefault(machine, []).append(setup)
    lines = [f"- {machine}: {'; '.join(setups)}." for machine, setups in machines.items()]
    rows = {setup: results[setup]["runs"] for setup in SETUPS if setup in results}
    parts = (rivals_table(rows, False), rivals_table(rows, True), dispatch_table(rows), seeds_table(rows))
    return ["", *lines, *(line for part in parts for line in ["", *part]), ""]


def rivals_table(setups: dict[str, Any], samples: bool) -> list[str]:
    """Training steps, or batches of samples, of ours and of PyTorch; then how far each is from the bar."""
    title, unit, scale, rate = "Training", "ms a step", 1e3, "steps/s"
    if samples:
        title, unit, scale, rate = "Sampling", "s", 1, "images/s"
    lines = [f"## {title} against PyTorch", "", f"| | {unit} (quartiles) | {rate} | compile s | times ours |"]
    lines += ["|---|---|---|---|---|"]
    verdicts = []
    for setup, rows in setups.items():
        given = SETUPS[setup]
        if given.samples != samples or not given.styles:
            continue
        for text, row, times in beside(setup, rows):
            middle, low, high = (f"{scale * seconds:.3g}" for seconds in (row["update_s"], *row["quartiles"]))
            each = (given.batch if samples else 1) / row["update_s"]
            lines.append(
                f"| {setup}, {text} | {middle} ({low}-{high}) | {each:.3g} | {row['compile_s']:.1f} | {times:.2f} |"
            )
        parity = [row["parity"] for row in rows.values() if "parity" in row]
        found = {name: max(distance[name] for distance in parity) for name in parity[0]}
        agree = ", ".join(f"the {name} to {distance:.0e}" for name, distance in found.items())
        verdicts.append(f"- {setup}: {verdict(setup, rows)}They agree with ours: {agree}.")
    return [*lines, "", *verdicts]


def beside(setup: str, rows: dict[str, Any]) -> list[tuple[str, dict[str, Any], float]]:
    """(what it is, its row, its time over that of ours), ours first, PyTorch at its better number of threads."""
    given = SETUPS[setup]
    shown = {f"ours, {n} a dispatch": rows[str(n)] for n in given.per_dispatch}
    if given.samples:
        shown = {"ours, cached": rows["1"], "ours, full passes": rows["passes"]}
    ours = rows[str(given.per_dispatch[-1])]["update_s"]
    for style in given.styles:
        found = {name.rpartition(" ")[2]: rows[name] for name in rows if name.rpartition(" ")[0] == f"torch {style}"}
        threads, row = min(found.items(), key=lambda item: item[1]["update_s"])
        shown[f"torch {style}, {threads} threads"] = row
    return [(text, row, row["update_s"] / ours) for text, row in shown.items()]


def verdict(setup: str, rows: dict[str, Any]) -> str:
    """Against whom the bar is met."""
    if not (bar := SETUPS[setup].bar):
        return ""
    rivals = [(text, times) for text, _, times in beside(setup, rows) if text.startswith(("torch", "ours, full"))]
    met = [text for text, times in rivals if times >= bar]
    missed = [text for text, times in rivals if times < bar]
    found = [f"{word} against {'; '.join(texts)}" for word, texts in (("met", met), ("missed", missed)) if texts]
    return f"the bar of {bar:g} is {' and '.join(found)}. "


def dispatch_table(setups: dict[str, Any]) -> list[str]:
    """Updates in one dispatch."""
    lines = ["## Several updates a dispatch", "", "| ms an update | 1 | 10 | 20 a dispatch | 1 / best |"]
    lines += ["|---|---|---|---|---|"]
    for setup, rows in setups.items():
        times = {n: 1e3 * rows[str(n)]["update_s"] for n in SETUPS[setup].per_dispatch}
        if len(times) == 1:
            continue
        cells = [f"{times[n]:.2f}" if n in times else "" for n in (1, 10, 20)]
        best = min(time for n, time in times.items() if n > 1)
        lines.append(f"| {setup} | {' | '.join(cells)} | {times[1] / best:.2f} |")
    return lines


def seeds_table(setups: dict[str, Any]) -> list[str]:
    """Seeds trained at once, against as many runs one after the other."""
    lines = [f"## {SEEDS} seeds", "", "| ms an update of all | in turn | vmap | map | in turn / best |"]
    lines += ["|---|---|---|---|---|"]
    for setup, rows in setups.items():
        if n := SETUPS[setup].seeds_per_dispatch:
            in_turn = SEEDS * 1e3 * rows[str(n)]["update_s"]
            times = [1e3 * rows[f"{way} {n}"]["update_s"] for way in WAYS]
            cells = " | ".join(f"{time:.2f}" for time in times)
            lines.append(f"| {setup} | {in_turn:.2f} | {cells} | {in_turn / min(times):.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed; see the file's header.")
    parser.add_argument("setups", nargs="*", help=f"of {'; '.join(SETUPS)}; none = all")
    parser.add_argument("--bursts", type=int, default=BURSTS, help="of every run; medians are over all")
    parser.add_argument("--table", action="store_true", help="only rebuild the tables")
    options = parser.parse_args()
    if unknown := set(options.setups) - set(SETUPS):
        parser.error(f"no setup {', '.join(sorted(unknown))}; there are {'; '.join(SETUPS)}")
    page = HERE / "results.json"
    results = json.loads(page.read_text()) if page.exists() else {}
    if not options.table:
        with tempfile.TemporaryDirectory() as cache:  # compile times are those of a first run
            os.environ |= {"JAX_ENABLE_COMPILATION_CACHE": "0", "TORCHINDUCTOR_CACHE_DIR": cache}
            results |= measure(options.setups or list(SETUPS), options.bursts)
            page.write_text(json.dumps(results, indent=1) + "\n")
    from experiments.study import replace_between  # imports JAX, which is to be alone in the process of ours

    replace_between(HERE / "README.md", "<!-- table -->", "<!-- end of table -->", tables(results))


if __name__ == "__main__":
    main()
