"""What is made once and kept: folders that are whole or not there, whoever is killed while making them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lcbench.errors import ConfigurationError


def cache_directory() -> Path:
    """``LCBENCH_CACHE``, or ``lcbench`` in the user's cache."""
    if chosen := os.environ.get("LCBENCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcbench"


def made_once(place: Path, make: Callable[[Path], None], whole: Callable[[Path], bool] = lambda place: True) -> Path:
    """The folder ``place``, made if it is not there.

    Of several processes that ask at once, one makes it and the others wait. It is made under another name and then
    renamed, so a process that is killed leaves nothing that could be taken for it; what it does leave, the next one
    that makes ``place`` removes.

    Args:
        place: a folder of the cache.
        make: fills the empty folder it is given.
        whole: whether a folder that is there is undamaged; a damaged one is made again.

    Raises:
        ConfigurationError: if the cache cannot be written.
    """
    if place.is_dir() and whole(place):
        return place
    try:
        with _alone(place.with_name(f".{place.name}.lock")):
            if place.is_dir():
                if whole(place):
                    return place
                shutil.rmtree(place)
            for leftover in place.parent.glob(f".{place.name}.partial-*"):
                shutil.rmtree(leftover)
            partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.partial-", dir=place.parent))
            try:
                make(partial)
                partial.chmod(0o755)
                partial.rename(place)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except PermissionError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be written: {error.strerror}; LCBENCH_CACHE=FOLDER keeps texts elsewhere."
        ) from None
    return place


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        # the operating system lets go of it when this process ends, however it ends
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
