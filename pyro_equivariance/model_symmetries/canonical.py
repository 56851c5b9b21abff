"""One representative of each orbit, so that draws from all of a symmetric posterior can be compared and summarised."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError, SymmetryError, check_option
from ..groups import Group, SignedPermutationGroup, SymmetricGroup
from ..representations import Representation, Trivial
from ..symmetry import Symmetry, needed
from .finders import exchangeable
from .things import Things, lexicographic_places

METHODS = ("order", "match")
MAX_LISTED, FEW = 50_000, 120
STACKED = "method_name"  # the axis of several methods in one set of ArviZ data
ROUNDS = 20


def canonicalize(
    samples: Any,
    symmetry: Symmetry,
    method: str = "match",
    key: str | None = None,
    reference: Mapping[str, Tensor] | None = None,
) -> Any:
    """Each draw moved to one representative of its orbit: ``ρ(g_t) θ_t``, one ``g_t`` for all sites of a draw.

    - ``"match"``: ``g_t`` minimises ``Σ_sites ‖ρ(g_t) θ_t − r‖² / v``, where ``v`` is the variance of an entry over its
      orbit. ``r`` is the reference, or by default the first draw and then the mean of the matched draws, until
      nothing changes any more. For permutations of many things this is an assignment problem [1], solved by SciPy; of
      blocks of them (units of several layers) one after the other, as long as it helps [2].
    - ``"order"``: the representative whose key has the lexicographically smallest entries: under permutations sorted,
      by the first column, ties by the next; where signs change, the largest, so that first entries are positive. Where
      the key leaves a choice, the other sites decide likewise.

    What does not depend on the choice, such as predictions, is the same before and after. Sites that the symmetry does
    not name stay as they are.

    :param samples: draws of the latent sites: a dict of tensors ``(*batch, *event)``, with the same batch of draws for
        all sites (the axes that they share on the left), such as Pyro's ``Predictive`` and ``mcmc.get_samples`` return;
        an MCMC object after its run (its chains are kept apart); ArviZ data with a ``posterior``, or an xarray dataset
        with the dimensions ``chain`` and ``draw``.
    :param Symmetry symmetry: of a finite group.
    :param str method: ``"match"`` or ``"order"``.
    :param str key: for ``"order"``, the site to be sorted by; by default the first that moves, shares last.
    :param dict reference: for ``"match"``, a value of each site that moves, or draws of it, whose mean is taken.
    :returns: the same kind of thing, the draws in the same order; of an MCMC object a dict by chain.
    :raises SymmetryError: if no site moves, for shapes that do not fit, or for a large group of another kind than
        permutations.

    [1] Stephens (2000) "Dealing with label switching in mixture models"
    [2] Ainsworth, Hayase, Srinivasa (2023) "Git Re-Basin: merging models modulo permutation symmetries"
    https://arxiv.org/abs/2209.04836

    >>> import torch, pyro_equivariance as pe
    >>> S3 = pe.SymmetricGroup(3)
    >>> symmetry = pe.Symmetry(S3, {"loc": pe.permutation(S3), "weight": pe.permutation(S3)})
    >>> loc, weight = torch.tensor([[0.0, 5.0, 9.0], [9.1, 0.1, 5.1]]), torch.tensor([[1, 2, 3], [3, 1, 2]])
    >>> draws = {"loc": loc, "weight": weight}
    >>> pe.canonicalize(draws, symmetry, method="order", key="loc")["weight"].tolist()
    [[1, 2, 3], [1, 2, 3]]
    """
    values, axes, rebuild = _opened(samples)
    orbits = _Orbits(values, needed(symmetry), axes)
    return rebuild(orbits.moved(_chosen(orbits, method, key, reference)))


def canonical_elements(
    samples: Any,
    symmetry: Symmetry,
    method: str = "match",
    key: str | None = None,
    reference: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The elements ``g_t`` by which :func:`canonicalize` moves the draws: how often each occurs is the occupancy.

    :returns: elements of the group, of the shape of the batch of draws.

    >>> import torch, pyro_equivariance as pe
    >>> flip = pe.Symmetry(pe.SignGroup(), {"z": pe.vector(pe.SignGroup())})
    >>> pe.canonical_elements({"z": torch.tensor([[2.0], [-2.1], [1.9]])}, flip).tolist()
    [0, 1, 0]
    """
    values, axes, _ = _opened(samples)
    return _chosen(_Orbits(values, needed(symmetry), axes), method, key, reference)


def relabel(
    samples: Any,
    model: Callable,
    plate: str,
    *args,
    method: str = "match",
    key: str | None = None,
    reference: Mapping[str, Tensor] | None = None,
    **kwargs,
) -> Any:
    """The members of a plate numbered alike in all draws: :func:`canonicalize` by :func:`exchangeable`.

    :param samples: as for :func:`canonicalize`.
    :param model: the model they come from.
    :param str plate: the plate whose members were exchanged.
    :param args: the model's arguments, observations included; ``kwargs`` likewise.
    :param str method: with ``key`` and ``reference`` as for :func:`canonicalize`.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model(x):
    ...     with pyro.plate("components", 2):
    ...         loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    ...     pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x)
    >>> pe.relabel({"loc": torch.tensor([[0.0, 5.0], [5.1, 0.1]])}, model, "components", torch.tensor(5.0))["loc"][:, 0]
    tensor([0.0000, 0.1000])
    """
    return canonicalize(samples, exchangeable(model, plate, *args, **kwargs), method, key, reference)


class _Orbits:
    """Draws of several sites, and how a group moves each draw as a whole."""

    def __init__(self, values: Mapping[str, Tensor], symmetry: Symmetry, axes: int | None):
        self.group, self.values = symmetry.group, dict(values)
        if not self.group.is_finite:
            raise SymmetryError(f"Expected a finite group, to choose one element of each orbit; got {self.group}.")
        self.reps = {name: rep for name, rep in symmetry.sites.items() if name in values}
        for name, rep in self.reps.items():
            rep.check_shape(values[name])
        moving = {name: rep for name, rep in self.reps.items() if rep.is_linear and not isinstance(rep, Trivial)}
        if not moving:
            raise SymmetryError(
                f"Expected draws of a site that the symmetry moves; it has {', '.join(map(repr, symmetry.sites))}, the "
                f"draws {', '.join(map(repr, values))}."
            )
        self.batch = _batch([(values[name].shape, len(rep.event_shape)) for name, rep in self.reps.items()], axes)
        self.moving = moving
        self.draws = {name: self._as_rows(values[name]) for name in moving}
        for name, rows in self.draws.items():
            if not rows.numel() or not bool(rows.isfinite().all()):
                bad = f"{int((~rows.isfinite()).sum())} values that are not finite" if rows.numel() else "none"
                raise SymmetryError(f"Expected finite draws of {name!r}, one at least; got {bad}. Leave these out.")

    def _as_rows(self, value: Tensor) -> Tensor:
        return value.detach().double().reshape(-1, *value.shape[len(self.batch) :])

    def act(self, name: str, g: Tensor | int, value: Tensor) -> Tensor:
        """A site of each draw moved by that draw's element; axes between the draws' and the event's go along."""
        if isinstance(g, int):
            return self.reps[name].act(g, value)
        dims = self.group.element_dims
        between = value.ndim - len(self.reps[name].event_shape) - (g.ndim - dims)
        shape = g.shape[: g.ndim - dims] + (1,) * between + g.shape[g.ndim - dims :]
        return self.reps[name].act(g.reshape(shape), value)

    def moved(self, g: Tensor) -> dict[str, Tensor]:
        """All sites as they were given, moved."""
        g = g.reshape(*self.batch, *g.shape[g.ndim - self.group.element_dims :])
        return self.values | {name: self.act(name, g, self.values[name]) for name in self.reps}

    def weights(self) -> dict[str, Tensor]:
        """``1 / v`` for each entry, ``v`` its variance over draws and orbits; 0 for what never varies."""
        weights = {}
        for name, rep in self.moving.items():
            mean, second = self.draws[name].mean(0), self.draws[name].square().mean(0)
            if rep.is_monomial:
                moved = rep if rep.is_permutation else rep.modulus(2)
                variance = moved.mean(second) - rep.mean(mean).square()
            else:
                variance = (second.mean() - rep.mean(mean).square().mean()).expand_as(second)
            weights[name] = torch.where(variance > 1e-12 * second.mean(), 1 / variance, 0.0)
        return weights


def _batch(shapes: list[tuple[torch.Size, int]], axes: int | None) -> torch.Size:
    """The axes of the draws: those which all sites share on the left."""
    outer = [shape[: len(shape) - event] for shape, event in shapes]
    shared = min(map(len, outer)) if axes is None else axes
    while axes is None and len({shape[:shared] for shape in outer}) > 1:
        shared -= 1
    if len({shape[:shared] for shape in outer}) > 1 or min(map(len, outer)) < shared or not shared:
        raise SymmetryError(
            f"Expected sites (*draws, *event) with the same axes of draws on the left; got "
            f"{', '.join(str(tuple(shape)) for shape, _ in shapes)}."
        )
    return outer[0][:shared]


def _chosen(orbits: _Orbits, method: str, key: str | None, reference: Mapping[str, Tensor] | None) -> Tensor:
    """The elements, of the shape of the batch."""
    check_option("method", method, METHODS)
    if method == "order":
        if reference is not None:
            raise OptionError("Expected reference= with method='match' only; got it with method='order'.")
        g = _ordered(orbits, _key(orbits, key))
    else:
        if key is not None:
            raise OptionError("Expected key= with method='order' only; got it with method='match'.")
        g = _matched(orbits, reference)
    return g.reshape(*orbits.batch, *g.shape[1:])


def _key(orbits: _Orbits, key: str | None) -> str:
    """The site to be ordered by: the one named, or the first that moves and holds no shares."""
    if key is None:
        return min(orbits.moving, key=lambda name: _are_shares(orbits.draws[name]))
    if key not in orbits.moving:
        raise OptionError(f"Expected key= to be a site that moves, {', '.join(map(repr, orbits.moving))}; got {key!r}.")
    return key


def _are_shares(values: Tensor) -> bool:
    return bool((values >= 0).all()) and bool(((values.sum(-1) - 1).abs() < 1e-4).all())


def _ordered(orbits: _Orbits, key: str) -> Tensor:
    """The elements that make the key, and then the other sites, smallest; what may change its sign, largest."""
    rep, values = orbits.moving[key], orbits.draws[key]
    if not _is_listed(orbits.group):
        return _sorted(Things(orbits.group), rep, values)
    names = [key, *(name for name in orbits.moving if name != key)]
    signs = {name: 1 if orbits.moving[name].is_permutation else -1 for name in names}

    def rows(g: int) -> Tensor:
        return torch.cat([signs[name] * _rows(orbits.act(name, g, orbits.draws[name])) for name in names], 1)

    best, chosen = rows(0), torch.zeros(len(values), dtype=torch.long)
    for g in range(1, len(orbits.group)):
        copies = rows(g)
        better = _precedes(copies, best)
        best, chosen = torch.where(better[:, None], copies, best), torch.where(better, g, chosen)
    return chosen


def _sorted(things: Things, rep: Representation, values: Tensor) -> Tensor:
    """The same for one block of things along one axis, by sorting."""
    axes = things.axes(rep)
    if len(axes) != 1 or len(things.blocks) != 1:
        raise SymmetryError(
            f"Expected a key along whose one axis all things are permuted, to order by it; got {rep} under "
            f"{things.group}. Use method='match'."
        )
    ((_, axis, signed),) = axes
    rows = values.movedim(axis, 1).reshape(len(values), values.shape[axis], -1)
    if not signed:
        return things.elements(lexicographic_places(rows), torch.ones(rows.shape[:2], dtype=torch.long))
    signs = torch.where(rows[..., 0] < 0, -1, 1)
    return things.elements(lexicographic_places(-rows * signs[..., None]), signs)


def _rows(values: Tensor) -> Tensor:
    """``(draws, entries)``."""
    return values.reshape(len(values), -1)


def _precedes(a: Tensor, b: Tensor) -> Tensor:
    """Whether ``a`` comes before ``b`` in lexicographic order, row by row."""
    difference = a - b
    first = (difference != 0).long().argmax(1, keepdim=True)
    return difference.gather(1, first)[:, 0] < 0


def _matched(orbits: _Orbits, reference: Mapping[str, Tensor] | None) -> Tensor:
    weights = orbits.weights()
    if reference is not None:
        return _nearest(orbits, _given(orbits, reference), weights)
    target = {name: values[0] for name, values in orbits.draws.items()}
    chosen = None
    for _ in range(ROUNDS):
        g = _nearest(orbits, target, weights)
        if chosen is not None and torch.equal(g, chosen):
            break
        chosen = g
        target = {name: orbits.act(name, g, values).mean(0) for name, values in orbits.draws.items()}
    return chosen


def _given(orbits: _Orbits, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A value of every site that moves, the mean of draws where several are given."""
    target = {}
    for name, values in orbits.draws.items():
        shape = values.shape[1:]
        value = torch.as_tensor(reference[name]).double() if name in reference else None
        if value is None or value.shape[value.ndim - len(shape) :] != shape or value.ndim < len(shape):
            found = "nothing" if value is None else tuple(value.shape)
            raise SymmetryError(f"Expected reference= with {name!r} of shape (..., {tuple(shape)}); got {found}.")
        target[name] = value.reshape(-1, *shape).mean(0)
    return target


def _nearest(orbits: _Orbits, target: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """For each draw the element that takes it nearest to the target."""
    group, count = orbits.group, len(next(iter(orbits.draws.values())))
    if not _is_listed(group):
        return _assigned(orbits, target, weights)
    best, chosen = torch.full((count,), torch.inf, dtype=torch.double), torch.zeros(count, dtype=torch.long)
    for g in range(len(group)):
        distance = sum(
            _rows((orbits.act(name, g, values) - target[name]).square() * weights[name]).sum(1)
            for name, values in orbits.draws.items()
        )
        better = distance < best
        best, chosen = torch.where(better, distance, best), torch.where(better, g, chosen)
    return chosen


def _assigned(orbits: _Orbits, target: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """The same for permutations of things in blocks, by an assignment for each block in turn."""
    things = Things(orbits.group)
    axes = {name: things.axes(rep) for name, rep in orbits.moving.items()}
    aims = {name: (target[name] * weights[name]).numpy() for name in axes}
    rows = [
        things.assign({name: values[t].numpy() for name, values in orbits.draws.items()}, aims, axes)
        for t in range(len(next(iter(orbits.draws.values()))))
    ]
    places, signs = (torch.stack([torch.as_tensor(part) for part in column]) for column in zip(*rows, strict=True))
    return things.elements(places, signs)


def _is_listed(group: Group) -> bool:
    """Whether all elements are tried one by one; of permutations only where they are few."""
    few = FEW if isinstance(group, (SymmetricGroup, SignedPermutationGroup)) else MAX_LISTED
    return group.is_indexed and len(group) <= few


def _opened(samples: Any) -> tuple[dict[str, Tensor], int | None, Callable]:
    """The draws by site, the number of axes of draws where it is known, and what puts moved ones in their place."""
    if hasattr(samples, "get_samples"):  # an MCMC object
        return dict(samples.get_samples(group_by_chain=True)), 2, dict
    groups = getattr(samples, "groups", ())  # a method of InferenceData, a property of DataTree
    if not any(str(group).strip("/") == "posterior" for group in (groups() if callable(groups) else groups)):
        if hasattr(samples, "data_vars"):
            return _opened_dataset(samples)
        if isinstance(samples, Mapping):
            return {name: torch.as_tensor(value) for name, value in samples.items()}, None, dict
        raise SymmetryError(
            f"Expected draws as a dict of tensors, an MCMC object, ArviZ data with a posterior or an xarray dataset; "
            f"got {type(samples).__name__}."
        )
    posterior = samples["posterior"]
    values, axes, rebuild = _opened_dataset(posterior.to_dataset() if hasattr(posterior, "to_dataset") else posterior)

    def put(moved: dict[str, Tensor]) -> Any:
        other = samples.copy()
        if hasattr(other, "children"):
            other["posterior"].dataset = rebuild(moved)
        else:
            other.posterior = rebuild(moved)
        return other

    return values, axes, put


def _opened_dataset(dataset: Any) -> tuple[dict[str, Tensor], int, Callable]:
    batch = [dim for dim in (STACKED, "chain", "draw", "sample") if dim in dataset.dims]
    if "sample" not in batch and not {"chain", "draw"} <= set(batch):
        raise SymmetryError(
            f"Expected a dataset with the dimensions chain and draw, or sample; it has {tuple(dataset.dims)}."
        )
    drawn = dataset[[name for name, values in dataset.items() if set(batch) <= set(values.dims)]]
    ordered = drawn.transpose(*batch, ...)
    values = {str(name): torch.from_numpy(array.values.copy()) for name, array in ordered.items()}

    def put(moved: dict[str, Tensor]) -> Any:
        arrays = {name: array.copy(data=moved[str(name)].numpy()) for name, array in ordered.items()}
        return dataset.assign({name: array.transpose(*dataset[name].dims) for name, array in arrays.items()})

    return values, len(batch), put
