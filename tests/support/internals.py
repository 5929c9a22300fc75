"""Whether a library still has what cdt uses of its internals."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path


def missing(package: str, path: str, purpose: str) -> str | None:
    """What is wrong when ``path``, a dotted name of ``package``, cannot be imported any more; None when it can."""
    parts, found, depth = path.split("."), None, 0
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:depth]))
            break
        except ModuleNotFoundError:
            continue
    for name in parts[depth:]:
        if not hasattr(found, name):
            return _gone(package, path, purpose)
        found = getattr(found, name)
    return None


def missing_in_source(package: str, file: str, name: str, purpose: str) -> str | None:
    """The same for a name that only exists on objects: whether that file of the package defines or uses it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / file
    known = path.is_file() and name in _names(path)
    return None if known else _gone(package, f"{name} in {package}/{file}", purpose)


def _gone(package: str, what: str, purpose: str) -> str:
    version = importlib.metadata.version(package)
    return f"{package} {version} has no {what} any more, which cdt uses to {purpose}"


@cache
def _names(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Attribute(attr=name) | ast.Name(id=name):
                found.add(name)
            case ast.Constant(value=str() as name):  # getattr, hasattr, and gRPC's names
                found.add(name)
            case _:
                pass
    return frozenset(found)


def private_imports(path: Path, package: str) -> set[str]:
    """All that a module of ours imports of the internals of a package, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if is_private(name)}


def is_private(name: str) -> bool:
    """Whether a dotted name has a part that begins with an underscore."""
    return any(part.startswith("_") for part in name.split(".") if not part.endswith("__"))
