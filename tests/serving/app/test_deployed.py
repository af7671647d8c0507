"""The RayService's configuration on a Ray cluster: Ray imports our app, builds and serves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import kuberay
import openai
import pytest
import yaml
from kuberay import MANIFESTS
from patience import PATIENCE_S, until
from served import save_served

ray = pytest.importorskip("ray")
from ray import serve  # noqa: E402

from hecate.ray_start import start_ray  # noqa: E402
from serving.app.config import HttpConfig  # noqa: E402
from serving.app.launch import free_http  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def configuration(folder: Path, port: int) -> str:
    """Of the manifest, on CPUs, with a port and a memory that are this machine's."""
    text = (MANIFESTS / "rayservice.yaml").read_text()
    lines = [line for line in text.splitlines() if "# GPU" not in line]
    variables = {"IMAGE": "hecate:cpu", "CLAIM": "runs", "MODEL": str(folder), "REPLICAS": "1"}
    service = kuberay.manifest("\n".join(lines), variables)
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    engine = config["applications"][0]["args"]["engine"]
    engine |= {"memory": {"kv_gib": 0.01}, "threads": 1, "kernels": "off"}
    return yaml.safe_dump(config)


def test_the_configuration_of_the_rayservice_is_served(tmp_path: Path) -> None:
    save_served(tmp_path / "toy", "qwen3_moe")
    port = free_http(HttpConfig(port=0)).port
    url = f"http://127.0.0.1:{port}"
    file = tmp_path / "serve.yaml"
    file.write_text(configuration(tmp_path / "toy", port), encoding="utf-8")
    context = start_ray(
        num_cpus=8,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        namespace="serve",
    )
    try:
        submitted = subprocess.run(
            [
                str(Path(sys.executable).with_name("serve")),
                "run",
                "--non-blocking",
                "--address",
                context.address_info["gcs_address"],
                str(file),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        until(lambda: failed() or healthy(url), "a healthy app", pause_s=0.2)
        assert not failed()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S) as client:
            answer = client.completions.create(model="toy", prompt="the cat", max_tokens=4)
        assert answer.usage is not None and answer.usage.completion_tokens >= 1
    finally:
        serve.shutdown()
        ray.shutdown()


def failed() -> str:
    (status,) = serve.status().applications.values()
    return status.message if status.status == "DEPLOY_FAILED" else ""


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code == 200
    except httpx.TransportError:
        return False
