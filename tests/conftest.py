import os

import cuda_emulator
import jaxtyping
import pytest
import torch

NUM_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if NUM_WORKERS > 1:  # each has its share of the cores, and so have the programs that it starts
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // NUM_WORKERS))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu), "emulated"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest):
    """The name of a device; "emulated" is the CPU on which the CUDA kernels run, one thread at a
    time.
    """
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU: torch.cuda.is_available() is False")
    if request.param == "emulated":
        with cuda_emulator.in_place_of_cpu_kernels():
            yield "cpu"
    else:
        yield request.param


@pytest.fixture(autouse=True)
def on_the_cpu_unless_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """A test means the CPU unless it is marked `gpu`, also where there is a GPU."""
    if request.node.get_closest_marker("gpu") is None and torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of programs that the test starts


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """For thousands of calls on a tiny picture, where a busy machine makes threads wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without_shape_checks():
    """For tests of our own messages on wrong shapes, which in tests jaxtyping would precede."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
