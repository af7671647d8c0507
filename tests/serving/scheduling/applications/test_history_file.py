"""The history of classes, in a file that may be damaged, new or of somebody else."""

from pathlib import Path

import numpy as np
import pytest

from hecate.errors import StorageError
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.history_file import load, save
from serving.scheduling.applications.live import ClassKey
from serving.scheduling.applications.tags import Tags
from serving.scheduling.applications.traces import Kind

RATES = Rates(1e-3, 2e-2, 3e-2)


def book() -> Book:
    return Book(HistoryConfig(enough_traces=3), lambda: RATES)


def used(kept: Book, name: str, instances: int) -> None:
    for number in range(instances):
        live = kept.begin(Tags(name, str(number)), "acme", float(number))
        kept.call_started(live, "plan", "a", 10 + number, number + 0.25)
        kept.call_ended(live, "a", number + 1.0, output_tokens=5, cached_tokens=4)
        kept.unit_started(live, "grep", Kind.SEARCH, number + 1.5)
        kept.unit_ended(live, "grep", number + 1.75, failed=number % 2 == 0)
        kept.end(live, number + 2.0)


def warnings_of(path: Path) -> tuple[int, list[str]]:
    warnings: list[str] = []
    history, _ = load(path, warnings.append)
    return len(history), warnings


def test_a_book_goes_on_where_another_stopped(tmp_path: Path) -> None:
    first, second = book(), book()
    used(first, "agent", 5)
    used(first, "chat", 2)
    path = tmp_path / "deep" / "history"
    save(path, first.history(), RATES)
    history, rates = load(path, pytest.fail)
    assert rates == RATES
    second.restore(history)
    for name in ("agent", "chat"):
        key = ClassKey("acme", name)
        assert second.graphs[key].traces == first.graphs[key].traces
    tags = Tags("agent", "next")
    before, after = (kept.prospect(kept.begin(tags, "acme", 9.0)) for kept in (first, second))
    np.testing.assert_array_equal(before.device_s, after.device_s)
    np.testing.assert_allclose(before.path_s, after.path_s)
    assert after.device_s.size == 5
    used(second, "chat", 3)
    assert len(second.graphs[ClassKey("acme", "chat")]) == 5


def test_what_a_book_has_already_is_not_replaced(tmp_path: Path) -> None:
    first, second = book(), book()
    used(first, "agent", 5)
    used(second, "agent", 1)
    second.restore(first.history())
    assert len(second.graphs[ClassKey("acme", "agent")]) == 1


def test_no_file_is_no_history(tmp_path: Path) -> None:
    assert warnings_of(tmp_path / "none") == (0, [])


def test_a_damaged_line_costs_its_class_alone(tmp_path: Path) -> None:
    kept = book()
    for name in ("one", "two", "three"):
        used(kept, name, 4)
    path = tmp_path / "history"
    save(path, kept.history(), RATES)
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"two"', b'"tow"')
    path.write_bytes(b"\n".join(lines))
    found, warnings = warnings_of(path)
    assert found == 2 and len(warnings) == 1 and "line 3" in warnings[0]


@pytest.mark.parametrize("cut", [1, 60, 100])
def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path, cut: int) -> None:
    kept = book()
    used(kept, "one", 4)
    used(kept, "two", 4)
    path = tmp_path / "history"
    save(path, kept.history(), RATES)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    found, warnings = warnings_of(path)
    assert (found, len(warnings)) == ((2, 0) if cut == 1 else (1, 1))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"null\n", b"not json", b"\xff\xfe\x00", b'{"format": "hecate applications"}'],
)
def test_what_is_no_history_is_put_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history"
    path.write_bytes(content)
    found, warnings = warnings_of(path)
    assert found == 0 and len(warnings) == 1
    assert not path.exists()
    assert (tmp_path / "history.not-read").read_bytes() == content


def test_a_later_version_is_put_aside(tmp_path: Path) -> None:
    kept = book()
    used(kept, "one", 4)
    path = tmp_path / "history"
    save(path, kept.history(), RATES)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    found, warnings = warnings_of(path)
    assert found == 0 and "expected 1" in warnings[0] and not path.exists()


def test_numbers_that_do_not_hold_together_are_damage(tmp_path: Path) -> None:
    kept = book()
    used(kept, "one", 1)
    (history,) = kept.history()
    broken = history.traces[0].codes.copy()
    broken[0, 0] = 99  # a unit without a name
    traces = (type(history.traces[0])(broken, history.traces[0].times, history.traces[0].tokens),)
    path = tmp_path / "history"
    save(path, (type(history)(history.key, 0.0, history.units, traces),), RATES)
    found, warnings = warnings_of(path)
    assert found == 0 and "hold together" in warnings[0]


def test_a_history_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    kept = book()
    used(kept, "one", 4)
    path = tmp_path / "history"
    save(path, kept.history(), RATES)
    before = path.read_bytes()
    (tmp_path / ".history.partial").mkdir()
    with pytest.raises(StorageError):
        save(path, (), RATES)
    assert path.read_bytes() == before
