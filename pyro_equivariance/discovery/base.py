"""What a search for generators returns: the singular values, where they are cut, and a basis that can be read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import OptionError
from ..generators import Generators

SMALLEST_GAP = 3.0
NARROW = 1e-4  # of the widest direction of the inputs: less is said in the table


@dataclass(frozen=True, eq=False, repr=False)
class DiscoveredGenerators:
    """What :func:`discover_generators` returns; ``K`` matrices were compared, of size ``m``: n, or n + 1 if ``affine``.

    ``dimension`` is k, the number of generators; ``singular_values`` ``(K,)`` ascend; ``directions`` ``(K, m, m)`` are
    their matrices and ``responses`` ``(K, p, p)`` the ``A_Y`` of each, where it was sought. ``rank`` is the number of
    directions in which the inputs extend, of n, and ``extent`` the narrowest's share of the widest, each coordinate in
    units of its root mean square. ``replicates`` ``(B, K)`` and ``replicate_directions`` ``(B, K, m, m)`` are what is
    found without each of ``B`` parts of the inputs. ``withdrawn`` is a larger dimension that all inputs show and
    one of these does not, 0 if there is none. ``floor`` is below which singular values are rounding.
    """

    dimension: int
    singular_values: Tensor
    directions: Tensor
    responses: Tensor | None
    rank: int
    extent: float
    affine: bool
    replicates: Tensor
    replicate_directions: Tensor
    withdrawn: int
    floor: float

    @property
    def gap(self) -> float:
        """``σ_{k+1} / σ_k``, with ``σ_{K+1} = 1``; NaN for k = 0. Values below ``floor`` count as that."""
        return float(self._gaps(self.singular_values)[self.dimension])

    @property
    def gap_se(self) -> float:
        """The standard error of the gap over inputs, for f as it is: the jackknife over parts of them."""
        gaps = self._gaps(self.replicates)[:, self.dimension]
        return float((gaps - gaps.mean()).norm() * math.sqrt(1 - 1 / len(gaps)))

    @property
    def angle_se(self) -> float:
        """The same of the span, in degrees: the jackknife's error of :meth:`pyro_equivariance.Generators.angle`."""
        k, parts = self.dimension, len(self.replicates)
        if k in (0, len(self.singular_values)):
            return 0.0
        span, others = _orthonormal(self.directions[:k]), _orthonormal(self.replicate_directions[:, :k])
        sines = torch.linalg.matrix_norm(others - span @ (span.mT @ others), ord=2).clamp_max(1)
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

        :raises OptionError: for a dimension that is not a whole number between 0 and their number.
        """
        whole = isinstance(dimension, int) and not isinstance(dimension, bool)
        if not whole or not 0 <= dimension <= len(self.singular_values):
            raise OptionError(f"Expected a dimension in 0..{len(self.singular_values)}; got {dimension!r}.")
        return replace(self, dimension=dimension)

    def _gaps(self, values: Tensor) -> Tensor:
        """The ratios for every cut k = 0..K, ``(..., K + 1)``."""
        return gaps(values, self.floor)

    def __repr__(self) -> str:
        gap = f", {self._said_gap()}" if self.dimension else ""
        return f"DiscoveredGenerators({self.dimension} of {len(self.singular_values)}{gap})"

    def _said_gap(self) -> str:
        """The gap and its error; of one that only rounding ends, what it is above."""
        if float(self.singular_values[self.dimension - 1]) < self.floor:
            return f"gap > {self.gap:.0e} (rounding)"
        return f"gap {self.gap:.3g} ± {self.gap_se:.2g}"

    def _remarks(self) -> Iterator[str]:
        n = self.directions.shape[-1] - self.affine
        if self.withdrawn:
            yield f"a cut at k = {self.withdrawn} is withdrawn: its gap rests on few inputs"
        if self.rank < n:
            yield f"the inputs extend in {self.rank} of {n} directions; of the others nothing is said"
        if self.extent < NARROW:
            yield f"in one direction the inputs extend {self.extent:.0e} of the widest: what is said of it may be noise"
        usual = float(self.singular_values.square().mean().sqrt())
        if abs(usual - 1) > 0.01:
            yield f"a matrix at random has {usual:.2g}"

    def __str__(self) -> str:
        total = len(self.singular_values)
        lines = [f"no symmetry among {total} matrices"]
        if self.dimension:
            lines = [f"{self.dimension} of {total} matrices, {self._said_gap()}, span ± {self.angle_se:.2g}°"]
        lines.extend(self._remarks())
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
    """The number of singular values ``(B, K)``, ascending, that belong to a symmetry by every row.

    >>> cut(torch.tensor([[0.01, 0.5]]), 0.1, 1e-9), cut(torch.tensor([[0.01, 0.5], [0.2, 0.5]]), 0.1, 1e-9)
    (1, 0)
    """
    ends = (values <= tolerance) & (gaps(values, floor)[:, 1:] >= SMALLEST_GAP)
    return max(ends.all(0).nonzero().flatten().tolist(), default=-1) + 1


def _orthonormal(matrices: Tensor) -> Tensor:
    """An orthonormal basis of the span of matrices ``(..., k, m, m)``, in columns: ``(..., m m, k)``."""
    flat = matrices.flatten(-2).mT
    return torch.linalg.qr(flat / flat.norm(dim=-2, keepdim=True))[0]


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
