"""Runs as jobs of a Ray cluster that this machine is not part of: submit, list, follow, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cdt.cluster.parcel import code_of_cdt, files_to_ship, packed, unpack
from cdt.cluster.ray_private import TALKATIVE
from cdt.cluster.session import passed_on
from cdt.cluster.token import NOT_LET_IN, header, keep_private
from cdt.config import RunConfig
from cdt.errors import InputError, RunError
from cdt.files import resolved
from cdt.retry import reason
from cdt.settings import apply_overrides, load_yaml, parse

ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Ray's own variable for the address of its dashboard."""
GIVE_URL = "give the URL of the cluster's dashboard, as http://127.0.0.1:8265"
MISSING = "it needs Ray's job client: pip install 'cdt-diffusion[cluster]'"
FILES = "files"
"""Folder of what is shipped, from which the command runs."""
SAVE_S = 600
"""Seconds that a stopped job has to save before it is killed."""
POLL_S = 0.5


@dataclass(frozen=True)
class Row:
    """A job, for people."""

    name: str
    status: str
    run: str
    started: float | None
    """Seconds since 1970."""
    ended: float | None


class Jobs:
    """The jobs of the cluster whose dashboard answers at ``address``."""

    def __init__(self, address: str | None) -> None:
        """Raises InputError if nothing answers there, or if it refuses this process."""
        self.address = address or os.environ.get(ADDRESS) or ""
        if not self.address.startswith(("http://", "https://")):
            given = f"--address {self.address}" if self.address else f"no --address, and no {ADDRESS}"
            raise InputError(f"{given}: {GIVE_URL}")
        keep_private()
        for logger in TALKATIVE:
            logging.getLogger(logger).setLevel(logging.WARNING)
        with self._plain_errors():
            self._client = JobSubmissionClient(self.address, headers=dict(header()))

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turns Ray's errors into ours."""
        try:
            yield
        except AuthenticationError as error:
            raise InputError(f"--address {self.address}: {NOT_LET_IN}") from error
        except ConnectionError as error:
            raise InputError(f"--address {self.address}: nothing answers there") from error
        except ValueError as error:  # of a URL that is none, or an answer that is not a dashboard's
            raise InputError(f"--address {self.address}: {reason(error)}: {GIVE_URL}") from error
        except RuntimeError as error:
            if "ray[default]" in str(error):
                raise InputError(MISSING) from error
            raise RunError(f"{self.address}: {str(error).strip().splitlines()[-1]}") from error

    def submit(self, config: Path, overrides: Sequence[str], directory: Path, wheel: Path | None = None) -> str:
        """Submits ``directory`` with the command ``cdt train CONFIG --address auto``; returns the job's id.

        Raises InputError.
        """
        entry = _relative(config, directory)
        _check(config, overrides)
        files = files_to_ship(directory)
        if entry not in files:
            raise InputError(f"{config} is not shipped: .gitignore or .rayignore excludes it")
        if wheel is not None and code_of_cdt(files):
            raise InputError(f"--wheel {wheel}: {directory} has its own cdt, which is shipped; choose one of them")
        command = ["exec", "python", "-m", "cdt", "train", str(entry), "--address", "auto", *overrides]
        name = apply_overrides(load_yaml(config), list(overrides)).get("run", {}).get("name", config.stem)
        with tempfile.TemporaryDirectory() as place, self._plain_errors():
            # Ray imports from what is shipped before all else: of that, from the root alone, where only cdt is.
            packed(directory, files, Path(place) / FILES)
            packed(directory, code_of_cdt(files), Path(place))
            if wheel is not None:
                unpack(wheel, Path(place))
            variables = {**passed_on(), "RAY_JOB_STOP_WAIT_TIME_S": str(SAVE_S), "PYTHONSAFEPATH": "1"}
            return self._client.submit_job(
                entrypoint=f"cd {FILES} && {shlex.join(command)}",
                runtime_env={"working_dir": place, "env_vars": variables},
                metadata={"cdt_run": str(name)},
            )

    def rows(self) -> list[Row]:
        """Those that were submitted, the newest first."""
        with self._plain_errors():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        rows = [
            Row(
                job.submission_id or "",
                job.status.value.lower(),
                (job.metadata or {}).get("cdt_run", job.entrypoint),
                *(None if at is None else at / 1000 for at in (job.start_time, job.end_time)),
            )
            for job in found
        ]
        return sorted(rows, key=lambda row: -(row.started or 0))

    def follow(self, name: str, say: Callable[[str], None]) -> int:
        """Passes on a job's output until it ends; returns its exit status, or 1 if it has none."""

        async def listen() -> None:
            async for text in self._client.tail_job_logs(name):
                say(text)

        with self._plain_errors():
            asyncio.run(listen())
        self._ended(name, SAVE_S)
        return self.exit_status(name)

    def exit_status(self, name: str) -> int:
        """The exit status of a job that has ended."""
        with self._plain_errors():
            job = self._client.get_job_info(name)
        return 0 if job.status == JobStatus.SUCCEEDED else job.driver_exit_code or 1

    def stop(self, name: str) -> str:
        """Makes a job save and exit; returns its final status.

        Raises InputError if the job does not exist or has ended, RunError if it does not end.
        """
        known = {row.name: row for row in self.rows()}
        if name not in known:
            raise InputError(f"no job {name}; there are: {', '.join(known) or 'none'}")
        if JobStatus(known[name].status.upper()).is_terminal():
            raise InputError(f"job {name} has ended already: {known[name].status}")
        with self._plain_errors():
            self._client.stop_job(name)
        return self._ended(name, SAVE_S + 30)

    def last_words(self, name: str) -> str:
        """The last line of a job's output."""
        with self._plain_errors():
            lines = self._client.get_job_logs(name).strip().splitlines()
        return lines[-1] if lines else ""

    def _ended(self, name: str, patience_s: float) -> str:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with self._plain_errors():
                status = self._client.get_job_status(name)
            if status.is_terminal():
                return status.value.lower()
            time.sleep(POLL_S)
        raise RunError(f"job {name} has not ended after {patience_s:.0f} s: look at it in {self.address}")


def _relative(config: Path, directory: Path) -> Path:
    try:
        return resolved(config).relative_to(resolved(directory))
    except ValueError as error:
        raise InputError(f"{config} is outside of the shipped directory {directory}: copy it there") from error


def _check(config: Path, overrides: Sequence[str]) -> None:
    """Checks what can be checked here. Paths are on the cluster, and a pretrained model is opened only there."""
    tree = apply_overrides(load_yaml(config), list(overrides))
    if "init" not in tree:
        checked = parse(RunConfig, tree, where=str(config))
        places = {"run.dir": str(checked.run.dir), "data.shards": checked.data.shards}
    else:
        sections = {name: tree.get(name) or {} for name in ("run", "data")}
        places = {
            "run.dir": str(sections["run"].get("dir", "runs")),
            "data.shards": str(sections["data"].get("shards", "")),
        }
    for setting, place in places.items():
        if not place.startswith("/") and "://" not in place:
            raise InputError(
                f"{setting}: {place} would be in the job's own temporary directory; give an absolute path that all "
                f"nodes see, as {setting}=/shared/{place}"
            )
