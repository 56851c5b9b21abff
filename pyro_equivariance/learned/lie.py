"""Generators of a symmetry learned with a network: a basis of matrices, five terms of a loss, a mean over draws."""

import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError, SymmetryError
from ..generators import Generators, _table, normalised
from ..groups import Affine, GeneralLinear
from ..groups.base import positive_int
from ..measures import MAX_CHECKED_WIDTH, LearnedMeasure, Measure, box_sample
from ..representations import Representation, image, trivial, vector
from ..symmetry import Symmetry

TERMS = ("task", "equivariance", "augmentation", "orthogonality", "sparsity")
WEIGHTS = {"task": 1.0, "equivariance": 1.0, "augmentation": 0.02, "orthogonality": 0.1, "sparsity": 0.002}


class LieAugmenter(LearnedMeasure):
    r"""A symmetry whose generators are learned: ``g = exp(Σ_i w_i B̂_i)``, ``w_i`` uniform on ``[−γ, γ]``.

    The matrices ``B_i`` are parameters and count by their directions, ``B̂ = B / (‖B‖_F / √n)``; the width ``γ`` is
    given. With a network ``f`` they minimise five named terms, summed with ``weights``:

    - ``task``: the mean over draws of the loss of ``f(ρ_X(g) x)`` at ``ρ_Y(g) y``;
    - ``equivariance``: of ``‖f(ρ_X(g) x) − ρ_Y(g) f(x)‖²``. Where ``f`` is fitted and ``γ`` is small, these two
      are lowest on the directions in which ``f`` is equivariant, whatever basis the search starts from;
    - ``augmentation``: of ``|2⟨x, ρ_X(g) x⟩| / (‖x‖² + ‖ρ_X(g) x‖²)``, which is 1 where ``g x = ± x`` and smaller
      elsewhere. Unlike the cosine of the two, it sees a scaling move;
    - ``orthogonality``: ``Σ_{i<j} |⟨B̂_i, B̂_j⟩| / n``, each between 0 and 1, 1 for equal directions;
    - ``sparsity``: the sum of all ``|entries|`` of the ``B̂_i``.

    :func:`~pyro_equivariance.learn_augmentation` trains both. It is a measure: augmentation, orbit mixtures, metrics
    and averages take it as they take a group. What is found is the *span* of the ``B̂_i``:
    ``augmenter.generators.angle(known)`` compares, ``augmenter.generators.closure()`` says how far it is from a Lie
    algebra, and ``print(augmenter)`` shows the matrices.

    :param int n: the dimension of the points that are moved; 2 for images, whose sampling grid is moved.
    :param generators: how many are learned, their directions random at first; or the
        :class:`~pyro_equivariance.Generators` to start from.
    :param float width: ``γ``, in radians for a rotation of the plane, the logarithm of the factor for a scaling.
    :param bool affine: whether translations may be learned: homogeneous coordinates, matrices ``(n + 1, n + 1)``;
        linear generators that are given are written so.
    :param dict weights: of some of the terms, others as in ``pyro_equivariance.learned.lie.WEIGHTS``.
    :param int seed: of the first directions.
    :raises SymmetryError: for a width that is not positive, or above 20, or more generators than matrices have
        entries.
    :raises OptionError: for a weight of another name, or a negative one.

    >>> import torch, pyro_equivariance as pe
    >>> augmenter = pe.LieAugmenter(2, generators=pe.Generators.so(2), width=3.14)
    >>> augmenter
    LieAugmenter(A1 ± 3.14)
    >>> print(augmenter)
    A1 ± 3.14
       0.00  -1.00
       1.00   0.00
    >>> augmenter.sample((5, 3)).shape
    torch.Size([5, 3, 2, 2])
    """

    def __init__(
        self,
        n: int,
        generators: int | Generators = 1,
        width: float = 1.0,
        affine: bool = False,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ):
        n = positive_int(n, "the dimension n of LieAugmenter")
        affine = bool(affine or (isinstance(generators, Generators) and generators.affine))
        super().__init__(Affine(n) if affine else GeneralLinear(n))
        if not isinstance(width, Real) or not 0 < width <= MAX_CHECKED_WIDTH:
            raise SymmetryError(f"Expected a width, one number in (0, {MAX_CHECKED_WIDTH:g}]; got {width!r}.")
        self.matrices = nn.Parameter(_start(n, generators, affine, seed))
        self.random_start = not isinstance(generators, Generators)
        self.names = tuple(f"A{i + 1}" for i in range(len(self.matrices)))
        self.register_buffer("width", torch.full((len(self.matrices),), float(width)))
        self.weights = _checked_weights(weights)

    def basis(self) -> Tensor:
        """The matrices ``B̂``, shape ``(C, m, m)``, differentiable."""
        last_row = (0, 0, 0, 1) if self.group.is_affine else (0, 0, 0, 0)
        return normalised(nn.functional.pad(self.matrices, last_row), self.group.n)

    def spread(self) -> Tensor:
        """The widths ``γ``, shape ``(C,)``."""
        return self.width

    def losses(
        self,
        f: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        inputs: Representation | None = None,
        outputs: Representation | None = None,
        draws: int = 4,
        share: float = 1.0,
    ) -> dict[str, Tensor]:
        """The five terms, not weighted, by name; ``draws`` fresh elements for each input.

        :param f: the network, from ``(B, *event)`` to ``(B, ...)``.
        :param Tensor x: inputs ``(B, *event)``: vectors ``(B, n)``, point clouds ``(B, P, n)`` or square images.
        :param Tensor y: what is observed, ``(B, ...)``; without ``loss``, integers ``(B,)`` are classes.
        :param loss: from outputs and observations to one number each, ``(B,)``; by default the cross-entropy of logits
            for integer ``y``, and the squared error, summed over its entries, for others.
        :param inputs: how one input moves; by default as the shape of ``x`` says, see :func:`inputs_of`.
        :param outputs: how one output moves; ``None`` for invariant ones.
        :param float share: the part of the widths that is drawn from, in ``(0, 1]``, to let them grow in training.
        :raises DataError: for what is no tensor, inputs and observations of different number, inputs whose move is not
            clear, or a loss that is not one number for each datum.
        :raises OptionError: for another share.

        >>> import torch, pyro_equivariance as pe
        >>> augmenter = pe.LieAugmenter(2, generators=pe.Generators.so(2))
        >>> x = torch.randn(8, 2)
        >>> terms = augmenter.losses(lambda x: x.norm(dim=1, keepdim=True), x, x.norm(dim=1, keepdim=True))
        >>> {name: round(term.item(), 4) for name, term in terms.items() if name != "augmentation"}
        {'task': 0.0, 'equivariance': 0.0, 'orthogonality': 0.0, 'sparsity': 2.0}
        """
        check_pair(x, y)
        if not isinstance(share, Real) or not 0 < share <= 1:
            raise OptionError(f"Expected share, the part of the widths, in (0, 1]; got {share!r}.")
        draws = positive_int(draws, "draws")
        symmetry = symmetry_of(self, x, inputs, outputs)
        g = box_sample(self.basis(), share * self.spread(), (draws, len(x)))
        moved = symmetry.act_inputs(g, x)
        both = f(torch.cat([moved.flatten(0, 1), x]))
        at_moved, upright = both[: -len(x)].unflatten(0, (draws, len(x))), both[-len(x) :]
        goals = symmetry.act_outputs(g, y).flatten(0, 1)
        apart = at_moved - symmetry.act_outputs(g, upright)
        return {
            "task": each_loss(loss, at_moved.flatten(0, 1), goals).mean(),
            "equivariance": apart.square().reshape(draws, len(x), -1).sum(-1).mean(),
            "augmentation": _likeness(x, moved).mean(),
            **self._of_basis(),
        }

    def loss(self, f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, **options) -> Tensor:
        """The weighted sum of the :meth:`losses`, whose options it takes."""
        return self.weighted(self.losses(f, x, y, **options))

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The sum of terms by their weights."""
        return sum((self.weights[name] * term for name, term in terms.items()), torch.zeros(()))

    def regularizer(self) -> Tensor:
        """The weighted terms without data, orthogonality and sparsity."""
        return self.weighted(self._of_basis())

    def log_prior(self) -> Tensor:
        """In a model the terms without data are a prior on the basis, ``−regularizer()`` nats."""
        return -self.regularizer()

    def average(
        self,
        f: Callable[[Tensor], Tensor],
        x: Tensor,
        draws: int = 32,
        inputs: Representation | None = None,
        outputs: Representation | None = None,
    ) -> Tensor:
        """``(1/K) Σ_k ρ_Y(g_k)⁻¹ f(ρ_X(g_k) x)``, fresh draws for each input: a smoothing, not a projection.

        :param f: from ``(B, *event)`` to ``(B, ...)``; for a classifier its probabilities, not its logits. It is called
            in the mode it is in: ``f.eval()`` first, if it is a network with Dropout or BatchNorm.
        :param Tensor x: inputs ``(B, *event)``.
        :param int draws: ``K``.
        :returns: shape ``(B, ...)``.

        >>> import math, torch, pyro_equivariance as pe
        >>> augmenter = pe.LieAugmenter(2, generators=pe.Generators.so(2), width=math.pi)
        >>> with torch.no_grad():
        ...     augmenter.average(lambda x: x.square().sum(1), torch.tensor([[3.0, 4.0]])).round()
        tensor([25.])
        """
        return smoothed(self, f, x, draws, inputs, outputs)

    def _of_basis(self) -> dict[str, Tensor]:
        basis = self.basis()
        inner = torch.einsum("iab,jab->ij", basis, basis) / self.group.n
        return {"orthogonality": inner.triu(1).abs().sum(), "sparsity": basis.abs().sum()}

    def __str__(self) -> str:
        """Each generator with its width, and its matrix below, whatever a search has made of them."""
        rows = zip(self.widths.items(), self.basis().detach(), strict=True)
        return "\n".join(f"{name} ± {width:.4g}\n{_table(matrix)}" for (name, width), matrix in rows)


def symmetry_of(
    measure: LearnedMeasure, x: Tensor, inputs: Representation | None, outputs: Representation | None
) -> Symmetry:
    """How inputs ``x`` and outputs move; a given representation may be of another law on the measure's group."""
    laws = [rep.group for rep in (inputs, outputs) if rep is not None]
    law = next((law for law in laws if isinstance(law, Measure) and law.group == measure.group), measure)
    return Symmetry(law, {}, inputs or inputs_of(law, x), outputs)


def smoothed(
    measure: LearnedMeasure,
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    draws: int,
    inputs: Representation | None,
    outputs: Representation | None,
) -> Tensor:
    """``(1/K) Σ_k ρ_Y(g_k)⁻¹ f(ρ_X(g_k) x)``, shape ``(B, ...)``, with fresh draws for each of the inputs."""
    symmetry = symmetry_of(measure, x, inputs, outputs)
    g = measure.sample((positive_int(draws, "draws"), len(x)))
    values = f(symmetry.act_inputs(g, x).flatten(0, 1)).unflatten(0, g.shape[:2])
    return (values if outputs is None else outputs.act(measure.inverse(g), values)).mean(0)


def inputs_of(measure: Measure, x: Tensor) -> Representation:
    """How one input moves, read off the shape ``(B, *event)`` of a batch.

    Points where the last axis has their dimension ``n``: vectors ``(n,)``, point clouds ``(P, n)`` whose points move
    together. In the plane square images ``(..., h, h)`` with ``h > 2`` by their sampling grid, bilinear. ``inputs=``
    says everything else, such as points on more axes, which could be images with their channels last.

    :raises DataError: for another shape.

    >>> import torch, pyro_equivariance as pe
    >>> from pyro_equivariance.learned.lie import inputs_of
    >>> inputs_of(pe.LieAugmenter(3), torch.zeros(7, 5, 3)).event_shape
    torch.Size([5, 3])
    """
    if not isinstance(x, Tensor):
        raise DataError(f"Expected inputs as a tensor; got {type(x).__name__}.")
    n, event = measure.group.n, x.shape[1:]
    if 1 <= len(event) <= 2 and event[-1] == n:
        points = vector(measure)
        return points if len(event) == 1 else trivial(measure, event[:-1]) * points
    if n == 2 and len(event) >= 2 and event[-1] == event[-2] > 2:
        return image(measure, event, interpolation="bilinear")
    raise DataError(
        f"Expected points (B, {n}) or (B, P, {n}){', or square images (B, ..., h, h)' * (n == 2)} for {measure!r}; got "
        f"shape {tuple(x.shape)}. Say how they move: inputs=."
    )


def default_loss(y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """One number for each datum: the cross-entropy of logits where ``y`` are classes, otherwise the squared error."""
    return _squared_error if y.is_floating_point() else _cross_entropy


def each_loss(loss: Callable[[Tensor, Tensor], Tensor] | None, outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of each datum, ``(B,)``, the default one where ``loss`` is ``None``.

    :raises DataError: for another shape.
    """
    values = (loss or default_loss(y))(outputs, y)
    if values.shape != (len(y),):
        raise DataError(
            f"Expected a loss that gives one number for each datum, shape {(len(y),)}; got {tuple(values.shape)}. Use "
            f'reduction="none", and sum over what is left of the other axes.'
        )
    return values


def check_pair(x: Tensor, y: Tensor) -> None:
    """Whether they are inputs and observations, as many, at least one.

    :raises DataError: if not.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise DataError(f"Expected inputs and observations as tensors; got {type(x).__name__} and {type(y).__name__}.")
    if not x.ndim or not y.ndim or len(x) != len(y) or not len(x):
        raise DataError(
            f"Expected one observation for each input, at least one; got shapes {tuple(x.shape)} and {tuple(y.shape)}."
        )


def _squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    if outputs.shape != y.shape:
        raise DataError(f"Expected outputs of the shape of y, {tuple(y.shape)}; got {tuple(outputs.shape)}.")
    return (outputs - y).square().reshape(len(y), -1).sum(1)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    if y.dtype == torch.bool or logits.ndim != 2 or y.ndim != 1:
        raise DataError(
            f"Expected integer classes (B,) and logits (B, classes); got {y.dtype} {tuple(y.shape)} and logits "
            f"{tuple(logits.shape)}. Convert y, by y.long() or y.float(), or give a loss= of your own."
        )
    if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise DataError(f"Expected classes from 0 to {logits.shape[1] - 1}; got {int(y.min())} to {int(y.max())}.")
    return nn.functional.cross_entropy(logits, y, reduction="none")


def _likeness(x: Tensor, moved: Tensor) -> Tensor:
    """``|2⟨x, gx⟩| / (‖x‖² + ‖gx‖²)`` of each draw, ``(K, B)``."""
    still, moved = x.flatten(1), moved.flatten(2)
    sizes = still.square().sum(-1) + moved.square().sum(-1)
    return 2 * (still * moved).sum(-1).abs() / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)


def _start(n: int, generators: int | Generators, affine: bool, seed: int) -> Tensor:
    """The first matrices without the last row of homogeneous ones, ``(C, n, m)``."""
    if isinstance(generators, Generators):
        if generators.n != n:
            raise SymmetryError(f"Expected generators that move points of R^{n}; got {generators!r}.")
        given = generators.homogeneous() if affine else generators
        return given.normalised().basis[:, :n].to(torch.get_default_dtype())
    if not isinstance(generators, Real):
        raise SymmetryError(
            f"Expected the number of generators, or pe.Generators; got {type(generators).__name__}. Use "
            f"pe.Generators(matrices)."
        )
    count, entries = positive_int(generators, "the number of generators"), n * (n + affine)
    if count > entries:
        raise SymmetryError(f"Expected at most {entries} generators, the entries of a matrix; got {count}.")
    return torch.randn(count, n, n + affine, generator=torch.Generator().manual_seed(seed))


def _checked_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    if not isinstance(weights, Mapping | None):
        raise OptionError(f"Expected weights as a dict; got {type(weights).__name__}.")
    given = dict(weights or {})
    for name, weight in given.items():
        if name not in TERMS or not isinstance(weight, Real) or not 0 <= weight < math.inf:
            raise OptionError(f"Expected weights, not negative, of {', '.join(TERMS)}; got {name!r}: {weight!r}.")
    return WEIGHTS | given
