"""Print the licences in the container image as Markdown, after its bill of materials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BILL = Path(__file__).with_name("sbom.cdx.json")
HEAD = """\
# Licences in the container image

What the packages of [requirements.lock](requirements.lock) declare in their own metadata. By
[licences.py](licences.py) from [sbom.cdx.json](sbom.cdx.json). The base image (Debian, Python)
has others besides.

| package | version | licence |
|---|---|---|"""


def licence(component: dict[str, Any]) -> str:
    """The expression or the names that a package declares; identifiers before classifiers.

    >>> licence({"licenses": [{"license": {"name": "License :: OSI Approved :: BSD License"}}]})
    'BSD License'
    >>> licence({})
    'not declared'
    """
    told = component.get("licenses", [])
    exact = [e["expression"] for e in told if "expression" in e]
    exact += [e["license"]["id"] for e in told if "id" in e.get("license", {})]
    named = [
        e["license"]["name"].rpartition(" :: ")[2] for e in told if "name" in e.get("license", {})
    ]
    return ", ".join(dict.fromkeys(exact or named)) or "not declared"


def page(bill: dict[str, Any]) -> str:
    """The table, sorted by name."""
    rows = sorted((c["name"].lower(), c["version"], licence(c)) for c in bill["components"])
    return "\n".join([HEAD, *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    print(page(json.loads(BILL.read_text(encoding="utf-8"))))
