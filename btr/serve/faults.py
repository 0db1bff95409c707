"""Say in our own words what is wrong with a value that pydantic refuses: what is wanted there, and what came."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

LONGEST = 40  # characters of what came that are said again
# By the kind of pydantic's error, the words of which are for programmers; {names} are of its context.
WANTED = {
    "string_type": "text is wanted",
    "int_type": "a whole number is wanted",
    "int_from_float": "a whole number is wanted",
    "int_parsing": "a whole number is wanted",
    "int_parsing_size": "a whole number of fewer digits is wanted",
    "float_type": "a number is wanted",
    "float_parsing": "a number is wanted",
    "finite_number": "a finite number is wanted",
    "bool_type": "true or false is wanted",
    "bool_parsing": "true or false is wanted",
    "list_type": "a list is wanted",
    "path_type": "a path is wanted",
    "model_type": "an object is wanted",
    "model_attributes_type": "an object is wanted",
    "dict_type": "an object is wanted",
    "literal_error": "{expected} is wanted",
    "greater_than": "a number over {gt:g} is wanted",
    "greater_than_equal": "a number of at least {ge:g} is wanted",
    "less_than": "a number under {lt:g} is wanted",
    "less_than_equal": "a number of at most {le:g} is wanted",
    "too_short": "a list of at least {min_length} is wanted",
    "too_long": "a list of at most {max_length} is wanted",
}


def shown(value: Any) -> str:
    """Return a value that came, or what it is, in a few words of JSON."""
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST else value[:LONGEST] + "…")
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    return json.dumps(value)[:LONGEST] if value is None or isinstance(value, int | float) else "bytes"


def explain(fault: Mapping[str, Any], known: list[str]) -> str:
    """Return what is wrong with a value, of which pydantic says `fault`; `known` are the fields that there are."""
    kind, context = str(fault["type"]), fault.get("ctx", {})
    if kind == "missing":
        return "it is missing"
    if kind == "extra_forbidden":
        near = get_close_matches(str(fault["loc"][-1]), known, n=1)
        return f"there is no such field{f'; did you mean {near[0]}?' if near else ''}"
    if kind == "value_error":  # our own, raised by a validator
        return str(context["error"])
    return f"{wanted(fault)}, not {shown(fault['input'])}"


def wanted(fault: Mapping[str, Any]) -> str:
    """Return what pydantic would have let through."""
    return WANTED.get(str(fault["type"]), "something else is wanted").format(**fault.get("ctx", {}))
