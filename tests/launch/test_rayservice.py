"""The RayService manifest: KubeRay's schema takes it, Ray Serve what it serves, and we the args."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import kuberay
import pytest
import yaml
from kuberay import MANIFESTS, ROOT, wrong
from rule_engine import save_toy_tokenizer

pytest.importorskip("ray")
from ray.serve import Application  # noqa: E402
from ray.serve.schema import ServeDeploySchema  # noqa: E402

from hecate.config import parse_config  # noqa: E402
from hecate.errors import ConfigError  # noqa: E402
from serving.app.deployed import DeployedConfig  # noqa: E402

TEXT = (MANIFESTS / "rayservice.yaml").read_text()
ON_CPUS = "".join(line for line in TEXT.splitlines(keepends=True) if "# GPU" not in line)
VARIABLES = {"IMAGE": "registry/hecate:cuda", "CLAIM": "runs", "REPLICAS": "4"}


@pytest.fixture(params=[TEXT, ON_CPUS], ids=["gpu", "cpu"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    folder = save_toy_tokenizer(tmp_path / "mine")
    return kuberay.manifest(request.param, {**VARIABLES, "MODEL": str(folder)})


def served(service: dict[str, Any]) -> dict[str, Any]:
    """The one application."""
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert isinstance(application, dict)
    return application


def test_kuberay_takes_it(service: dict[str, Any]) -> None:
    schema = kuberay.schema("rayservice")
    assert wrong(schema, service) == []
    service["spec"]["rayClusterSpec"] = service["spec"].pop("rayClusterConfig")  # a RayJob's name
    service["spec"]["serveConfigV2"] = served(service)
    assert len(wrong(schema, service)) == 3


def test_ray_serve_takes_its_configuration(service: dict[str, Any]) -> None:
    text = service["spec"]["serveConfigV2"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    # It takes fields that it does not know, without a word.
    assert set(yaml.safe_load(text)) <= set(ServeDeploySchema.model_fields)
    (application,) = config.applications
    assert set(served(service)) <= set(type(application).model_fields)
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)
    module, _, name = application.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    assert isinstance(build(application.args), Application)
    application.args["replicas"]["maxx"] = 3
    with pytest.raises(ConfigError, match="did you mean replicas.max"):
        build(application.args)


def test_a_pod_has_room_for_a_replica_and_the_ingress(service: dict[str, Any]) -> None:
    config = parse_config(DeployedConfig, served(service)["args"], "args")
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    asked = container["resources"]["requests"]
    assert config.replicas.num_cpus + config.ingress.num_cpus <= float(asked["cpu"])
    assert config.replicas.num_gpus == float(asked.get("nvidia.com/gpu", 0))
    assert config.engine.device == ("cuda" if config.replicas.num_gpus else "auto")
    assert workers["minReplicas"] == config.replicas.min == 1
    assert workers["maxReplicas"] == config.replicas.max == 4
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0" and config.ingress.num_cpus > 0
    assert container["ports"] == [{"containerPort": 8000, "name": "serve"}]
    assert ":8000/health" in container["readinessProbe"]["exec"]["command"][-1]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == "/work"  # where MODEL lies


def test_it_names_the_ray_that_the_images_have(service: dict[str, Any]) -> None:
    version = service["spec"]["rayClusterConfig"]["rayVersion"]
    for file in ("cpu", "cuda"):
        text = (ROOT / "launch" / "docker" / f"{file}.Dockerfile").read_text()
        assert f"ARG RAY={version}\n" in text
        assert "[ray,serve]" in text and "wget" in text


def test_the_readme_has_each_variable() -> None:
    names = set(re.findall(r"\$\{(\w+)\}", TEXT))
    assert names == {*VARIABLES, "MODEL"}
    text = (ROOT / "launch" / "README.md").read_text()
    section = text.split("## KubeRay, serving")[1].split("\n## ")[0]
    assert all(f"`{name}`" in section for name in names)
