"""Binary token representations: a Fusion-in-Decoder reader that reads passages once and keeps them as bits."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Answer", "Encoded", "Passage", "Reader", "Store", "__version__"]

_HOMES = {
    "Answer": "btr.reader",
    "Encoded": "btr.storage",
    "Passage": "btr.corpus",
    "Reader": "btr.reader",
    "Store": "btr.storage",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `btr --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'btr' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
