"""Configuration: what is read, what is refused and how, and where each value came from."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, JsonValue, field_validator

from hecate.config import (
    Config,
    LoadedConfig,
    describe,
    dump_config,
    load_config,
    parse_config,
)
from hecate.errors import ConfigError


class Optimizer(Config):
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["adamw", "muon"] = "adamw"


class Model(Config):
    path: str = ""
    sizes: dict[str, JsonValue] = Field(default_factory=dict)


class Train(Config):
    steps: int
    tracking: Literal["online", "offline", "off"] = "offline"
    clip: bool = True

    @field_validator("steps")
    @classmethod
    def _positive(cls, steps: int) -> int:
        if steps < 1:
            raise ValueError("at least 1 step")
        return steps


class Run(Config):
    name: str
    train: Train
    model: Model = Model()
    optimizer: Optimizer = Optimizer()


BASE = """\
name: first
train:
  steps: 100
model:
  sizes:
    hidden_size: 64   # a comment
    rope: {theta: 1e4, scaled: false}
"""


def load(folder: Path, text: str, *overrides: str) -> LoadedConfig[Run]:
    path = folder / "demo.yaml"
    path.write_text(text)
    return load_config(Run, path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


def test_values_that_another_program_read() -> None:
    values = {"name": "first", "train": {"steps": 100}, "optimizer": {"betas": [0.5, 0.9]}}
    assert parse_config(Run, values, "args") == Run(
        name="first", train=Train(steps=100), optimizer=Optimizer(betas=(0.5, 0.9))
    )
    with pytest.raises(ConfigError, match=r"(?s)train.stps \(args\).*did you mean train.steps"):
        parse_config(Run, values | {"train": {"stps": 1}}, "args")
    with pytest.raises(ConfigError, match=r"train.steps does not stand \(args\)"):
        parse_config(Run, values | {"train": {"steps": "100"}}, "args")


def test_values_and_origins(tmp_path: Path) -> None:
    loaded = load(tmp_path, BASE, "optimizer.learning_rate=3e-4")
    assert loaded.value == Run(
        name="first",
        train=Train(steps=100),
        model=Model(sizes={"hidden_size": 64, "rope": {"theta": 1e4, "scaled": False}}),
        optimizer=Optimizer(learning_rate=3e-4),
    )
    assert loaded.origins == {
        "name": "demo.yaml:1",
        "train.steps": "demo.yaml:3",
        "train.tracking": "default",
        "train.clip": "default",
        "model.path": "default",
        "model.sizes.hidden_size": "demo.yaml:6",
        "model.sizes.rope.theta": "demo.yaml:7",
        "model.sizes.rope.scaled": "demo.yaml:7",
        "optimizer.learning_rate": "--set",
        "optimizer.betas": "default",
        "optimizer.kind": "default",
    }


def test_describe_shows_each_leaf_with_its_origin(tmp_path: Path) -> None:
    lines = describe(load(tmp_path, BASE, "train.tracking=off")).splitlines()
    assert [line.split("#")[0].strip() for line in lines] == [
        "name: first",
        "train.steps: 100",
        "train.tracking: off",
        "train.clip: true",
        "model.path: ''",
        "model.sizes.hidden_size: 64",
        "model.sizes.rope.theta: 10000.0",
        "model.sizes.rope.scaled: false",
        "optimizer.learning_rate: 0.001",
        "optimizer.betas: [0.9, 0.95]",
        "optimizer.kind: adamw",
    ]
    assert lines[1].endswith("# demo.yaml:3") and lines[2].endswith("# --set")
    assert len({line.index("#") for line in lines}) == 1


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=7", "train", Train(steps=7)),
        ("train={steps: 9, clip: false}", "train", Train(steps=9, clip=False)),
        ("train={clip: false}", "train", Train(steps=100, clip=False)),
        ("optimizer.betas=[0.8, 0.9]", "optimizer", Optimizer(betas=(0.8, 0.9))),
        ("optimizer.learning_rate=1e-5", "optimizer", Optimizer(learning_rate=1e-5)),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("model.sizes={a: {b: [1]}}", "model", Model(sizes={"a": {"b": [1]}})),
        ("model.sizes={}", "model", Model(sizes={})),
        (
            "model.sizes.rope.theta=5.0",
            "model",
            Model(sizes={"hidden_size": 64, "rope": {"theta": 5.0, "scaled": False}}),
        ),
        ("model.sizes.rope=none", "model", Model(sizes={"hidden_size": 64, "rope": "none"})),
        (
            "model.sizes.hidden_size.deep=1",
            "model",
            Model(sizes={"hidden_size": {"deep": 1}, "rope": {"theta": 1e4, "scaled": False}}),
        ),
    ],
)
def test_overrides_are_yaml(tmp_path: Path, override: str, key: str, value: object) -> None:
    loaded = load(tmp_path, BASE, override)
    assert getattr(loaded.value, key) == value


def test_an_override_equal_to_the_default_still_shows(tmp_path: Path) -> None:
    loaded = load(tmp_path, BASE, "model.path=''")
    assert loaded.value == load(tmp_path, BASE).value
    assert loaded.origins["model.path"] == "--set"


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load(tmp_path, BASE, "train.steps=1", "train.steps=2").value.train.steps == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("off", "off"), ("no", "no"), ("1e-4", 1e-4), ("010", 10), ("0x10", 16), ("12:30", "12:30")],
)
def test_scalars_follow_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    loaded = load(tmp_path, BASE, f"model.sizes.x={text}")
    assert loaded.value.model.sizes["x"] == value
    assert type(loaded.value.model.sizes["x"]) is type(value)


def test_unknown_key_names_the_nearest_and_the_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, BASE + "optimizer:\n  lerning_rate: 1\n")
    assert f"unknown key optimizer.lerning_rate ({tmp_path}/demo.yaml:9)" in message
    assert "did you mean optimizer.learning_rate?" in message
    assert "one of learning_rate, betas, kind in optimizer" in message


def test_unknown_section_and_unknown_override(tmp_path: Path) -> None:
    assert "did you mean train?" in refusal(tmp_path, BASE + "trian: {}\n")
    message = refusal(tmp_path, BASE, "train.step=4")
    assert "unknown key train.step (--set)" in message and "did you mean train.steps?" in message
    assert "did you mean" not in refusal(tmp_path, BASE, "quux=4")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.steps='100'", ["train.steps", "(--set)", "'100'", "a valid integer"]),
        ("train.steps=true", ["train.steps", "true", "a valid integer"]),
        ("train.steps=1.5", ["train.steps", "1.5", "a valid integer"]),
        ("train.steps.more=1", ["train.steps", "more: 1", "a valid integer"]),
        ("train.steps=0", ["train.steps", "got:      0", "at least 1 step"]),
        ("train=fast", ["train", "fast", "an object"]),
        ("train.tracking=never", ["train.tracking", "never", "'offline'"]),
        ("optimizer.betas=[0.9, high]", ["optimizer.betas.1", "high", "a valid number"]),
        ("name=2024", ["name", "2024", 'name: "2024"']),
    ],
)
def test_wrong_types(tmp_path: Path, override: str, parts: list[str]) -> None:
    message = refusal(tmp_path, BASE, override)
    assert "does not stand" in message
    for part in parts:
        assert part in message


def test_several_wrong_values_make_one_error(tmp_path: Path) -> None:
    message = refusal(tmp_path, BASE + "optimizer: {kind: sgd}\n", "train.clip=maybe")
    assert "2 values" in message
    assert "train.clip does not stand (--set): got maybe" in message
    assert "optimizer.kind does not stand (demo.yaml:8): got sgd" in message


def test_missing_keys_are_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, "model: {}\n")
    assert "name is not set" in message and "train.steps is not set" in message


def test_a_section_without_content_keeps_its_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, BASE + "optimizer:\n").value.optimizer == Optimizer()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: a\ntrain: {steps: 1}\nname: b\n", "lines 1 and 3"),
        ("name: a\ntrain:\n  steps: 1\n  steps: 2\n", "steps stands twice"),
        ("", "is empty"),
        ("# nothing but a comment\n", "is empty"),
        ("- a\n- b\n", "is not a configuration"),
        ("just words\n", "is not a configuration"),
        ("name: [a\ntrain: b\n", "demo.yaml:2 is not valid YAML"),
        ("name: a\n---\nname: b\n", "is not valid YAML"),
        ("name: !!python/object:os.system x\n", "is not valid YAML"),
        ("name: &x\n  y: *x\n", "contains itself"),
        ("? [a, b]\n: c\n", "a key that is not a word"),
        ("name: \x07\n", "is not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, part: str) -> None:
    assert part in refusal(tmp_path, text)


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"did you mean .*demo\.yaml\?"):
        load_config(Run, tmp_path / "demos.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(Run, tmp_path)
    (tmp_path / "demo.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(Run, tmp_path / "demo.yaml")


@pytest.mark.parametrize("override", ["train.steps", "=3", "train..steps=3", ".=1"])
def test_overrides_without_key_or_value(tmp_path: Path, override: str) -> None:
    assert "expected: --set a.b=value" in refusal(tmp_path, BASE, override)


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, BASE).value.train.steps = 3  # type: ignore[misc]


LEAVES = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.sampled_from(["off", "1e-4", "010", "null", "~", "", "0x1", ".inf", "12:30", "true", "- a"]),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
)
SIZES = st.dictionaries(
    st.text("abcxyz_019", min_size=1),
    st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner)),
)


@settings(max_examples=100)
@given(sizes=SIZES, name=st.text(st.characters(codec="utf-8")), rate=st.floats(allow_nan=False))
def test_dumps_read_back_to_an_equal_value(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, JsonValue], name: str, rate: float
) -> None:
    run = Run(
        name=name,
        train=Train(steps=3, tracking="off"),
        model=Model(sizes=sizes),
        optimizer=Optimizer(learning_rate=rate),
    )
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(run), encoding="utf-8")
    assert load_config(Run, path).value == run
