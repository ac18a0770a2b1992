"""`patchloom schema`."""

from __future__ import annotations

import json

import click

from patchloom.cli.declaring import command

__all__ = ["schema_command"]


@command("schema")
def schema_command() -> None:
    """Print the JSON schema of a job file."""
    from patchloom.config import job_schema

    click.echo(json.dumps(job_schema(), indent=2))
