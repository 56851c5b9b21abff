"""Laws on groups: what to draw elements from where a group has no uniform law, or where another one is wanted."""

import itertools
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor, nn

from .errors import SymmetryError
from .generators import Generators, exponential
from .groups.matrices import Affine, GeneralLinear, MatrixGroup

_NUMBERS = itertools.count(1)
MAX_CHECKED_WIDTH = 20.0  # beyond it, exp(w A) leaves the range of single precision


class Measure(ABC):
    """A group together with a law on it: it goes wherever a continuous group goes, and :meth:`sample` draws from it.

    A mean over it, ``f̄(x) = ∫ ρ_Y(g)⁻¹ f(ρ_X(g) x) dμ(g)``, only smooths: it is not invariant, as that over the uniform
    law of a group is. So whatever promises invariance refuses a measure; augmentation, orbit mixtures and, over a list
    of its elements (:meth:`~pyro_equivariance.Symmetry.listed`), averages, predictions and metrics take it.

    To implement one: set ``group``, a :class:`~pyro_equivariance.groups.MatrixGroup`, and :meth:`sample`.
    """

    is_finite = is_indexed = False
    is_uniform = False

    group: MatrixGroup

    @abstractmethod
    def sample(self, shape=()) -> Tensor:
        """Independent elements of the law, of the given shape (and then those of one element)."""

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise SymmetryError(
            f"Expected a finite group; {self} is a law and has no list of elements. Draw one: symmetry.listed(16)."
        )

    @property
    def order(self) -> int:
        """There is none, nor are there ``elements``, ``names``, a ``table`` or ``transversals``.

        :raises SymmetryError: always, as ``len`` does.
        """
        return len(self)

    elements = names = table = transversals = order

    @property
    def element_dims(self) -> int:
        """Axes of one element."""
        return self.group.element_dims

    @property
    def identity(self) -> Tensor:
        """The element that moves nothing."""
        return self.group.identity

    def compose(self, a: Tensor, b: Tensor) -> Tensor:
        """The product ``ab`` in the group."""
        return self.group.compose(a, b)

    def inverse(self, a: Tensor) -> Tensor:
        """The inverse of each element in the group."""
        return self.group.inverse(a)

    def as_elements(self, g: Tensor) -> Tensor:
        """``g``, checked to consist of elements of the group."""
        return self.group.as_elements(g)


class LieBox(Measure):
    r"""The law of ``g = exp(Σ_i w_i A_i)`` with independent ``w_i`` uniform on ``[−γ_i, γ_i]``.

    It is symmetric: ``g`` and ``g⁻¹`` are equally likely. A width of 0 leaves its generator out. For the rotation of
    the plane ``γ = π`` is the uniform law; for rotations that do not commute no widths are
    (:class:`~pyro_equivariance.SpecialOrthogonal` has it), and scalings, boosts and translations have none.

    :param Generators generators: the matrices, used as they are (see :meth:`Generators.normalised`).
    :param widths: ``γ``, one number or one for each generator, in the unit of the coefficients: radians for a
        rotation, units of the points for a translation, the logarithm of the factor for a scaling.
    :raises SymmetryError: for widths that are negative, not finite, above 20, or not one for each generator.

    >>> import math, torch, pyro_equivariance as pe
    >>> law = pe.LieBox(pe.Generators.so(2), math.pi / 6)
    >>> law.sample((5, 3)).shape
    torch.Size([5, 3, 2, 2])
    >>> law
    LieBox(rotate 1-2 ± 0.5236)
    """

    def __init__(self, generators: Generators, widths):
        if not isinstance(generators, Generators) or widths is None:
            got = type(generators).__name__ if widths is not None else None
            raise SymmetryError(f"Expected pe.Generators and their widths; got {got}. Use pe.Generators(matrices).")
        widths = torch.as_tensor(widths).detach().cpu().to(torch.float64)
        if widths.ndim > 1 or (widths.ndim == 1 and len(widths) != len(generators)):
            raise SymmetryError(
                f"Expected one width, or one for each of the {len(generators)} generators; got shape "
                f"{tuple(widths.shape)}."
            )
        if not bool(((widths >= 0) & (widths <= MAX_CHECKED_WIDTH)).all()):
            raise SymmetryError(f"Expected widths between 0 and {MAX_CHECKED_WIDTH:g}; got {widths.tolist()}.")
        self.generators, self.widths = generators, widths.expand(len(generators)).clone()
        self.group = Affine(generators.n) if generators.affine else GeneralLinear(generators.n)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return (self.generators, tuple(self.widths.tolist()))

    def __repr__(self) -> str:
        return f"LieBox({described(self.generators.names, self.widths)})"

    def sample(self, shape=()) -> Tensor:
        """Independent elements ``(*shape, m, m)``, float64."""
        return box_sample(self.generators.basis, self.widths, shape)


class LearnedMeasure(nn.Module, Measure):
    r"""A law ``g = exp(Σ_i w_i A_i)``, ``w_i`` uniform on ``[−γ_i, γ_i]``, with generators or widths that are learned.

    It is a torch module: what it learns are its parameters, through which :meth:`sample` is differentiable. In a model
    under :func:`~pyro_equivariance.handlers.augment` they are learned with the guide.

    Copies, and what was pickled, learn by themselves. :func:`~pyro_equivariance.save` keeps what is learned with a
    guide that was made on the augmented model; ``state_dict()`` has it too.

    To implement one: call ``__init__`` with the group, and set :meth:`basis`, :meth:`spread` and ``names``; where
    the parameters have a prior, :meth:`log_prior`.
    """

    names: tuple[str, ...] = ()  # of the generators

    def __init__(self, group: MatrixGroup):
        super().__init__()
        self.group = group
        self.param_name = self._new_name()

    def _new_name(self) -> str:
        """Parameters share one store, by name."""
        return f"{type(self).__name__}_{next(_NUMBERS)}"

    def __getstate__(self) -> dict:
        """Without what Pyro hangs on parameters that it has trained, which cannot be pickled."""
        own = {n: nn.Parameter(p.detach().clone(), p.requires_grad) for n, p in self._parameters.items()}
        return {**self.__dict__, "_parameters": own}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.param_name = self._new_name()

    @abstractmethod
    def basis(self) -> Tensor:
        """The matrices ``A``, shape ``(C, m, m)``, as they are now, differentiable."""

    @abstractmethod
    def spread(self) -> Tensor:
        """The widths ``γ``, shape ``(C,)``, as they are now, differentiable."""

    def log_prior(self) -> Tensor:
        """The log density of a prior on what is learned, up to a constant, in nats: 0 if there is none."""
        return torch.zeros(())

    def sample(self, shape=()) -> Tensor:
        """Independent elements ``(*shape, m, m)``, differentiable in what is learned."""
        return box_sample(self.basis(), self.spread(), shape)

    @property
    def generators(self) -> Generators:
        """The matrices as they are now, to print, to plot and to compare."""
        return Generators.as_learned(self.basis(), self.names, self.group.is_affine)

    @property
    def widths(self) -> dict[str, float]:
        """The width of each generator as it is now."""
        return dict(zip(self.names, self.spread().detach().tolist(), strict=True))

    def fixed(self) -> LieBox:
        """The law as it is now, learning no more."""
        return LieBox(self.generators, self.spread().detach())

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = nn.Module.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({described(self.names, self.spread().detach())})"

    def __format__(self, spec: str) -> str:
        return repr(self)  # within a message; print may show more


class ElementList:
    """Elements drawn from a law once: a list, numbered like a finite group, that stands for the law in sums.

    With it predictions, metrics and averages over a continuous law are sums over the same few elements every time. It
    is *no group*: products of its elements are not in it, and means over it only smooth. What needs a group refuses it.
    Indices from ``len(list)`` on are the elements' inverses, which is all that sums over moved copies need.

    :param law: the group or measure that they are of.
    :param Tensor drawn: the elements ``(K, ...)``, for metrics the identity first.
    :raises SymmetryError: for what are no elements of the law, or none.

    >>> import torch, pyro_equivariance as pe
    >>> law = pe.LieBox(pe.Generators.so(2), 3.1)
    >>> symmetry = pe.Symmetry(law, {}, inputs=pe.vector(law)).listed(8)
    >>> symmetry.group
    ElementList(9 elements of LieBox(rotate 1-2 ± 3.1))
    >>> symmetry.inputs.orbit(torch.zeros(5, 2)).shape
    torch.Size([9, 5, 2])
    """

    is_finite = is_indexed = True
    is_uniform = False
    element_dims = 0

    def __init__(self, law, drawn: Tensor):
        drawn = law.as_elements(drawn.detach())
        if drawn.ndim != 1 + law.element_dims or not len(drawn):
            raise SymmetryError(f"Expected a list of elements of {law}; got shape {tuple(drawn.shape)}.")
        self.law, self.drawn, self.order = law, drawn, len(drawn)

    def __len__(self) -> int:
        return self.order

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.law == other.law and torch.equal(self.drawn, other.drawn)

    def __hash__(self) -> int:
        return hash((self.law, self.order))

    def __repr__(self) -> str:
        return f"ElementList({self.order} elements of {self.law})"

    @cached_property
    def both(self) -> Tensor:
        """The elements and then their inverses, ``(2K, ...)``."""
        return torch.cat([self.drawn, self.law.inverse(self.drawn)])

    @property
    def elements(self) -> Tensor:
        """Their numbers, ``(K,)``."""
        return torch.arange(self.order)

    @property
    def names(self) -> tuple[str, ...]:
        """The identity's is ``"e"``; the others are numbered."""
        return tuple(map(self.name, range(self.order)))

    def name(self, element: int) -> str:
        """The name of one element."""
        return "e" if element == 0 and self.starts_with_identity else f"g{element}"

    @property
    def starts_with_identity(self) -> bool:
        """Whether the first element moves nothing."""
        return torch.equal(self.drawn[0], self.law.identity.to(self.drawn))

    def as_elements(self, g: Tensor | int) -> Tensor:
        """``g`` as an index tensor, checked to be numbers of elements or of their inverses."""
        g = torch.as_tensor(g)
        if g.is_floating_point() or (g.numel() and not 0 <= int(g.min()) <= int(g.max()) < 2 * self.order):
            raise SymmetryError(f"Expected numbers of the {self.order} elements of {self}; got {g.tolist()}.")
        return g

    def inverse(self, g: Tensor | int) -> Tensor:
        """The numbers of the inverses."""
        return (self.as_elements(g) + self.order) % (2 * self.order)

    def sample(self, shape=()) -> Tensor:
        """Numbers of elements at random."""
        return torch.randint(self.order, tuple(shape))

    def compose(self, a, b):
        """There are no products in a list.

        :raises SymmetryError: always.
        """
        raise SymmetryError(f"Expected a group, for products of elements; {self} is a list of some. Use {self.law}.")

    @property
    def table(self):
        """There is none, nor are there ``generators`` or ``transversals``.

        :raises SymmetryError: always.
        """
        return self.compose(0, 0)

    generators = transversals = table


def box_sample(basis: Tensor, widths: Tensor, shape=()) -> Tensor:
    """``exp(Σ_i w_i A_i)``, ``(*shape, m, m)``, with ``w_i`` uniform on ``[−γ_i, γ_i]``; differentiable in both."""
    uniform = torch.rand(*shape, len(basis), dtype=basis.dtype, device=basis.device)
    return exponential((2 * uniform - 1) * widths, basis)


def described(names, widths: Tensor) -> str:
    """``name ± width`` of each generator."""
    return ", ".join(f"{name} ± {width:.4g}" for name, width in zip(names, widths.tolist(), strict=True))
