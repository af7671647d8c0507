"""What a person sees: a bar on a real terminal, plain lines in a file."""

import io
import os
import pty
import re
import select
import subprocess
import sys

from rich.console import Console

from hecate.train.logging.console import ConsoleSink

VALUES = {
    "loss": 2.34567,
    "perplexity": 10.44,
    "bits_per_byte": 1.2345,
    "tokens_per_s": 12345.0,
    "grad_norm": 0.91234,
    "load/experts_max_over_mean": [1.1, 1.75],
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
        "load 1.75  mem 3.0 GiB  left 0:04:30\n"
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


_ON_A_TERMINAL = """
import sys
from rich.console import Console
from hecate.train.logging.console import ConsoleSink

sink = ConsoleSink(Console(), total_steps=40)
sink.log(10, {"loss": 2.5, "grad_norm": 1.5})
sink.log(20, {"loss": 2.25})
print("someone else prints")
sink.log(20, {"eval/loss": 2.125})
sink.log(30, {"loss": 2.0})
sink.close()
"""


def test_on_a_terminal_there_is_a_live_bar():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_A_TERMINAL], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "\x1b[?25l" in text and text.rstrip().endswith("\x1b[?25h")  # the cursor comes back
    assert "\x1b[1A" in text  # redrawn in place
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "step 10/40" in plain and "25%" in plain and "━" in plain
    assert "loss 2.5000  grad 1.5" in plain
    assert "someone else prints" in plain
    assert re.search(r"step 20/40  held out:  loss 2\.1250\s", plain)
    assert re.search(r"step 30/40.*75%", plain)
