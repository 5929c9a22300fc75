"""The arrows of ARCHITECTURE.md: which part of cdt may import which, and that modules stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "cdt").rglob("*.py"))
MAX_LINES = 350

LEAVES = {"data", "diffusion", "networks", "judges", "constraints", "dual", "monitor"}
"""Rooms that know of no other room."""

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "schema": {"words"},
    "words": set(),
    "yaml_text": {"words"},
    "condition": set(),
    "files": set(),
    "filenames": set(),
    "records": set(),
    "retry": set(),
    "spelling": set(),
    "explain": set(),
    "settings": {"explain", "words", "yaml_text"},
    **{leaf: set() for leaf in LEAVES},
    "engine": set(),
    "evaluate": {"diffusion", "judges"},
    "checkpoints": {"engine", "networks.adapter", "data.plan.state"},
    "origin": {"checkpoints", "engine", "data", "diffusion", "networks", "config", "settings"},
    "measure": {"origin", "engine", "data", "diffusion", "judges", "constraints", "dual"},
    "training": LEAVES | {"measure", "origin", "checkpoints", "engine", "config"},
    "cluster": {"training", "checkpoints", "engine", "dual", "monitor", "config", "settings"},
    "runs": LEAVES
    | {"cluster", "training", "measure", "origin", "checkpoints", "engine", "evaluate", "config", "settings"},
    "cli": {"runs", "cluster", "data", "evaluate", "judges", "config", "diffusion.samplers"},
    "config": {
        *("data.config", "data.urls", "diffusion.config", "networks.config", "constraints", "dual", "measure.config"),
        *("origin.config", "engine.config", "training.schedule", "settings"),
    },
    "__main__": {"cli"},
    "__init__": {"config", "runs", "diffusion"},
}
"""What each part of cdt may import besides itself."""

SHARED = {"errors", "schema", "condition", "files", "filenames", "records", "retry", "spelling"}
"""What every part may import."""

OUTSIDE: dict[str, set[str]] = {
    "ray": {"cluster"},
    "deepspeed": {"engine"},
    "torch.distributed": {"engine", "cluster"},
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


INTERNALS = {
    *("cluster.ray_private", "cluster.ray_train_private", "engine.deepspeed_private", "engine.torch_private"),
    *("data.read.object_store",),
}
"""The only modules that may use what their libraries do not promise to keep."""

DOCUMENTED = {"_replace", "_current_frames"}
"""Names with an underscore that Python documents."""

UNPROMISED = {
    *("ds_numel", "ds_tensor", "ds_id", "ds_shape", "ds_status", "checkpoint_engine", "fp16_groups", "fp32_groups"),
    *("hp_fragment", "lp_fragment_address", "load_universal_checkpoint", "LossScaler", "fragment_address"),
    *("ds_to_universal", "AuthenticationTokenLoader"),
}
"""Names of Ray's and DeepSpeed's internals that have no underscore."""


def internals(path: Path, source: str) -> list[str]:
    """One line per use of another package's internals outside of the modules that are there for it."""
    if ".".join(path.with_suffix("").parts[1:]) in INTERNALS:
        return []
    tree = ast.parse(source)
    own: set[str] = set()
    used = [(line, name) for line, name in imported(tree, ".".join(path.parts[:-1])) if not within(name, {"cdt"})]
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name):
                own.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                own.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                own.add(name)
            case ast.Attribute(attr=name):
                used.append((node.lineno, name))
            case _:
                pass
    return [
        f"{path}:{line}: {name} is internal to its package: use it in one of {', '.join(sorted(INTERNALS))}"
        for line, name in sorted(used)
        if name not in own | DOCUMENTED
        and any((part.startswith("_") and not part.endswith("__")) or part in UNPROMISED for part in name.split("."))
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_internals_of_other_packages_stand_in_one_place(path: Path) -> None:
    found = internals(path.relative_to(ROOT), path.read_text())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private import worker",
        "from ray.train.torch.config import _TorchBackend",
        "def f():\n    from deepspeed.checkpoint import ds_to_universal",
        "import torch\ntorch._foreach_add_([], [])",
        "class A:\n    def f(self):\n        self.network._config.x = 1",
        "def f(weight):\n    return weight.ds_tensor",
    ],
)
def test_a_use_of_internals_is_found(source: str) -> None:
    assert len(internals(Path("cdt/training/a.py"), source)) == 1
    assert internals(Path("cdt/engine/deepspeed_private.py"), source) == []


def test_private_names_of_ones_own_are_let_pass() -> None:
    source = (
        "from cdt.a import _b\n\nclass A:\n    def f(self, other):\n        self._x = 1\n"
        "        return other._x, other._g()\n\n    def _g(self): ..."
    )
    assert internals(Path("cdt/training/a.py"), source) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        (
            "cdt/data/a.py",
            "import numpy\n\nfrom cdt.dual import step",
            "cdt/data/a.py:3: data -> dual.step; data may import",
        ),
        ("cdt/data/a.py", "def f():\n    import cdt.engine.engine", "cdt/data/a.py:2: data -> engine.engine"),
        ("cdt/data/sources/a.py", "from ...dual import step", "cdt/data/sources/a.py:1: data -> dual.step"),
        (
            "cdt/data/a.py",
            "import torch\ntorch.distributed.barrier()",
            "only cluster, engine may import torch.distributed",
        ),
        ("cdt/dual/a.py", "from torch import distributed", "only cluster, engine may import torch.distributed"),
        ("cdt/dual/a.py", "import torch.distributed as dist", "only cluster, engine may import torch.distributed"),
        ("cdt/dual/__init__.py", "import ray.train", "dual -> ray; only cluster may import ray"),
        (
            "cdt/training/step.py",
            "import deepspeed",
            "training.step -> deepspeed; only engine may import deepspeed",
        ),
        ("cdt/cluster/a.py", "from deepspeed import zero", "only engine may import"),
        ("cdt/checkpoints/a.py", "from cdt.training.step import f", "checkpoints -> training.step.f"),
        ("cdt/schema.py", "from . import config", "schema -> config"),
        ("cdt/training/a.py", "import cdt", "training -> __init__"),
        ("cdt/cli/a.py", "from tools import demo", "nothing in cdt may import tools"),
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
        ("cdt/engine/engine.py", "import deepspeed\nimport torch.distributed"),
        ("cdt/training/worker.py", "from cdt.dual import step"),
        ("cdt/cluster/coordinator.py", "import ray\nfrom cdt.dual.step import dual_step"),
        (
            "cdt/data/sources/a.py",
            "from ..format.index import Index\nfrom . import b\nfrom cdt.errors import InputError",
        ),
        ("cdt/runs/run.py", "from cdt.checkpoints import checkpoint\nfrom cdt.checkpoints.checkpoint import load"),
        ("cdt/__init__.py", "from cdt.runs.run import load\nfrom .runs.start import train"),
        ("cdt/data/a.py", "import torch\nimport rayon, toolshed\nfrom raylib import x"),
    ],
)
def test_an_arrow_is_let_pass(path: str, source: str) -> None:
    assert violations(Path(path), source) == []
