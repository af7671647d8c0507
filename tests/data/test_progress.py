"""Progress is drawn on the console that it is given."""

import io

from rich.console import Console

from hecate.data.progress import progress_bars, quiet


def test_each_thing_has_a_bar_of_its_own():
    text = io.StringIO()
    with progress_bars(Console(file=text, width=120)) as progress:
        progress("training the tokenizer", 500_000, 1_000_000)
        progress("training the tokenizer", 1_000_000, 1_000_000)
        progress("tokenising", 250_000, 1_000_000)
    shown = text.getvalue()
    assert shown.count("training the tokenizer") == 1
    assert "1.0/1.0 MB" in shown
    assert "0.2/1.0 MB" in shown or "250.0 kB" in shown or "0.3/1.0 MB" in shown


def test_quiet_says_nothing(capsys):
    quiet("tokenising", 1, 2)
    assert capsys.readouterr() == ("", "")
