"""KubeRay's manifests as a user fills them in, and what of KubeRay's schema they use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[1]
MANIFESTS = ROOT / "launch" / "kuberay"
SCHEMAS = ROOT / "tests" / "launch"


def manifest(text: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """``text`` with its variables in place."""
    found = yaml.safe_load(Template(text).substitute(variables))
    assert isinstance(found, dict)
    return found


def schema(kind: str) -> Draft202012Validator:
    """Of ``rayjob`` or ``rayservice``; what clusters and pods may have is in the first one's."""
    rules, shared = (
        yaml.safe_load((SCHEMAS / f"{name}_schema.yaml").read_text()) for name in (kind, "rayjob")
    )
    rules["$defs"] = shared["$defs"]
    Draft202012Validator.check_schema(rules)
    return Draft202012Validator(rules)


def wrong(validator: Draft202012Validator, value: dict[str, Any]) -> list[str]:
    """What ``validator`` finds."""
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
