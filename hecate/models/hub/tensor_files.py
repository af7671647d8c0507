"""The safetensors files of a Hugging Face folder: which there are, and what is in them.

Headers are read when the folder is opened, so that a missing, cut or foreign file is refused
before anything is built on it; a tensor's bytes are read when they are asked for, and a row's
alone where a row is asked for.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from hecate.errors import ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class TensorSlice(Protocol):
    """One tensor that has not been read: its shape, and any part of it by indexing."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: Any, /) -> torch.Tensor: ...


class TensorFile(Protocol):
    """One open safetensors file."""

    def keys(self) -> Iterable[str]: ...

    def get_slice(self, name: str, /) -> TensorSlice: ...


def open_safetensors(path: Path) -> TensorFile:
    """Map ``path`` into memory; its header is checked against its size, nothing else is read."""
    file: TensorFile = safe_open(path, framework="pt", device="cpu")
    return file


class TensorFolder:
    """Every tensor of a folder by its name there.

    ``opener`` maps one file; a test passes one that counts what is read.
    """

    def __init__(
        self, folder: Path, *, opener: Callable[[Path], TensorFile] = open_safetensors
    ) -> None:
        self.folder = folder
        self._slices: dict[str, TensorSlice] = {}
        self._paths: dict[str, Path] = {}
        for file_name, names in _listed_files(folder).items():
            self._open(folder / file_name, names, opener)
        single = folder / SINGLE_FILE
        self.listing = single if single.is_file() else folder / INDEX_FILE

    def _open(
        self, path: Path, listed: frozenset[str], opener: Callable[[Path], TensorFile]
    ) -> None:
        if not path.is_file():
            raise ModelError(
                f"{path} is missing",
                got="no such file",
                expected=f"the {len(listed)} tensors that {INDEX_FILE} places in it, "
                f"such as {min(listed)}",
                fix="copy the file again from where the model came from",
            )
        try:
            file = opener(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is cut short or is no safetensors file",
                got=_what_is_cut(path) or str(error),
                expected="a header, and every byte of the tensors that it lists",
                fix="copy the file again from where the model came from",
            ) from error
        names = set(file.keys())
        absent = sorted(listed - names - {""})
        if absent:
            raise ModelError(
                f"{path} lacks tensor {absent[0]}",
                got=f"{len(names)} tensors, without {len(absent)} of those listed",
                expected=f"every tensor that {INDEX_FILE} places in it",
                fix="copy both files again from where the model came from",
            )
        for name in names:
            self._slices[name] = file.get_slice(name)
            self._paths[name] = path

    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._slices)

    def path(self, name: str) -> Path:
        """The file that holds ``name``."""
        return self._paths[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of ``name``, from its file's header."""
        return tuple(self._slices[name].get_shape())

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, in its file's dtype, on the CPU."""
        return self._slices[name][...]

    def read_row(self, name: str, row: int) -> torch.Tensor:
        """``tensor[row : row + 1]``; only that row's bytes are read."""
        return self._slices[name][row : row + 1]


def _listed_files(folder: Path) -> dict[str, frozenset[str]]:
    """The weight files, each with the tensors that the index places in it ("" without one)."""
    if (folder / SINGLE_FILE).is_file():
        return {SINGLE_FILE: frozenset({""})}
    index = folder / INDEX_FILE
    if not index.is_file():
        old = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        raise ModelError(
            f"{folder} has no safetensors weights",
            got=f"{old[0]}, a pickle that cannot be read tensor by tensor" if old else "none",
            expected=f"{SINGLE_FILE}, or {INDEX_FILE} and the files that it lists",
            fix="load it once with transformers' AutoModelForCausalLM.from_pretrained and write it "
            "with save_pretrained"
            if old
            else "copy the weights into the folder",
        )
    try:
        weight_map: dict[str, str] = dict(
            json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        )
        files: dict[str, set[str]] = {}
        for name, file_name in weight_map.items():
            files.setdefault(Path(file_name).name, set()).add(name)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(
            f"{index} cannot be read",
            got=f"{type(error).__name__}: {error}",
            expected='JSON with a "weight_map" from tensor names to file names',
            fix="copy the file again from where the model came from",
        ) from error
    return {file_name: frozenset(names) for file_name, names in sorted(files.items())}


def _what_is_cut(path: Path) -> str:
    """Which tensor a cut file ends in; "" where even the header does not say."""
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            size_bytes = path.stat().st_size
            if header_bytes > size_bytes:
                return f"a header cut at byte {size_bytes}"
            header = json.loads(file.read(header_bytes))
        data_bytes = size_bytes - 8 - header_bytes
        header.pop("__metadata__", None)
        spans = sorted((entry["data_offsets"][1], name) for name, entry in header.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return ""
    cut = [(end, name) for end, name in spans if end > data_bytes]
    return f"{size_bytes} bytes; tensor {cut[0][1]} and {len(cut) - 1} more are cut" if cut else ""
