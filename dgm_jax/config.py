"""Configs: ConfigDicts found by path or short name, changed by typed overrides, with durations in any unit."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

DEFAULT = "vae_digits"  # what `dgm train` runs without a config
COUNTS = (  # what a config has at least one of
    *("seeds", "data.batch", "train.per_dispatch", "train.micro", "checkpoint.keep"),
    *("eval.batch", "eval.chunk", "eval.k", "eval.test_k"),
)
NOT_NEGATIVE = (
    *("data.seed", "eval.ais", "eval.ais_examples", "eval.bdmc", "eval.impute", "eval.examples", "eval.samples"),
    "eval.metric_samples",
)
UNITS = {"step": "steps", "epoch": "epochs", "example": "examples"}


def base() -> ConfigDict:
    """What every config starts from. Durations are "500 steps", "20 epochs" or "1e6 examples"."""
    config = ConfigDict()
    config.seed = 0  # of everything that is drawn but the order of the data
    config.seeds = 1  # runs trained at once, with the seeds seed, seed + 1, ...
    config.vectorize_seeds = True  # False: in turn inside the step; faster for convolutions on the CPU, and for an HMM
    config.model = ConfigDict({"name": ""})  # + what its make() takes
    config.objective = ConfigDict({"name": ""})  # + what it takes
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3})  # + what optimizers.make takes
    config.data = ConfigDict(
        {
            "name": "digits",
            "dir": "",  # "" = $DGM_DATA_DIR, else ~/.cache/dgm_jax
            "seed": 0,  # of the order
            "batch": 100,
            "transforms": (),
            "missing": 0.0,  # share of the dimensions that are hidden, for ever, of every example
            "cond": False,  # labels go along as batch["cond"]
            "options": ConfigDict(),  # + what the source takes
            "stream": False,  # True: read ahead through grain, for what does not fit on a device
            "prefetch": 4,  # dispatches that are read ahead, each by a thread
            "workers": 0,  # processes that read instead, where decoding is work
        }
    )
    config.train = ConfigDict(
        {
            "duration": "10 epochs",
            "per_dispatch": 10,  # updates a call of the compiled step
            "micro": 1,  # gradient accumulation inside a step
            "ema": 0.0,  # decay of the averaged parameters; 0 = none
            "donate": True,  # the new State is written over the old one
            "deterministic": False,  # True: a GPU computes the same to the bit every time, and slower
        }
    )
    config.log = ConfigDict({"every": "1 epoch"})
    config.eval = ConfigDict(
        {
            "every": "0 steps",  # on the validation split; 0 = only at the end
            "batch": 200,
            "k": 1,  # importance samples of the validation bound
            "test_k": 100,  # and of the test bound
            "chunk": 10,  # of them at a time, and of the chains of AIS
            "ais": 0,  # temperatures of annealed importance sampling, at the end and in `dgm eval`; 0 = none
            "ais_start": "posterior",  # where it starts: q(z | x), or "prior"
            "ais_chains": 20,  # for each example
            "ais_leapfrog": 10,  # steps of its Hamiltonian transitions
            "ais_examples": 100,  # so many from all over the split, for it is dear; 0 = all
            "bdmc": 0,  # examples drawn from the model, on which AIS is held against its reverse; 0 = none
            "impute": 0,  # draws that fill in what is missing, at the end and in `dgm eval`; 0 = none
            "examples": 0,  # so many from all over a split; 0 = all
            "samples": 64,  # in the picture of samples
            "labels": False,  # at the end: probes of codes, and whether conditional samples show what was asked
            "ood": "",  # another data set, which scores of the model are to tell from the test split
            "metric_samples": 1000,  # samples that metrics of samples are computed from
            "sharpness": False,  # True: at the end also compare the gradient energy of samples with the data's
        }
    )
    config.checkpoint = ConfigDict(
        {
            "every": "1e5 examples",  # a kill costs at most so many; 0 = only at the end
            "keep": 2,  # of the newest
            "keep_every": 0,  # and each n-th for ever; 0 = none
            "best": "",  # and the best evaluation's by this metric, such as "valid/nll"; that one is reported
            "mode": "min",  # or "max"
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.profile = False  # True: a trace of a few early steps, in profile/ of the work directory
    config.parallel = "jit"  # over the mesh; or "pmap" over all devices, the State whole on each of them
    config.sharding = ()  # rules before the default: (("decoder/.*kernel", (None, "tensor")),); see training.parallel
    config.init_from = ""  # a work directory whose parameters a new run starts from
    config.init_partial = False  # True: it takes those that fit, and prints those that do not
    return config


def finish(config: ConfigDict, arg: str | None, **model: Any) -> ConfigDict:
    """The last line of a get_config: the config itself, or for arg "tiny" one that a smoke run ends in seconds.

    Args:
        config: the full one.
        arg: what followed the colon.
        **model: the smaller hyperparameters of the model in the tiny one.

    Raises:
        ValueError: another arg.
    """
    if arg is None:
        return config
    if arg != "tiny":
        raise ValueError(f"unknown variant {arg!r} of a config; there is :tiny")
    config.model.update(model)
    if config.data.name.startswith("codes:"):  # of the tiny first stage
        config.data.name += "_tiny"
        if "top" in config.data.options:
            config.data.options.top += "_tiny"
    config.checkpoint.best = config.checkpoint.best.replace(f"iwae_{config.eval.k}", "elbo")  # k becomes 1
    config.data.batch = 8
    config.train.update(duration="8 steps", per_dispatch=2)
    config.log.every = "4 steps"
    config.eval.update(
        every="4 steps", batch=8, k=1, test_k=4, chunk=2, examples=20, samples=4, metric_samples=20, labels=False
    )
    config.eval.impute = min(config.eval.impute, 4)
    config.checkpoint.every = "4 steps"
    if config.optimizer.name == "em":
        config.optimizer.every = "2 steps"
    return config


def check(config: ConfigDict) -> None:
    """ValueError for numbers that no run can have, before anything is computed."""
    flat = flatten(config)
    for key in COUNTS:
        if flat[key] < 1:
            raise ValueError(f"{key}={flat[key]!r}: give a whole number from 1")
    for key in NOT_NEGATIVE:
        if flat[key] < 0:
            raise ValueError(f"{key}={flat[key]!r}: give a whole number from 0")
    if not 0 <= config.train.ema < 1:
        raise ValueError(f"train.ema={config.train.ema!r}: a decay is at least 0, for no average, and below 1")
    if not all(isinstance(name, str) for name in config.data.transforms):
        raise ValueError(f"data.transforms={config.data.transforms!r}: give names, such as ('threshold',)")


def load(spec: str, overrides: Mapping[str, Any] | None = None, fill: Callable = lambda config: None) -> ConfigDict:
    """Load a config and change it.

    Args:
        spec: a path to a file with get_config(arg=None), or its short name such as "vae_digits"; ":arg" may follow.
        overrides: "a.b" -> value; a string is read as a Python literal where the field is not a string, and stays one
            if it is none where the field is None.
        fill: completes the config with defaults, between the overrides of names and all others.

    Returns:
        A locked ConfigDict.

    Raises:
        FileNotFoundError: no such config; names the near ones.
        KeyError: an override of a key that is not there; names the near ones.
        TypeError: a value of another type than the field's.
    """
    name, _, arg = spec.partition(":")
    config = module(name).get_config(arg or None)
    overrides = dict(overrides or {})
    override(config, {key: overrides.pop(key) for key in list(overrides) if key.endswith(".name")})
    fill(config)
    override(config, overrides)
    return config.lock()


def module(name: str) -> ModuleType:
    """A config's file, loaded; FileNotFoundError names the near ones."""
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"dgm_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def override(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Set dotted keys of `config` in place; errors as `load` says."""
    flat = flatten(config)
    for key, value in values.items():
        if key not in flat:
            near = difflib.get_close_matches(key, flat, n=3, cutoff=0.5)
            near += [name for name in flat if name.split(".")[-1] == key.split(".")[-1] and name not in near]
            raise KeyError(
                f"config has no {key!r}; near it: {', '.join(near[:5]) or 'nothing'} "
                f"(it has the sections {', '.join(config)})"
            )
        old = flat[key]
        if isinstance(value, str) and not isinstance(old, str):
            try:
                value = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
            except (ValueError, SyntaxError):
                if old is not None:
                    raise TypeError(f"{key}={value!r} cannot be read as {type(old).__name__}, as {old!r} is") from None
        elif isinstance(old, str):
            value = str(value)
        if isinstance(old, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if old is not None and type(value) is not type(old):
            raise TypeError(f"{key} is {type(old).__name__}, as {old!r} is; {value!r} is {type(value).__name__}")
        section, _, field = key.rpartition(".")
        target = config
        for part in section.split(".") if section else []:
            target = target[part]
        with target.unlocked():
            target[field] = value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        is_section = isinstance(value, ConfigDict | dict)
        flat |= flatten(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return flat


def with_defaults(section: ConfigDict, function: Callable, only: tuple[type, ...] = (object,)) -> None:
    """Complete a section in place with the defaults, of these types, of the function that takes it."""
    for name, parameter in inspect.signature(function).parameters.items():
        given = parameter.default is not parameter.empty and isinstance(parameter.default, only)
        if given and name not in section:
            section[name] = parameter.default


def in_steps(duration: str | int, batch: int, steps_per_epoch: int, per_dispatch: int) -> int:
    """Convert "20 epochs", "500 steps", "1e6 examples" or a number of steps to steps.

    Rounded up to whole dispatches: nothing but 0 is none.

    Raises:
        ValueError: it cannot be read, or is no length of time.
    """
    number, _, unit = str(duration).strip().partition(" ")
    unit = UNITS.get(unit.strip(), unit.strip()) or "steps"
    factors = {"steps": 1.0, "epochs": float(steps_per_epoch), "examples": 1.0 / batch}
    try:
        steps = float(number) * factors[unit]
    except (ValueError, KeyError):
        steps = math.nan
    if not 0 <= steps < math.inf:
        raise ValueError(f"cannot read the duration {duration!r}: write '500 steps', '20 epochs' or '1e6 examples'")
    whole = max(round(steps), int(steps > 0))  # 1e-9 of a step too many is no step
    return -(-whole // per_dispatch) * per_dispatch


def folder() -> Path:
    """Where the configs lie: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> dict[str, Path]:
    """Short name -> file, of the configs that come with the project."""
    return {path.stem: path for path in sorted(folder().glob("*/*.py")) if path.stem != "__init__"}


def find(name: str) -> Path:
    """A config's file, by path or short name; FileNotFoundError names the near ones."""
    path = Path(name)
    known = names()
    if path.suffix == ".py":
        for candidate in (path, folder().parent / path):
            if candidate.is_file():
                return candidate
    elif name in known:
        return known[name]
    near = difflib.get_close_matches(path.stem, known, n=3, cutoff=0.4)
    raise FileNotFoundError(f"no config {name!r}; near it: {', '.join(near) or 'nothing'}. All: {', '.join(known)}")
