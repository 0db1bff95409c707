"""Take apart a list of answers that stands in a file as text, and the quotes of a tab-separated field."""

import ast
import re
import warnings

# An item between quotes that a comma or the end follows; otherwise everything up to the next comma or the end.
_ITEM = re.compile(
    r"""(?:,\ )? (?: '(?P<single>[^']*)' | "(?P<double>[^"]*)" | (?P<bare>.+?) ) (?=,\ |\Z)""", re.DOTALL | re.VERBOSE
)


def unquote(field: str) -> str:
    """Take away the quotes around a field, as written by the csv module; a field without them stays as it is."""
    if len(field) < 2 or field[0] != '"' or field[-1] != '"':
        return field
    inner = field[1:-1]
    return inner.replace('""', '"') if '"' not in inner.replace('""', "") else field


def looks_like_list(text: str) -> bool:
    """Tell whether a text is meant as a list: it stands between brackets."""
    return text.startswith("[") and text.endswith("]")


def parse_answers(text: str) -> tuple[list[str], bool]:
    """Parse a list of strings as Python writes one; return the strings and whether the text was well formed.

    Some published files have lost the double quotes in which Python wraps an item with an apostrophe:
    `['a', b's, 'c']`. Such a text is taken apart by rule (`_split_broken`), never refused.
    """
    try:
        with warnings.catch_warnings():  # an unknown escape such as \\d is only a warning to Python
            warnings.simplefilter("ignore")
            items = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _split_broken(text[1:-1]), False
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        return items, True
    return _split_broken(text[1:-1]), False


def _split_broken(inner: str) -> list[str]:
    """Split at the commas outside quotes.

    An item lost its quotes because it holds an apostrophe. So a bare stretch without one is no item but a piece of an
    item that holds a comma: it joins the stretch after it, or, if no bare one follows, the one before it.
    """
    items: list[str] = []
    bare: list[str] = []  # the stretches since the last quoted item
    for match in _ITEM.finditer(inner):
        if match["bare"] is None:
            items += [*_join_bare(bare), match[match.lastgroup or 0]]
            bare = []
        else:
            bare.append(match["bare"])
    return items + _join_bare(bare)


def _join_bare(stretches: list[str]) -> list[str]:
    joined: list[str] = []
    waiting: list[str] = []
    for stretch in stretches:
        waiting.append(stretch)
        if "'" in stretch:
            joined.append(", ".join(waiting))
            waiting = []
    if waiting:
        joined[-1:] = [", ".join((*joined[-1:], *waiting))]
    return joined
