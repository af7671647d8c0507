"""The rules that hold the source together, checked on its syntax trees alone.

Every import counts, those inside functions and under ``TYPE_CHECKING`` too. Nothing is executed, so
that a rule can be tried on any source text.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

# Importer -> what it may import. Arrows are transitive; a package always reaches itself.
FOUNDATION = frozenset(
    {
        "hecate.mesh",
        "hecate.config",
        "hecate.errors",
        "hecate.files",
        "hecate.folders",
        "hecate.ray_start",
        "hecate.svg",
        "collectives",
    }
)
ARROWS: dict[str, frozenset[str]] = {
    "hecate": frozenset({"hecate.cli"}),
    "hecate.cli": frozenset(
        {
            "hecate.train",
            "hecate.bench",
            "hecate.doctor",
            "hecate.report",
            "hecate.simulate",
            "serving.app",
        }
    ),
    "hecate.bench": frozenset(
        {
            "hecate.train",
            "hecate.doctor",
            "hecate.simulate",
            "serving.bench",
            "serving.app",
            "serving.client",
        }
    ),
    "hecate.simulate": frozenset({"hecate.planner"}),
    "hecate.train": frozenset(
        {"hecate.fssdp", "hecate.checkpoint", "hecate.data", "hecate.logging"}
    ),
    "hecate.fssdp": frozenset({"hecate.models", "hecate.planner"}),
    "hecate.planner": FOUNDATION,
    "hecate.checkpoint": frozenset({"hecate.models"}),
    "hecate.data": frozenset({"hecate.models"}),
    "hecate.models": FOUNDATION,
    "hecate.logging": FOUNDATION,
    "hecate.doctor": FOUNDATION,
    "hecate.report": FOUNDATION,  # a run's files are all that it knows of training
    "hecate.mesh": frozenset({"hecate.config", "hecate.errors", "collectives"}),
    "hecate.config": frozenset({"hecate.errors", "hecate.yaml_text"}),
    "hecate.yaml_text": frozenset({"hecate.errors"}),
    "hecate.errors": frozenset(),
    "hecate.files": frozenset({"hecate.errors"}),
    "hecate.folders": frozenset(),
    "hecate.ray_start": frozenset(),
    "hecate.svg": frozenset(),
    "collectives": frozenset(),
    "serving": frozenset(),
    "serving.app": frozenset({"serving.applications", "hecate.logging"}),
    "serving.applications": frozenset({"serving.api"}),
    "serving.client": frozenset(),
    "serving.bench": frozenset({"serving.api"}),
    "serving.api": frozenset({"serving.engine", "serving.sandbox", "hecate.config"}),
    "serving.sandbox": frozenset({"serving.errors", "hecate.config"}),
    "serving.engine": frozenset({"serving.scheduling", "serving.lora", "hecate.models"}),
    "serving.lora": frozenset({"serving.memory", "hecate.models"}),
    "serving.scheduling": frozenset({"serving.caches", "hecate.config", "hecate.files"}),
    "serving.caches": frozenset({"serving.memory", "hecate.config"}),
    "serving.memory": frozenset({"serving.request", "serving.errors", "hecate.config"}),
    "serving.request": frozenset({"serving.errors"}),
    "serving.errors": frozenset({"hecate.errors"}),
}

# Decisions: no process group, clock, file or chance.
PURE = frozenset(
    {
        "collectives.cost",
        "collectives.placement",
        "collectives.schedule",
        "collectives.topology",
        "hecate.bench.divergence",
        "hecate.bench.lora.placed",
        "hecate.bench.lora.workload",
        "hecate.bench.effective",
        "hecate.bench.gittins.classes",
        "hecate.bench.gittins.figures",
        "hecate.bench.gittins.matrix",
        "hecate.bench.gittins.mg1",
        "hecate.bench.gittins.replica",
        "hecate.bench.gittins.simulator",
        "hecate.bench.gittins.steps",
        "hecate.bench.gittins.workload",
        "hecate.bench.gittins.applications.draws",
        "hecate.bench.gittins.applications.search",
        "hecate.bench.gittins.prewarm.adapters",
        "hecate.bench.gittins.prewarm.claims",
        "hecate.bench.gittins.prewarm.containers",
        "hecate.bench.gittins.prewarm.contexts",
        "hecate.bench.gittins.prewarm.served",
        "hecate.bench.margins",
        "hecate.bench.replay",
        "hecate.bench.soak.accounts",
        "hecate.bench.soak.bad",
        "hecate.bench.soak.checks",
        "hecate.bench.soak.meaning",
        "hecate.bench.routing_traces",
        "hecate.data.best_fit",
        "hecate.data.packing",
        "hecate.planner",
        "hecate.planner.calibration",
        "hecate.planner.load",
        "hecate.planner.mispredictions",
        "hecate.planner.quotas",
        "hecate.planner.replay",
        "hecate.planner.sharding",
        "hecate.errors",
        "hecate.fssdp.keeping",
        "hecate.fssdp.observed",
        "hecate.report.bins",
        "hecate.report.curves",
        "hecate.report.events",
        "hecate.report.maps",
        "hecate.report.records",
        "hecate.report.spent",
        "hecate.simulate",
        "hecate.simulate.timeline",
        "hecate.train.router_health",
        "hecate.svg",
        "hecate.train.footprint.parts",
        "hecate.train.footprint.table",
        "hecate.train.parallelism",
        "hecate.train.profile.intervals",
        "hecate.train.profile.overlap",
        "hecate.train.profile.phases",
        "hecate.train.profile.summary",
        "hecate.train.profile.trace",
        "serving.api.answers",
        "serving.api.rendering",
        "serving.api.tools",
        "serving.applications.release",
        "serving.applications.view",
        "serving.bench.timings",
        "serving.app.autoscaling",
        "serving.app.backlog",
        "serving.app.figures",
        "serving.app.latency",
        "serving.app.messages",
        "serving.app.placement",
        "serving.caches.prefix",
        "serving.caches.prefix.none",
        "serving.caches.prefix.protocol",
        "serving.caches.prefix.radix",
        "serving.caches.prefix.tiered",
        "serving.errors",
        "serving.lora.cold",
        "serving.lora.costs",
        "serving.lora.facts",
        "serving.lora.gate",
        "serving.lora.placement",
        "serving.lora.plan",
        "serving.lora.registry",
        "serving.lora.slots",
        "serving.lora.step_model",
        "serving.memory.blocks",
        "serving.memory.swap",
        "serving.memory.tables",
        "serving.memory.tiers",
        "serving.engine.checks",
        "serving.engine.protocol",
        "serving.engine.text",
        "serving.request",
        "serving.scheduling",
        "serving.scheduling.applications",
        "serving.scheduling.applications.book",
        "serving.scheduling.applications.classes",
        "serving.scheduling.applications.columns",
        "serving.scheduling.applications.conditioned",
        "serving.scheduling.applications.counters",
        "serving.scheduling.applications.demand",
        "serving.scheduling.applications.drift",
        "serving.scheduling.applications.gittins",
        "serving.scheduling.applications.graph",
        "serving.scheduling.applications.live",
        "serving.scheduling.applications.order",
        "serving.scheduling.applications.points",
        "serving.scheduling.applications.policies",
        "serving.scheduling.applications.policies.application_fcfs",
        "serving.scheduling.applications.policies.edf",
        "serving.scheduling.applications.policies.gittins",
        "serving.scheduling.applications.policies.las",
        "serving.scheduling.applications.policies.least_slack",
        "serving.scheduling.applications.policies.oracle",
        "serving.scheduling.applications.policies.protocol",
        "serving.scheduling.applications.policies.request_fcfs",
        "serving.scheduling.applications.policies.sjf",
        "serving.scheduling.applications.policies.vtc",
        "serving.scheduling.applications.prospects",
        "serving.scheduling.applications.ranks",
        "serving.scheduling.applications.steady",
        "serving.scheduling.applications.tags",
        "serving.scheduling.applications.traces",
        "serving.scheduling.costs",
        "serving.scheduling.decisions",
        "serving.scheduling.preemption",
        "serving.scheduling.prewarm.coming",
        "serving.scheduling.prewarm.decide",
        "serving.scheduling.prewarm.keeping",
        "serving.scheduling.prewarm.ledger",
        "serving.scheduling.prewarm.shapes",
        "serving.scheduling.prewarm.threshold",
        "serving.scheduling.scheduler",
        "serving.scheduling.sequences",
    }
)
IMPURE = frozenset(
    "torch.distributed time os io pathlib random secrets socket subprocess tempfile threading "
    "multiprocessing datetime ray".split()
)

# The boundary files: each may import inside a function, or by a computed name, and for one reason.
BOUNDARIES = {
    "hecate/logging/sinks.py": "wandb and TensorBoard are loaded only where a run wants them",
    "hecate/cli/app.py": "a command's module is loaded only when that command runs",
    "hecate/data/readers.py": "what reads tables is loaded only where a table is read",
    "hecate/doctor/network.py": "whether Ray Train imports is what it finds out",
    "hecate/bench/peers/deepspeed_moe.py": "DeepSpeed comes with the bench extra alone",
    "hecate/bench/peers/peft_model.py": "PEFT comes with the bench extra alone",
    "hecate/train/dense/deepspeed.py": "DeepSpeed comes with an extra alone",
    "hecate/train/workers/launch.py": "Ray comes with an extra alone",
    "hecate/bench/lora/entry.py": "what serves comes with an extra alone",
    "hecate/bench/gittins/entry.py": "what serves comes with an extra alone",
    "hecate/bench/soak/entry.py": "what serves comes with an extra alone",
    "hecate/bench/serve/entry.py": "what serves comes with an extra alone",
    "serving/sandbox/child.py": "a sandbox imports what its config names",
    "serving/engine/build.py": "vLLM comes with an extra alone",
}
# Packages that not every installation has -> the files that may import them.
OPTIONAL: dict[str, frozenset[str]] = {
    "deepspeed": frozenset(
        {"hecate/bench/peers/deepspeed_moe.py", "hecate/train/dense/deepspeed.py"}
    ),
    "accelerate": frozenset(),
    "tensorboard": frozenset({"hecate/logging/tensorboard.py"}),
    "peft": frozenset({"hecate/bench/peers/peft_model.py", "hecate/bench/soak/references.py"}),
    "ray": frozenset(
        {
            "hecate/ray_start.py",
            "hecate/train/workers/cluster.py",
            "serving/app/builder.py",
            "serving/app/calls.py",
            "serving/app/launch.py",
            "serving/app/replica.py",
            "serving/app/router.py",
        }
    ),
    "grpc": frozenset({"serving/app/calls.py"}),  # comes with Ray Serve
    "vllm": frozenset(
        {
            "serving/bench/vllm_offline.py",
            "serving/engine/vllm.py",
            "serving/engine/vllm_terms.py",
        }
    ),
    "aiohttp": frozenset(
        {
            "serving/bench/senders.py",
            "hecate/bench/serve/stack.py",
            "hecate/bench/soak/clients.py",
            "hecate/bench/soak/run.py",
            "hecate/bench/lora/replicas.py",
        }
    ),
    "fastapi": frozenset(
        {"serving/api/applications.py", "serving/api/routes.py", "serving/api/connection.py"}
    ),
    "starlette": frozenset(
        {"serving/api/routes.py", "serving/api/connection.py", "serving/api/guard.py"}
    ),
    "prometheus_client": frozenset({"serving/api/metrics.py"}),
    "openai": frozenset(
        {
            "hecate/bench/gittins/applications/run.py",
            "hecate/bench/gittins/applications/served.py",
            "serving/client/application.py",
            "serving/client/instance.py",
            "serving/client/reports.py",
        }
    ),
    "llguidance": frozenset({"serving/engine/grammar.py"}),
    "uvicorn": frozenset({"serving/app/listener.py"}),
}

GROUP_MAKERS = frozenset(
    {"init_process_group", "new_group", "new_subgroups", "get_world_size", "init_device_mesh"}
)
NAMES_THAT_SAY_NOTHING = frozenset(
    "util utils common helper helpers manager managers base2 misc stuff".split()
)
MAX_LINES = 600
LONG_FILES: frozenset[str] = frozenset()
FILES_WITHOUT_TABLE = 5


@dataclass(frozen=True)
class Module:
    """One source file by its path from the repository's root."""

    path: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")

    @property
    def name(self) -> str:
        parts = PurePosixPath(self.path).with_suffix("").parts
        return ".".join(parts[:-1] if self.is_package else parts)


@dataclass(frozen=True)
class Import:
    """One imported module or name, absolute, as ``torch.distributed``."""

    target: str
    line: int
    in_function: bool


def read_modules(root: Path, folders: Iterable[str]) -> list[Module]:
    """Every Python file below ``folders``."""
    return [
        Module(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted((root / folder).rglob("*.py"))
    ]


def imports_of(module: Module) -> list[Import]:
    """All imports of ``module``, the computed ones aside."""
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(module, node)
            for alias in node.names:
                found.append(Import(f"{origin}.{alias.name}", node.lineno, in_function))
        inner = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(module.tree, False)
    return found


def _origin(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *filter(None, [node.module])])


def layer_of(target: str) -> str:
    """The entry of ``ARROWS`` that ``hecate.train.step`` or a name in it belongs to, or ""."""
    parts = target.split(".")
    if parts[0] == "collectives":
        return "collectives"
    if parts[0] not in ("hecate", "serving"):
        return ""
    return parts[0] if len(parts) == 1 or parts[1] == "__main__" else ".".join(parts[:2])


def reach(layer: str, arrows: Mapping[str, frozenset[str]] = ARROWS) -> frozenset[str]:
    """Everything that ``layer`` may import, by any number of arrows."""
    reached: set[str] = set()
    ahead = [layer]
    while ahead:
        for next_layer in arrows[ahead.pop()] - reached:
            reached.add(next_layer)
            ahead.append(next_layer)
    return frozenset(reached)


def upward_arrows(module: Module) -> Iterator[str]:
    own = layer_of(module.name)
    if own not in ARROWS:
        yield f"{module.path}: {own} has no place in ARROWS"
        return
    allowed = reach(own) | {own}
    for item in imports_of(module):
        layer = layer_of(item.target)
        if layer and layer not in allowed:
            yield f"{module.path}:{item.line}: {own} may not import {layer} ({item.target})"


def impure_decisions(module: Module, pure: frozenset[str] = PURE) -> Iterator[str]:
    if module.name not in pure:
        return
    for item in imports_of(module):
        if any(_within(item.target, forbidden) for forbidden in IMPURE):
            yield f"{module.path}:{item.line}: a pure module may not import {item.target}"
        if layer_of(item.target) and not any(_within(item.target, name) for name in pure):
            yield f"{module.path}:{item.line}: a pure module imports {item.target}, which is not"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id == "open":
            yield f"{module.path}:{node.lineno}: a pure module may not open a file"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield f"{module.path}:{node.lineno}: a pure module may not use torch.distributed"


def foreign_imports(module: Module, declared: frozenset[str]) -> Iterator[str]:
    """Third-party packages that are not declared, or are imported where they may be missing."""
    for item in imports_of(module):
        package = item.target.split(".")[0]
        if package in sys.stdlib_module_names or layer_of(item.target) or package == "__future__":
            continue
        if package in OPTIONAL:
            if module.path not in OPTIONAL[package]:
                yield f"{module.path}:{item.line}: {package} is optional; see OPTIONAL"
        elif package not in declared:
            yield f"{module.path}:{item.line}: {package} is no dependency in pyproject.toml"
        elif layer_of(module.name) == "collectives" and package != "torch":
            yield f"{module.path}:{item.line}: collectives may import torch alone"


def hidden_imports(module: Module) -> Iterator[str]:
    if module.path in BOUNDARIES:
        return
    for item in imports_of(module):
        if item.in_function:
            yield f"{module.path}:{item.line}: {item.target} is imported inside a function"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            yield f"{module.path}:{node.lineno}: a module is imported by a computed name"


def stray_group_makers(module: Module) -> Iterator[str]:
    if module.path == "hecate/mesh.py":
        return
    for node in ast.walk(module.tree):
        name = (
            node.attr
            if isinstance(node, ast.Attribute)
            else node.id
            if isinstance(node, ast.Name)
            else node.name
            if isinstance(node, ast.alias)
            else ""
        )
        if name in GROUP_MAKERS:
            yield f"{module.path}:{node.lineno}: only hecate/mesh.py may call {name}"  # type: ignore[attr-defined]


def names_that_say_nothing(module: Module) -> Iterator[str]:
    for part in PurePosixPath(module.path).with_suffix("").parts:
        if NAMES_THAT_SAY_NOTHING & set(part.split("_")):
            yield f"{module.path}: {part} does not say what it holds"


def long_files(module: Module) -> Iterator[str]:
    lines = len(module.source.splitlines())
    if lines > MAX_LINES and module.path not in LONG_FILES:
        yield f"{module.path}: {lines} lines, more than {MAX_LINES}"


def unfaithful_exports(module: Module, known: frozenset[str]) -> Iterator[str]:
    """A package's ``__init__`` re-exports names or holds a table; ``__all__`` lists just those."""
    if not module.is_package:
        return
    bound: set[str] = set()
    tables: set[str] = set()
    listed: set[str] = set()
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            origin = _origin(module, node)
            if layer_of(origin):
                names = (
                    a.asname or a.name for a in node.names if f"{origin}.{a.name}" not in known
                )
                bound.update(names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield f"{module.path}:{node.lineno}: {node.name} belongs in a file of its own"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                name = ast.unparse(target)
                if name == "__all__" and node.value is not None:
                    listed = set(ast.literal_eval(node.value))
                elif not name.startswith("_"):
                    tables.add(name)
    # What only fills a table here, the table exports.
    used = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    if missing := (bound - used | tables) - listed:
        yield f"{module.path}: __all__ lacks {', '.join(sorted(missing))}"
    if surplus := listed - bound - tables:
        yield f"{module.path}: __all__ names {', '.join(sorted(surplus))}, which it does not export"


def missing_tables(modules: Iterable[Module]) -> Iterator[str]:
    """A folder with many files opens its ``__init__`` with a table that names each of them."""
    modules = list(modules)
    for package in (module for module in modules if module.is_package):
        folder = PurePosixPath(package.path).parent
        files = [
            PurePosixPath(module.path).name
            for module in modules
            if PurePosixPath(module.path).parent == folder and not module.is_package
        ]
        text = ast.get_docstring(package.tree) or ""
        if len(files) > FILES_WITHOUT_TABLE:
            for file in files:
                if file not in text and file != "__main__.py":
                    yield f"{package.path}: the docstring's table lacks {file}"


def _within(target: str, module: str) -> bool:
    return target == module or target.startswith(f"{module}.")
