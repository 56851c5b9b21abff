"""Where members start: laws of the initial weights, invariant ones and one that is not."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError, check_option
from ..networks.priors import gains_of
from ..networks.supports import cores_of, masks_of
from ..symmetry import Symmetry

Start = Callable[[str, torch.Size, torch.Generator], Tensor]

STARTS = ("he", "normal", "offset")
OFFSET_SEED = 0  # of the offset that all members of all ensembles share


def generators(seed: int, member: int) -> tuple[torch.Generator, torch.Generator]:
    """Two sources of random numbers of a member's own: of its start and of its training."""
    states = np.random.SeedSequence([seed, member]).generate_state(2, np.uint64)
    return tuple(torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states)


def start_weights(net: nn.Module, init, cores: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """One member's initial weights: drawn, and 0 off the supports of the network's kernels or, where given, the cores.

    :param init: a name of ``STARTS`` or a callable ``(name, shape, generator)``, as for :func:`fit_ensemble`.
    """
    masks, gains, weights = masks_of(net), gains_of(net), {}
    common = torch.Generator().manual_seed(OFFSET_SEED)
    for name, parameter in net.named_parameters():
        if callable(init):
            value = _checked(init(name, parameter.shape, generator), name, parameter)
        else:
            fixed = _fixed(name, parameter, name in gains)
            fan_in = _fan_in(parameter, masks.get(name))
            value = _drawn(init, parameter, fan_in, generator, common) if fixed is None else fixed
        mask = cores.get(name, masks.get(name))
        weights[name] = value if mask is None else value * mask
    return weights


def check_start(init) -> None:
    """Raise unless it is a name, a callable, or values."""
    if not callable(init) and not isinstance(init, Mapping):
        check_option("init", init, STARTS)


def start_cores(net: nn.Module, init, augmentation: Symmetry | None) -> dict[str, Tensor]:
    """The parts of the supports that ``core_start=True`` lets weights start on.

    :raises OptionError: where it has nothing to act on: no group, given starts, or no support.
    """
    if augmentation is None:
        raise OptionError("Expected augmentation= for core_start=True: its group decides what is kept; got None.")
    if isinstance(init, Mapping):
        raise OptionError("Expected a law as init for core_start=True; got the starts. Set their zeros there.")
    cores = cores_of(net, augmentation.inputs)
    if not cores:
        raise OptionError("Expected kernels on a support for core_start=True; the network has none. Give support=.")
    return cores


def all_starts(net: nn.Module, init, cores: Mapping[str, Tensor], members: int, seed: int) -> dict[str, Tensor]:
    """The weights that the members start from, ``(M, *shape)`` for each parameter."""
    if isinstance(init, Mapping):
        return given_weights(net, init, members)
    rows = [start_weights(net, init, cores, generators(seed, i)[0]) for i in range(members)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def given_weights(net: nn.Module, init: Mapping[str, Tensor], members: int) -> dict[str, Tensor]:
    """The values that all members start from, ``(M, *shape)``, in the network's order."""
    masks, weights = masks_of(net), {}
    for name, parameter in net.named_parameters():
        shape = (members, *parameter.shape)
        if name not in init or init[name].shape != shape:
            found = tuple(init[name].shape) if name in init else "none"
            raise DataError(f"Expected init[{name!r}] of shape {shape}, a start for each member; got {found}.")
        weights[name] = init[name].detach().to(parameter) * masks.get(name, 1)
    return weights


def _fan_in(parameter: Tensor, mask: Tensor | None) -> int:
    """The number of inputs of one output: entries off the support are none."""
    entries = parameter[0].numel() if parameter.ndim > 1 else 1
    return entries if mask is None else entries * int(mask.sum()) // mask.numel()


def _fixed(name: str, parameter: Tensor, is_gain: bool) -> Tensor | None:
    """Where gains, biases and other parameters of at most one axis start under all named laws; ``None`` for weights."""
    if is_gain:
        return torch.ones_like(parameter, requires_grad=False)
    if "bias" in name.rpartition(".")[2].split("_"):  # "bias", "in_proj_bias", "bias_ih_l0"
        return torch.zeros_like(parameter, requires_grad=False)
    return parameter.detach().clone() if parameter.ndim < 2 else None


def _drawn(init: str, parameter: Tensor, fan_in: int, *sources: torch.Generator) -> Tensor:
    """A value of one law; the sources are the member's own random numbers and those common to all."""
    noise, offset = (torch.randn(parameter.shape, generator=g, dtype=parameter.dtype) for g in sources)
    noise = (noise + offset) / math.sqrt(2) if init == "offset" else noise
    return noise.to(parameter.device) * (1.0 if init == "normal" else math.sqrt(2 / fan_in))


def _checked(value, name: str, parameter: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise OptionError(
            f"Expected init to return a tensor of shape {tuple(parameter.shape)} for {name!r}; got {found}."
        )
    return value.detach().to(parameter)
