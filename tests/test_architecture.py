"""The arrows of ARCHITECTURE.md: which part of cdt may import which, and that modules stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "cdt").rglob("*.py"))
MAX_LINES = 350

TRAINING = {"data", "diffusion", "networks", "judges", "constraints", "dual", "monitor"}
PACKAGES = TRAINING | {"training", "cluster", "evaluate"}

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "schema": set(),
    "explain": set(),
    "parser": set(),
    "presence": set(),
    "settings": {"explain"},
    **{leaf: set() for leaf in TRAINING},
    "training": TRAINING | {"config", "settings"},
    "cluster": {"training", "dual", "monitor", "config", "settings"},
    "evaluate": {"data", "diffusion", "networks", "judges"},
    "config": PACKAGES | {"settings"},
    "export": {"diffusion", "networks", "monitor"},
    "run": {
        "config",
        "settings",
        "data",
        "diffusion",
        "networks",
        "export",
        "evaluate",
        "monitor",
        "training.checkpoint",
    },
    "output": {"data", "monitor"},
    "measure": {"run", "data", "diffusion", "constraints", "judges", "evaluate", "training.pretrained"},
    "dryrun": {"config", "settings", "constraints", "start", "training"},
    "mirror": {"config", "settings", "data.remote", "training.checkpoint"},
    "start": {"config", "settings", "data", "run", "presence", "mirror", "monitor", "training", "cluster"},
    "status": {"run", "presence", "monitor", "dual", "training.checkpoint"},
    "__main__": {"cli"},
    "cli": PACKAGES
    | {"parser", "config", "settings", "export", "run", "start", "dryrun", "output", "measure", "mirror", "status"},
    "__init__": PACKAGES | {"config", "run", "start", "measure"},
}
"""What each part of cdt may import besides itself."""

SHARED = {"errors", "schema"}
"""What every part may import."""

OUTSIDE: dict[str, set[str]] = {
    "ray": {"cluster"},
    "deepspeed": {"training.engine", "training.deepspeed_files"},
    "torch.distributed": {"training", "cluster"},
    "tools": set(),
    "tests": set(),
}
"""The only parts that may import these modules from outside of cdt."""


def imported(tree: ast.Module, package: str) -> list[tuple[int, str]]:
    """(line, dotted name) of all that a module of ``package`` imports, inside functions too.

    ``from a import b`` is ``a.b``, and ``torch.distributed`` counts where it is used without an import of its own.
    """
    names: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names += [(node.lineno, alias.name) for alias in node.names]
            case ast.ImportFrom():
                parents = package.split(".")[: -node.level + 1 or None] if node.level else []
                module = ".".join([*parents, *([node.module] if node.module else [])])
                names += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
            case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
                names.append((node.lineno, "torch.distributed"))
    return sorted(set(names))


def within(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def violations(path: Path, source: str) -> list[str]:
    """One line per import of ``path`` (relative to the repository) that is no arrow of the architecture."""
    parts = path.with_suffix("").parts
    module = ".".join(parts[1:]).removesuffix(".__init__")
    unit = parts[1]
    if unit not in ARROWS:
        return [f"{path}: cdt.{unit} has no arrows: declare in ARROWS what it may import"]
    found = []
    for line, name in imported(ast.parse(source), ".".join(parts[:-1])):
        if within(name, {"cdt"}):
            allowed = ARROWS[unit] | SHARED
            target = name.removeprefix("cdt").removeprefix(".") or "__init__"
            if not within(target, allowed | {unit}):
                found.append(f"{path}:{line}: {unit} -> {target}; {unit} may import {', '.join(sorted(allowed))}")
        for restricted, owners in OUTSIDE.items():
            if within(name, {restricted}) and not within(module, owners):
                only = f"only {', '.join(sorted(owners))} may" if owners else "nothing in cdt may"
                found.append(f"{path}:{line}: {module} -> {restricted}; {only} import {restricted}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    found = violations(path.relative_to(ROOT), path.read_text())
    assert not found, "\n".join(found)


def test_modules_are_small() -> None:
    long = {
        str(path.relative_to(ROOT)): n for path in MODULES if (n := len(path.read_text().splitlines())) >= MAX_LINES
    }
    assert not long, f"{MAX_LINES} lines or more: {long}; split by what the parts are about"


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        (
            "cdt/data/a.py",
            "import numpy\n\nfrom cdt.dual import step",
            "cdt/data/a.py:3: data -> dual.step; data may import",
        ),
        ("cdt/data/a.py", "def f():\n    import cdt.training.engine", "cdt/data/a.py:2: data -> training.engine"),
        ("cdt/data/sources/a.py", "from ...dual import step", "cdt/data/sources/a.py:1: data -> dual.step"),
        (
            "cdt/data/a.py",
            "import torch\ntorch.distributed.barrier()",
            "only cluster, training may import torch.distributed",
        ),
        ("cdt/dual/a.py", "from torch import distributed", "only cluster, training may import torch.distributed"),
        ("cdt/dual/a.py", "import torch.distributed as dist", "only cluster, training may import torch.distributed"),
        ("cdt/dual/__init__.py", "import ray.train", "dual -> ray; only cluster may import ray"),
        (
            "cdt/training/step.py",
            "import deepspeed",
            "training.step -> deepspeed; only training.deepspeed_files, training.engine may import deepspeed",
        ),
        ("cdt/cluster/a.py", "from deepspeed import zero", "only training.deepspeed_files, training.engine may import"),
        ("cdt/run.py", "from cdt.training.engine import Engine", "run -> training.engine.Engine"),
        ("cdt/schema.py", "from . import config", "schema -> config"),
        ("cdt/training/a.py", "import cdt", "training -> __init__"),
        ("cdt/cli.py", "from tools import demo", "nothing in cdt may import tools"),
        ("cdt/new.py", "", "cdt/new.py: cdt.new has no arrows"),
    ],
)
def test_a_violation_is_found(path: str, source: str, expected: str) -> None:
    found = violations(Path(path), source)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cdt/training/engine.py", "import deepspeed\nimport torch.distributed\nfrom cdt.dual import step"),
        ("cdt/cluster/coordinator.py", "import ray\nfrom cdt.dual.step import dual_step"),
        ("cdt/data/sources/a.py", "from ..index import Index\nfrom . import b\nfrom cdt.errors import InputError"),
        ("cdt/run.py", "from cdt.training import checkpoint\nfrom cdt.training.checkpoint import load"),
        ("cdt/__init__.py", "from cdt.run import load\nfrom .run import train"),
        ("cdt/data/a.py", "import torch\nimport rayon, toolshed\nfrom raylib import x"),
    ],
)
def test_an_arrow_is_let_pass(path: str, source: str) -> None:
    assert violations(Path(path), source) == []
