"""Help MkDocs to what stands outside of docs/.

mkdocstrings reads sources, and `btr.storage` stands in `storage/`, not below `btr/`: the rooms are linked together. The
files that tables are written from, in `results/`, become part of the site.
"""

import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINKS = ROOT / "build" / "docs" / "btr"  # on mkdocstrings' path, see mkdocs.yml
ROOMS = ("kernels", "storage", "train")


def on_startup(command: str, dirty: bool) -> None:
    """Link every module and room under its import name, before anything looks there."""
    shutil.rmtree(LINKS, ignore_errors=True)
    LINKS.mkdir(parents=True)
    for source in [*(ROOT / "btr").iterdir(), *(ROOT / room for room in ROOMS)]:
        (LINKS / source.name).symlink_to(source)


def on_files(files: Any, config: Any) -> Any:
    """Put what was measured beside the pages."""
    for source in sorted((ROOT / "results").glob("*.json")):
        files.append(File.generated(config, f"results/{source.name}", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, **others: Any) -> str:
    """Let links to it, which are right in the repository, be right in the site."""
    return markdown.replace("](../results/", "](results/")
