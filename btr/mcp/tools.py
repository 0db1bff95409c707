"""Give an assistant two tools: `answer` a question from a store or from passages of its own, and `search` the store."""

import logging
import threading
from typing import Annotated

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from btr import __version__
from btr.errors import InputError
from btr.serve import AnswerRequest, RequestError, Service
from btr.serve.schema import AnswerResponse, InlinePassage, Text
from btr.storage import StoreError

ABOUT = (
    "Answers questions from a store of passages with a small reader: short answers, quoted from a passage, and how "
    "likely it is that no passage answers (`no_answer`, 0 to 1). Ask `answer` a whole question; ask `search` for "
    "passages to read yourself."
)
MOST = 100  # passages of one search
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
Question = Annotated[Text, Field(description="a whole question, as one would ask a person")]
Passages = Annotated[
    list[InlinePassage | Text] | None,
    Field(description="what to answer from instead of the store: texts, or objects with text, title and id"),
]
_log = logging.getLogger("btr.mcp")


class Cited(BaseModel):
    """Name the passage that the answer is quoted from, at characters start to end, or else that has most evidence."""

    id: str
    title: str
    text: str
    start: int | None = None
    end: int | None = None


class Answered(BaseModel):
    """Give the answer and where it stands; `no_answer` is the probability that no passage holds one, null if unknown.

    Where that is too high, `answer` is empty and `best_guess` is what would have been said.
    `question_cut` says that only the last words of a long question were read.
    """

    answer: str
    best_guess: str | None = None
    no_answer: float | None
    score: float
    citation: Cited | None
    question_cut: bool = False


class Found(BaseModel):
    """Give a passage that was found, and how well it matches."""

    id: str
    title: str
    text: str
    score: float


class Findings(BaseModel):
    """Give passages, best first."""

    passages: list[Found]


class Tools:
    """Ask a service, one question at a time, of the store as it is now."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._reading = threading.Lock()  # the SDK calls each tool in a thread of its own

    def answer(self, question: Question, passages: Passages = None) -> Answered:
        """Answer a question in a few words, with the passage that says so; from the store unless passages are given."""
        given = None if passages is None else [as_passage(one) for one in passages]
        request = AnswerRequest(question=question, passages=given)
        with self._reading:
            self._look()
            try:
                self.service.check(request)
                [reply] = self.service.answer([request])
            except RequestError as refused:
                raise ToolError(refused.message) from refused
        if not isinstance(reply, AnswerResponse):
            raise ToolError(str(reply)) from reply
        return Answered(
            answer=reply.answer,
            best_guess=reply.best_guess,
            no_answer=reply.no_answer,
            score=reply.score,
            citation=cite(reply),
            question_cut=reply.question_cut,
        )

    def search(
        self,
        query: Annotated[Text, Field(description="words to look for; a question does too")],
        top: Annotated[int, Field(ge=1, le=MOST, description="the largest number of passages")] = 5,
    ) -> Findings:
        """Find the passages of the store that match a query best, with their whole texts."""
        with self._reading:
            self._look()
            try:
                found = self.service.search(query, top)
            except RequestError as refused:
                raise ToolError(refused.message) from refused
        return Findings(passages=[Found(id=p.id, title=p.title, text=p.text, score=score) for p, score in found])

    def _look(self) -> None:
        """Take up what the store got since the last question; where that fails, what was there is asked."""
        try:
            if not self.service.opened.store.is_current():
                self.service.reload()
        except (InputError, StoreError, OSError) as error:
            _log.warning("the store changed, and cannot be read as it is now: %s", error)


def as_passage(given: InlinePassage | str) -> InlinePassage:
    """Return a text as a passage without a title."""
    return InlinePassage(text=given) if isinstance(given, str) else given


def cite(reply: AnswerResponse) -> Cited | None:
    """Return where the answer stands; none where nothing was read."""
    if not reply.passages:
        return None
    quoted, best = reply.citation, reply.passages[0]
    if quoted is None:
        return Cited(id=best.id, title=best.title, text=best.text)
    passage = next(one for one in reply.passages if one.id == quoted.id)
    return Cited(id=quoted.id, title=passage.title, text=passage.text, start=quoted.start, end=quoted.end)


def make_server(service: Service) -> MCPServer:
    """Return the server of a service; `run()` serves until its standard input ends."""
    server: MCPServer = MCPServer("btr", instructions=ABOUT, version=__version__, log_level="WARNING")
    tools = Tools(service)
    for tool in (tools.answer, tools.search):
        server.tool(annotations=READS)(tool)
    return server
