import subprocess
import sys

# what has no place in a program that only draws: each costs a second or is large
FORBIDDEN = (
    "lightning pytorch_lightning scipy torchvision timm huggingface_hub cv2 matplotlib lpips "
    "flip_evaluator cuda.core hatchling"
)


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_loads_torch_and_little_else():
    code = f"""
import sys
import instantgi, instantgi.gaussians, instantgi.render
print(*set({FORBIDDEN.split()}) & set(sys.modules))
"""
    assert run(code).strip() == ""


def test_import_compiles_nothing():
    code = """
import os, subprocess, sys
def refuse(*arguments, **options):
    raise AssertionError(f"import instantgi started {arguments}")
import torch
subprocess.Popen.__init__ = os.system = os.posix_spawn = os.fork = refuse
import instantgi, instantgi.gaussians, instantgi.native, instantgi.render
print(instantgi.native.cpu_library.cache_info().currsize)
"""
    assert run(code).strip() == "0"


def test_drawing_does_not_load_the_compiler_of_torch():
    code = """
import sys, torch
from instantgi.gaussians import Gaussians
from instantgi.render import rasterize
before = set(sys.modules)
rasterize(Gaussians(torch.ones(1, 2), torch.ones(1, 3), torch.ones(1, 3)), 4, 4)
print(*{"torch._dynamo", "torch._inductor"} & (set(sys.modules) - before))
"""
    assert run(code).strip() == ""


def test_the_network_is_imported_without_timm_and_lightning():
    code = """
import sys
from instantgi import InstantGI
print(*{"timm", "torchvision", "lightning", "torch._dynamo"} & set(sys.modules))
"""
    assert run(code).strip() == ""


def test_a_star_import_keeps_the_open_of_python():
    code = """
import builtins, instantgi
from instantgi import *
print(open is builtins.open, instantgi.open.__module__, "open" in dir(instantgi))
"""
    assert run(code).split() == ["True", "instantgi.codec.file", "True"]
