"""Compile the CPU kernels while the package is installed (a hatchling build hook).

GCC and Clang compile them, on Linux, macOS and Windows (LLVM's clang++, or g++ of MinGW-w64).

One shared library per instruction set, `instantgi/native/libinstantgi_<name>`, from every
`*_cpu.cpp` beside this file. Plain C++17 with a C interface: the result depends on no Python
and no torch version. `instantgi/native.py` picks one at load time.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `build` works without it
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "cuda"
OUTPUT = ROOT / "instantgi" / "native"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")

# No -ffast-math: GCC before 13 would then link code that flushes denormals in the whole process.
COMPILE = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
# a*b + c stays two roundings, so that a map is dithered to the same points everywhere and a pixel
# is inside the same Gaussians whoever asks; where one is meant, the source says so (multiply_add).
COMPILE += ["-ffp-contract=off"]
OLDEST_MACOS = "11.0"  # the first of Apple's own processors
COMPILERS = {  # by name, the first that is there
    "win32": ("clang++", "g++", "c++"),
    "": ("c++", "g++", "clang++"),
}
INSTALL = {
    "win32": "LLVM (winget install LLVM.LLVM) or MinGW-w64; Visual C++ alone has no vector types",
    "darwin": "Apple's command line tools (xcode-select --install)",
    "": "g++ or clang (Debian: apt install g++)",
}


def instruction_sets() -> dict[str, list[str]]:
    """Library name to compiler flags; x86-64 levels are those of the psABI."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return {
            "baseline": ["-march=x86-64"],
            "avx2": ["-march=x86-64-v3"],
            "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        }
    return {"baseline": []}


def compiler() -> str:
    if chosen := os.environ.get("CXX"):
        if path := shutil.which(chosen):
            return path
        raise RuntimeError(f"CXX names a compiler that is not there: {chosen!r}")
    for name in COMPILERS.get(sys.platform, COMPILERS[""]):
        if path := shutil.which(name):
            return path
    raise RuntimeError(
        "instantgi compiles its CPU kernels on install and found no C++17 compiler: install "
        f"{INSTALL.get(sys.platform, INSTALL[''])}, or set CXX"
    )


def system_flags(cxx: str) -> list[str]:
    """For compiling and linking on this system."""
    if sys.platform == "darwin":
        return ["-fPIC", "-pthread", f"-mmacosx-version-min={OLDEST_MACOS}"]
    if sys.platform != "win32":
        return ["-fPIC", "-pthread"]
    if "clang" in Path(cxx).stem:
        return []
    # MinGW's runtime goes into the library; and its GCC does not align stacks as AVX wants them
    return ["-static", "-Wa,-muse-unaligned-vector-move"]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


def build(output: Path) -> list[Path]:
    """Compile every library into `output`; each is written beside its place and then renamed."""
    cxx, sources = compiler(), sorted(SOURCES.glob("*_cpu.cpp"))
    system = system_flags(cxx)
    output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=output) as folder,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        jobs, objects = [], {}
        for name, flags in instruction_sets().items():
            objects[name] = []
            for source in sources:
                target = Path(folder) / f"{name}_{source.stem}.o"
                command = [cxx, *COMPILE, *system, *flags]
                command += ["-c", str(source), "-o", str(target)]
                jobs.append(pool.submit(run, command))
                objects[name].append(str(target))
        for job in jobs:
            job.result()
        libraries = []
        for name, parts in objects.items():
            partial = Path(folder) / f"libinstantgi_{name}{SUFFIX}"
            run([cxx, "-shared", *system, *parts, "-o", str(partial)])
            libraries.append(output / partial.name)
            os.replace(partial, libraries[-1])
    return libraries


class CustomBuildHook(BuildHookInterface):  # pyright: ignore[reportGeneralTypeIssues]: see above
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        libraries = build(OUTPUT)
        build_data["pure_python"] = False
        tag = os.environ.get("INSTANTGI_PLATFORM_TAG") or platform_tag()
        build_data["tag"] = f"py3-none-{tag}"
        build_data["artifacts"] += [str(path.relative_to(ROOT)) for path in libraries]
        for source in sorted(SOURCES.glob("*.h")) + sorted(SOURCES.glob("*.cu")):
            build_data["force_include"][str(source)] = f"instantgi/native/{source.name}"


def platform_tag() -> str:
    import sysconfig

    if sys.platform == "darwin":  # Python's own may say universal2, which these kernels are not
        return f"macosx_{OLDEST_MACOS.replace('.', '_')}_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
