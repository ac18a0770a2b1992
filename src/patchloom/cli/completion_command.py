"""`patchloom completion`."""

from __future__ import annotations

import click

from patchloom.cli.declaring import command

__all__ = ["completion_command"]

_HOW = {
    "bash": '# In ~/.bashrc, with bash 4.4 or newer:  eval "$(patchloom completion bash)"\n',
    "zsh": '# In ~/.zshrc, after compinit:  eval "$(patchloom completion zsh)"\n',
    "fish": "# patchloom completion fish > ~/.config/fish/completions/patchloom.fish\n",
}


@command("completion")
@click.argument("shell", type=click.Choice(list(_HOW)))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options, job keys and paths."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(ctx.find_root().command, {}, "patchloom", "_PATCHLOOM_COMPLETE")
    # Not source(): of bash it starts one to ask for its version, which is not that of the reader.
    click.echo(_HOW[shell] + made.source_template % made.source_vars())
