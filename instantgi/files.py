"""Reads files, and writes them whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read_bytes(path: str | os.PathLike[str], kind: str) -> bytes:
    """The bytes of a file; `kind` is what it is meant to be, for the errors.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: if there is no file to read.
        OSError: if it is a device; a pipe is none.
    """
    if str(path) == "-":
        raise FileNotFoundError("-: there is no such file; standard input is /dev/stdin")
    try:
        if Path(path).is_char_device() or Path(path).is_block_device():  # it may never end
            raise OSError(f"{path}: is a device, not a {kind}")
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path}: is a folder; name the {kind}s in it") from None
    except PermissionError:
        raise PermissionError(f"{path}: no permission to read this file") from None


@contextmanager
def replace_on_success(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to: it becomes `path` if the block ends well and vanishes if it does not.

    It lies beside `path`, hidden, with the same suffix, so the rename at the end is atomic: other
    programs see the old file or the whole new one. Interrupts (Ctrl-C) leave nothing behind either.
    A symbolic link stays one and its file is replaced; a device such as /dev/null or a pipe cannot
    be replaced, so it is written to as it is.

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError: if `path` cannot
            be written, before the block begins.
    """
    target = Path(os.path.realpath(path))
    check_place(path)
    if target.exists() and not target.is_file():
        with naming(path, target):
            yield target
        return
    # not tempfile: its files are readable by their owner alone, and stay so after the rename
    partial = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        with naming(path, partial):
            yield partial
            os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_ours(path: str | os.PathLike[str], mark: str) -> None:
    """Raises FileExistsError if there is a file without this mark in its beginning, and what
    `check_place` raises."""
    check_place(path)
    if Path(path).exists() and mark.encode() not in Path(path).read_bytes()[:4096]:
        raise FileExistsError(
            f"{path}: is not ours to replace; move it away, or choose another name for the results"
        )


@contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[None]:
    """While the block runs, no other process gets into one for the same path.

    Where the system has no such locks (Windows, some network drives), it does.

    Raises:
        BlockingIOError: if another one is in there.
        As `check_place`.
    """
    check_place(path)
    try:
        import fcntl
    except ImportError:
        yield
        return
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name}.lock")
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the one before removes its file, and a third may have made another since
            if not (lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())):
                raise BlockingIOError
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(
                f"{path}: process {file.read() or 'unknown'} is writing to it; wait for it, or "
                "choose another name"
            ) from None
        except OSError:  # no locks here
            yield
            return
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike[str], partial: Path) -> Iterator[None]:
    """Errors of the system, a full disk say, name what is written and not its hidden place."""
    try:
        yield
    except OSError as error:
        where = error.filename
        if error.errno and (where is None or str(where).startswith(str(partial))):
            error.filename = str(path)
        raise


def check_place(path: str | os.PathLike[str]) -> None:
    """Raises what `replace_on_success` raises before its block begins."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file in it")
    if not target.parent.exists():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}; create it first")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"{path}: {target.parent} is a file, not a folder")
    is_device = target.exists() and not target.is_file()
    places = [target] if is_device else [target.parent, *([target] if target.exists() else [])]
    if not all(os.access(place, os.W_OK) for place in places):
        raise PermissionError(f"{path}: no permission to write here; choose another place")
