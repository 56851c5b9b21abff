"""Orbit expansion of one parameter: the moved copies of a small tensor, arranged as blocks of a large one."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import OptionError, check_option
from ..groups import Group
from ..representations import Representation
from .base import is_abelian

ARRANGEMENTS = ("free", "gcnn", "row_rolled", "row_constant", "diagonal")


@dataclass(frozen=True)
class SiteExpansion:
    """How the parameter of a small layer becomes that of the layer with ``|G|`` times the channels.

    With ``ρ`` the action on the small parameter, the blocks are

    - first layer (only the outputs are hidden): ``ρ(g) φ``, and so the bias of every hidden layer;
    - hidden layer, block ``(g, h)``, times ``1/√|G|``: ``ρ(g) V_{g⁻¹h}`` for ``free``, with ``V_k = ρ(k)⁻¹ φ`` for
      ``gcnn``; ``ρ(g h⁻¹) φ`` for ``row_rolled``, whose features in layer ``l`` are moved by ``g^l`` (abelian groups);
      ``ρ(h⁻¹) φ`` for ``row_constant`` (not equivariant: a negative control); for ``diagonal`` ``δ_gh ρ(g) φ``,
      without the factor: the large network then is the mean of the small one over the orbit;
    - last layer (only the inputs are hidden): ``ρ(h) φ``, times ``1/|G|``, for ``free`` ``1/√|G|``;
    - its bias (neither): the orbit mean of ``φ``, which is ``φ`` itself where the outputs are invariant.

    :param Representation rep: the action on the small parameter.
    :param bool inputs: whether the layer's input channels are repeated.
    :param bool outputs: whether its output channels are.
    :param str arrangement: ``"free"``, ``"gcnn"``, ``"row_rolled"``, ``"diagonal"`` or ``"row_constant"``.
    :raises OptionError: for another arrangement, or ``row_rolled`` under a group that is not abelian.

    Source: Dong, Flinth, Gerken (2026), arXiv:2606.26273; ``free`` spans all group convolutions.
    """

    rep: Representation
    inputs: bool
    outputs: bool
    arrangement: str

    def __post_init__(self):
        check_option("arrangement", self.arrangement, ARRANGEMENTS)
        if self.arrangement == "row_rolled" and not is_abelian(self.rep.group):
            raise OptionError(
                f"Expected an abelian group for arrangement='row_rolled': under {self.rep.group} it is not "
                f"equivariant. Use 'free' or 'gcnn'."
            )

    @property
    def is_equivariant(self) -> bool:
        """Whether the expanded tensor is fixed by the expanded action for every small tensor."""
        return not (self.inputs and self.outputs and self.arrangement == "row_constant")

    @property
    def base_shape(self) -> torch.Size:
        """The shape of what is expanded: the small parameter's, with a leading ``|G|`` for a free hidden layer."""
        order = (len(self.rep.group),) if self._has_free_kernels else ()
        return torch.Size(order) + self.rep.event_shape

    @property
    def _has_free_kernels(self) -> bool:
        return self.inputs and self.outputs and self.arrangement == "free"

    def start(self, small: Tensor) -> Tensor:
        """The base from which the expansion of a small tensor starts: itself, or ``V_k = ρ(k)⁻¹ small``."""
        return _moved_back(self.rep, small) if self._has_free_kernels else small

    def start_scale(self, small: Tensor) -> Tensor:
        """Likewise for a scale, which moves with ``|ρ|``."""
        return self._of_scales().start(small)

    def fresh(self, small: Tensor, large: Tensor) -> Tensor:
        """A base without the structure that :meth:`start` gives free kernels: those of the large tensor's first row."""
        if not self._has_free_kernels:
            return small
        order = len(self.rep.group)
        first_row = large.narrow(0, 0, self.rep.event_shape[0]) * order**0.5
        return torch.stack(first_row.chunk(order, 1))

    def expand(self, base: Tensor) -> Tensor:
        """The large tensor ``(..., |G|·out, |G|·in, ...)`` from the base ``(..., *base_shape)``."""
        order, rep = len(self.rep.group), self.rep
        if not self.inputs:
            return _join(rep.orbit(base), self._axis(0)) if self.outputs else rep.mean(base)
        if not self.outputs:
            return _join(rep.orbit(base), self._axis(1)) * order ** (-0.5 if self.arrangement == "free" else -1)
        if self.arrangement == "diagonal":
            return self._block_diagonal(rep.orbit(base))
        if self.arrangement == "row_constant":
            row = _join(_moved_back(rep, base).movedim(-self._events - 1, 0), self._axis(1))
            return torch.cat([row] * order, self._axis(0)) / order**0.5
        kernels = base if self.arrangement == "free" else _moved_back(rep, base)
        rows = self._rolled_row if self.arrangement == "row_rolled" else self._row
        return torch.cat([rows(kernels, g) for g in range(order)], self._axis(0)) / order**0.5

    def expand_scale(self, base: Tensor) -> Tensor:
        """The large tensor of scales: the same blocks, moved with ``|ρ|``."""
        return self._of_scales().expand(base)

    def _row(self, kernels: Tensor, g: int) -> Tensor:
        """The blocks ``ρ(g) V_{g⁻¹h}`` for all ``h``, side by side along the input axis."""
        order = _quotients(self.rep.group)[g].to(kernels.device)
        moved = self.rep._act(g, kernels.index_select(-self._events - 1, order))
        return _join(moved.movedim(-self._events - 1, 0), self._axis(1))

    def _rolled_row(self, kernels: Tensor, g: int) -> Tensor:
        """The blocks ``ρ(g h⁻¹) φ = ρ(k)⁻¹ φ`` with ``k = h g⁻¹``, which is ``g⁻¹h`` where elements commute."""
        order = _quotients(self.rep.group)[g].to(kernels.device)
        moved = kernels.index_select(-self._events - 1, order)
        return _join(moved.movedim(-self._events - 1, 0), self._axis(1))

    def _block_diagonal(self, blocks: Tensor) -> Tensor:
        empty = torch.zeros_like(blocks[0])
        rows = [
            torch.cat([block if h == g else empty for h in range(len(blocks))], self._axis(1))
            for g, block in enumerate(blocks)
        ]
        return torch.cat(rows, self._axis(0))

    def _of_scales(self) -> "SiteExpansion":
        return SiteExpansion(self.rep.modulus(), self.inputs, self.outputs, self.arrangement)

    @property
    def _events(self) -> int:
        return len(self.rep.event_shape)

    def _axis(self, i: int) -> int:
        return i - self._events


@lru_cache(maxsize=32)
def _quotients(group: Group) -> Tensor:
    """``g⁻¹h`` for all ``g`` (rows) and ``h``."""
    return group.compose(group.inverse(group.elements)[:, None], group.elements)


def _moved_back(rep: Representation, x: Tensor) -> Tensor:
    """``ρ(k)⁻¹ x`` for every ``k``, along an axis just before the event."""
    inverses = rep.group.inverse(rep.group.elements).tolist()
    return torch.stack([rep._act(k, x) for k in inverses], -len(rep.event_shape) - 1)


def _join(blocks: Tensor, axis: int) -> Tensor:
    """The blocks along the first axis, concatenated along ``axis``."""
    return torch.cat(blocks.unbind(0), axis)
