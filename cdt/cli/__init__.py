"""The `cdt` command."""

from cdt.cli.command import main

__all__ = ["main"]
