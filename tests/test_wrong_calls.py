"""What a new user does wrong: each call ends in one line that says what to do, and leaves nothing.

The table has the line word by word (or what it must hold, as a pattern), so that whoever changes
one reads it once more.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import instantgi
from instantgi.cli import CLOSED_PIPE, INTERRUPTED, main
from instantgi.codec.bitstream import AGAIN, Chunk, frames, pack
from instantgi.codec.header import VERSION
from instantgi.render import blocks

# of any type, since wrong ones are passed
api: Any = instantgi
Gaussians, fit_image, pixels, rasterize = api.Gaussians, api.fit_image, api.pixels, api.rasterize
read_image, write_image = api.read_image, api.write_image
cut_into_blocks: Any = blocks.cut_into_blocks
ROOT = Path(__file__).parents[1]
NO_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]  # root without its rights
NO_GPU = not torch.cuda.is_available()
PICTURE = "convert it to PNG"
EARLY = "it ends early, after 1 chunks; copy it again, or draw what is there with "
EARLY += "decode or view --partial"
NETWORK = (
    "give one that comes with this version (tiny), a folder that save_pretrained wrote, or "
    '"organisation/name" for one on the Hugging Face Hub'
)
OTHERWISE = "is not a file of Gaussians: it begins otherwise; instantgi encode makes one"
NPZ = "not an .npz of Gaussians, or damaged: File is not a zip file"
SUFFIXES = "use one of .png, .webp, .tif, .tiff, .jpg, .jpeg"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a picture, what is made of it, and files that are broken in many ways."""
    folder = tmp_path_factory.mktemp("made")
    levels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(levels).resize((48, 32), Image.Resampling.BICUBIC)
    picture.save(folder / "p.png")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    (folder / "half.png").write_bytes((folder / "p.png").read_bytes()[:800])
    (folder / "text.png").write_text("hello\n")
    for name in ("empty.png", "empty.gi", "net2/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "net2" / "config.json").write_text("not JSON")
    (folder / "net").mkdir()
    (folder / "net" / "config.json").write_text("{}")
    (folder / "net" / "model.safetensors").write_bytes(bytes(range(100)))
    (folder / "folder").mkdir()
    (folder / "page.gi").write_text("<!doctype html><title>A page</title>")
    (folder / "text.npz").write_text("hello\n")
    np.savez(folder / "other.npz", a=np.zeros(3))
    gaussians = fit_image(read_image(folder / "p.png"), num_gaussians=40, iterations=0)
    data = instantgi.encode(gaussians, 32, 48, profile="lossless")
    (folder / "g.gi").write_bytes(data)
    (folder / "cut.gi").write_bytes(data[: len(data) // 2])
    (folder / "bad.gi").write_bytes(data[:200] + bytes([data[200] ^ 255]) + data[201:])
    (folder / "next.gi").write_bytes(_of_version(data, VERSION + 1))
    mixture = fit_image(
        read_image(folder / "p.png"), method="imagegs", num_gaussians=20, iterations=1
    )
    (folder / "mixture.gi").write_bytes(instantgi.encode(mixture, 32, 48))
    (folder / "full").symlink_to("/dev/full")
    for suffix in ("png", "jpg", "webp", "tif", "gi", "npz", "html"):
        (folder / f"full.{suffix}").symlink_to("/dev/full")
    return folder


def _of_version(data: bytes, version: int) -> bytes:
    """The same file with another version in its header, and the right checksum."""
    head, *others = (Chunk(frame.type, frame.payload(data)) for frame in frames(data)[0])
    return pack([head._replace(payload=bytes([version]) + head.payload[1:]), *others])


# --- the command line --------------------------------------------------------------------------

BAD = [  # words, the line without "error: "; exit code 1
    ("infer none.png", "none.png: there is no such file"),
    ("infer folder", "folder: is a folder; name the pictures in it"),
    ("infer -", "-: there is no such file; standard input is /dev/stdin"),
    ("infer p.png/x.png", "p.png/x.png: there is no such file"),
    ("infer http://a.org/b.png", "http://a.org/b.png: there is no such file"),
    ("infer *.jpg", "*.jpg: there is no such file"),
    ("infer é日\x1b[31m.png", "é日?[31m.png: there is no such file"),
    ("infer a\udcff.png", "a?.png: there is no such file"),
    (["infer", "two\nlines  wide.png"], "two lines  wide.png: there is no such file"),
    ("infer " + 300 * "x", 300 * "x" + ": file name too long"),
    ("infer empty.png", "empty.png: the file is empty; copy or download it again"),
    (
        "infer text.png",
        f"text.png: not a picture, or in a format that this Pillow does not read; {PICTURE}",
    ),
    ("infer half.png", "half.png: the file is truncated; copy or download it again"),
    ("infer g.gi", "g.gi: a file of Gaussians, not a picture; instantgi decode draws it"),
    (
        "infer p.png -o one.png",
        r"one.png/p: \S+/one.png is a file, not a folder; choose another .*",
    ),
    (
        "infer p.png -o /dev/null",
        "/dev/null/p: /dev/null is a file, not a folder; choose another folder for the result",
    ),
    ("infer p.png -o /proc/none", "/proc/none: no such file or directory"),
    ("infer p.png --init none.gi", "none.gi: there is no such file"),
    ("infer p.png --init page.gi", f"page.gi: {OTHERWISE}"),
    (
        "infer one.png --init g.gi",
        "g.gi: is of 48x32 pixels in 3 channels, the picture is 1x1 in 3; start from Gaussians of "
        "the same kind",
    ),
    (
        "infer p.png --init mixture.gi",
        "init: instantgi starts from Gaussians whose picture is their sum, not from a mixture",
    ),
    ("infer p.png --checkpoint none", f'there is no network "none": {NETWORK}'),
    ("infer p.png --checkpoint a/b/c", f'there is no network "a/b/c": {NETWORK}'),
    (
        "infer p.png --checkpoint net/model.safetensors",
        "net/model.safetensors: is a file; give the folder that holds it and its config.json",
    ),
    ("infer p.png --checkpoint net", r"net: is not a network of this kind \(Error .*\)"),
    (
        "infer p.png --checkpoint net2",
        "net2: holds no network: config.json is missing or damaged",
    ),
    (
        "infer p.png --checkpoint folder",
        "folder: holds no network: config.json is missing or damaged",
    ),
    ("fit none.png --method imagegs", "none.png: there is no such file"),
    ("encode none.png -o x.gi", "none.png: there is no such file"),
    ("encode p.png -o none/x.gi", r"none/x.gi: there is no folder \S+/none; create it first"),
    ("encode p.png -o p.png/x.gi", r"p.png/x.gi: \S+/p.png is a file, not a folder"),
    (
        "encode p.png -o p.png",
        "p.png: is no name for the result; files of Gaussians end in .gi",
    ),
    ("encode p.png -o x", "x: is no name for the result; files of Gaussians end in .gi"),
    ("encode p.png -o -", "-: is no name for the result; files of Gaussians end in .gi"),
    ("encode p.png -o /proc/x.gi --iterations 0", "/proc/x.gi: no such file or directory"),
    ("encode p.png -o full.gi --iterations 0", "full.gi: no space left on device"),
    (
        "encode p.png -o x.gi --bpp 1e-9 --iterations 0",
        r"1 bytes cannot be reached for 48x32 pixels, the closest is \d+; ask for more",
    ),
    (
        "encode one.png -o x.gi --bytes 999999 --iterations 0",
        r"999999 bytes cannot be reached for 1x1 pixels, the closest is \d+; ask for fewer",
    ),
    (
        "encode p.png -o x.gi --psnr 200 --iterations 0",
        r"200 dB cannot be reached for this picture, the closest is .* dB; give more iterations or "
        "seconds, or ask for less",
    ),
    ("encode g.gi -o x.gi", "g.gi: a file of Gaussians, not a picture; instantgi decode draws it"),
    ("decode none.gi -o x.png", "none.gi: there is no such file"),
    ("decode folder -o x.png", "folder: is a folder; name the files in it"),
    (
        "decode empty.gi -o x.png",
        "empty.gi: is not a file of Gaussians: it is empty; instantgi encode makes one",
    ),
    ("decode page.gi -o x.png", f"page.gi: {OTHERWISE}"),
    ("decode p.png -o x.png", f"p.png: {OTHERWISE}"),
    ("decode cut.gi -o x.png", f"cut.gi: is damaged: {EARLY}"),
    (
        "decode bad.gi -o x.png",
        "bad.gi: is damaged: the checksum of its chunk 'FULL' is wrong; " + AGAIN,
    ),
    (
        "decode bad.gi -o x.png --partial",
        "bad.gi: is damaged: the checksum of its chunk 'FULL' is wrong; " + AGAIN,
    ),
    (
        "decode next.gi -o x.png",
        f"next.gi: has format version {VERSION + 1}, renderer 0, profile 0; this reader knows "
        f"{VERSION}, 0 to 2 and 0 to 3; upgrade instantgi",
    ),
    ("decode g.gi -o x", f"x: unknown format ''; {SUFFIXES}"),
    ("decode g.gi -o g.gi", f"g.gi: unknown format '.gi'; {SUFFIXES}"),
    ("decode g.gi -o x.bmp", f"x.bmp: unknown format '.bmp'; {SUFFIXES}"),
    ("decode g.gi -o folder", "folder: is a folder; give the name of a file in it"),
    ("decode g.gi -o none/x.png", r"none/x.png: there is no folder \S+/none; create it first"),
    ("decode g.gi -o full.png", "full.png: no space left on device"),
    ("decode g.gi -o full.jpg", "full.jpg: no space left on device"),
    ("decode g.gi -o full.webp", "full.webp: no space left on device"),
    (
        "decode g.gi -o x.png --scale 1e9",
        "1000000000x1000000000 pixels would take 1000000000000000000 samples, more than 150000000; "
        "choose a smaller size or part",
    ),
    (
        "decode g.gi -o x.jpg --height 66000 --width 1",
        "x.jpg: JPEG takes sides of 1 to 65500 pixels, got 1x66000",
    ),
    (
        "decode g.gi -o x.png --crop 100 100 10 10",
        "--crop 100 100 10 10: shows nothing of the picture of 48x32 pixels; X and Y are the "
        "part's upper left corner",
    ),
    (
        "decode g.gi -o x.png --crop -5 -5 5 5",
        "--crop -5 -5 5 5: shows nothing of the picture of 48x32 pixels; X and Y are the part's "
        "upper left corner",
    ),
    ("info none.gi", "none.gi: there is no such file"),
    ("info text.png", f"text.png: {OTHERWISE}"),
    (
        "info /dev/null",
        "/dev/null: is a device, not a file",
    ),
    ("decode /dev/zero -o x.png", "/dev/zero: is a device, not a file"),
    ("infer /dev/zero", "/dev/zero: is a device, not a picture"),
    ("view g.gi -o x.png", "x.png: is no name for the result; pages end in .html"),
    ("view g.gi -o none/x.html", r"none/x.html: there is no folder \S+/none; create it first"),
    ("view g.gi -o full.html", "full.html: no space left on device"),
    ("view page.gi -o x.html", f"page.gi: {OTHERWISE}"),
    (
        "view bad.gi -o x.html",
        "bad.gi: is damaged: the checksum of its chunk 'FULL' is wrong; " + AGAIN,
    ),
    ("view g.gi -o x.html --original none.png", "none.png: there is no such file"),
    (
        "view g.gi -o x.html --original one.png",
        "one.png: is 1x1, the Gaussians are of a picture of 48x32",
    ),
    ("export g.gi -o g.gi", "g.gi: is no name for the result; files for the viewer end in .npz"),
    ("export g.gi -o full.npz", "full.npz: no space left on device"),
    (
        "export mixture.gi -o x.npz",
        "mixture.gi: is drawn as mixture; the viewer draws plain sums only",
    ),
    ("import none.npz -o x.gi", "none.npz: there is no such file"),
    ("import folder -o x.gi", "folder: is a folder; name the files in it"),
    ("import text.npz -o x.gi", f"text.npz: {NPZ}"),
    ("import g.gi -o x.gi", f"g.gi: {NPZ}"),
    (
        "import other.npz -o x.gi",
        "other.npz: not an .npz of Gaussians, or damaged: xyz is missing",
    ),
    (
        "import other.npz -o other.npz",
        "other.npz: is no name for the result; files of Gaussians end in .gi",
    ),
]

WRONG = [  # words, the last line without "instantgi COMMAND: error: "; exit code 2
    ("", "the following arguments are required: COMMAND"),
    ("draw p.png", "argument COMMAND: invalid choice: 'draw' .*'infer', 'fit'.*"),
    ("infer", "the following arguments are required: IMAGE"),
    ("infer p.png --num-gaussians 0", "argument --num-gaussians: must be at least 2, got 0"),
    ("infer p.png --num-gaussians 1e3", "argument --num-gaussians: must be a whole .*'1e3'"),
    (
        "infer p.png --num-gaussians 67108865",
        "argument --num-gaussians: must be at most .*864.*",
    ),
    ("infer p.png --patch-size " + 20 * "9", "argument --patch-size: must be below 2^63.*"),
    ("infer p.png --seconds nan", "argument --seconds: must be more than 0 and finite, got nan"),
    ("infer p.png --device gpu", "argument --device: invalid choice: 'gpu' .*"),
    ("infer p.png --background blu", "argument --background: must be like white .*, got 'blu'"),
    ("infer p.png --outptu x", "unrecognized arguments: --outptu x; did you mean --output[?]"),
    ("infer p.png --method lig", "unrecognized .* --method lig; see instantgi infer --help"),
    ("infer p.png p.png", "p.png and p.png would go to out/p.png: give them in calls with .* -o"),
    (["infer", ""], "argument IMAGE: must be the name of a file or folder, got an empty one"),
    (["infer", "p.png", "-o", ""], "argument -o/--output: must be the name of .* an empty one"),
    ("fit p.png --method ImageGS", "argument --method: invalid choice: 'ImageGS' .*imagegs.*"),
    ("fit p.png --lambda 1", "argument --lambda: not allowed with method instantgi"),
    ("fit p.png --method sgi --lambda -1", "argument --lambda: must be at least 0 .*, got -1"),
    ("encode p.png", "the following arguments are required: -o/--output"),
    ("encode p.png -o x.gi --bpp 0", "argument --bpp: must be more than 0 and finite, got 0"),
    ("encode p.png -o x.gi --bytes 10k", "argument --bytes: must be a whole number, got '10k'"),
    ("encode p.png -o x.gi --psnr 3 --bpp 1", "argument --bpp: not allowed with .* --psnr"),
    ("encode p.png -o x.gi --profile best", "argument --profile: invalid choice: 'best' .*"),
    ("encode p.png q.png -o x.gi", "unrecognized arguments: q.png; see instantgi encode --help"),
    ("decode g.gi -o x.png --scale -1", "argument --scale: must be more than 0 .*, got -1"),
    ("decode g.gi -o x.png --height 5", "--height and --width are given together, or use --scale"),
    ("decode g.gi -o x.png --crop 0 0 -1 5", "argument --crop: W and H must be .*, got -1 5"),
    ("decode g.gi -o x.png --crop 0,0,5,5", "argument --crop: expected 4 arguments"),
    ("info g.gi --jsn", "unrecognized arguments: --jsn; did you mean --json[?]"),
    ("doctor now", "unrecognized arguments: now; see instantgi doctor --help"),
]


def _words(call: str | list[str]) -> list[str]:
    return call.split() if isinstance(call, str) else call


def _named(table: list[tuple[Any, ...]]) -> list[str]:
    return [repr(" ".join(_words(call)))[1:60] for call, *_ in table]


def _is_line(text: str, line: str) -> bool:
    return text == line or re.fullmatch(text, line) is not None


def _files(folder: Path) -> dict[Path, int]:
    times = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    return {path: 0 if path.is_dir() else time for path, time in times.items()}


@pytest.mark.parametrize("call, text", BAD, ids=_named(BAD))
def test_bad_input_is_one_line_and_leaves_nothing(call, text, made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    before = _files(made)
    assert main(_words(call)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert _is_line(text, err[7:-1]), err
    assert _files(made) == before


@pytest.mark.parametrize("call, text", WRONG, ids=_named(WRONG))
def test_wrong_usage_is_said_below_the_usage(call, text, made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    before = _files(made)
    with pytest.raises(SystemExit) as caught:
        main(_words(call))
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    usage, line = err.rstrip("\n").rsplit("\n", 1)
    assert usage.startswith("usage: instantgi ")
    command, line = line.split(": error: ", 1)
    assert command.split() == ["instantgi", *_words(call)[:1]] or command == "instantgi"
    assert _is_line(text.replace("^", r"\^"), line), line
    assert _files(made) == before


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    for call in ("infer p.png --device cuda", "encode p.png -o x.gi --device cuda"):
        assert main(call.split()) == 1
        assert re.fullmatch("error: the GPU cannot be used: .+\n", capsys.readouterr().err)


def test_what_is_asked_too_large_becomes_what_is_possible(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made)
    call = f"infer one.png -o {tmp_path} --num-gaussians 67108864 --patch-size {2**62}"
    assert main([*call.split(), "--psnr", "1e9", "--iterations", "1"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"one.png  1x1  \d Gaussians .*\n", out) and err == ""


def test_memory_that_torch_does_not_get_is_one_line(made, monkeypatch, capsys):
    monkeypatch.setattr("instantgi.infer.infer_image", lambda *_, **__: torch.empty(2**55))
    assert main(["infer", str(made / "p.png")]) == 1
    line = "error: not enough memory (tried to allocate 144115188075855872 bytes)\n"
    assert capsys.readouterr().err == line


def test_network_that_cannot_be_fetched_is_one_line(made, tmp_path, monkeypatch, capsys):
    def no_connection(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", no_connection)
    words = ["infer", str(made / "p.png"), "-o", str(tmp_path / "out")]
    assert main([*words, "--checkpoint", "nobody/x"]) == 1
    expected = "error: nobody/x: is no folder here, and did not come from the Hugging Face Hub "
    assert capsys.readouterr().err == expected + "(it cannot be reached: no route to host)\n"


def test_info_says_which_chunks_are_damaged(made, capsys):
    for name, said in (("bad.gi", "['FULL']"), ("g.gi", "-")):
        assert main(["info", str(made / name)]) == 0
        assert f"damaged:       {said}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["name\nwith lines.png", "a  b é日.png", "undecodable \udcff.png"])
def test_any_name_is_taken_and_shown_in_one_line(name, made, tmp_path, capsys):
    shutil.copy(made / "p.png", tmp_path / name)
    output = tmp_path / Path(name).with_suffix(".gi")
    assert main(["encode", str(tmp_path / name), "-o", str(output), "--iterations", "0"]) == 0
    assert output.exists()
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err == ""
    assert out.startswith("".join(c if c.isprintable() else "?" for c in name))


# --- the program -------------------------------------------------------------------------------


def _program(
    *words: object, before: Sequence[str] = (), stdout: Any = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        command, text=True, timeout=100, env=environment, stdout=stdout, stderr=subprocess.PIPE
    )


def test_a_closed_pipe_is_no_error(made):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = _program("-m", "instantgi", "info", made / "g.gi", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, "")


def test_a_full_disk_behind_the_output_is_said(made):
    with open("/dev/full", "w") as full:
        done = _program("-m", "instantgi", "info", made / "g.gi", stdout=full)
    assert (done.returncode, done.stderr) == (1, "error: the output: no space left on device\n")


def test_a_terminal_without_letters_shows_codes(made, tmp_path):
    shutil.copy(made / "p.png", tmp_path / "é.png")
    words = [
        "-m",
        "instantgi",
        "encode",
        tmp_path / "é.png",
        "-o",
        tmp_path / "é.gi",
        "--iterations",
        0,
    ]
    done = _program(*words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.startswith("\\xe9.png  48x32"), done


def test_an_interrupted_fit_leaves_nothing(made, tmp_path):
    words = ["infer", made / "p.png", "-o", tmp_path / "out", "--iterations", 10**9]
    command = [sys.executable, "-m", "instantgi", *map(str, words), "--snapshot-every", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    snapshot = tmp_path / "out" / "p" / "snapshot.gi"
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # what a shell starts in the background would not hear it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        try:
            while running.poll() is None and not snapshot.exists():
                os.sched_yield()
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, err) == (INTERRUPTED, "interrupted\n")
    assert list((tmp_path / "out").rglob("*")) == [snapshot.parent, snapshot]


@pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"), reason="root, and no setpriv to drop rights"
)
def test_what_may_not_be_read_or_written_is_said(made, tmp_path):
    secret, locked, hidden = tmp_path / "secret.png", tmp_path / "locked", tmp_path / "hidden"
    shutil.copy(made / "p.png", secret)
    for folder in (locked, hidden):
        folder.mkdir()
        shutil.copy(made / "g.gi", folder / "old.gi")
    secret.chmod(0)
    locked.chmod(0o500)
    hidden.chmod(0)
    place = "no permission to write here; choose another place"
    calls = [
        (["infer", secret], f"{secret}: no permission to read this file"),
        (["import", secret, "-o", "x.gi"], f"{secret}: no permission to read this file"),
        (["info", hidden / "old.gi"], f"{hidden}/old.gi: no permission to read this file"),
        (["infer", made / "p.png", "-o", locked / "x"], f"{locked}/x/p: no permission to create"),
        (["encode", made / "p.png", "-o", locked / "old.gi"], f"{locked}/old.gi: {place}"),
        (["decode", made / "g.gi", "-o", locked / "x.png"], f"{locked}/x.png: {place}"),
        (["decode", made / "g.gi", "-o", hidden / "x.png"], f"{hidden}/x.png: permission denied"),
    ]
    run = "import json, sys; from instantgi.cli import main; "
    run += "print(*map(main, json.loads(sys.argv[1])))"
    words = json.dumps([words for words, _ in calls], default=str)
    try:
        done = _program("-c", run, words, before=NO_ROOT if os.geteuid() == 0 else [])
    finally:
        hidden.chmod(0o700)
    assert done.stdout.split() == ["1"] * len(calls), done.stderr
    for line, (_, text) in zip(done.stderr.splitlines(), calls, strict=True):
        assert line.startswith(f"error: {text}")
    assert [path.name for path in (*locked.iterdir(), *hidden.iterdir())] == ["old.gi"] * 2


def test_training_without_pictures_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    from train import main as train

    (tmp_path / "pictures").mkdir()
    words = ["predict", f"--config={ROOT}/configs/prepare.yaml"]
    monkeypatch.chdir(tmp_path)
    for name in ("none", "pictures"):
        with pytest.raises(SystemExit, match=f"error: {name}: (there is no such|holds no pict)"):
            train([*words, f"--data.init_args.root={name}"])


# --- Python ------------------------------------------------------------------------------------


def _gaussians(num: int = 3, dtype: torch.dtype = torch.float32, channels: int = 3) -> Any:
    fields = torch.zeros(num, 2), torch.ones(num, 3), torch.zeros(num, channels)
    return Gaussians(*(field.to(dtype) for field in fields))


IMAGE = torch.zeros(3, 8, 9)
NAN = torch.full((3, 8, 9), math.nan)
CALLS: list[tuple[Any, str]] = [
    (lambda: fit_image("p.png"), r"image must be a float tensor \[C, H, W\] in \[0, 1\], got str"),
    (lambda: fit_image(IMAGE[0]), r"got \[8, 9\] torch.float32; read_image makes one of a file"),
    (lambda: fit_image(IMAGE.byte()), r"got \[3, 8, 9\] torch.uint8"),
    (lambda: fit_image(IMAGE[:, :0]), r"image must have at least one pixel, got \[3, 0, 9\]"),
    (lambda: fit_image(NAN), "image has values that are not finite"),
    (lambda: fit_image(IMAGE, num_gaussians=0), "num_gaussians must be 1 to 67108864, got 0"),
    (lambda: fit_image(IMAGE, num_gaussians=2**26 + 1), "must be 1 to 67108864, got 67108865"),
    (
        lambda: fit_image(IMAGE, _gaussians(), num_gaussians=9),
        'not for method "instantgi" with init, which has 3, got 9',
    ),
    (
        lambda: fit_image(IMAGE, _gaussians(), method="imagegs", num_gaussians=2),
        'not for method "imagegs" with init, which has 3, got 2',
    ),
    (lambda: fit_image(IMAGE, num_gaussians=2.5), "num_gaussians must be a whole number, got 2.5"),
    (lambda: fit_image(IMAGE, iterations="3"), "iterations must be a whole number, got '3'"),
    (lambda: fit_image(IMAGE, iterations=-1), "iterations must be a number of at least 0, got -1"),
    (lambda: fit_image(IMAGE, seconds=math.nan), "seconds must be a number .*, got nan"),
    (lambda: fit_image(IMAGE, seed=2**70), r"seed must be below 2\^63, got 1180591620717411303424"),
    (lambda: fit_image(IMAGE, method="imageg"), 'method must be one of .*, got "imageg"'),
    (lambda: fit_image(IMAGE, method=3), "method must be a name or a Fitter, got int"),
    (
        lambda: fit_image(IMAGE, init=IMAGE),
        r"expected Gaussians, .*, got \[3, 8, 9\] torch.float32",
    ),
    (lambda: fit_image(IMAGE[:1], init=_gaussians()), "init has 3 channels, the image has 1"),
    (lambda: rasterize(_gaussians(), 0, 5), "at least 1x1 pixels, got height 0, width 5"),
    (lambda: rasterize(_gaussians(), 5.5, 5), "must be whole numbers, got 5.5 and 5"),
    (lambda: rasterize(IMAGE, 5, 5), r"rasterize draws Gaussians, got \[3, 8, 9\]"),
    (lambda: rasterize(_gaussians(), 5, 5, step=2), r"step must be two numbers, \(x, y\), got 2"),
    (lambda: rasterize(_gaussians(), 5, 5, step=(0, 1)), "step must be two positive numbers"),
    (lambda: rasterize(_gaussians(dtype=torch.half), 5, 5), "works in float32 or float64, got"),
    (lambda: rasterize(_gaussians().map(lambda f: f * math.nan), 5, 5), "Gaussian 0 .* not finite"),
    (lambda: Gaussians(np.zeros((3, 2)), *IMAGE[:2]), "means must be a tensor of floats, got nda"),
    (lambda: api.encode("p.png", 8, 9), "expected Gaussians, .*, got str; fit_image makes"),
    (lambda: api.encode(_gaussians(), 2.5, 9), "must be whole numbers, got 2.5 and 9"),
    (lambda: api.encode(_gaussians(), 10**9, 9), "9x1000000000 pixels in 3 .*; the most are"),
    (lambda: api.encode(_gaussians(), 8, 9, profile="best"), 'one of .*, got "best"'),
    (lambda: api.encode(_gaussians(), 8, 9, metadata={}), "codec.Metadata, got dict"),
    (lambda: api.encode(_gaussians().map(lambda f: f * math.nan), 8, 9), "not finite"),
    (lambda: api.decode(b""), "the file: is not a file of Gaussians: it is empty"),
    (lambda: api.decode(b"hello"), "the file: is not a file of Gaussians: it begins other"),
    (lambda: api.open("none.gi"), "none.gi: there is no such file"),
    (lambda: read_image("none.png"), "none.png: there is no such file"),
    (lambda: write_image("x.png", IMAGE[0]), r"image must be a float tensor .*, got \[8, 9\]"),
    (lambda: write_image("x.png", IMAGE.byte()), r"got \[3, 8, 9\] torch.uint8"),
    (lambda: write_image("x.png", IMAGE.numpy()), "got ndarray"),
    (lambda: write_image("x.png", NAN), "the image holds NaN"),
    (lambda: write_image("x.png", IMAGE[:2]), "x.png: an image has 1, 3 or 4 channels"),
    (lambda: pixels(_gaussians(), [[1, 2]]), r"points must be \[P, 2\] .*, got list"),
    (lambda: pixels(_gaussians(), torch.zeros(2)), r"points must be \[P, 2\] .*, got \[2\]"),
    (
        lambda: pixels(_gaussians(), torch.zeros(1, 2).long()),
        "as the means are, got .* torch.int64",
    ),
    (lambda: pixels(IMAGE, torch.zeros(1, 2)), "expected Gaussians, a Mixture, Levels or Seeds"),
    (lambda: cut_into_blocks(_gaussians(), 8, 9, 5), "blocks are of a Mixture, .*, got Gaussians"),
    (lambda: api.InstantGI.from_pretrained("none"), 'there is no network "none": give one'),
    (lambda: api.InstantGI.from_pretrained("tiny")(IMAGE[None]), r"got \[1, 3, 8, 9\]"),
    (lambda: api.InstantGI.from_pretrained("tiny")(IMAGE.double()), "float64"),
    (lambda: api.InstantGI.from_pretrained("tiny")(NAN), "not finite"),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_wrong_arguments_are_said(number, without_shape_checks, tmp_path, monkeypatch):
    call, text = CALLS[number]
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=text):
        call()
    assert not any(tmp_path.iterdir())
