"""Tell a person how far a long run is: one line that is rewritten in a terminal, else a line now and then."""

import sys
import time

LIVE, PLAIN = 0.5, 10.0  # seconds between two lines: in a terminal, elsewhere


def say(line: str, *, end: str = "\n") -> None:
    """Write a line to stderr; in a terminal it takes the place of a line of progress."""
    sys.stderr.write((f"\r{line}\x1b[K" if sys.stderr.isatty() else line) + end)
    sys.stderr.flush()


class Progress:
    """Report counts, rate and time left: one line that is rewritten in a terminal, else a line every 10 seconds."""

    def __init__(self, what: str, done: int, total: int | None, unit: str = "passages") -> None:
        self.what, self.first, self.done, self.total, self.unit = what, done, done, total, unit
        self.tokens, self.more = 0, ""  # what else there is to say, such as the score until now
        self.began = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def __call__(self, count: int, tokens: int = 0) -> None:
        """Count what was just done, and show it if it is time."""
        self.done, self.tokens = self.done + count, self.tokens + tokens
        if time.monotonic() - self.shown >= (LIVE if self.live else PLAIN):
            self.show()

    def reach(self, done: int) -> None:
        """Count on to what is done in all, and show it if it is time."""
        self(done - self.done)

    def show(self, last: bool = False) -> None:
        """Print the line; the last stays in a terminal too."""
        self.shown = time.monotonic()
        seconds = max(self.shown - self.began, 1e-9)
        rate = (self.done - self.first) / seconds
        line = f"{self.what} {self.done:,}" + (f"/{self.total:,}" if self.total else "")
        line += f" {self.unit}  {rate:,.0f}/s" if rate >= 10 or not rate else f" {self.unit}  {rate:.2g}/s"
        line += f"  {self.tokens / seconds:,.0f} tokens/s" if self.tokens else ""
        if self.total and rate and not last:
            line += f"  {duration(max(self.total - self.done, 0) / rate)} left"
        line += f"  {self.more}" if self.more else ""
        say(line, end="" if self.live and not last else "\n")


def duration(seconds: float) -> str:
    """Return a time to wait in the unit that suits it."""
    for unit, size, until in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 100 * 3600)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
