"""Training speed: several updates a dispatch, several seeds at once, and ours against PyTorch.

python experiments/bench/run.py            measures: minutes on a quiet machine; needs the extra `bench`
python experiments/bench/run.py --table    writes README.md's tables anew from results.json

Ours runs in one process, PyTorch in one for every number of threads, and only one of them computes at a time. The
runs of a setup take turns in short bursts, so that the machine's drift hits all alike.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from setups import SETUPS, Run, runs_of

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
        if verb == "make":
            run, reference = arguments
            advance[run], *answer = host.make(run, reference)
        elif verb == "time":
            answer = burst(advance[arguments[0]])
        elif verb == "drop":
            answer = advance.clear()
        else:
            answer = getattr(host, verb)(*arguments)
        connection.send(answer)


def burst(advance: Callable[[], Any]) -> list[float]:
    """Seconds of dispatches one after the other."""
    seconds: list[float] = []
    began = mark = time.perf_counter()
    while len(seconds) < WARM + COUNTED or mark - began < BURST_S:
        advance()
        seconds.append(time.perf_counter() - mark)
        mark += seconds[-1]
    return seconds[WARM:]


class Host:
    """The other end of `serve`."""

    def __init__(self, module: str, threads: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, module, threads), daemon=True).start()

    def ask(self, verb: str, *arguments: Any) -> Any:
        """What the process answers."""
        self.connection.send((verb, *arguments))
        return self.connection.recv()


def measure(bursts: int) -> dict[str, Any]:
    """The content of results.json."""
    os.environ |= {"JAX_ENABLE_COMPILATION_CACHE": "0", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    cores = len(os.sched_getaffinity(0))
    hosts = {0: Host("ours")} | {threads: Host("torch_rivals", threads) for threads in sorted({1, cores})}
    results: dict[str, Any] = {
        "environment": hosts[0].ask("environment") | hosts[cores].ask("environment"),
        "load": os.getloadavg()[0],
        "setups": {},
    }
    for setup in SETUPS:
        runs = runs_of(setup, cores)
        reference = hosts[0].ask("trajectory", setup, PARITY_STEPS) if SETUPS[setup].bar else None
        rows = {}
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
        for host in hosts.values():
            host.ask("drop")
        for run in runs:
            low, median, high = np.percentile(np.array(seconds[run]) / run.per_dispatch, [25, 50, 75])
            rows[run] |= {"update_s": median, "quartiles": [low, high], "n": len(seconds[run])}
            print(f"{setup:20} {run.name:18} {1e3 * median:9.3f} ms  {rows[run]['compile_s']:6.2f} s", flush=True)
        results["setups"][setup] = {run.name: rows[run] for run in runs}
    return results
