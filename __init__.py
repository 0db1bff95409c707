"""Stand in for btr in the folder that holds the clone: there Python finds the clone, named btr too, before the package.

Modules are then taken from the clone, where they stand as they do in `setup.py`: below `btr/`, and the rooms beside it.
"""

from pathlib import Path

_HERE = Path(__file__).parent
__path__ = [str(_HERE / "btr"), str(_HERE)]
__file__ = str(_HERE / "btr" / "__init__.py")
exec(compile(Path(__file__).read_text(encoding="utf-8"), __file__, "exec"))
