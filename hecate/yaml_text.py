"""YAML as configuration means it: the 1.2 core schema, with the line of every value.

PyYAML follows YAML 1.1, where ``off`` is false, ``1e-4`` is a string, ``010`` is eight and a key
may stand twice. Here ``off`` is a string, ``1e-4`` a number, ``010`` ten, and a key stands once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from hecate.errors import ConfigError

_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^(?:{_pattern})$"),
            ["" if letter == "\0" else letter for letter in _first],
        )


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Text with line breaks or unprintable characters goes in double quotes, which escape them."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


@dataclass(frozen=True)
class Located:
    """A value and the line (from 1) on which it stands; a mapping's values are ``Located`` too."""

    value: Any
    line: int

    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.value, dict):
            return {key: inner.plain() for key, inner in self.value.items()}
        return self.value


def parse_yaml(text: str, source: str) -> Located:
    """The one document in ``text``; ``source`` names it in a ``ConfigError``."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Located(None, 1)
        return _locate(loader, node, source, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{source}{line} is not valid YAML",
            got=" ".join(part for part in (error.context, error.problem) if part),
            expected="one mapping of keys to values",
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{source} is not valid YAML", got=str(error).replace("\n", " ")
        ) from error


def dump_yaml(value: Any) -> str:
    """Block YAML that ``parse_yaml`` reads back to an equal value; keys in the order given."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return str(text)


def show_scalar(value: Any) -> str:
    """``value`` on one line, as it would be written in a file or after ``--set key=``."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=True,
        width=float("inf"),
    )
    return str(text).removesuffix("\n").removesuffix("\n...")


def _locate(
    loader: _Loader, node: yaml.Node, source: str, parents: tuple[yaml.Node, ...]
) -> Located:
    line = node.start_mark.line + 1
    if node in parents:
        raise ConfigError(f"{source}:{line} contains itself", expected="values that end")
    parents = (*parents, node)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Located] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(
                    f"{source}:{key_node.start_mark.line + 1} has a key that is not a word",
                    got="a list or a mapping as a key",
                    expected="key: value",
                )
            key = str(key_node.value)
            key_line = key_node.start_mark.line + 1
            if key in mapping:
                raise ConfigError(
                    f"{key} stands twice in {source}",
                    got=f"lines {mapping[key].line} and {key_line}",
                    expected="each key once",
                )
            inner = _locate(loader, value_node, source, parents)
            mapping[key] = Located(inner.value, key_line)
        return Located(mapping, line)
    if isinstance(node, yaml.SequenceNode):
        items = [_locate(loader, item, source, parents).plain() for item in node.value]
        return Located(items, line)
    if node.tag == "tag:yaml.org,2002:int":
        text = str(node.value)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return Located(int(text, base), line)
    return Located(loader.construct_object(node), line)
