"""What deploy/ holds is what its readers take: each file against its real schema or linter.

Laws: every file passes; a misspelt field would not; lock, bill of materials and licences are of one
mind; scripts start what they say. A validator that is not installed is named as skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import patchloom
from patchloom.config import load_job

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OPERATOR = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds"
SHELL = sorted(p for p in DEPLOY.rglob("*") if p.suffix in {".sh", ".sbatch"})
YAML = sorted([*DEPLOY.rglob("*.yaml"), ROOT / "CITATION.cff"])
VERSION = metadata.version("patchloom")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tool(name: str) -> str:
    """A program of this environment, or one of the system's; the test is skipped without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def module(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


def passes(*command: str | Path) -> None:
    """A validator that has nothing to say."""
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def documents(path: Path) -> list[Any]:
    return [*yaml.safe_load_all(path.read_text(encoding="utf-8"))]


# --- Linters and schemas --------------------------------------------------------------------


def test_dockerfile() -> None:
    """hadolint is content; the base is named by its digest, and the image is not root's."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG PYTHON=python:3\.13\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", text, re.M)
    assert re.findall(r"^USER (.+)$", text, re.M) == ["10001:10001"]
    assert text.count("--require-hashes --only-binary :all:") == 2
    passes(tool("hadolint"), "--failure-threshold", "style", DEPLOY / "Dockerfile")


@pytest.mark.parametrize("path", YAML, ids=named)
def test_yaml_is_tidy(path: Path) -> None:
    """yamllint, with the rules of .yamllint.yaml."""
    passes(tool("yamllint"), "--strict", "--config-file", ROOT / ".yamllint.yaml", path)


@pytest.mark.parametrize("path", SHELL, ids=named)
def test_script_is_sound(path: Path) -> None:
    """bash reads it, and shellcheck finds nothing."""
    passes("bash", "-n", path)
    passes(tool("shellcheck"), path)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.compose-spec", DEPLOY / "compose.yaml"),
        ("vendor.citation-file-format", ROOT / "CITATION.cff"),
    ],
    ids=["compose", "citation"],
)
def test_schema_of_others(schema: str, path: Path) -> None:
    """Their published JSON schema."""
    passes(tool("check-jsonschema"), "--builtin-schema", schema, path)


def test_citation_is_of_this_version() -> None:
    """Version and licence are those of the package."""
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (told["version"], told["license"]) == (VERSION, "BSD-3-Clause")


# --- Kubernetes -----------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """The same schema, but fields that it does not name are refused; Kubernetes drops them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        found["additionalProperties"] = False
    return found


def custom(kind: str) -> Any:
    """The schema of one of the operator's kinds, as its package has it."""
    package = importlib.util.find_spec("dask_kubernetes")
    if package is None or package.origin is None:
        pytest.skip("dask_kubernetes is not installed")
    # Its files alone are read: what it imports need not be there.
    folder = Path(package.origin).parents[1] / OPERATOR
    crd = yaml.safe_load((folder / f"{kind.lower()}.yaml").read_text(encoding="utf-8"))
    schema = closed(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    # What every object of Kubernetes has.
    schema["properties"] |= {"apiVersion": {}, "kind": {"const": kind}, "metadata": {}}
    return schema


CUSTOM = [
    (KUBERNETES / "cluster.yaml", "DaskCluster"),
    (KUBERNETES / "autoscaler.yaml", "DaskAutoscaler"),
]


@pytest.mark.parametrize(("path", "kind"), CUSTOM, ids=["cluster", "autoscaler"])
def test_objects_of_the_operator(path: Path, kind: str) -> None:
    """They pass the operator's own schema with nothing misspelt, and a misspelt field does not."""
    jsonschema = module("jsonschema")
    schema = custom(kind)
    [document] = documents(path)
    jsonschema.validate(document, schema)
    for place in (document, document["spec"]):
        wrong = json.loads(json.dumps(document))
        target = wrong if place is document else wrong["spec"]
        target["replicsa"] = 4
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_objects_of_kubernetes(tmp_path: Path) -> None:
    """kubernetes-validate, strictly; also of the pods and the service inside the cluster."""
    program = tool("kubernetes-validate")
    [cluster] = documents(KUBERNETES / "cluster.yaml")
    spec = cluster["spec"]
    inner = [
        {"apiVersion": "v1", "kind": kind, "metadata": {"name": "one"}, "spec": part}
        for kind, part in (
            ("Pod", spec["worker"]["spec"]),
            ("Pod", spec["scheduler"]["spec"]),
            ("Service", spec["scheduler"]["service"]),
        )
    ]
    (tmp_path / "inner.yaml").write_text(yaml.safe_dump_all(inner), encoding="utf-8")
    for path in (
        KUBERNETES / "job.yaml",
        KUBERNETES / "network-policy.yaml",
        tmp_path / "inner.yaml",
    ):
        passes(program, "--strict", path)


def pods() -> list[tuple[str, Any]]:
    """Every pod that the files of Kubernetes start."""
    [cluster], [job] = documents(KUBERNETES / "cluster.yaml"), documents(KUBERNETES / "job.yaml")
    return [
        ("worker", cluster["spec"]["worker"]["spec"]),
        ("scheduler", cluster["spec"]["scheduler"]["spec"]),
        ("run", job["spec"]["template"]["spec"]),
    ]


@pytest.mark.parametrize(("name", "pod"), pods(), ids=[name for name, _ in pods()])
def test_pods_are_locked_down(name: str, pod: Any) -> None:
    """Not root, no privileges, a read-only root, no token, keys by reference only."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    [container] = pod["containers"]
    assert container["image"] == f"patchloom:{VERSION}"
    rules = container["securityContext"]
    assert rules["allowPrivilegeEscalation"] is False
    assert rules["readOnlyRootFilesystem"] is True
    assert rules["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    for variable in container.get("env", []):
        if variable["name"].startswith("AWS"):
            assert variable["valueFrom"]["secretKeyRef"]["name"] == "patchloom-store"


HELM = {
    "scheduler": {"image", "resources", "securityContext", "readinessProbe"},
    "worker": {"image", "replicas", "threads_per_worker", "resources", "env", "securityContext"},
    "jupyter": {"enabled", "rbac"},
}
"""Keys of the values of Dask's chart 2024.1.1 that are used; the chart has no schema of its own."""
HELM_IMAGE = {"repository", "tag", "pullPolicy", "dask_worker"}


def test_values_of_the_chart() -> None:
    """Only keys that the chart's templates read; what it hands on is Kubernetes' and checked."""
    [values] = documents(KUBERNETES / "helm-values.yaml")
    assert {part: set(keys) for part, keys in values.items()} == HELM
    for part in ("scheduler", "worker"):
        assert set(values[part]["image"]) <= HELM_IMAGE
        assert values[part]["image"]["tag"] == VERSION
    [cluster] = documents(KUBERNETES / "cluster.yaml")
    [worker] = cluster["spec"]["worker"]["spec"]["containers"]
    assert values["worker"]["env"] == worker["env"]
    assert (
        values["worker"]["securityContext"] == cluster["spec"]["worker"]["spec"]["securityContext"]
    )


# --- Lock, bill of materials, licences -------------------------------------------------------


def locked(name: str) -> dict[str, str]:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.M))


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, the extras of extras too."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            requirement = Requirement(line)
            own = requirement.name == "patchloom"
            found += wanted(*requirement.extras) if own else [requirement]
    return found


def test_lock_is_of_pyproject() -> None:
    """It has what the extra ``all`` asks for, each with hashes; deploy/lock.sh makes it anew."""
    versions = locked("requirements.lock")
    for requirement in wanted("all"):
        name = plain(requirement.name)
        assert name in versions, f"{name} is not locked; run deploy/lock.sh"
        assert requirement.specifier.contains(versions[name], prereleases=True), name
        for extra in requirement.extras:
            assert extra in {"array", "distributed"}
    for name in ("requirements.lock", "build.lock"):
        lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
        entries = [line for line in lines if not line.startswith(("#", " "))]
        assert all(line.endswith(" \\") for line in entries)
        assert not re.search(r"://|--index|--find-links", "\n".join(lines))


def test_bill_of_materials_is_of_the_lock() -> None:
    """The same packages in the same versions, and nobody's folders."""
    text = (DEPLOY / "sbom.cdx.json").read_text(encoding="utf-8")
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert {plain(c["name"]): c["version"] for c in bill["components"]} == locked(
        "requirements.lock"
    )
    assert not re.search(r'"(/|file:)', text)


def test_bill_of_materials_keeps_its_schema() -> None:
    """The schema of CycloneDX, strictly."""
    module("cyclonedx")
    module("referencing")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (DEPLOY / "sbom.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_licences_are_of_the_bill() -> None:
    """The table is what its script prints."""
    done = subprocess.run(
        [sys.executable, DEPLOY / "licences.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (DEPLOY / "licences.md").read_text(encoding="utf-8")


def test_image_is_made_of_what_is_there() -> None:
    """What the Dockerfile copies is what .dockerignore lets through, and is there."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M)
        for word in line.split()[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def test_versions_are_those_of_the_package() -> None:
    """Compose, Kubernetes and the Dockerfile speak of the image of this version."""
    for path in (DEPLOY / "Dockerfile", *YAML):
        for tag in re.findall(r"patchloom:(\d[\w.]*)", path.read_text(encoding="utf-8")):
            assert tag == VERSION, named(path)


# --- Batch systems ---------------------------------------------------------------------------

WORKER = (
    "python -m distributed.cli.dask_worker tcp://scheduler:8786 --name patchloom-0 --nthreads 4 "
    "--memory-limit 6.00GiB --nanny --death-timeout 120 --lifetime 225m --lifetime-stagger 10m "
    "--no-dashboard"
)
SLURM = f"""\
#!/usr/bin/env bash

#SBATCH -J patchloom
#SBATCH -n 1
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH -t 04:00:00

{WORKER}
"""
PBS = f"""\
#!/usr/bin/env bash

#PBS -N patchloom
#PBS -l select=1:ncpus=4:mem=6gb
#PBS -l walltime=04:00:00

{WORKER}
"""


@pytest.mark.parametrize(("system", "script"), [("slurm", SLURM), ("pbs", PBS)])
def test_jobs_of_workers(system: str, script: str) -> None:
    """dask-jobqueue makes of jobqueue.yaml the script that a site is handed; no key is unknown."""
    module("dask_jobqueue")
    import dask

    ours = yaml.safe_load((DEPLOY / "jobqueue.yaml").read_text(encoding="utf-8"))
    assert set(ours) == {"jobqueue"}
    home = importlib.import_module(f"dask_jobqueue.{system}")
    kind = getattr(home, f"{system.upper()}Job")
    told = ours["jobqueue"][system]
    known = dask.config.get(f"jobqueue.{system}")
    assert set(told) <= set(known)
    with dask.config.set({f"jobqueue.{system}": {**known, **told}}):
        job = kind(scheduler="tcp://scheduler:8786", name="patchloom-0", python="python")
        assert job.job_script().rstrip() == script.rstrip()


def test_memory_of_workers_is_that_of_the_guide() -> None:
    """Threads x memory=, the interpreter, and what Dask wants free: docs/sizing.md."""
    needed = (4 * 1.0 + 0.6) / 0.8
    [cluster] = documents(KUBERNETES / "cluster.yaml")
    [worker] = cluster["spec"]["worker"]["spec"]["containers"]
    assert worker["resources"]["limits"] == {"cpu": "4", "memory": "6Gi"}
    assert needed <= 6
    text = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")
    assert "0.6 GiB" in text
    assert "0.8" in text


def test_smoke_job_is_a_job() -> None:
    """It is read as patchloom reads it, and its image is the one that the script puts there."""
    job = load_job(DEPLOY / "smoke" / "job.yaml")
    text = (DEPLOY / "smoke" / "prepare.py").read_text(encoding="utf-8")
    bucket, image = re.findall(r'^(?:BUCKET|IMAGE) = "(.+)"$', text, re.M)
    assert job.images == f"s3://{bucket}/{image}"
    assert (Path(patchloom.__file__).parent / "demo" / image).is_dir()
