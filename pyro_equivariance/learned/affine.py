"""How far images may be moved, learned: the affine generators of the plane, each with a width of its own."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError, SymmetryError
from ..generators import Generators
from ..groups import Affine
from ..groups.base import positive_int
from ..measures import LearnedMeasure
from ..representations import Representation
from .lie import default_loss, smoothed, symmetry_of

UNITS = {
    "translate x": "half widths of the image",
    "translate y": "half widths of the image",
    "rotate": "radians",
    "scale": "log factor",
    "stretch": "log factor",
    "shear": "log factor along the diagonals",
}
LIMITS = {"rotate": math.pi}  # the uniform law of all rotations
LIMIT = 2.0  # of the others: e² ≈ 7 times as large, or moved out of the frame
START = 0.2
SMALLEST = 1e-6  # of all: the softplus of a width must have a gradient
ROUNDING = 1e-5  # relative, of widths in single precision that were at an end of their range
PLANE = Generators.affine_plane()


class AffineAugmenter(LearnedMeasure):
    r"""Affine moves of the plane, ``g = exp(Σ_i w_i A_i)`` with ``w_i`` uniform on ``[−γ_i, γ_i]``, and learned widths.

    The six generators are those of :meth:`pe.Generators.affine_plane`; ``γ_i = softplus(u_i)``, not above π for the
    rotation, which is then uniform on the circle, and 2 for the others, nor below 1e-6. Whenever the widths are read,
    a ``u_i`` that a step has taken out of this range is set back to its end: however long a width was pushed against
    its limit, the first steps inwards leave it. The likelihood alone has no reason to widen them: a network that is
    invariant fits the data no better than one that is not. There are two forms that have one:

    - *explicit bonus* [1]: ``E_g ℓ(f(g x), y) − λ ‖γ‖`` with a network, :meth:`loss`;
    - *inside the ELBO* [2, 3]: a Bayesian network under ``pe.handlers.augment(model, symmetry, orbit=K,
      likelihood="predictive")``, ``E_q[log (1/K) Σ_k p(y | g_k x, θ)] − KL(q ‖ π)``, no bonus. The mean over moves
      takes out noise of the weights, so that they need to be known less well; the KL of the *weights* pays for it. With
      ``likelihood="mean"`` the noise stays and the widths shrink.

    In both, widths are only as good as the fit: where the network predicts no better than chance every move is free.
    Starts of 1 and more can lose the classes for good. Interpolation smooths, which small images with fine detail pay
    for: there the gain may not cover it. Wide rotations mix stretch and shear, and shorten translations.

    It is a measure: augmentation, orbit mixtures, metrics and averages take it as they take a group.

    Its state is the ``u_i`` and which generators they belong to.

    :param widths: the ``γ_i`` at the start: one number, one for each generator in their order, or one by name for
        some, the others being 0.2; from 1e-6 to the limits.
    :param generators: the names of some, or ``None`` for all: ``translate x``, ``translate y``, ``rotate``, ``scale``,
        ``stretch``, ``shear``.
    :param bool learned: whether the widths are parameters; otherwise they stay as they are.
    :raises SymmetryError: for an unknown name, widths that are not one for each generator, or one out of range.
    :raises DataError: when a state is loaded that is of other generators, or of these in another order.

    [1] Benton, Finzi, Izmailov, Wilson (2020) "Learning invariances in neural networks", arXiv:2010.11882.
    [2] Van der Wilk, Bauer, John, Hensman (2018) "Learning invariances using the marginal likelihood",
    arXiv:1808.05563. [3] Van der Ouderaa, van der Wilk (2022) "Learning invariant weights in neural networks",
    arXiv:2202.12439.

    >>> import torch, pyro_equivariance as pe
    >>> augmenter = pe.AffineAugmenter({"rotate": 1.5}, generators=["translate x", "translate y", "rotate"])
    >>> augmenter
    AffineAugmenter(translate x ± 0.2, translate y ± 0.2, rotate ± 1.5)
    >>> images = pe.image(augmenter, (1, 8, 8), interpolation="bilinear")
    >>> images.act(augmenter.sample((5,)), torch.rand(5, 1, 8, 8)).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        widths: float | Sequence[float] | Tensor | Mapping[str, float] = START,
        generators: Iterable[str] | None = None,
        learned: bool = True,
    ):
        super().__init__(Affine(2))
        chosen = PLANE if generators is None else _chosen(generators)
        self.names = chosen.names
        start = torch.tensor(_starts(widths, self.names), dtype=torch.float64)
        limits = torch.tensor([LIMITS.get(name, LIMIT) for name in self.names], dtype=torch.float64)
        dtype = torch.get_default_dtype()
        self.register_buffer("matrices", chosen.basis.to(dtype), persistent=False)
        ends = torch.stack([torch.full_like(limits, SMALLEST), limits])
        self.register_buffer("ends", _softplus_inverse(ends).to(dtype), persistent=False)
        raw = _softplus_inverse(start).to(dtype)
        if learned:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", raw)

    def get_extra_state(self) -> Tensor:
        """Which generators the widths belong to: their places among the six, ``(C,)``."""
        return torch.tensor([PLANE.names.index(name) for name in self.names])

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the state of other generators."""
        names = tuple(PLANE.names[i] for i in state.tolist())
        if names != self.names:
            raise DataError(
                f"Expected the state of widths of {', '.join(self.names)}; got {', '.join(names)}. "
                f"Load it into AffineAugmenter(generators={list(names)})."
            )

    def basis(self) -> Tensor:
        """The matrices ``A``, shape ``(C, 3, 3)``; they are not learned."""
        return self.matrices

    def spread(self) -> Tensor:
        """The widths ``γ``, shape ``(C,)``, differentiable."""
        self.raw.data.clamp_(*self.ends)
        return nn.functional.softplus(self.raw)

    def bonus(self) -> Tensor:
        """``‖γ‖``, the Euclidean norm of the widths, each in its unit."""
        return self.spread().norm()

    def loss(
        self,
        f: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        inputs: Representation | None = None,
        draws: int = 4,
        bonus: float = 0.01,
    ) -> Tensor:
        """The form with the bonus, ``(1/BK) Σ_{n,k} ℓ(f(g_{nk} x_n), y_n) − λ ‖γ‖``: minimise it over ``f`` and widths.

        With ``bonus=0`` it is the plain loss of augmented data, which tells nothing of the widths once ``f`` fits.

        :param f: the network, from ``(B, *event)`` to ``(B, ...)``.
        :param Tensor x: square images ``(B, ..., h, h)``, or points of the plane ``(B, ..., 2)``.
        :param Tensor y: what is observed, ``(B, ...)``, which no move changes; integers are classes.
        :param loss: from outputs and observations to one number each; by default the cross-entropy of logits for
            integer ``y``, and the squared error for others.
        :param inputs: how one input moves; by default as its shape says, images by bilinear interpolation.
        :param int draws: ``K``, fresh moves for each input.
        :param float bonus: ``λ``, not negative.
        :raises DataError: for inputs and observations of different number, or inputs whose move is not clear.
        :raises OptionError: for another bonus.

        >>> import torch, pyro_equivariance as pe
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> augmenter = pe.AffineAugmenter()
        >>> augmenter.loss(net, torch.rand(6, 1, 8, 8), torch.zeros(6).long()).backward()
        >>> augmenter.raw.grad.shape
        torch.Size([6])
        """
        if len(x) != len(y) or not len(x):
            raise DataError(f"Expected one observation for each input, at least one; got {len(x)} and {len(y)}.")
        if not isinstance(bonus, Real) or not 0 <= bonus < math.inf:
            raise OptionError(f"Expected bonus to be a number, not negative; got {bonus!r}.")
        g = self.sample((positive_int(draws, "draws"), len(x)))
        outputs = f(symmetry_of(self, x, inputs, None).act_inputs(g, x).flatten(0, 1))
        repeated = y.expand(len(g), *y.shape).flatten(0, 1)
        return (loss or default_loss(y))(outputs, repeated).mean() - bonus * self.bonus()

    def average(
        self,
        f: Callable[[Tensor], Tensor],
        x: Tensor,
        draws: int = 32,
        inputs: Representation | None = None,
        outputs: Representation | None = None,
    ) -> Tensor:
        """``(1/K) Σ_k ρ_Y(g_k)⁻¹ f(ρ_X(g_k) x)``, fresh draws for each input: a smoothing, not a projection.

        :param f: from ``(B, *event)`` to ``(B, ...)``; for a classifier its probabilities, not its logits.
        :param Tensor x: inputs ``(B, *event)``.
        :param int draws: ``K``.
        :param inputs: how one input moves; by default as its shape says, images by bilinear interpolation.
        :param outputs: how one output moves; ``None`` for invariant ones.
        :returns: shape ``(B, ...)``.

        >>> import torch, pyro_equivariance as pe
        >>> turns = pe.AffineAugmenter(3.1, generators=["rotate"])
        >>> turns.average(lambda x: x.square().sum(1), torch.tensor([[3.0, 4.0]])).round().tolist()
        [25.0]
        """
        return smoothed(self, f, x, draws, inputs, outputs)

    def __str__(self) -> str:
        """The width of each generator, in its unit.

        >>> import pyro_equivariance as pe
        >>> print(pe.AffineAugmenter(0.1, generators=["translate x", "rotate"]))
        translate x ± 0.1 (half widths of the image)
        rotate ± 0.1 (radians)
        """
        return "\n".join(f"{name} ± {width:.4g} ({UNITS[name]})" for name, width in self.widths.items())


def _chosen(names: Iterable[str]) -> Generators:
    """The generators of the given names, each once."""
    names = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if not names or len(set(names)) < len(names):
        raise SymmetryError(f"Expected generators= as names among {', '.join(PLANE.names)}, each once; got {names!r}.")
    return PLANE.only(names)


def _starts(widths, names: tuple[str, ...]) -> list[float]:
    """The width that each generator starts with, checked."""
    if isinstance(widths, Mapping):
        if unknown := [n for n in widths if n not in names]:
            raise SymmetryError(f"Expected widths of {', '.join(names)}; got one of {unknown[0]!r}.")
        widths = [widths.get(name, START) for name in names]
    try:
        values = torch.as_tensor(widths, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise SymmetryError(f"Expected widths as numbers; got {widths!r}.") from None
    if values.ndim > 1 or (values.ndim == 1 and len(values) != len(names)):
        raise SymmetryError(
            f"Expected one width, or one for each of {', '.join(names)}; got shape {tuple(values.shape)}."
        )
    return [_checked(*pair) for pair in zip(names, values.expand(len(names)).tolist(), strict=True)]


def _checked(name: str, width: float) -> float:
    """A width inside its range, up to rounding in single precision."""
    limit = LIMITS.get(name, LIMIT)
    if not SMALLEST * (1 - ROUNDING) <= width <= limit * (1 + ROUNDING):
        raise SymmetryError(
            f"Expected the width of {name!r} between {SMALLEST:g} and {limit:.4g} {UNITS[name]}; got {width}. "
            f"To leave a generator out, name the others: generators=."
        )
    return min(max(width, SMALLEST), limit)


def _softplus_inverse(widths: Tensor) -> Tensor:
    return widths + torch.log(-torch.expm1(-widths))
