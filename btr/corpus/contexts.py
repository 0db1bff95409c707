"""Read what comes with a question under the names that published files have for it: passages, and answers."""

from collections.abc import Iterator

from btr.corpus.records import Record, number_text

DPR = (("positive_ctxs", True), ("negative_ctxs", False), ("hard_negative_ctxs", False))


def squad_questions(record: Record) -> Iterator[Record]:
    """Yield a record for each question of SQuAD's own file, which is one object; other records are as they were."""
    if "question" in record.fields or not record.fields.keys() & {"data", "paragraphs"}:
        yield record
        return
    articles = record.objects("data") if "data" in record.fields else [record]
    for article in articles:
        for paragraph in article.objects("paragraphs"):
            shared = {"title": article.fields.get("title"), "context": paragraph.fields.get("context")}
            for question in paragraph.objects("qas"):
                yield Record(record.where, shared | question.fields)


def contexts(record: Record) -> list[Record]:
    """Return what came with a question, in whatever field, as records of title and text, marked as gold or not."""
    if given := record.objects("ctxs") or record.objects("passages"):
        return given
    found = []
    for name, gold in DPR:
        found += [Record(item.where, item.fields | {"is_gold": gold}) for item in record.objects(name)]
    context = record.get("context")
    if isinstance(context, str):
        gold_text = {"title": record.text("title", ""), "text": context, "is_gold": True}
        return [*found, Record(record.where, gold_text)]
    if not isinstance(context, list | dict):
        return found
    try:  # HotpotQA's: pairs, or on the hub lists side by side
        facts, pairs = record.get("supporting_facts") or [], context
        titles = set(facts["title"]) if isinstance(facts, dict) else {title for title, _ in facts}
        if isinstance(context, dict):
            pairs = list(zip(context["title"], context["sentences"], strict=True))
        rows = [{"title": title, "text": "".join(sentences)} for title, sentences in pairs]
    except (KeyError, TypeError, ValueError):
        record.fail("'context' is neither text nor [[title, [sentence, ...]], ...]", "give passages as 'ctxs'")
    marks = [{"is_gold": row["title"] in titles} if titles else {} for row in rows]
    return [*found, *(Record(record.where, row | mark) for row, mark in zip(rows, marks, strict=True))]


def answer_text(answer: object) -> str | None:
    """Return an answer as text: a number, true or false as JSON has them, SQuAD's {"text": ...}; None for others."""
    if isinstance(answer, dict):
        answer = answer.get("text")
    if isinstance(answer, bool):
        return str(answer).lower()
    return answer if isinstance(answer, str) else number_text(answer)
