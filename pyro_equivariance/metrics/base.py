"""What the metrics share: an estimate with its error, the action on an orbit, and the checks of their input."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError, OptionError, SymmetryError

SUM_TOLERANCE = 1e-3  # catches logits and log-probabilities, lets half precision pass


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error; ``float(estimate)`` is the number.

    >>> float(Estimate(0.25, se=0.01))
    0.25
    """

    value: float
    se: float

    def __float__(self) -> float:
        return self.value


def check_draws(outputs: Tensor, action, least: int = 2) -> None:
    """Raise unless ``outputs`` are enough finite draws ``(T, |G|, N, *event)`` that the action fits."""
    if outputs.ndim < 3 or outputs[0].numel() == 0:
        raise DataError(f"Expected outputs of shape (T, |G|, N, *event), not empty; got {tuple(outputs.shape)}.")
    if len(outputs) < least:
        raise DataError("Expected at least 2 posterior draws, to tell the defect from their spread; got 1.")
    if not torch.isfinite(outputs).all():
        raise DataError("Expected finite outputs; got NaN or inf. Consider a smaller learning rate.")
    check_action(action, outputs.shape[1], outputs.shape[3:])


def check_action(action, order: int, event_shape: torch.Size) -> None:
    """Raise unless the action is of a group of that order, on events of that shape."""
    if action is None:
        return
    if len(action.group) != order:
        raise SymmetryError(
            f"Expected the action's group to have the orbit axis's {order} elements; got {len(action.group)}."
        )
    if tuple(action.event_shape) != tuple(event_shape):
        raise SymmetryError(
            f"Expected an action on events of shape {tuple(event_shape)}; got {tuple(action.event_shape)}."
        )


def check_predictive(probs: Tensor, labels: Tensor, prefix: str = "") -> None:
    """Raise unless these are class probabilities ``(..., N, K)`` and a class for each image."""
    check_probs(probs, f"{prefix}probs")
    if labels.ndim == 0 or probs.shape[:-1][-labels.ndim :] != labels.shape:
        raise DataError(
            f"Expected one label per image, ({probs.shape[-2]},) for {prefix}probs (..., N, K) of shape "
            f"{tuple(probs.shape)}; got {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"Expected integer {prefix}labels; got {labels.dtype}. Consider {prefix}labels.long().")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= probs.shape[-1]:
        raise DataError(f"Expected {prefix}labels in 0..{probs.shape[-1] - 1}, one per class; got {low}..{high}.")


def check_probs(probs: Tensor, name: str) -> None:
    """Raise unless ``probs`` are finite, non-negative and sum to one over their last axis."""
    if probs.ndim < 2 or probs.numel() == 0 or not probs.is_floating_point():
        raise DataError(f"Expected {name} as floats (..., N, K), not empty; got {probs.dtype}, {tuple(probs.shape)}.")
    if not torch.isfinite(probs).all():
        raise DataError(f"Expected finite {name}; got NaN or inf. Consider a smaller learning rate.")
    error = (probs.double().sum(-1) - 1).abs().max().item()
    if probs.min() < 0 or error > SUM_TOLERANCE:
        raise DataError(
            f"Expected {name} to be non-negative and to sum to one over the last axis; smallest entry "
            f"{probs.min().item():.3g}, sum off by {error:.3g}. Consider a softmax over the logits."
        )


def check_count(name: str, value: int) -> None:
    """Raise unless a number of things is a positive integer."""
    if not isinstance(value, int) or value < 1:
        raise OptionError(f"Expected {name} to be a positive integer; got {value!r}.")


def move(y: Tensor, action, order: int) -> Tensor:
    """``rho_Y(g) y`` for all g: ``(T, N, *event)`` to ``(T, |G|, N, *event)``, or ``(T, 1, N, *event)``."""
    if action is None:
        return y.unsqueeze(1)
    g = torch.arange(order, device=y.device).unsqueeze(-1)
    return action.act(g, y.unsqueeze(1))


def safe_log(probs: Tensor) -> Tensor:
    """The logarithm in double precision, of 0 that of the smallest number instead."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).double().log()
