"""Classes that are remembered: the useful ones, in bounded memory, whatever names come."""

import pytest

from serving.scheduling.applications.classes import Classes
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import ClassKey
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun

RATES = Rates(prefill_token_s=1.0, decode_token_s=10.0, pace_s=20.0)


def trace(output_tokens: int, calls: int = 1) -> Trace:
    return Trace((UnitRun("a", Kind.LLM, (Call(0, output_tokens),) * calls, 1.0),))


def classes(**settings: float) -> Classes:
    return Classes(HistoryConfig.model_validate(settings), lambda: RATES)


def test_endless_names_drive_out_each_other_and_not_what_is_used() -> None:
    kept = classes(max_classes=50)
    used = [ClassKey("acme", f"used{number}") for number in range(3)]
    for number in range(5000):
        kept.add(ClassKey("acme", f"once{number}"), trace(1))
        if number % 10 == 0:
            kept.add(used[number // 10 % 3], trace(1))
    assert len(kept.graphs) == 50 and set(used) <= set(kept.graphs)
    assert kept.size_bytes == sum(graph.size_bytes for graph in kept.graphs.values())
    assert len(kept._worth) == 50 and sum(map(len, kept._by_worth.values())) <= 64 + 4 * 50
    assert kept.evicted == 5000 + 3 - 50


def test_a_tenants_endless_names_cost_it_its_own_classes() -> None:
    kept = classes(max_classes=20)
    for number in range(5):
        kept.add(ClassKey("quiet", str(number)), trace(1))
    for number in range(500):
        kept.add(ClassKey("loud", str(number)), trace(1))
    assert sum(key.tenant == "quiet" for key in kept.graphs) == 5


def test_endless_tenants_are_bounded_too() -> None:
    kept = classes(max_classes=20)
    for number in range(500):
        kept.add(ClassKey(f"tenant{number}", "c"), trace(1))
    assert len(kept.graphs) == len(kept._pools) == len(kept._count) == 20
    assert ClassKey("tenant499", "c") in kept.graphs


def test_traces_take_no_more_memory_than_they_may() -> None:
    kept = classes(max_mib=1)
    for number in range(60):
        for _ in range(10):
            kept.add(ClassKey("acme", str(number)), trace(1, calls=1000))
    assert 2**19 < kept.size_bytes <= 2**20
    one = classes(max_mib=1)
    for _ in range(100):
        one.add(ClassKey("acme", "large"), trace(1, calls=1000))
    (graph,) = one.graphs.values()
    assert 2**17 < graph.size_bytes <= 2**18


def test_what_was_used_once_much_is_forgotten_in_time() -> None:
    kept = classes(max_classes=2, window_traces=4)
    for _ in range(100):
        kept.add(ClassKey("acme", "old"), trace(1))
    for number in range(80_000):
        kept._use(ClassKey("acme", "new"))  # what adding does, without the traces
        if number == 0:
            kept.add(ClassKey("acme", "new"), trace(1))
    kept.add(ClassKey("acme", "newest"), trace(1))
    assert ClassKey("acme", "old") not in kept.graphs


def test_the_unknown_count_as_a_tenants_work_did() -> None:
    kept = classes()
    assert kept.least_s("acme") == 0.0
    for _ in range(40):
        kept.add(ClassKey("acme", "a"), trace(3))
        kept.add(ClassKey("other", "b"), trace(50))
    assert kept.least_s("acme") == 30.0 and kept.least_s("other") == 500.0
    assert 30.0 < kept.least_s("stranger") <= 265.0


@pytest.mark.parametrize("tenants", [1, 7])
def test_what_one_saves_another_takes_up(tenants: int) -> None:
    kept, other = classes(), classes()
    for number in range(300):
        key = ClassKey(f"t{number % tenants}", str(number % 5))
        kept.add(key, trace(number % 3))
    other.restore(kept.history())
    assert {key: graph.traces for key, graph in other.graphs.items()} == {
        key: graph.traces for key, graph in kept.graphs.items()
    }
    assert other.size_bytes == kept.size_bytes
    small = classes(max_classes=3)
    small.restore(kept.history())
    assert len(small.graphs) == 3
