"""What the handlers share."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

AUXILIARY = "_unconstrained"  # AutoNormal draws "<site>_unconstrained" and puts a Delta of its image on the site
BASE = "_base"


def wrap(messenger: Messenger, fn: Callable | None):
    """What a lower-case handler returns: ``fn`` inside the messenger, or without ``fn`` the messenger itself."""
    return messenger if fn is None else messenger(fn)


def add_log_density(name: str, density: Tensor) -> None:
    """Add a number to a model's log joint density, once.

    It is the density of a constant: no latent, so no KL weight scales it; marked as deterministic, so no augmentation
    does; a point mass, so predictions leave it out.
    """
    zero = torch.zeros_like(density)
    pyro.sample(name, dist.Delta(zero, log_density=density), obs=zero, infer={"_deterministic": True})
