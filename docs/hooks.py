"""Let mkdocstrings find the rooms: it reads sources, and `btr.storage` stands in `storage/`, not below `btr/`."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKS = ROOT / "build" / "docs" / "btr"  # on mkdocstrings' path, see mkdocs.yml
ROOMS = ("kernels", "storage", "train")


def on_startup(command: str, dirty: bool) -> None:
    """Link every module and room under its import name, before anything looks there."""
    shutil.rmtree(LINKS, ignore_errors=True)
    LINKS.mkdir(parents=True)
    for source in [*(ROOT / "btr").iterdir(), *(ROOT / room for room in ROOMS)]:
        (LINKS / source.name).symlink_to(source)
