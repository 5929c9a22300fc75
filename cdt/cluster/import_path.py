"""From where the workers import: from where this process does, and from nowhere else."""

from __future__ import annotations

import sys
import sysconfig
from itertools import takewhile
from pathlib import Path


def own_path() -> list[str]:
    """The absolute entries of this process's import path in front of the standard library.

    That is the command's own directory, and PYTHONPATH. Ray would put the current directory first. Then any file there
    with the name of a module takes that module's place.
    """
    library = Path(sysconfig.get_path("stdlib"))
    archive = library.parent / f"python{sysconfig.get_config_var('py_version_nodot')}.zip"
    found = takewhile(lambda entry: entry not in (str(library), str(archive)), sys.path)
    return [str(Path(entry).absolute()) for entry in found]
