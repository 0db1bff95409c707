"""Warn of stores on network file systems, where LMDB's memory maps may break: the files can change under them."""

import os
import re
import warnings
from pathlib import Path

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "glusterfs", "beegfs", "ncpfs"}
_OCTAL = re.compile(r"\\([0-7]{3})")
MOUNTS = Path("/proc/self/mountinfo")  # of Linux; elsewhere nothing is told


class NetworkFileSystem(UserWarning):
    """Warn that a store lies on a network file system."""


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds `path`, by the text of a `mountinfo`; "" if it does not say."""
    found, kind, real = "", "", os.path.realpath(path)
    for line in mounts.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split()
        if not dash or len(fields) < 5:
            continue
        point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])  # a space is written \040
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):  # the later of two mounts at one place hides the earlier
            found, kind = point, after.split()[0]
    return kind


def is_network(kind: str) -> bool:
    """Tell whether a type of file system is one of the network's, FUSE's among them."""
    plain = kind.removeprefix("fuse.")
    return plain in NETWORK or kind.startswith(("fuse.sshfs", "fuse.s3", "fuse.gcs", "fuse.rclone", "fuse.juicefs"))


def warn_of_network(path: Path) -> None:
    """Warn if the store at `path` lies on a network file system."""
    try:
        kind = file_system(path, MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return
    if is_network(kind):
        message = (
            f"store {path} lies on a network file system ({kind}): LMDB may crash or read old bytes there when another "
            "machine writes; copy the directory to a local disk"
        )
        warnings.warn(message, NetworkFileSystem, stacklevel=3)
