"""Object stores (s3, gs, hf) through fsspec, with a time limit on each request."""

from __future__ import annotations

from typing import Any

from cdt.errors import InputError

TIMEOUT_S = 20.0
"""Timeout in seconds for a connection, and between two bytes."""
SLOWEST = 20_000
"""Bytes per second below which a response counts as stalled once the timeout is over."""


class ObjectStore:
    """The files of all URLs with one scheme.

    Credentials are those that the scheme's library finds; tests and private clouds have FSSPEC_* settings
    (https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration).
    """

    def __init__(self, scheme: str) -> None:
        """Raises InputError where the scheme's library is not installed."""
        import fsspec  # here, because http does not need it

        try:
            self._system: Any = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            raise InputError(f"{scheme}:// needs `pip install cdt-diffusion[{scheme}]`: {error}") from error

    def ask(self, method: str, size: int, *arguments: Any, **options: Any) -> Any:
        """Calls a method of fsspec's file systems, once. ``size``: bytes that it moves, which prolong its time limit.

        Raises what the libraries raise. Methods that could block for ever are asynchronous, and end at the limit.
        """
        if not self._system.async_impl:
            return getattr(self._system, method)(*arguments, **options)
        from fsspec.asyn import sync

        timeout_s = TIMEOUT_S + size / SLOWEST
        return sync(self._system.loop, getattr(self._system, f"_{method}"), *arguments, timeout=timeout_s, **options)

    def path(self, url: str) -> str:
        """The URL without its scheme, as listings name files."""
        return self._system._strip_protocol(url)
