"""Run `python -m btr.serve`."""

from btr.command import run_command
from btr.serve import main

run_command(main)
