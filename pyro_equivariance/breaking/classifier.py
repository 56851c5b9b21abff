"""The classifier that tells data from moved copies: a small network, or whatever the user makes."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ..errors import OptionError

WIDTH, RATE, DECAY, BATCH = 64, 5e-3, 1e-2, 64  # of the network and of Adam with decoupled weight decay
STEPS, FEWEST, MOST = 600, 3, 100  # of the optimizer, in about so many epochs: at least and at most
PATIENCE = 8  # the share of the epochs without improvement after which training ends, as 1 / PATIENCE
CONSTANT = 1e-9  # of its own magnitude: a feature that deviates less is constant
ROUNDING = 1e-12  # of the largest deviation: what interpolation may leave of zeros


def called_moved(x: Tensor, moved: Tensor, test: Tensor, classifier) -> Tensor:
    """Train on one part and classify another, both standardised by the first."""
    mean, scale = x.mean(0), _scales(x)
    x, test = ((z - mean) / scale for z in (x, test))
    made = _default_network(x.shape[1]) if classifier is None else classifier()
    if isinstance(made, nn.Module):
        return _train(made.float(), x.float(), moved.float())(test.float())
    if not callable(getattr(made, "fit", None)) or not callable(getattr(made, "predict", None)):
        raise OptionError(f"Expected classifier() to make a network, or an object with fit and predict; got {made!r}.")
    made.fit(x.numpy(), moved.long().numpy())
    called = torch.as_tensor(made.predict(test.numpy()))
    if called.numel() != len(test):
        raise OptionError(f"Expected predict(x) to give one of 0 and 1 for each of {len(test)} data; got "
                          f"{tuple(called.shape)}.")  # fmt: skip
    return called.flatten() > 0.5


def _scales(x: Tensor) -> Tensor:
    """The standard deviations of the features, 1 for constant ones; features may be in different units."""
    std = x.std(0)
    return torch.where(std > torch.clamp(CONSTANT * x.abs().amax(0), min=float(ROUNDING * std.max())), std, 1.0)


def _default_network(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))


def _train(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Train the network, keep the state that is best on a sixth of the data, and return what it calls moved."""
    train, inner = torch.randperm(len(x)).split([len(x) - len(x) // 6, len(x) // 6])
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    best, state, since = math.inf, {}, 0
    epochs = _epochs(len(train))
    for _ in range(epochs):
        net.train()
        for batch in _batches(train[torch.randperm(len(train))]):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(_logits(net, x[batch]), y[batch]).backward()
            optimizer.step()
        loss = float(binary_cross_entropy_with_logits(_evaluated(net, x[inner]), y[inner]))
        since += 1
        if loss < best:
            best, since, state = loss, 0, copy.deepcopy(net.state_dict())
        if since > epochs / PATIENCE:
            break
    net.load_state_dict(state or net.state_dict())
    return lambda test: _evaluated(net, test) > 0


def _epochs(count: int) -> int:
    return max(FEWEST, min(MOST, STEPS * BATCH // max(count, 1)))


def _batches(order: Tensor) -> list[Tensor]:
    """None of a single datum, which has no variance to normalise by."""
    batches = list(order.split(BATCH))
    return [*batches[:-2], torch.cat(batches[-2:])] if len(batches[-1]) == 1 else batches


@torch.no_grad()
def _evaluated(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    return _logits(net, x)


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    logits = net(x)
    if logits.numel() != len(x):
        raise OptionError(
            f"Expected a network with one logit for each datum, ({len(x)}, 1); got {tuple(logits.shape)}. End it with "
            f"nn.Linear(..., 1)."
        )
    return logits.flatten()
