"""Groups whose elements are matrices: what they share, and the two largest, of all linear and of all affine maps."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..errors import SymmetryError
from .base import positive_int


class MatrixGroup(ABC):
    """A continuous group; elements travel as floating tensors ``(..., size, size)``, batched over the leading axes.

    There is no list of them: what needs one takes a finite group. Immutable values: equal when of one kind and ``n``.

    To implement one:

    - set ``size``, where matrices are larger than the ``n`` coordinates of the points they move;
    - :meth:`_check_elements`, which raises for matrices that are not in the group;
    - :meth:`_inverse`; :meth:`sample` where there is a uniform law; ``way_out``, a finite group to take instead.
    """

    is_finite = is_indexed = False
    is_uniform = False  # whether `sample` draws from the invariant law, so that means over it are invariant
    is_affine = False
    element_dims = 2
    way_out = "a finite group with a list"

    def __init__(self, n: int):
        self.n = positive_int(n, f"the dimension n of {type(self).__name__}")

    @property
    def size(self) -> int:
        """Rows and columns of one element."""
        return self.n + self.is_affine

    @abstractmethod
    def _check_elements(self, g: Tensor) -> None: ...

    @abstractmethod
    def _inverse(self, a: Tensor) -> Tensor: ...

    @abstractmethod
    def sample(self, shape=()) -> Tensor:
        """Independent uniform elements ``(*shape, size, size)``, where there is a uniform law."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.n == other.n

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.n))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n})"

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise SymmetryError(
            f"Expected a finite group; {self} is continuous and has no list of elements. Use {self.way_out}."
        )

    @property
    def order(self) -> int:
        """There is none, nor are there ``elements``, ``generators``, ``names``, a ``table`` or ``transversals``.

        :raises SymmetryError: always, as ``len`` does.
        """
        return len(self)

    elements = generators = names = table = transversals = order

    @property
    def identity(self) -> Tensor:
        """The unit matrix, float64."""
        return torch.eye(self.size, dtype=torch.float64)

    def compose(self, a: Tensor, b: Tensor) -> Tensor:
        """The product ``ab`` (first ``b``, then ``a``), of the broadcast shape.

        :raises SymmetryError: if a matrix is not in the group.
        """
        a, b = self.as_elements(a), self.as_elements(b)
        dtype = torch.promote_types(a.dtype, b.dtype)
        return a.to(dtype) @ b.to(dtype)

    def inverse(self, a: Tensor) -> Tensor:
        """The inverse of each element, of the same shape."""
        return self._inverse(self.as_elements(a))

    def as_elements(self, g: Tensor) -> Tensor:
        """``g`` as a floating tensor, checked to consist of matrices of the group.

        :raises SymmetryError: for another shape, or a matrix that is not in the group.
        """
        g = torch.as_tensor(g)
        if g.shape[-2:] != (self.size, self.size):
            raise SymmetryError(
                f"Expected elements of {self} as matrices (..., {self.size}, {self.size}); got shape {tuple(g.shape)}."
            )
        g = g if g.is_floating_point() else g.double()
        if g.numel() and not torch.compiler.is_compiling():
            self._check_elements(g.detach())
        return g


class GeneralLinear(MatrixGroup):
    """All invertible linear maps of ``R^n``, each a matrix ``(n, n)``: turns, scalings, shears, boosts.

    There is no uniform law on so large a group: a :class:`~pyro_equivariance.measures.Measure` on it has one of its
    own, such as :class:`~pyro_equivariance.LieBox` or the learned :class:`~pyro_equivariance.LieAugmenter`.

    :param int n: the dimension.

    >>> import torch, pyro_equivariance as pe
    >>> pe.vector(pe.GeneralLinear(2)).act(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0])).tolist()
    [2.0, 2.0]
    """

    way_out = "a measure on it, such as pe.LieBox, and a list of some of its elements, symmetry.listed(16)"

    def _check_elements(self, g: Tensor) -> None:
        if not bool(g.isfinite().all()) or not bool(torch.linalg.slogdet(g).logabsdet.isfinite().all()):
            raise SymmetryError(f"Expected elements of {self}: invertible, finite matrices; got one that is not.")

    def _inverse(self, a: Tensor) -> Tensor:
        return torch.linalg.inv(a)

    def sample(self, shape=()) -> Tensor:
        """There is no uniform law.

        :raises SymmetryError: always.
        """
        raise SymmetryError(
            f"Expected a measure to draw from: {self} has no uniform law. Use pe.LieBox(generators, widths), or a "
            f"learned measure such as pe.LieAugmenter({self.n})."
        )


class Affine(GeneralLinear):
    """All invertible affine maps ``p ↦ L p + b`` of ``R^n``, in homogeneous coordinates: ``(L b; 0 1)``.

    :param int n: the dimension of the points; elements are ``(n + 1, n + 1)``, their last row ``0, …, 0, 1``.

    >>> import torch, pyro_equivariance as pe
    >>> shift = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0], [0.0, 0.0, 1.0]])
    >>> pe.vector(pe.Affine(2)).act(shift, torch.tensor([1.0, 1.0])).tolist()
    [4.0, 5.0]
    """

    is_affine = True

    def _check_elements(self, g: Tensor) -> None:
        super()._check_elements(g)
        if not torch.allclose(g[..., -1, :], self.identity[-1].to(g), atol=torch.finfo(g.dtype).eps ** 0.5):
            raise SymmetryError(f"Expected elements of {self}, homogeneous with the last row 0, …, 0, 1; got another.")


def matrix_group(group) -> MatrixGroup | None:
    """The matrix group that a group is or that a measure is on; ``None`` for others."""
    group = getattr(group, "group", group)
    return group if isinstance(group, MatrixGroup) else None
