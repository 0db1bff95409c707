"""Binary token representations: a Fusion-in-Decoder reader that reads passages once and keeps them as bits."""

import importlib
import importlib.util
import sys
from pathlib import Path
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


if importlib.util.find_spec("fcntl") is None:
    _cause = "btr needs Linux or macOS: its stores use flock; on Windows use WSL"
    if Path(sys.argv[0]).stem in ("btr", "-m"):  # a command, or `python -m`: a line, and no traceback
        sys.stderr.write(f"error: {_cause}\n")
        sys.exit(2)
    raise ImportError(_cause)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `btr --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'btr' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
