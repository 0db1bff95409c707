"""The error that means the input is at fault, not the program."""

POINTER = b"version https://git-lfs.github.com/spec/"


class InputError(Exception):
    """Say in one line what is wrong with an input, where, and the cure; a command prints it and exits 2."""


def check_fetched(path: str, head: bytes) -> None:
    """Raise InputError if a file, given by its first bytes, is what Git LFS leaves in place of one not fetched."""
    if head.startswith(POINTER):
        raise InputError(f"{path}: a Git LFS pointer, not the file itself; fetch it with: git lfs pull")
