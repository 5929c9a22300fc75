"""What a machine, or all nodes of a cluster, can train, and how to fix what is missing."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from cdt.cluster import node
from cdt.cluster.nodes import (
    ANSWER_S,
    Answer,
    alive,
    ask,
    here,
    mark,
    missing_tools,
    on_node,
    stale_lock,
    storage_problems,
    version_problems,
)
from cdt.cluster.session import cluster, cluster_slots, set_environment
from cdt.cluster.token import open_to_others, token_file
from cdt.errors import InputError
from cdt.files import resolved

SKEW_S = 2.0
MEMORY, DISK = 4 * 2**30, 5 * 2**30
"""Bytes below which even a small run may fail."""
SAME_VERSIONS = "install the same everywhere (tools/constraints.txt)"
OPEN_PORTS = "open the ports between the nodes (docs/launching.md has the list)"
SHARED = "use a file system that all nodes mount"
PORTS = {6379: "the head", 8265: "the dashboard"}


@dataclass(frozen=True)
class Line:
    """The result of one check."""

    what: str
    found: str
    remedy: str | None = None
    """How to fix it; None if it is fine."""

    def __str__(self) -> str:
        return f"{'ok  ' if self.remedy is None else 'TODO'} {self.what}: {self.found}" + (
            f": {self.remedy}" if self.remedy else ""
        )


def examine(address: str | None, paths: Sequence[Path] = ()) -> list[Line]:
    """Checks this machine, or the cluster at ``address``; ``paths`` are those that all nodes must see.

    Raises InputError if there is no such cluster, or for what cannot be a path.
    """
    places = {str(path): resolved(path) for path in paths}
    set_environment()
    with cluster(address):
        if address is None:
            lone = here()
            return [*machine(lone), *_ports(), *token(), *_here(places, lone)]
        return [*_together(places), *token()]


def _together(places: Mapping[str, Path]) -> Iterator[Line]:
    with contextlib.ExitStack() as stack:
        signs = {path: str(stack.enter_context(mark(place))) for path, place in places.items()}
        answers = ask(list(signs.values()))
    slots = cluster_slots()
    yield Line("cluster", f"room for {slots.count} workers: {slots}")
    differing = version_problems(answers)
    yield Line("versions", "; ".join(differing) or "the same on all nodes", SAME_VERSIONS if differing else None)
    for path, sign in signs.items():
        hidden = storage_problems(answers, {sign: path})
        yield Line("storage", "; ".join(hidden) or f"all nodes see {path}", SHARED if hidden else None)
    yield from _connections()
    for answer in answers:
        yield from machine(answer)


def machine(answer: Answer) -> Iterator[Line]:
    """The checks of one node."""
    name, facts = answer.name, answer.facts
    gpus = facts["gpus"]
    if gpus and "+cpu" in (facts["versions"]["torch"] or ""):
        yield Line(name, f"{len(gpus)} × {gpus[0]}, and a PyTorch without CUDA", "install PyTorch for CUDA")
    else:
        yield Line(name, f"{len(gpus)} × {gpus[0]}: nccl" if gpus else f"no GPU, {facts['cpus']} cores: gloo")
    yield Line(name, ", ".join(f"{package} {version}" for package, version in facts["versions"].items()))
    if not gpus:
        yield _tools(name, facts)
    memory = facts["memory"]
    if memory:
        found = f"{memory['free'] / 2**30:.1f} of {memory['all'] / 2**30:.1f} GiB of memory are free"
        yield Line(name, found, None if memory["free"] > MEMORY else "stop other processes there")
    found = f"{facts['disk'] / 2**30:.1f} GiB are free in /tmp, where Ray and the cache of shards write"
    yield Line(name, found, None if facts["disk"] > DISK else "free some disk space")
    if abs(answer.skew) > SKEW_S:
        yield Line(name, f"its clock is {answer.skew:+.0f} s off", "synchronise the clocks (chrony, systemd-timesyncd)")


def _tools(name: str, facts: Mapping[str, Any]) -> Line:
    if missing := missing_tools(facts):
        remedy = "install a C++ compiler and ninja (Debian: apt-get install g++; pip install ninja)"
        return Line(name, f"DeepSpeed cannot load its communication for CPUs without {', '.join(missing)}", remedy)
    if lock := stale_lock(facts):
        found = "a build of DeepSpeed's communication for CPUs was killed; every later one waits for it"
        return Line(name, found, f"rm {lock}")
    if facts["op"]:
        return Line(name, "DeepSpeed's communication for CPUs is built")
    remedy = "the first run does, in about 2 minutes; beforehand: python tools/prebuild_ops.py"
    return Line(name, "DeepSpeed's communication for CPUs is not built", remedy)


def token() -> Iterator[Line]:
    """The check of Ray's authentication, as this process would use it."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        yield Line("token", "RAY_AUTH_MODE switches tokens off", "unset it: anyone who reaches Ray can run anything")
    elif open_to_others():
        yield Line("token", f"others can read {token_file()}", f"chmod 600 {token_file()}")
    else:
        yield Line(
            "token", f"only its owner can read {token_file()}" if token_file().is_file() else "there is no token file"
        )


def _ports() -> Iterator[Line]:
    for port, whose in PORTS.items():
        with socket.socket() as trial:
            taken = trial.connect_ex(("127.0.0.1", port)) == 0
        remedy = f"stop the process that listens there, or give {whose} another port" if taken else None
        yield Line("ports", f"{port} ({whose}) is {'taken' if taken else 'free'}", remedy)


def _here(places: Mapping[str, Path], lone: Answer) -> Iterator[Line]:
    for path, place in places.items():
        try:
            with mark(place):
                yield Line("storage", f"{path} can be written on {lone.name}")
        except InputError as error:
            yield Line("storage", str(error), "choose another place, or change its owner")


def _connections() -> Iterator[Line]:
    """Checks that each node can connect to the next one, on a newly opened port: gloo and nccl use any port."""
    rows = alive()
    if len(rows) == 1:
        return
    cloudpickle.register_pickle_by_value(node)
    try:
        listener: Any = ray.remote(node.Listener)
        reach: Any = ray.remote(node.reach)
        for row, previous in zip(rows, [rows[-1], *rows[:-1]], strict=True):
            target, source = row["NodeManagerAddress"], previous["NodeManagerAddress"]
            listening = listener.options(**on_node(row["NodeID"])).remote()
            try:
                port = ray.get(listening.port.remote(), timeout=ANSWER_S)
                refused = ray.get(reach.options(**on_node(previous["NodeID"])).remote(target, port), timeout=ANSWER_S)
            except RayError as error:
                refused = str(error).strip().splitlines()[-1]
            finally:
                ray.kill(listening)
            found = f"{source} to {target}: {refused}" if refused else f"{source} reaches {target}"
            yield Line("network", found, OPEN_PORTS if refused else None)
    finally:
        cloudpickle.unregister_pickle_by_value(node)
