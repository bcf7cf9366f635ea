"""The command line: dgm train | eval | sample | sweep | list | verify."""

from __future__ import annotations

import argparse
import ctypes
import errno
import logging
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgm_jax import config as configs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one line on standard error."""
    set_up_process()
    options, overrides = parse(sys.argv[1:] if arguments is None else list(arguments))
    from dgm_jax.sweep import STOPPED
    from dgm_jax.training.checkpoint import CheckpointError
    from dgm_jax.training.loop import Diverged, Stopped
    from dgm_jax.workdir import WorkdirError

    try:
        return options.command(options, overrides)
    except Stopped as stop:
        print(f"{stop}; saved. The same command goes on.", file=sys.stderr)
        return STOPPED
    except (WorkdirError, CheckpointError, Diverged, KeyError, TypeError, ValueError, OSError) as error:
        if os.environ.get("DGM_TRACEBACK"):
            raise
        text = error.args[0] if isinstance(error, KeyError) else str(error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = f"{text}: free some space and give the same command; what was saved before is kept"
        print(f"dgm: {text}\n(DGM_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Split arguments into a command with its options, and overrides "a.b" -> text from --config.a.b=v."""
    parser = argparse.ArgumentParser(prog="dgm", description="Deep generative models in JAX.")
    commands = parser.add_subparsers(required=True, metavar="train | eval | sample | sweep | list | verify")

    def add(name: str, function: Any, text: str, config: bool, workdir: str | None) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(command=function)
        if config:
            command.add_argument("--config", default=configs.DEFAULT, help="path or short name, with :tiny to try")
        if workdir is not None:
            command.add_argument("--workdir", type=Path, default=None, required=workdir == "needed")
        return command

    def of_several(command: argparse.ArgumentParser) -> None:
        several = command.add_argument_group("several processes (not needed under srun, mpirun or on TPU pods)")
        several.add_argument("--coordinator", default="", help="host:port of process 0, which all can reach")
        several.add_argument("--processes", type=int, default=1)
        several.add_argument("--process", type=int, default=0, help="which one this is")

    command = add("train", train, "train; the same command again goes on", config=True, workdir="optional")
    command.add_argument("--dry_run", action="store_true", help="show the run; train nothing")
    of_several(command)
    command = add("eval", evaluate, "evaluate a trained run", config=False, workdir="needed")
    command.add_argument("--split", default="test")
    of_several(command)
    command = add("sample", sample, "draw from a trained run", config=False, workdir="needed")
    command.add_argument("--n", type=int, default=64)
    command.add_argument("--cond", type=int, default=None, help="class label")
    command.add_argument("--temperature", type=float, default=1.0)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, default=None, help=".png or .npz; WORKDIR/samples/samples.png")
    of_several(command)
    add("sweep", sweep, "run all points of a config's sweep()", config=True, workdir="optional")
    add("list", list_zoo, "the zoo with its capabilities, and the configs", config=False, workdir=None)
    add(
        "verify",
        verify,
        "prove a config's model and objective right, at a small size",
        config=True,
        workdir=None,
    )

    options, rest = parser.parse_known_args(arguments)
    overrides = {}
    for text in rest:
        key, equals, value = text.partition("=")
        if not key.startswith("--config.") or not equals:
            parser.error(f"unknown argument {text!r}; a config's fields are set by --config.section.field=value")
        overrides[key.removeprefix("--config.")] = value
    return options, overrides


def train(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """`dgm train`."""
    from dgm_jax import api, report
    from dgm_jax.training import processes
    from dgm_jax.training.loop import Stopped

    processes.join(options.coordinator, options.processes, options.process)
    config = api.load_config(options.config, overrides)
    if options.dry_run:
        print(api.describe(config))
        return 0
    workdir = options.workdir or default_workdir(options.config)
    complete = (workdir / "result.json").exists()
    try:
        result = api.train(config, workdir, quiet=not processes.is_main())
    except Exception as error:
        if isinstance(error, Stopped) or processes.is_alone():
            raise
        traceback.print_exc()
        os._exit(1)  # ending in order, it would wait for the other processes, and they for it
    if not processes.is_main():
        return 0
    if complete:
        print(f"{workdir} was complete; nothing was trained", file=sys.stderr)
    print(f"{workdir / 'result.json'}:")
    for name, metric in result["metrics"].items():
        print("  " + report.show_metric(name, metric))
    return 0


def default_workdir(spec: str, *more: str) -> Path:
    """Where a config runs if nobody says where: its name, the variant after the colon, and `more`."""
    name, _, variant = spec.partition(":")
    return Path("runs") / "_".join([Path(name).stem, *filter(None, [variant]), *more])


def evaluate(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """`dgm eval`."""
    from dgm_jax import api, report
    from dgm_jax.training import processes

    processes.join(options.coordinator, options.processes, options.process)
    metrics = api.evaluate(options.workdir, options.split, overrides)
    for name, metric in metrics.items() if processes.is_main() else ():
        print(report.show_metric(f"{options.split}/{name}", metric))
    return 0


def sample(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """`dgm sample`."""
    from dgm_jax import api
    from dgm_jax.training import processes

    if overrides:
        raise ValueError("dgm sample takes the config of the work directory; it has no --config fields")
    processes.join(options.coordinator, options.processes, options.process)
    out = options.out or options.workdir / "samples" / "samples.png"
    api.save_samples(options.workdir, out, options.n, options.cond, options.temperature, options.seed)
    if processes.is_main():
        print(out)
    return 0


def sweep(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """`dgm sweep`."""
    from dgm_jax import sweep as sweeps

    folder = options.workdir or default_workdir(options.config, "sweep")
    try:
        pages = sweeps.sweep(options.config, folder, overrides)
    except KeyboardInterrupt as stop:
        print(f"{stop}. The same command goes on.", file=sys.stderr)
        return sweeps.STOPPED
    print((folder / "README.md").read_text(), end="")
    return 1 if any("error" in page for page in pages) else 0


def list_zoo(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """`dgm list`."""
    from dgm_jax import api

    print(api.list_zoo())
    return 0


def verify(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """`dgm verify`."""
    from dgm_jax import api, verification

    checks = verification.verify(api.load_config(options.config, overrides))
    print(verification.table(checks))
    return 1 if any(check.ok is False for check in checks) else 0


def set_up_process() -> None:
    """What a process is set to before JAX computes, which importing the package never does."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "dgm_jax" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax  # it reads the environment once, which may have been before

    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of every checkpoint that was not evaluated
    if platform.libc_ver()[0] == "glibc":
        # else large temporaries go back to the system and are faulted in again at every step
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-3, 1 << 30), (-1, 2**31 - 1), (-2, 1 << 26)):
            libc.mallopt(parameter, value)


if __name__ == "__main__":
    sys.exit(main())
