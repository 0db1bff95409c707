"""Stream the rows of a data set on the Hugging Face hub, or of one that `save_to_disk` wrote."""

from collections.abc import Iterator

from btr.corpus.records import Record
from btr.errors import InputError


def read_hub(name: str, id: str, configuration: str | None = None, split: str | None = None) -> Iterator[Record]:
    """Yield the rows of a data set in order, as records at `name:row`, from 1; nothing is kept on disk.

    Without a split: the only one, or `train`.

    Raises:
        InputError: `datasets` is not installed, or the data set, the configuration or the split cannot be read.
    """
    try:
        from datasets import load_dataset  # imported here: it takes a second, and most corpora are files
    except ImportError as error:
        raise InputError(f"{name}: no such file, and reading it from the hub needs: pip install datasets") from error
    try:
        splits = load_dataset(id, configuration, streaming=True)
        rows = splits[_choose_split(name, split, list(splits))]
        for number, row in enumerate(rows, 1):
            yield Record(f"{name}:{number}", row)
    except InputError:
        raise
    except Exception as error:  # the hub's client fails in as many ways as the network
        cure = "check the name (owner/name:configuration:split), the network, or give the path of a file"
        raise InputError(f"{name}: no such file, and not to be had from the hub ({error}); {cure}") from error


def read_saved(folder: str) -> Iterator[Record]:
    """Yield the rows of a data set that `datasets` saved in a folder, as records at `folder:row`, from 1.

    Raises:
        InputError: not to be read, or a folder of several splits, each of which has its own.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        rows = load_from_disk(folder)
    except Exception as error:  # the library fails in many ways
        raise InputError(f"{folder}: not a data set that save_to_disk wrote ({error}); save it again") from error
    if isinstance(rows, DatasetDict):
        raise InputError(f"{folder}: a data set of several splits; name one of {folder}/{{{','.join(rows)}}}")
    for number, row in enumerate(rows, 1):
        yield Record(f"{folder}:{number}", row)


def _choose_split(name: str, split: str | None, splits: list[str]) -> str:
    chosen = split or (splits[0] if len(splits) == 1 else "train")
    if chosen not in splits:
        raise InputError(
            f"{name}: no split {chosen!r}; name one of {', '.join(splits)} as owner/name:configuration:split"
        )
    return chosen
