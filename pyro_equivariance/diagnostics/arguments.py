"""What a model and its guide are called with: tensors in order, or by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True)
class Arguments:
    """Positional and keyword arguments.

    >>> as_arguments({"x": torch.zeros(3, 2), "count": 3}).inputs.shape
    torch.Size([3, 2])
    """

    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def trace(self, fn: Callable):
        """A trace of ``fn``, called with them."""
        return poutine.trace(fn).get_trace(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[tuple[str | None, Tensor]]:
        """In order, each with its name if it has one."""
        named = [*((None, value) for value in self.args), *self.kwargs.items()]
        return [(name, value) for name, value in named if torch.is_tensor(value)]

    @property
    def inputs(self) -> Tensor:
        """The first argument, or of those with names the first tensor: what a symmetry moves.

        :raises DataError: if this is no tensor.
        """
        if not self.tensors or (self.args and not torch.is_tensor(self.args[0])):
            raise DataError("Expected the inputs first in data, since the symmetry moves them; the first is no tensor.")
        return self.tensors[0][1]

    def of_inputs(self, model: Callable) -> Callable:
        """The model as a function of its inputs alone."""
        name = self.tensors[0][0]
        return model if name is None else lambda x: model(**{name: x})


def as_arguments(data: Any) -> Arguments:
    """The arguments that ``data`` stands for: a tensor or array, a tuple of arguments, or a dict of them by name.

    :raises DataError: for anything else.
    """
    if isinstance(data, Mapping):
        return Arguments(kwargs=dict(data))
    if isinstance(data, Tensor | np.ndarray):
        return Arguments((torch.as_tensor(data),))
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise DataError(
            f"Expected data to be a tensor, a tuple of the model's arguments or a dict of them by name; got "
            f"{type(data).__name__}. Pass data=() for a model without arguments."
        )
    return Arguments(tuple(data))
