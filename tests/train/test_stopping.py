"""Asked to end: a process hears it while it listens, and says so with its exit code."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from hecate.train.stopping import SIGNALS, STOPPED, StopRequest, exit_code


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_heard_inside_and_goes_to_whom_it_went_before_afterwards(number: int) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        stop = StopRequest()
        with stop.listening():
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop() and not heard
        os.kill(os.getpid(), number)
        assert heard == [number]
    finally:
        signal.signal(number, before)


def test_ctrl_c_asks_and_where_asked_already_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop.listening(interrupts=True):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_in_another_thread_nothing_is_changed() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def listen() -> None:
        stop = StopRequest()
        with stop.listening():
            seen.extend([signal.getsignal(number) for number in SIGNALS])
            seen.append(stop())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [*before, False]


def test_torchrun_must_not_start_again_what_was_stopped() -> None:
    assert exit_code({"RANK": "0"}) == STOPPED == 75
    assert exit_code({"TORCHELASTIC_RUN_ID": "job"}) == 0
