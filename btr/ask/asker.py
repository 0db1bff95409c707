"""Find passages of a store for a question, and read them."""

from pathlib import Path
from time import perf_counter

from btr.ask.show import Read, Told
from btr.corpus import Passage
from btr.errors import InputError
from btr.hops import Pace, answer_in_hops
from btr.hops.answer import check_hops
from btr.model.config import Mode
from btr.reader import Reader
from btr.reader.answer import Answer
from btr.reader.highlight import find_answer
from btr.reader.kept import KeptRows
from btr.reader.truncation import shorten
from btr.retrieve.fusion import Retriever, open_retriever
from btr.retrieve.indexed import Tail
from btr.storage import Encoded, Store
from btr.storage.manifest import read_manifest

UNANSWERED = 0.5  # probability that no passage holds an answer, over which a reader without a bound abstains


class Asker:
    """Answer questions from a store."""

    def __init__(
        self, store: Store, reader: Reader, retriever: Retriever, mode: Mode, passages: int, hops: int = 1
    ) -> None:
        """Use `open`."""
        self.store, self.reader, self.retriever = store, reader, retriever
        self.mode, self.passages, self.hops = mode, passages, hops
        self.pace = Pace()

    @classmethod
    def open(
        cls,
        path: Path,
        reader: str | None = None,
        retriever: str | None = None,
        mode: Mode = "binary",
        passages: int | None = None,
        hops: int = 1,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> "Asker":
        """Open a store, the reader that built it and what it is searched with; `passages` are read a hop.

        dtype and device: as `Reader.from_pretrained`.

        Raises:
            InputError, StoreError: one of them cannot be read from, or not in this mode.
        """
        loaded = load(path, reader, dtype, device)
        store = Store.open(path, loaded.fingerprint, loaded.name)
        if not len(store):
            raise InputError(f"the store {path} has no passages; add some with: python -m btr.store add")
        if mode != "binary" and store.manifest.options.get("text") is False:
            raise InputError(f"store {path} keeps signs and no texts, so mode {mode} cannot read it; use mode binary")
        check_hops(hops, store)
        found = open_retriever(store, retriever, tail=Tail())
        return cls(store, loaded, found, mode, passages or loaded.config.passages, hops)

    def ask(self, question: str) -> Told:
        """Answer one question.

        Raises:
            InputError, StoreError: it is blank, or a passage is damaged.
        """
        began = perf_counter()
        asked = shorten(question.strip(), self.reader)
        cut = len(asked) < len(question.strip())
        hopped = answer_in_hops(
            self.reader, self.store, self.retriever, asked, self.hops, self.passages, pace=self.pace,
            read=lambda encoded, kept: self._read(asked, encoded, kept),
        )  # fmt: skip
        answer, encoded, scores = hopped.answer, hopped.passages, hopped.scores
        if answer is None or encoded is None:
            return Told(question, "", "", 1.0, 0.0, self.mode, perf_counter() - began, (), cut)
        text, guess = answer.text, answer.best_guess or answer.text
        read = [
            Read(*row, float(answer.evidence[n]), float(scores[n]), _highlight(row[2], n, answer, text or guess))
            for n, row in enumerate(zip(encoded.ids, encoded.titles, encoded.texts, strict=True))
        ]
        first = answer.span.passage if answer.span is not None else int(answer.evidence.argmax())
        order = sorted(range(len(read)), key=lambda n: (n != first, -read[n].evidence))
        seconds = perf_counter() - began
        passages = [read[n] for n in order]
        trace = hopped.steps if self.hops > 1 else ()
        return Told(question, text, guess, answer.no_answer, answer.score, self.mode, seconds, passages, cut, trace)

    def _read(self, asked: str, encoded: Encoded, kept: KeptRows) -> Answer:
        passages = encoded if self.mode == "binary" else _texts(encoded)
        answer = self.reader.answer(asked, passages, self.mode, kept=kept)
        return answer if self.reader.no_answer_above is not None else answer.abstaining(UNANSWERED)


def load(path: Path, name: str | None, dtype: str, device: str) -> Reader:
    """Load the reader of a store, by default the one that the store names; a plain T5 is split where the store says.

    Raises:
        InputError, StoreError: it cannot be loaded.
    """
    manifest = read_manifest(path.absolute())
    named = name or manifest.reader or None
    try:
        reader = Reader.from_pretrained(named, dtype=dtype, device=device)
        return reader if reader.config.k else Reader.from_pretrained(named, k=manifest.k, dtype=dtype, device=device)
    except InputError as error:
        if name or named is None:
            raise
        cure = "say with --reader where it is now"
        raise InputError(f"store {path} was built by reader {named}, not to be loaded ({error}); {cure}") from error


def _texts(encoded: Encoded) -> list[Passage]:
    return [Passage(*row) for row in zip(encoded.ids, encoded.titles, encoded.texts, strict=True)]


def _highlight(text: str, place: int, answer: Answer, words: str) -> list[tuple[int, int]]:
    """Return where the answer was quoted from, in a passage, or else where it occurs."""
    if answer.span is not None and answer.span.passage == place:
        return [(answer.span.start, answer.span.end)]
    return find_answer(words, text)
