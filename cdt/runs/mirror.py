"""A run's copy in an object store: each checkpoint that is committed, and the journals, go there and can come back.

The run itself lives on a file system. What is in the store is complete or invisible, as it is here: a checkpoint's
manifest is written last and removed first.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cdt import filenames
from cdt.checkpoints.checkpoint import CHECKPOINT, complete_checkpoints, damage
from cdt.cluster.nodes import mark
from cdt.config import MIRROR, RunConfig
from cdt.data.read.object_store import ObjectStore
from cdt.data.read.remote import TRIES
from cdt.errors import DamagedWarning, InputError, RunError
from cdt.files import resolved, written_aside
from cdt.retry import Retries, retried
from cdt.settings import dump_yaml, load_yaml, parse

POLL_S = 2.0
BACK_OFF_S, LONGEST_BACK_OFF_S = 1.0, 30.0


class Store:
    """The files below one URL. Each request is retried; RunError is raised when all tries have failed."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._store = ObjectStore(url.partition("://")[0])

    def names(self) -> list[str]:
        """Of all files, relative to the URL."""
        root = self._store.path(self._url)
        return sorted(name.removeprefix(f"{root}/") for name in self._ask("find", 0, self._url))

    def put(self, path: Path, name: str) -> None:
        self._ask("put_file", path.stat().st_size, str(path), f"{self._url}/{name}")

    def write(self, content: bytes, name: str) -> None:
        self._ask("pipe_file", len(content), f"{self._url}/{name}", content)

    def get(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"{self._url}/{name}"
        self._ask("get_file", self._ask("info", 0, url)["size"], url, str(path))

    def remove(self, name: str) -> None:
        self._ask("rm_file", 0, f"{self._url}/{name}")

    def _ask(self, method: str, size: int, *arguments: Any) -> Any:
        return retried(
            lambda: self._store.ask(method, size, *arguments),
            Retries(TRIES, BACK_OFF_S, LONGEST_BACK_OFF_S),
            lambda text: RunError(f"{self._url}: {text}"),
            (FileNotFoundError,),  # a checkpoint that was pruned meanwhile, here or there
        )


class Mirror:
    """The copy at ``url`` of the run in ``directory``."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.url = directory, url
        self._store, self._sent = Store(url), set[str]()

    def check_new(self) -> None:
        """Raises InputError when another run is there."""
        if self._store.names():
            raise InputError(f"run.mirror: {self.url} is not empty: choose another name, run.name=NAME")

    def check_behind(self) -> None:
        """Raises InputError when there are newer checkpoints than here: this directory is behind the run."""
        newest = max((path.name for path in self._here()), default="")
        if newer := [name for name in _complete(self._store.names()) if name > newest]:
            raise InputError(
                f"run.mirror: {self.url} has {newer[-1]}, which {self.directory} has not: go on from there, with "
                f"`cdt fetch {self.url} DIR` and `cdt resume DIR`"
            )

    def is_due(self) -> bool:
        """Whether there is a checkpoint here that is not there yet."""
        return any(path.name not in self._sent for path in self._here())

    def publish(self) -> None:
        """Uploads what the store lacks, once the run has a checkpoint.

        A damaged checkpoint is not uploaded: the store may have an intact copy. Raises RunError, also for that.
        """
        if not (here := self._here()):
            return
        self._send_files()
        damaged = []
        for path in here:
            if path.name in self._sent:
                continue
            if path.is_dir() and (problem := damage(path)):
                damaged.append(f"{path.name} is damaged: {problem}")
                self._sent.add(path.name)
                continue
            with contextlib.suppress(FileNotFoundError):  # pruned meanwhile: without its manifest it is not there
                self._send(path)
        self._send_files()
        self._prune({path.name for path in here})
        if damaged:
            raise RunError(f"{'; '.join(damaged)}; it is not uploaded")

    def _here(self) -> list[Path]:
        return complete_checkpoints(self.directory / filenames.CHECKPOINTS)

    def _send_files(self) -> None:
        for name in filenames.FILES:
            if (path := self.directory / name).is_file():
                self._store.write(_whole_lines(path), name)

    def _send(self, checkpoint: Path) -> None:
        files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != filenames.MANIFEST]
        for path in (*files, checkpoint / filenames.MANIFEST):
            self._store.put(path, path.relative_to(self.directory).as_posix())
        self._sent.add(checkpoint.name)

    def _prune(self, here: set[str]) -> None:
        names = [name.split("/") for name in self._store.names()]
        gone = [parts for parts in names if parts[0] == filenames.CHECKPOINTS and parts[1] not in here]
        for parts in sorted(gone, key=lambda parts: parts[-1] != filenames.MANIFEST):
            with contextlib.suppress(FileNotFoundError):
                self._store.remove("/".join(parts))


def _complete(names: list[str]) -> list[str]:
    """The checkpoints whose manifests are among the files, oldest first."""
    parts = [name.split("/") for name in sorted(names)]
    complete = [
        part[1]
        for part in parts
        if len(part) == 3 and part[0] == filenames.CHECKPOINTS and part[2] == filenames.MANIFEST
    ]
    return [name for name in complete if re.fullmatch(CHECKPOINT, name)]


def _is_of(name: str, checkpoints: list[str]) -> bool:
    """Whether a file belongs to one of them, and to nothing outside."""
    place, _, rest = name.partition("/")
    step, _, inner = rest.partition("/")
    return place == filenames.CHECKPOINTS and step in checkpoints and ".." not in inner.split("/")


def _whole_lines(path: Path) -> bytes:
    """A journal that is being written, without its last line if that is incomplete."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1] if path.suffix == ".jsonl" else content


@contextlib.contextmanager
def mirrored(mirror: Mirror | None, tell: Callable[[str], None]) -> Iterator[None]:
    """Publishes beside training, and at its end, whatever that is; training never waits.

    ``tell`` is called when the store fails while the run continues. Raises RunError when the end of a
    run that succeeded could not be published.
    """
    if mirror is None:
        yield
        return
    over = threading.Event()

    def publish() -> str | None:
        try:
            mirror.publish()
        except (RunError, OSError) as error:
            return str(error)
        return None

    def work() -> None:
        while not over.wait(POLL_S):
            if mirror.is_due() and (problem := publish()):
                tell(f"not mirrored, to be tried again: {problem}")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ended = False
    try:
        yield
        ended = True
    finally:
        over.set()
        thread.join()
        if problem := publish():
            tell(f"not mirrored: {problem}")
            if ended:
                raise RunError(f"{mirror.directory} is complete, but its mirror is not: {problem}")


def fetch(url: str, directory: Path) -> None:
    """Brings a mirrored run into a new directory, where it is a run like any other.

    Raises InputError when the directory exists or cannot be made, or when no run is at the URL; RunError when that
    cannot be read or is damaged.
    """
    if not re.fullmatch(MIRROR, url.rstrip("/")):
        known = "is a local path: there is nothing to download" if "://" not in url else "is no mirror of a run"
        raise InputError(f"{url!r} {known}; give the URL that the run had in run.mirror, as s3://BUCKET/runs/NAME")
    place = resolved(directory)
    if os.path.lexists(place):
        raise InputError(f"{directory} exists already: name a new directory")
    with mark(place):  # before anything is downloaded
        store = Store(url)
    names = store.names()
    kept = _complete(names)
    if filenames.CONFIG not in names or not kept:
        raise InputError(f"{url} is no mirror of a run: it has no config.yaml, or no complete checkpoint")
    with written_aside(directory) as partial:
        for name in names:
            if name in filenames.FILES or _is_of(name, kept):
                store.get(name, partial / name)
        _leave_out_damaged(partial / filenames.CHECKPOINTS, kept, url)
        tree = load_yaml(partial / filenames.CONFIG, resolved=True)
        tree["run"] = {**tree.get("run", {}), "dir": str(place.parent), "name": place.name}
        (partial / filenames.CONFIG).write_text(dump_yaml(parse(RunConfig, tree, where=url)), encoding="utf-8")


def _leave_out_damaged(checkpoints: Path, kept: list[str], url: str) -> None:
    """Removes damaged checkpoints, with a DamagedWarning for each. Raises RunError if none is intact."""
    problems = {name: problem for name in kept if (problem := damage(checkpoints / name))}
    told = [f"{url}/{filenames.CHECKPOINTS}/{name} is damaged: {problem}" for name, problem in problems.items()]
    if len(problems) == len(kept):
        raise RunError("; ".join(told))
    for name, text in zip(problems, told, strict=True):
        warnings.warn(f"{text}; it is left out", DamagedWarning, stacklevel=2)
        shutil.rmtree(checkpoints / name)
