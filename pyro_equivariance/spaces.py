"""Where a representation acts: on a site's own values, or on coordinates that are free of constraints."""

from dataclasses import dataclass

import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import biject_to
from torch import Tensor
from torch.distributions import Transform

from .errors import SymmetryError
from .groups import Group
from .representations import Composed, Factor, Product, Pullback, Representation, Trivial
from .symmetry import Symmetry

COMMUTES = 1e-4


@dataclass(frozen=True)
class Space:
    """Unconstrained coordinates of a site: ``transform`` takes them to the site's values, ``rep`` moves them."""

    transform: Transform
    rep: Representation


class IsometricLogRatio(Transform):
    """From ``R^(K-1)`` to the simplex: ``x = softmax(V y)`` with ``V`` an orthonormal basis of the vectors of sum zero.

    Unlike stick-breaking it treats the categories alike: permuting them rotates ``y``, by ``Vᵀ P V``. The Jacobian is
    that of ``y ↦ (x_1, …, x_{K-1})``, ``√K Π_k x_k``.

    Source: Egozcue et al. (2003) "Isometric logratio transformations for compositional data analysis".

    >>> import torch
    >>> to_simplex = IsometricLogRatio()
    >>> y = to_simplex.inv(torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.2, 0.3]]))  # the same shares, permuted
    >>> y.shape, [round(r, 4) for r in y.norm(dim=-1).tolist()]
    (torch.Size([2, 2]), [0.6493, 0.6493])
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def __eq__(self, other) -> bool:
        return isinstance(other, IsometricLogRatio)

    def __hash__(self) -> int:
        return hash(type(self))

    def _call(self, y: Tensor) -> Tensor:
        return (y @ contrasts(y.shape[-1] + 1).to(y).mT).softmax(-1)

    def _inverse(self, x: Tensor) -> Tensor:
        logs = x.clamp_min(torch.finfo(x.dtype).tiny).log()
        return logs @ contrasts(x.shape[-1]).to(x)

    def log_abs_det_jacobian(self, y: Tensor, x: Tensor) -> Tensor:
        logs = (y @ contrasts(x.shape[-1]).to(y).mT).log_softmax(-1)
        return logs.sum(-1) + 0.5 * torch.tensor(float(x.shape[-1])).to(y).log()

    def forward_shape(self, shape):
        return torch.Size(shape[:-1]) + (shape[-1] + 1,)

    def inverse_shape(self, shape):
        return torch.Size(shape[:-1]) + (shape[-1] - 1,)


def contrasts(categories: int) -> Tensor:
    """Helmert's orthonormal basis of the vectors of sum zero, as columns: ``(K, K - 1)``, float64."""
    rows = torch.arange(categories, dtype=torch.float64)[:, None]
    columns = torch.arange(1, categories, dtype=torch.float64)
    basis = torch.where(rows < columns, 1.0, torch.where(rows == columns, -columns, 0.0))
    return basis / (columns * (columns + 1)).sqrt()


def site_space(name: str, support, rep: Representation, shape: torch.Size) -> Space:
    """The unconstrained coordinates in which a site is moved linearly.

    - real sites, and representations on unconstrained values: as ``rep`` says;
    - elementwise bijections (positive sites, intervals): permutations of equally constrained entries pass through;
    - simplices: permutations of the categories, in isometric log ratios;
    - any other (Cholesky factors, correlations): actions that move whole events along the plates, each as it is.

    :param str name: the site's.
    :param support: the site's constraint.
    :param Representation rep: its action.
    :param shape: of the site's value.
    :raises SymmetryError: for anything else, with the way out.
    """
    core = support
    while isinstance(core, constraints.independent):
        core = core.base_constraint
    try:
        transform = unconstraining(support)
    except NotImplementedError as error:
        raise SymmetryError(
            f"Expected a latent site whose support has unconstrained coordinates; that of {name!r}, {support}, has "
            f"none. If it is the observation, pass it to the model."
        ) from error
    if core is constraints.real or core is constraints.real_vector or rep.space == "unconstrained":
        return Space(transform, rep)
    if core is constraints.simplex:
        return Space(IsometricLogRatio(), _on_log_ratios(name, rep))
    if core.event_dim == 0 and rep.is_permutation and _commutes(transform, rep, shape):
        return Space(transform, rep)
    if core.event_dim > 0 and (plates := _on_plates(rep, core.event_dim)) is not None:
        event = transform.inverse_shape(shape[len(shape) - core.event_dim :])
        return Space(transform, plates * Trivial(rep.group, event))
    raise SymmetryError(
        f"Expected site {name!r} to be real, a simplex, or moved by permutations of equally constrained entries; its "
        f"support is {support} and its action {rep}. Reparametrize it as a real site, or say that the action is on "
        f"unconstrained values: {name!r}: rep.on_unconstrained()."
    )


def space_of(symmetry: Symmetry, name: str, site: dict) -> Space:
    """The unconstrained coordinates in which the symmetry moves a latent site linearly.

    :param dict site: the site's entry in a trace of the model.
    :raises SymmetryError: for a site without a representation, one of the wrong shape, one that a bijection does not
        carry over, or one that moves a plate which is subsampled.
    """
    rep, shape, event_dim = symmetry[name], site["value"].shape, site["fn"].event_dim
    if rep.space == "unconstrained":
        space = site_space(name, site["fn"].support, rep, shape)
        shape = space.transform.inv(site["value"]).shape
    check_shape(name, rep, shape, event_dim)
    check_plates(name, rep, event_dim, site["cond_indep_stack"])
    return site_space(name, site["fn"].support, rep, shape)


def check_shape(name: str, rep: Representation, shape: torch.Size, event_dim: int) -> None:
    """Raise unless an action is on the last axes of a site's shape, its whole event among them."""
    axes = len(rep.event_shape)
    if axes < event_dim:
        raise SymmetryError(
            f"Expected the representation of site {name!r} to act on its whole event "
            f"{tuple(shape[len(shape) - event_dim :])}; got {rep} on {tuple(rep.event_shape)}. Multiply it by "
            f"pe.trivial(group, shape) for axes that do not move."
        )
    if shape[len(shape) - axes :] != rep.event_shape or len(shape) < axes:
        raise SymmetryError(
            f"Expected the representation of site {name!r} to act on the last axes of its shape {tuple(shape)}; got "
            f"{rep} on {tuple(rep.event_shape)}."
        )


def check_plates(name: str, rep: Representation, event_dim: int, frames) -> None:
    """Raise if an action moves the axis of a plate of which only a part is seen."""
    for frame in frames:
        if frame.full_size not in (None, frame.size) and len(rep.event_shape) - event_dim >= -frame.dim:
            raise SymmetryError(
                f"Expected the action on site {name!r} to leave the plate {frame.name!r} alone, which is subsampled; "
                f"{rep} acts along it. Use the full plate, or a representation on the axes to the right of it."
            )


def unconstraining(support) -> Transform:
    """``biject_to(support)`` without shifts by 0 and scalings by 1, so that a LogNormal's is its own exponential."""
    transform = biject_to(support)
    parts = transform.parts if isinstance(transform, torch.distributions.ComposeTransform) else [transform]
    kept = [part for part in parts if not _moves_nothing(part)]
    return kept[0] if len(kept) == 1 else torch.distributions.ComposeTransform(kept)


def _moves_nothing(transform: Transform) -> bool:
    affine = isinstance(transform, torch.distributions.AffineTransform)
    return affine and isinstance(transform.loc, (int, float)) and (transform.loc, transform.scale) == (0, 1)


def check_transforms(name: str, transforms, rep: Representation, shape: torch.Size) -> None:
    """Raise unless an action on a site's values is the same action on what the site is transformed from.

    :raises SymmetryError: for transforms that it does not pass through, as stick-breaking or signs of positive values.
    """
    if rep.space == "unconstrained":
        return
    transform = torch.distributions.ComposeTransform([entrywise(part) for part in transforms])
    identity = all(_is_identity(part) for part in transforms)
    if not identity and not (
        transform.domain.event_dim == 0 and rep.is_permutation and _commutes(transform, rep, shape)
    ):
        raise SymmetryError(
            f"Expected site {name!r} to be transformed entry by entry, all alike, and moved by permutations; {rep} "
            f"does not pass through {', '.join(type(part).__name__ for part in transforms)}. Use "
            f"pe.AutoSymmetricMultivariateNormal or pe.AutoOrbitMixture for simplices, or say that the action is on "
            f"unconstrained values: rep.on_unconstrained()."
        )


def entrywise(transform: Transform) -> Transform:
    """The transform of each entry, where several were made one event."""
    while isinstance(transform, torch.distributions.transforms.IndependentTransform):
        transform = transform.base_transform
    return transform


def _is_identity(transform: Transform) -> bool:
    while isinstance(transform, torch.distributions.transforms.IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, torch.distributions.ComposeTransform) and all(map(_is_identity, transform.parts))


def _commutes(transform: Transform, rep: Representation, shape: torch.Size) -> bool:
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    value = transform(u)
    moved = [(transform(rep.act(g, u)), rep.act(g, value)) for g in probes(rep.group)]
    return all(torch.allclose(a, b, rtol=COMMUTES, atol=COMMUTES) for a, b in moved)


class LogRatios(Representation):
    """A permutation of the categories of a simplex, on its isometric log ratios: ``ρ(g) y = Vᵀ P_g V y``.

    :param Representation categories: the permutation, on one axis.
    """

    is_orthogonal = True

    def __init__(self, categories: Representation):
        self.group, self.categories = categories.group, categories
        self.event_shape = torch.Size([categories.event_shape[0] - 1])

    @property
    def is_permutation(self):
        return isinstance(self.categories, Trivial)

    @property
    def is_monomial(self):  # two categories have one ratio, which changes its sign
        return self.is_permutation or self.event_shape[0] <= 1

    def _act(self, g, x, dim=-1):
        basis = contrasts(self.categories.event_shape[0]).to(x)
        logs = (x.movedim(dim, -1) @ basis.mT).movedim(-1, dim)
        return (self.categories._act(g, logs, dim).movedim(dim, -1) @ basis).movedim(-1, dim)

    def _modulus(self, power):
        return Trivial(self.group, self.event_shape)

    def _key(self):
        return (self.categories,)

    def __repr__(self):
        return f"log ratios of {self.categories}"


def _on_log_ratios(name: str, rep: Representation) -> Representation:
    """The action on isometric log ratios of one that permutes the categories, its last axis."""
    *outer, categories = _last_axis(rep)
    if not categories.is_permutation or len(categories.event_shape) != 1:
        raise SymmetryError(
            f"Expected the categories of the simplex site {name!r} to be permuted, along the last axis; got {rep}."
        )
    if outer and not outer[0].is_permutation:
        raise SymmetryError(f"Expected the axes before a simplex, site {name!r}, to be permuted; got {rep}.")
    ratios = LogRatios(categories)
    return outer[0] * ratios if outer else ratios


def _last_axis(rep: Representation) -> tuple[Representation, ...]:
    """``rep`` as what acts on the axes before the last, if there are any, and what acts on the last."""
    return (rep,) if len(rep.event_shape) <= 1 else _split(rep, 1) or (rep,)


def _split(rep: Representation, axes: int) -> tuple[Representation, Representation] | None:
    """``rep`` as a product of what acts on the last so many axes and what acts on those before, if it is one."""
    if isinstance(rep, Trivial):
        shape = rep.event_shape
        return Trivial(rep.group, shape[: len(shape) - axes]), Trivial(rep.group, shape[len(shape) - axes :])
    if isinstance(rep, Composed):
        both = _split(rep.left, axes), _split(rep.right, axes)
        return tuple(map(Composed, *both)) if all(both) else None
    if isinstance(rep, Factor):
        parts = _split(rep.base, axes)
        return parts and tuple(Factor(rep.group, part, rep.side) for part in parts)
    if isinstance(rep, Pullback):
        parts = _split(rep.base, axes)
        return parts and tuple(part.pullback(rep.group, rep.homomorphism) for part in parts)
    if not isinstance(rep, Product):
        return None
    right = len(rep.right.event_shape)
    if right == axes:
        return rep.left, rep.right
    if right > axes:
        parts = _split(rep.right, axes)
        return parts and (rep.left * parts[0], parts[1])
    parts = _split(rep.left, axes - right)
    return parts and (parts[0], parts[1] * rep.right)


def _on_plates(rep: Representation, event_dim: int) -> Representation | None:
    """What acts on the axes before the event, where the event itself stays."""
    parts = _split(rep, event_dim) if len(rep.event_shape) >= event_dim else None
    return parts[0] if parts and parts[0].is_permutation and not moves(parts[1]) else None


def moves(rep: Representation) -> bool:
    """Whether an action moves anything."""
    if isinstance(rep, Trivial):
        return False
    x = torch.randn(rep.event_shape, generator=torch.Generator().manual_seed(0))
    return any(not torch.equal(rep.act(g, x), x) for g in probes(rep.group))


def probes(group: Group):
    """Elements on which a law is tried: generators, or of a continuous group a few at random."""
    return group.generators if group.is_finite else group.sample((4,))
