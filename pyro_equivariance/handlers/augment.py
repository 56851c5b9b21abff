"""A model that sees moved copies of its data."""

import functools
from collections.abc import Callable

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from ..distributions import OrbitPredictive
from ..errors import DataError, OptionError, SymmetryError, check_option
from ..groups.base import positive_int
from ..measures import LearnedMeasure, Measure
from ..symmetry import Symmetry, needed
from .base import add_log_density

ORBITS = ("full", "random")
CONVENTIONS = ("mean", "sum", "predictive")


class AugmentMessenger(Messenger):
    """Calls a model on moved data and weighs its log likelihood accordingly. See :func:`augment`."""

    def __init__(self, symmetry: Symmetry, orbit: str | int = "full", likelihood: str = "mean"):
        super().__init__()
        if isinstance(orbit, str):
            check_option("orbit", orbit, ORBITS)
        else:
            orbit = positive_int(orbit, "orbit, if it is a number of draws,")
        check_option("likelihood", likelihood, CONVENTIONS)
        if likelihood == "predictive" and orbit == "random":
            raise OptionError(
                "Expected orbit='full' with likelihood='predictive': the logarithm of a mean over random elements is "
                "biased. Use orbit='full', a number of draws such as orbit=8 (a lower bound), or likelihood='mean'."
            )
        if (orbit == "full" or likelihood == "sum") and isinstance(symmetry.group, Measure):
            raise SymmetryError(
                f"Expected orbit='random' or a number of draws, such as orbit=8, and likelihood='mean' or 'predictive' "
                f"for {symmetry.group}, which has no list of elements; got {orbit!r} and {likelihood!r}."
            )
        if (orbit == "full" or likelihood == "sum") and not symmetry.group.is_indexed:
            _ = symmetry.group.elements  # raises, with the way out
        self.symmetry, self.orbit, self.likelihood = symmetry, orbit, likelihood
        self._copies, self._is_called = 0, False
        self._subsampled: set[str] = set()
        self._observed: set[str] = set()

    def __call__(self, fn: Callable) -> Callable:
        @functools.wraps(fn, updated=())
        def augmented(x, *args, **kwargs):
            if not len(x):
                raise DataError("Expected at least one datum to augment; got none.")
            self._register()
            g = self._elements(len(x)).to(x.device)
            x = self._flat(self.symmetry.act_inputs(g, x))
            if args and args[0] is not None:
                args = (self._moved_outputs(g, args[0]), *args[1:])
            elif kwargs.get("y") is not None:
                kwargs = {**kwargs, "y": self._moved_outputs(g, kwargs["y"])}
            self._copies, self._is_called, self._subsampled, self._observed = len(x), True, set(), set()
            try:
                with self:
                    return fn(x, *args, **kwargs)
            finally:
                self._is_called = False

        augmented.augmentation = self
        return augmented

    def __enter__(self):
        if not self._is_called:
            raise SymmetryError(
                "Expected augment to wrap or decorate a model: it changes arguments, which `with` cannot."
            )
        return super().__enter__()

    def _register(self) -> None:
        """What a learned measure learns becomes part of the model, and its prior of the log joint density."""
        measure = self.symmetry.group
        if isinstance(measure, LearnedMeasure) and any(p.requires_grad for p in measure.parameters()):
            pyro.module(measure.param_name, measure)
            add_log_density(f"{measure.param_name}.log_prior", measure.log_prior())

    @property
    def _order(self) -> int:
        """The number of moved copies of each datum."""
        if self.orbit == "full":
            return len(self.symmetry.group)
        return 1 if self.orbit == "random" else self.orbit

    def _elements(self, batch: int) -> torch.Tensor:
        """Elements that broadcast over the batch: ``(|G|, 1)`` for the full orbit, ``(K, batch)`` or ``(batch,)``."""
        group = self.symmetry.group
        if self.orbit == "full":
            return group.elements[:, None]
        return group.sample((batch,) if self.orbit == "random" else (self.orbit, batch))

    def _moved_outputs(self, g, y):
        outputs = self.symmetry.outputs
        if outputs is not None and not y.is_floating_point() and y.ndim == 1 + len(outputs.event_shape):
            return self._flat(outputs.act(g, y))  # counts and the like, not class labels
        return self._flat(self.symmetry.act_outputs(g, y))

    def _flat(self, moved: torch.Tensor) -> torch.Tensor:
        """The axis of elements and the batch axis as one, where there are two."""
        return moved if self.orbit == "random" else moved.flatten(0, 1)

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
        return OrbitPredictive(msg["fn"], self._order)

    def _weight(self, msg) -> float:
        """What the likelihood must be multiplied by, beyond the scale that the model's plates give it."""
        total = len(self.symmetry.group) if self.likelihood == "sum" else 1.0
        return total if self._counts_copies(msg) else total / self._order

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


def augment(
    fn: Callable | None = None, symmetry: Symmetry | None = None, orbit: str | int = "full", likelihood: str = "mean"
):
    """The model under augmentation: ``fn(x, y, ...)`` is run on moved copies of ``x`` and ``y``.

    Its log likelihood becomes, for each datum, with one draw of the latents:

    - ``orbit="full"``: ``(1/|G|) Σ_g log p(ρ_Y(g) y | ρ_X(g) x, θ)``, the batch being ``|G|`` times as long;
    - ``orbit="random"``: one uniform ``g`` per example, an unbiased estimate of it;
    - ``orbit=K``, a number: the mean over ``K`` fresh draws per example, likewise unbiased.

    A :class:`~pyro_equivariance.measures.Measure` draws ``g`` from its law instead, and the mean is over that. What a
    learned one learns (:class:`~pyro_equivariance.LieAugmenter`, :class:`~pyro_equivariance.AffineAugmenter`) becomes
    part of the model: SVI and :func:`~pyro_equivariance.fit` train it with the guide.

    ``likelihood="mean"`` is this; ``"sum"`` counts each moved copy as a datum, ``|G|`` times as much. Their posteriors
    differ. ``likelihood="predictive"`` takes the mean inside, ``log (1/|G|) Σ_g p(ρ_Y(g) y | ρ_X(g) x, θ)``: the
    likelihood of the model whose prediction is the mean over the orbit (``pe.predict(..., symmetry=)`` takes it too).
    It needs the full orbit, or ``K`` draws: ``log (1/K) Σ_k p(ρ_Y(g_k) y | ρ_X(g_k) x, θ)`` is on average below it
    (Jensen), the less the larger ``K`` [1], so that the ELBO stays a lower bound.

    :param fn: a model whose first argument is ``x`` ``(B, *inputs.event_shape)`` and whose second, or keyword
        ``y``, is the observation ``(B, ...)``; left out, a decorator is returned (no context manager: the
        arguments are what it changes).
    :param orbit: ``"full"``, ``"random"`` or the number ``K`` of draws.
    :param str likelihood: ``"mean"``, ``"sum"`` or ``"predictive"``.
    :raises OptionError: for ``"predictive"`` with one random element.
    :raises SymmetryError: without ``symmetry.inputs``, if a subsampling plate does not span the moved copies, or for a
        full orbit of a continuous group.

    [1] Burda, Grosse, Salakhutdinov (2016) "Importance weighted autoencoders", arXiv:1509.00519: the bound in ``K``.

    >>> import torch, pyro_equivariance as pe
    >>> G = pe.CyclicGroup(4)
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, G, (1, 3, 3))
    >>> pe.handlers.augment(pe.BayesianNetwork(net), sym)(torch.zeros(5, 1, 3, 3)).shape
    torch.Size([20, 2])
    """
    messenger = AugmentMessenger(needed(symmetry, smoothing=True), orbit, likelihood)
    return messenger if fn is None else messenger(fn)
