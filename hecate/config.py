"""One loader for every configuration: YAML and ``--set`` in, a frozen pydantic tree out.

Each component owns a frozen model beside its code, derived from ``Config``; a tree of these makes a
run's configuration. A key that nobody owns is an error that names the nearest one that exists, and
every value keeps its origin (a line of the file, ``--set``, or the default).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hecate.errors import ConfigError
from hecate.yaml_text import Located, dump_yaml, parse_yaml, show_scalar

DEFAULT = "default"
OVERRIDE = "--set"

Key = tuple[str, ...]


class Config(BaseModel):
    """The base of every configuration: frozen, and closed to keys that it does not declare."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def what_instead(cls, key: Key) -> str:
        """How to mend an unknown ``key`` that other programs know; "" where nothing is known."""
        return ""


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class LoadedConfig(Generic[C]):
    """A configuration and where each leaf came from, as ``"train.steps" -> "demo.yaml:12"``."""

    value: C
    origins: dict[str, str]


@dataclass(frozen=True)
class _Setting:
    value: Any
    origin: str


def load_config(cls: type[C], path: Path, overrides: Sequence[str] = ()) -> LoadedConfig[C]:
    """Read ``path`` as a ``cls``, then apply each ``a.b=value`` of ``overrides``; the last wins.

    A mapping given for a section sets the keys that it names; given for a free mapping such as
    ``model.sizes`` it replaces the whole; ``a.b=`` is the empty text. Types are checked strictly:
    ``steps: "100"`` is an error.
    Raises ``ConfigError``.
    """
    document = parse_yaml(_read(path), str(path))
    if document.value is None:
        raise ConfigError(f"{path} is empty", expected=_choices(cls), fix="see configs/train/")
    if not isinstance(document.value, dict):
        raise ConfigError(
            f"{path}:{document.line} is not a configuration",
            got=show_scalar(document.plain()),
            expected="a mapping of keys to values",
        )
    settings: dict[Key, _Setting] = {}
    for key, located in _settings(cls, cls, (), document, str(path)):
        settings[key] = _Setting(located.plain(), f"{path.name}:{located.line}")
    for override in overrides:
        _apply(cls, settings, override)
    value = _validate(cls, settings, str(path))
    origins = {key: DEFAULT for key, _ in _leaves(value)}
    for parts, setting in settings.items():
        if (dotted := ".".join(parts)) in origins:
            origins[dotted] = setting.origin
    return LoadedConfig(value, origins)


def parse_config(cls: type[C], values: Mapping[str, Any], source: str) -> C:
    """``values``, as another program read them, as a ``cls``; raises as ``load_config`` does."""
    leaves = _settings(cls, cls, (), _without_lines(values), source)
    settings = {key: _Setting(located.plain(), source) for key, located in leaves}
    return _validate(cls, settings, source)


def override_config(value: C, overrides: Sequence[str]) -> C:
    """``value`` with each ``a.b=value`` of ``overrides`` in it; raises as ``load_config`` does."""
    settings = {tuple(key.split(".")): _Setting(leaf, DEFAULT) for key, leaf in _leaves(value)}
    for override in overrides:
        _apply(type(value), settings, override)
    return _validate(type(value), settings, OVERRIDE)


def dump_config(config: Config) -> str:
    """YAML that ``load_config`` reads back to an equal value."""
    return dump_yaml(config.model_dump(mode="json"))


def describe(loaded: LoadedConfig[C]) -> str:
    """Each leaf on a line of its own, ``a.b: value   # origin``, the origins aligned."""
    lines = [(f"{key}: {show_scalar(value)}", key) for key, value in _leaves(loaded.value)]
    width = min(60, max((len(text) for text, _ in lines), default=0))
    return "\n".join(f"{text:<{width}}   # {loaded.origins[key]}" for text, key in lines)


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The one of ``names`` that ``name`` most likely meant; "" where none is near."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)), "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        folder = path.parent if path.parent.is_dir() else Path("configs/train")
        near = nearest_name(path.name, (file.name for file in folder.glob("*.yaml")))
        raise ConfigError(
            f"there is no configuration {path}",
            got=f"nothing at {path.absolute()}",
            expected="a YAML file",
            fix=f"did you mean {folder / near}?" if near else "give the path of such a file",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}", got=str(error), expected="a YAML file in UTF-8"
        ) from error


def _apply(cls: type[Config], settings: dict[Key, _Setting], override: str) -> None:
    """Put one ``a.b=value`` over ``settings``."""
    name, equals, text = override.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        raise ConfigError(
            "--set does not name a key and a value",
            got=override,
            expected="--set a.b=value",
        )
    located = parse_yaml(text, f"{OVERRIDE} {override}") if text.strip() else Located("", 0)
    for part in reversed(key):
        located = Located({part: located}, 0)
    if not _is_section(cls, key):
        _clear(settings, key)
    for leaf, inner in _settings(cls, cls, (), located, OVERRIDE):
        _clear(settings, leaf)
        settings[leaf] = _Setting(inner.plain(), OVERRIDE)


def _clear(settings: dict[Key, _Setting], key: Key) -> None:
    """Forget what lies under ``key``, and any value that stands where ``key`` needs a mapping."""
    for other in list(settings):
        shared = min(len(other), len(key))
        if other[:shared] == key[:shared]:
            del settings[other]


def _settings(
    root: type[Config], cls: type[Config], prefix: Key, located: Located, source: str
) -> Iterator[tuple[Key, Located]]:
    """The leaves of a mapping that is to become a ``cls`` in a ``root``, its keys checked."""
    for name, inner in located.value.items():
        key = (*prefix, name)
        if name not in cls.model_fields:
            where = f"{source}:{inner.line}" if source != OVERRIDE and inner.line else source
            raise _unknown_key(root, cls, key, where)
        section = _section(cls, name)
        if section is None:
            yield from _mapping_leaves(key, inner)
        elif isinstance(inner.value, dict):
            yield from _settings(root, section, key, inner, source)
        elif inner.value is not None or source == OVERRIDE:  # "data:" alone keeps the defaults
            yield key, inner


def _without_lines(value: Any) -> Located:
    if isinstance(value, Mapping):
        return Located({str(name): _without_lines(inner) for name, inner in value.items()}, 0)
    return Located(value, 0)


def _mapping_leaves(key: Key, located: Located) -> Iterator[tuple[Key, Located]]:
    if isinstance(located.value, dict) and located.value:
        for name, inner in located.value.items():
            yield from _mapping_leaves((*key, name), inner)
    else:
        yield key, located


def _section(cls: type[Config], name: str) -> type[Config] | None:
    """The configuration class of a field that is a section; ``None`` for a leaf."""
    annotation = cls.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def _is_section(cls: type[Config], key: Key) -> bool:
    for name in key:
        section = _section(cls, name) if name in cls.model_fields else None
        if section is None:
            return False
        cls = section
    return True


def _choices(cls: type[Config]) -> str:
    return "one of " + ", ".join(cls.model_fields)


def _field_keys(cls: type[Config], prefix: str = "") -> Iterator[str]:
    for name in cls.model_fields:
        yield prefix + name
        section = _section(cls, name)
        if section is not None:
            yield from _field_keys(section, f"{prefix}{name}.")


def _unknown_key(root: type[Config], cls: type[Config], key: Key, where: str) -> ConfigError:
    name = key[-1]
    prefix = ".".join(key[:-1])
    within = f"{prefix}." if prefix else ""
    near = nearest_name(name, cls.model_fields)
    instead = root.what_instead(key)
    return ConfigError(
        f"unknown key {'.'.join(key)} ({where})",
        got=name,
        expected=f"{_choices(cls)} in {prefix or 'the configuration'}",
        fix=instead
        or (f"did you mean {within}{near}?" if near else "choose one of these, or leave it out"),
    )


def _validate(cls: type[C], settings: Mapping[Key, _Setting], source: str) -> C:
    tree: dict[str, Any] = {}
    for key, setting in settings.items():
        node = tree
        for part in key[:-1]:
            node = node.setdefault(part, {})
        node[key[-1]] = setting.value
    try:
        # Strict by way of JSON: text is no number, true is no 1, but a list may become a tuple.
        return cls.model_validate_json(json.dumps(_with_sections(cls, tree)), strict=True)
    except ValidationError as error:
        raise _invalid(error, settings, source) from error


def _with_sections(cls: type[Config], tree: dict[str, Any]) -> dict[str, Any]:
    """``tree`` with an empty mapping for each absent section, so that errors name its keys."""
    whole = dict(tree)
    for name in cls.model_fields:
        section = _section(cls, name)
        if section is not None and isinstance(inner := tree.get(name, {}), dict):
            if name in tree or cls.model_fields[name].is_required():
                whole[name] = _with_sections(section, inner)
    return whole


def _invalid(error: ValidationError, settings: Mapping[Key, _Setting], source: str) -> ConfigError:
    """All that pydantic found, as one error."""
    found: list[tuple[str, str, str]] = []
    fix = ""
    for detail in error.errors(include_url=False):
        key = tuple(str(part) for part in detail["loc"])
        dotted = ".".join(key)
        if detail["type"] == "missing":
            found.append((f"{dotted} is not set ({source})", "nothing", "a value"))
            fix = f"set {dotted} there, or with --set {dotted}=..."
            continue
        origin = _origin(settings, key)
        message = str(detail["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
        got = show_scalar(detail["input"])
        fix = f"correct {dotted}" if dotted else f"correct {source}"
        if detail["type"] == "string_type":
            fix = f'put text in quotes: {key[-1]}: "{"" if got == "null" else got}"'
        found.append((f"{dotted or source} does not stand ({origin})", got, message))
    if len(found) == 1:
        what, got, expected = found[0]
        return ConfigError(what, got=got, expected=expected, fix=fix)
    lines = [f"- {what}: got {got}, expected {expected}" for what, got, expected in found]
    return ConfigError(
        f"{len(found)} values of {source} do not stand:\n" + "\n".join(lines),
        fix="correct each of them",
    )


def _origin(settings: Mapping[Key, _Setting], key: Key) -> str:
    """Where ``key`` was set: itself, what it lies in (an item of a list), or what lies in it."""
    for other, setting in settings.items():
        shared = min(len(other), len(key))
        if other[:shared] == key[:shared]:
            return setting.origin
    return DEFAULT


def _leaves(config: Config) -> Iterator[tuple[str, Any]]:
    """Each leaf of ``config`` by its dotted key, in the fields' order; free mappings are opened."""

    def open_mapping(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from open_mapping(f"{key}.{name}", inner)
        else:
            yield key, value

    for name, value in config.model_dump(mode="json").items():
        yield from open_mapping(name, value)
