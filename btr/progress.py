"""Tell a person how far a long run is: one line that is rewritten in a terminal, else a line now and then."""

import sys
import time


def say(line: str, *, end: str = "\n") -> None:
    """Write a line to stderr; in a terminal it takes the place of a line of progress."""
    sys.stderr.write((f"\r{line}\x1b[K" if sys.stderr.isatty() else line) + end)
    sys.stderr.flush()


class Progress:
    """Report counts, rate and time left: one line that is rewritten in a terminal, else a line every 10 seconds."""

    def __init__(self, what: str, done: int, total: int | None) -> None:
        self.what, self.first, self.done, self.total = what, done, done, total
        self.tokens = 0
        self.began = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def __call__(self, passages: int, tokens: int = 0) -> None:
        """Count what was just done, and show it if it is time."""
        self.done, self.tokens = self.done + passages, self.tokens + tokens
        if time.monotonic() - self.shown >= (0.5 if self.live else 10.0):
            self.show()

    def show(self, last: bool = False) -> None:
        """Print the line; the last stays in a terminal too."""
        self.shown = time.monotonic()
        seconds = max(self.shown - self.began, 1e-9)
        rate = (self.done - self.first) / seconds
        line = f"{self.what} {self.done:,}" + (f"/{self.total:,}" if self.total else "")
        line += f" passages  {rate:,.0f}/s" if rate >= 10 or not rate else f" passages  {rate:.2g}/s"
        line += f"  {self.tokens / seconds:,.0f} tokens/s" if self.tokens else ""
        if self.total and rate and not last:
            line += f"  {duration(max(self.total - self.done, 0) / rate)} left"
        say(line, end="" if self.live and not last else "\n")


def duration(seconds: float) -> str:
    """Return a time to wait in the unit that suits it."""
    for unit, size, until in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 100 * 3600)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
