"""Effect handlers: symmetrize a guide, augment a model, expand a network's sites.

Each messenger moves fields of Pyro's messages only; the mathematics is in
:mod:`~pyro_equivariance.symmetrize`, :mod:`~pyro_equivariance.symmetry` and
:mod:`~pyro_equivariance.networks.expanded`. The lower-case functions wrap a model or guide, or decorate it.
"""

import copy
import functools
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_feasible
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from .distributions import OrbitPredictive, Placed
from .errors import ClosednessError, LayerError, OptionError, SymmetryError, check_option
from .networks.bayesian import BayesianNetwork, NetworkModel, not_a_parameter
from .networks.expanded import SiteExpansion
from .networks.tracing import network_symmetry, widen_network
from .spaces import check_plates, site_space
from .symmetrize import RULES, average_site, warn_if_wide
from .symmetry import Symmetry, needed

ORBITS = ("full", "random")
CONVENTIONS = ("mean", "sum", "predictive")
AUXILIARY = "_unconstrained"
BASE = "_base"


class SymmetrizeMessenger(Messenger):
    """Replaces the distribution at each latent site of a guide by its average over the orbit.

    :param Symmetry symmetry: has a representation for every latent site.
    :param str rule: see :func:`~pyro_equivariance.average`.
    :param guide: the guide that it is put around, if known: the supports of an ``AutoNormal``'s sites are then checked.
    """

    def __init__(self, symmetry: Symmetry, rule: str = "geometric", guide: Callable | None = None):
        super().__init__()
        self._guide = guide
        self._calls, self._warned = 0, False
        check_option("rule", rule, RULES)
        self.symmetry, self.rule = symmetry, rule
        self._averaged: dict[str, torch.Tensor | None] = {}
        self._spread: dict[str, tuple] = {}
        self._fitting: set[str] = set()  # sites whose support the action was seen to fit

    def __enter__(self):
        self._averaged, self._spread = {}, {}
        self._calls += 1
        return super().__enter__()

    def __exit__(self, *args):
        result = super().__exit__(*args)  # first, since a warning may be an error
        spread, self._averaged, self._spread = self._spread, {}, {}
        if spread:
            self._warned = warn_if_wide(spread, stacklevel=5)
        return result

    @property
    def _looks(self) -> bool:
        """Whether this call measures the spread: the 1st, 10th, 100th, …, since it costs as much as the average."""
        return not self._warned and self._calls == 10 ** (len(str(self._calls)) - 1)

    def _pyro_sample(self, msg) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        if isinstance(msg["fn"], dist.Delta):
            self._check_delta(name, msg["fn"].v)
            # A plain Delta loses the log density of its transform under TraceMeanField_ELBO.
            msg["fn"] = Placed(msg["fn"].v, msg["fn"].log_density, msg["fn"].event_dim)
            return
        # AutoNormal draws "<site>_unconstrained" and puts a Delta of its image on the site itself.
        site = name.removesuffix(AUXILIARY) if msg["infer"].get("is_auxiliary") else name
        if msg["infer"].get("is_auxiliary") and site == name:
            raise SymmetryError(
                f"Expected latent sites that are drawn one by one; this guide draws them together, from {name!r}, "
                f"which no average by sites reaches. Use pe.AutoSymmetricMultivariateNormal(model, symmetry) instead, "
                f"or pe.AutoOrbitMixture."
            )
        rep = self.symmetry[site]
        check_plates(site, rep, len(msg["fn"].event_shape), msg["cond_indep_stack"])
        before = msg["fn"]
        try:
            msg["fn"] = average_site(site, before, self.symmetry, self.rule)
        except ClosednessError as error:
            raise ClosednessError(
                f"Expected site {site!r} to draw from a Normal that the action keeps, or from one under transforms "
                f"entry by entry: {error} pe.AutoSymmetricMultivariateNormal and pe.AutoOrbitMixture bear more."
            ) from error
        if self._looks:
            self._spread[site] = (before, rep)
        self._averaged[site] = None

    def _pyro_post_sample(self, msg) -> None:
        if msg["infer"].get("is_auxiliary"):
            self._averaged[msg["name"].removesuffix(AUXILIARY)] = msg["value"]

    def _check_delta(self, name: str, value: torch.Tensor) -> None:
        if name not in self._averaged:
            raise SymmetryError(
                f"Expected a distribution with a density at site {name!r} of the guide; got a Delta, which no average "
                f"reaches. Use pe.AutoSymmetricNormal(model, symmetry) instead of this guide, or pe.AutoOrbitMixture."
            )
        prototype = getattr(self._guide, "prototype_trace", None)
        if prototype is not None and name in prototype.nodes and name not in self._fitting:
            node = prototype.nodes[name]
            site_space(name, node["fn"].support, self.symmetry[name], node["value"].shape)
            self._fitting.add(name)
        unconstrained = self._averaged[name]
        if unconstrained is not None and unconstrained.shape != value.shape:
            raise SymmetryError(
                f"Expected site {name!r} to be transformed entry by entry; its transform changes the shape. Use "
                f"pe.AutoSymmetricMultivariateNormal(model, symmetry) or pe.AutoOrbitMixture instead of this guide."
            )
        moved_as_it_is = unconstrained is None or self.symmetry[name].space == "unconstrained" or value is unconstrained
        if moved_as_it_is or torch.equal(value, unconstrained) or self.symmetry[name].is_permutation:
            return
        raise SymmetryError(
            f"Expected site {name!r}, which is constrained, to be moved by permutations; got {self.symmetry[name]}, "
            f"which does not pass through its transform. Say that it acts on unconstrained values: "
            f"rep.on_unconstrained()."
        )


class AugmentMessenger(Messenger):
    """Calls a model on moved data and weighs its log likelihood accordingly. See :func:`augment`."""

    def __init__(self, symmetry: Symmetry, orbit: str = "full", likelihood: str = "mean"):
        super().__init__()
        check_option("orbit", orbit, ORBITS)
        check_option("likelihood", likelihood, CONVENTIONS)
        if likelihood == "predictive" and orbit != "full":
            raise OptionError(
                "Expected orbit='full' with likelihood='predictive': the logarithm of a mean over random elements is "
                "biased. Use orbit='full', or likelihood='mean'."
            )
        if (orbit == "full" or likelihood == "sum") and not symmetry.group.is_indexed:
            _ = symmetry.group.elements  # raises, with the way out
        self.symmetry, self.orbit, self.likelihood = symmetry, orbit, likelihood
        self._copies = 0
        self._subsampled: set[str] = set()
        self._observed: set[str] = set()

    def __call__(self, fn: Callable) -> Callable:
        @functools.wraps(fn, updated=())
        def augmented(x, *args, **kwargs):
            g = self._elements(len(x))
            x = self._flat(self.symmetry.act_inputs(g, x))
            if args and args[0] is not None:
                args = (self._moved_outputs(g, args[0]), *args[1:])
            elif kwargs.get("y") is not None:
                kwargs = {**kwargs, "y": self._moved_outputs(g, kwargs["y"])}
            self._copies, self._subsampled, self._observed = len(x), set(), set()
            try:
                with self:
                    return fn(x, *args, **kwargs)
            finally:
                self._copies = 0

        return augmented

    def __enter__(self):
        if not self._copies:
            raise SymmetryError(
                "Expected augment to wrap or decorate a model: it changes arguments, which `with` cannot."
            )
        return super().__enter__()

    def _elements(self, batch: int) -> torch.Tensor:
        """Elements that broadcast over the batch: ``(|G|, 1)`` for the full orbit, ``(batch,)`` at random."""
        group = self.symmetry.group
        return group.elements[:, None] if self.orbit == "full" else group.sample((batch,))

    def _moved_outputs(self, g, y):
        outputs = self.symmetry.outputs
        if outputs is not None and not y.is_floating_point() and y.ndim == 1 + len(outputs.event_shape):
            return self._flat(outputs.act(g, y))  # counts and the like, not class labels
        return self._flat(self.symmetry.act_outputs(g, y))

    def _flat(self, moved: torch.Tensor) -> torch.Tensor:
        """The axis of elements and the batch axis as one, where there are two."""
        return moved.flatten(0, 1) if self.orbit == "full" else moved

    def _pyro_sample(self, msg) -> None:
        if isinstance(msg["fn"], _Subsample):
            if msg["value"] is not None or msg["fn"].subsample_size is not None:
                self._subsampled.add(msg["name"])
        elif msg["is_observed"] and not msg["infer"].get("_deterministic"):
            if self.likelihood == "predictive" and getattr(msg["fn"], "_mask", None) is not False:
                msg["fn"] = self._together(msg)
            msg["scale"] = msg["scale"] * self._weight(msg)

    def _together(self, msg) -> OrbitPredictive:
        self._observed.add(msg["name"])
        shape = msg["fn"].batch_shape
        if len(self._observed) > 1 or not shape or shape[-1] != self._copies:
            raise SymmetryError(
                f"Expected one observation site with a log density for each of the {self._copies} moved copies, for "
                f"likelihood='predictive'; got {', '.join(map(repr, sorted(self._observed)))} of batch shape "
                f"{tuple(shape)}. Use to_event on its other axes, or likelihood='mean'."
            )
        return OrbitPredictive(msg["fn"], len(self.symmetry.group))

    def _weight(self, msg) -> float:
        """What the likelihood must be multiplied by, beyond the scale that the model's plates give it."""
        total = len(self.symmetry.group) if self.likelihood == "sum" else 1.0
        if self.orbit == "random" or self._counts_copies(msg):
            return total
        return total / len(self.symmetry.group)

    def _counts_copies(self, msg) -> bool:
        """Whether a subsampling plate has divided by the number of moved copies already."""
        frames = [f for f in msg["cond_indep_stack"] if f.name in self._subsampled]
        for frame in frames:
            if frame.size != self._copies:
                raise SymmetryError(
                    f"Expected plate {frame.name!r} to span the {self._copies} moved copies of the batch; it has size "
                    f"{frame.size}. Pass the minibatch to the model and subsample=torch.arange(len(x)) to the plate."
                )
        return bool(frames)


class ExpansionReparam(Reparam):
    """Draws ``<site>_base`` from the small network's prior and makes the site its deterministic expansion.

    :param SiteExpansion expansion: the map from the base to the site.
    :param prior: a callable that returns the small site's prior.
    """

    def __init__(self, expansion: SiteExpansion, prior: Callable[[], dist.Distribution]):
        self.expansion, self.prior = expansion, prior

    def apply(self, msg):
        prior = self.prior()
        extra = self.expansion.base_shape[: len(self.expansion.base_shape) - len(prior.event_shape)]
        base = pyro.sample(msg["name"] + BASE, prior.expand(extra).to_event(len(extra)) if extra else prior)
        value = self.expansion.expand(base)
        fn = dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False)
        return {"fn": fn, "value": value, "is_observed": True}


class ExpandedNetwork(NetworkModel):
    """The model that :func:`expand` returns: ``model(x, y=None)``, its sites ``<site>_base``.

    ``big`` is the expanded network's model without the tie, ``expansions`` the map of each site.
    """

    def __init__(self, model: BayesianNetwork, symmetry: Symmetry, arrangement: str):
        super().__init__()
        self.big = widen(model, symmetry)
        self.expansions = site_expansions(model, self.big, symmetry, arrangement)
        self._small = dict(model.net.named_parameters())
        config = {
            n: ExpansionReparam(e, functools.partial(model.prior_of, n, self._small[n]))
            for n, e in self.expansions.items()
        }
        self._tied = pyro.poutine.reparam(self.big.with_prior(1.0), config=config)  # its priors are never used

    @property
    def is_equivariant(self) -> bool:
        """Whether every draw is an equivariant network, which the arrangement decides."""
        return all(expansion.is_equivariant for expansion in self.expansions.values())

    def forward(self, x, y=None):
        return self._tied(x, y)

    def init_loc_fn(self, site: dict) -> torch.Tensor:
        """The small network's own values; the kernels ``V_k`` of a free layer start independent of one another."""
        name = site["name"].removesuffix(BASE)
        if name not in self.expansions:
            raise not_a_parameter(name)
        if name == site["name"]:
            return init_to_feasible(site)  # a deterministic site, which is asked for before it gets its value
        large = self.big.net.get_parameter(name)
        return self.expansions[name].fresh(self._small[name], large).detach().clone()


def symmetrize(fn: Callable | None = None, symmetry: Symmetry | None = None, rule: str = "geometric"):
    """Average a guide over the group, always on: each latent site draws from its orbit average.

    :param fn: the guide; left out, a decorator and context manager is returned.
    :param Symmetry symmetry: a representation for every latent site.
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :raises SymmetryError: for a site without a representation, or one that holds a Delta.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> swap = pe.Symmetry(pe.SymmetricGroup(2), {"z": pe.permutation(pe.SymmetricGroup(2))})
    >>> @pe.handlers.symmetrize(symmetry=swap)
    ... def guide():
    ...     return pyro.sample("z", dist.Normal(torch.tensor([0.0, 2.0]), 0.5).to_event(1))
    >>> pyro.poutine.trace(guide).get_trace().nodes["z"]["fn"].mean.tolist()
    [1.0, 1.0]
    """
    return _wrap(SymmetrizeMessenger(needed(symmetry), rule, fn), fn)


def augment(
    fn: Callable | None = None, symmetry: Symmetry | None = None, orbit: str = "full", likelihood: str = "mean"
):
    """The model under augmentation: ``fn(x, y, ...)`` is run on moved copies of ``x`` and ``y``.

    Its log likelihood becomes, for each datum, with one draw of the latents:

    - ``orbit="full"``: ``(1/|G|) Σ_g log p(ρ_Y(g) y | ρ_X(g) x, θ)``, the batch being ``|G|`` times as long;
    - ``orbit="random"``: one uniform ``g`` per example, an unbiased estimate of it.

    ``likelihood="mean"`` is this; ``"sum"`` counts each moved copy as a datum, ``|G|`` times as much. Their posteriors
    differ. ``likelihood="predictive"`` takes the mean inside, ``log (1/|G|) Σ_g p(ρ_Y(g) y | ρ_X(g) x, θ)``: the
    likelihood of the model whose prediction is the mean over the orbit (``pe.predict(..., symmetry=)`` takes it too).
    It needs the full orbit.

    :param fn: a model whose first argument is ``x`` ``(B, *inputs.event_shape)`` and whose second, or keyword
        ``y``, is the observation ``(B, ...)``; left out, a decorator is returned (no context manager: the
        arguments are what it changes).
    :param str orbit: ``"full"`` or ``"random"``.
    :param str likelihood: ``"mean"``, ``"sum"`` or ``"predictive"``.
    :raises OptionError: for ``"predictive"`` with a random orbit, which would be biased (Jensen).
    :raises SymmetryError: without ``symmetry.inputs``, if a subsampling plate does not span the moved copies, or for a
        full orbit of a continuous group.

    >>> import torch, pyro_equivariance as pe
    >>> G = pe.CyclicGroup(4)
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, G, (1, 3, 3))
    >>> pe.handlers.augment(pe.BayesianNetwork(net), sym)(torch.zeros(5, 1, 3, 3)).shape
    torch.Size([20, 2])
    """
    messenger = AugmentMessenger(needed(symmetry), orbit, likelihood)
    return messenger if fn is None else messenger(fn)


def expand(model: BayesianNetwork, symmetry: Symmetry, arrangement: str = "free") -> "ExpandedNetwork":
    """The expanded network as a Pyro model that samples the small network's weights.

    A network with ``|G|`` times the hidden channels is run; for each of its sites ``<site>``, ``<site>_base`` is
    sampled from the small network's prior and the site is its expansion, deterministic
    (:class:`~pyro_equivariance.networks.expanded.SiteExpansion`). Every draw is an equivariant network, but for
    ``row_constant``.

    :param BayesianNetwork model: the small network's model.
    :param Symmetry symmetry: the small network's, with trivial hidden features.
    :param str arrangement: ``"free"``, ``"gcnn"``, ``"row_rolled"``, ``"diagonal"`` or ``"row_constant"``.

    >>> import torch, pyro, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(),
    ...     torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 3))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    >>> big = pe.handlers.expand(pe.BayesianNetwork(net), sym)
    >>> trace = pyro.poutine.trace(big).get_trace(torch.zeros(1, 1, 4, 4))
    >>> trace.nodes["0.weight"]["value"].shape
    torch.Size([8, 1, 3, 3])
    """
    return ExpandedNetwork(model, symmetry, arrangement)


def widen(model: BayesianNetwork, symmetry: Symmetry) -> BayesianNetwork:
    """The model of the network with ``|G|`` times the hidden channels, the prior rule applied to its own fan-in."""
    inputs, outputs = symmetry.inputs, symmetry.outputs
    small = network_symmetry(model.net, symmetry.group, inputs.event_shape, "trivial", outputs, inputs=inputs)
    for name, rep in small.sites.items():
        if symmetry[name] != rep:
            raise SymmetryError(
                f"Expected the small network's symmetry with hidden='trivial'; site {name!r} moves by {symmetry[name]}."
            )
    return model.with_net(widen_network(model.net, symmetry.group, inputs.event_shape, outputs, inputs))


def expanded_symmetry(big: BayesianNetwork, symmetry: Symmetry, arrangement: str) -> Symmetry:
    """The large network's symmetry: regular hidden channels, for ``row_rolled`` with a shift that grows by layer."""
    inputs, outputs = symmetry.inputs, symmetry.outputs
    hidden = "rolled" if arrangement == "row_rolled" else "regular"
    return network_symmetry(big.net, symmetry.group, inputs.event_shape, hidden, outputs, inputs=inputs)


def site_expansions(
    model: BayesianNetwork, big: BayesianNetwork, symmetry: Symmetry, arrangement: str
) -> dict[str, SiteExpansion]:
    """For each site, which of its axes the big network repeats, read off the two shapes.

    :raises LayerError: for a site whose moved copies do not fit the large network's symmetry.
    """
    large = dict(big.net.named_parameters())
    expansions = {
        name: SiteExpansion(
            symmetry[name],
            inputs=parameter.ndim > 1 and large[name].shape[1] != parameter.shape[1],
            outputs=large[name].shape[0] != parameter.shape[0],
            arrangement=arrangement,
        )
        for name, parameter in model.net.named_parameters()
    }
    if all(e.is_equivariant for e in expansions.values()):
        _check_expansions(expansions, expanded_symmetry(big, symmetry, arrangement), arrangement)
    if arrangement == "diagonal":
        _check_diagonal(model, big, symmetry, expansions)
    return expansions


@torch.no_grad()
def _check_diagonal(model: BayesianNetwork, big: BayesianNetwork, symmetry: Symmetry, expansions) -> None:
    """The large network must be the mean of the small one over the orbit, at its own weights and random inputs."""
    small = dict(model.net.named_parameters())
    like = next(iter(small.values()))
    x = torch.randn(2, *symmetry.inputs.event_shape, generator=torch.Generator().manual_seed(0)).to(like)
    nets = copy.deepcopy(model.net).eval(), copy.deepcopy(big.net).eval()
    copies = torch.stack([nets[0](moved) for moved in symmetry.inputs.orbit(x)])
    if symmetry.outputs is not None:
        group = symmetry.group
        copies = symmetry.act_outputs(group.inverse(group.elements)[:, None], copies)
    found = torch.func.functional_call(nets[1], {n: e.expand(small[n]) for n, e in expansions.items()}, (x,))
    if (found - copies.mean(0)).abs().max() > 1e-3 * copies.abs().max():
        raise LayerError(
            "Expected layers that keep channels apart or mix them linearly, for arrangement='diagonal'; a LayerNorm, a "
            "softmax over channels or an attention mixes the copies. Use GroupNorm, or arrangement='free'."
        )


@torch.no_grad()
def _check_expansions(expansions: dict[str, SiteExpansion], large: Symmetry, arrangement: str) -> None:
    """Each expanded tensor must be fixed by the large symmetry, whatever the base."""
    for name, expansion in expansions.items():
        base = torch.arange(1.0, expansion.base_shape.numel() + 1).cos().reshape(expansion.base_shape)
        expanded = expansion.expand(base)
        moved = [large[name].act(g, expanded) for g in large.group.generators]
        if any((m - expanded).abs().max() > 1e-4 for m in moved):
            raise LayerError(
                f"Expected a site that arrangement={arrangement!r} makes equivariant; {name!r} is not: its channels "
                f"are not whole blocks (after a concatenation or a Flatten of tokens), or row_rolled ends in a layer "
                f"that sees places. Pool before it, or use hidden='regular' with pe.AutoSymmetricNormal."
            )


def _wrap(messenger: Messenger, fn: Callable | None):
    return messenger if fn is None else messenger(fn)
