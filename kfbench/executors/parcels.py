"""What travels between a node and the leader's folder: files that changed, of those that only grow what is new."""

import errno
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kfbench.results.contents import CHECKPOINT, RESERVES
from kfbench.results.records import write_atomically


@dataclass(frozen=True)
class Piece:
    """The content of a file from ``offset`` on."""

    path: str
    offset: int
    content: bytes


@dataclass(frozen=True)
class Parcel:
    """What changed in a folder: pieces of files, and files that are gone."""

    pieces: tuple[Piece, ...] = ()
    gone: tuple[str, ...] = ()


class Sender:
    """Knows what of a folder is home, so that nothing is sent twice; ``known`` is what was there from the start."""

    def __init__(self, folder: Path, known: Mapping[str, bytes]) -> None:
        self._folder = folder
        self._sent = {path: (len(content), _digest(content)) for path, content in known.items()}
        self._seen = self._checkpoints()

    def is_due(self) -> bool:
        """Whether there is a checkpoint that is not home yet."""
        return self._checkpoints() != self._seen

    def parcel(self) -> Parcel:
        """Everything that is not home yet."""
        self._seen = self._checkpoints()  # before it is read: one that comes meanwhile is due next
        content = contents(self._folder)
        gone = tuple(path for path in self._sent if path not in content)
        pieces = tuple(self._piece(path, whole) for path, whole in content.items() if not self._is_home(path, whole))
        self._sent = {path: (len(whole), _digest(whole)) for path, whole in content.items()}
        return Parcel(pieces, gone)

    def _is_home(self, path: str, whole: bytes) -> bool:
        return self._sent.get(path) == (len(whole), _digest(whole))

    def _piece(self, path: str, whole: bytes) -> Piece:
        length, digest = self._sent.get(path, (0, b""))
        grown = 0 < length < len(whole) and _digest(whole[:length]) == digest
        return Piece(path, length, whole[length:]) if grown else Piece(path, 0, whole)

    def _checkpoints(self) -> dict[Path, tuple[int, int]]:
        paths = self._folder.rglob(CHECKPOINT)
        return {path: (status.st_ino, status.st_mtime_ns) for path in paths if (status := path.stat())}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below by its path, but for reserves, and what is being written.

    Checkpoints are read first: they count on rows of the others, which only grow.
    """
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    found = {}
    for path in sorted(paths, key=lambda path: (path.name != CHECKPOINT, path)):
        if path.name in RESERVES:
            continue  # what is home is whole, since it is renamed into place
        try:
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        except FileNotFoundError:  # removed in between
            continue
    return found


def unpack(parcel: Parcel, folder: Path) -> None:
    """Into the leader's folder: whenever that is killed, what lies there can be continued.

    OSError where it cannot be written.
    """
    for piece in sorted(parcel.pieces, key=_rank):
        path = folder / piece.path
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes()[: piece.offset] if piece.offset else b""
        if len(before) != piece.offset:
            raise OSError(errno.EIO, f"has {len(before)} bytes, of which {piece.offset} are known", str(path))
        write_atomically(path, before + piece.content)
    for name in parcel.gone:
        (folder / name).unlink(missing_ok=True)


def _rank(piece: Piece) -> int:
    """Rows before the checkpoint that counts on them, and last the summary that says that there are no more."""
    name = piece.path.rpartition("/")[2]
    return {CHECKPOINT: 1, "summary.json": 2}.get(name, 0)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
