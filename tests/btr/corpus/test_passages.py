"""Passages and questions in every format; cutting; what is refused and where."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from btr.corpus.passages import Question, read_passages, read_questions
from btr.corpus.pieces import Passage
from btr.corpus.tally import Tally
from btr.errors import InputError

OWL = Passage("1", "Owl", "Owls hunt\n at  night.")
HEN = Passage("x2", "", 'The hen said "no".')


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")
    return path


PASSAGES = {
    "atlas": lines({"id": 1, "title": "Owl", "text": OWL.text, "section": ""}, {"id": "x2", "text": HEN.text}),
    "array": json.dumps([{"id": 1, "title": "Owl", "text": OWL.text}, {"id": "x2", "title": None, "text": HEN.text}]),
    "flashrag": lines({"id": "1", "contents": '"Owl"\n' + OWL.text}, {"id": "x2", "contents": "\n" + HEN.text}),
    "beir": lines({"_id": "1", "title": "Owl", "text": OWL.text, "metadata": {}}, {"_id": "x2", "text": HEN.text}),
    "kilt": lines(
        {"_id": "9", "wikipedia_id": 1, "wikipedia_title": "Owl", "text": ["Owl\n", "Owls hunt\n", " at  night."]},
        {"wikipedia_id": "x2", "wikipedia_title": "", "text": [HEN.text]},
    ),
}


@pytest.mark.parametrize("content", PASSAGES.values(), ids=PASSAGES.keys())
def test_corpus_passage_formats(tmp_path: Path, content: str) -> None:
    assert list(read_passages(write(tmp_path / "file", content))) == [OWL, HEN]


def test_corpus_dpr_table(tmp_path: Path) -> None:
    content = 'id\ttext\ttitle\r\n1\tOwls hunt.\tOwl\n2\t"The hen said ""no""."\t"The ""Hen"""\n3\t"So" or "so"\t\n'
    assert list(read_passages(write(tmp_path / "file", content))) == [
        Passage("1", "Owl", "Owls hunt."),
        Passage("2", 'The "Hen"', 'The hen said "no".'),
        Passage("3", "", '"So" or "so"'),
    ]
    swapped = write(tmp_path / "file", "title\tid\tscore\ttext\nOwl\t1\t0.5\tOwls hunt.\n")
    assert list(read_passages(swapped)) == [Passage("1", "Owl", "Owls hunt.")]


def test_corpus_section_joins_the_title(tmp_path: Path) -> None:
    path = write(tmp_path / "file", lines({"id": "1", "title": "Owl", "section": "Diet", "text": "Mice."}))
    assert list(read_passages(path)) == [Passage("1", "Owl: Diet", "Mice.")]


def test_corpus_flashrag_without_title(tmp_path: Path) -> None:
    path = write(tmp_path / "file", lines({"id": "1", "contents": "Owls hunt."}))
    assert list(read_passages(path)) == [Passage("1", "", "Owls hunt.")]


@pytest.mark.parametrize("name", ["passages.jsonl", "passages.jsonl.gz", "corpus.jsonl"])
def test_corpus_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path / "qrels" / "test.tsv", "")
    with pytest.raises(InputError, match=r"test.tsv|no passage to read"):
        list(read_passages(tmp_path))
    write(tmp_path / name, PASSAGES["atlas"])
    assert list(read_passages(tmp_path)) == [OWL, HEN]


def test_corpus_folder_of_parts(tmp_path: Path) -> None:
    """Read what WikiExtractor writes, and other shards, in the order of their names; hidden files are passed over."""
    write(tmp_path / "AA" / "wiki_01", lines({"id": 2, "title": "Hen", "text": "b", "url": "u"}))
    write(tmp_path / "AA" / "wiki_00", lines({"id": 1, "title": "Owl", "text": "a"}))
    write(tmp_path / "BB.tsv", "id\ttext\ttitle\n3\tc\tCow\n")
    write(tmp_path / ".hidden", "no passage")
    write(tmp_path / "_SUCCESS", "")
    assert [passage.id for passage in read_passages(tmp_path)] == ["1", "2", "3"]


def test_corpus_saved_by_datasets(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"id": 1, "title": None, "text": "a"}, {"id": 2, "title": "Hen", "text": None}])
    rows.save_to_disk(tmp_path / "one")
    tally = Tally()
    assert list(read_passages(tmp_path / "one", tally=tally)) == [Passage("1", "", "a")] and tally.empty == 1
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "many")
    with pytest.raises(InputError, match=r"several splits; name one of .*/\{train\}"):
        list(read_passages(tmp_path / "many"))
    assert len(list(read_passages(tmp_path / "many" / "train"))) == 1


def test_corpus_contents_beside_a_title(tmp_path: Path) -> None:
    row = {"id": 1, "contents": "It was opened.\nLate.", "title": "Opera"}
    assert list(read_passages(write(tmp_path / "file", lines(row)))) == [Passage("1", "Opera", "It was opened.\nLate.")]


HEN_ROW = {"title": "Hen", "text": "Hens lay."}
EVIDENCE = [
    ({"passages": [HEN_ROW]}, ()),
    ({"positive_ctxs": [HEN_ROW], "hard_negative_ctxs": [{"title": "Owl", "text": "Owls hunt."}]}, (True, False)),
    ({"context": "Hens lay.", "title": "Hen"}, (True,)),
    ({"context": [["Hen", ["Hens", " lay."]], ["Owl", ["Owls."]]], "supporting_facts": [["Hen", 0]]}, (True, False)),
    (
        {
            "context": {"title": ["Hen", "Owl"], "sentences": [["Hens lay."], ["Owls."]]},
            "supporting_facts": {"title": ["Owl"], "sent_id": [0]},
        },
        (False, True),
    ),
]


@pytest.mark.parametrize(("fields", "gold"), EVIDENCE)
def test_corpus_passages_under_other_names(tmp_path: Path, fields: dict[str, object], gold: tuple[bool, ...]) -> None:
    row = {"id": "q", "question": "who?", "answer": "hens"} | fields
    (question,) = read_questions(write(tmp_path / "file", lines(row)))
    assert question.gold == gold and question.answers == ("hens",)
    assert question.passages[0] == Passage("q:0", "Hen", "Hens lay.")


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"golden_answers": [15, "fifteenth", 1.5]}, ("15", "fifteenth", "1.5")),
        ({"golden_answers": [True]}, ("true",)),
        ({"golden_answers": [1], "choices": ["bark", "threads"]}, ("B",)),
        ({"golden_answers": ["bark"], "choices": ["bark", "threads"]}, ("A",)),
        ({"answers": {"text": ["red", "red", "blue"], "answer_start": [1, 1, 2]}}, ("red", "blue")),
        ({"answers": [{"text": "red", "answer_start": 1}]}, ("red",)),
        ({"answer": {"value": "Yemen", "aliases": ["Yemen", "YE"], "type": "x"}}, ("Yemen", "YE")),
        ({"answers": ["seems right"], "unanswerable": True}, ()),
        ({"answers": ["right"], "unanswerable": False, "is_impossible": False}, ("right",)),
        ({"answers": {"text": ["seems right"]}, "is_impossible": True}, ()),
    ],
)
def test_corpus_answers_as_data_sets_have_them(
    tmp_path: Path, fields: dict[str, object], answers: tuple[str, ...]
) -> None:
    (question,) = read_questions(write(tmp_path / "file", lines({"question": "q"} | fields)))
    assert question.answers == answers


def test_corpus_squad_as_published(tmp_path: Path) -> None:
    asked = [{"id": n, "question": f"{n}?", "answers": [{"text": "red", "answer_start": 0}] * n} for n in range(2)]
    file = {"version": "2.0", "data": [{"title": "Hen", "paragraphs": [{"context": "red hens", "qas": asked}]}]}
    found = list(read_questions(write(tmp_path / "file", json.dumps(file))))
    assert [(question.id, question.answers) for question in found] == [("0", ()), ("1", ("red",))]
    assert {question.passages[0].text for question in found} == {"red hens"} and found[0].gold == (True,)


def test_corpus_empty_passages_are_counted(tmp_path: Path) -> None:
    rows = [{"id": n, "title": "t", "text": " \n" * (n % 2) + "x" * (n % 3)} for n in range(6)]
    tally = Tally()
    found = list(read_passages(write(tmp_path / "file", lines(*rows)), tally=tally))
    assert [passage.id for passage in found] == ["1", "2", "4", "5"]
    assert tally == Tally(empty=2)
    with pytest.raises(InputError, match=r"file: no passage to read \(2 without text\); give at least one"):
        list(read_passages(write(tmp_path / "file", lines(rows[0], rows[3]))))


@pytest.mark.parametrize("content", ["", "\n \n", "[]", "id\ttext\n"])
def test_corpus_without_passage_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"file: no passage to read"):
        list(read_passages(write(tmp_path / "file", content)))


def test_corpus_limit_counts_pieces(tmp_path: Path) -> None:
    path = write(tmp_path / "file", lines({"id": "a", "text": "w " * 300}, "never read"))
    assert [passage.id for passage in read_passages(path, limit=2)] == ["a:0", "a:1"]
    assert list(read_passages(path, limit=0)) == []


def test_corpus_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    rows = [{"id": n, "title": "t", "text": f"text {n}"} for n in range(999)]
    passages = read_passages(write(tmp_path / "file", lines(*rows, {"id": 999, "title": "t"})))
    assert [next(passages).id for _ in range(999)] == [str(n) for n in range(999)]
    with pytest.raises(InputError, match="file:1000: no field 'text'"):
        next(passages)


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(150, [150]), (151, [100, 51]), (219, [100, 119]), (220, [100, 100, 20]), (300, [100, 100, 100])],
)
def test_corpus_long_texts_are_cut(tmp_path: Path, length: int, sizes: list[int]) -> None:
    text = "  ".join(f"w{n}" for n in range(length))
    tally = Tally()
    found = list(read_passages(write(tmp_path / "file", lines({"id": "a", "title": "T", "text": text})), tally=tally))
    assert [len(passage.text.split()) for passage in found] == sizes
    assert "  ".join(passage.text for passage in found) == text
    assert {passage.title for passage in found} == {"T"}
    assert [passage.id for passage in found] == (["a"] if length == 150 else [f"a:{n}" for n in range(len(sizes))])
    assert tally.cut == (length > 150)


def test_corpus_texts_without_spaces_are_cut_by_characters(tmp_path: Path) -> None:
    text = "\u82b1\u306f\u54b2\u304f\u3002" * 40  # 160 characters and 40 full stops
    found = list(read_passages(write(tmp_path / "file", lines({"id": "a", "text": text}))))
    assert [(passage.id, len(passage.text)) for passage in found] == [("a:0", 125), ("a:1", 75)]
    assert "".join(passage.text for passage in found) == text


def test_corpus_words_sets_the_size(tmp_path: Path) -> None:
    path = write(tmp_path / "file", lines({"id": "a", "text": "1 2 3 4 5 6"}))
    assert [passage.text for passage in read_passages(path, words=2)] == ["1 2", "3 4", "5 6"]
    with pytest.raises(ValueError, match="words is 0"):
        list(read_passages(path, words=0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1, "text": "a"}\n{"id": 1,\n', "file:2: not JSON "),
        (lines({"id": 1, "text": "a"}, {"text": "b"}), "file:2: no field 'id' (it has text); "),
        (lines({"id": 1, "text": "a"}, {"id": 2}), "file:2: no field 'text' (it has id); "),
        (lines({"id": 1, "text": ["a"]}), "file:1: 'text' is a list, not text; "),
        (lines({"id": 1, "title": True, "text": "a"}), "file:1: 'title' is a boolean, not text; "),
        (lines({"id": [1], "text": "a"}), "file:1: 'id' is a list, not text; "),
        (lines({"id": 1, "text": "a"}, {"id": "x" * 600, "text": "a"}), "file:2: the id 'xxx"),
        (lines({"id": "", "text": "a"}), "file:1: 'id' is blank; "),
        (lines({"id": 1, "text": "\ud83d"}), "file:1: 'text' holds \\ud83d, half of a character; "),
        (lines({"id": 1, "contents": "T\na"}, {"id": 2, "text": "b"}), "file:2: no field 'contents' "),
        (lines({"_id": 1, "text": "a"}, {"id": 2, "text": "b"}), "file:2: no field '_id' "),
        (
            lines({"wikipedia_id": 1, "wikipedia_title": "", "text": "a"}),
            "file:1: 'text' is not a list of paragraphs; ",
        ),
        (lines({"wikipedia_id": 1, "wikipedia_title": "", "text": ["\udc00"]}), "file:1: 'text' holds \\udc00, "),
        (lines({"question": "q", "answers": []}), "file:1: no passage in a record of question, answers; give 'id'"),
        ("1\tOwls hunt.\tOwl\n", "file:1: neither JSON nor a table with columns 'id' and 'text'; begin it with"),
        ("Owls hunt.\n", "file:1: neither JSON nor a table "),
        ("id\ttext\ttitle\n1\ta\tb\n2\ta\n", "file:3: 2 columns, the first line names 3; "),
    ],
)
def test_corpus_refuses_with_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/{message}")) as caught:
        list(read_passages(write(tmp_path / "file", content)))
    assert "\n" not in str(caught.value)


def test_corpus_refuses_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes('{"id": 1, "text": "a"}\n{"id": 2, "text": "é"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"file:2: not UTF-8 \(byte 0xe9.*; convert the file to UTF-8"):
        list(read_passages(tmp_path / "file"))


class Hub:
    """Stand in for `datasets`: two configurations of one data set."""

    ROWS = ({"id": 1, "title": "Owl", "text": OWL.text}, {"id": "x2", "title": None, "text": HEN.text})

    @staticmethod
    def load_dataset(id: str, configuration: str | None, *, streaming: bool) -> dict[str, object]:
        assert streaming
        if id != "aviary/birds":
            raise ConnectionError("no network")
        return {"all": Hub.ROWS} if configuration is None else {"train": Hub.ROWS[:1], "test": [*Hub.ROWS[1:], {}]}


def test_corpus_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=Hub.load_dataset))
    monkeypatch.chdir(tmp_path)
    assert list(read_passages("aviary/birds")) == [OWL, HEN]
    assert list(read_passages("aviary/birds:small")) == [OWL]
    assert list(read_passages("aviary/birds:small:test", limit=1)) == [HEN]
    with pytest.raises(InputError, match=r"^aviary/birds:small:test:2: no field 'id' \(it has none\)"):
        list(read_passages("aviary/birds:small:test"))
    with pytest.raises(InputError, match=r"^aviary/birds:small:dev: no split 'dev'; name one of train, test as "):
        list(read_passages("aviary/birds:small:dev"))
    with pytest.raises(InputError, match=r"^aviary/owls: no such file, and not .* hub \(no network\); check the name"):
        list(read_passages("aviary/owls"))
    for name in ("aviary/birds.jsonl", "aviary/birds.tsv.gz", "birds", "./aviary/birds/more"):
        with pytest.raises(InputError, match=f"^{name}: cannot be read"):
            list(read_passages(name))
    write(tmp_path / "aviary" / "birds", PASSAGES["atlas"].replace("Owls", "Eagles"))  # a file of that name comes first
    assert next(read_passages("aviary/birds")).text.startswith("Eagles")


def test_corpus_hub_needs_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs: pip install datasets"):
        list(read_passages("aviary/birds"))


CTXS = [{"id": 7, "title": "Owl", "text": "Mice.", "score": 0.5}, {"text": "Seeds.", "is_gold": True}]
READ = (Passage("7", "Owl", "Mice."), Passage("q:1", "", "Seeds."))
QUESTIONS = {
    "atlas": (lines({"question": "who?", "answers": ["a", "b"]}), Question("0", "who?", ("a", "b"))),
    "fid": (
        json.dumps([{"id": "q", "question": "who?", "target": "b", "answers": ["a"], "ctxs": CTXS[:1]}], indent=1),
        Question("q", "who?", ("a",), READ[:1]),
    ),
    "gold": (
        lines({"id": "q", "question": "who?", "answers": ["a"], "ctxs": CTXS}),
        Question("q", "who?", ("a",), READ, (False, True)),
    ),
    "target": (lines({"id": 5, "question": "who?", "target": "b"}), Question("5", "who?", ("b",))),
    "flashrag": (lines({"id": "q", "question": "who?", "golden_answers": ["a"]}), Question("q", "who?", ("a",))),
    "fever": (lines({"id": 3, "claim": "it is", "label": "REFUTES"}), Question("3", "it is", ("REFUTES",))),
    "unlabelled": (lines({"id": 3, "claim": "it is"}), Question("3", "it is", ())),
    "beir": (lines({"_id": "q", "text": "who?", "metadata": {}}), Question("q", "who?", ())),
    "mmlu": (
        lines({"subject": "s", "question": "who?", "options": {"A": "1", "B": "2"}, "answer": "B"}),
        Question("0", "who?", ("B",), options=(("A", "1"), ("B", "2"))),
    ),
    "choices": (
        lines({"question": "who?", "choices": ["1", "2"], "answer": 0}),
        Question("0", "who?", ("A",), options=(("A", "1"), ("B", "2"))),
    ),
    "dpr": ("who?\t['a', \"b's\"]\n", Question("0", "who?", ("a", "b's"))),
    "dpr csv": ('"say ""who""?"\t"[""b\'s"", \'a\']"\r\n', Question("0", 'say "who"?', ("b's", "a"))),
    "dpr bracket": ("[who]?\t['a']\n", Question("0", "[who]?", ("a",))),
    "blank answers": (lines({"question": "who?", "answers": ["a", " "]}), Question("0", "who?", ("a",))),
}


@pytest.mark.parametrize(("content", "question"), QUESTIONS.values(), ids=QUESTIONS.keys())
def test_corpus_question_formats(tmp_path: Path, content: str, question: Question) -> None:
    assert list(read_questions(write(tmp_path / "file", content))) == [question]


def test_corpus_answers_in_a_text(tmp_path: Path) -> None:
    rows = [{"question": "q", "answers": text} for text in ("['a', b's, 'c']", "['a', 'b']", "a, b", "['d's]")]
    tally = Tally()
    found = list(read_questions(write(tmp_path / "file", lines(*rows)), tally=tally))
    assert [question.answers for question in found] == [("a", "b's", "c"), ("a", "b"), ("a, b",), ("'d's",)]
    assert [question.id for question in found] == ["0", "1", "2", "3"]
    assert tally == Tally(repaired=2)


def test_corpus_passages_of_a_question(tmp_path: Path) -> None:
    ctxs = [{"text": " ", "is_gold": True}, {"text": "w " * 400, "is_gold": False}]
    tally = Tally()
    path = write(tmp_path / "file", lines({"id": "q", "question": "who?", "answers": [], "ctxs": ctxs}))
    (question,) = read_questions(path, tally=tally)
    assert [(passage.id, len(passage.text)) for passage in question.passages] == [("q:1", 800)]
    assert question.gold == (False,)
    assert tally == Tally(empty=1)


@pytest.mark.parametrize("name", ["questions.jsonl", "queries.jsonl.zst"])
def test_corpus_question_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, lines({"question": "who?"}, {"question": "what?"}, "never read"))
    assert [question.question for question in read_questions(tmp_path, limit=2)] == ["who?", "what?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "file: no question to read; "),
        (lines({"question": "q"}, {"answers": ["a"]}), "file:2: no field 'question' (it has answers); "),
        (lines({"text": "q"}), "file:1: no field 'question' "),
        (lines({"question": " "}), "file:1: 'question' is blank; "),
        (lines({"claim": [1]}), "file:1: 'claim' is a list, not text; "),
        (lines({"question": "q", "answers": 5}), "file:1: 'answers' is neither text nor a list of texts; "),
        (lines({"question": "q", "answers": ["a", [5]]}), "file:1: 'answers' is neither text nor a list of texts; "),
        (lines({"question": "q", "answers": ["\ud800"]}), "file:1: 'answers' holds \\ud800, half of a character; "),
        (lines({"question": "q", "options": {"A": 1}}), "file:1: 'options' is neither an object nor a list of texts; "),
        (lines({"question": "q", "options": {"A": "x"}, "answer": "B"}), "file:1: 'answer' is 'B', none of the "),
        (lines({"question": "q", "options": ["x"], "answer": 1}), "file:1: 'answer' is 1, none of the options A; "),
        (lines({"question": "q", "ctxs": ["a"]}), "file:1: 'ctxs' is not a list of objects; "),
        (lines({"question": "q", "ctxs": [{"title": "a"}]}), "file:1: no field 'text' (it has title); "),
        (lines({"question": "q", "ctxs": [{"text": "a", "is_gold": 1}]}), "file:1: 'is_gold' is a number, not a bool"),
        ("q\t['a']\nq\ta\n", "file:2: neither JSON nor a question and a list of answers; write question<tab>["),
        ("just words\n", "file:1: neither JSON nor a question and a list of answers; "),
    ],
)
def test_corpus_refuses_questions_with_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/{message}")):
        list(read_questions(write(tmp_path / "file", content)))


def test_corpus_fields_of_any_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "file", lines({"key": 1, "head": "Owl", "body": OWL.text, "text": "no"}, {"key": 2, "body": ""})
    )
    tally = Tally()
    assert list(read_passages(path, fields=("key", "head", "body"), tally=tally)) == [OWL] and tally.empty == 1
    assert list(read_passages(path, fields=("key", "", "body"))) == [Passage("1", "", OWL.text)]
    with pytest.raises(InputError, match=r"file:1: no field 'nr' \(it has key, head, body, text\)"):
        list(read_passages(path, fields=("nr", "head", "body")))
    with pytest.raises(InputError, match="say with --id, --title and --text which fields they are"):
        list(read_passages(path))
