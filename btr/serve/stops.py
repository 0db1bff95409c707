"""End a text before the strings that a client has named, also where it comes piece by piece."""

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> str:
    """Return what of a text stands before the stop that is complete first."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else text


class Stopper:
    """Let pieces of a text through until a stop, keeping back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.kept, self.stopped = stops, "", False

    def feed(self, text: str) -> str:
        """Take the next piece, and return what can be said for sure."""
        if self.stopped:
            return ""
        self.kept += text
        said = cut(self.kept, self.stops)
        if len(said) < len(self.kept):
            self.kept, self.stopped = "", True
            return said
        begun = [n for stop in self.stops for n in range(1, min(len(stop), len(said) + 1)) if said.endswith(stop[:n])]
        sure = len(said) - max(begun, default=0)
        self.kept = said[sure:]
        return said[:sure]

    def end(self) -> str:
        """Return what was kept back: no more comes."""
        kept, self.kept = self.kept, ""
        return kept
