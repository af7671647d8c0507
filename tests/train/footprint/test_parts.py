"""The accounting of a rank's memory, by hand."""

from hecate.train.footprint.parts import (
    DenseSizes,
    ExpertSizes,
    Footprint,
    LossShape,
    PassBytes,
    account,
    activation_bytes,
)
from hecate.train.footprint.table import gib, line, table


def counted(**changes: object) -> Footprint:
    values: dict[str, object] = {
        "master_itemsize": 4,
        "compute_itemsize": 4,
        "accumulates": False,
        "activations": 1000,
        "process": 7,
        "checkpoint_copy": False,
        "allocator_share": 0.0,
    }
    experts = ExpertSizes(owned=100, copied=30, copied_grads=20, moments=2)
    dense = changes.pop(
        "dense", DenseSizes(total=40, largest=16, shards=1, gathered=False, moments=80)
    )
    return account(experts, dense, **(values | changes))  # type: ignore[arg-type]


def test_one_rank_in_single_precision():
    found = counted()
    assert found == Footprint(
        process=7,
        parameters=4 * 140,
        gradients=4 * 140,
        optimizer=8 * 140,
        copies=4 * 30 + 4 * 20,
        gathered=0,
        activations=1000,
        checkpoint=0,
        allocator=0,
    )
    assert found.total == 7 + 16 * 140 + 200 + 1000


def test_shards_lie_beside_whole_parameters_in_the_compute_dtype():
    dense = DenseSizes(total=41, largest=16, shards=4, gathered=True, moments=82)
    found = counted(dense=dense, compute_itemsize=2)
    own = 100 + 11  # 41 over 4 ranks, the odd one rounded up
    assert found.parameters == 4 * own + 2 * 100  # of experts, a copy to compute with
    assert (found.gradients, found.optimizer) == (4 * own, 8 * own)
    assert found.gathered == 2 * (41 + 16) + 16 * (2 + 4)
    assert found.copies == 2 * 30 + 4 * 20
    accumulated = counted(dense=dense, compute_itemsize=2, accumulates=True)
    assert accumulated.gathered - found.gathered == 4 * 41


def test_a_checkpoint_in_the_background_copies_masters_and_moments():
    assert counted(checkpoint_copy=True).checkpoint == 12 * 140
    assert counted(allocator_share=0.25).allocator == 250


def test_the_head_in_chunks_keeps_gradients_and_whole_it_keeps_logits():
    chunked = LossShape(tokens=10, width=3, vocabulary=7, itemsize=2, chunk_tokens=4, fused=True)
    assert chunked.kept_bytes == 2 * 10 * 3 + 4 * 7 * 3
    assert chunked.transient_bytes == 4 * 4 * 7 + 2 * 4 * 7 + 2 * 7 * 3
    whole = LossShape(tokens=10, width=3, vocabulary=7, itemsize=4, chunk_tokens=4, fused=False)
    assert (whole.kept_bytes, whole.transient_bytes) == (4 * 70, 4 * 70)


def test_the_fullest_moment_counts():
    loss = LossShape(tokens=1, width=1, vocabulary=1, itemsize=4, chunk_tokens=1, fused=True)
    head = loss.kept_bytes + loss.transient_bytes
    assert activation_bytes(PassBytes(50, 900, 800), loss) == 900
    assert activation_bytes(PassBytes(50, 60, 800), loss) == 800 + 4
    assert activation_bytes(PassBytes(50, 50, 0), loss) == 50 + head


def test_people_read_parts_and_their_sum():
    found = counted(process=3 * 2**30, activations=2**20)
    assert gib(found.total) == "3.00 GiB"
    assert line(found).startswith("3.00 GiB (process 3.00 GiB, parameters 0.0 MiB")
    assert "gathered" not in line(found), "what is not there is left out"
    rows = table(found).splitlines()
    assert [row.split()[0] for row in rows] == [name for name, _ in found.items()] + ["in"]
    assert rows[6].split()[:3] == ["activations", "1.0", "MiB"]
