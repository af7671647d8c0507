"""What a profile left, read and drawn, and whatever else lies there passed over."""

from pathlib import Path

import pytest
from run_folders import write_profile, write_run

from hecate.report import report
from hecate.report.profile import FILE, read_profile


def test_what_training_wrote_is_read(tmp_path: Path) -> None:
    write_profile(tmp_path)
    profile = read_profile(tmp_path / FILE)
    assert profile is not None
    assert (profile.first_step, profile.last_step, profile.num_ranks) == (4, 5, 2)
    assert profile.step_s == pytest.approx(0.2)
    assert profile.phases == {"experts": pytest.approx((0.05, 0.1))}
    assert profile.communication == {"sparse gather": pytest.approx((0.02, 0.01, 0.01))}


def test_a_page_shows_it(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "Profiled" not in report(run).path.read_text()
    write_profile(run)
    page = report(run).path.read_text()
    assert "Profiled steps 4 to 5" in page
    assert "<td>sparse gather</td><td>20.00</td><td>10.00</td><td>10.00</td><td>50%</td>" in page
    assert "<td>experts</td><td>50.00</td><td>100.00</td><td>75.0%</td>" in page


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"ranks": [], "first_step": 1, "steps": 0}']
)
def test_what_is_no_profile_is_passed_over(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path)
    (run / FILE).parent.mkdir()
    (run / FILE).write_text(text)
    assert read_profile(run / FILE) is None
    assert "Profiled" not in report(run).path.read_text()
