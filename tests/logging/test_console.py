"""What a person sees: a bar on a real terminal, plain lines in a file."""

import io
import re
import sys

import pytest
from rich.console import Console
from terminals import on_a_terminal, screen

from hecate.logging.console import ConsoleSink

VALUES = {
    "loss": 2.34567,
    "perplexity": 10.44,
    "bits_per_byte": 1.2345,
    "tokens_per_s": 12345.0,
    "grad_norm": 0.91234,
    "load/experts_max_over_mean": [1.1, 1.75],
    "load/ranks_max_over_mean": [1.5, 1.2],
    "load/computed_max_over_mean": [1.0, 1.04],
    "memory/resident_bytes": 3 * 2**30,
}


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def _plain(total_steps=100, resumed_step=0):
    out, now = io.StringIO(), Clock()
    sink = ConsoleSink(
        Console(file=out), total_steps=total_steps, resumed_step=resumed_step, clock=now
    )
    return out, now, sink


def test_without_a_terminal_an_interval_is_one_line_without_control_characters():
    out, now, sink = _plain()
    now.now += 30
    sink.log(10, VALUES)
    sink.close()
    assert out.getvalue() == (
        "step 10/100  loss 2.3457  ppl 10.4  bits/byte 1.234  12.3k tok/s  grad 0.912  "
        "imbalance 1.50->1.04  mem 3.0 GiB  left 0:04:30\n"
    )


def test_an_evaluation_is_a_line_of_its_own():
    out, _, sink = _plain()
    sink.log(100, {"eval/loss": 2.0, "eval/perplexity": 7.389, "eval/bits_per_byte": 1.1})
    assert out.getvalue() == "step 100/100  held out:  loss 2.0000  ppl 7.4  bits/byte 1.100\n"


def test_time_left_counts_only_the_steps_of_this_process():
    out, now, sink = _plain(total_steps=100, resumed_step=90)
    now.now += 10
    sink.log(95, {"loss": 1.0})
    assert out.getvalue() == "step 95/100  loss 1.0000  left 0:00:10\n"


def test_nothing_is_shown_for_values_that_no_one_reads():
    out, _, sink = _plain()
    sink.log(10, {"seconds/forward": 0.5})
    assert out.getvalue() == ""


def test_a_loss_that_exploded_stays_readable():
    out, _, sink = _plain()
    sink.log(10, {"loss": float("nan"), "perplexity": float("inf")})
    assert out.getvalue().startswith("step 10/100  loss nan  ppl inf")


def test_a_single_rank_has_only_the_load_of_its_experts():
    out, _, sink = _plain()
    even = {"load/ranks_max_over_mean": [1.0], "load/computed_max_over_mean": [1.0]}
    sink.log(10, {"loss": 1.0, "load/experts_max_over_mean": [1.1, 1.75], **even})
    assert "load 1.75" in out.getvalue() and "imbalance" not in out.getvalue()


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (200, "loss 2.3457  ppl 10.4  bits/byte 1.234  12.3k tok/s  grad 0.912  "),
        (100, "loss 2.3457  ppl 10.4  12.3k tok/s  imbalance 1.50->1.04  left 0:04:30"),
        (60, "loss 2.3457  12.3k tok/s  left 0:04:30"),
    ],
)
def test_a_terminal_shows_on_one_line_what_it_has_room_for(width, shown):
    out, now = io.StringIO(), Clock()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    sink = ConsoleSink(console, total_steps=100, clock=now)
    now.now += 30
    sink.log(10, VALUES)
    sink.close()
    (line,) = screen(out.getvalue())
    assert len(line) <= width and shown in line
    assert line.startswith("step 10/100 ") and " 10% " in line


_ON_A_TERMINAL = """
import sys
from pathlib import Path
from hecate.logging import LoggingConfig, Run
from hecate.logging.console import ConsoleSink
from hecate.train.notices import saying

run = Run(Path("run"), "toy", 40)
sink = ConsoleSink.open(LoggingConfig(), run)
saying(run.console)("the run says " + "more than a line has room for, " * 4)
sink.log(10, {"loss": 2.5, "grad_norm": 1.5})
sink.log(20, {"loss": 2.25})
print("someone else prints")
sink.log(20, {"eval/loss": 2.125})
sink.log(30, {"loss": 2.0})
sink.close()
"""


def test_on_a_terminal_there_is_a_live_line():
    code, text = on_a_terminal([sys.executable, "-c", _ON_A_TERMINAL], width=100)
    assert code == 0
    assert "\x1b[?25l" in text and text.rstrip().endswith("\x1b[?25h")  # the cursor comes back
    words, said, held_out, line = screen(text)
    assert words == "the run says " + ("more than a line has room for, " * 4).rstrip()
    assert said == "someone else prints"
    assert held_out == "step 20/40  held out:  loss 2.1250"
    assert re.match(r"step 30/40 ━+.* 75% loss 2\.0000  left \d", line)
    assert "step 10/40" in text and "loss 2.5000  grad 1.5" in text, "it was drawn before"
