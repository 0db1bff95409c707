"""Figures from predictions, against numbers worked out by hand."""

from typing import Any

from btr.eval.figures import Run, describe, recall, table
from btr.metrics import percent
from btr.model.config import Mode

FULL = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]  # 4 of 8
BINARY = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # 3 of 8, all of which full has


def make_run(ems: list[float], mode: Mode, passages: int = 5, reader: str = "mine", kept: float | None = None) -> Run:
    rows = [{"em": em, "f1": (1 + em) / 2, "found": 1.0, "seconds": 0.25, "read": passages} for em in ems]
    return Run(reader, reader + " weights", mode, passages, kept, rows)


def test_rows_have_the_figures_of_their_predictions() -> None:
    full, binary = describe(
        [make_run(FULL, "full"), make_run(BINARY, "binary", kept=33.9961)], ("em", "f1"), ("mine weights", "full")
    )
    assert full["questions"] == 8 and full["em"][0] == 50.0 and full["f1"][0] == 75.0 and full["found"] == [100.0] * 3
    assert full["questions_per_second"] == 4.0 and full["bytes_per_token"] is None
    assert "difference" not in full and "retention" not in full
    assert binary["em"][0] == 37.5 and binary["bytes_per_token"] == 34.0
    assert binary["against"] == "full"
    assert binary["difference"][0] == -12.5 and binary["difference"][2] == 0.0  # -1/8; never better
    assert binary["retention"][0] == 75.0 and binary["retention"][2] == 100.0  # 3/4
    assert binary["difference"][1] < -12.5 and binary["retention"][1] < 75.0


def test_rows_are_held_against_the_base_with_as_many_passages() -> None:
    runs = [make_run(ems, mode, n) for n, ems in ((1, FULL), (5, BINARY)) for mode in ("full", "binary")]
    rows = describe(runs, ("em", "f1"), ("mine weights", "full"))
    assert [row.get("retention") for row in rows] == [None, [100.0] * 3, None, [100.0] * 3]


def test_another_reader_is_named() -> None:
    runs = [make_run(FULL, "full", reader="teacher"), make_run(BINARY, "full")]
    rows = describe(runs, ("em", "f1"), ("teacher weights", "full"))
    assert rows[1]["against"] == "full of teacher" and rows[1]["retention"][0] == 75.0
    assert "reader" in table(make_figures(rows)) and "teacher" in table(make_figures(rows))


def test_nothing_to_retain_is_no_figure() -> None:
    rows = describe([make_run([0.0, 0.0], "full"), make_run([1.0, 0.0], "binary")], ("em",), ("mine weights", "full"))
    assert rows[1]["retention"] is None and rows[1]["difference"][0] == 50.0


def test_questions_that_were_cut_are_counted_and_those_not_read_take_no_time() -> None:
    run = make_run([1.0, 0.0], "full")
    del run.predictions[1]["seconds"]
    run.predictions[1]["cut"] = "who sits"
    row = describe([run], ("em",), None)[0]
    assert row["cut"] == 1 and row["em"][0] == 50.0 and row["questions_per_second"] == 4.0
    assert "the last words alone were read: 1 in full" in table(make_figures([row]))


def test_fewer_passages_than_asked_are_told() -> None:
    run = make_run(FULL, "full")
    for row in run.predictions[:4]:
        row["read"] = 1
    figures = make_figures(describe([run], ("em", "f1"), None))
    assert figures["rows"][0]["passages_read"] == 3.0 and " 5 (read 3) " in table(figures)


def test_recall_counts_the_first_passage_that_holds_an_answer() -> None:
    figures = recall([1, 3, None, 7], [2, 10])
    assert {k: figure[0] for k, figure in figures.items()} == {"1": 25.0, "2": 25.0, "5": 50.0, "10": 75.0}


def test_percent_has_its_interval() -> None:
    middle, low, high = percent([1.0] * 30 + [0.0] * 70)
    assert middle == 30.0 and 19.0 <= low < 30.0 < high <= 41.0  # 1.96 * sqrt(0.3 * 0.7 / 100) = 9.0


def make_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "task": "nq", "questions": 8, "source": "nq/dev.jsonl", "passages_from": "wiki.btr by BM25", "recall": None,
        "dtype": "float32", "threads": 2, "rows": rows,
    }  # fmt: skip


def test_table_names_the_setting_and_lines_up() -> None:
    runs = [make_run(FULL, "full"), make_run(BINARY, "binary", kept=34.0)]
    rows = describe(runs, ("em", "f1"), ("mine weights", "full"))
    lines = table(make_figures(rows) | {"recall": {"1": [25.0, 20.0, 30.0]}}).splitlines()
    assert lines[0] == "nq: 8 questions of nq/dev.jsonl, passages: wiki.btr by BM25; float32, 2 threads"
    assert lines[1] == "an answer among the passages retrieved, %: @1 25.0 [20.0, 30.0]"
    head, full, binary = lines[3:6]
    columns = ("mode", "passages", "EM", "F1", "found", "difference", "retention", "q/s", "bytes/token")
    assert tuple(head.split()) == columns  # one reader: no column for it
    places = {name: head.index(name) for name in columns}
    assert full[places["EM"] :].startswith("50.0 [") and full[places["q/s"] :].startswith("4 ".strip())
    assert binary[places["retention"] :].startswith("75.0 [") and binary[places["difference"] :].startswith("-12.5 [")
    assert binary[places["bytes/token"] :] == "34" and full[places["difference"] :].lstrip().startswith("4")
    assert "against full" in lines[-1]
