"""Write the table of the server's settings into docs/serve.md: python docs/settings_table.py"""

import re
from pathlib import Path
from typing import get_args

from pydantic_core import PydanticUndefined

from btr.serve.settings import Settings

PAGE = Path(__file__).with_name("serve.md")
BEGIN, END = "<!-- settings: written by docs/settings_table.py -->\n", "<!-- end of settings -->"


def table() -> str:
    """Return a row for each setting: flag, default, what it is."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = "STORE" if name == "store" else "--" + name.replace("_", "-")
        plain = f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
        value = "" if field.default in (None, "", PydanticUndefined) else f"`{plain}`"
        said = field.description or ""
        if choices := [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]:
            said += ": " + ", ".join(f"`{choice}`" for choice in choices)
        rows.append(f"| `{flag}` | {value} | {said} |")
    return "\n".join(rows) + "\n"


def fill(text: str) -> str:
    """Put the table between its two marks."""
    return re.sub(rf"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: f"\n{table()}\n", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
