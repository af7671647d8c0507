"""The page as a browser shows it: from disk, without network, on a phone and on a desk."""

import json
from pathlib import Path

import pytest
from browser import seen
from run_folders import write_large, write_loads, write_profile, write_run

from hecate.report import report

pytestmark = pytest.mark.chromium

LOOK = """
const count = (path) => (path.getAttribute("d").match(/[ML]/g) || []).length;
const rectangles = (figure) => [...figure.querySelectorAll("path.level")]
  .reduce((sum, path) => sum + path.getAttribute("d").match(/M/g).length, 0);
const all = (selector) => [...document.querySelectorAll(selector)];
const root = document.documentElement;
return {
  width: window.innerWidth,
  overflow: root.scrollWidth - root.clientWidth,
  beyond: all("body *").filter((one) => !one.closest("svg"))
    .filter((one) => one.getBoundingClientRect().right > window.innerWidth + 0.5)
    .map((one) => one.tagName),
  requests: window.performance.getEntriesByType("resource").length,
  points: Object.fromEntries(all("[data-chart]").map((figure) =>
    [figure.dataset.chart, [...figure.querySelectorAll(".curve")].map(count)])),
  dots: all('[data-chart="loss"] .dot').length,
  bars: all(".bars").map((path) => path.getAttribute("d").match(/Z/g).length),
  layers: all("[data-layers]").map(rectangles),
  experts: all("[data-experts] figure").map(rectangles),
  more: all("[data-more]").map(rectangles),
  areas: all(".area").length,
  paper: window.getComputedStyle(document.body).backgroundColor,
  shades: new Set(all("path.level").map((path) => window.getComputedStyle(path).fill)).size,
  heads: all(".ms th").map((head) => head.getBoundingClientRect().height),
  text: document.body.innerText,
};
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("small"))
    write_profile(run)
    return report(run).path


@pytest.mark.parametrize("width", [390, 1200])
def test_a_small_run_is_drawn_whole(small: Path, width: int) -> None:
    found, console = seen(small, LOOK, width=width)
    assert console == []
    assert found["width"] == width and found["requests"] == 0
    assert found["overflow"] == 0 and found["beyond"] == []
    assert "Profiled steps 4 to 5" in found["text"]
    assert all(height < 30 for height in found["heads"]), "no word is broken"
    # Three lines were logged, of four layers of eight experts, and 30 steps of loads.
    assert found["points"]["loss"] == [3] and found["dots"] == 3 + 1
    assert found["points"]["bytes"] == [3, 3] and found["points"]["speed"] == [3]
    assert found["bars"] == [3] and found["areas"] == 3
    assert found["layers"] == [4 * 3, 4 * 3] and found["more"] == [4 * 3]
    assert found["experts"] == [8 * 30] * 4
    assert "Finished: 30 steps" in found["text"] and "begun on 2 ranks" in found["text"]


def test_a_large_run_shows_one_layer_at_a_time(tmp_path: Path) -> None:
    write_large(tmp_path, steps=100_000, every=200, layers=61, experts=256)
    choose = """
      const figure = document.querySelector("[data-layers] svg");
      const box = figure.getBoundingClientRect();
      const at = { clientX: box.left + box.width / 2, bubbles: true,
        clientY: box.top + 8 + (box.height - 28) * 40.5 / 61 };
      figure.dispatchEvent(new window.MouseEvent("click", at));
      """
    page = report(tmp_path).path
    found, console = seen(page, choose + LOOK, width=390)
    assert console == [] and found["overflow"] == 0 and found["beyond"] == []
    assert found["points"]["loss"] == [480]
    assert found["layers"] == [61 * 240, 61 * 240]
    assert found["experts"] == [256 * 51]
    assert "Layer 40" in found["text"] and "Layer 0" not in found["text"]


def test_day_and_night_have_their_own_colours(small: Path) -> None:
    day, _ = seen(small, LOOK, width=800)
    night, console = seen(small, LOOK, width=800, dark=True)
    assert console == [] and day["paper"] == "rgb(250, 249, 246)"
    assert night["paper"] == "rgb(18, 21, 24)" and day["shades"] == night["shades"] > 4


def test_a_pointer_is_told_the_step_and_its_values(small: Path) -> None:
    point = """
      const say = (selector, across, down) => {
        const svg = document.querySelector(`${selector} svg`);
        const box = svg.getBoundingClientRect();
        svg.dispatchEvent(new window.PointerEvent("pointermove", { bubbles: true,
          clientX: box.left + across * box.width, clientY: box.top + down * box.height }));
        return document.querySelector(`${selector} output`).textContent;
      };
      return {
        speed: say('[data-chart="speed"]', 0.7, 0.5),
        together: document.querySelector('[data-chart="rate"] output').textContent,
        layer: say('[data-layers="load/ranks_max_over_mean"]', 0.99, 0.2),
        expert: say('[data-layer="1"]', 0.6, 0.13),
        areas: say("[data-areas]", 0.98, 0.5),
      };
      """
    found, console = seen(small, point, width=700)
    assert console == []
    assert found["speed"] == "step 20 · 1.02k"
    assert found["together"] == "step 20 · 0.001"
    assert found["layer"] == "steps 21–30 · layer 0 · 1.50"
    assert found["expert"].startswith("step ") and found["expert"].endswith("expert 0 · no token")
    assert found["areas"] == "step 30 · 700 ms · backward 400 ms · forward 200 ms"


@pytest.mark.parametrize("lacking", ["metrics.jsonl", "loads.jsonl", "all but a line"])
def test_a_run_that_lacks_much_is_drawn_as_far_as_it_goes(tmp_path: Path, lacking: str) -> None:
    run = write_run(tmp_path)
    if lacking == "all but a line":
        for name in ("loads.jsonl", "starts.jsonl", "config.yaml"):
            (run / name).unlink()
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": None}) + "\n")
    else:
        (run / lacking).unlink()
    found, console = seen(report(run).path, LOOK, width=390)
    assert console == [] and found["overflow"] == 0
    assert "What is missing" in found["text"]
    assert (
        found["experts"]
        == {
            "metrics.jsonl": [8 * 30] * 4,
            "loads.jsonl": [8 * 3] * 4,
            "all but a line": [],
        }[lacking]
    )


def test_a_single_step_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=1, every=1)
    found, console = seen(report(run).path, LOOK, width=390)
    assert console == [] and found["overflow"] == 0
    assert found["points"]["loss"] == [1] and found["experts"] == [8] * 4


def test_a_run_of_many_resumes_is_drawn_once(tmp_path: Path) -> None:
    """Loads that begin anew at another world size, with steps that were run again."""
    run = write_run(tmp_path)
    write_loads(run, range(20, 40), ranks=4)
    found, console = seen(report(run).path, LOOK, width=390)
    assert console == [] and found["experts"] == [8 * 40] * 4
