"""Count what of a corpus was not taken as it stood."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

SHOWN = 10  # documents that could not be read, and kinds of files, that are named


@dataclass(slots=True)
class Tally:
    """Count what was not taken as it stood, for the caller to report."""

    empty: int = 0  # passages skipped because they hold no text
    cut: int = 0  # texts cut into several passages
    repaired: int = 0  # questions whose list of answers was broken text and was taken apart by rule
    unreadable: int = 0  # documents that cannot be read
    reasons: list[str] = field(default_factory=list)  # which, and why, of the first SHOWN
    passed_over: Counter[str] = field(default_factory=Counter)  # files of a folder that are no documents, by kind

    def cannot_read(self, name: str, why: object) -> None:
        """Count a document that cannot be read; only so many are remembered, whatever the size of the folder."""
        self.unreadable += 1
        if len(self.reasons) < SHOWN:
            self.reasons.append(f"{name!r}: {why}")


def complaints(tally: Tally) -> Iterator[str]:
    """Say what of a folder was not read, for people."""
    for said in tally.reasons:
        yield f"not read: {said}"
    if (more := tally.unreadable - len(tally.reasons)) > 0:
        yield f"and {more:,} more documents could not be read"
    if tally.passed_over:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in tally.passed_over.most_common(SHOWN))
        yield f"{tally.passed_over.total():,} files that are no documents were passed over ({kinds})"
