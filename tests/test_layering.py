"""The source keeps its rules, and the checker of these rules notices when it does not."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import layering
import pytest
from layering import ARROWS, Module

ROOT = Path(__file__).parent.parent
SOURCE = layering.read_modules(ROOT, ("hecate", "collectives", "serving"))
TESTS = layering.read_modules(ROOT, ("tests",))

IMPORT_NAMES = {"pyyaml": "yaml"}


def declared() -> frozenset[str]:
    """The import names of pyproject.toml's dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = (re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"])
    return frozenset(IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names)


def known(modules: Iterable[Module]) -> frozenset[str]:
    return frozenset(module.name for module in modules)


RULES = {
    "upward_arrows": layering.upward_arrows,
    "impure_decisions": layering.impure_decisions,
    "foreign_imports": lambda module: layering.foreign_imports(module, declared()),
    "hidden_imports": layering.hidden_imports,
    "stray_group_makers": layering.stray_group_makers,
    "names_that_say_nothing": layering.names_that_say_nothing,
    "long_files": layering.long_files,
    "unfaithful_exports": lambda module: layering.unfaithful_exports(module, known(SOURCE)),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps(rule: str) -> None:
    assert SOURCE
    assert [line for module in SOURCE for line in RULES[rule](module)] == []


def test_folders_of_many_files_have_a_table() -> None:
    assert list(layering.missing_tables(SOURCE)) == []


@pytest.mark.parametrize("rule", ["names_that_say_nothing", "long_files"])
def test_the_tests_keep(rule: str) -> None:
    assert [line for module in TESTS for line in RULES[rule](module)] == []


def test_arrows_never_run_in_a_circle() -> None:
    for layer in ARROWS:
        assert layer not in layering.reach(layer)


def test_lists_name_only_what_exists() -> None:
    assert set(ARROWS) == {layering.layer_of(module.name) for module in SOURCE}
    assert layering.PURE <= known(SOURCE)
    assert set(layering.BOUNDARIES) <= {module.path for module in SOURCE}
    for files in layering.OPTIONAL.values():
        assert files <= {module.path for module in SOURCE}


PLANTED = [
    (
        "upward_arrows",
        "hecate/data/x.py",
        "import hecate.train.step",
        "may not import hecate.train",
    ),
    ("upward_arrows", "hecate/data/x.py", "from hecate import fssdp", "hecate.fssdp"),
    ("upward_arrows", "hecate/data/x.py", "from ..train import step", "hecate.train"),
    ("upward_arrows", "hecate/data/__init__.py", "from ..train import step", "hecate.train"),
    (
        "upward_arrows",
        "hecate/mesh.py",
        "def f():\n  from hecate.models import hub",
        "mesh.py:2:",
    ),
    (
        "upward_arrows",
        "collectives/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hecate.mesh import Groups",
        "collectives may not import hecate.mesh",
    ),
    ("upward_arrows", "hecate/fssdp/x.py", "import hecate.checkpoint.store", "hecate.checkpoint"),
    ("upward_arrows", "hecate/errors.py", "from hecate.config import Config", "hecate.config"),
    ("upward_arrows", "hecate/novelty/x.py", "", "has no place in ARROWS"),
    ("impure_decisions", "collectives/placement.py", "import torch.distributed as d", "pure"),
    ("impure_decisions", "collectives/placement.py", "from torch import distributed", "pure"),
    ("impure_decisions", "collectives/placement.py", "import torch\ntorch.distributed.x()", "use"),
    ("impure_decisions", "collectives/placement.py", "from time import sleep", "time.sleep"),
    ("impure_decisions", "collectives/placement.py", "import os.path", "os.path"),
    ("impure_decisions", "collectives/placement.py", "open('x')", "open a file"),
    ("impure_decisions", "collectives/placement.py", "import collectives.sparse", "which is not"),
    ("foreign_imports", "hecate/data/x.py", "import polars", "polars is no dependency"),
    ("foreign_imports", "hecate/train/x.py", "import ray", "ray is optional"),
    ("foreign_imports", "collectives/x.py", "import numpy", "torch alone"),
    ("hidden_imports", "hecate/train/x.py", "def f():\n    import json", "json is imported inside"),
    (
        "hidden_imports",
        "hecate/train/x.py",
        "class A:\n    async def f(self):\n        from a import b",
        "a.b is imported inside",
    ),
    ("hidden_imports", "hecate/train/x.py", "importlib.import_module(n)", "computed name"),
    ("stray_group_makers", "hecate/train/x.py", "dist.new_group([0])", "new_group"),
    (
        "stray_group_makers",
        "hecate/train/x.py",
        "from torch.distributed import get_world_size",
        "1:",
    ),
    ("stray_group_makers", "collectives/x.py", "n = get_world_size()", "get_world_size"),
    ("names_that_say_nothing", "hecate/train/utils.py", "", "utils does not say"),
    ("names_that_say_nothing", "hecate/helpers/x.py", "", "helpers"),
    ("names_that_say_nothing", "hecate/train/step_manager.py", "", "step_manager"),
    ("long_files", "hecate/train/x.py", "\n" * 601, "601 lines"),
    (
        "unfaithful_exports",
        "hecate/data/__init__.py",
        "from hecate.data.cache import A, B\n__all__ = ['A']",
        "__all__ lacks B",
    ),
    (
        "unfaithful_exports",
        "hecate/data/__init__.py",
        "from hecate.data.cache import A\n__all__ = ['A', 'C']",
        "names C, which it does not",
    ),
    ("unfaithful_exports", "hecate/data/__init__.py", "TABLE = {}", "__all__ lacks TABLE"),
    ("unfaithful_exports", "hecate/data/__init__.py", "def f(): ...", "a file of its own"),
]


@pytest.mark.parametrize(("rule", "path", "source", "found"), PLANTED)
def test_a_planted_violation_is_found(rule: str, path: str, source: str, found: str) -> None:
    lines = list(RULES[rule](Module(path, source)))
    assert len(lines) == 1
    assert lines[0].startswith(path) and found in lines[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("hecate/train/x.py", "import torch\nfrom hecate.data import cache\nfrom . import step"),
        ("hecate/cli/x.py", "from hecate.train.run import train\nfrom hecate.errors import E"),
        ("hecate/bench/x.py", "from collectives import Placement\nimport hecate.models.build"),
        ("hecate/__main__.py", "from hecate.cli import main"),
        ("hecate/mesh.py", "dist.new_group([0])"),
        ("hecate/cli/app.py", "def f(n):\n    return importlib.import_module(n)"),
        ("collectives/placement.py", "from dataclasses import dataclass\nimport torch"),
        (
            "hecate/data/__init__.py",
            "from hecate.data import cache\nfrom hecate.data.cache import A\n__all__ = ['A']",
        ),
        (
            "hecate/data/__init__.py",
            "from hecate.data.cache import A\nTABLE = {'a': A}\n__all__ = ['TABLE']",
        ),
    ],
)
def test_what_the_rules_allow(path: str, source: str) -> None:
    assert [line for rule in RULES.values() for line in rule(Module(path, source))] == []


def test_a_missing_table_is_found() -> None:
    files = [Module(f"hecate/x/{name}.py", "") for name in "abcdef"]
    named = "\n".join(f"{name}.py" for name in "abcde")
    package = Module("hecate/x/__init__.py", f'"""Files.\n{named}\n"""')
    assert list(layering.missing_tables([package, *files])) == [
        "hecate/x/__init__.py: the docstring's table lacks f.py"
    ]
    assert list(layering.missing_tables([package, *files[:5]])) == []
