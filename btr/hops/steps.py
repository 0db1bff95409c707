"""Take steps: a query, what is found for it, what is made of that, the next query.

`take_steps` is the definition of what comes out, whatever is done to be sooner.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from btr.retrieve.bm25 import Hits

State = TypeVar("State")


class Work(Protocol[State]):
    """What is done in a step. Both functions depend on their arguments alone and leave the state as it is."""

    def query(self, state: State) -> str | None:
        """Return what to search for next; None: it is done."""

    def read(self, state: State, ordinals: list[int]) -> State:
        """Return what is known after the passages of these ordinals, best first, were read."""


class Search(Protocol):
    """What finds passages: higher scores first, of equal ones the lower ordinal."""

    def search(self, questions: Sequence[str], top: int) -> list[Hits]:
        """Find the best passages for each question, best first."""


def take_steps(work: Work[State], index: Search, top: int, state: State) -> tuple[State, list[Hits]]:
    """Search and read until it is done; returns the last state, and what was found for each query."""
    found: list[Hits] = []
    while (query := work.query(state)) is not None:
        found += index.search([query], top)
        state = work.read(state, found[-1][0].tolist())
    return state, found
