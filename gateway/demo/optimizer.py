"""Muon: momentum whose matrix updates are orthogonalized, for the demo model's weight matrices.

`train.py` uses it next to AdamW, which keeps the embedding and the norms. On a corpus this small
it needs about half of AdamW's steps. Source: Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks"; the polynomial's coefficients are from there.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalized(batch: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, of `batch` [count, rows, columns]."""
    a, b, c = COEFFICIENTS
    tall = batch.shape[1] > batch.shape[2]
    x = (batch.mT if tall else batch).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Takes two-dimensional parameters only; equal shapes are updated as one batch."""

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = torch.stack(
                    [self.nesterov(parameter, group["momentum"]) for parameter in parameters]
                )
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalized(updates)):
                    parameter.sub_(update, alpha=scale)

    def nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        velocity = state.setdefault("velocity", torch.zeros_like(parameter))
        velocity.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(velocity, momentum)
