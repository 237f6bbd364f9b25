"""Writes result folders whole or not at all."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from instantgi.files import naming

# What file managers leave, and what a killed write of ours leaves.
LITTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\.[0-9a-f]{16}(\.\w+)?")


def prepare_folder(path: str | os.PathLike[str], names: Collection[str]) -> None:
    """Make sure, before the work begins, that `replace_folder` will be able to write here.

    The folders above `path` are created; an older result may be in its place, other files not.

    Args:
        names: of the files that a result of ours consists of.

    Raises:
        FileExistsError: if there is a file, or a folder with files that are not ours.
        PermissionError, NotADirectoryError: if no folder can be created here.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{path}: is a file; choose another folder for the result")
    present = {file.name for file in target.iterdir()} if target.exists() else set()
    foreign = sorted(name for name in present - set(names) if not LITTER.fullmatch(name))
    if foreign:
        raise FileExistsError(
            f"{path}: holds {foreign[0]}, which is not ours to replace; choose another folder"
        )
    _create(path, target.parent)


def _create(path: str | os.PathLike[str], parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(place for place in (parent, *parent.parents) if place.exists())
        raise NotADirectoryError(
            f"{path}: {file} is a file, not a folder; choose another folder for the result"
        ) from None
    except PermissionError:
        raise PermissionError(f"{path}: no permission to create {parent}") from None
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{path}: no permission to write in {parent}; choose another folder")


@contextmanager
def replace_folder(path: str | os.PathLike[str], names: Collection[str]) -> Iterator[Path]:
    """An empty folder to fill: becomes `path` if the block ends well, vanishes if it does not.

    It lies beside `path`, hidden, until it is renamed. An older result of ours is moved aside
    before and deleted after; it comes back if that fails.

    Raises:
        As `prepare_folder`.
    """
    prepare_folder(path, names)
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{secrets.token_hex(8)}")
    partial.mkdir()
    try:
        with naming(path, partial):
            yield partial
            prepare_folder(path, names)  # files may have come while the block ran
            _exchange(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(partial: Path, target: Path) -> None:
    try:
        _put(partial, target)
    except OSError:  # another call may have put its own there in between
        _put(partial, target)


def _put(partial: Path, target: Path) -> None:
    older = target.with_name(f".{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):
        target.rename(older)
    try:
        partial.rename(target)
    except BaseException:
        with contextlib.suppress(OSError):
            older.rename(target)
        if target.exists():  # it came back, or another one is there
            shutil.rmtree(older, ignore_errors=True)
        raise
    shutil.rmtree(older, ignore_errors=True)


@contextmanager
def vanishing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Folders above `path` that a failing block has made vanish, unless they hold something."""
    made = [parent for parent in Path(os.path.realpath(path)).parents if not parent.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise
