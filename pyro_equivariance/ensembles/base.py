"""An ensemble as a guide: an empirical posterior, whose draws are its members."""

import copy
import numbers
from collections.abc import Mapping, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ..errors import DataError, OptionError, check_option
from ..metrics.base import SUM_TOLERANCE
from ..networks.bayesian import BayesianNetwork
from ..prediction import evaluating, predict

MEANS = ("probabilities", "logits")
INDEX = "_member"  # the auxiliary site that chooses one


class Ensemble(nn.Module):
    """M sets of weights of one network: the empirical posterior ``q = (1/M) Σ_m δ(θ − θ_m)``, as a guide.

    In Pyro a call draws *one* member for all sites, uniformly: an auxiliary site ``"_member"``, and a ``Delta`` at each
    weight, named as those of :class:`~pyro_equivariance.BayesianNetwork`. So :func:`~pyro_equivariance.predict`,
    :func:`~pyro_equivariance.orbit_predict`, the metrics and :func:`~pyro_equivariance.to_arviz` take it like any
    guide. An empirical posterior has no density: an ELBO or a KL with it means nothing.

    Draws repeat members. :meth:`in_turn` goes through them without repetition, so ``draws=len(ensemble)`` is exact.

    ``.to()``, ``.float()`` and the like take the snapshots along, and give the ensemble a model of its own: others that
    share the model, such as subsets, stay as they are.

    :param BayesianNetwork model: the model of the network; its prior matters to an ensemble only where
        :func:`fit_ensemble` was given one.
    :param dict members: a tensor ``(M, *shape)`` for each parameter of the network, tied ones once.
    :param dict history: for each member and epoch ``"loss"`` and ``"validation"``, ``(M, epochs)``.
    :param float seconds: of training.
    :param dict snapshots: ensembles of earlier epochs.
    :raises OptionError: for a model that is no :class:`~pyro_equivariance.BayesianNetwork`.
    :raises DataError: unless there are values of the right shapes for all parameters, equally many.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3))
    >>> ensemble = Ensemble(model, {"weight": torch.randn(7, 3, 4), "bias": torch.randn(7, 3)})
    >>> len(ensemble), ensemble.predict(torch.zeros(5, 4)).shape
    (7, torch.Size([7, 5, 3]))
    >>> pe.orbit_predict(model, ensemble, pe.Symmetry(pe.SymmetricGroup(4), {}, inputs=pe.permutation(
    ...     pe.SymmetricGroup(4))), torch.zeros(5, 4), draws=2).shape
    torch.Size([2, 24, 5, 3])
    """

    always_invariant = False
    has_density = False

    def __init__(self, model: BayesianNetwork, members: Mapping[str, Tensor], history: dict[str, Tensor] | None = None,
                 seconds: float = float("nan"), snapshots: Mapping[int, "Ensemble"] | None = None):  # fmt: skip
        super().__init__()
        if not isinstance(model, BayesianNetwork):
            raise OptionError(
                f"Expected model to be a pe.BayesianNetwork; got {type(model).__name__}. Use pe.BayesianNetwork(net)."
            )
        self._model = (model,)  # not a submodule: its own weights are no members
        self.stack = _stacked(model.net, members)
        self.history, self.seconds, self.snapshots = dict(history or {}), seconds, dict(snapshots or {})

    @property
    def model(self) -> BayesianNetwork:
        """The Pyro model that this is a posterior of."""
        return self._model[0]

    @property
    def members(self) -> dict[str, Tensor]:
        """``(M, *shape)`` for each parameter of the network."""
        return dict(self.stack.named_parameters())

    def __len__(self) -> int:
        return len(next(self.stack.parameters()))

    def __repr__(self) -> str:
        return f"Ensemble({len(self)} members of {type(self.model.net).__name__})"

    def _apply(self, fn, recurse=True):
        self._model = (copy.deepcopy(self.model)._apply(fn, recurse),)  # other ensembles share the former one
        for snapshot in self.snapshots.values():
            snapshot._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draw one member: a dict by site name."""
        uniform = dist.Categorical(torch.ones(len(self)))
        return self._draw(int(pyro.sample(INDEX, uniform, infer={"is_auxiliary": True})))

    def _draw(self, index: int) -> dict[str, Tensor]:
        """The sites at one member's values."""
        return {
            name: pyro.sample(name, dist.Delta(values[index], event_dim=values.ndim - 1))
            for name, values in self.members.items()
        }

    def in_turn(self) -> "MembersInTurn":
        """A guide whose draws are member 0, 1, …, and from the last on again the first: exact for ``draws=M``.

        Which defect an estimator of :func:`~pyro_equivariance.metrics.equivariance_defect` targets depends on the
        draws, common to the orbit:

        - draws of the ensemble itself, which repeat members, with ``"unbiased"``: the defect of *this* ensemble's mean;
        - all M draws in turn, with ``"biased"`` (the plug-in): the same, exactly;
        - all M draws in turn, with ``"unbiased"``: the defect of the mean over infinitely many members of the same law.
        """
        return MembersInTurn(self)

    def subset(self, indices: Sequence[int] | Sequence[bool] | Tensor) -> "Ensemble":
        """The ensemble of these members, with their history and snapshots.

        :param indices: of members, or a mask of M booleans.
        :raises OptionError: for no index, one that is not from ``-M`` to ``M - 1`` or no integer, or a mask of another
            length.
        """
        index = _as_indices(indices, len(self))
        members = {name: values[index.to(values.device)] for name, values in self.members.items()}
        history = {name: values[index] for name, values in self.history.items()}
        snapshots = {epoch: ensemble.subset(index) for epoch, ensemble in self.snapshots.items()}
        return Ensemble(self.model, members, history, self.seconds, snapshots)

    def predict(self, x: Tensor) -> Tensor:
        """Each member's mean of the observation, for classes their probabilities: ``(M, N, *event)``."""
        return predict(self.model, self.in_turn(), x, len(self))

    def mean(self, x: Tensor, mean: str = "probabilities") -> Tensor:
        """The ensemble's prediction, ``(N, *event)`` in float64; see :func:`ensemble_mean`.

        :raises OptionError: for ``"logits"`` and a likelihood that is not of classes.
        """
        check_option("mean", mean, MEANS)
        if mean == "probabilities":
            return ensemble_mean(self.predict(x))
        return self.log_probs(x).mean(0).softmax(1)

    @torch.no_grad()
    def log_probs(self, x: Tensor) -> Tensor:
        """Each member's log-probabilities of the classes, from the logits of the network: ``(M, N, K)``, in float64.

        They tell members apart where probabilities have become 0; the axis K is where the network has its logits.

        :raises OptionError: for a likelihood that is not of classes.
        """
        each = [{name: values[i] for name, values in self.members.items()} for i in range(len(self))]
        with evaluating(self.model):
            return torch.stack([_class_log_probs(self.model, weights, x) for weights in each])


class MembersInTurn:
    """A guide that goes through an ensemble's members in their order; see :meth:`Ensemble.in_turn`.

    It counts its own calls: make a new one for each evaluation.
    """

    def __init__(self, ensemble: Ensemble):
        self.ensemble, self.calls = ensemble, 0

    def __call__(self, *args, **kwargs) -> dict[str, Tensor]:
        index, self.calls = self.calls % len(self.ensemble), self.calls + 1
        return self.ensemble._draw(index)


def ensemble_mean(outputs: Tensor, mean: str = "probabilities") -> Tensor:
    """One prediction from those of all members.

    ``"probabilities"``: their mean, which is the posterior predictive. ``"logits"``: the softmax of the mean of their
    logits, that is their geometric mean, normalised, as published code takes it. Both are equivariant where the
    law of the members is invariant; they differ at finite M and in the limit.

    :param Tensor outputs: ``(M, ..., K)``; for ``"logits"`` class probabilities, or log-probabilities such as
        :meth:`Ensemble.log_probs`, which have no smallest number.
    :returns: ``(..., K)`` in float64.
    :raises DataError: for ``"logits"`` and outputs that are neither, or probabilities that have become 0.

    >>> import torch
    >>> ensemble_mean(torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64), "logits")
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    check_option("mean", mean, MEANS)
    if mean == "probabilities":
        return outputs.double().mean(0)
    return as_log_probs(outputs).mean(0).softmax(-1)


def as_log_probs(outputs: Tensor) -> Tensor:
    """The log-probabilities of class probabilities, or of log-probabilities, in float64."""
    values = outputs.double()
    is_logs = bool((values < 0).any())
    totals = values.logsumexp(-1) if is_logs else values.sum(-1) - 1
    if not bool((totals.abs() < SUM_TOLERANCE).all()):
        raise DataError(
            "Expected class probabilities or log-probabilities on the last axis for mean='logits'; got others."
        )
    if is_logs:
        return values
    smallest = float(values.min())
    if smallest < torch.finfo(outputs.dtype).tiny:  # its digits are lost, or all of it
        raise DataError(
            f"Expected probabilities whose logarithms are known for mean='logits'; the smallest is {smallest:.3g} in "
            f"{outputs.dtype}. Give log-probabilities, such as ensemble.log_probs(x)."
        )
    return values.log()


def as_count(name: str, value, least: int = 1) -> int:
    """A number of things as an ``int``, numpy's integers included.

    :raises OptionError: for anything else, or less than ``least``.

    >>> as_count("members", 3)
    3
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise OptionError(f"Expected {name} to be {kind}; got {value!r}.")
    return int(value)


def _as_indices(indices, members: int) -> Tensor:
    """Indices of members, from these or from a mask."""
    index = torch.as_tensor(indices)
    if index.dtype == torch.bool:
        if index.shape != (members,):
            raise OptionError(f"Expected a mask of the {members} members; got one of shape {tuple(index.shape)}.")
        index = index.nonzero()
    elif index.numel() and (index.is_floating_point() or index.is_complex()):
        raise OptionError(f"Expected indices of members as integers, or a mask; got {index.dtype}.")
    index = index.reshape(-1).long()
    if len(index) == 0 or int(index.min()) < -members or int(index.max()) >= members:
        raise OptionError(f"Expected indices of members, from 0 to {members - 1}; got {index.tolist()}.")
    return index.cpu()


def _class_log_probs(model: BayesianNetwork, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The log-probabilities of the classes under these weights, ``(N, K)``, or ``(N, K, *places)`` for maps."""
    output = poutine.condition(model, weights)(x).double()
    law = model.likelihood(output, output.ndim - 1)
    places = len(law.event_shape)
    law = law.base_dist if isinstance(law, dist.Independent) else law
    if not isinstance(law, dist.Categorical):
        raise OptionError(f"Expected a likelihood of classes for their log-probabilities; got {type(law).__name__}.")
    return law.logits.movedim(-1, -1 - places)


def _stacked(net: nn.Module, members: Mapping[str, Tensor]) -> nn.Module:
    """The network with the values of all members in the place of each parameter."""
    shapes = {name: p.shape for name, p in net.named_parameters()}
    if set(shapes) != set(members):
        raise DataError(f"Expected members of {', '.join(map(repr, shapes))}; got {', '.join(map(repr, members))}.")
    counts = {len(values) if values.ndim else 0 for values in members.values()}
    if len(counts) != 1 or 0 in counts:
        raise DataError(f"Expected the same number of members for each parameter, at least one; got {sorted(counts)}.")
    for name, shape in shapes.items():
        if members[name].shape[1:] != shape:
            raise DataError(
                f"Expected members of {name!r} of shape (M, {', '.join(map(str, shape))}); got "
                f"{tuple(members[name].shape)}."
            )
    stack, tied = copy.deepcopy(net), {}
    for name, parameter in list(stack.named_parameters(remove_duplicate=False)):
        if id(parameter) not in tied:
            tied[id(parameter)] = nn.Parameter(members[name].detach().clone(), requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        setattr(stack.get_submodule(owner), leaf, tied[id(parameter)])
    return stack
