"""The RayJob manifest: KubeRay's schema takes it, and its command is one that ours takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import kuberay
import pytest
from jsonschema import Draft202012Validator
from kuberay import MANIFESTS, ROOT, wrong

from hecate.config import load_config
from hecate.train.config import RunConfig

MANIFEST = MANIFESTS / "rayjob.yaml"
DEMO = ROOT / "configs" / "train" / "demo.yaml"
VARIABLES = {
    "IMAGE": "registry/hecate:cuda",
    "CLAIM": "runs",
    "CONFIG": str(DEMO),
    "NODES": "4",
    "GPUS": "8",
    "WORKERS": "32",
}


@pytest.fixture
def job() -> dict[str, Any]:
    return kuberay.manifest(MANIFEST.read_text(), VARIABLES)


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    return kuberay.schema("rayjob")


def test_kuberay_takes_it(schema: Draft202012Validator, job: dict[str, Any]) -> None:
    assert wrong(schema, job) == []


def test_what_kuberay_would_drop_or_refuse_is_found(
    schema: Draft202012Validator, job: dict[str, Any]
) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    cluster["workerGroupSpecs"][0]["replica"] = 4
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    job["spec"]["submissionMode"] = "Job"
    assert len(wrong(schema, job)) == 3


def test_its_command_is_one_that_hecate_takes(job: dict[str, Any]) -> None:
    program, command, config, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("hecate", "train")
    assert words[:3] == ["--ray", "--resume", "auto"]
    assert words[3::2] == ["--set"] * len(words[4::2])
    run = load_config(RunConfig, Path(config), words[4::2]).value
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    asked = container["resources"]["requests"]
    gpus = int(asked["nvidia.com/gpu"])
    assert run.ray.num_workers == workers["replicas"] * gpus
    assert run.ray.min_workers == gpus
    assert run.ray.cpus_per_worker * gpus <= int(asked["cpu"])
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(Path(run.folder).parent) in mounted


def test_it_names_the_ray_that_the_image_has(job: dict[str, Any]) -> None:
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    for file in ("cpu", "cuda"):
        text = (ROOT / "launch" / "docker" / f"{file}.Dockerfile").read_text()
        assert f"ARG RAY={version}\n" in text


def test_the_readme_has_each_variable() -> None:
    names = set(re.findall(r"\$\{(\w+)\}", MANIFEST.read_text()))
    assert names == set(VARIABLES)
    section = (ROOT / "launch" / "README.md").read_text().split("## KubeRay")[1].split("\n## ")[0]
    assert all(f"`{name}`" in section for name in names)
