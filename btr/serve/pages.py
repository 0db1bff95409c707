"""The two pages for people: one to ask from, one that lists the routes.  Neither loads anything from elsewhere."""

import html
import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from re import DOTALL, findall
from re import sub as replace
from typing import Any

from btr.serve.guard import HEADERS

PAGE = Path(__file__).with_name("page.html")
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1.25rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; } h3 { font-size: .95rem; margin: 1rem 0 0; }
code { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid #8886; padding: .25rem .75rem .25rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:last-child { white-space: nowrap; padding-right: 0; }
@media (max-width: 30rem) { td code { font-size: .8rem; } }
"""


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
    """Name the type of a field in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def _prose(text: str) -> str:
    """Write a description as markup: what stands between backticks is code."""
    return replace("`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _named(schema: Any) -> list[str]:
    """Return the names of the schemas that one refers to."""
    if isinstance(schema, dict):
        own = [_kind(schema)] if "$ref" in schema else []
        return own + [name for value in schema.values() for name in _named(value)]
    return [name for value in schema for name in _named(value)] if isinstance(schema, list) else []


def _fields(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema.get("properties", {}).items():
        default = field.get("default")
        need = "required" if name in schema.get("required", ()) else "optional"
        need = need if default is None else f"default: {json.dumps(default)}"
        cells = (f"<code>{html.escape(name)}</code>", html.escape(_kind(field)), html.escape(need))
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<p>{_prose(schema.get('description', ''))}</p><table>{''.join(rows)}</table>"


def render_docs(document: dict[str, Any]) -> tuple[str, str]:
    """Return the page that lists the routes of an OpenAPI document and the fields they take, and its policy."""
    parts: list[str] = []
    shown: set[str] = set()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{_prose(route.get('description', route.get('summary', '')))}</p>")
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if "$ref" in body:
                schemas = document["components"]["schemas"]
                parts.append(_fields(schemas[_kind(body)]))
                new = [name for name in _named(schemas[_kind(body)]) if name not in shown]
                shown |= {_kind(body), *new}
                for name in dict.fromkeys(new):
                    parts.append(f"<h3>{html.escape(name)}</h3>{_fields(schemas[name])}")
    title, about = html.escape(document["info"]["title"]), _prose(document["info"].get("description", ""))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: the API</title><style>{STYLE}</style></head><body><h1>{title}</h1><p>{about}</p>"
        f'<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>{"".join(parts)}</body></html>'
    )
    return page, policy(page)
