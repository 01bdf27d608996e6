"""One command at a time in a folder: a lock that ends with the process, however that ends."""

import errno
import fcntl
import os
import warnings
from contextlib import suppress
from pathlib import Path

from kfbench.errors import UsageError

# Folder, by device and inode -> the descriptor with which this process locked it.
_held: dict[tuple[int, int], int] = {}
# Of file systems, such as NFS, that cannot lock a folder.
_CANNOT = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(directory: Path, named: Path | None = None) -> int:
    """A descriptor that locks the folder for this process until it, and every further one of it, is closed.

    UsageError, which calls the folder ``named``, while another process holds it; OSError where it cannot be opened.
    """
    # The kernel lets go of it with the process; a lock file would stay behind a kill.
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    key = _identity(os.fstat(handle))
    held, ours = _held.get(key, handle), False
    with suppress(OSError):  # long closed
        ours = held != handle and _identity(os.fstat(held)) == key
    if ours:  # a command within a command: a lock of its own would be kept out by that of the outer one
        os.close(handle)
        handle = os.dup(held)
    else:
        _held[key] = handle
    try:
        _take(handle, directory)
        now = _identity(os.stat(directory))
    except BlockingIOError as error:
        os.close(handle)
        what = f"{named or directory} is in use by another command"
        raise UsageError(f"{what}; wait for it, or give another --out") from error
    except BaseException:
        os.close(handle)
        raise
    if now == key:
        return handle
    os.close(handle)  # replaced since it was opened: this would be the lock of what is gone
    return lock(directory, named)


def _take(handle: int, directory: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        warnings.warn(f"{directory} cannot be locked where it lies: let no second command write to it", stacklevel=3)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
