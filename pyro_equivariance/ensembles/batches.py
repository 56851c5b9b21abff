"""Minibatches for many members at once, each member's in its own order, and moved."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from ..errors import DataError, OptionError
from ..guides.base import own_randomness
from ..symmetry import Symmetry, needed


class Batches:
    """Minibatches ``(x, y)`` of shapes ``(m, B, ...)``, or ``(1, B, ...)`` where all members have the same.

    :param data: ``(x, y)``.
    :param batch_size: ``None`` for all data at once.
    :param augmentation: how inputs and outputs move, or ``None``.
    :param str orbit: ``"full"`` or ``"random"``.
    :param str order: ``"own"`` or ``"shared"``.
    :param int seed: of a shared order.
    """

    def __init__(self, data: tuple[Tensor, Tensor], batch_size: int | None, augmentation: Symmetry | None, orbit: str,
                 order: str, seed: int):  # fmt: skip
        self.data, self.count = data, len(data[0])
        self.batch_size = min(batch_size or self.count, self.count)
        self.augmentation, self.orbit, self.order, self.seed = augmentation, orbit, order, seed
        self._is_random = augmentation is not None and orbit == "random"
        self._whole: tuple[Tensor, Tensor] | None = None

    @property
    def images(self) -> int:
        """How many inputs a member sees in one step."""
        full = self.augmentation is not None and not self._is_random
        return self.batch_size * (len(self.augmentation.group) if full else 1)

    def of_epoch(self, sources: Sequence[Generator], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The minibatches of one pass; ``sources`` are the members' own random numbers."""
        if self.batch_size == self.count:
            yield self._all(sources)
            return
        rows = self._orders(sources, epoch)
        for chosen in rows.split(self.batch_size, 1):
            if chosen.shape[1] < self.batch_size:
                return  # it would weigh its data more; the next epoch's order brings them back
            yield self._moved(sources, *(t[chosen] for t in self.data))

    def _all(self, sources) -> tuple[Tensor, Tensor]:
        if self._is_random:
            return self._moved(sources, *(t[None] for t in self.data))
        if self._whole is None:
            self._whole = self._moved(sources, *(t[None] for t in self.data))
        return self._whole

    def _orders(self, sources, epoch: int) -> Tensor:
        """``(m, N)``, or ``(1, N)`` if members share it."""
        if self.order == "shared":
            state = np.random.SeedSequence([self.seed, epoch, 1]).generate_state(1, np.uint32)
            sources = [Generator().manual_seed(int(state[0]))]
        return torch.stack([torch.randperm(self.count, generator=g) for g in sources]).to(self.data[0].device)

    def _moved(self, sources, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Moved by the full orbit, ``(m, |G| B, ...)``, or by an element at random for each member and example."""
        if self.augmentation is None:
            return x, y
        lead = (len(sources) if self._is_random else len(x), x.shape[1])
        flat_x, flat_y = (t.expand(lead[0], *t.shape[1:]).flatten(0, 1) for t in (x, y))
        if self._is_random:
            g = torch.cat([self._elements(source, x.shape[1]) for source in sources]).to(x.device)
            return tuple(t.unflatten(0, lead) for t in self._acted(g, flat_x, flat_y))
        g = self.augmentation.group.elements[:, None].to(x.device)
        copies = (t.unflatten(1, lead) for t in self._acted(g, flat_x, flat_y))
        return tuple(t.transpose(0, 1).flatten(1, 2) for t in copies)

    def _acted(self, g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        moves = self.augmentation.outputs
        numbers = moves is not None and not y.is_floating_point() and y.ndim == 1 + len(moves.event_shape)
        moved = moves.act(g, y) if numbers else self.augmentation.act_outputs(g, y)  # counts are no class labels
        return self.augmentation.act_inputs(g, x), moved

    def _elements(self, source: Generator, count: int) -> Tensor:
        """Uniform elements of the group, from this source of random numbers."""
        group = self.augmentation.group
        if group.is_indexed:
            return torch.randint(len(group), (count,), generator=source)
        with own_randomness(int(torch.randint(2**31, (), generator=source))), torch.no_grad():
            return group.sample((count,))  # a learned measure is taken as it is


def pair_of(data, what: str) -> tuple[Tensor, Tensor]:
    """``(x, y)``, checked.

    :raises DataError: unless they are two tensors of one length, of finite values.
    """
    pair = tuple(data)
    if (
        len(pair) != 2
        or not all(isinstance(t, Tensor) for t in pair)
        or len(pair[0]) != len(pair[1])
        or not len(pair[0])
    ):
        raise DataError(f"Expected {what} to be (x, y), two tensors of one length, not empty.")
    if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in pair):
        raise DataError(f"Expected finite values in {what}; some are NaN or infinite. Clean or drop these rows.")
    return pair


def moves_of(augmentation: Symmetry | None, orbit: str, is_validated: bool) -> Symmetry | None:
    """How the data move, checked: the full orbit, which validation takes too, needs a list of the elements.

    :raises SymmetryError: for what is no symmetry of the inputs.
    :raises OptionError: for the full orbit of a group without a list of its elements.
    """
    if augmentation is None:
        return None
    group = needed(augmentation, smoothing=True).group
    if not group.is_indexed and orbit == "full":
        raise OptionError(f"Expected orbit='random' with {group}, which has no list of its elements; got 'full'.")
    if not group.is_indexed and is_validated:
        raise OptionError(
            f"Expected no validation= with {group}, which has no list of the moved copies it is taken over; got one. "
            f"Leave it out, or augment by a finite subgroup."
        )
    return augmentation
