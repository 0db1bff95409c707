"""Keep predictions as they come, in a file of JSON lines, so that a run that was killed goes on where it was.

The first line holds the settings that all predictions share; every other line is one prediction, named by KEY and by
`input`, a digest of what the reader was given. More modes and numbers of passages may be added to a file later.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from btr.errors import InputError

FORMAT = 1
MARK = b'{"btr_predictions": '
KEY = ("reader", "mode", "passages", "number")  # weights of the reader, how it read, and the question's place from 0
PRUNE = "prune"  # passages of those that were read to the end; where it is missing, all (0)

Prediction = dict[str, Any]


class Predictions:
    """The predictions of a run, and those that its file holds from an earlier one. Without a path: in memory alone."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """Open a file to go on with, or begin one.

        Raises:
            InputError: not a file of predictions, one made with other settings, or one with a damaged line.
        """
        self._found: dict[tuple[Any, ...], Prediction] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        head = {"btr_predictions": FORMAT, **settings}
        kept = self._read(path, head) if path.exists() else 0
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); name another file") from error
        self._file.truncate(kept)
        if not kept:
            self._write(head)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, prediction: Prediction) -> Prediction | None:
        """Return the prediction that was made where `prediction` (KEY, id and input at least) is wanted, if there is.

        Raises:
            InputError: it was made from another question, or from other passages.
        """
        found = self._found.get(_key(prediction))
        if found is not None and found["input"] != prediction["input"]:
            raise InputError(
                f"question {prediction['id']!r}: the predictions were made from input {found['input']}, this run has "
                f"{prediction['input']} (other questions or passages); name another --out"
            )
        return found

    def add(self, prediction: Prediction) -> None:
        """Keep a prediction; it is in the hands of the operating system when this returns."""
        self._found[_key(prediction)] = prediction
        self._write(prediction)

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            self._file.flush()

    def _read(self, path: Path, head: dict[str, Any]) -> int:
        """Read what an earlier run left; returns the bytes of its whole lines: a kill may have torn the last."""
        try:
            *lines, torn = path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); name another file") from error
        if not (lines[0].startswith(MARK) if lines else MARK.startswith(torn[: len(MARK)])):
            raise InputError(f"{path}: not a file of predictions, and not overwritten; name another --out")
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                if number > 1:
                    self._found[_key(value)] = value
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}:{number}: damaged ({error}); delete this line, or name another --out"
                ) from error
            if number == 1:
                _check(path, value, head)
        return sum(len(line) + 1 for line in lines)


def input_digest(question: str, answers: Sequence[str], passages: Sequence[tuple[str, str]]) -> str:
    """Return 16 hexadecimal digits over what a prediction depends on: question, answers, (title, text) of passages."""
    text = json.dumps([question, list(answers), [list(passage) for passage in passages]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _key(prediction: Prediction) -> tuple[Any, ...]:
    return (*(prediction[name] for name in KEY), prediction.get(PRUNE, 0))


def _check(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a file whose settings are not those of this run."""
    for name in {**found, **wanted}:
        was, now = found.get(name), wanted.get(name)
        if was != now:
            cure = "name another --out"
            raise InputError(f"{path}: made with {name} {was}, this run has {now}; {cure}")
