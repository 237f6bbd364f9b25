import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instantgi import __version__, cli, fit
from instantgi.cli import build_parser, main
from instantgi.codec import open_file
from instantgi.fit import default_count
from instantgi.images import read_image
from instantgi.infer import CHOICES, STARTS, Recipe
from instantgi.native import instruction_set

ROOT = Path(__file__).parents[1]
COMMANDS = ("infer", "fit", "encode", "decode", "info", "view", "export", "import", "bench")
COMMANDS += ("doctor", "completion")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    levels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((48, 32), Image.Resampling.BICUBIC).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def result(picture: Path, tmp_path: Path) -> Path:
    assert infer(picture, tmp_path / "made", "--quiet") == 0
    return tmp_path / "made" / "scene"


def infer(*arguments: object) -> int:
    *images, output, option = arguments
    return main(["infer", *map(str, images), "-o", str(output), "--iterations", "3", str(option)])


def usage_error(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_one_line_for_each_picture(picture, tmp_path, capsys):
    assert main(["infer", str(picture), "-o", str(tmp_path / "out"), "--iterations", "3"]) == 0
    out, err = capsys.readouterr()
    number = r"\d+\.\d+"
    assert re.fullmatch(
        rf"scene.png  48x32  \d+ Gaussians  {number} dB -> {number} dB  {number} s  \S+/scene\n",
        out,
    )
    assert err == ""  # no terminal, no bar


def test_quiet_prints_nothing(picture, tmp_path, capsys):
    assert infer(picture, tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_bad_picture_is_one_line_and_the_others_are_done(picture, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:200])
    images = [str(tmp_path / "none.png"), str(broken), str(picture)]
    assert main(["infer", *images, "-o", str(tmp_path / "out"), "--iterations", "2"]) == 1
    out, err = capsys.readouterr()
    assert [line[:7] for line in err.splitlines()] == ["error: "] * 2
    assert "none.png: there is no such file" in err and "truncated" in err
    assert out.startswith("scene.png")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scene"]


def test_fit_takes_each_method(picture, tmp_path):
    for method in cli.METHODS:
        out = tmp_path / method
        arguments = [
            "fit",
            str(picture),
            "--method",
            method,
            "--num-gaussians",
            "40",
            "--iterations",
            "2",
        ]
        assert main([*arguments, "-o", str(out), "--quiet"]) == 0
        assert (out / "scene" / "overview.png").exists()
    assert set(cli.BENCH_METHODS) == set(fit.METHODS)
    assert cli.STARTS == STARTS and cli.CHOICES == CHOICES


@pytest.mark.parametrize(
    "word, value, method, attribute",
    [
        ("lambda", 0.1, "sgi", "rate"),
        ("levels", 1, "lig", "num_levels"),
        ("prefixes", 0.5, "imagegs", "prefixes"),
    ],
)
def test_choices_of_one_method_are_not_for_others(
    picture, tmp_path, capsys, word, value, method, attribute
):
    name = next(name for name, known in CHOICES.items() if known == (method, word))
    words = ["fit", str(picture), f"--{word}", str(value), "--iterations", "2", "--quiet"]
    with pytest.raises(SystemExit):
        main(words)
    assert f"argument --{word}: not allowed with method instantgi" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f'{name} is of the method "{method}", got "instantgi"'):
        Recipe(**{name: value})
    assert getattr(Recipe(method=method, **{name: value}).make_fitter(), attribute) == value
    assert main([*words, "--method", method, "-o", str(tmp_path)]) == 0
    recipe = open_file(tmp_path / "scene" / "gaussians.gi").metadata.recipe
    assert recipe is not None and recipe[word] == value


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("method", ["lig", "imagegs"])
def test_methods_that_grow_go_on_from_a_snapshot(picture, tmp_path, method, given):
    words = ["fit", str(picture), "--method", method, "--quiet", "--iterations"]
    out = tmp_path / "out"
    count = ["--num-gaussians", "96"] if given else []
    assert main([*words, "1", *count, "--snapshot-every", "1", "-o", str(out)]) == 0
    wanted = 96 if given else default_count(*read_image(picture).shape[1:])
    for _ in range(2):  # what goes on from what went on, too
        file = str(out / "scene" / "gaussians.gi")
        out = out / "next"
        assert main([*words, "30", "--init", file, "-o", str(out)]) == 0
    report = json.loads((out / "scene" / "report.json").read_text())
    assert report["num_gaussians"] == wanted


def test_an_unknown_network_and_no_cuda_are_said_in_one_line(picture, capsys):
    assert main(["infer", str(picture), "--checkpoint", "huge"]) == 1
    assert re.fullmatch('error: there is no network "huge": .*\n', capsys.readouterr().err)
    assert main(["infer", str(picture), "--device", "cuda"]) == (not torch.cuda.is_available())
    if not torch.cuda.is_available():
        assert re.fullmatch("error: the GPU cannot be used: .*\n", capsys.readouterr().err)


def test_pictures_of_equal_stems_have_folders_of_their_own(picture, tmp_path, capsys):
    twin, other = tmp_path / "scene.bmp", tmp_path / "other.png"
    for path in (twin, other):
        Image.open(picture).save(path)
    assert infer(picture, twin, other, tmp_path / "out", "--quiet") == 0
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["other", "scene.bmp", "scene.png"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "scene.png").write_bytes(picture.read_bytes())
    both = [str(picture), str(tmp_path / "b" / "scene.png")]
    assert "different -o" in usage_error(["infer", *both], capsys)


@pytest.mark.parametrize(
    "options, text",
    [
        (["--num-gaussians", "-5"], "at least 2"),
        (["--num-gaussians", "many"], "whole number"),
        (["--iterations", "-1"], "at least 0"),
        (["--seconds", "0"], "more than 0"),
        (["--seconds", "nan"], "more than 0"),
        (["--psnr", "inf"], "finite"),
        (["--seconds", "1", "--iterations", "1"], "not allowed with"),
        (["--seed", "-1"], "at least 0"),
        (["--seed", str(2**63)], "below 2^63"),
        (["--patch-size", "0"], "at least 1"),
        (["--background", "octarine"], "like white or #ff8800"),
        (["--device", "tpu"], "invalid choice"),
        (["--snapshot-every", "0"], "at least 1"),
        (["--init", "x.gi", "--num-gaussians", "5"], "not allowed with --init"),
        (["--iter", "5"], "unrecognized"),
    ],
)
def test_wrong_values_are_usage_errors(options, text, picture, capsys):
    err = usage_error(["infer", str(picture), *options], capsys)
    assert text in err
    assert err.startswith("usage: instantgi")


@pytest.mark.parametrize(
    "arguments, text",
    [
        ([], "required"),
        (["infer"], "IMAGE"),
        (["draw"], "invalid choice"),
        (["fit", "x.png", "--method", "magic"], "gaussianimage-rs"),
        (["decode", "x"], "--output"),
        (["decode", "x", "-o", "y.png", "--height", "5"], "given together"),
        (
            ["decode", "x", "-o", "y.png", "--scale", "2", "--height", "5", "--width", "5"],
            "--scale",
        ),
        (["decode", "x", "-o", "y.png", "--crop", "0", "0", "0", "5"], "at least 1, got 0 5"),
        (["bench", "--images", "x", "-o", "y.json", "--methods", "instantgi,magic"], "'magic'"),
        (["bench", "--images", "x", "-o", "y.json", "--iterations", "5,,6"], "whole number"),
    ],
)
def test_wrong_commands_are_usage_errors(arguments, text, capsys):
    assert text in usage_error(arguments, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_with_its_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    text = " ".join(out.split())
    for action in _actions(command):
        assert _stated(action) in text
        if action.option_strings:
            assert action.option_strings[-1] in text
            assert "(default: " in action.help or "(required)" in action.help, action.option_strings
            assert action.required == ("(required)" in action.help), action.option_strings
    if command != "bench":
        assert max(map(len, out.splitlines())) <= 80
        assert f"\nexample: instantgi {command}" in out


def _actions(command: str) -> list[Any]:
    parser: Any = build_parser()
    (commands,) = (action for action in parser._actions if action.dest == "command")
    return [a for a in commands.choices[command]._actions if "--help" not in a.option_strings]


def _stated(action: Any) -> str:
    """The default as the help has to say it, where the parser knows it."""
    if action.default is None or action.default is False or isinstance(action.default, list):
        return ""
    return f"(default: {action.default})"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "bench"])
def test_the_example_of_each_help_is_a_right_call(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    example = capsys.readouterr().out.splitlines()[-1].removeprefix("example: instantgi ")
    options = build_parser().parse_args(example.split())
    assert options.command == command


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"instantgi {__version__}\n"


def test_decode_draws_what_infer_drew(result, tmp_path):
    output = tmp_path / "again.png"
    assert main(["decode", str(result / "gaussians.gi"), "-o", str(output)]) == 0
    assert (np.asarray(Image.open(output)) == np.asarray(Image.open(result / "render.png"))).all()


@pytest.mark.parametrize(
    "options, size",
    [
        (["--scale", "2"], (96, 64)),
        (["--scale", "0.001"], (1, 1)),
        (["--height", "10", "--width", "90"], (90, 10)),
        (["--crop", "8", "4", "20", "10"], (20, 10)),
        (["--crop", "-8", "4", "20", "10", "--scale", "1.5"], (30, 15)),
        (["--crop", "8", "4", "20", "10", "--height", "7", "--width", "9"], (9, 7)),
    ],
)
def test_decode_has_the_size_asked_for(result, tmp_path, options, size):
    output = tmp_path / "other.png"
    source = str(result / "gaussians.gi")
    assert main(["decode", source, "-o", str(output), *options]) == 0
    assert Image.open(output).size == size


def test_crop_is_a_part_of_the_picture(result, tmp_path):
    output = tmp_path / "part.png"
    source = str(result / "gaussians.gi")
    assert main(["decode", source, "-o", str(output), "--crop", "8", "4", "20", "10"]) == 0
    whole = np.asarray(Image.open(result / "render.png")).astype(int)
    # means moved by whole pixels lose bits, which may turn a rounding or a cut-off
    assert abs(whole[4:14, 8:28] - np.asarray(Image.open(output))).max() <= 1


def test_export_and_import_keep_the_gaussians(result, tmp_path):
    source, npz, back = (
        result / "gaussians.gi",
        tmp_path / "x.npz",
        tmp_path / "x.gi",
    )
    assert main(["export", str(source), "-o", str(npz)]) == 0
    assert main(["import", str(npz), "-o", str(back)]) == 0
    ours, theirs = open_file(source), open_file(back)
    assert (ours.height, ours.width) == (theirs.height, theirs.width) == (32, 48)
    means = [file.gaussians().means for file in (theirs, ours)]
    torch.testing.assert_close(*means, atol=48 / 4096, rtol=0)  # half floats


def test_a_fit_of_seeds_writes_them_short(picture, tmp_path, capsys):
    words = ["fit", str(picture), "--method", "sgi", "--num-gaussians", "140", "-o", str(tmp_path)]
    assert main([*words, "--iterations", "20", "--lambda", "0.002"]) == 0
    folder = tmp_path / picture.stem
    file = open_file(folder / "gaussians.gi")
    assert (file.profile, file.num_gaussians) == ("seeds", 140)
    assert main(["decode", str(folder / "gaussians.gi"), "-o", str(tmp_path / "x.png")]) == 0
    drawn, render = (np.asarray(Image.open(p)) for p in (tmp_path / "x.png", folder / "render.png"))
    assert (drawn == render).all()
    assert main(["export", str(folder / "gaussians.gi"), "-o", str(tmp_path / "x.npz")]) == 0
    capsys.readouterr()
    assert main(["info", str(folder / "gaussians.gi")]) == 0
    assert "profile:       seeds" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["decode", "info", "view", "export", "import"])
def test_wrong_files_are_one_line(command, picture, tmp_path, capsys):
    for source in (picture, tmp_path / "none"):
        output = tmp_path / "out.png"
        written = [] if command == "info" else ["-o", str(output)]
        assert main([command, str(source), *written]) == 1
        assert re.fullmatch("error: [^\n]+\n", capsys.readouterr().err)
        assert not output.exists()


def test_enormous_sizes_are_refused(result, tmp_path, capsys):
    source = str(result / "gaussians.gi")
    assert main(["decode", source, "-o", str(tmp_path / "x.png"), "--scale", "1e6"]) == 1
    assert "choose a smaller size" in capsys.readouterr().err


def test_doctor_says_what_it_found(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("torch:", "threads:", "instruction set:", "graphics card:", "system:", "package:"):
        assert name in out
    assert re.search("kernels: +work\n", out)
    assert re.search(rf"kernel library: +\S+/libinstantgi_{instruction_set()}\.", out)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [f"{name}:" for name in found] == re.findall(r"^[^:]+:", out, re.MULTILINE)
    monkeypatch.setattr("instantgi.doctor.kernels_error", lambda: "the CPU kernels are missing")
    assert main(["doctor"]) == 1
    assert re.search("kernels: +the CPU kernels are missing", capsys.readouterr().out)


def test_doctor_calls_usable_only_what_draws_right(monkeypatch):
    from instantgi import doctor

    device = torch.device("cpu")
    assert doctor._cuda_kernels(device) == "usable"
    drawn = [torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.25)]
    monkeypatch.setattr(doctor, "rasterize", lambda *_: drawn.pop())
    assert doctor._cuda_kernels(device).startswith(
        "draw what differs from the CPU's picture by 0.25"
    )

    def broken(*_):
        raise OSError("an illegal memory access\nwas encountered")

    monkeypatch.setattr(doctor, "rasterize", broken)
    said = "do not run: OSError: an illegal memory access was encountered"
    assert doctor._cuda_kernels(device) == said


def test_doctor_says_how_to_get_what_is_missing(capsys, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lpips" else find(name)
    )
    monkeypatch.setitem(sys.modules, "torchvision", None)  # its import fails
    (tmp_path / "file").touch()
    monkeypatch.setenv("INSTANTGI_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("instantgi.doctor.rasterize", lambda *_: torch.zeros(1, 3, 3))
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["kernels"].startswith("draw 0.0 where 1 is right: reinstall with")
    assert found["extra metrics"] == 'without lpips, torchvision: pip install "instantgi[metrics]"'
    assert "cannot be written, not a directory: name another" in found["cache folder"]
    assert f"INSTANTGI_CACHE={tmp_path}" in found["variables"]
    assert "pip install" in found["torchvision"] or "not installed" in found["torchvision"]


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_is_a_script_of_the_shell(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "gaussianimage-rs" in script and cli.BENCH_RD not in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=60)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    "line, expected",
    [
        ("instantgi enc", {"encode"}),
        ("instantgi fit x.png --method gau", {"gaussianimage", "gaussianimage-rs"}),
        ("instantgi encode x.png --pr", {"--profile"}),
        ("instantgi encode x.png --profile lo", {"lossless"}),
        ("instantgi info pic", {"picture one.gi", "picture.gi"}),
        ("instantgi view x.gi --original pic", {"picture one.gi", "picture.gi"}),
        ("instantgi completion b", {"bash"}),
    ],
)
def test_bash_completes(line, expected, tmp_path, capsys):
    for name in ("picture one.gi", "picture.gi", "other.gi"):
        (tmp_path / name).touch()
    assert main(["completion", "bash"]) == 0
    ask = f"""
        COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        $(complete -p instantgi | sed 's/.*-F //; s/ .*//') instantgi
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    script = capsys.readouterr().out + ask
    bash = ["bash", "--noprofile", "--norc"]
    done = subprocess.run(
        bash, input=script, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert set(done.stdout.splitlines()) == expected, done.stderr


def test_programs_exit_with_the_codes_and_without_tracebacks(picture, tmp_path):
    def run(*command: object) -> tuple[int, str, str]:
        words = [sys.executable, *map(str, command)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    out = tmp_path / "out"
    code, stdout, stderr = run("infer.py", picture, "-o", out, "--iterations", 2)
    assert (code, stderr) == (0, "") and stdout.startswith("scene.png  48x32")
    (tmp_path / "empty.png").write_bytes(b"")
    code, stdout, stderr = run("-m", "instantgi", "infer", tmp_path / "empty.png", "-o", out)
    assert (code, stdout) == (1, "") and re.fullmatch("error: .*empty; copy.*\n", stderr)
    assert [path.name for path in out.iterdir()] == ["scene"]
    code, _, stderr = run("infer.py", "--scale", "2")
    assert code == 2 and "usage: instantgi infer" in stderr


def test_ctrl_c_before_the_command_runs_is_one_line(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("instantgi.cli.build_parser", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_while_the_program_loads_is_an_exit_code():
    code = (
        "import sys; from instantgi.__main__ import main\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'instantgi.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder()); sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    "method, more, said",
    [
        ("lig", (), "note: 300 steps; published are 30,000 a level: --iterations\n"),
        ("gaussianimage", (), "note: 300 steps; published are 50,000: --iterations\n"),
        ("gaussianimage", ("--iterations", "2"), ""),
        ("gaussianimage", ("--quiet",), ""),
        ("instantgi", (), ""),
    ],
)
def test_few_steps_of_methods_that_need_many_are_said(method, more, said, monkeypatch, capsys):
    monkeypatch.setattr("instantgi.cli._fit_one", lambda *_: None)
    assert main(["fit", "x.png", "--method", method, *more]) == 0
    assert capsys.readouterr().err == said
