"""Keys of tenants and what they may use, by a clock of our own."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from rule_engine import RuleEngine, toy_tokenizer

from hecate.errors import ConfigError
from serving.api import ApiConfig, Dispatcher, Prompts, Serving, Tenants, build_api, read_keys
from serving.api.guard import OPEN
from serving.api.tenants import QuotaConfig
from serving.errors import QuotaExceeded, Unauthorized


def keys_file(folder: Path, **quota: int) -> str:
    digest = hashlib.sha256(b"secret").hexdigest()
    lines = [f"    {name}: {value}" for name, value in quota.items()]
    path = folder / "keys.yaml"
    path.write_text("\n".join(["tenants:", "  - name: ann", f"    sha256: [{digest}]", *lines]))
    return str(path)


def read_tenants(
    file: str, environment: str, default: QuotaConfig, clock: Callable[[], float]
) -> Tenants:
    return Tenants(read_keys(file, environment, default), default, clock)


def test_a_key_is_its_tenants(tmp_path: Path) -> None:
    tenants = read_tenants(keys_file(tmp_path), "bob:other, eve:third", QuotaConfig(), lambda: 0)
    assert tenants.tenant_of("Bearer secret") == "ann"
    assert tenants.tenant_of("bearer other") == "bob"
    for wrong in ("", "Bearer", "Bearer secret2", "Basic secret", "secret"):
        with pytest.raises(Unauthorized):
            tenants.tenant_of(wrong)


def test_without_keys_everybody_may_ask() -> None:
    assert read_tenants("", "", QuotaConfig(), lambda: 0).tenant_of("") == ""


@pytest.mark.parametrize("entry", ["bob", "bob:", ":key"])
def test_an_entry_that_is_none_is_told_without_the_key(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_tenants("", f"ann:k,{entry}", QuotaConfig(), lambda: 0)
    assert "entry 2" in str(caught.value) and "key" not in str(caught.value).split("entry")[0]


def test_quotas_refill_with_time(tmp_path: Path) -> None:
    now = [0.0]
    keys = keys_file(tmp_path, requests_per_minute=2, tokens_per_minute=600)
    tenants = read_tenants(keys, "", QuotaConfig(), lambda: now[0])
    tenants.admit("ann", 100)
    tenants.admit("ann", 100)
    with pytest.raises(QuotaExceeded, match="requests") as caught:
        tenants.admit("ann", 1)
    assert caught.value.retry_after_s == pytest.approx(30)
    now[0] = 30
    tenants.charge("ann", 1000)  # 400 were left, 30 s made it full: 600 - 1000 = -400
    with pytest.raises(QuotaExceeded, match="tokens") as caught:
        tenants.admit("ann", 1)
    assert caught.value.retry_after_s == pytest.approx(40.1)  # until there is 1, at 10 a second
    now[0] += caught.value.retry_after_s + 0.01
    tenants.admit("ann", 1)


def test_every_route_but_page_and_health_asks_for_a_key(tmp_path: Path) -> None:
    tenants = read_tenants(keys_file(tmp_path), "", QuotaConfig(), lambda: 0)
    serving = Serving(
        Dispatcher(RuleEngine()),
        Prompts(toy_tokenizer()),
        tenants,
        ApiConfig(),
        lambda: 0.0,
        lambda: 0.0,
    )
    api = build_api(serving)

    async def ask() -> None:
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            paths = {route.path for route in api.routes if isinstance(route, APIRoute)}
            assert {"/v1/chat/completions", "/metrics"} <= paths
            for path in [*paths, "/openapi.json", "/nothing"]:
                found = await client.get(path)
                assert (found.status_code == 401) == (path not in OPEN), path
            found = await client.get("/v1/models", headers={"authorization": "Bearer secret"})
            assert found.status_code == 200
            big = {"authorization": "Bearer secret", "content-length": str(1 << 30)}
            assert (await client.post("/v1/completions", headers=big)).status_code == 413

    asyncio.run(ask())
