#!/usr/bin/env bash
# Make the bill of materials of the container image anew (CycloneDX 1.6), and the table of licences, from the lock.
#
#   deploy/sbom.sh [PYTHON_3.13]
#
# It needs cyclonedx-py (pip install cyclonedx-bom).
set -euo pipefail
cd "$(dirname "$0")/.."

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"${1:-python3.13}" -m venv "$place/env"
"$place/env/bin/pip" install --quiet --require-hashes --only-binary :all: --requirement deploy/requirements.lock
"$place/env/bin/pip" uninstall --quiet --yes pip
cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --spec-version 1.6 --output-format JSON \
    --output-file deploy/sbom.cdx.json "$place/env/bin/python"
"$place/env/bin/python" deploy/licences.py >deploy/licences.md
