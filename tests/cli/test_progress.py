from __future__ import annotations

import io

import pytest
from rich.console import Console

from cdt.cli.progress import STARTING, counting_bar, figures, progress_bar
from cdt.errors import InputError

REPORT = {
    "phase": "dual",
    "step": 120,
    "total": 2000,
    "loss": 0.12345,
    "samples_per_s": 1234.5,
    "worst": ("four", -0.2),
}


def test_figures_are_those_that_are_known() -> None:
    assert figures({"step": 3, "total": 10}) == "3/10"
    assert figures({"step": 3, "total": 10, "worst": None}) == "3/10"
    assert figures(REPORT) == "120/2000 loss 0.123 1234 samples/s four -0.20"
    assert figures(REPORT | {"worst": ("four", 0.5)}).endswith("four +0.50")


def screen(terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=80), text


def test_what_is_refused_before_it_starts_shows_no_bar() -> None:
    console, text = screen(terminal=False)
    with pytest.raises(InputError), progress_bar(console, "digits-fair"):
        raise InputError("no such directory")
    assert text.getvalue().strip() == ""


def test_a_terminal_shows_one_line_that_fits() -> None:
    console, text = screen(terminal=True)
    with progress_bar(console, "digits-fair") as show:
        show({"phase": "warm"})  # nothing to show yet
        show(REPORT)
    shown = text.getvalue()
    for part in ("digits-fair", STARTING, "dual", "120/2000", "loss 0.123", "samples/s", "four -0.20"):
        assert part in shown
    assert "…" not in shown


def test_elsewhere_only_the_end_is_printed() -> None:
    console, text = screen(terminal=False)
    with progress_bar(console, "digits-fair") as show:
        for step in range(0, 2000, 100):
            show(REPORT | {"step": step})
        show(REPORT | {"step": 2000})
    assert len(text.getvalue().strip().splitlines()) == 1
    assert "2000/2000" in text.getvalue()


def test_a_log_hears_of_the_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr("cdt.cli.progress.time.monotonic", lambda: float(next(clock)))
    console, text = screen(terminal=False)
    with progress_bar(console, "digits") as show:
        for step in range(1, 4):
            show(REPORT | {"step": step})
    lines = text.getvalue().splitlines()
    assert "digits dual 3/2000 loss 0.123 1234 samples/s four -0.20" in lines


def test_the_counting_bar_goes_away() -> None:
    console, text = screen(terminal=False)
    with counting_bar(console, "writing shards") as progress:
        progress(1, 10)
        progress(10, 10)
    assert text.getvalue().strip() == ""


def test_names_are_shown_as_they_are_in_one_line() -> None:
    console, text = screen(terminal=False)
    with progress_bar(console, "[red]a\nb") as show:
        show({"said": "shard [bold]x\x07 is damaged " + 9 * "and long "})
        show(REPORT)
    first, bar = text.getvalue().rstrip().splitlines()
    assert first.rstrip() == "shard [bold]x? is damaged" + 9 * " and long"
    assert bar.startswith("[red]a?b dual")
