"""A work directory: it belongs to one resolved config, which lies in its config.json, and to one process at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dgm_jax import config as configs
from dgm_jax import zoo
from dgm_jax.report import write_json

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

# beginnings of fields that say where and how a run is computed, and not what: it may go on with others
ANYWHERE = (
    *("data.dir", "data.options.tfds_dir", "data.stream", "data.prefetch", "data.workers"),
    *("mesh.", "sharding", "profile", "train.donate", "train.deterministic"),
    *("eval.batch", "eval.chunk", "vectorize_seeds"),
    *("checkpoint.every", "checkpoint.keep"),  # the best is that of all evaluations, whatever these say
    *("checkpoint.best", "checkpoint.mode"),  # what the run reports of the checkpoints that it has
)


class WorkdirError(ValueError):
    """The work directory holds another run, or one that is running."""


def check(workdir: Path, config: ConfigDict) -> None:
    """Nothing, where a work directory is new or holds this very run, wherever it was computed.

    Raises:
        WorkdirError: says what differs.
    """
    page = workdir / "config.json"
    if not page.exists():
        return
    there = as_json(from_json(json.loads(page.read_text())))
    old, new = (configs.flatten(c) for c in (there, as_json(config)))
    different = [key for key in sorted(old | new) if old.get(key) != new.get(key) and not key.startswith(ANYWHERE)]
    if different:
        lines = "\n".join(f"  {key}: {old.get(key)!r} there, {new.get(key)!r} asked for" for key in different)
        raise WorkdirError(
            f"{workdir} holds another run; nothing was changed. They differ in\n{lines}\nGive another --workdir."
        )


def claim(workdir: Path, config: ConfigDict) -> None:
    """Write config.json into a work directory that is held; into that of this very run, where and how it goes on.

    Raises:
        WorkdirError: as `check`.
    """
    check(workdir, config)
    page = workdir / "config.json"
    if not page.exists() or json.loads(page.read_text()) != as_json(config):
        write_json(page, as_json(config))


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a work directory for the time of a block; a killed process lets go of it too.

    Raises:
        WorkdirError: another process is running there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirError(f"another process is running in {workdir}: wait for it, or stop it first") from None
        except OSError:  # a file system without locks
            pass
        yield


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON holds it: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(page: Mapping[str, Any]) -> ConfigDict:
    """A resolved config from its page: lists become tuples, and fields that it is too old for get their defaults."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(v) for name, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    given, default = tuples(page), configs.base().to_dict()
    own = ("model", "objective", "optimizer")  # `zoo.fill` knows what these have
    sections = {
        name: default[name] | value if isinstance(value, dict) and name not in own else value
        for name, value in given.items()
    }
    config = ConfigDict(default | sections)
    zoo.fill(config, known=False)
    return config
