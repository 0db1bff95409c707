"""Read passages and questions in every format the field uses; the format is told from the first record.

Passages (`read_passages`):
    Atlas       {"id", "title", "text", "section"?}         the section is added to the title
    article     {"id", "title", "text"}                     the same form; long ones are cut
    DPR, CSV    first line `id text title`, in any order     split by tabs, commas or semicolons
    FlashRAG    {"id", "contents", "title"?}                without a title it is the first line of the contents
    BEIR        {"_id", "title", "text"}
    KILT        {"wikipedia_id", "wikipedia_title", "text": [paragraph, ...]}
    a folder    holding `passages.jsonl`, or BEIR's `corpus.jsonl`, or else all files below it, in the order of their
                names; or a data set of Hugging Face's as `save_to_disk` writes it
    documents   Markdown, plain text, reStructuredText, or, by MarkItDown, HTML, PDF, Word, ...; or a folder with such
                in it: what else is there is passed over, but for files of the forms above
    a data set  `owner/name`, `owner/name:configuration` or `owner/name:configuration:split` on the Hugging Face hub,
                whose rows have one of the forms above
Questions (`read_questions`):
    Atlas, FiD  {"id"?, "question", "answers", "ctxs"? or "passages"?: [{"id"?, "title"?, "text", "is_gold"?}, ...]}
    DPR         the same, with "positive_ctxs", "negative_ctxs" and "hard_negative_ctxs"
    SQuAD       its own file, or {"id", "question", "context", "title"?, "answers": {"text": [...]}, "is_impossible"?}
    HotpotQA    {"_id", "question", "answer", "context": [[title, [sentence, ...]], ...], "supporting_facts"}
    FlashRAG    {"id", "question", "golden_answers", "choices"?}
    MMLU        {"question", "options", "answer"}           options as {"A": ...} or a list; the answer is the letter
    FEVER       {"id", "claim", "label"?}                   the label is the answer
    BEIR        {"_id", "text"}                             no answers
    DPR         tab-separated, `question`, `['answer', ...]`
    a folder    holding `questions.jsonl`, or BEIR's `queries.jsonl`

`sample` is the corpus that comes with the package, and its questions. JSON comes as one object a line, as objects over
several lines, or as one array; Parquet and Arrow are read too. Files may be compressed by gzip, bzip2, xz or zstd.
Memory does not grow with the file. Text is taken as it stands; only the spaces around a cut and the quotes of a
tab-separated field go. Null and NaN are missing, numbers are text, other fields are passed over.
"""

import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

from btr.corpus.answer_lists import looks_like_list, parse_answers, unquote
from btr.corpus.contexts import answer_text, contexts, squad_questions
from btr.corpus.convert import Unreadable
from btr.corpus.division import divide_document
from btr.corpus.documents import RECORDS, Document, is_document, list_files, read_document, suffix_of
from btr.corpus.hub import read_hub, read_saved
from btr.corpus.pieces import Passage, divide
from btr.corpus.records import Record, open_records
from btr.corpus.sample import locate
from btr.corpus.tables import read_pairs, read_table
from btr.corpus.tally import Tally, complaints
from btr.errors import InputError

PASSAGE_FILES = ("passages.jsonl", "corpus.jsonl")
QUESTION_FILES = ("questions.jsonl", "queries.jsonl")
SUFFIXES = ("", ".gz", ".bz2", ".xz", ".zst")
ID_BYTES = 511  # of UTF-8, what a store takes

Article = Passage | Document
Fields = tuple[str, str, str]  # names of those that hold id, title and text
FIELD_OPTIONS = ("id_field", "title_field", "text_field")  # what a manifest calls them

_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?::([\w.-]+))?")
_FILE_NAME = re.compile(r"\.(jsonl?|tsv|csv|txt|parquet|arrow|md|rst|html?|pdf|docx|pptx|gz|bz2|xz|zst)$")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its accepted answers, and what came with it.

    `answers` is empty where the file gives none. `gold` runs along `passages`, or is empty where the file marks none.
    `options` are (letter, text) pairs of a multiple-choice question, whose answer is the letter.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] = ()
    gold: tuple[bool, ...] = ()
    options: tuple[tuple[str, str], ...] = ()


def read_passages(
    path: str | os.PathLike[str],
    *,
    limit: int | None = None,
    words: int | None = 100,
    tally: Tally | None = None,
    fields: Fields | None = None,
) -> Iterator[Passage]:
    """Yield the passages of a corpus, in order, cutting long texts into pieces of `words` words; None: not at all.

    A text of more than 1.5 * `words` words becomes passages `<id>:0`, `<id>:1`, ...; see `cut_text`. Words are runs
    between white space, and single characters in scripts without spaces (Chinese, Japanese, Thai, ...). Passages
    without text are skipped and counted in `tally`.

    Args:
        limit: the largest number of passages to yield.
        fields: where id, title and text stand in records that have none of the known forms; of the title, "" is none.
    Raises:
        InputError: not found, damaged, malformed, of no known format, or without a single passage.
    """
    tally = Tally() if tally is None else tally
    name = locate(os.fspath(path))
    found = (piece for article in read_articles(name, tally, fields) for piece in _cut(article, words, tally))
    count = 0
    for passage in itertools.islice(found, limit):
        count += 1
        yield passage
    if not count and limit != 0:
        why = "; ".join([f"{tally.empty} without text", *complaints(tally)])
        raise InputError(f"{name}: no passage to read ({why}); give at least one")


def pieces_of(article: Article, words: int) -> list[Passage]:
    """Divide an article into passages of about `words` words: a document by its headings, others by words alone."""
    return divide(article, words) if isinstance(article, Passage) else divide_document(article, words)


def _cut(article: Article, words: int | None, tally: Tally) -> list[Passage]:
    if words is None:
        return [article if isinstance(article, Passage) else Passage(article.id, article.name, article.text)]
    pieces = pieces_of(article, words)
    tally.cut += len(pieces) > 1
    return pieces


def read_articles(name: str, tally: Tally, fields: Fields | None = None) -> Iterator[Article]:
    """Yield what a path names as it stands, nothing cut; raises InputError, as `read_passages`."""
    if fields is not None:
        needed = [field for field in fields if field]
        yield from _from_records(_passage_records(name, needed), tally, fields)
        return
    if os.path.isdir(name) and not _is_corpus(name):
        files = list_files(name)
        if any(map(is_document, files)):
            yield from _folder(name, files, tally)
            return
    elif os.path.isfile(name) and is_document(name):
        try:
            document = read_document(name)
        except Unreadable as error:
            raise InputError(f"{name}: {error}") from error
        if document.text.strip():
            yield document
        else:
            tally.empty += 1
        return
    yield from _from_records(_passage_records(name), tally)


def _is_corpus(folder: str) -> bool:
    """Tell whether a folder is one of `save_to_disk`, or holds a file of passages."""
    saved = {"dataset_info.json", "dataset_dict.json"} & set(os.listdir(folder))
    return bool(saved) or _known_file(folder, PASSAGE_FILES) is not None


def _folder(folder: str, files: list[str], tally: Tally) -> Iterator[Article]:
    """Yield the documents of a folder, and the passages of files of records; what cannot be read ends nothing."""
    for path in files:
        if is_document(path):
            try:
                document = read_document(path, folder)
            except Unreadable as error:
                tally.cannot_read(os.path.relpath(path, folder), error)
            else:
                if document.text.strip():
                    yield document
                else:
                    tally.empty += 1
        elif suffix_of(path) in RECORDS:
            yield from _perhaps_records(path, tally)
        else:
            tally.passed_over[suffix_of(path) or "without a suffix"] += 1


def _perhaps_records(path: str, tally: Tally) -> Iterator[Passage]:
    """Yield the passages of a file, if it begins with one: beside documents, JSON is as often something else."""
    found = _from_records(_passage_records(path), tally)
    try:
        first = next(found, None)
    except InputError:
        tally.passed_over[suffix_of(path)] += 1
        return
    if first is not None:
        yield first
    yield from found


def _from_records(records: Iterator[Record], tally: Tally, fields: Fields | None = None) -> Iterator[Passage]:
    convert: Callable[[Record], Passage] | None = None if fields is None else partial(_from_fields, fields)
    for record in records:
        convert = convert or _passage_format(record)
        passage = convert(record)
        if len(passage.id.encode()) > ID_BYTES:
            what = f"the id {passage.id[:60]!r} has {len(passage.id.encode())} bytes of UTF-8, {ID_BYTES} are allowed"
            record.fail(what, "give shorter ids, a number or a hash of this one say")
        if passage.text and not passage.text.isspace():
            yield passage
        else:
            tally.empty += 1


def _passage_records(name: str, needed: Collection[str] = ("id", "text")) -> Iterator[Record]:
    if not os.path.exists(name) and not _FILE_NAME.search(name) and (hub := _HUB.fullmatch(name)):
        return read_hub(name, *hub.groups())
    if os.path.isdir(name) and {"dataset_info.json", "dataset_dict.json"} & set(os.listdir(name)):
        return read_saved(name)
    files = [name] if not os.path.isdir(name) else _find_files(name)
    table = partial(read_table, needed=needed)
    return itertools.chain.from_iterable(open_records(file, table) for file in files)


def _find_files(folder: str) -> list[str]:
    """Return the file of passages of a folder, or else all files below it, but hidden ones."""
    if (path := _known_file(folder, PASSAGE_FILES)) is not None:
        return [path]
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        found += [os.path.join(place, file) for file in files if file[0] not in "._"]
    if not found:
        raise InputError(f"{folder}: a folder without a file; name the file or folder that holds the passages")
    return sorted(found)


def _known_file(folder: str, wanted: tuple[str, ...]) -> str | None:
    """Return the first of the wanted files of a folder."""
    paths = (os.path.join(folder, file + suffix) for file in wanted for suffix in SUFFIXES)
    return next(filter(os.path.isfile, paths), None)


def _passage_format(record: Record) -> Callable[[Record], Passage]:
    """Choose the form of a file by the fields of its first record."""
    found = record.fields.keys()
    if "wikipedia_id" in found:
        return _from_kilt
    if "contents" in found and "text" not in found:
        return _from_flashrag
    if "_id" in found or "id" in found:
        return lambda record: _from_titled(record, "_id" if "_id" in found else "id")
    cure = "give 'id', 'title' and 'text', or say with --id, --title and --text which fields they are"
    record.fail(f"no passage in a record of {', '.join(found) or 'no field'}", cure)


def _from_fields(fields: Fields, record: Record) -> Passage:
    id_name, title_name, text_name = fields
    title = record.text(title_name, "") if title_name else ""
    return Passage(record.identifier(id_name), title, _body(record, text_name))


def _from_titled(record: Record, id_name: str) -> Passage:
    title, section = record.text("title", ""), record.text("section", "")
    return Passage(record.identifier(id_name), f"{title}: {section}" if section else title, _body(record, "text"))


def _body(record: Record, name: str) -> str:
    """Return the text of a passage; null is no text, a missing field an error."""
    return record.text(name, "" if name in record.fields else None)


def _from_flashrag(record: Record) -> Passage:
    contents, own = _body(record, "contents"), record.text("title", "")
    title, newline, text = contents.partition("\n")
    if own or not newline:
        title, text = own, contents
    return Passage(record.identifier("id"), unquote(title), text)


def _from_kilt(record: Record) -> Passage:
    title, paragraphs = record.text("wikipedia_title"), record.fields.get("text")
    if not isinstance(paragraphs, list) or not all(isinstance(paragraph, str) for paragraph in paragraphs):
        record.fail("'text' is not a list of paragraphs", "write it as [paragraph, ...]")
    if paragraphs and paragraphs[0].strip() == title.strip():  # KILT repeats the title as the first paragraph
        paragraphs = paragraphs[1:]
    text = record.whole("text", "\n".join(paragraph.rstrip("\n") for paragraph in paragraphs))
    return Passage(record.identifier("wikipedia_id"), title, text)


def read_questions(
    path: str | os.PathLike[str], *, limit: int | None = None, tally: Tally | None = None
) -> Iterator[Question]:
    """Yield the questions of a file, in order; one without an id is given its number, from 0.

    Passages that come with a question are never cut; those without text are skipped and counted in `tally`.

    Raises:
        InputError: not found, damaged, malformed, of no known format, or without a single question.
    """
    tally = Tally() if tally is None else tally
    name = locate(os.fspath(path))
    file = _known_file(name, QUESTION_FILES) if os.path.isdir(name) else name
    if file is None:
        wanted = " or ".join(QUESTION_FILES)
        raise InputError(f"{name}: a folder without {wanted}; name the file to read, or rename it so")
    records = itertools.chain.from_iterable(map(squad_questions, open_records(file, read_pairs)))
    number = -1
    for number, record in enumerate(itertools.islice(records, limit)):
        yield _question(record, number, tally)
    if number < 0 and limit != 0:
        raise InputError(f"{name}: no question to read; give at least one")


def _question(record: Record, number: int, tally: Tally) -> Question:
    known = [name for name in ("question", "claim", "text") if name in record.fields]
    asked = known[0] if known and (known[0] != "text" or "_id" in record.fields) else "question"
    text = record.text(asked)
    if not text.strip():
        record.fail(f"{asked!r} is blank", "give a question or take the record away")
    id_name = next((name for name in ("_id", "id", "question_id") if record.get(name) is not None), None)
    id = record.identifier(id_name) if id_name else str(number)
    options = _options(record)
    answers = _choice(record, options) if options else _answers(record, asked, tally)
    passages, gold = _evidence(record, id, tally)
    return Question(id, text, answers, passages, gold, options)


def _answers(record: Record, asked: str, tally: Tally) -> tuple[str, ...]:
    if any(record.get(name) is True for name in ("unanswerable", "is_impossible")):
        return ()  # whatever is given is one that only seems right
    names = ("label",) if asked == "claim" else ("answers", "golden_answers", "answer", "target")
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        return ()
    value = record.fields[name]
    if isinstance(value, str):
        value, sound = parse_answers(value) if looks_like_list(value) else ([value], True)
        tally.repaired += not sound
    elif isinstance(value, dict):  # SQuAD's, TriviaQA's
        value = value["text"] if "text" in value else [value.get("value"), *(value.get("aliases") or [])]
    values = value if isinstance(value, list) else [None]
    found = dict.fromkeys(answer_text(answer) for answer in values)
    if None in found:
        record.fail(f"{name!r} is neither text nor a list of texts", f"write {name!r} as ['answer', ...]")
    return tuple(record.whole(name, answer) for answer in found if answer and answer.strip())


def _options(record: Record) -> tuple[tuple[str, str], ...]:
    name = "options" if "options" in record.fields else "choices"
    value = record.fields.get(name) or {}
    if isinstance(value, list):
        value = {chr(ord("A") + place): text for place, text in enumerate(value)}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        record.fail(f"{name!r} is neither an object nor a list of texts", f"write {name!r} as {{'A': text, ...}}")
    return tuple((letter, record.whole(name, text)) for letter, text in value.items())


def _choice(record: Record, options: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Return the letter of the right option, given as the letter or as its place from 0."""
    letters, answer = [letter for letter, _ in options], record.get("answer")
    if answer is None and isinstance(golden := record.get("golden_answers"), list) and len(golden) == 1:
        answer = golden[0]
        answer = next((letter for letter, text in options if text == answer), answer)
    if answer is None:
        return ()
    if type(answer) is int and 0 <= answer < len(letters):
        return (letters[answer],)
    if answer not in letters:
        record.fail(f"'answer' is {answer!r}, none of the options {', '.join(letters)}", "give the letter of an option")
    return (str(answer),)


def _evidence(record: Record, id: str, tally: Tally) -> tuple[tuple[Passage, ...], tuple[bool, ...]]:
    passages, gold = [], []
    given = contexts(record)
    for place, item in enumerate(given):
        text = _body(item, "text")
        if not text.strip():
            tally.empty += 1
            continue
        id_name = next((name for name in ("id", "passage_id") if item.get(name) is not None), None)
        own = item.identifier(id_name) if id_name else f"{id}:{place}"
        passages.append(Passage(own, item.text("title", ""), text))
        gold.append(item.flag("is_gold"))
    marked = any("is_gold" in item.fields for item in given)
    return tuple(passages), tuple(gold) if marked else ()
