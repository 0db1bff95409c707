"""The two pages for people: one to ask from, one that lists the routes.  Neither loads anything from elsewhere."""

import html
import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from re import DOTALL, findall
from re import sub as replace
from typing import Any

from btr.serve.middleware import HEADERS

PAGE = Path(__file__).with_name("page.html")
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1.25rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; } h3 { font-size: .95rem; margin: 1rem 0 0; }
code { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid #8886; padding: .25rem .75rem .25rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { width: 12rem; } td:first-child code { font-weight: 600; }
pre { overflow-x: auto; font-size: .85rem; border-left: 3px solid #8886; padding-left: .75rem; }
@media (max-width: 30rem) { td code { font-size: .8rem; } }
"""
BOUNDS = {"minimum": "from", "exclusiveMinimum": "over", "maximum": "to", "minItems": "at least", "maxItems": "at most"}


def policy(page: str, *more: str) -> str:
    """Return the content security policy of a page: its own scripts and styles, `more`, and nothing else."""
    allowed = []
    for tag in ("script", "style"):
        for text in findall(rf"<{tag}>(.*?)</{tag}>", page, DOTALL):
            digest = b64encode(sha256(text.encode()).digest()).decode()
            allowed.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join([HEADERS["Content-Security-Policy"], *more, *allowed])


def render_page(examples: Sequence[str], mode: str, locked: bool) -> tuple[str, str]:
    """Return the page to ask from, and its policy; `locked`: a key has to be given."""
    page = PAGE.read_text(encoding="utf-8").replace("[[mode]]", mode).replace("[[locked]]", "yes" if locked else "")
    page = page.replace("[[examples]]", html.escape(json.dumps(list(examples))))
    return page, policy(page, "connect-src 'self'", "img-src data:")


def _kind(schema: dict[str, Any]) -> str:
    """Name the type of a field, and its bounds, in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    bounds = [f"{word} {schema[name]:g}" for name, word in BOUNDS.items() if name in schema]
    return ", ".join([kind, *bounds])


def _prose(text: str) -> str:
    """Write a description as markup: what stands between backticks is code."""
    return replace("`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _example(value: Any) -> str:
    return f"<code>{html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}</code>"


def _fields(fields: Iterable[tuple[str, dict[str, Any], bool]]) -> str:
    """Return the rows of a table: what a field is, and what it means."""
    rows = []
    for name, field, required in fields:
        need = "required" if required else "optional"
        need = need if field.get("default") is None else f"default: {json.dumps(field['default'])}"
        what = f"<code>{html.escape(name)}</code><br>{html.escape(_kind(field))}<br>{html.escape(need)}"
        meaning = _prose(field.get("description", ""))
        meaning += "".join(f"<br>for example {_example(one)}" for one in field.get("examples", [])[:1])
        rows.append(f"<tr><td>{what}</td><td>{meaning}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _route(path: str, method: str, route: dict[str, Any]) -> str:
    """Return what a route does, what stands in its path, and what is sent and comes back, with an example of each."""
    parts = [f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"]
    parts.append(f"<p>{_prose(route.get('description', route.get('summary', '')))}</p>")
    if given := route.get("parameters"):
        parts.append(_fields((one["name"], one["schema"], one.get("required", False)) for one in given))
    for said, body in (("Sent", route.get("requestBody", {})), ("Comes back", route["responses"].get("200", {}))):
        for kind, content in body.get("content", {}).items():
            schema = content.get("schema", {})
            named = _kind(schema) if "$ref" in schema else ""
            link = f'<a href="#{named}">{named}</a>, ' if named else ""
            parts.append(f"<p>{said}: {link}{kind}</p>")
            if "example" in content:
                shown = content["example"]
                shown = shown if isinstance(shown, str) else json.dumps(shown, indent=1, ensure_ascii=False)
                parts.append(f"<pre>{html.escape(shown)}</pre>")
    return "".join(parts)


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    fields = _fields((one, field, one in required) for one, field in schema.get("properties", {}).items())
    examples = [json.dumps(one, indent=1, ensure_ascii=False) for one in schema.get("examples", [])]
    shown = "".join(f"<pre>{html.escape(one)}</pre>" for one in examples)
    return (
        f'<section id="{name}"><h3>{name}</h3><p>{_prose(schema.get("description", ""))}</p>{fields}{shown}</section>'
    )


def render_docs(document: dict[str, Any]) -> tuple[str, str]:
    """Return the page that lists the routes of an OpenAPI document and the fields they take, and its policy."""
    routes = "".join(_route(path, *one) for path, methods in document["paths"].items() for one in methods.items())
    refused = "".join(
        f"<tr><td>{status}</td><td>{html.escape(one['description'])}</td></tr>"
        for status, one in document["paths"]["/v1/answer"]["post"]["responses"].items()
        if int(status) >= 400
    )
    schemas = "".join(_schema(*one) for one in document["components"]["schemas"].items())
    title, about = html.escape(document["info"]["title"]), _prose(document["info"].get("description", ""))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: the API</title><style>{STYLE}</style></head><body><h1>{title}</h1><p>{about}</p>"
        f'<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>{routes}'
        f"<h2>Refusals</h2><table>{refused}</table><h2>What is sent and comes back</h2>{schemas}</body></html>"
    )
    return page, policy(page)
