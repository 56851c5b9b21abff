"""Large groups of permutations: which axes of a site hold the things that are permuted, and assignments of them."""

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ..errors import SymmetryError
from ..groups import Group, SignedPermutationGroup, SymmetricGroup, YoungSubgroup
from ..groups.permutations import rank
from ..representations import Product, Representation, Trivial

Axis = tuple[int, int, bool]  # a block of things, the axis of an event it is on, whether signs act there

SWEEPS = 100


class Things:
    """What a group permutes: blocks of things, with signs or without.

    :param Group group: symmetric, signed permutations, or a Young subgroup.
    :raises SymmetryError: for another group.
    """

    def __init__(self, group: Group):
        if not isinstance(group, (SymmetricGroup, SignedPermutationGroup, YoungSubgroup)):
            raise SymmetryError(
                f"Expected a group of permutations, or one small enough to try all of its elements; got {group} of "
                f"order {group.order}."
            )
        self.group, sizes = group, group.sizes if isinstance(group, YoungSubgroup) else (group.n,)
        self.blocks = [slice(end - n, end) for n, end in zip(sizes, accumulate(sizes), strict=True)]

    def elements(self, places: Tensor, signs: Tensor) -> Tensor:
        """The elements that give thing ``i`` the sign ``signs[..., i]`` and send it to ``places[..., i]``."""
        if isinstance(self.group, SymmetricGroup):
            return rank(places)
        return self.group.join(places, signs) if isinstance(self.group, SignedPermutationGroup) else places

    def axes(self, rep: Representation) -> list[Axis]:
        """The axes of an event (from the right) along which a block of things is permuted.

        :raises SymmetryError: for an action of another kind.
        """
        found, axis = [], 0
        for factor in reversed(list(_factors(rep))):
            if not isinstance(factor, Trivial):
                found.append((*self._block(factor), axis - 1))
            axis -= len(factor.event_shape)
        return [(block, axis, signed) for block, signed, axis in found]

    def _block(self, rep: Representation) -> tuple[int, bool]:
        n = rep.event_shape.numel()
        things = torch.arange(1.0, n + 1)
        for b, block in enumerate(self.blocks):
            if len(rep.event_shape) != 1 or block.stop - block.start != n:
                continue
            turned = torch.arange(self.blocks[-1].stop)
            turned[block] = turned[block].roll(1)
            g = self.elements(turned, -torch.ones_like(turned))
            (places, signs), moved = self._split(g), rep.act(g, things)
            there, own = places[block] - block.start, signs[block]
            if torch.equal(moved[there], things):
                return b, False
            if torch.equal(moved[there], things * own):
                return b, True
        raise SymmetryError(f"Expected things permuted along one axis each by {self.group}, to be assigned; got {rep}.")

    def _split(self, g: Tensor) -> tuple[Tensor, Tensor]:
        places = self.group.permutations(g)
        signs = self.group.signs(g) if isinstance(self.group, SignedPermutationGroup) else torch.ones_like(places)
        return places, signs

    def assign(self, values: dict[str, np.ndarray], aims: dict[str, np.ndarray], axes: dict[str, list[Axis]]):
        """Places and signs of the things that make ``Σ_sites ⟨ρ(g) θ, aim⟩`` large, block after block.

        With one block on one axis of each site it is the largest. ``values`` and ``aims`` are arrays of one shape.
        """
        from scipy.optimize import linear_sum_assignment

        total = self.blocks[-1].stop
        sources, signs = np.arange(total), np.ones(total)  # of each place
        best, placed = -np.inf, set()
        for _ in range(SWEEPS):
            before = best
            for b, block in enumerate(self.blocks):
                plain, signed = self._gains(b, values, aims, axes, sources, signs, placed)
                rows, columns = linear_sum_assignment(-(plain + np.abs(signed)))
                trial, flips = sources.copy(), signs.copy()
                trial[block][columns] = rows + block.start
                flips[block][columns] = np.where(signed[rows, columns] < 0, -1.0, 1.0)
                placed.add(b)
                gain = sum((self._moved(values[n], axes[n], trial, flips) * aims[n]).sum() for n in values)
                if gain > best + 1e-12 * abs(best) or best == -np.inf:
                    best, sources, signs = gain, trial, flips
            if not best > before + 1e-9 * abs(before):
                break
        places = np.argsort(sources)
        return places, signs[places].astype(np.int64)

    def _gains(self, block: int, values, aims, axes, sources, signs, placed) -> tuple[np.ndarray, np.ndarray]:
        """What sending thing ``i`` of a block to place ``j`` gains, without a sign and times its sign.

        In the first sweep sites count along which all other blocks were placed before.
        """
        n = self.blocks[block].stop - self.blocks[block].start
        plain, signed = np.zeros((n, n)), np.zeros((n, n))
        for name, value in values.items():
            for own in [axis for axis in axes[name] if axis[0] == block]:
                others = [axis for axis in axes[name] if axis is not own]
                if len(placed) < len(self.blocks) and any(axis[0] not in placed for axis in others):
                    continue
                rows = np.moveaxis(self._moved(value, others, sources, signs), own[1], 0).reshape(n, -1)
                gains = rows @ np.moveaxis(aims[name], own[1], 0).reshape(n, -1).T
                if own[2]:
                    signed += gains
                else:
                    plain += gains
        return plain, signed

    def _moved(self, value: np.ndarray, axes: list[Axis], sources: np.ndarray, signs: np.ndarray) -> np.ndarray:
        for block, axis, signed in axes:
            own = self.blocks[block]
            value = np.take(value, sources[own] - own.start, axis)
            if signed:
                value = value * signs[own].reshape(-1, *[1] * (-1 - axis))
        return value


def lexicographic_places(rows: Tensor) -> Tensor:
    """Where each row ``(..., n, m)`` comes in lexicographic order: ``(..., n)``."""
    order = torch.arange(rows.shape[-2]).expand(rows.shape[:-1])
    for column in range(rows.shape[-1] - 1, -1, -1):
        keys = rows[..., column].gather(-1, order)
        order = order.gather(-1, keys.sort(dim=-1, stable=True).indices)
    return order.argsort(-1)


def _factors(rep: Representation):
    if isinstance(rep, Product):
        yield from _factors(rep.left)
        yield from _factors(rep.right)
    else:
        yield rep
