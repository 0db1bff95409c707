"""Progress: one line in a terminal, lines now and then elsewhere."""

import sys

import pytest

from btr import progress


def test_terminal_gets_one_line_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    report = progress.Progress("encoded", 100, 700)
    now = 0.1
    report(100, 1000)
    now = 2.0
    report(100, 1000)
    now = 10.0
    report.show(last=True)
    expected = "\rencoded 300/700 passages  100/s  1,000 tokens/s  4 s left\x1b[K"
    assert capsys.readouterr().err == expected + "\rencoded 300/700 passages  20/s  200 tokens/s\x1b[K\n"


def test_time_left_has_a_unit_that_suits_it() -> None:
    assert [progress.duration(s) for s in (4, 99, 100, 6000, 360_000)] == ["4 s", "99 s", "2 min", "2 h", "4 days"]


def test_elsewhere_lines_come_now_and_then_and_count_what_they_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress, "PLAIN", 10.0)
    report = progress.Progress("binary:", 0, 50, "questions")
    for now in range(1, 26):
        report.more = f"em {now}"
        report.reach(2 * now)
    report.show(last=True)
    assert capsys.readouterr().err.splitlines() == [
        "binary: 20/50 questions  2/s  15 s left  em 10",
        "binary: 40/50 questions  2/s  5 s left  em 20",
        "binary: 50/50 questions  2/s  em 25",
    ]
