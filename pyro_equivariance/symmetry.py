"""One group element moves everything together: the sites of a model, its inputs and its outputs."""

import copy
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .errors import LayerError, SymmetryError
from .groups import Group, ProductGroup
from .groups.base import positive_int
from .measures import ElementList
from .representations import Composed, Factor, Listed, Representation, Trivial

CHECK_TOLERANCE = 1e-6
CHECK_ALL = 64


class Symmetry:
    """How ``group`` acts on the sites ``θ``, the inputs ``x`` and the outputs ``y`` of a model.

    The model is *compatible* with it when ``f(ρ_X(g) x; ρ(g) θ) = ρ_Y(g) f(x; θ)`` for all ``g, x, θ``; then an
    invariant posterior has an equivariant predictive. Symmetries are immutable values.

    :param Group group: the group.
    :param dict sites: a representation for each site (for a network: each parameter, by its name).
    :param Representation inputs: how one input moves; ``None`` where inputs do not move.
    :param Representation outputs: how one output moves; ``None`` for invariant outputs, such as class labels.
    :param dict features: for :meth:`check`, how the outputs of named submodules move.
    :raises SymmetryError: if a representation is of another group.

    >>> import torch, pyro_equivariance as pe
    >>> G = pe.CyclicGroup(4)
    >>> sym = pe.Symmetry(G, {"kernel": pe.image(G, (3, 3))}, inputs=pe.image(G, (1, 8, 8)))
    >>> sym.act(1, {"kernel": torch.eye(3)})["kernel"].tolist()
    [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        group: Group,
        sites: Mapping[str, Representation],
        inputs: Representation | None = None,
        outputs: Representation | None = None,
        features: Mapping[str, Representation] | None = None,
    ):
        self.group = group
        self.sites = MappingProxyType(dict(sites))
        self.inputs, self.outputs = inputs, outputs
        self.features = MappingProxyType(dict(features or {}))
        named = {**self.sites, **self.features, "inputs": inputs, "outputs": outputs}
        for name, rep in named.items():
            if rep is not None and getattr(rep, "group", None) != group:
                raise SymmetryError(f"Expected a representation of {group} for {name!r}; got {rep!r}.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Symmetry) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.group, frozenset(self.sites.items()), self.inputs, self.outputs))

    def __reduce__(self):
        return Symmetry, (self.group, dict(self.sites), self.inputs, self.outputs, dict(self.features))

    def _key(self) -> tuple:
        return (self.group, dict(self.sites), self.inputs, self.outputs, dict(self.features))

    def __repr__(self) -> str:
        return f"Symmetry({self.group}, {len(self.sites)} sites, inputs={self.inputs}, outputs={self.outputs})"

    def __getitem__(self, site: str) -> Representation:
        """The representation of one site.

        :raises SymmetryError: if the site has none.
        """
        if site not in self.sites:
            raise SymmetryError(
                f"Expected a representation for site {site!r}; this symmetry has "
                f"{', '.join(map(repr, self.sites)) or 'none'}. "
                f"Add {site!r} to sites=, with pe.trivial(group, shape) if it does not move."
            )
        return self.sites[site]

    def __mul__(self, other: "Symmetry") -> "Symmetry":
        """Two symmetries of one model together: the group is ``G × H``.

        A site that only one of them moves moves by that one. A site that both move moves by ``ρ1(g) ρ2(h)``, so the two
        actions must commute; likewise inputs, outputs and features.

        :raises SymmetryError: if two actions on one site do not commute, or differ in shape or in space; for a group
            whose elements are not numbered.

        >>> import torch, pyro_equivariance as pe
        >>> Z2, field = pe.SignGroup(), pe.lattice(pe.DihedralGroup(4), (8, 8))
        >>> flip = (pe.vector(Z2) * pe.trivial(Z2, (8, 8))).reshape((8, 8))
        >>> symmetry = pe.Symmetry(field.group, {"field": field}) * pe.Symmetry(Z2, {"field": flip})
        >>> len(symmetry.group), symmetry["field"].mean(torch.ones(8, 8)).abs().max().item()
        (1024, 0.0)

        Components that may be relabelled, while their mirror images fit as well:

        >>> S3 = pe.SymmetricGroup(3)
        >>> relabel = pe.Symmetry(S3, {"locs": pe.permutation(S3), "assignment": pe.labels(S3)})
        >>> mirror = pe.Symmetry(Z2, {"locs": pe.signed_permutation(Z2, [[0, 1, 2]] * 2, [[1] * 3, [-1] * 3])})
        >>> values = {"locs": torch.tensor([1.0, 2.0, 3.0]), "assignment": torch.tensor(2)}
        >>> moved = (relabel * mirror).act(3, values)  # things 1 and 2 exchanged, and all signs
        >>> moved["locs"].tolist(), moved["assignment"].item()
        ([-1.0, -3.0, -2.0], 1)
        """
        if not isinstance(other, Symmetry):
            return NotImplemented
        group = ProductGroup(self.group, other.group)
        sites = _joined_all(group, self.sites, other.sites)
        features = _joined_all(group, self.features, other.features)
        inputs = _joined(group, self.inputs, other.inputs, "inputs")
        return Symmetry(group, sites, inputs, _joined(group, self.outputs, other.outputs, "outputs"), features)

    def act(self, g: Tensor | int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``ρ(g) θ``: every site moved by the same ``g``.

        :param Tensor g: elements; broadcasts over the leading axes of each value.
        :param dict values: a tensor ``(..., *event_shape)`` for each site.
        """
        return {site: self[site].act(g, value) for site, value in values.items()}

    def act_inputs(self, g: Tensor | int, x: Tensor) -> Tensor:
        """``ρ_X(g) x`` for inputs ``(..., *inputs.event_shape)``."""
        return self._need_inputs().act(g, x)

    def listed(self, count: int, identity: bool = True) -> "Symmetry":
        """The same actions of so many elements drawn once: a list that stands for a continuous group or a measure.

        Predictions, metrics and averages over it are sums. It is no group (see
        :class:`~pyro_equivariance.measures.ElementList`), and what promises invariance refuses it.

        Metrics need the identity, whose part of a defect is 0: that over the law is ``(K + 1) / K`` times that over the
        list. Predictions and averages do not, and estimate the mean over the law without it.

        :param int count: K, how many elements are drawn.
        :param bool identity: whether the identity is put before them.
        :raises SymmetryError: for a symmetry that is a list already.

        >>> import math, torch, pyro_equivariance as pe
        >>> tilts = pe.LieBox(pe.Generators.so(2), math.pi / 6)
        >>> symmetry = pe.Symmetry(tilts, {}, inputs=pe.image(tilts, (8, 8), interpolation="bilinear"))
        >>> symmetry.listed(16).inputs.orbit(torch.ones(3, 8, 8)).shape
        torch.Size([17, 3, 8, 8])
        """
        group = self.group
        if isinstance(group, ElementList):
            raise SymmetryError(f"Expected a symmetry of a group or a measure, to draw from; got {group}.")
        elements = group.sample((positive_int(count, "the number of listed elements"),))
        if identity:
            elements = torch.cat([group.identity.to(elements)[None], elements])
        drawn = ElementList(group, elements)
        named = {name: Listed(rep, drawn) for name, rep in self.sites.items()}
        features = {name: Listed(rep, drawn) for name, rep in self.features.items()}
        inputs, outputs = (None if rep is None else Listed(rep, drawn) for rep in (self.inputs, self.outputs))
        return Symmetry(drawn, named, inputs, outputs, features)

    def _need_inputs(self) -> Representation:
        if self.inputs is None:
            raise SymmetryError(f"Expected inputs= in {self}: how the group moves one input.")
        return self.inputs

    def act_outputs(self, g: Tensor | int, y: Tensor) -> Tensor:
        """``ρ_Y(g) y``; integer class labels move as the indices of the classes do.

        :param Tensor y: outputs ``(..., *outputs.event_shape)``, or integer labels ``(...)``. Invariant outputs have
            the first axis as their batch, and are repeated where ``g`` has more.
        :raises SymmetryError: for integer labels under outputs that are not one permuted axis.
        """
        g = self.group.as_elements(g)
        if self.outputs is None:
            batch = g.shape[: g.ndim - self.group.element_dims]
            return y.expand(torch.broadcast_shapes(batch, y.shape[:1]) + y.shape[1:])
        if y.is_floating_point():
            return self.outputs.act(g, y)
        return self._moved_labels(g, y)

    def _moved_labels(self, g: Tensor, y: Tensor) -> Tensor:
        """Classes ``y``, one for each place, moved as their indicator tensors ``(classes, *places)`` are."""
        classes, *places = self.outputs.event_shape or (0,)
        if not self.outputs.is_permutation or y.shape[y.ndim - len(places) :] != torch.Size(places):
            raise SymmetryError(
                f"Expected outputs= that permute classes (and places), to move integer labels of shape "
                f"{tuple(y.shape)}; got {self.outputs}."
            )
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= classes):
            raise SymmetryError(
                f"Expected integer labels between 0 and {classes - 1} to move them as {self.outputs} does; got "
                f"{int(y.min())} to {int(y.max())}. Numbers that are no classes are moved as floats: y.float()."
            )
        axis = -1 - len(places)
        indicators = (
            y.unsqueeze(axis) == torch.arange(classes, device=y.device).reshape(-1, *[1] * len(places))
        ).long()
        return self.outputs.act(g.to(y.device), indicators).argmax(axis)

    def check(self, net: nn.Module, seed: int = 0) -> float:
        """Confirm ``f(ρ_X(g) x; ρ(g) θ) = ρ_Y(g) f(x; θ)`` on random weights and inputs, in float64.

        :param Module net: the network whose parameters are the sites.
        :returns: the largest deviation over the group, relative to the output's size.
        :raises LayerError: naming the first layer whose output does not move as ``features`` says.
        :raises SymmetryError: if a parameter has no representation, or one of the wrong shape.
        """
        self._need_inputs()._need_exact("a check of the network")
        generator = torch.Generator().manual_seed(seed)
        net = copy.deepcopy(net).double().eval()
        elements = self._some_elements(generator)
        weights = {name: _random_like(p, generator) for name, p in net.named_parameters()}
        for name, value in weights.items():
            if self[name].event_shape != value.shape:
                raise SymmetryError(
                    f"Expected the representation of site {name!r} to act on shape {tuple(value.shape)}; "
                    f"got {tuple(self[name].event_shape)}."
                )
        x = random_inputs(net, self._need_inputs().event_shape, generator)
        expected = _run(net, weights, x, self.features)
        worst = 0.0
        for g in elements:
            moved = _run(net, self.act(g, weights), self.inputs.act(g, x), self.features)
            worst = max(worst, *(self._gap(g, name, expected[name], moved[name]) for name in expected))
        return worst

    def _some_elements(self, generator: torch.Generator) -> list[int]:
        """All of the group, or of a large one its generators and as many others at random; without a list those."""
        if not self.group.is_indexed:
            return list(self.group.sample((CHECK_ALL,)))
        if len(self.group) <= CHECK_ALL:
            return list(range(len(self.group)))
        others = torch.randint(len(self.group), (CHECK_ALL,), generator=generator)
        return [0, *self.group.generators, *others.tolist()]

    def _gap(self, g: int, name: str, before: Tensor, after: Tensor) -> float:
        rep = self.features[name] if name else self.outputs
        expected = before if rep is None else rep.act(g, before)
        if expected.shape != after.shape:
            gap = float("inf")
        else:
            gap = float((after - expected).abs().max() / before.abs().max().clamp_min(1e-30))
        if not gap <= CHECK_TOLERANCE:  # NaN is off as well
            where = f"layer {name!r}" if name else "the network's output"
            element = repr(self.group.names[g]) if self.group.is_indexed else "a random element"
            raise LayerError(
                f"Expected {where} to move with the symmetry; under {element} it is off by {gap:.1e} of its size. "
                f"Odd sizes before a pooling and strides break rotations, and zero padding breaks shifts "
                f"(padding_mode='circular'): resize, or change the layer."
            )
        return gap


def _joined_all(group: ProductGroup, left: Mapping, right: Mapping) -> dict[str, Representation]:
    return {name: _joined(group, left.get(name), right.get(name), name) for name in {**left, **right}}


def _joined(
    group: ProductGroup, left: Representation | None, right: Representation | None, name: str
) -> Representation | None:
    """How the product of two groups moves what they move by ``left`` and ``right``; ``None`` does not move."""
    if left is not None and right is not None:
        left, right = _on_one_shape(left, right, name)
    given = [rep for rep in (left, right) if rep is not None]
    sides = [(rep, side) for side, rep in enumerate((left, right)) if rep is not None and not isinstance(rep, Trivial)]
    spaces = {rep.space for rep, _ in sides}
    if len(spaces) > 1:
        raise SymmetryError(
            f"Expected both symmetries to act on site {name!r} in one space; got {left.space} and {right.space} "
            f"values. Where the one action is the same on both, say so: rep.on_unconstrained()."
        )
    if not sides:
        return Trivial(group, given[0].event_shape) if given else None
    factors = [Factor(group, rep, side) for rep, side in sides]
    joined = factors[0] if len(factors) == 1 else _composed(*factors, name)
    return joined.on_unconstrained() if spaces == {"unconstrained"} else joined


def _on_one_shape(left: Representation, right: Representation, name: str) -> tuple[Representation, Representation]:
    """Both on the longer shape: axes on the left that one leaves out do not move."""
    shapes = sorted((left.event_shape, right.event_shape), key=len)
    extra = shapes[1][: len(shapes[1]) - len(shapes[0])]
    if shapes[1] != extra + shapes[0]:
        raise SymmetryError(
            f"Expected both symmetries to act on {name!r} in one shape; got {tuple(left.event_shape)} of {left} and "
            f"{tuple(right.event_shape)} of {right}."
        )
    return tuple(_with_outer(rep, extra) if rep.event_shape != shapes[1] else rep for rep in (left, right))


def _with_outer(rep: Representation, shape: torch.Size) -> Representation:
    longer = Trivial(rep.group, shape) * rep
    if isinstance(rep, Trivial):
        longer = Trivial(rep.group, shape + rep.event_shape)
    return longer.on_unconstrained() if rep.space == "unconstrained" else longer


def _composed(left: Representation, right: Representation, name: str) -> Representation:
    try:
        return Composed(left, right)
    except SymmetryError as error:
        raise SymmetryError(f"{error} This is about {name!r}.") from error


def needed(symmetry: Symmetry | None, smoothing: bool = False) -> Symmetry:
    """The symmetry itself, once it was seen to be one; what holds one, such as a found symmetry, stands for it.

    :param bool smoothing: whether a law that is not the uniform one of a group will do.
    """
    symmetry = getattr(symmetry, "symmetry", symmetry)
    if not isinstance(symmetry, Symmetry):
        raise SymmetryError(f"Expected symmetry= to be a pe.Symmetry; got {symmetry!r}.")
    if not (smoothing or symmetry.group.is_uniform):
        raise SymmetryError(
            f"Expected a group with its uniform law, for what is to be invariant; got {symmetry.group}, over which "
            f"means only smooth. Use it with pe.handlers.augment, pe.OrbitMixture, pe.average or pe.predict."
        )
    return symmetry


def _random_like(parameter: Tensor, generator: torch.Generator) -> Tensor:
    fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5


def random_inputs(net: nn.Module, shape, generator: torch.Generator) -> Tensor:
    """Two inputs: standard normal numbers, or tokens where the network has a table of them."""
    tables = [m.num_embeddings for m in net.modules() if isinstance(m, nn.Embedding)]
    if tables:
        return torch.randint(min(tables), (2, *shape), generator=generator)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


def _run(net: nn.Module, weights: dict[str, Tensor], x: Tensor, features) -> dict[str, Tensor]:
    """Outputs of the named submodules in the order they ran, then the network's own under ``""``."""
    seen: dict[str, Tensor] = {}
    modules = dict(net.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda module, args, out, name=name: seen.update({name: _first(out)}))
        for name in features
        if name in modules
    ]
    try:
        with torch.no_grad():
            seen[""] = torch.func.functional_call(net, weights, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _first(out) -> Tensor:
    """What a module returns, of an attention its output without the weights."""
    return out[0] if isinstance(out, tuple) else out
