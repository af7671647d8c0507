"""What a rank's memory consists of at its fullest: sizes in, bytes out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class PassBytes:
    """Activations of the trunk in one micro-batch.

    ``kept_bytes``: what the forward pass leaves for the backward pass, its result among it; the
    peaks are of all that is alive in a pass, what is kept included.
    """

    kept_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int


@dataclass(frozen=True)
class LossShape:
    """The head of a micro-batch of ``tokens``; whole logits unless it runs ``chunk_tokens`` wise.

    ``itemsize`` is of the compute dtype. Losses are computed in fp32 or wider (``wide``).
    """

    tokens: int
    width: int
    vocabulary: int
    itemsize: int
    chunk_tokens: int
    fused: bool

    @property
    def wide(self) -> int:
        return max(4, self.itemsize)

    @property
    def kept_bytes(self) -> int:
        """From its forward to its backward pass: gradients of hidden states and weight, or the
        logits with their logarithms of probabilities."""
        if self.fused:
            hidden = self.tokens * self.width * self.itemsize
            return hidden + self.vocabulary * self.width * self.wide
        return self.tokens * self.vocabulary * self.wide

    @property
    def transient_bytes(self) -> int:
        """More while it computes: a chunk's logits (and their narrow twins), or whole ones."""
        tokens = min(self.tokens, self.chunk_tokens) if self.fused else self.tokens
        logits = tokens * self.vocabulary * self.wide
        if self.itemsize == self.wide:
            return logits
        narrow = tokens * self.vocabulary * self.itemsize
        return logits + narrow + (self.vocabulary * self.width * self.itemsize * self.fused)


def activation_bytes(trunk: PassBytes, loss: LossShape) -> int:
    """The most that is alive of activations at once: in the trunk, the head, or on the way back."""
    return max(
        trunk.forward_peak_bytes,
        trunk.kept_bytes + loss.kept_bytes + loss.transient_bytes,
        trunk.backward_peak_bytes + loss.vocabulary * loss.width * loss.wide * loss.fused,
    )


@dataclass(frozen=True)
class ExpertSizes:
    """Elements of experts on the fullest rank. ``moments``: what an optimizer keeps of each.

    ``owned``: of all layers. ``copied``, ``copied_grads``: of copies whose weights, and whose
    gradients, are there at once.
    """

    owned: int
    copied: int
    copied_grads: int
    moments: int


@dataclass(frozen=True)
class DenseSizes:
    """Elements of everything that is no expert, each tied one once.

    ``shards``: over how many ranks masters, gradients and moments are divided. ``gathered``:
    whether whole parameters in the compute dtype lie beside the masters. ``largest``: elements of
    the largest group that is gathered and reduced at once. ``moments``: of all.
    """

    total: int
    largest: int
    shards: int
    gathered: bool
    moments: int


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank at its fullest, part by part.

    ``process``: what it held before the model: interpreter, libraries, process groups, data.
    ``parameters``: masters, and copies of them in another dtype. ``copies``: experts of other
    ranks, and their gradients. ``gathered``: whole dense parameters and gradients beside the
    shards. ``checkpoint``: the copy that is written while training goes on. ``allocator``: freed
    memory that no later block fits into.
    """

    process: int
    parameters: int
    gradients: int
    optimizer: int
    copies: int
    gathered: int
    activations: int
    checkpoint: int
    allocator: int

    @property
    def total(self) -> int:
        return sum(size for _, size in self.items())

    def items(self) -> Iterator[tuple[str, int]]:
        for field in fields(self):
            yield field.name, getattr(self, field.name)


def account(
    experts: ExpertSizes,
    dense: DenseSizes,
    *,
    master_itemsize: int,
    compute_itemsize: int,
    accumulates: bool,
    activations: int,
    process: int,
    checkpoint_copy: bool,
    allocator_share: float,
) -> Footprint:
    """Add up a rank. ``allocator_share``: of activations, what the allocator keeps beside them."""
    own_dense = -(-dense.total // dense.shards)
    own = experts.owned + own_dense
    narrow = compute_itemsize != master_itemsize
    parameters = own * master_itemsize + (experts.owned * compute_itemsize if narrow else 0)
    gathered = 0
    if dense.gathered:
        # on its way a group is there twice, in the buffer of the collective and as parameters
        gathered = (dense.total + dense.largest) * compute_itemsize
        gathered += dense.total * master_itemsize if accumulates else 0
        gathered += dense.largest * (compute_itemsize + master_itemsize)
    kept = experts.owned * experts.moments + -(-own_dense * dense.moments // max(1, dense.total))
    moments = kept * master_itemsize
    return Footprint(
        process=process,
        parameters=parameters,
        gradients=own * master_itemsize,
        optimizer=moments,
        copies=experts.copied * compute_itemsize + experts.copied_grads * master_itemsize,
        gathered=gathered,
        activations=activations,
        checkpoint=own * master_itemsize + moments if checkpoint_copy else 0,
        allocator=round(activations * allocator_share),
    )
