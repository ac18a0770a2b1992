"""The command `patchloom`: one file a command."""

from patchloom.cli.command_line import main, start

__all__ = ["main", "start"]
