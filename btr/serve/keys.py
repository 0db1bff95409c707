"""Let in who has a key."""

import hmac
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from btr.errors import InputError

SHORTEST = 16  # characters


@dataclass(frozen=True)
class Keys:
    """The keys that are let in, as SHA-256 digests, so that all comparisons are of one length; none: everybody is."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read a file of keys, one to a line; blank lines and lines that begin with # do not count.

        Raises:
            InputError: no such file, no key in it, or one that is short or holds a space or a strange character.
        """
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--keys-file {path}: cannot be read ({error}); give a text file") from error
        keys = [(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
        for n, key in keys:
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{path}, line {n}: a key has {SHORTEST} or more letters, digits or signs, no space")
        if not keys:
            raise InputError(f"{path} holds no key; write one to a line")
        return cls(tuple(sha256(key.encode()).digest() for _, key in keys))

    def admit(self, authorization: str) -> bool:
        """Tell whether an `Authorization` header carries a key; takes the same time whichever it is near."""
        if not self.digests:
            return True
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode("utf-8", "surrogatepass")).digest()
        matches = [hmac.compare_digest(given, known) for known in self.digests]
        return any(matches) and scheme.lower() == "bearer"
