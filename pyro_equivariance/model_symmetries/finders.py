"""Symmetries of a model by their kind: which of its sites move, and how, is worked out and then checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations, islice
from operator import mul

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..errors import OptionError, SymmetryError, check_option
from ..groups import Group, SignedPermutationGroup, SignGroup, SymmetricGroup, YoungSubgroup
from ..representations import (
    Representation,
    Reshaped,
    Trivial,
    labels,
    permutation,
    signed_permutation,
    trivial,
    vector,
)
from ..spaces import space_of
from ..symmetry import Symmetry
from .base import ModelDensity
from .check import Change, largest_change

MAX_CANDIDATES = 128
MAX_TOGETHER = 3
MAX_NUMBERED = 20
KINDS = ("signed permutations", "signs", "permutations")


def exchangeable(model: Callable, plate: str, *args, **kwargs) -> Symmetry:
    """The permutations of a plate: ``S_n`` moves all that belongs to its ``n`` members together.

    Every site inside the plate is permuted along it. Outside of it are permuted, where the model's log density then
    keeps its value: the simplex of weights over the members; a discrete assignment, whose values are relabelled
    (:func:`~pyro_equivariance.labels`), or which is summed out; any other axis of that length, such as the columns of a
    transition matrix. All other sites stay. The result is confirmed by :func:`check_symmetry`.

    A mixture's guide needs the assignment summed out, ``poutine.block(model, hide=["z"])`` and
    :class:`~pyro.infer.TraceEnum_ELBO`, or never drawn, as in ``dist.MixtureSameFamily``.

    :param model: a Pyro model.
    :param str plate: the name of a plate of which the model sees all, not a part.
    :param args: the model's arguments, observations included; ``kwargs`` likewise.
    :returns: of ``SymmetricGroup(n)``, for more than 20 members of ``YoungSubgroup(n)``; with a representation for
        every latent site.
    :raises SymmetryError: if there is no such plate, if it is subsampled, or if its members are told apart, by unequal
        priors or by what is observed: naming the site that does.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model(x):
    ...     weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    ...     with pyro.plate("components", 3):
    ...         loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale)), obs=x)
    >>> symmetry = pe.exchangeable(model, "components", torch.randn(20))
    >>> dict(symmetry.sites)
    {'weights': permutation(3), 'scale': trivial(), 'loc': permutation(3)}
    """
    density = ModelDensity(model, args, kwargs)
    size = _whole_plate(density, plate)
    group = SymmetricGroup(size) if size <= MAX_NUMBERED else YoungSubgroup(size)
    one, relabelled = permutation(group), labels(group)
    options = {name: _with_plate(site, plate, one, relabelled) for name, site in density.latents.items()}
    if not any(_is_inside(site, plate) for site in density.latents.values()):
        raise SymmetryError(
            f"Expected a plate with latent sites inside, to exchange its members; {plate!r} has none: what is observed "
            f"there stays where it is."
        )
    return _first_that_holds(density, group, options)


def sign_flips(model: Callable, sites: str | Sequence, *args, **kwargs) -> Symmetry:
    """Changes of sign: all named sites flip together, ``θ ↦ −θ``.

    :param model: a Pyro model.
    :param sites: the name of a real site, or a list of names that flip together; a list of lists for several that
        flip independently of one another, which gives a product of groups.
    :param args: the model's arguments, observations included; ``kwargs`` likewise.
    :returns: of ``SignGroup()`` or a product of several, with a representation for every latent site.
    :raises SymmetryError: for a site that is no real latent site, or named twice; if the log density changes, naming
        the site that does.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model(y):
    ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
    ...     b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...     pyro.sample("y", dist.Normal(a * b, 0.1).to_event(1), obs=y)
    >>> pe.sign_flips(model, ["a", "b"], torch.ones(2))
    Symmetry(SignGroup(), 2 sites, inputs=None, outputs=None)
    """
    density = ModelDensity(model, args, kwargs)
    together = _independent_sets(sites)
    named = [name for names in together for name in names]
    for name in named:
        if not _is_real(density.site(name)):
            raise SymmetryError(
                f"Expected real sites, to change their signs; {name!r} has the support "
                f"{density.site(name)['fn'].support}. Say for which of its coordinates that is a symmetry by hand: "
                f"pe.Symmetry(group, {{{name!r}: rep.on_unconstrained()}})."
            )
    if repeated := [name for name in named if named.count(name) > 1]:
        raise SymmetryError(f"Expected each site once, to flip with one group of sites; {repeated[0]!r} is in several.")
    group = reduce(mul, [SignGroup() for _ in together])
    options = {name: _still(site, group) for name, site in density.latents.items()}
    for column, names in enumerate(together):
        signs = _bits(len(together))[:, column]
        for name in names:
            options[name] = [_flip(group, 1 - 2 * signs, _event_shape(density.latents[name]))]
    return _first_that_holds(density, group, options)


def orthogonal_factors(
    model: Callable, sites: str | Sequence[str], *args, group: str | Group = "signed permutations", **kwargs
) -> Symmetry:
    """Rotations and reflections of latent factors, ``W ↦ W Rᵀ``, ``z ↦ R z``, by a finite group of ``R``.

    With isotropic priors the model of ``x ≈ W z`` keeps its log density under all orthogonal maps of the factors. A
    finite group of them is used here: by default their permutations with signs, of order ``2^K K!``, which mean-field
    guides bear; for two factors ``CyclicGroup(n)`` or ``DihedralGroup(n)`` come as near to all as is wished, for three
    the group of the cube is largest. ``W`` and ``z`` move along their axis of length ``K``, which is found (if several
    would do, the last one that keeps the log density); positive sites, such as scales of the factors, and simplices
    move by ``|R|``, which has to be a permutation.

    :param model: a Pyro model.
    :param sites: names of all sites that have an axis of factors.
    :param args: the model's arguments, observations included; ``kwargs`` likewise.
    :param group: ``"signed permutations"``, ``"signs"`` (each factor by itself), ``"permutations"``, or a group that
        has vectors (:func:`~pyro_equivariance.vector`).
    :returns: with a representation for every latent site.
    :raises SymmetryError: if the sites have no axis of one length; if the log density changes, naming the site that
        does.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model(x):
    ...     W = pyro.sample("W", dist.Normal(torch.zeros(4, 2), 1.0).to_event(2))
    ...     cov = W @ W.mT + 0.1 * torch.eye(4)
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.MultivariateNormal(torch.zeros(4), cov), obs=x)
    >>> symmetry = pe.orthogonal_factors(model, "W", torch.randn(20, 4))
    >>> symmetry.sites["W"], len(symmetry.group)
    (trivial(4,) * signed permutation(2), 8)
    """
    density = ModelDensity(model, args, kwargs)
    named = _names(sites)
    refused: list[SymmetryError] = []
    for count in _factor_counts(density, named, group):
        acting, factors = _factor_group(count, group)
        options = {
            name: _along(name, site, factors) if name in named else _still(site, acting)
            for name, site in density.latents.items()
        }
        try:
            return _first_that_holds(density, acting, options)
        except SymmetryError as error:
            refused.append(error)
    raise refused[0]


@dataclass(frozen=True)
class FoundSymmetry:
    """A symmetry of a model that :func:`find_symmetries` confirmed.

    ``kind`` is the name of the function that makes it, and ``over`` its second argument: a plate or sites.
    """

    kind: str
    over: str | tuple[str, ...]
    symmetry: Symmetry = field(repr=False)

    @property
    def moved(self) -> tuple[str, ...]:
        """The names of the sites that it moves."""
        return tuple(name for name, rep in self.symmetry.sites.items() if not isinstance(rep, Trivial))

    def __str__(self) -> str:
        over = self.over if isinstance(self.over, str) else ", ".join(self.over)
        group = self.symmetry.group
        return f"{self.kind}({over}): {group}, order {group.order}, moves {', '.join(self.moved)}"


def find_symmetries(model: Callable, *args, **kwargs) -> list[FoundSymmetry]:
    """The obvious symmetries of a model: exchangeable plates, and real sites whose signs may flip together.

    Each plate of which the model sees all is tried, and each set of up to three real sites, and all of them; a set that
    is made of smaller ones found before is left out. Where the signs of sites in an exchangeable plate flip, signed
    permutations of its members are tried as well. What is listed was confirmed by :func:`check_symmetry`. Symmetries
    that commute are combined by ``*``: ``found[0].symmetry * found[1].symmetry``.

    :param model: a Pyro model.
    :param args: the model's arguments, observations included; ``kwargs`` likewise.
    :returns: in the order of plates, then sites; empty if there is none.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model(y):
    ...     with pyro.plate("units", 3):
    ...         w = pyro.sample("w", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(w.square().sum(), 0.1), obs=y)
    >>> print(*pe.find_symmetries(model, torch.tensor(1.0)), sep="\\n")
    exchangeable(units): SymmetricGroup(3), order 6, moves w
    sign_flips(w): SignGroup(), order 2, moves w
    orthogonal_factors(w): SignedPermutationGroup(3), order 48, moves w
    """
    density = ModelDensity(model, args, kwargs)
    found = []
    for plate, (size, whole) in density.plates.items():
        if whole and size > 1:
            found += _tried(exchangeable, model, plate, args, kwargs)
    flips: list[frozenset[str]] = []
    for names in _sets_of([name for name, site in density.latents.items() if _is_real(site)]):
        if _spanned(frozenset(names), flips):
            continue
        fresh = _tried(sign_flips, model, names, args, kwargs)
        flips += [frozenset(names)] * len(fresh)
        found += fresh
    for plate in [one for one in found if one.kind == "exchangeable"]:
        if any(names <= set(plate.moved) for names in flips):  # perhaps each member can flip by itself
            found += _tried(orthogonal_factors, model, plate.moved, args, kwargs)
    return found


def _tried(find: Callable, model: Callable, over: str | tuple, args: tuple, kwargs: Mapping) -> list[FoundSymmetry]:
    try:
        return [FoundSymmetry(find.__name__, over, find(model, over, *args, **kwargs))]
    except SymmetryError:
        return []


def _sets_of(names: list[str]) -> Iterable[tuple[str, ...]]:
    for size in range(1, min(MAX_TOGETHER, len(names)) + 1):
        yield from combinations(names, size)
    if len(names) > MAX_TOGETHER:
        yield tuple(names)


def _spanned(names: frozenset[str], flips: list[frozenset[str]]) -> bool:
    """Whether a set is the symmetric difference of some that were found: flipping twice is not flipping."""
    pivots: dict[str, frozenset[str]] = {}
    for row in flips:
        if row := _reduced(row, pivots):
            pivots[min(row)] = row
    return not _reduced(names, pivots)


def _reduced(row: frozenset[str], pivots: dict[str, frozenset[str]]) -> frozenset[str]:
    for name in sorted(pivots):
        if name in row:
            row = row ^ pivots[name]
    return row


def _first_that_holds(density: ModelDensity, group: Group, options: dict[str, list]) -> Symmetry:
    """The first symmetry, among the choices for each site, under which the log density keeps its value.

    ``None`` is the choice to sum a discrete site out. Where no symmetry holds, the error is that of the one which comes
    nearest to it.
    """
    fitting = {name: _fitting(name, density.latents[name], choices) for name, choices in options.items()}
    left = {name: list(choices) for name, choices in fitting.items()}
    while True:  # where the prior of a site is what breaks, that site may move in another way, or not
        symmetry, change = _tried_choice(density, group, fitting, [choices[0] for choices in left.values()])
        if not change.message:
            return symmetry
        if len(left.get(change.site, ())) < 2:
            break
        left[change.site].pop(0)
    nearest = None
    for choice in islice(_first_choices_first(list(fitting.values())), MAX_CANDIDATES):
        symmetry, change = _tried_choice(density, group, fitting, choice)
        if not change.message:
            return symmetry
        rank = (None in choice, change.size)
        if nearest is None or rank < nearest[0]:
            nearest = rank, change.message
    raise SymmetryError(nearest[1])


def _tried_choice(density: ModelDensity, group: Group, fitting, choice) -> tuple[Symmetry, Change]:
    sites = {name: rep for name, rep in zip(fitting, choice, strict=True) if rep is not None}
    symmetry = Symmetry(group, sites)
    return symmetry, largest_change(density, symmetry, stop=True)


def _fitting(name: str, site: dict, choices: list) -> list:
    """The choices that can act on the site; the error of the first if none can."""
    fitting, refused = [], []
    for rep in choices:
        try:
            if rep is not None and not site["fn"].support.is_discrete:
                space_of(Symmetry(rep.group, {name: rep}), name, site)
            fitting.append(rep)
        except SymmetryError as error:
            refused.append(error)
    if not fitting:
        raise refused[0]
    return fitting


def _first_choices_first(options: list[list]) -> Iterator[tuple]:
    """All ways to choose one from each list, in the order of how far down the lists they go."""
    for down in range(sum(len(choices) - 1 for choices in options) + 1):
        yield from _choices(options, down)


def _choices(options: list[list], down: int) -> Iterator[tuple]:
    """Those that go so many places down in all."""
    if not options:
        yield ()
        return
    most = sum(len(choices) - 1 for choices in options[1:])
    for i in range(max(0, down - most), min(down, len(options[0]) - 1) + 1):
        for rest in _choices(options[1:], down - i):
            yield (options[0][i], *rest)


def _whole_plate(density: ModelDensity, plate: str) -> int:
    """The size of a plate, once it was seen to be there, and whole."""
    if not isinstance(plate, str) or plate not in density.plates:
        listed = ", ".join(map(repr, density.plates)) or "none"
        raise SymmetryError(f"Expected the name of a vectorised plate of the model; got {plate!r}. Plates: {listed}.")
    size, whole = density.plates[plate]
    if not whole:
        raise SymmetryError(f"Expected a plate of which the model sees all; {plate!r} is subsampled, {size} at a time.")
    return size


def _with_plate(site: dict, plate: str, one: Representation, relabelled: Representation) -> list:
    """How a site may move with the members of a plate, what moves more of it first; ``None`` to sum it out."""
    event_dim, support = site["fn"].event_dim, site["fn"].support
    own = [f.dim - event_dim for f in site["cond_indep_stack"] if f.vectorized and f.name == plate]
    along = [_on_axes(site, axes, one) for axes in _sets_of_axes(site, one.event_shape[0], own)]
    if own or not support.is_discrete:
        return along
    takes_members = _values(support) == (0, one.event_shape[0] - 1)
    return [relabelled] * takes_members + along + [None] * _is_enumerated(site)


def _is_enumerated(site: dict) -> bool:
    return bool(site["infer"].get("enumerate"))


def _is_inside(site: dict, plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def _sets_of_axes(site: dict, n: int, own: list[int]) -> list[tuple[int, ...]]:
    """Axes of length ``n``, the site's own axis of the plate always among them, larger sets first."""
    shape = site["value"].shape
    others = [axis for axis in range(-len(shape), 0) if shape[axis] == n and axis not in own]
    return [(*own, *some) for size in range(len(others), -1, -1) for some in combinations(others, size)]


def _on_axes(site: dict, axes: Sequence[int], one: Representation) -> Representation:
    """The action of ``one`` along some axes of a site at once, those between and in the event that do not move too."""
    shape, event_dim = site["value"].shape, site["fn"].event_dim
    first = min(*axes, -event_dim) if axes else -event_dim
    factors = [one if axis in axes else trivial(one.group, shape[axis]) for axis in range(first, 0)]
    return reduce(mul, factors) if axes and factors else trivial(one.group, _event_shape(site))


def _values(support) -> tuple | None:
    """The lowest and highest value of a discrete support, if it is an interval alike for all entries."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return 0, 1
    if not hasattr(support, "upper_bound"):
        return None
    ends = [torch.as_tensor(end).unique() for end in (support.lower_bound, support.upper_bound)]
    return tuple(int(end) for end in ends) if all(len(end) == 1 for end in ends) else None


def _event_shape(site: dict):
    shape, event_dim = site["value"].shape, site["fn"].event_dim
    return shape[len(shape) - event_dim :]


def _still(site: dict, group: Group) -> list:
    """A site that stays, or where the model enumerates it, is summed out."""
    return [trivial(group, _event_shape(site))] + [None] * _is_enumerated(site)


def _names(sites: str | Sequence[str]) -> list[str]:
    names = [sites] if isinstance(sites, str) or not isinstance(sites, Sequence) else list(sites)
    if not names or not all(isinstance(name, str) for name in names):
        raise OptionError(f"Expected sites= to be the name of a site or a list of names; got {sites!r}.")
    return names


def _independent_sets(sites: str | Sequence) -> list[list[str]]:
    """The sites that flip together, one list for each sign."""
    listed = isinstance(sites, Sequence) and not isinstance(sites, str)
    nested = listed and any(not isinstance(names, str) for names in sites)
    return [_names(names) for names in sites] if nested else [_names(sites)]


def _is_real(site: dict) -> bool:
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)


def _bits(count: int) -> Tensor:
    """For every element of a product of so many sign groups, which of them flip: ``(2^count, count)``."""
    return torch.arange(2**count)[:, None] >> torch.arange(count - 1, -1, -1) & 1


def _flip(group: Group, signs: Tensor, shape: torch.Size) -> Representation:
    """All entries of a tensor times the sign of the element."""
    n = shape.numel()
    rep = signed_permutation(group, torch.arange(n).expand(len(group), n), signs[:, None].expand(-1, n))
    return Reshaped(rep, shape, label="signs")


def _factor_counts(density: ModelDensity, names: list[str], group: str | Group) -> list[int]:
    """The numbers of factors that there may be: the lengths that all of the sites have, of two at least."""
    shapes = [set(density.site(name)["value"].shape) for name in names]
    shared = sorted(size for size in set.intersection(*shapes) if size > 1)
    wanted = None if isinstance(group, str) else vector(group).event_shape[0]
    if wanted is not None:
        shared = [size for size in shared if size == wanted]
    if not shared:
        length = "one length, two or more" if wanted is None else f"the length {wanted} of the vectors of {group}"
        each = ", ".join(f"{name!r} {tuple(density.latents[name]['value'].shape)}" for name in names)
        raise SymmetryError(f"Expected sites with an axis of factors, of {length}; got {each}.")
    return shared


def _factor_group(count: int, group: str | Group) -> tuple[Group, Representation]:
    """The group, and how it moves the factors."""
    if not isinstance(group, str):
        return group, vector(group)
    check_option("group", group, KINDS)
    if group == "permutations":
        return SymmetricGroup(count), permutation(SymmetricGroup(count))
    if group == "signed permutations":
        return SignedPermutationGroup(count), vector(SignedPermutationGroup(count))
    signs = reduce(mul, [SignGroup() for _ in range(count)])
    return signs, signed_permutation(signs, torch.arange(count).expand(len(signs), count), 1 - 2 * _bits(count))


def _along(name: str, site: dict, factors: Representation) -> list[Representation]:
    """A site with its axis of factors moved, whichever of that length it is, the last first."""
    if not _is_real(site) and not factors.is_monomial:
        raise SymmetryError(
            f"Expected factors moved by signed permutations, where the site {name!r} of support "
            f"{site['fn'].support} moves with them; {factors} mixes them."
        )
    moved = factors if _is_real(site) else factors.modulus()
    shape = site["value"].shape
    axes = [axis for axis in range(-1, -len(shape) - 1, -1) if shape[axis] == moved.event_shape[0]]
    return [_on_axes(site, [axis], moved) for axis in axes]
