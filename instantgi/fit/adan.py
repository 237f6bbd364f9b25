"""Adan, the optimiser of GaussianImage and of Instant-GI's fine-tuning."""

from collections.abc import Iterable

import torch
from torch import Tensor

from instantgi.native import call_cpu

torch.library.define(
    "instantgi::adan_",
    "(Tensor(a!) parameter, Tensor gradient, Tensor(b!) state, float rate, float[] betas, "
    "float epsilon, int step) -> ()",
)


@torch.library.impl("instantgi::adan_", "cpu")
def _(parameter, gradient, state, rate, betas, epsilon, step):
    for tensor in (parameter, gradient, state):
        if tensor.dtype != torch.float32 or tensor.numel() < parameter.numel():
            raise ValueError(f"Adan works on float32, got {tensor.dtype} {list(tensor.shape)}")
    if not parameter.is_contiguous():
        raise ValueError("Adan works on contiguous parameters; use .contiguous()")
    corrections = [1 - beta**step for beta in betas]
    arguments = (parameter.numel(), parameter, gradient.contiguous(), state, rate, *betas, epsilon)
    call_cpu("adan", *arguments, *corrections, int(step == 1))


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
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
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
                torch.ops.instantgi.adan_(
                    parameter,
                    parameter.grad,
                    state["moments"],
                    group["lr"],
                    group["betas"],
                    group["eps"],
                    state["step"],
                )
