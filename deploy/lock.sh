#!/usr/bin/env bash
# Make the lock files of the container image anew, from pyproject.toml and today's releases.
#
#   deploy/lock.sh
#
# It needs uv (https://docs.astral.sh/uv). Make deploy/sbom.cdx.json anew afterwards (deploy/sbom.sh), and commit both.
set -euo pipefail
cd "$(dirname "$0")/.."

resolve() {
    uv pip compile --upgrade --quiet --generate-hashes --no-annotate --no-emit-index-url \
        --python-version 3.13 --python-platform x86_64-manylinux_2_28 \
        --custom-compile-command deploy/lock.sh "$@"
}

resolve pyproject.toml --extra all --output-file deploy/requirements.lock

# What builds the wheel of patchloom itself.
python3 - <<'PYTHON' | resolve - --output-file deploy/build.lock
import tomllib

with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["build-system"]["requires"]))
PYTHON
