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
CONSTANT = 1e-5  # of the largest deviation: below it a feature is constant


def called_moved(x: Tensor, moved: Tensor, test: Tensor, classifier) -> Tensor:
    """Train on one part and classify another, both standardised by the first."""
    mean, std = x.mean(0), x.std(0)
    x, test = ((z - mean) / torch.where(std > CONSTANT * std.max(), std, 1.0) for z in (x, test))
    made = _default_network(x.shape[1]) if classifier is None else classifier()
    if isinstance(made, nn.Module):
        return _train(made.float(), x.float(), moved.float())(test.float())
    if not callable(getattr(made, "fit", None)) or not callable(getattr(made, "predict", None)):
        raise OptionError(f"Expected classifier() to make a network, or an object with fit and predict; got {made!r}.")
    made.fit(x.numpy(), moved.long().numpy())
    return torch.as_tensor(made.predict(test.numpy())).flatten() > 0.5


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
        for batch in train[torch.randperm(len(train))].split(BATCH):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(net(x[batch]).flatten(), y[batch]).backward()
            optimizer.step()
        loss = float(binary_cross_entropy_with_logits(_logits(net, x[inner]), y[inner]))
        since += 1
        if loss < best:
            best, since, state = loss, 0, copy.deepcopy(net.state_dict())
        if since > epochs / PATIENCE:
            break
    net.load_state_dict(state or net.state_dict())
    return lambda test: _logits(net, test) > 0


def _epochs(count: int) -> int:
    return max(FEWEST, min(MOST, STEPS * BATCH // max(count, 1)))


@torch.no_grad()
def _logits(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    return net(x).flatten()
