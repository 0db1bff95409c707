"""Find the sample corpus, which comes with the package, by its name."""

import os
from pathlib import Path

SAMPLE = "sample"
_ROOT = Path(__file__).parents[1]


def locate(name: str) -> str:
    """Return the folder of the sample corpus for the name `sample`, unless a file is called so; else the name as it is.

    It is `btr/sample` in what a wheel installs, and `corpus` at the root of a clone.
    """
    if name != SAMPLE or os.path.exists(name):
        return name
    return str(next(folder for folder in (_ROOT / SAMPLE, _ROOT.parent / "corpus") if folder.is_dir()))
