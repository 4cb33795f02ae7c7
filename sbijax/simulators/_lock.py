"""One writer at a time for a folder."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

__all__ = ["LOCK", "hold_lock"]

LOCK = ".lock"
_MARK = "sbijax"


@contextlib.contextmanager
def hold_lock(folder: pathlib.Path) -> Iterator[None]:
    """Be the only process that writes to a folder.

    The lock belongs to an open file, not to the existence of one: a process that
    is killed, in whatever way, leaves none behind.

    Raises:
        RuntimeError: another process holds it.
        OSError: the folder cannot be written to.
    """
    import fcntl

    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise RuntimeError(
                f"the store {folder} is being written to by another process "
                f"({owner.removeprefix(_MARK).strip() or 'unknown'}). Wait until it "
                "is done, or give another folder; open_simulations reads it meanwhile."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{_MARK} process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
