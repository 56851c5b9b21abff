"""What a search for generators returns: the singular values, where they are cut, and a basis that can be read."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import OptionError
from ..generators import Generators

SMALLEST_GAP = 3.0


@dataclass(frozen=True, eq=False)
class DiscoveredGenerators:
    """What :func:`discover_generators` returns; ``K`` matrices were compared, of size ``m``: n, or n + 1 if ``affine``.

    ``dimension`` is k, the number of generators; ``singular_values`` ``(K,)`` ascend; ``directions`` ``(K, m, m)`` are
    their matrices and ``responses`` ``(K, p, p)`` the ``A_Y`` of each, where it was sought. ``rank`` is the number of
    directions in which the inputs extend, of n. ``replicates`` ``(B, K)`` are the singular values without each of ``B``
    parts of the inputs, ``overlaps`` ``(B, K, K)`` the cosines between the directions found so and all of them, in the
    coordinates in which the inputs have second moment 1. ``floor`` is below which singular values are rounding.
    """

    dimension: int
    singular_values: Tensor
    directions: Tensor
    responses: Tensor | None
    rank: int
    affine: bool
    replicates: Tensor
    overlaps: Tensor
    floor: float

    @property
    def gap(self) -> float:
        """``σ_{k+1} / σ_k``, with ``σ_{K+1} = 1``; NaN for k = 0."""
        return float(self._gaps(self.singular_values)[self.dimension])

    @property
    def gap_se(self) -> float:
        """The standard error of the gap over inputs, for f as it is: the jackknife over parts of them."""
        gaps = self._gaps(self.replicates)[:, self.dimension]
        return float((gaps - gaps.mean()).norm() * math.sqrt(1 - 1 / len(gaps)))

    @property
    def angle_se(self) -> float:
        """The same of the span, in degrees: the jackknife's error of the largest principal angle."""
        k, parts = self.dimension, len(self.overlaps)
        if k in (0, len(self.singular_values)):
            return 0.0
        sines = torch.linalg.matrix_norm(self.overlaps[:, :k, k:], ord=2).clamp_max(1)
        return float(sines.asin().rad2deg().norm() * math.sqrt(1 - 1 / parts))

    @property
    def generators(self) -> Generators | None:
        """A basis of the symmetry in which most entries are 0; None if there is none."""
        if not self.dimension:
            return None
        found = self.directions[: self.dimension]
        return Generators(torch.einsum("ck,kij->cij", reducing(found), found), affine=self.affine)

    @property
    def outputs(self) -> Tensor | None:
        """``A_Y`` of each of the generators, ``(k, p, p)``, for ``outputs="linear"``."""
        if self.responses is None:
            return None
        k = self.dimension
        return torch.einsum("ck,kij->cij", reducing(self.directions[:k]), self.responses[:k])

    def at(self, dimension: int) -> "DiscoveredGenerators":
        """The same singular values, cut elsewhere.

        :raises OptionError: for a dimension that is not between 0 and their number.
        """
        if not 0 <= dimension <= len(self.singular_values):
            raise OptionError(f"Expected a dimension in 0..{len(self.singular_values)}; got {dimension}.")
        return replace(self, dimension=dimension)

    def _gaps(self, values: Tensor) -> Tensor:
        """The ratios for every cut k = 0..K, ``(..., K + 1)``."""
        return gaps(values, self.floor)

    def __str__(self) -> str:
        total, n = len(self.singular_values), self.directions.shape[-1] - self.affine
        lines = [f"no symmetry among {total} matrices"]
        if self.dimension:
            spread = f"gap {self.gap:.3g} ± {self.gap_se:.2g}, span ± {self.angle_se:.2g}°"
            lines = [f"{self.dimension} generators among {total} matrices, {spread}"]
        if self.rank < n:
            lines.append(f"the inputs extend in {self.rank} of {n} directions; of the others nothing is said")
        lines.append(f"{'k':>3} {'value':>9} {'ratio':>9}")
        ratios = self._gaps(self.singular_values).tolist()[1:]
        for k, (value, ratio) in enumerate(zip(self.singular_values.tolist(), ratios, strict=True), 1):
            lines.append(f"{k:>3} {value:>9.2g} {ratio:>9.3g}" + (" <" if k == self.dimension else ""))
        return "\n".join(lines + ([str(self.generators)] if self.dimension else []))


def gaps(values: Tensor, floor: float) -> Tensor:
    """``σ_{k+1} / σ_k`` for k = 0..K, ascending on the last axis, with ``σ_{K+1} = 1``; NaN for k = 0.

    >>> gaps(torch.tensor([0.01, 0.5]), 1e-9)
    tensor([nan, 50.,  2.])
    """
    values = values.clamp_min(floor)
    ends = values.new_ones(*values.shape[:-1], 1)
    return torch.cat([math.nan * ends, values[..., 1:] / values[..., :-1], ends / values[..., -1:]], -1)


def cut(values: Tensor, tolerance: float, floor: float) -> int:
    """The number of singular values, ascending, that belong to a symmetry.

    >>> cut(torch.tensor([0.01, 0.5]), 0.1, 1e-9), cut(torch.tensor([0.2, 0.5]), 0.1, 1e-9)
    (1, 0)
    """
    ratios = gaps(values, floor)[1:].where(values <= tolerance, 0.0)
    best = int(ratios.argmax())
    return best + 1 if float(ratios[best]) >= SMALLEST_GAP else 0


def reducing(matrices: Tensor) -> Tensor:
    """How to mix matrices ``(k, m, m)`` so that each has an entry 1 where the others have 0: ``(k, k)``.

    Gauss elimination with the largest entry as pivot, one below the diagonal if it is as large.

    >>> turn, grow = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double(), torch.eye(2).double()
    >>> mixed = torch.stack([turn + grow, turn - 2 * grow])
    >>> (torch.einsum("ck,kij->cij", reducing(mixed), mixed).round(decimals=6) + 0.0).tolist()
    [[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]]]
    """
    count, entries = len(matrices), matrices[0].numel()
    lengths = matrices.flatten(1).norm(dim=1)[:, None]
    rows = torch.cat([matrices.flatten(1), torch.eye(count).to(matrices)], 1) / lengths
    favour = (1 + 0.1 * torch.ones_like(matrices[0]).tril(-1)).flatten()
    pivots: dict[int, int] = {}
    for _ in range(count):
        sizes = rows[:, :entries].abs() * favour
        sizes[list(pivots)] = 0
        row, column = divmod(int(sizes.argmax()), entries)
        rows[row] = rows[row] / rows[row, column]
        others = [i for i in range(count) if i != row]
        rows[others] = rows[others] - rows[others, column, None] * rows[row]
        pivots[row] = column
    return rows[sorted(pivots, key=pivots.__getitem__), entries:]
