"""Ray's token: its holder can run anything on the cluster. It is never printed; only its owner can read its file."""

from __future__ import annotations

import os
from pathlib import Path

from cdt.cluster.ray_private import token_header
from cdt.errors import InputError

NOT_LET_IN = (
    "the cluster requires a token that this process does not have: set RAY_AUTH_MODE=token and put the cluster's token "
    "into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
)


def token_file() -> Path:
    """The file in which Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def header() -> tuple[tuple[str, str], ...]:
    """The header of a request to Ray; empty without a token, or if tokens are switched off."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ()
    return tuple(token_header().items())


def open_to_others() -> bool:
    """Whether anyone but its owner may read or change the token's file."""
    path = token_file()
    return path.is_file() and bool(path.stat().st_mode & 0o077)


def keep_private() -> None:
    """Makes the token's file readable only by its owner; Ray writes it readable by everyone.

    Raises InputError if that is not allowed.
    """
    if open_to_others():
        try:
            token_file().chmod(0o600)
        except OSError as error:
            raise InputError(
                f"{token_file()}: others can read Ray's token, and it cannot be changed here ({error.strerror}): "
                f"chmod 600 {token_file()}"
            ) from error
