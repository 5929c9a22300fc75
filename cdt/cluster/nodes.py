"""The nodes of a Ray cluster: their facts, and whether they can train one run together."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cdt.cluster import node
from cdt.engine.await_build import BUILD_S
from cdt.errors import InputError, RunError
from cdt.spelling import first_few

ANSWER_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One node's ``node.facts``."""

    address: str
    facts: Mapping[str, Any]
    node_id: str = ""
    skew: float = 0.0
    """Seconds by which its clock is ahead of ours, beyond what the time taken by the answer explains."""

    @property
    def name(self) -> str:
        # Several nodes can share a machine.
        return f"{self.address} ({', '.join(filter(None, (self.facts['host'], self.node_id[:6])))})"

    def sentence(self) -> str:
        """One line for events.jsonl."""
        versions = ", ".join(f"{package} {version}" for package, version in self.facts["versions"].items())
        gpus = self.facts["gpus"]
        accelerators = f"{len(gpus)} × {gpus[0]}" if gpus else "no GPU"
        git = f", git {self.facts['git']}" if self.facts["git"] else ""
        return f"{self.name}: {self.facts['cpus']} cores, {accelerators}; {versions}{git}"

    def recorded(self) -> dict[str, Any]:
        """Details for events.jsonl."""
        kept = ("host", "versions", "source", "git", "environment", "platform", "cpus", "gpus", "memory")
        return {"address": self.address, "node": self.node_id, **{name: self.facts[name] for name in kept}}


def alive() -> list[dict[str, Any]]:
    """Ray's rows of the nodes that are alive, this process's own first."""
    here = ray.get_runtime_context().get_node_id()
    return sorted((row for row in ray.nodes() if row["Alive"]), key=lambda row: row["NodeID"] != here)


def on_node(node_id: str) -> dict[str, Any]:
    """Options of a task or actor that takes no resources and stays on one node."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)}


def ask(paths: Sequence[str] = ()) -> list[Answer]:
    """The answers of all nodes that are alive, this process's own first.

    Raises RunError if one does not answer.
    """
    cloudpickle.register_pickle_by_value(node)
    try:
        remote: Any = ray.remote(node.facts)
        asked = time.time()
        sent = [(row, remote.options(**on_node(row["NodeID"]), max_retries=0).remote(list(paths))) for row in alive()]
        answers = [_answer(row, reference, asked) for row, reference in sent]
        return [answer for answer in answers if answer is not None]
    finally:
        cloudpickle.unregister_pickle_by_value(node)


def _answer(row: Mapping[str, Any], reference: Any, asked: float) -> Answer | None:
    """None from a node that died meanwhile: Ray notices after some seconds."""
    address = row["NodeManagerAddress"]
    try:
        facts: dict[str, Any] = ray.get(reference, timeout=ANSWER_S)
    except GetTimeoutError as error:
        raise RunError(f"node {address} did not answer within {ANSWER_S:.0f} s: look at its Ray logs") from error
    except RayError as error:
        if row["NodeID"] not in [other["NodeID"] for other in alive()]:
            return None
        raise RunError(f"node {address} cannot run a task: {str(error).strip().splitlines()[-1]}") from error
    ahead, behind = max(0.0, facts["time"] - time.time()), max(0.0, asked - facts["time"])
    return Answer(address, facts, row["NodeID"], ahead - behind)


def here() -> Answer:
    """This machine's answer, without Ray."""
    return Answer("this machine", node.facts())


def version_problems(answers: Sequence[Answer]) -> list[str]:
    """One line per package that differs between nodes or is missing; cdt's own modules are compared by contents."""
    facts = {answer.name: answer.facts for answer in answers}
    columns = {
        package: {name: theirs["versions"][package] for name, theirs in facts.items()}
        for package in ("python", *node.PACKAGES)
    }
    sources = {name: theirs["source"] for name, theirs in facts.items()}
    if None not in sources.values():  # a missing cdt is reported above
        columns["the source of cdt"] = sources
    return [line for package, values in columns.items() if (line := _differing(package, values))]


def _differing(what: str, values: Mapping[str, str | None]) -> str | None:
    if len(set(values.values())) == 1 and None not in values.values():
        return None
    nodes = {value: [name for name, theirs in values.items() if theirs == value] for value in values.values()}
    found = [f"{value or 'missing'} on {first_few(names)}" for value, names in nodes.items()]
    return f"{what} is {', '.join(found)}"


def check_versions(answers: Sequence[Answer]) -> None:
    """Raises InputError that names the packages and the nodes."""
    if problems := version_problems(answers):
        raise InputError(
            f"the nodes do not have the same versions: {'; '.join(problems)}; install the same everywhere "
            "(tools/constraints.txt)"
        )


def storage_problems(answers: Sequence[Answer], labels: Mapping[str, str]) -> list[str]:
    """One line per path (with its label) that another node sees differently from the first."""
    first, *others = answers
    problems = []
    for path, label in labels.items():
        mine = first.facts["paths"][path]
        theirs = {other.name: other.facts["paths"][path] for other in others}
        odd = [f"{answer} on {name}" for name, answer in theirs.items() if answer != mine]
        if odd:
            problems.append(f"{label}: {path} is {mine} on {first.name}, {first_few(odd)}")
    return problems


def check_storage(answers: Sequence[Answer], labels: Mapping[str, str]) -> None:
    """Raises InputError with the nodes' answers."""
    if problems := storage_problems(answers, labels):
        raise InputError(
            f"not all nodes see the same storage: {'; '.join(problems)}; use a file system that all of them mount"
        )


def check_cuda(answers: Sequence[Answer]) -> None:
    """Raises InputError where Ray counts GPUs that torch cannot use."""
    if blind := [answer.name for answer in answers if answer.facts["gpus"] and answer.facts["cuda"] is None]:
        raise InputError(
            f"torch is built for CPUs on {first_few(blind)}, which has GPUs: install torch with CUDA, or train on CPUs "
            "with `ray start --num-gpus=0`"
        )


def check_tools(answers: Sequence[Answer]) -> None:
    """Checks that DeepSpeed can load its communication for CPUs (by ninja) or build it (by a compiler).

    Raises InputError if a tool is missing, or if a build was killed.
    """
    remedies = {"ninja": "pip install ninja"}
    problems = []
    for answer in answers:
        for tool in missing_tools(answer.facts):
            remedy = remedies.get(tool, "install a C++ compiler (Debian: apt-get install g++)")
            problems.append(f"{tool} is missing on {answer.name}: {remedy}")
        if lock := stale_lock(answer.facts):
            problems.append(f"a build was killed on {answer.name} and has left a lock: rm {lock}")
    if problems:
        raise InputError(f"DeepSpeed cannot load its communication for CPUs: {'; '.join(problems)}")


def stale_lock(facts: Mapping[str, Any]) -> str | None:
    """The lock of a build that was killed, for which every later one would wait; None where workers use GPUs."""
    if uses_gpus(facts) or facts["lock"] is None:
        return None
    lock, seconds = facts["lock"]
    return lock if seconds > BUILD_S else None


def uses_gpus(facts: Mapping[str, Any]) -> bool:
    """Whether a node has GPUs that its torch can use."""
    return bool(facts["gpus"]) and facts["cuda"] is not None


def missing_tools(facts: Mapping[str, Any]) -> list[str]:
    """The tools that a node lacks for training on its CPUs; empty if workers use its GPUs."""
    compiled = {"ninja": facts["tools"]["ninja"]} if facts["op"] else facts["tools"]
    return [] if uses_gpus(facts) else [tool for tool, found in compiled.items() if found is None]


def check_nodes(directory: Path, paths: Mapping[str, str]) -> list[Answer]:
    """The answers of this machine, or of the nodes of the connected cluster, which together can train a run.

    The run will be in ``directory`` and needs ``paths`` (with their labels).

    Raises InputError with what is missing or differs between nodes.
    """
    if not ray.is_initialized() or len(alive()) == 1:
        answers = [here()]
        check_tools(answers)
        return answers
    try:
        with mark(directory) as sign:
            answers = ask([*paths, str(sign)])
    except InputError as error:
        raise InputError(f"run.dir: {error}") from error
    check_versions(answers)
    check_storage(answers, {**paths, str(sign): "run.dir"})
    check_cuda(answers)
    check_tools(answers)
    return answers


def tell_nodes() -> list[Answer]:
    """The answers of the connected cluster's nodes, or of this machine if there is only one."""
    return ask() if len(alive()) > 1 else [here()]


@contextlib.contextmanager
def mark(directory: Path) -> Iterator[Path]:
    """A file that distinguishes this directory from others with its name, in its nearest parent that exists.

    Raises InputError if nothing can be written there.
    """
    place = directory
    try:
        place = next(parent for parent in (directory, *directory.parents) if parent.exists())
        sign = place / f".cdt-{uuid.uuid4().hex}"
        sign.write_text(sign.name)
    except OSError as error:
        raise InputError(f"cannot write in {place}: {error.strerror}") from error
    try:
        yield sign
    finally:
        sign.unlink(missing_ok=True)
