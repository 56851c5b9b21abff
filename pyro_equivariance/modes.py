"""Networks in training or evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode(network, training: bool) -> Iterator[None]:
    """The network in training or evaluation mode; its modules come back in those they were in.

    :param network: a module; anything else has no mode and is left alone.

    >>> net = nn.Dropout()
    >>> with mode(net, training=False):
    ...     print(net.training)
    False
    >>> net.training
    True
    """
    before = [(m, m.training) for m in network.modules()] if isinstance(network, nn.Module) else []
    try:
        if before:
            network.train(training)
        yield
    finally:
        for module, was in before:
            module.training = was
