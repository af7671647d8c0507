"""Every parameter of our own OpenAPI schema, fuzzed: whatever comes, no answer is a 500."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from api_server import Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule_engine import RuleEngine
from schemathesis.checks import not_a_server_error

POSTS = ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"]
APPLICATIONS = ["/v1/applications/units", "/v1/applications/end"]
ADAPTERS = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]
GETS = ["/", "/health", "/metrics", "/v1/applications", "/v1/models", "/v1/models/{model}"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server[RuleEngine]]:
    server = Server(RuleEngine())
    yield server
    server.stop()


@pytest.mark.parametrize("path", POSTS + APPLICATIONS + ADAPTERS + GETS)
def test_no_500(server: Server[RuleEngine], path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operation = schema[path]["GET" if path in GETS else "POST"]

    @given(case=operation.as_strategy(), known=st.booleans())
    @settings(
        max_examples=60 if path in POSTS else 5 if path in GETS else 20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def fuzz(case: schemathesis.Case, known: bool) -> None:
        if known and path in POSTS and isinstance(case.body, dict):
            case.body["model"] = "toy"
        case.call_and_validate(checks=[not_a_server_error])

    fuzz()


def test_nothing_is_left_out(server: Server[RuleEngine]) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    assert sorted(schema) == sorted(POSTS + APPLICATIONS + ADAPTERS + GETS)
