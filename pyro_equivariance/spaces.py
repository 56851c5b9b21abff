"""Where a representation acts: on a site's own values, or on coordinates that are free of constraints."""

from dataclasses import dataclass

import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import biject_to
from torch import Tensor
from torch.distributions import Transform

from .errors import SymmetryError
from .representations import Product, Pullback, Representation, matrix

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
    - simplices: permutations of the categories, in isometric log ratios.

    :param str name: the site's.
    :param support: the site's constraint.
    :param Representation rep: its action.
    :param shape: of the site's value.
    :raises SymmetryError: for anything else, with the way out.
    """
    core = support
    while isinstance(core, constraints.independent):
        core = core.base_constraint
    transform = unconstraining(support)
    if core is constraints.real or core is constraints.real_vector or rep.space == "unconstrained":
        return Space(transform, rep)
    if core is constraints.simplex:
        return Space(IsometricLogRatio(), _on_log_ratios(name, rep))
    if core.event_dim == 0 and rep.is_permutation and _commutes(transform, rep, shape):
        return Space(transform, rep)
    raise SymmetryError(
        f"Expected site {name!r} to be real, a simplex, or moved by permutations of equally constrained entries; its "
        f"support is {support} and its action {rep}. Reparametrize it as a real site, or say that the action is on "
        f"unconstrained values: {name!r}: rep.on_unconstrained()."
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
    moved = [(transform(rep.act(g, u)), rep.act(g, value)) for g in rep.group.generators]
    return all(torch.allclose(a, b, rtol=COMMUTES, atol=COMMUTES) for a, b in moved)


def _on_log_ratios(name: str, rep: Representation) -> Representation:
    """The action on isometric log ratios of one that permutes the categories, its last axis."""
    *outer, categories = _last_axis(rep)
    if not categories.is_permutation or len(categories.event_shape) != 1:
        raise SymmetryError(
            f"Expected the categories of the simplex site {name!r} to be permuted, along the last axis; got {rep}."
        )
    basis = contrasts(categories.event_shape[0])
    matrices = torch.stack([categories.act(g, basis.mT).mT for g in range(len(rep.group))])
    ratios = matrix(rep.group, basis.mT @ matrices)
    return outer[0] * ratios if outer else ratios


def _last_axis(rep: Representation) -> tuple[Representation, ...]:
    """``rep`` as what acts on the axes before the last, if there are any, and what acts on the last."""
    if isinstance(rep, Product) and len(rep.right.event_shape) == 1:
        return rep.left, rep.right
    if isinstance(rep, Pullback) and isinstance(rep.base, Product):
        return tuple(part.pullback(rep.group, rep.homomorphism) for part in _last_axis(rep.base))
    return (rep,)
