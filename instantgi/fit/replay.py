"""Work that repeats, without what it costs to say it again: CUDA graphs."""

from collections.abc import Callable

import torch
from torch import Tensor

EAGER = 2  # calls before the capture: they load kernels, which a capture must not
SORT_EVERY = 100  # steps, after which Gaussians have left their places in `order_by_place`
AHEAD = 2048  # rows of a schedule; CUDA lets no more than about 1,000 launches wait


class Replay:
    """Calls a function of tensors that stay where they are, captured once as a CUDA graph.

    On the CPU it is called as it is. Its result is one tensor, on a GPU the same each time. The
    function is not kept: a method of the owner of this would keep the owner, and gigabytes with it,
    until Python looks for cycles.
    """

    def __init__(self, device: torch.device):
        self.device, self.is_cuda = device, device.type == "cuda"
        self.calls, self.graph, self.result = 0, None, None

    def __call__(self, function: Callable[[], Tensor]) -> Tensor:
        self.calls += 1
        if not self.is_cuda or self.calls <= EAGER:
            return function()
        with torch.cuda.device(self.device):
            if self.graph is None:
                self._capture(function)
            assert self.graph is not None
            self.graph.replay()
        assert self.result is not None
        return self.result

    def _capture(self, function: Callable[[], Tensor]) -> None:
        # by hand, because `torch.cuda.graph` also collects garbage and empties the cache
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # what other threads do meanwhile is no part of it, and no error
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.result = function()
            finally:  # a capture that goes on would make every later call fail
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = graph


class Schedule:
    """A few numbers that change from call to call, in a tensor that stays where it is.

    The host writes them ahead of the device, and never waits for it.
    """

    def __init__(self, count: int, device: torch.device):
        self.rows = torch.zeros(AHEAD, count, pin_memory=device.type == "cuda")
        self.now, self.row = torch.zeros(count, device=device), 0

    def set(self, *values: float) -> None:
        self.row = (self.row + 1) % AHEAD
        self.rows[self.row] = torch.tensor(values, dtype=torch.float32)
        self.now.copy_(self.rows[self.row], non_blocking=True)
