"""Read a corpus once: `python -m btr.precompute CORPUS`."""

import json

from btr.command import run_command
from btr.errors import InputError
from btr.precompute.run import parse, precompute
from btr.progress import say
from btr.storage import StoreError


def main(argv: list[str] | None = None) -> int:
    """Run `btr precompute`; returns the exit code."""
    try:
        options = parse(argv)
        summary = precompute(options)
    except (InputError, StoreError, OSError) as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command, without --no-resume, goes on from here")
        return 130
    text = "wrote {store}: {passages:,} passages, {tokens:,} tokens, {bytes:,} bytes on disk, {seconds} s"
    if options.dry_run:
        text = "would write {passages:,} passages, {tokens:,} tokens, about {bytes:,} bytes, in about {takes}"
    print(json.dumps(summary) if options.json else text.format(**summary))
    return 0


if __name__ == "__main__":
    run_command(main)
