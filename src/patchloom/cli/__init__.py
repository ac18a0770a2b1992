"""The command `patchloom`: one file a command."""

from patchloom.cli.command_line import main

__all__ = ["main"]
