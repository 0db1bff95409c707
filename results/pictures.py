"""Draw what was measured, as SVG."""

from collections.abc import Callable
from typing import Any

Groups = dict[str, list[dict[str, Any]]]
PICTURES: dict[str, Callable[[Groups], str]] = {}
