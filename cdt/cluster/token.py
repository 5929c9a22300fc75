"""Ray's token: who has it can run anything on the cluster. It is never printed; its file is its owner's alone."""

from __future__ import annotations

import os
from pathlib import Path

from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue] (compiled)

from cdt.errors import InputError

NOT_LET_IN = (
    "the cluster wants a token that this process does not have: set RAY_AUTH_MODE=token and put the cluster's own into "
    "~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
)


def token_file() -> Path:
    """Where Ray looks for it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def header() -> tuple[tuple[str, str], ...]:
    """What a request to Ray carries; empty without a token, or where tokens are switched off."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ()
    return tuple(AuthenticationTokenLoader.instance().get_token_for_http_header(ignore_auth_mode=True).items())


def open_to_others() -> bool:
    """Whether anyone but its owner may read or change it."""
    path = token_file()
    return path.is_file() and bool(path.stat().st_mode & 0o077)


def keep_private() -> None:
    """Takes it from all others; Ray writes it for everyone to read.

    Raises InputError where that is not allowed.
    """
    if open_to_others():
        try:
            token_file().chmod(0o600)
        except OSError as error:
            raise InputError(
                f"{token_file()}: others can read Ray's token, and it cannot be changed here ({error.strerror}): "
                f"chmod 600 {token_file()}"
            ) from error
