"""Minimising a smooth convex loss of a few weights: scipy's bounded L-BFGS, with torch's gradients."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

ITERATIONS = 100


def minimise(
    loss: Callable[[Tensor], Tensor], start: Tensor, bounds: Sequence[tuple[float, float]] | None = None
) -> Tensor:
    """The weights that make `loss` least, in the shape of `start`; each stays within its bounds, if any.

    Bounds keep the weights finite where the data can be told apart perfectly.
    """

    def value_and_slope(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.tensor(flat, dtype=torch.float32).view_as(start).requires_grad_()
        with torch.enable_grad():
            value = loss(weights)
        (slope,) = torch.autograd.grad(value, weights)
        return value.item(), slope.double().flatten().numpy()

    with threadpool_limits(1, user_api="blas"):  # of a few weights: threads would wait for each other
        found = minimize(
            value_and_slope,
            start.double().flatten().numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": ITERATIONS},
        )
    return torch.tensor(found.x, dtype=torch.float32).view_as(start)
