"""Recipes: options in a file, for one stage or for several in a row.

A recipe is TOML. Its keys are the options of `btr train` without their dashes; those at the top are for all stages,
those in a table `[decomposed]` for that stage. What is given on the command line goes before both.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from btr.errors import InputError
from btr.train.options import Parser, stage_options
from btr.train.stages import STAGES

SHIPPED = Path(__file__).parent / "recipes"


def read_recipe(name: str) -> dict[str, Any]:
    """Read a .toml file, or the shipped recipe of that name.

    Raises:
        InputError: there is none, it is not TOML, or it has a table that is no stage.
    """
    path = Path(name) if name.endswith(".toml") else SHIPPED / f"{name}.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
        raise InputError(f"--config {name}: no such recipe; give a .toml file, or one of {shipped}") from error
    except ValueError as error:  # of TOML or of UTF-8
        raise InputError(f"--config {name}: not TOML ({error}); mend the file") from error
    if unknown := [key for key, value in found.items() if isinstance(value, dict) and key not in STAGES]:
        raise InputError(f"--config {name}: [{unknown[0]}] is no stage; known: {', '.join(STAGES)}")
    return found


def stages_of(recipe: Mapping[str, Any]) -> list[str]:
    """Return the stages that a recipe has tables for, in its order."""
    return [key for key, value in recipe.items() if isinstance(value, dict)]


def expand(argv: Sequence[str]) -> list[str]:
    """Put the options of the recipe that a command line names before those it gives itself.

    Raises:
        InputError: no such recipe, or it does not fit.
    """
    finder = Parser(prog="btr train", add_help=False)
    finder.add_argument("--config")
    name = finder.parse_known_args(list(argv))[0].config
    if name is None or argv[0] not in STAGES:
        return list(argv)
    return [argv[0], *flags(name, read_recipe(name), argv[0]), *argv[1:]]


def flags(name: str, recipe: Mapping[str, Any], stage: str) -> list[str]:
    """Write what a recipe says of a stage as a command line.

    Raises:
        InputError: no table for the stage, or a key that is no option.
    """
    known = [option for option in stage_options() if option not in ("out", "config", "no-resume")]
    if stage not in stages_of(recipe):
        raise InputError(f"--config {name}: has no stage [{stage}]; it has {', '.join(stages_of(recipe)) or 'none'}")
    given = {key: value for key, value in recipe.items() if not isinstance(value, dict)} | recipe[stage]
    if unknown := [key for key in given if key not in known]:
        raise InputError(f"--config {name}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    return [part for key, value in given.items() for part in flag(key, value)]


def flag(key: str, value: Any) -> list[str]:
    """Write one option as a command line."""
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={value}"]
