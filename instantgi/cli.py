"""The commands: parsing and printing only."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import math
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROFILES = ("compact", "fast", "lossless", "seeds")  # of instantgi.codec, without loading it
STARTS = ("auto", "network", "heuristic")  # of instantgi.infer, likewise
# of instantgi.fit, without loading it; what the last three make is for comparison only
METHODS = ("instantgi", "gaussianimage", "gaussianimage-rs", "lig", "imagegs", "sgi")
PUBLISHED_STEPS = dict.fromkeys(METHODS[1:3], "50,000") | {"lig": "30,000 a level"}
# of instantgi.infer, likewise
CHOICES = {
    "rate": ("sgi", "lambda"),
    "levels": ("lig", "levels"),
    "prefixes": ("imagegs", "prefixes"),
}
BENCH_METHODS = (*METHODS, "lig-paper", "imagegs-paper", "sgi-paper", "3dgs")
METRICS = ("ssim", "lpips", "flip")  # of instantgi.measure, likewise
# of instantgi.rate_distortion, likewise
CODECS = ("instantgi", "jpeg", "jpeg2000", "webp", "avif", "jpegxl", "gaussianimage")
BENCH_PROFILES = ("none", "compact", "fast", "lossless")  # seeds have one of their own
RENDERERS = ("sum", "mixture", "levels")  # of instantgi.codec, by their numbers
BENCH_RD = "bench rd"
SHELLS = ("bash", "zsh", "tcsh")
MOST_GAUSSIANS = 2**26  # of instantgi.gaussians, likewise
INTERRUPTED, CLOSED_PIPE = 130, 141  # 128 + SIGINT and SIGPIPE, as shells have them


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command line: 0, 1 for bad input, 130 after Ctrl-C, 141 if nobody reads
    on what it prints.

    Raises:
        SystemExit: with code 2 for wrong usage, with 0 after --help and --version.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:2] == BENCH_RD.split():  # one command of two words
        words[:2] = [BENCH_RD]
    try:
        _show_any_letter()
        options, unknown = build_parser().parse_known_args(words)
        if unknown:  # said with the usage of the command, which argparse would not do
            _refuse(unknown, options.parser)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = options.run(options)
            print(end="", flush=True)  # here, where a full disk or a closed pipe can be said
            return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough, as in `| head -1`
        _close_output()
        return CLOSED_PIPE
    except BAD_INPUT as error:
        code = _complain(error)
        try:
            print(end="", flush=True)
        except OSError:  # it was the output that failed
            _close_output()
        return code


def _show_any_letter() -> None:
    """Names of files may have letters that a terminal does not have: they are shown as codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _close_output() -> None:
    """What is left to print goes nowhere, so that the interpreter does not fail on it at exit."""
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(unknown: list[str], parser: argparse.ArgumentParser) -> NoReturn:
    """With the option that was probably meant."""
    options = re.findall(r"^  (?:-\w.*?, )?(--[\w-]+)", parser.format_help(), re.MULTILINE)
    meant = []
    for word in unknown:
        if word.startswith("-"):
            meant += difflib.get_close_matches(word.split("=")[0], options, 1, cutoff=0.75)
    hint = f"; did you mean {' '.join(meant)}?" if meant else f"; see {parser.prog} --help"
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {_one_line(message)}", file=sys.stderr)


BAD_INPUT = (OSError, ValueError, RuntimeError, MemoryError, OverflowError)


def _complain(error: BaseException) -> int:
    text = _one_line(error) or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"not enough memory ({text})"
    if isinstance(error, RuntimeError) and re.search(
        "can't allocate|out of memory|not enough memory", text
    ):  # torch
        wanted = re.search(r"tried to allocate [\d.]+ \w+", text, re.IGNORECASE)
        text = f"not enough memory ({wanted[0].lower() if wanted else text})"
    if isinstance(error, OSError) and error.errno and error.strerror:  # of the system, not ours
        where = "the output" if error.filename is None else _one_line(error.filename)
        text = f"{where}: {error.strerror[0].lower()}{error.strerror[1:]}"
    print(f"error: {text}", file=sys.stderr)
    return 1


def _one_line(text: object) -> str:
    return _printable(" ".join(line.strip() for line in str(text).splitlines()))


def _printable(text: str) -> str:
    """Without what would move a terminal's cursor or break a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# --- what there is -----------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    from instantgi import __version__

    parser = argparse.ArgumentParser(
        prog="instantgi",
        description="Pictures as 2D Gaussians: fitted, saved in small files, drawn at any size.",
        epilog="instantgi COMMAND --help says more about each; begin with "
        "instantgi infer picture.png",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"instantgi {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for add in (
        _infer,
        _fit,
        _encode,
        _decode,
        _info,
        _view,
        _export,
        _import,
        _bench,
        _bench_rd,
        _doctor,
        _completion,
    ):
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable, summary: str, details: str = "", example: str = ""
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {details}",
        epilog=example and f"example: instantgi {name} {example}",
        allow_abbrev=False,
    )
    # the command's own parser, so that its usage is what a wrong argument shows
    parser.set_defaults(run=run, parser=parser)
    return parser


RESULT = (
    "Writes DIR/<name of the picture without suffix>/ with gaussians.gi (lossless), init.png "
    "(where the fit started), render.png, overview.png and report.json, whole or not at all; an "
    "older result there is replaced, a folder with other files is refused. Of pictures that share "
    "the name but for the suffix (x.png x.jpg) the folder is DIR/<whole name>/."
)


def _infer(commands: Any) -> None:
    parser = _command(
        commands,
        "infer",
        _run_fits,
        "turn pictures into Gaussians",
        f"From a start, by a network or the picture's gradient, colors are solved and all is "
        f"fitted. {RESULT}",
        "picture.png --seconds 2",
    )
    make = _add_pictures(parser)
    make.add_argument(
        "--start",
        choices=STARTS,
        help="where the fit starts: from a network's Gaussians, or heuristic: from the picture's "
        "gradient; auto is the better for as many steps or seconds (default: auto, or network with "
        "--checkpoint)",
    )
    make.add_argument(
        "--checkpoint",
        type=_name,
        metavar="NAME",
        help="the network: one that ships, a folder of your own, or organisation/name on the "
        "Hugging Face Hub (default: tiny)",
    )
    make.add_argument(
        "--patch-size",
        type=_whole(1),
        default=3,
        metavar="K",
        help="largest side of a dithering cell in pixels; also sets the default of "
        "--num-gaussians, 0.99 / K^2 per pixel or what a network sees fit (default: %(default)s)",
    )
    _add_fit_arguments(parser, make)
    parser.set_defaults(method="instantgi", **dict.fromkeys(CHOICES))


def _fit(commands: Any) -> None:
    parser = _command(
        commands,
        "fit",
        _run_fits,
        "fit Gaussians to pictures by the method of choice",
        RESULT,
        "picture.png --method imagegs --num-gaussians 1500",
    )
    make = _add_pictures(parser)
    make.add_argument(
        "--method",
        choices=METHODS,
        metavar="NAME",
        default="instantgi",
        help="instantgi is ours; gaussianimage, gaussianimage-rs and lig (in two levels) start "
        "from random Gaussians and need many steps, as published 50000, or 30000 a level; imagegs "
        "makes a normalised mixture, as published in 10000; sgi makes seeds of 7 Gaussians each, "
        "as published in 15000 (default: %(default)s)",
    )
    make.add_argument(
        "--lambda",
        dest="rate",
        type=_not_negative,
        metavar="L",
        help="of the method sgi: what a bit costs; more makes a smaller file and a worse picture, "
        "0 rounds nothing (default: 0.001)",
    )
    make.add_argument(
        "--levels",
        type=_whole(1, 8),
        metavar="S",
        help="of the method lig: pictures at 1, 1/2, 1/4 … of the size, each of what those before "
        "lack; 1 is one alone (default: 2)",
    )
    make.add_argument(
        "--prefixes",
        type=_share,
        metavar="P",
        help="of the method imagegs: share of the steps that fit an earlier stage alone, so that "
        "stages stay good coarser pictures (default: 0)",
    )
    _add_fit_arguments(parser, make)
    parser.set_defaults(patch_size=3, start=None, checkpoint=None)


def _add_pictures(parser: argparse.ArgumentParser) -> Any:
    """The group of what to make of them."""
    parser.add_argument("images", nargs="+", type=_name, metavar="IMAGE", help=PICTURE)
    return parser.add_argument_group("what to make")


def _add_fit_arguments(parser: argparse.ArgumentParser, make: Any) -> None:
    """What infer and fit have in common."""
    make.add_argument(
        "--num-gaussians",
        type=_whole(2, MOST_GAUSSIANS),
        metavar="N",
        help="number of Gaussians; a small picture may get fewer (default: 0.11 per pixel; with "
        "infer --start network, as many as it sees fit)",
    )
    make.add_argument(
        "--init",
        type=_name,
        metavar="FILE",
        help="gaussians.gi or snapshot.gi of a picture of this size to start from (default: the "
        "method's own start)",
    )
    _add_background(make)
    _add_seed(make.add_argument)
    stop = parser.add_argument_group("when to stop")
    limit = stop.add_mutually_exclusive_group()
    limit.add_argument(
        "--iterations",
        type=_whole(0),
        metavar="N",
        help="after so many steps of the fit (default: 300 without --seconds)",
    )
    limit.add_argument(
        "--seconds",
        type=_positive,
        metavar="T",
        help="after so long a fit (default: no limit)",
    )
    stop.add_argument(
        "--psnr",
        type=_positive,
        metavar="P",
        help="earlier, once the PSNR is P dB (default: no limit)",
    )
    result = parser.add_argument_group("result")
    result.add_argument(
        "-o",
        "--output",
        type=_name,
        default="out",
        metavar="DIR",
        help="folder of results (default: %(default)s)",
    )
    result.add_argument(
        "--snapshot-every",
        type=_whole(1),
        metavar="N",
        help="write DIR/<name>/snapshot.gi after every N steps, to go on from with --init after an "
        "interruption (default: never)",
    )
    _add_metadata(result)
    _add_running(parser, "progress and a line")


PICTURE = "picture in any common format, 8 or 16 bits (required)"
GAUSSIANS = "file of Gaussians, made by encode, infer or fit (required)"


def _add_background(group: Any) -> None:
    group.add_argument(
        "--background",
        type=_color,
        metavar="COLOR",
        help="white, black or #rrggbb: lay transparent pictures over it (default: keep opacity as "
        "a fourth channel)",
    )


def _add_metadata(group: Any) -> None:
    group.add_argument(
        "--keep-metadata",
        action="store_true",
        help="store EXIF in the file, and the color profile of pictures of 16 bits; decode hands "
        "them on (default: do not)",
    )


def _add_running(parser: argparse.ArgumentParser, shown: str) -> None:
    group = parser.add_argument_group("how it runs")
    _add_device(group.add_argument)
    group.add_argument(
        "--quiet", action="store_true", help=f"print nothing but errors (default: {shown})"
    )


def _add_device(add: Callable[..., Any]) -> None:
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto is the GPU if there is one that can be used (default: %(default)s)",
    )


def _add_seed(add: Callable[..., Any]) -> None:
    add(
        "--seed",
        type=_whole(0),
        default=0,
        metavar="S",
        help="of random starts (default: %(default)s)",
    )


def _encode(commands: Any) -> None:
    parser = _command(
        commands,
        "encode",
        _run_encode,
        "turn a picture into a small file of Gaussians",
        "Fits Gaussians to the picture and to being rounded, and codes them.",
        "picture.png -o picture.gi --bpp 0.3",
    )
    parser.add_argument("image", type=_name, metavar="IMAGE", help=PICTURE)
    size = parser.add_argument_group("how large or how good (one of them)")
    size = size.add_mutually_exclusive_group()
    size.add_argument(
        "--bpp",
        type=_positive,
        metavar="B",
        help="bits of the file per pixel (default: as --num-gaussians gives)",
    )
    size.add_argument(
        "--bytes",
        type=_whole(200),
        metavar="B",
        help="size of the file (default: as --num-gaussians gives)",
    )
    size.add_argument(
        "--psnr",
        type=_positive,
        metavar="P",
        help="quality in dB (default: as --num-gaussians gives)",
    )
    size.add_argument(
        "--num-gaussians",
        type=_whole(2, MOST_GAUSSIANS),
        metavar="N",
        help="number of Gaussians; a small picture may get fewer (default: 0.008 per pixel, about "
        "0.3 bpp)",
    )
    limit = parser.add_argument_group("when to stop (one of them)").add_mutually_exclusive_group()
    limit.add_argument(
        "--iterations", type=_whole(0), metavar="N", help="steps of each fit (default: 600)"
    )
    limit.add_argument(
        "--seconds",
        type=_positive,
        metavar="T",
        help="time for it all (default: as long as it takes)",
    )
    result = parser.add_argument_group("result")
    result.add_argument(
        "-o", "--output", type=_name, required=True, metavar="X.gi", help="the file (required)"
    )
    result.add_argument(
        "--profile",
        choices=PROFILES,
        default="compact",
        help="compact is entropy coded, fast has numbers of fixed length, lossless is float32, "
        "seeds are what method sgi makes (default: %(default)s)",
    )
    _add_background(result)
    _add_metadata(result)
    _add_running(parser, "progress and a line")


def _decode(commands: Any) -> None:
    parser = _command(
        commands,
        "decode",
        _run_decode,
        "draw a file of Gaussians at any size",
        "Smaller pictures are averaged, larger ones drawn anew, not interpolated.",
        "picture.gi -o twice.png --scale 2",
    )
    parser.add_argument("file", type=_name, metavar="X.gi", help=GAUSSIANS)
    what = parser.add_argument_group("what to draw")
    what.add_argument(
        "--scale", type=_positive, metavar="S", help="times the picture's own size (default: 1)"
    )
    for name in ("height", "width"):
        other = {"height": "width", "width": "height"}[name]
        what.add_argument(
            f"--{name}",
            type=_whole(1),
            metavar=name[0].upper(),
            help=f"in pixels, with --{other} (default: by --scale)",
        )
    what.add_argument(
        "--crop",
        nargs=4,
        type=_whole(None),
        metavar=("X", "Y", "W", "H"),
        help="this part only, in pixels of the picture's own size; --scale, --height and --width "
        "are of the part (default: all)",
    )
    _add_partial(what)
    result = parser.add_argument_group("result")
    result.add_argument(
        "-o",
        "--output",
        type=_name,
        required=True,
        metavar="OUT",
        help="the picture: .png, .webp, .tif or .jpg (required)",
    )


def _info(commands: Any) -> None:
    parser = _command(
        commands,
        "info",
        _run_info,
        "say what a file of Gaussians holds",
        "Size, number of Gaussians, bytes by part, bits per pixel, and what is damaged.",
        "picture.gi",
    )
    parser.add_argument("file", type=_name, metavar="X.gi", help=GAUSSIANS)
    parser.add_argument("--json", action="store_true", help="as JSON (default: a line for each)")


def _view(commands: Any) -> None:
    parser = _command(
        commands,
        "view",
        _run_view,
        "write a page that shows a file of Gaussians in a browser",
        "The page holds the file and needs no network: zoom up to 16,000 times, ellipses, levels "
        "and stages, the original beside it. Other files can be dropped on it.",
        "picture.gi -o picture.html --original picture.png",
    )
    parser.add_argument("file", type=_name, metavar="X.gi", help=GAUSSIANS)
    _add_output(parser, "OUT.html", "the page")
    parser.add_argument(
        "--original",
        type=_name,
        metavar="PICTURE",
        help="picture of the same size to compare with (default: none)",
    )
    _add_partial(parser)


def _add_partial(parser: Any) -> None:
    parser.add_argument(
        "--partial",
        action="store_true",
        help="also what the beginning of a file holds, coarser (default: refuse it)",
    )


def _add_output(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    parser.add_argument(
        "-o", "--output", type=_name, required=True, metavar=metavar, help=f"{what} (required)"
    )


def _export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        _run_export,
        "write Gaussians as .npz for the WebGPU viewer of GaussianImage",
        example="picture.gi -o picture.npz",
    )
    parser.add_argument("file", type=_name, metavar="X.gi", help=GAUSSIANS)
    _add_output(parser, "OUT.npz", "the file for the viewer")


def _import(commands: Any) -> None:
    parser = _command(
        commands,
        "import",
        _run_import,
        "turn an .npz for the WebGPU viewer of GaussianImage into a lossless .gi",
        example="picture.npz -o picture.gi",
    )
    parser.add_argument("npz", type=_name, metavar="FILE.npz", help="Gaussians (required)")
    _add_output(parser, "OUT.gi", "the file of Gaussians")


def _bench(commands: Any) -> None:
    parser = _command(
        commands,
        "bench",
        _run_bench,
        "fit every picture of a folder by every method at equal budgets, and print a table",
        "The JSON file is written after each fit; a later call keeps its rows and adds the rest. "
        "The table also goes to OUT.md. One of the lists --iterations, --seconds, --num-gaussians, "
        "--bytes and --bpp may have several values. Pictures that cannot be read are left out with "
        "a warning; the exit code is 1 then.",
        "--images pictures -o results.json --methods instantgi,imagegs --iterations 100,300",
    )
    add = parser.add_argument
    _add_images(add)
    add(
        "-o",
        "--output",
        type=_json_file,
        required=True,
        metavar="OUT.json",
        help="results (required)",
    )
    add(
        "--methods",
        type=_listed(_method),
        default=["instantgi"],
        metavar="A,B",
        help=f"of {', '.join(BENCH_METHODS)}; the first is what others are compared with "
        "(default: instantgi)",
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--iterations",
        type=_listed(_whole(0)),
        metavar="N,N",
        help="steps; a fit of its own for each, since schedules depend on it (default: 300)",
    )
    limit.add_argument(
        "--seconds",
        type=_listed(_positive),
        metavar="T,T",
        help="equal time of the fit, from the end of its start (default: by --iterations)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--num-gaussians",
        type=_listed(_whole(2, MOST_GAUSSIANS)),
        metavar="N,N",
        help="number of Gaussians (default: 0.11 per pixel)",
    )
    size.add_argument(
        "--bytes",
        type=_listed(_whole(200)),
        metavar="B,B",
        help="equal size of the file: instantgi as in encode, others with as many Gaussians as "
        "bring it just below, which takes several fits (default: by --num-gaussians)",
    )
    size.add_argument(
        "--bpp",
        type=_listed(_positive),
        metavar="B,B",
        help="the same in bits per pixel (default: by --num-gaussians)",
    )
    add(
        "--profile",
        choices=BENCH_PROFILES,
        help="of the files; Gaussians whose picture is their sum are fitted to being rounded "
        "(default: compact with --bytes and --bpp, otherwise lossless; sgi has its own)",
    )
    add(
        "--start",
        choices=STARTS,
        help="of the method instantgi, as in infer (default: auto, or network with --checkpoint)",
    )
    add(
        "--checkpoint",
        type=_name,
        metavar="NAME",
        help="the network of the method instantgi, as in infer (default: tiny)",
    )
    _add_device(add)
    add("--limit", type=_whole(1), metavar="K", help="only the first K pictures (default: all)")
    add(
        "--background",
        type=_color,
        metavar="COLOR",
        help="lay transparent pictures over it (default: keep opacity as a fourth channel)",
    )
    _add_seed(add)
    add(
        "--curve",
        action="store_true",
        help="also note the PSNR after 10, 20, 50, 100, 200, 500, ... steps (default: do not)",
    )
    add(
        "--metrics",
        type=_listed(_metric),
        default=[],
        metavar="A,B",
        help=f"more columns, of {', '.join(METRICS)}; the last two need instantgi[metrics] and "
        "pictures without opacity (default: none; PSNR and MS-SSIM are always there)",
    )
    add(
        "--plot",
        action="store_true",
        help="also draw OUT-rate.svg, OUT-seconds.svg and OUT-gaussians.svg: PSNR over bits, "
        "seconds and Gaussians, as far as there are several (default: do not)",
    )
    add("--quiet", action="store_true", help="no progress bar (default: one, on a terminal)")


def _add_images(add: Callable[..., Any]) -> None:
    add("--images", type=_name, required=True, metavar="DIR", help="folder of pictures (required)")


def _bench_rd(commands: Any) -> None:
    parser = _command(
        commands,
        BENCH_RD,
        _run_bench_rd,
        "make files of every picture of a folder by several codecs, and print a table",
        "DIR gets results.json (written after each file; a later call goes on), results.csv, "
        "results.md, results.svg and a JSON for each codec as CompressAI has it. Pictures that "
        "cannot be read are left out with a warning; the exit code is 1 then.",
        "--images pictures -o rd --codecs instantgi,jpeg,webp",
    )
    add = parser.add_argument
    _add_images(add)
    add(
        "-o",
        "--output",
        type=_results_folder,
        required=True,
        metavar="DIR",
        help="folder of results (required)",
    )
    add(
        "--codecs",
        type=_listed(_codec),
        default=list(CODECS[:-1]),
        metavar="A,B",
        help=f"of {', '.join(CODECS)} (default: all but the last)",
    )
    add(
        "--bpp",
        type=_listed(_positive),
        default=[0.15, 0.3, 0.6, 1.0],
        metavar="B,B",
        help="rates of our files, and at which all are compared (default: 0.15,0.3,0.6,1)",
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--iterations", type=_whole(0), metavar="N", help="as in encode (default: 600)"
    )
    limit.add_argument(
        "--seconds", type=_positive, metavar="T", help="as in encode (default: no limit)"
    )
    add(
        "--published-iterations",
        type=_whole(0),
        default=50_000,
        metavar="N",
        help="steps of either stage of the codec gaussianimage (default: %(default)s)",
    )
    add("--limit", type=_whole(1), metavar="K", help="only the first K pictures (default: all)")
    add("--quiet", action="store_true", help="no progress bar (default: one, on a terminal)")


def _doctor(commands: Any) -> None:
    parser = _command(
        commands,
        "doctor",
        _run_doctor,
        "say what of this install works, and what is missing",
        "Exit code 1 if the CPU kernels do not work. A report of a bug should hold all of it.",
        "--json",
    )
    parser.add_argument("--json", action="store_true", help="as JSON (default: a line for each)")


def _completion(commands: Any) -> None:
    parser = _command(
        commands,
        "completion",
        _run_completion,
        "print a script that makes a shell complete these commands at the tab key",
        'For bash, put eval "$(instantgi completion bash)" into ~/.bashrc; for zsh, the same with '
        "zsh into ~/.zshrc, below compinit.",
        "bash",
    )
    parser.add_argument("shell", choices=SHELLS, help="bash, zsh or tcsh (required)")


# --- what a value may be -----------------------------------------------------------------------


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a file or folder, got an empty one")
    return text


def _json_file(text: str) -> str:
    path = Path(_name(text))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file .json in it")
    if path.suffix.lower() != ".json":
        raise argparse.ArgumentTypeError(f"must end in .json, got {text}; try {text}.json")
    return text


def _results_folder(text: str) -> str:
    path = Path(_name(text))
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; results go to a folder")
    if path.suffix.lower() == ".json" and not path.exists():
        raise argparse.ArgumentTypeError(f"must be a folder, not a file like {text}")
    return text


def _whole(least: int | None, most: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        if value > most or value < -(2**63):
            limit = "below 2^63" if most == 2**63 - 1 else f"at most {most}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text}")
        return value

    return parse


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be more than 0 and finite, got {text}")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0 and finite, got {text}")
    return value


def _color(text: str) -> str:
    from PIL import ImageColor

    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like white or #ff8800, got {text!r}") from None
    return text


def _share(text: str) -> float:
    value = _not_negative(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must be below 1, got {text}")
    return value


def _method(text: str) -> str:
    if text not in BENCH_METHODS:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(BENCH_METHODS)}, got {text!r}")
    return text


def _codec(text: str) -> str:
    if text not in CODECS:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(CODECS)}, got {text!r}")
    return text


def _metric(text: str) -> str:
    if text not in METRICS:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(METRICS)}, got {text!r}")
    return text


def _listed(parse: Callable[[str], Any]) -> Callable[[str], list]:
    return lambda text: [parse(part.strip()) for part in text.split(",")]


# --- infer, fit --------------------------------------------------------------------------------


def _run_fits(options: argparse.Namespace) -> int:
    _check_start(options)
    if options.init is not None and (options.checkpoint or options.start):
        options.parser.error("argument --init: not allowed with --start and --checkpoint")
    if options.init is not None and options.num_gaussians is not None:
        options.parser.error(
            "argument --num-gaussians: not allowed with --init, which has its own number"
        )
    for name, (method, word) in CHOICES.items():
        if getattr(options, name) is not None and options.method != method:
            options.parser.error(f"argument --{word}: not allowed with method {options.method}")
    folders = _folders(options)
    failed = False
    for image, folder in zip(options.images, folders, strict=True):
        try:
            _fit_one(image, folder, options)
        except BAD_INPUT as error:
            failed = bool(_complain(error))
    is_usual = options.iterations is None and options.seconds is None
    if options.method in PUBLISHED_STEPS and is_usual and not (failed or options.quiet):
        steps = PUBLISHED_STEPS[options.method]
        print(f"note: 300 steps; published are {steps}: --iterations", file=sys.stderr)
    return int(failed)


def _check_start(options: argparse.Namespace) -> None:
    if options.checkpoint is not None and options.start in ("heuristic", "auto"):
        options.parser.error(f"argument --checkpoint: not allowed with --start {options.start}")


def _folders(options: argparse.Namespace) -> list[Path]:
    """Of the results: named by the picture's stem, or by its whole name if two share the stem."""
    paths = [Path(image) for image in options.images]
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in paths]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        both = " and ".join(str(path) for path in paths if path.name == name or path.stem == name)
        where = Path(options.output) / name
        options.parser.error(f"{both} would go to {where}: give them in calls with different -o")
    return [Path(options.output) / name for name in names]


def _fit_one(image: str, folder: Path, options: argparse.Namespace) -> None:
    from instantgi.infer import DEFAULT_CHECKPOINT, Recipe, infer_image

    names = {field.name for field in dataclasses.fields(Recipe)}
    chosen = {name: value for name, value in vars(options).items() if name in names}
    if options.start is None:
        chosen["start"] = "auto" if options.checkpoint is None else "network"
    if options.checkpoint is None:
        chosen["checkpoint"] = DEFAULT_CHECKPOINT
    if options.iterations is None and options.seconds is None:
        chosen["iterations"] = 300
    recipe = Recipe(**chosen)
    with _Bar(Path(image).name, recipe.iterations, recipe.seconds, options.quiet) as bar:
        report = infer_image(
            image,
            folder,
            recipe,
            snapshot_every=options.snapshot_every,
            keep_metadata=options.keep_metadata,
            on_progress=bar.update,
        )
    if not options.quiet:
        print(_result_line(report, folder), flush=True)


def _result_line(report: dict[str, Any], folder: Path) -> str:
    drawn = [stage for stage in report["stages"] if stage["name"] != "heuristic"]
    first, last = (
        "lossless" if stage["lossless"] else f"{stage['psnr']:.2f} dB" for stage in drawn[-2:]
    )
    return _printable(
        f"{Path(report['image']).name}  {report['width']}x{report['height']}  "
        f"{report['num_gaussians']} Gaussians  {first} -> {last}  "
        f"{report['seconds_total']:.1f} s  {folder}"
    )


class _Bar:
    """A bar on stderr with the PSNR, if that is a terminal."""

    def __init__(self, name: str, iterations: int | None, seconds: float | None, quiet: bool):
        from tqdm import tqdm

        self.by_steps = seconds is None
        form = "{n:.0f}/{total:.0f} steps" if self.by_steps else "{n:.1f}/{total:g} s"
        self.bar = tqdm(
            total=iterations if self.by_steps else seconds,
            desc=name,
            bar_format="{l_bar}{bar}| " + form + "{postfix}",
            leave=False,
            dynamic_ncols=True,
            disable=True if quiet else None,
        )

    def update(self, progress: Any) -> None:
        if self.bar.disable:
            return
        done = progress.iteration if self.by_steps else min(progress.seconds, self.bar.total)
        self.bar.set_postfix_str(f"{progress.psnr:.2f} dB", refresh=False)
        self.bar.update(done - self.bar.n)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


# --- files --------------------------------------------------------------------


def _check_size_options(options: argparse.Namespace) -> None:
    if (options.height is None) != (options.width is None):
        options.parser.error("--height and --width are given together, or use --scale")
    if options.scale is not None and options.height is not None:
        options.parser.error("argument --scale: not allowed with --height and --width")
    if options.crop and min(options.crop[2:]) < 1:
        options.parser.error(
            f"argument --crop: W and H must be at least 1, got {options.crop[2]} {options.crop[3]}"
        )


def _run_encode(options: argparse.Namespace) -> int:
    import time

    from instantgi.codec import open_file
    from instantgi.codec.index import software
    from instantgi.codec.target import Target, encode_image
    from instantgi.files import replace_on_success
    from instantgi.images import read_metadata
    from instantgi.infer import read_picture
    from instantgi.metrics import psnr
    from instantgi.native import choose_device
    from instantgi.render.draw import MAX_SAMPLES

    target = Target(
        options.num_gaussians,
        options.bpp,
        options.bytes,
        options.psnr,
        iterations=_iterations(options),
        seconds=options.seconds,
    )
    began = time.perf_counter()
    _check_name(options.output, (".gi",), "files of Gaussians", options.image)
    with replace_on_success(options.output) as partial:  # refuses before the work, not after it
        image = read_picture(options.image, options.background)
        kept = read_metadata(options.image) if options.keep_metadata else {}
        metadata = dataclasses.replace(software(), **kept)
        device = choose_device(options.device)
        name = Path(options.image).name
        with _Bar(name, target.iterations, target.seconds, options.quiet) as bar:
            data = encode_image(
                image.to(device), target, options.profile, metadata, on_progress=bar.update
            )
        partial.write_bytes(data)
    if not options.quiet:
        file = open_file(data)
        pixels = image[0].numel()
        level = psnr(file.render(), image) if pixels <= MAX_SAMPLES else math.nan
        said = {math.inf: "lossless"}.get(level, f"{level:.2f} dB")
        line = (
            f"{Path(options.image).name}  {file.width}x{file.height}  "
            f"{file.num_gaussians} Gaussians  {len(data)} bytes  "
            f"{8 * len(data) / pixels:.4f} bpp  {'not drawn' if math.isnan(level) else said}  "
            f"{time.perf_counter() - began:.1f} s  {options.output}"
        )
        print(_printable(line))
    return 0


def _iterations(options: argparse.Namespace) -> int | None:
    """Of an encode: the usual number unless there is another limit."""
    from instantgi.codec.target import Target

    if options.iterations is None and options.seconds is None:
        return Target.iterations
    return options.iterations


def _check_name(output: str, suffixes: tuple[str, ...], kind: str, *sources: str | None) -> None:
    """No file of another kind is to be lost by a slip; devices and pipes have any name."""
    path = Path(output)
    is_new = not path.exists() or path.is_file() or path.is_dir()
    if is_new and path.suffix.lower() not in suffixes:
        raise ValueError(f"{output}: is no name for the result; {kind} end in {suffixes[0]}")
    for source in sources:
        if source and path.is_file() and Path(source).exists() and path.samefile(source):
            raise ValueError(f"{output}: is what is read; give the result another name")


def _run_decode(options: argparse.Namespace) -> int:
    _check_size_options(options)
    from instantgi.codec import open_file
    from instantgi.images import check_writable, write_image

    file = open_file(options.file, whole=not options.partial)
    *_, width, height = options.crop or (0, 0, file.width, file.height)
    scale = options.scale or 1.0
    _check_crop(options.crop, file.width, file.height)
    size = (
        options.height or max(1, round(min(height * scale, 1e9))),
        options.width or max(1, round(min(width * scale, 1e9))),
    )
    check_writable(options.output, file.channels, *size)
    drawn = file.render(*size, crop=options.crop and tuple(options.crop))
    write_image(options.output, drawn, icc=file.metadata.icc, exif=file.metadata.exif)
    return 0


def _check_crop(crop: list[int] | None, width: int, height: int) -> None:
    x, y, *size = crop or (0, 0, width, height)
    if not (x < width and y < height and x + size[0] > 0 and y + size[1] > 0):
        raise ValueError(
            f"--crop {x} {y} {size[0]} {size[1]}: shows nothing of the picture of {width}x{height} "
            "pixels; X and Y are the part's upper left corner"
        )


def _run_info(options: argparse.Namespace) -> int:
    import json

    from instantgi.codec import Index

    file = Index(options.file, whole=False)
    found: dict[str, Any] = {
        "width": file.width,
        "height": file.height,
        "channels": file.channels,
        "num_gaussians": file.num_gaussians,
        "bytes": file.num_bytes,
        "bpp": 8 * file.num_bytes / (file.height * file.width),
        "profile": file.profile,
        "drawn": RENDERERS[file.renderer.kind],
        "parts": [part.header.num_gaussians for part in file.parts],
        "whole": file.is_whole,
        "damaged": file.damaged(),
        "blocks": len(file.blocks),
        "steps": file.steps and dataclasses.asdict(file.steps),
        "chunks": file.bytes_of_chunks(),
        "software": file.metadata.software,
        "recipe": file.metadata.recipe,
    }
    seeds = file.parts[0].seeds
    if seeds:
        found["seeds"] = dataclasses.asdict(seeds)
    if options.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{key} {part:.6g}" if isinstance(part, float) else f"{key} {part}"
                for key, part in value.items()
            )
        print(f"{name + ':':15}{'-' if value in (None, []) else _printable(str(value))}")
    return 0


def _run_view(options: argparse.Namespace) -> int:
    from instantgi.files import replace_on_success
    from instantgi.viewer import page_of

    _check_name(options.output, (".html", ".htm"), "pages", options.file, options.original)
    with replace_on_success(options.output) as partial:  # refuses before the work, not after it
        page = page_of(options.file, options.original, whole=not options.partial)
        partial.write_text(page, "utf-8")
    return 0


def _run_export(options: argparse.Namespace) -> int:
    from instantgi.codec import open_file
    from instantgi.gaussians import Gaussians
    from instantgi.npz import save_npz
    from instantgi.representations import Seeds

    _check_name(options.output, (".npz",), "files for the viewer", options.file)
    file = open_file(options.file)
    made = file.made()
    if isinstance(made, Seeds):
        made = made.flat()
    if not isinstance(made, Gaussians):
        kind = RENDERERS[file.renderer.kind]
        raise ValueError(f"{options.file}: is drawn as {kind}; the viewer draws plain sums only")
    save_npz(options.output, made, file.height, file.width)
    return 0


def _run_import(options: argparse.Namespace) -> int:
    from instantgi.codec import encode
    from instantgi.files import replace_on_success
    from instantgi.npz import load_npz

    _check_name(options.output, (".gi",), "files of Gaussians", options.npz)
    gaussians, height, width = load_npz(options.npz)
    with replace_on_success(options.output) as partial:
        partial.write_bytes(encode(gaussians, height, width, profile="lossless"))
    return 0


# --- bench, doctor -----------------------------------------------------------------------------


def _run_bench(options: argparse.Namespace) -> int:
    from instantgi.bench import markdown, pictures_in, readable, run_bench
    from instantgi.infer import DEFAULT_CHECKPOINT
    from instantgi.plots import check_plots, plot_means

    _check_start(options)
    budgets = _budgets(options)
    if options.plot:
        check_plots(budgets, options.curve, options.output)
    found = pictures_in(options.images)[: options.limit]
    pictures = readable(found)
    results = run_bench(
        pictures,
        options.output,
        methods=options.methods,
        budgets=budgets,
        profile=options.profile,
        background=options.background,
        seed=options.seed,
        start=options.start or ("auto" if options.checkpoint is None else "network"),
        checkpoint=options.checkpoint or DEFAULT_CHECKPOINT,
        device=options.device,
        curve=options.curve,
        metrics=options.metrics,
        quiet=options.quiet,
    )
    print(markdown(results))
    if options.plot:
        plot_means(results["means"], options.output)
    return int(pictures != found)


def _budgets(options: argparse.Namespace) -> list[Any]:
    """One for each value of the list that has several."""
    from instantgi.measure import Budget

    lists = {"iterations": options.iterations, "seconds": options.seconds}
    lists |= {"num_gaussians": options.num_gaussians, "num_bytes": options.bytes}
    lists = {name: values for name, values in (lists | {"bpp": options.bpp}).items() if values}
    if "seconds" not in lists:
        lists.setdefault("iterations", [300])
    several = [name for name, values in lists.items() if len(values) > 1]
    if len(several) > 1:
        options.parser.error("only one of the lists of budgets may have several values")
    is_of_bytes = options.bytes or options.bpp
    if is_of_bytes and options.seconds:
        options.parser.error("argument --seconds: not allowed with --bytes and --bpp")
    if is_of_bytes and options.curve:
        options.parser.error("argument --curve: not allowed with --bytes and --bpp")
    (varied, values), *_ = [(name, lists[name]) for name in several or lists]
    fixed = {name: found[0] for name, found in lists.items()}
    return [Budget(**fixed | {varied: value}) for value in values]


def _run_bench_rd(options: argparse.Namespace) -> int:
    from instantgi.bench import pictures_in, readable
    from instantgi.rate_distortion import run_rate_distortion

    found = pictures_in(options.images)[: options.limit]
    pictures = readable(found)
    table = run_rate_distortion(
        pictures,
        options.output,
        names=options.codecs,
        rates=options.bpp,
        iterations=_iterations(options),
        seconds=options.seconds,
        published_iterations=options.published_iterations,
        quiet=options.quiet,
    )
    print(table)
    return int(pictures != found)


def _run_doctor(options: argparse.Namespace) -> int:
    import json

    from instantgi.doctor import examine

    found = examine()
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name + ':':17}{_printable(str(value))}")
    return int(found["kernels"] != "work")


def _run_completion(options: argparse.Namespace) -> int:
    import shtab

    parser: Any = build_parser()
    (commands,) = (action for action in parser._actions if action.dest == "command")
    del commands.choices[BENCH_RD]  # shells complete single words
    commands._choices_actions = [
        action for action in commands._choices_actions if action.dest != BENCH_RD
    ]
    named = [action for command in commands.choices.values() for action in command._actions]
    for action in named:
        if action.type is _name or action.dest in ("images", "output"):
            action.complete = shtab.FILE
    print(shtab.complete(parser, options.shell), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
