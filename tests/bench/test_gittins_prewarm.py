"""Applications on a simulated engine: what each rule keeps, and what is hidden."""

import pytest

from hecate.bench.gittins.prewarm.adapters import Adapters, AdapterSizes
from hecate.bench.gittins.prewarm.claims import RULES, Shapes
from hecate.bench.gittins.prewarm.containers import Containers
from hecate.bench.gittins.prewarm.contexts import Contexts, ContextSizes
from hecate.bench.gittins.prewarm.figures import RATES, replay
from hecate.bench.gittins.prewarm.served import Engine, NoWatcher, Watcher, capacity
from hecate.bench.gittins.workload import Job
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.policies import POLICIES
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun
from serving.scheduling.prewarm.config import PrewarmConfig

ASK = UnitRun("ask", Kind.LLM, (Call(100, 100),))  # 6.01 s alone
TELL = UnitRun("tell", Kind.LLM, (Call(50, 20),))
RUN = UnitRun("run", Kind.CONTAINER, (), 5.0)
PLAN = Trace((ASK, RUN, TELL))


def book(plan: Trace = PLAN) -> Book:
    found = Book(HistoryConfig(), lambda: RATES)
    for number in range(40):
        replay(found, Job("code", f"past-{number}", float(number), plan))
    return found


def engine(known: Book, watcher: Watcher, sequences: int = 2) -> Engine:
    return Engine(known, POLICIES["application_fcfs"](known), RATES, sequences, watcher)


def at(times_s: list[float], plan: Trace = PLAN) -> list[Job]:
    return [Job("code", str(n), at_s, plan) for n, at_s in enumerate(times_s)]


def test_an_instance_alone_takes_what_its_units_take() -> None:
    known = book()
    served = engine(known, NoWatcher())
    served.serve(at([100.0]))
    alone_s = RATES.alone_s(ASK.calls[0]) + 5.0 + RATES.alone_s(TELL.calls[0])
    assert served.ended[0] == pytest.approx(100.0 + alone_s)
    assert not known.lives


def test_no_more_run_at_once_than_may() -> None:
    known = book()
    served = engine(known, NoWatcher(), sequences=1)
    served.serve(at([100.0, 100.0, 100.0], Trace((ASK,))))
    each_s = RATES.alone_s(ASK.calls[0])
    assert sorted(served.ended.values()) == pytest.approx([100 + n * each_s for n in (1, 2, 3)])
    assert capacity(at([0.0], Trace((ASK,))), RATES, 1) == pytest.approx(1 / each_s)


def adapters(rule: str, known: Book, names: str, sizes: AdapterSizes) -> Adapters:
    return Adapters(rule, sizes, names, Shapes(known), PrewarmConfig(), measured_from=0)


def test_an_adapter_is_read_once_and_found_again() -> None:
    known = book()
    kept = adapters("lru", known, "aa", AdapterSizes(1, 1, disk_s=0.5, device_s=0.0))
    served = engine(known, kept)
    served.serve(at([100.0, 200.0]))
    assert (kept.units, kept.unit_hits) == (4, 3)
    alone_s = RATES.alone_s(ASK.calls[0]) + 5.0 + RATES.alone_s(TELL.calls[0])
    assert served.ended[0] == pytest.approx(100.0 + 0.5 + alone_s)
    assert served.ended[1] == pytest.approx(200.0 + alone_s)


def test_what_an_application_comes_back_for_is_kept_over_what_was_used_later() -> None:
    """While the first one's container runs others come and go; LRU forgets its adapter for them."""
    short = Trace((UnitRun("ask", Kind.LLM, (Call(10, 2),)),))
    hits = {}
    for rule in RULES:
        known = book()
        kept = adapters(rule, known, "abcde", AdapterSizes(1, 2, disk_s=0.1, device_s=0.0))
        others = [Job("short", str(n), 106.5 + n, short) for n in range(1, 5)]
        engine(known, kept).serve([*at([100.0]), *others])
        hits[rule] = kept.hits
    assert hits["hermes"] == hits["lru"] + 1 == hits["epwq"] + 1


def test_requests_in_the_queue_have_their_adapters_fetched() -> None:
    hits = {}
    for rule in RULES:
        known = book()
        kept = adapters(rule, known, "abc", AdapterSizes(3, 3, disk_s=0.1))
        engine(known, kept, sequences=1).serve(at([100.0, 100.1, 100.2], Trace((ASK,))))
        hits[rule] = kept.unit_hits
    assert hits == {"lru": 0, "epwq": 2, "hermes": 2}


def test_slots_in_use_make_others_wait() -> None:
    known = book()
    kept = adapters("hermes", known, "ab", AdapterSizes(1, 8, disk_s=0.0, device_s=0.0))
    served = engine(known, kept, sequences=4)
    served.serve(at([100.0, 100.0], Trace((ASK,))))
    assert served.ended[1] - served.ended[0] == pytest.approx(RATES.alone_s(ASK.calls[0]))


def test_contexts_that_are_expected_again_stay_where_room_is_short() -> None:
    """Of two contexts one fits; the other one's application has ended."""
    short = Trace((UnitRun("ask", Kind.LLM, (Call(150, 40),)),))
    hits = {}
    for rule in RULES:
        known = book()
        for number in range(40):
            replay(known, Job("short", f"short-{number}", 50.0, short))
        sizes = ContextSizes(device=0, host=200)
        kept = Contexts(rule, sizes, Shapes(known), PrewarmConfig(), measured_from=0)
        engine(known, kept).serve([*at([100.0]), Job("short", "1", 107.0, short)])
        assert kept.units == 1
        hits[rule] = kept.hits
    assert hits["lru"] < 0.1 and hits["hermes"] == 1.0


def containers(threshold: float, plan: Trace = PLAN) -> Containers:
    known = book(plan)
    config = PrewarmConfig(threshold=threshold)
    kinds = frozenset({Kind.CONTAINER})
    kept = Containers(kinds, 2.0, Shapes(known), config, measured_from=0)
    served = engine(known, kept)
    served.serve(at([100.0], plan))
    alone_s = sum(run.seconds or RATES.alone_s(run.calls[0]) for run in plan.runs)
    waited_s = served.ended[0] - 100.0 - alone_s
    assert waited_s == pytest.approx(kept.ledger.cold_s - kept.ledger.saved_s)
    return kept


def test_a_container_is_ready_when_its_unit_begins() -> None:
    ledger = containers(0.5).ledger
    assert (ledger.uses, ledger.begun, ledger.given_up) == (1, 1, 0)
    assert ledger.saved_s == pytest.approx(2.0, abs=0.51)  # decided twice a second
    assert ledger.held_s < 0.51


def test_no_container_is_begun_that_is_not_worth_it() -> None:
    ledger = containers(1.0 + 1e-9).ledger
    assert (ledger.uses, ledger.begun, ledger.saved_s) == (1, 0, 0.0)


def test_a_branch_that_is_not_taken_is_given_up() -> None:
    known = book()
    kinds = frozenset({Kind.CONTAINER})
    kept = Containers(kinds, 2.0, Shapes(known), PrewarmConfig(), measured_from=0)
    engine(known, kept).serve(at([100.0], Trace((ASK, TELL))))
    assert (kept.ledger.begun, kept.ledger.given_up, kept.ledger.uses) == (1, 1, 0)
    assert kept.ledger.wasted_s > 1.0
