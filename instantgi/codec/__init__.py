"""Gaussians ↔ the bytes of a file; docs/format.md is the specification."""

from typing import TYPE_CHECKING, Any

from instantgi.codec.bitstream import FormatError
from instantgi.codec.header import Steps
from instantgi.codec.index import Index, Metadata

if TYPE_CHECKING:
    from instantgi.codec.file import File, decode, encode, encode_quantised, open_file, quantise

__all__ = [
    "File",
    "FormatError",
    "Index",
    "Metadata",
    "Steps",
    "decode",
    "encode",
    "encode_quantised",
    "open_file",
    "quantise",
]


def __getattr__(name: str) -> Any:
    """What needs torch only when it is asked for: a look at a header takes a moment."""
    if name in __all__:
        from instantgi.codec import file

        return getattr(file, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
