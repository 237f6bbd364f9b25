"""Adan, the optimiser of GaussianImage and of Instant-GI's fine-tuning."""

from collections.abc import Iterable

import torch
from torch import Tensor

from instantgi import native

BETAS, EPSILON = (0.98, 0.92, 0.99), 1e-8

torch.library.define(
    "instantgi::adan_",
    "(Tensor(a!) parameter, Tensor gradient, Tensor(b!) state, Tensor schedule) -> ()",
)


def adan_schedule(
    rate: float, betas: tuple[float, float, float], epsilon: float, step: int
) -> tuple[float, ...]:
    """The nine numbers that the kernels want for a step, counted from 1."""
    first, second, third = (1 / (1 - beta**step) for beta in betas)
    return rate, *betas, epsilon, first, betas[1] * second, third, float(step > 1)


def _check(parameter, gradient, state, schedule):
    if schedule.shape != (9,) or schedule.dtype != torch.float32:
        raise ValueError(f"schedule must be what adan_schedule says, got {schedule}")
    for tensor in (parameter, gradient, state):
        if tensor.dtype != torch.float32 or tensor.numel() < parameter.numel():
            raise ValueError(f"Adan works on float32, got {tensor.dtype} {list(tensor.shape)}")
    if not parameter.is_contiguous():
        raise ValueError("Adan works on contiguous parameters; use .contiguous()")


@torch.library.impl("instantgi::adan_", "cpu")
def _(parameter, gradient, state, schedule):
    _check(parameter, gradient, state, schedule)
    native.call_cpu("adan", parameter.numel(), parameter, gradient.contiguous(), state, schedule)


def adan_cuda(parameter, gradient, state, schedule):
    _check(parameter, gradient, state, schedule)
    arguments = (parameter.numel(), parameter, gradient.contiguous(), state, schedule)
    native.call_cuda("adan", "adan", -(-parameter.numel() // 256), 256, *arguments)


torch.library.impl("instantgi::adan_", "cuda", adan_cuda)


class Adan(torch.optim.Optimizer):
    """Adan without weight decay (Xie et al., 2022, algorithm 1), for float32 parameters.

    With g the gradient and Δ its change since the last step (0 at the first):
    m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) Δ;  n ← β₃ n + (1 − β₃) (g + β₂ Δ)²;
    x ← x − lr · (m / (1 − β₁ᵗ) + β₂ v / (1 − β₂ᵗ)) / (√(n / (1 − β₃ᵗ)) + ε).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = BETAS,
        eps: float = EPSILON,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["moments"] = parameter.new_zeros(4, *parameter.shape)
                state["step"] += 1
                values = adan_schedule(group["lr"], group["betas"], group["eps"], state["step"])
                schedule = parameter.new_tensor(values, dtype=torch.float32)
                torch.ops.instantgi.adan_(parameter, parameter.grad, state["moments"], schedule)
