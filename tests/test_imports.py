"""Imports run one way (rule 11 of the design), and importing changes nothing of the process (rule 12)."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dgm_jax"
BASE = {"types", "numerics"}
LOW = BASE | {"distributions", "bijectors", "nets"}
ALL = {path.stem for path in PACKAGE.iterdir()} - {"__pycache__"}
# part of the package -> what of the package it may import, besides itself
MAY_IMPORT = {
    "types": set(),
    "numerics": {"types"},
    "distributions": BASE,
    "bijectors": BASE,
    "nets": BASE,
    "data": BASE,
    "inference": LOW,
    "models": LOW | {"inference"},
    "objectives": LOW | {"inference", "training.learners"},
    "training": BASE,
    "evaluation": LOW | {"inference", "data"},
    "tasks": LOW | {"inference", "data", "evaluation"},
    "config": set(),
    "zoo": BASE | {"config", "data", "models", "objectives", "training"},
    "verification": LOW | {"inference", "data", "training", "zoo"},
    "report": set(),
    "sweep": {"config", "report", "training"},
    "runs": LOW | {"config", "data", "training", "zoo"},
    "workdir": {"config", "report", "zoo"},
    "scoring": LOW | {"data", "evaluation", "inference", "runs", "tasks", "training"},
    "loading": LOW | {"config", "data", "evaluation", "runs", "training", "workdir", "zoo"},
    "two_stage": LOW | {"data", "evaluation", "loading", "runs", "training"},
    "pictures": LOW | {"data", "evaluation", "runs", "tasks", "training.parallel", "training.processes"},
    "api": ALL - {"cli", "__main__"},
    "cli": ALL - {"__main__"},
    "__main__": {"cli"},
    "__init__": {"types"},
}


def imports(path):
    """The dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, allowed):
    return any(f"{name}.".startswith(f"dgm_jax.{part}.") for part in allowed)


@pytest.mark.parametrize("part", sorted(ALL))
def test_imports_run_one_way(part):
    assert part in MAY_IMPORT, f"a new part of the package: say in MAY_IMPORT what {part!r} may import"
    files = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else sorted((PACKAGE / part).rglob("*.py"))
    allowed = MAY_IMPORT[part] | {part}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files
        for name in imports(path)
        if name.split(".")[0] in ("experiments", "tests", "configs")
        or (name.split(".")[0] == "dgm_jax" and name != "dgm_jax" and not within(name, allowed))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_import_would_be_seen(tmp_path):
    file = tmp_path / "made.py"
    file.write_text("def f():\n    from dgm_jax.objectives import likelihood\n")
    (name,) = imports(file)
    assert name == "dgm_jax.objectives.likelihood"
    assert not within(name, MAY_IMPORT["models"] | {"models"})
    assert not within("dgm_jax.training.loop", MAY_IMPORT["objectives"])
    assert within("dgm_jax.training.learners.per_example", MAY_IMPORT["objectives"])


SNAPSHOT = """
import importlib, json, logging, os, pkgutil, random, signal, sys, warnings
import jax, numpy as np

def state():
    return {
        "environment": dict(os.environ),
        "jax": {name: str(value) for name, value in jax.config.values.items()},
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)],
        "warnings": len(warnings.filters),
        "logging": [logging.getLogger().level, len(logging.getLogger().handlers)],
        "random": [hash(random.getstate()), hash(np.random.get_state()[1].tobytes())],
        "numpy": np.geterr(),
        "path": sys.path,
        "folder": os.getcwd(),
        "backend": sys.modules["matplotlib"].get_backend() if len(sys.argv) > 1 else "",
    }

for name in json.loads(sys.stdin.read()):  # third parties do as they please
    importlib.import_module(name)
before = state()
import dgm_jax
for module in pkgutil.walk_packages(dgm_jax.__path__, "dgm_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = state()
changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
jax.config.update("jax_num_cpu_devices", 3)  # raises once devices are in use
print(json.dumps(changed), jax.device_count())
"""


@pytest.mark.slow
def test_importing_changes_nothing(tmp_path):
    names = {name for path in PACKAGE.rglob("*.py") for name in third_parties(path)}
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGE.parent), "HOME": str(tmp_path)}
    environment |= {"JAX_PLATFORMS": "cpu", "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT],
        input=json.dumps(sorted(names)),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "{} 3"
    assert not [path.name for path in tmp_path.iterdir() if "dgm" in path.name]


@pytest.mark.parametrize("first", ["import jax", ""])
def test_programs_are_cached_whatever_is_imported_first(first, tmp_path):
    program = f"""
{first}
from dgm_jax import cli
cli.set_up_process()
import jax
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGE.parent), "HOME": str(tmp_path)}
    found = subprocess.check_output([sys.executable, "-c", program], text=True, env=environment)
    assert found.strip() == f"{tmp_path / '.cache' / 'dgm_jax' / 'xla'} 0.5"


def third_parties(path):
    """The modules from elsewhere that a file imports at its top."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if not alias.name.startswith("dgm_jax"))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("dgm_jax"):
            yield node.module
