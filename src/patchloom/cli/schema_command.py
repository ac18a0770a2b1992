"""`patchloom schema`."""

from __future__ import annotations

import json

import click

__all__ = ["schema_command"]


@click.command("schema")
def schema_command() -> None:
    """Print the JSON schema of a job file."""
    from patchloom.config import job_schema

    click.echo(json.dumps(job_schema(), indent=2))
