"""A model's folder once more, with every tensor as it lies in memory, so that all can be mapped.

transformers maps what a file holds as the model wants it: such memory is clean, shared between
processes, and the kernel may take it back. What it converts on loading, the experts of a layer into
one tensor or all weights to another dtype, is memory of each process's own. So a model of which
much is converted is saved as it came out, in transformers' own format, once on a machine, and read
from there.

Note: what becomes of prepared folders
    They lie in ``weights`` of the user's cache folder, by the model's digest, the dtype and
    transformers' version. One process prepares, under a lock that ends with it; others wait. A
    folder gets its name when it is whole. Together they take at most a quarter of the disk: those
    used longest ago go first (whoever maps one keeps it until it ends). All can be deleted at
    any time.
"""

from __future__ import annotations

import bisect
import logging
import os
import shutil
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.modeling_utils import PreTrainedModel

from hecate.errors import ModelError
from hecate.files import locked
from hecate.models.pretrained import causal_model

_LOG = logging.getLogger(__name__)

WORTH_BYTES = 64 << 20
_SHARE_OF_DISK = 4
_WEIGHTS = "model.safetensors"
_AS_IT_WAS = "not-prepared"  # in place of a model that did not come out the same


def mapped_model(
    folder: Path,
    dtype: torch.dtype | None,
    *,
    digest: str,
    cache: Path,
    worth_bytes: int = WORTH_BYTES,
) -> PreTrainedModel:
    """``causal_model(folder, dtype)``, prepared in ``cache`` where it would not be mapped.

    ``worth_bytes``: below so many converted bytes nothing is prepared.
    """
    if sum(path.stat().st_size for path in folder.glob("*.safetensors")) < worth_bytes:
        return causal_model(folder, dtype)
    as_dtype = str(dtype).removeprefix("torch.") if dtype else "auto"
    name = f"{digest[:32]}-{as_dtype}-{transformers.__version__}"
    entry = cache / name
    model = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f".{name}.lock"):
            if (model := _read(entry, dtype)) is not None:
                return model
            model = causal_model(folder, dtype)
            if not (entry / _AS_IT_WAS).exists() and converted_bytes(model) >= worth_bytes:
                return _prepare(model, folder, entry, dtype)
    except (OSError, SafetensorError) as why:
        _LOG.warning("converted weights of %s are kept in memory: %s", folder, why)
    return model or causal_model(folder, dtype)


def converted_bytes(model: PreTrainedModel) -> int:
    """How much of the model's memory is no file's. 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    starts, ends = [], []
    for line in lines:
        span, _, _, _, inode = line.split()[:5]
        if inode != "0":
            start, end = (int(part, 16) for part in span.split("-"))
            starts.append(start)
            ends.append(end)
    total = 0
    for parameter in model.parameters():
        at = bisect.bisect(starts, parameter.data_ptr()) - 1
        if at < 0 or parameter.data_ptr() >= ends[at]:
            total += parameter.numel() * parameter.element_size()
    return total


def _read(entry: Path, dtype: torch.dtype | None) -> PreTrainedModel | None:
    if not (entry / _WEIGHTS).exists():
        return None
    try:
        model = causal_model(entry, dtype)
    except ModelError as why:
        _LOG.warning("%s is damaged and made anew: %s", entry, why)
        shutil.rmtree(entry)
        return None
    os.utime(entry)
    return model


def _prepare(
    model: PreTrainedModel, folder: Path, entry: Path, dtype: torch.dtype | None
) -> PreTrainedModel:
    """``model`` as it is read from ``entry``, once saved there; itself where that differs."""
    weights = _distinct(model.state_dict())
    _make_room(entry, sum(tensor.nbytes for tensor in weights.values()))
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        for path in folder.glob("*.json"):
            if not path.name.endswith(".index.json"):
                shutil.copyfile(path, partial / path.name)
        save_file(weights, partial / _WEIGHTS, metadata={"format": "pt"})
        mapped = _same_model(model, partial, dtype)
        if mapped is None:
            _LOG.info("%s is not prepared: it does not come out the same", folder)
            (partial / _WEIGHTS).unlink()
            (partial / _AS_IT_WAS).touch()
        shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return mapped or model


def _distinct(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without names that are tied to one that came before."""
    seen: set[tuple[int, torch.Size]] = set()
    kept = {}
    for name, tensor in weights.items():
        if (tensor.data_ptr(), tensor.shape) not in seen:
            seen.add((tensor.data_ptr(), tensor.shape))
            kept[name] = tensor.contiguous()
    return kept


def _same_model(
    model: PreTrainedModel, folder: Path, dtype: torch.dtype | None
) -> PreTrainedModel | None:
    """What is read from ``folder``, if its weights and buffers are the model's, bit for bit."""
    try:
        read = causal_model(folder, dtype)
    except ModelError:
        return None
    tensors, others = (
        {**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (model, read)
    )
    same = tensors.keys() == others.keys() and all(
        tensor.dtype == others[name].dtype and torch.equal(tensor, others[name])
        for name, tensor in tensors.items()
    )
    return read if same else None


def _make_room(entry: Path, needed_bytes: int) -> None:
    """Delete what was used longest ago. Raises ``OSError`` where that is not enough."""
    cache = entry.parent
    folders = [path for path in cache.iterdir() if path.is_dir() and path != entry]
    kept = []
    for path in sorted(folders, key=lambda path: path.stat().st_mtime):
        if path.suffix != ".partial":
            kept.append(path)
        elif _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
    disk = shutil.disk_usage(cache)
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in kept]
    room = disk.total // _SHARE_OF_DISK - needed_bytes
    if room < 0 or disk.free < needed_bytes:
        raise OSError(f"{cache} has no room for {needed_bytes / 2**30:.1f} GiB more")
    for oldest, path in enumerate(kept):
        if sum(sizes[oldest:]) <= room:
            break
        shutil.rmtree(path, ignore_errors=True)


def _abandoned(partial: Path) -> bool:
    """Whether nobody writes it any more."""
    try:
        with locked(partial.with_suffix(".lock"), wait=False):
            return True
    except OSError:
        return False
