"""The forward pass of decoders that our kernels know: one call a step, over packed weights."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from serving.engine.batch import Piece
from serving.engine.forward import Forward, HuggingFaceForward
from serving.engine.kernels import library
from serving.engine.kernels.library import KernelsMissing, kernels
from serving.engine.packing import Arena, panel_memory
from serving.engine.panels import Sharing
from serving.engine.structure import (
    Decoder,
    LayerWeights,
    Linear,
    Unknown,
    decoder_of,
)
from serving.memory.kv import LayerShape, PagedKV

_LOG = logging.getLogger(__name__)

PROJECTIONS = ("qkv", "out", "gate_up", "down")

_CHECK_TOKENS = 12


class Late(Protocol):
    """What is added elsewhere to ``projections``, each time with the layer and the projection."""

    @property
    def projections(self) -> Collection[str]: ...

    def before(self, layer: int, projection: str) -> None:
        """What the projection reads is there, and is not yet projected; not called of experts."""
        ...

    def after(self, layer: int, projection: str) -> None:
        """Add: nothing has read yet what was projected. See ``Buffers`` for where it lies."""
        ...


def fastest_forward(
    model: PreTrainedModel,
    layers: Sequence[LayerShape],
    kv: PagedKV,
    *,
    positions: int,
    sharing: Sharing | None = None,
) -> Forward:
    """Our kernels where they know the model and compute what it does, or its own code.

    ``positions``: of the longest sequence. ``sharing``: of packed weights with other replicas; None
    keeps them to this process. Says once why, where it is the model's own code.
    """
    try:
        threads = torch.get_num_threads()
        forward = CompiledForward(model, kv, positions=positions, threads=threads, sharing=sharing)
        _check(forward, model, layers)
    except (Unknown, KernelsMissing) as why:
        if model.device.type == "cpu":
            _LOG.warning("%s runs without compiled kernels: %s", type(model).__name__, why)
        return HuggingFaceForward(model, kv)
    return forward


class Buffers:
    """What is computed on the way, of up to ``tokens`` tokens; ``order_R`` and what follows only
    where there are experts.

    | after | reads | has written |
    |---|---|---|
    | qkv | normed_TD | qkv_T: float32, queries, keys, values |
    | out | attended_TN | hidden_TD: float32, the residual stream, added to |
    | gate_up | normed_TD (of experts: row r is of token order_R[r] // K) | up_R: float32 |
    | down | act_RF | hidden_TD, added to (of experts: pairs_RD, weighted and added later) |
    """

    def __init__(self, decoder: Decoder, tokens: int) -> None:
        D = decoder.embedding.shape[1]
        dtype = decoder.embedding.dtype
        heads = (decoder.queries + 2 * decoder.keys) * decoder.head_dim
        N = decoder.queries * decoder.head_dim
        E = max((layer.router.shape[0] for layer in decoder.layers if layer.router), default=0)
        F = max(layer.down.shape[-1] for layer in decoder.layers)
        R = tokens * max(1, decoder.chosen if E else 1)
        self.tokens = tokens
        self.hidden_TD = torch.empty(tokens, D)
        self.qkv_T = torch.empty(tokens, heads)
        self.router_TE = torch.empty(tokens, E)
        self.up_R = torch.empty(R * 2 * F)
        self.pairs_RD = torch.empty(R if E else 0, D)
        self.normed_TD = torch.empty(tokens, D, dtype=dtype)
        self.queries_TN = torch.empty(tokens, N, dtype=dtype)
        self.attended_TN = torch.empty(tokens, N, dtype=dtype)
        self.gathered_RD = torch.empty(R if E else 0, D, dtype=dtype)
        self.act_RF = torch.empty(R * F, dtype=dtype)
        self.order_R = torch.empty(R, dtype=torch.int32)
        self.offsets_E1 = torch.empty(E + 1, dtype=torch.int32)
        self.row_R = torch.empty(R, dtype=torch.int32)
        self.weights_R = torch.empty(R)
        self.struct = library.Workspace(
            *(
                tensor.data_ptr()
                for tensor in (
                    *(self.hidden_TD, self.qkv_T, self.router_TE, self.up_R, self.pairs_RD),
                    *(self.normed_TD, self.queries_TN, self.attended_TN, self.gathered_RD),
                    *(self.act_RF, self.order_R, self.offsets_E1, self.row_R, self.weights_R),
                )
            )
        )


class CompiledForward:
    """One decoder on a CPU. ``adapters``: what a step's rows go through besides, where it is set.
    ``late``: what is called around projections, where it is set.

    Raises ``Unknown`` for a model that the kernels do not know, ``KernelsMissing`` where there are
    none, both before anything is packed. What ``late`` raises is raised by the call. ``weights``:
    where the packed ones lie.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kv: PagedKV,
        *,
        positions: int,
        threads: int,
        sharing: Sharing | None = None,
    ) -> None:
        if model.device.type != "cpu":
            raise Unknown(f"the device {model.device}")
        self._decoder = decoder_of(model)
        self._library = kernels()
        self._bfloat = int(model.dtype == torch.bfloat16)
        self._kept: list[torch.Tensor] = []  # what the structs point to
        self.weights = panel_memory(self._library, self._decoder, self._bfloat, sharing)
        with self.weights as memory:
            arena = Arena(self._library, memory, self._bfloat)
            self._struct = self._model(kv, positions, self._team(threads), arena)
        self.buffers = Buffers(self._decoder, 1)
        self.tokens = 0  # of the step that is computed: rows of the buffers that count
        self.adapters: library.Adapters | None = None
        self.late: Late | None = None
        self._samples = 0
        self._error: BaseException | None = None
        self._before = library.CALL(lambda *at: self._call(True, *at))
        self._after = library.CALL(lambda *at: self._call(False, *at))

    def over(self, kv: PagedKV) -> None:
        """Read and write ``kv`` from now on."""
        self._kv = kv
        self._memory = [*kv.keys, *kv.values]  # what the structs point to
        self._struct.heads.block_tokens = kv.block_tokens
        for layer, struct in enumerate(self._layers):
            struct.keys = kv.keys[layer].data_ptr()
            struct.values = kv.values[layer].data_ptr()

    def __call__(self, pieces: Sequence[Piece], sampled: Sequence[int]) -> torch.Tensor:
        start = np.zeros(len(pieces) + 1, dtype=np.int32)
        np.cumsum([len(piece.tokens) for piece in pieces], out=start[1:])
        tokens = np.array([t for piece in pieces for t in piece.tokens], dtype=np.int64)
        position = np.array([piece.position for piece in pieces], dtype=np.int32)
        width = max(len(piece.block_ids) for piece in pieces)
        table = np.array(
            [[*p.block_ids, *[0] * (width - len(p.block_ids))] for p in pieces], dtype=np.int32
        )
        _check_table(pieces, table, self._kv)
        samples = np.array(sampled, dtype=np.int32)
        logits_RV = torch.empty(len(sampled), self._struct.head.outputs)
        self.tokens = len(tokens)
        if len(tokens) > self.buffers.tokens:
            self.buffers = Buffers(self._decoder, len(tokens))
        step = library.Step(len(tokens), len(pieces), width, len(sampled))
        step.token, step.start = tokens.ctypes.data, start.ctypes.data
        step.position, step.table = position.ctypes.data, table.ctypes.data
        step.sampled, step.logits = samples.ctypes.data, logits_RV.data_ptr()
        if self.adapters is not None:
            if self.adapters.tokens != len(tokens):
                raise IndexError(f"adapters of {self.adapters.tokens} of {len(tokens)} tokens")
            step.adapters = ctypes.pointer(self.adapters)
        self._samples = len(sampled)
        if self.late is not None:
            step.late = sum(1 << PROJECTIONS.index(name) for name in self.late.projections)
            step.before, step.after = self._before, self._after
        self._library.hecate_forward(self._struct, step, self.buffers.struct, self._bfloat)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return logits_RV

    def _call(self, before: bool, layer: int, number: int) -> None:
        """In the middle of the call, where an exception would only be printed."""
        projection = PROJECTIONS[number]
        if layer + 1 == len(self._layers) and projection != "qkv":
            self.tokens = self._samples  # the others went no further
        if self._error is None and self.late is not None and self.tokens:
            try:
                call = self.late.before if before else self.late.after
                call(layer, projection)
            except BaseException as error:
                self._error = error

    def _model(self, kv: PagedKV, positions: int, team: int, arena: Arena) -> library.Model:
        d = self._decoder
        self._layers = (library.Layer * len(d.layers))(
            *(self._layer(layer, arena) for layer in d.layers)
        )
        has_norm = d.layers[0].q_norm is not None
        norm = 0
        if has_norm:
            norm = 1 if d.layers[0].q_norm.shape[0] == d.head_dim else 2  # type: ignore[union-attr]
        self._struct = library.Model(
            layers=len(d.layers),
            width=d.embedding.shape[1],
            chosen=d.chosen,
            normalise=d.normalised,
            eps=d.eps,
            heads=library.Heads(
                queries=d.queries, keys=d.keys, dim=d.head_dim, norm=norm, eps=d.eps, scale=d.scale
            ),
            team=team,
            layer=self._layers,
            final_norm=self._floats(d.final_norm),
            cos_sin=self._floats(_cos_sin(d, positions)),
            embedding=d.embedding.data_ptr(),
            head=self._packed(d.head, arena),
        )
        self.over(kv)
        return self._struct

    def _team(self, threads: int) -> int:
        team: int = self._library.hecate_team(threads)
        weakref.finalize(self, self._library.hecate_dismiss, team)
        return team

    def _layer(self, layer: LayerWeights, arena: Arena) -> library.Layer:
        return library.Layer(
            input_norm=self._floats(layer.input_norm),
            post_norm=self._floats(layer.post_norm),
            q_norm=self._floats(layer.q_norm),
            k_norm=self._floats(layer.k_norm),
            qkv=self._packed(layer.qkv, arena),
            out=self._packed(layer.out, arena),
            router=self._packed(layer.router, arena) if layer.router else library.Weight(),
            gate_up=self._packed(layer.gate_up, arena, interleave=True),
            down=self._packed(layer.down, arena),
            window=layer.window,
        )

    def _packed(self, linear: Linear, arena: Arena, *, interleave: bool = False) -> library.Weight:
        N, K = linear.shape[-2:]
        address = arena.pack(linear, interleave=interleave)
        return library.Weight(address, self._floats(linear.bias), N, K)

    def _floats(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def _check_table(pieces: Sequence[Piece], table: np.ndarray, kv: PagedKV) -> None:
    """Raise ``IndexError`` for blocks that are not there, since kernels would write to them."""
    for piece in pieces:
        end = piece.position + len(piece.tokens)
        if end > len(piece.block_ids) * kv.block_tokens:
            raise IndexError(
                f"{end} tokens of a sequence in {len(piece.block_ids)} blocks of {kv.block_tokens}"
            )
    if table.size and not 0 <= table.min() <= table.max() < kv.num_blocks:
        raise IndexError(f"blocks {table.min()} to {table.max()} of a pool of {kv.num_blocks}")


def _cos_sin(decoder: Decoder, positions: int) -> torch.Tensor:
    """``[positions, H]``: half cosines, half sines, by the model's own rotary embedding."""
    rotary: Any = decoder.rotary
    cos, sin = rotary(torch.empty(1, 1), torch.arange(positions)[None])
    half = decoder.head_dim // 2
    if cos.shape[-1] != decoder.head_dim:
        raise Unknown("rotary embeddings of a part of each head")
    return torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=-1)


def _check(forward: CompiledForward, model: PreTrainedModel, layers: Sequence[LayerShape]) -> None:
    """A few tokens' logits through the kernels, against the model's own code."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = [(7 * i + 3) % vocabulary for i in range(_CHECK_TOKENS)]
    cuts = [(0, 5), *((i, i + 1) for i in range(5, _CHECK_TOKENS))]
    found = []
    kept = forward._kv
    for make in ("kernels", "model"):
        kv = PagedKV(layers, num_blocks=4, block_tokens=4, dtype=model.dtype, device=model.device)
        run: Forward = forward
        if make == "kernels":
            forward.over(kv)
        else:
            run = HuggingFaceForward(model, kv)
        pieces = [Piece(tokens[a:b], a, (2, 0, 3)[: -(-b // 4)]) for a, b in cuts]
        found.append(torch.cat([run([piece], [0]) for piece in pieces]).float())
    forward.over(kept)
    got, expected = found
    # The median: where two experts are as good as each other, rounding may choose another one.
    error = float(((got - expected).norm(dim=1) / expected.norm(dim=1)).median())
    if not error < (0.1 if model.dtype.itemsize < 4 else 1e-3):
        raise Unknown(f"they give other logits (relative error {error:.2g})")
