"""Laws of directions: the von Mises law of an angle, and the von Mises–Fisher law on the unit sphere."""

import math
from fractions import Fraction
from functools import cache

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions.kl import register_kl

from ..errors import SymmetryError
from ..representations import (
    Angle,
    Composed,
    DirectSum,
    Factor,
    Product,
    Pullback,
    Representation,
    Reshaped,
    Trivial,
)
from .base import Family, register

LARGE_ORDER, TERMS = 40, 8  # Debye's series with so many terms is exact to rounding from this order on
NEWTON_STEPS = 8
NODES, REACH = 64, 14.0


class VonMisesFisher(dist.TorchDistribution):
    """The von Mises–Fisher law on the unit sphere of ``R^p``, ``p ≥ 2``, with density ``exp(κ μ·θ) / Z_p(κ)``.

    ``Z_p(κ) = (2π)^{p/2} I_{p/2−1}(κ) κ^{1−p/2}`` with respect to the sphere's surface; ``κ = 0`` is the uniform law.
    Draws are reparameterised in both parameters: the angle to ``μ`` is drawn by rejection [1, 2] and differentiated
    implicitly, ``dφ/dκ = −(∂F/∂κ) / f(φ)`` [3] with the integral by quadrature; a reflection brings the pole to ``μ``.
    What depends on ``κ`` is computed in float64, whatever the dtype of the parameters.

    :param Tensor mean_direction: ``μ``, shape ``(..., p)``, of length 1 (divide a free vector by its norm).
    :param Tensor concentration: ``κ ≥ 0``, shape ``(...)``, broadcast against the batch of ``mean_direction``.
    :raises SymmetryError: if ``mean_direction`` has no axis of at least two entries.

    [1] Ulrich (1984) "Computer generation of distributions on the m-sphere", Applied Statistics 33.
    [2] Wood (1994) "Simulation of the von Mises Fisher distribution", Communications in Statistics 23.
    [3] Figurnov, Mohamed, Mnih (2018) "Implicit reparameterization gradients", arXiv:1805.08498.

    >>> import torch, pyro_equivariance as pe
    >>> q = pe.VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(2.0))
    >>> round(float(q.log_prob(torch.tensor([0.0, 0.0, 1.0])).exp()), 4)  # 2 e² / (4π sinh 2)
    0.3242
    >>> [round(m, 4) for m in q.mean.tolist()]  # coth 2 − 1/2
    [0.0, 0.0, 0.5373]
    """

    arg_constraints = {"mean_direction": constraints.sphere, "concentration": constraints.nonnegative}
    support = constraints.sphere
    has_rsample = True

    def __init__(self, mean_direction: Tensor, concentration: Tensor | float, validate_args: bool | None = None):
        if mean_direction.ndim == 0 or mean_direction.shape[-1] < 2:
            raise SymmetryError(
                f"Expected a mean direction (..., p) with p at least 2; got shape {tuple(mean_direction.shape)}."
            )
        concentration = torch.as_tensor(concentration).to(mean_direction)
        batch = torch.broadcast_shapes(mean_direction.shape[:-1], concentration.shape)
        self.mean_direction = mean_direction.expand(*batch, -1)
        self.concentration = concentration.expand(batch)
        super().__init__(batch, mean_direction.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "VonMisesFisher":
        """The same law with its batch axes expanded."""
        new = self._get_checked_instance(VonMisesFisher, _instance)
        new.mean_direction = self.mean_direction.expand(*batch_shape, *self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        super(VonMisesFisher, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        """``p``, the number of coordinates."""
        return self.event_shape[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """``κ μ·θ − log Z_p(κ)``, with ``μ·θ = 1 − |θ − μ|²/2``, which loses no digits for large ``κ``."""
        if self._validate_args:
            self._validate_sample(value)
        kappa = self.concentration.double()
        scaled = log_normalizer(kappa.square(), self.dim) - kappa
        return (-kappa * (value - self.mean_direction).square().sum(-1) / 2 - scaled).to(value.dtype)

    def rsample(self, sample_shape=()) -> Tensor:
        """Draws, differentiable with respect to both parameters: shape ``(*sample_shape, *batch, p)``."""
        shape = self._extended_shape(sample_shape)
        kappa = self.concentration.double().expand(shape[:-1])
        polar = ImplicitAngle.apply(kappa, draw_angles(kappa.detach(), self.dim), self.dim).to(self.mean_direction)
        around = torch.randn(*shape[:-1], self.dim - 1, dtype=polar.dtype, device=polar.device)
        around = around / around.norm(dim=-1, keepdim=True)
        pole = torch.cat([polar.cos()[..., None], polar.sin()[..., None] * around], -1)
        return _from_pole(pole, self.mean_direction)

    @property
    def mean(self) -> Tensor:
        """``A_p(κ) μ`` with ``A_p = I_{p/2} / I_{p/2−1}``; shorter than 1, so not on the sphere."""
        return self._resultant[..., None] * self.mean_direction

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, ``A/κ + (1 − pA/κ − A²) μ_i²``."""
        ratio = bessel_ratio(self.concentration.square(), self.dim)[..., None]
        along = 1 - self.dim * ratio - self._resultant[..., None].square()
        return ratio + along * self.mean_direction.square()

    def entropy(self) -> Tensor:
        """``log Z_p(κ) − κ A_p(κ)`` in nats, with respect to the surface."""
        kappa = self.concentration.double()
        entropy = log_normalizer(kappa.square(), self.dim) - kappa.square() * bessel_ratio(kappa.square(), self.dim)
        return entropy.to(self.concentration.dtype)

    @property
    def _resultant(self) -> Tensor:
        return self.concentration * bessel_ratio(self.concentration.square(), self.dim)


class VonMisesFamily(Family):
    """The von Mises law of an angle, ``T(θ) = (cos θ, sin θ)``.

    ``η = κ (cos μ, sin μ)``, ``m = A(κ) (cos μ, sin μ)`` with ``A = I_1/I_0``, standard ``(cos μ, sin μ, κ)``: tensors
    of the shape of the distribution. The direction counts as a unit vector because angles have no linear mean. A mean
    of standard coordinates ``(c, s, κ)`` stands for the direction of ``(c, s)`` and the concentration
    ``κ √(c² + s²)``, so ``projection`` takes the direction of the mean unit vector and the mean ``κ`` times that
    vector's length: where directions cancel it is the uniform law, as under the other rules. That law has the smallest
    positive ``κ``, for ``dist.VonMises`` allows no 0.

    It is closed under shifts and reflections of the angles, also where angles are permuted (see :func:`permuted`).
    ``dist.VonMises.log_prob`` approximates Bessel functions to about 1e-7; everything here is exact to rounding.
    """

    name = "von Mises law"
    advice = "Use a representation that shifts, reflects or permutes angles, such as pe.angle."

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        pair = q.loc.cos(), q.loc.sin()
        if kind == "standard":
            return *pair, q.concentration
        scale = q.concentration if kind == "natural" else _resultant(q.concentration)
        return tuple(scale * t for t in pair)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.VonMises:
        first, second, *rest = coordinates
        direction, kappa = _polar(to_natural(torch.stack([first, second], -1), *rest, kind=kind))
        loc = torch.atan2(direction[..., 1], direction[..., 0])
        return dist.VonMises(loc, kappa.clamp_min(torch.finfo(kappa.dtype).tiny))

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        raise NotImplementedError("The cosine and the sine move together: see push_forward and orbit_mean.")

    def push_forward(self, q, rep: Representation, g: Tensor | int) -> dist.VonMises:
        return dist.VonMises(rep.act(g, q.loc), permuted(rep).act(g, q.concentration))

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.VonMises:
        first, second, *rest = self.coordinates(q, kind)
        pair = Circle(rep).mean(torch.stack([first, second], -1))
        return self.from_coordinates(kind, (*pair.unbind(-1), *map(permuted(rep).mean, rest)))

    def is_closed(self, rep: Representation) -> bool:
        return permuted(rep) is not None

    def log_normalizer(self, natural: tuple[Tensor, Tensor]) -> Tensor:
        return log_normalizer(natural[0].square() + natural[1].square(), 2)

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.cos(), theta.sin()


class VonMisesFisherFamily(Family):
    """The von Mises–Fisher law on the unit sphere of ``R^p``, ``T(θ) = θ``.

    ``η = κ μ`` and ``m = A_p(κ) μ`` of shape ``(..., p)``; standard ``(μ, κ)``. A mean of standard coordinates
    ``(v, κ)`` stands for the direction of ``v`` and the concentration ``κ |v|``: where directions cancel it is the
    uniform law, as it is for the other rules. Closed under every orthogonal linear map of the one axis.
    """

    name = "von Mises–Fisher law"
    advice = "Use orthogonal maps on one axis: others leave the sphere."

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        if kind == "standard":
            return q.mean_direction, q.concentration
        return (q.concentration[..., None] * q.mean_direction if kind == "natural" else q.mean,)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> VonMisesFisher:
        return VonMisesFisher(*_polar(to_natural(*coordinates, kind=kind)))

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        return (rep, Trivial(rep.group, ())) if kind == "standard" else (rep,)

    def is_closed(self, rep: Representation) -> bool:
        return len(rep.event_shape) == 1 and rep.is_linear and rep.is_orthogonal

    def log_normalizer(self, natural: tuple[Tensor]) -> Tensor:
        return log_normalizer(natural[0].square().sum(-1), natural[0].shape[-1])

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor]:
        return (theta,)


def to_natural(vector: Tensor, *rest: Tensor, kind: str) -> Tensor:
    """``η = κ μ`` as a vector ``(..., p)``, from any coordinates; smooth where the vector is 0."""
    if kind == "natural":
        return vector
    if kind == "standard":
        return rest[0][..., None] * vector
    dim = vector.shape[-1]
    squared = InverseResultant.apply(vector.square().sum(-1).double(), dim)
    return (vector / bessel_ratio(squared, dim)[..., None]).to(vector.dtype)


def _polar(natural: Tensor) -> tuple[Tensor, Tensor]:
    """Direction and length; the vector 0 has length 0 and the first axis for its direction."""
    vanishes = (natural.square().sum(-1) == 0)[..., None]
    pole = torch.zeros_like(natural)
    pole[..., 0] = 1.0
    direction = torch.where(vanishes, pole, natural)
    length = direction.norm(dim=-1, keepdim=True)
    return direction / length, torch.where(vanishes, 0.0, length)[..., 0]


def _resultant(kappa: Tensor) -> Tensor:
    """``A(κ) = I_1(κ) / I_0(κ)``."""
    return kappa * bessel_ratio(kappa.square(), 2)


# How angles move


def permuted(rep: Representation) -> Representation | None:
    """How an action on angles permutes them, or ``None`` if it does more than permute, shift and reflect.

    >>> import math, pyro_equivariance as pe
    >>> swap = pe.permutation(pe.SymmetricGroup(2))
    >>> permuted(pe.angle(pe.SymmetricGroup(2), [0.0, math.pi]) * swap)
    trivial() * permutation(2)
    """
    if isinstance(rep, Angle):
        return Trivial(rep.group, ())
    if rep.is_linear:
        return rep.modulus() if rep.is_monomial and rep.is_orthogonal and not rep.is_approximate else None
    if isinstance(rep, (Product, DirectSum, Composed)):
        parts = permuted(rep.left), permuted(rep.right)
        return None if None in parts else type(rep)(*parts)
    base = permuted(rep.base) if isinstance(rep, (Reshaped, Pullback)) else None
    if base is None or isinstance(rep, Reshaped):
        return base and Reshaped(base, rep.event_shape)
    if isinstance(rep, Factor):
        return Factor(rep.group, base, rep.side)
    return Pullback(rep.group, base, rep.homomorphism)


class Circle(Representation):
    """How pairs ``(cos θ, sin θ)``, along a new last axis, move where ``rep`` moves the angles: a linear action.

    An entry moves by ``θ ↦ rθ + a``; ``a`` is where the angle 0 goes, and ``r = ±1`` the way a step leads from there.
    """

    is_permutation = is_monomial = False
    is_orthogonal = True

    def __init__(self, rep: Representation):
        self.group, self.rep, self.permuted = rep.group, rep, permuted(rep)
        self.event_shape = torch.Size((*rep.event_shape, 2))

    def _act(self, g, x, dim=-1):
        c, s = (self.permuted._act(g, part, dim) for part in x.unbind(dim))
        shift = self.rep._act(g, torch.zeros_like(c), dim)
        step = torch.remainder(self.rep._act(g, torch.ones_like(c), dim) - shift, 2 * math.pi)
        s = torch.where(step < math.pi, s, -s)
        return torch.stack([shift.cos() * c - shift.sin() * s, shift.sin() * c + shift.cos() * s], dim)

    def _modulus(self, power):
        raise SymmetryError("Expected an action that permutes and rescales entries; cosine and sine mix.")

    def _key(self):
        return (self.rep,)

    def __repr__(self):
        return f"circle({self.rep})"


# Bessel functions of κ as functions of t = κ², which are smooth at 0


def log_normalizer(squared: Tensor, dim: int) -> Tensor:
    """``log Z_p(κ)``, the logarithm of ``∫ exp(κ μ·θ) dθ`` over the unit sphere of ``R^p``.

    :param Tensor squared: ``κ²``, of any shape; ``κ = 0`` gives the logarithm of the sphere's surface.
    :param int dim: ``p``.

    >>> import torch
    >>> round(float(log_normalizer(torch.tensor(0.0), 3).exp() / torch.pi), 4)
    4.0
    """
    return LogNormalizer.apply(squared.double(), dim).to(squared.dtype)


def bessel_ratio(squared: Tensor, dim: int) -> Tensor:
    """``S_p = A_p(κ)/κ``, with ``A_p = I_{p/2} / I_{p/2−1}`` the length of the mean direction; ``1/p`` at 0.

    >>> import torch
    >>> round(float(bessel_ratio(torch.tensor(4.0), 3)), 4)  # (coth 2 − 1/2) / 2
    0.2687
    """
    return BesselRatio.apply(squared.double(), dim).to(squared.dtype)


class LogNormalizer(torch.autograd.Function):
    """``log Z_p`` as a function of ``t = κ²``; its derivative is ``S_p / 2``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t, dim):
        return _bessel(t, dim)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return gradient * BesselRatio.apply(ctx.saved_tensors[0], ctx.dim) / 2, None


class BesselRatio(torch.autograd.Function):
    """``S_p`` as a function of ``t = κ²``; its derivative is ``S_p (S_{p+2} − S_p) / 2``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t, dim):
        return _bessel(t, dim)[1]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        t, ratio = ctx.saved_tensors
        return gradient * ratio * (BesselRatio.apply(t, ctx.dim + 2) - ratio) / 2, None


class InverseResultant(torch.autograd.Function):
    """``t = κ²`` from ``u = A_p(κ)²``, by Newton's method; differentiated as an implicit function.

    The start is that of Banerjee et al. (2005), Journal of Machine Learning Research 6.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u, dim):
        resultant = u.sqrt()
        kappa = resultant * (dim - u) / (1 - u)
        for _ in range(NEWTON_STEPS):
            ratio = _bessel(kappa.square(), dim)[1]
            found = kappa * ratio
            kappa = kappa - (found - resultant) / (1 - found.square() - (dim - 1) * ratio)
        return kappa.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        t, dim = ctx.saved_tensors[0], ctx.dim
        ratio = BesselRatio.apply(t, dim)
        slope = ratio + t * ratio * (BesselRatio.apply(t, dim + 2) - ratio)  # dA/dκ
        return gradient / (ratio * slope), None


def _bessel(t: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``log Z_p`` and ``S_p``: from a large order down by ``S_p = 1 / (p + κ² S_{p+2})``, which loses no digits."""
    steps = max(0, math.ceil(LARGE_ORDER - (dim / 2 - 1)))
    total, ratio = _bessel_of_large_order(t, dim / 2 - 1 + steps)
    for k in reversed(range(steps)):
        ratio = 1 / (dim + 2 * k + t * ratio)
        total = total - ratio.log()
    return total + dim / 2 * math.log(2 * math.pi), ratio


def _bessel_of_large_order(t: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """``log(I_ν(κ) κ^{−ν})`` and ``I_{ν+1}(κ) / (κ I_ν(κ))`` by Debye's series, uniform in ``κ``.

    With ``U = Σ U_k(s)/ν^k``, ``V`` likewise and ``s = 1/√(1 + κ²/ν²)``, the ratio is ``ν (V/(sU) − 1)/κ²``, written
    so that nothing cancels (https://dlmf.nist.gov/10.41.ii).
    """
    root = (1 + t / order**2).sqrt()
    series, slopes = torch.zeros_like(t), torch.zeros_like(t)
    for k in reversed(range(TERMS)):
        powers = range(k, 3 * k + 1, 2)
        series = series / (order * root) + _polynomial(_debye(k), root)
        slopes = slopes / (order * root) + _polynomial(
            [c * (n + 0.5) for c, n in zip(_debye(k), powers, strict=True)], root
        )
    leading = order * (root - (1 + root).log() - math.log(order))
    ratio = 1 / (1 + root) - slopes / (series * order * root.square())
    return leading - 0.5 * (2 * math.pi * order * root).log() + series.log(), ratio / order


def _polynomial(coefficients, root: Tensor) -> Tensor:
    """``Σ_j c_j root^{−2j}``, by Horner's rule."""
    total = torch.zeros_like(root)
    for c in reversed(coefficients):
        total = total / root.square() + c
    return total


@cache
def _debye(k: int) -> tuple[float, ...]:
    """``c`` with ``U_k(s) = s^k Σ_j c_j s^{2j}``."""
    return tuple(float(c) for c in _debye_exactly(k))


@cache
def _debye_exactly(k: int) -> tuple[Fraction, ...]:
    """By ``U_{k+1} = s²(1 − s²) U_k'/2 + ∫_0^s (1 − 5u²) U_k(u) du / 8``."""
    if k == 0:
        return (Fraction(1),)
    result = [Fraction(0)] * (k + 1)
    for j, c in enumerate(_debye_exactly(k - 1)):
        power = k - 1 + 2 * j
        result[j] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
        result[j + 1] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
    return tuple(result)


# The angle between a draw and its mean direction: density ∝ exp(κ cos φ) sin^{p−2} φ on [0, π]


@torch.no_grad()
def draw_angles(kappa: Tensor, dim: int) -> Tensor:
    """Angles to the mean direction, of the shape of ``κ``, by the rejection of Ulrich (1984) and Wood (1994)."""
    flat = kappa.flatten()
    b = (dim - 1) / (2 * flat + (4 * flat.square() + (dim - 1) ** 2).sqrt())
    angles, waiting = torch.empty_like(flat), torch.arange(len(flat), device=flat.device)
    half = torch.tensor((dim - 1) / 2, dtype=flat.dtype, device=flat.device)
    beta = torch.distributions.Beta(half, half)
    while len(waiting):
        k, slope, x = flat[waiting], b[waiting], (1 - b[waiting]) / (1 + b[waiting])
        z = beta.sample(waiting.shape)
        proposal = 2 * (slope * z / (1 - z)).sqrt().atan()
        w = proposal.cos()
        log_accept = k * (w - x) + (dim - 1) * ((1 - x * w) / (1 - x.square())).log()
        rejected = log_accept < torch.rand_like(w).log()
        angles[waiting] = proposal
        waiting = waiting[rejected]
    return angles.reshape(kappa.shape)


class ImplicitAngle(torch.autograd.Function):
    """An angle drawn for ``κ``, with the derivative ``dφ/dκ = −(∂F/∂κ) / f(φ)`` (Figurnov et al. 2018)."""

    @staticmethod
    def forward(ctx, kappa, angle, dim):
        ctx.save_for_backward(kappa, angle)
        ctx.dim = dim
        return angle.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * angle_derivative(*ctx.saved_tensors, ctx.dim), None, None


def angle_derivative(kappa: Tensor, angle: Tensor, dim: int) -> Tensor:
    """``dφ/dκ`` at a fixed value of the distribution function ``F``.

    ``∂F/∂κ = ∫_0^φ (cos s − A) f(s) ds = −∫_φ^π (cos s − A) f(s) ds``: of the two the one in which ``f(s) ≤ f(φ)``, as
    far as ``f`` is above rounding, by Gauss–Legendre quadrature.

    :param Tensor kappa: ``κ``, of the shape of ``angle``.
    :param Tensor angle: ``φ`` in ``(0, π)``.
    """
    n, tiny = dim - 2, torch.finfo(angle.dtype).tiny
    mode = 2 * kappa / (n + (n**2 + 4 * kappa.square()).sqrt()).clamp_min(tiny)  # its cosine
    side = torch.where(angle.cos() > mode, -1.0, 1.0)
    length = torch.minimum(torch.where(side < 0, angle, math.pi - angle), REACH * (0.4 * kappa + n).rsqrt())
    nodes, weights = (t.to(angle) for t in _gauss_legendre())
    k, phi, step = kappa[..., None], angle[..., None], (side * length)[..., None] * nodes
    relative = -2 * k * (phi + step / 2).sin() * (step / 2).sin()
    if n:
        relative = relative + n * ((phi + step).sin().clamp_min(tiny).log() - phi.sin().clamp_min(tiny).log())
    resultant = k * bessel_ratio(k.square(), dim)
    return side * length * (((phi + step).cos() - resultant) * relative.exp() * weights).sum(-1)


@cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes in ``[0, 1]`` and their weights, in float64."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def _from_pole(x: Tensor, direction: Tensor) -> Tensor:
    """``x`` moved by the orthogonal map that takes the first axis to ``direction``: a Householder reflection, negated.

    It reflects along ``μ ± e_1``, the longer of the two, so that nothing is divided by a small number.
    """
    sign = torch.where(direction[..., :1] < 0, -1.0, 1.0).to(direction)
    axis = torch.cat([direction[..., :1] + sign, direction[..., 1:]], -1)
    along = (axis * x).sum(-1, keepdim=True) / (1 + sign * direction[..., :1])
    return sign * (along * axis - x)


# Divergences


def _divergence(kappa: Tensor, other: Tensor, gap: Tensor, dim: int) -> Tensor:
    """``κ_q A(κ_q) − κ_p A(κ_q) μ_q·μ_p − log Z(κ_q) + log Z(κ_p)`` with ``gap = 1 − μ_q·μ_p``."""
    kappa, other, gap = kappa.double(), other.double(), gap.double()
    resultant = kappa * bessel_ratio(kappa.square(), dim)
    normalizers = log_normalizer(other.square(), dim) - log_normalizer(kappa.square(), dim)
    return resultant * (kappa - other * (1 - gap)) + normalizers


@register_kl(torch.distributions.VonMises, torch.distributions.VonMises)
def _kl_von_mises(q, p) -> Tensor:
    gap = 2 * ((q.loc - p.loc) / 2).sin().square()
    return _divergence(q.concentration, p.concentration, gap, 2).to(q.loc.dtype)


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_von_mises_fisher(q, p) -> Tensor:
    gap = (q.mean_direction - p.mean_direction).square().sum(-1) / 2
    return _divergence(q.concentration, p.concentration, gap, q.dim).to(q.mean_direction.dtype)


register(torch.distributions.VonMises, VonMisesFamily())
register(VonMisesFisher, VonMisesFisherFamily())
