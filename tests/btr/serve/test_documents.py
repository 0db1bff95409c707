"""What /docs and /openapi.json say of every field and route: its meaning, its bounds, and an example that holds."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter

from btr.serve import completion, create_app, schema


@pytest.fixture
def document(kit: Any, reader: Any) -> dict[str, Any]:
    return create_app(kit.make_desk(reader)).openapi()


def routes(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield f"{method} {path}", route


def test_every_field_has_a_meaning_and_an_example(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert len(schemas) > 15
    lacking = [
        f"{name}.{field}"
        for name, one in schemas.items()
        for field, said in one["properties"].items()
        if len(said.get("description", "")) < 8 or not said.get("examples")
    ]
    assert lacking == []
    assert [name for name, one in schemas.items() if not one.get("description")] == []


def test_every_route_has_a_meaning_and_examples(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def shown(body: dict[str, Any]) -> bool:
        return all(
            "example" in content or schemas[content["schema"]["$ref"].rpartition("/")[2]].get("examples")
            for content in body["content"].values()
        )

    for name, route in routes(document):
        assert len(route["description"]) > 20, name
        assert "requestBody" not in route or shown(route["requestBody"]), name
        assert shown(route["responses"]["200"]) and {"401", "503"} <= route["responses"].keys(), name
        for parameter in route.get("parameters", []):
            assert parameter["description"] and (parameter.get("examples") or parameter["schema"]["examples"]), name


def test_examples_are_what_is_taken_and_given(document: dict[str, Any]) -> None:
    models = {name: value for room in (schema, completion) for name, value in vars(room).items()}
    checked = 0
    for name, said in document["components"]["schemas"].items():
        model = models[name]
        assert issubclass(model, BaseModel)
        for example in said.get("examples", []):
            model.model_validate(example)
            checked += 1
        for field, one in said["properties"].items():
            info = next(info for key, info in model.model_fields.items() if (info.alias or key) == field)
            strict = model.model_config.get("strict")
            TypeAdapter(Annotated[info.annotation, info]).validate_python(one["examples"][0], strict=strict)
    assert checked >= 9


def test_example_of_an_answer_is_right_about_itself() -> None:
    reply = schema.AnswerResponse.model_validate(schema.REPLY)
    assert reply.citation is not None
    [cited] = reply.passages
    assert cited.text[reply.citation.start : reply.citation.end] == reply.answer


def test_page_tells_meaning_bounds_and_example(kit: Any, port: int) -> None:
    page = kit.send(port, "GET", "/docs")[2]
    for part in (
        "number, from 0, to 0.5", "list of string, at most 10000", "number, over 0", "for example <code>0.2</code>",
        "the question, or a list of one", '<section id="AnswerResponse">', '<a href="#StreamableRequest">',
        "&quot;object&quot;: &quot;chat.completion&quot;", "the passage&#x27;s id, slashes and all",
        "<td>429</td><td>the queue is full</td>", "default: false", "max_question_tokens",
    ):  # fmt: skip
        assert part in page, part


def test_info_has_the_fields_of_its_example(kit: Any, port: int, document: dict[str, Any]) -> None:
    shown = document["paths"]["/info"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    found = kit.send(port, "GET", "/info")[2]
    assert found.keys() == shown.keys() and found["limits"].keys() == shown["limits"].keys()
