"""The error that means the input is at fault, not the program."""


class InputError(Exception):
    """Say in one line what is wrong with an input, where, and the cure; a command prints it and exits 2."""
