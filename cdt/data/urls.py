"""Where shards can be: local directories, URLs, and commands if they are allowed."""

from __future__ import annotations

from cdt.errors import InputError

PIPE = "pipe:"
REMOTE = ("http://", "https://", "s3://", "gs://", "hf://")
"""Where shards can be besides a local directory."""


def is_remote(place: object, allow_pipe: bool = False) -> bool:
    """Whether a place is a URL that can be read. Raises InputError for other URLs, and for commands unless allowed."""
    text = str(place)
    if text.startswith(PIPE):
        if allow_pipe:
            return True
        raise InputError(f"{text}: pipe: would run a command; data.allow_pipe: true in a configuration allows it")
    if text.startswith(REMOTE):
        return True
    if "://" in text:
        raise InputError(f"{text}: unknown kind of URL; known are {', '.join(REMOTE)}")
    return False
