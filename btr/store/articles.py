"""Know the articles of a store: what was divided into pieces is replaced and deleted as one."""

from bitarray import bitarray

from btr.corpus.division import is_piece
from btr.corpus.passages import FIELD_OPTIONS, Fields, pieces_of, read_articles
from btr.corpus.pieces import piece_id
from btr.corpus.statistics import Corpus
from btr.corpus.tally import Tally
from btr.storage import Manifest
from btr.storage.view import Reading
from btr.words import count_words


def held(reading: Reading, passage_id: str, words: int) -> list[int]:
    """Return the ordinals of what the store has of an id: the passage, and the pieces that it was divided into.

    Pieces are known by their ids, `<id>:0`, `<id>:1`, ..., and those of a document by their titles, which begin with
    its name; others by their one title, and by the `words` words that all of them have but the last: passages that
    somebody else has numbered are not taken for some.
    """
    whole = reading.ordinal(passage_id)
    pieces: list[int] = []
    while (ordinal := reading.ordinal(piece_id(passage_id, len(pieces)))) is not None:
        pieces.append(ordinal)
    records = [reading.record(ordinal) for ordinal in pieces]
    cut = len({record.title for record in records}) == 1
    cut = cut and all(count_words(record.text) == words for record in records[:-1])
    cut = len(records) > 1 and (cut or all(is_piece(record.title, passage_id) for record in records))
    return [*([] if whole is None else [whole]), *(pieces if cut else [])]


def outdated(corpus: Corpus, reading: Reading, current: bitarray) -> list[int]:
    """Return the ordinals of what a store has of the articles of a corpus, and the corpus has no longer.

    current: the ordinals whose ids are in the corpus as it is divided now. An article that the corpus's limit cuts off
    keeps what the store has of it.
    """
    gone: set[int] = set()
    read = 0
    for article in read_articles(corpus.name, Tally(), corpus.fields):
        read += len(pieces_of(article, corpus.words))
        if corpus.limit is not None and read > corpus.limit:
            break
        gone.update(ordinal for ordinal in held(reading, article.id, corpus.words) if not current[ordinal])
    return sorted(gone)


def versions(corpus: Corpus, reading: Reading) -> set[str]:
    """Return the ids that a store lacks, of passages whose articles it has: cut otherwise, so of another length."""
    found: set[str] = set()
    for article in read_articles(corpus.name, Tally(), corpus.fields):
        if held(reading, article.id, corpus.words):
            found.update(p.id for p in pieces_of(article, corpus.words) if reading.ordinal(p.id) is None)
    return found


def fields_of(manifest: Manifest) -> Fields | None:
    """Return the fields that the passages of a store were read from, if they were named."""
    named = [manifest.options.get(name) for name in FIELD_OPTIONS]
    return None if None in named else (str(named[0]), str(named[1]), str(named[2]))


def words_of(manifest: Manifest) -> int:
    """Return how many words the passages of a store were cut to."""
    return int(manifest.options.get("words") or 100)
