"""A network and the generators of its symmetry trained together, and a verdict on held-out data: does it hold?"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError
from ..groups.base import positive_int
from ..modes import mode
from ..representations import Representation
from .lie import TERMS, LieAugmenter, check_pair, each_loss
from .verdict import Arm, Verdict, judge, random_like

FIRST_SHARE, TRIAL_SHARE = 0.1, 0.5  # of the widths: when they begin to grow, and when starts are compared
FALLING = 0.4  # the last part of the steps, over which the learning rates fall to 0


@dataclass(frozen=True, eq=False)
class LearnedAugmentation:
    """What :func:`learn_augmentation` returns.

    :param Module network: trained under the learned augmentation; at test time ``augmenter.average(network, x)``.
    :param LieAugmenter augmenter: what was learned.
    :param Module plain: the same network trained as long without augmentation; ``None`` without validation data.
    :param tuple control: the same network trained as long under random generators, and their augmenter; likewise.
    :param dict history: of each step the five terms, not weighted, by name (NaN where a step has none), and ``share``,
        the part of the widths that was drawn from.
    :param Verdict verdict: on the validation data; ``None`` without.
    :param dict settings: the numbers of the training.
    :param float seconds: of all of it, wall-clock.
    """

    network: nn.Module
    augmenter: LieAugmenter
    plain: nn.Module | None
    control: Arm | None
    history: dict[str, list[float]]
    verdict: Verdict | None
    settings: dict
    seconds: float

    def __repr__(self) -> str:
        steps = len(self.history["task"])
        return f"LearnedAugmentation({self.augmenter!r}, steps={steps}, verdict={self.verdict and self.verdict.word!r})"


def learn_augmentation(
    net: nn.Module,
    augmenter: LieAugmenter,
    data: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    inputs: Representation | None = None,
    outputs: Representation | None = None,
    steps: int = 1500,
    batch_size: int = 128,
    draws: int = 4,
    learning_rate: float = 3e-3,
    basis_rate: float = 0.05,
    warm_up: float = 0.1,
    grown: float = 0.4,
    starts: int = 64,
    seed: int = 0,
) -> LearnedAugmentation:
    """Train ``net`` and the basis of ``augmenter`` together, in place, by Adam on the five terms.

    Three things make the basis found from any start. The network learns alone for the first ``warm_up`` of the steps.
    Then of the augmenter's basis and ``starts`` random ones that with the lowest loss for this network, at half the
    widths, is taken; a basis learned or loaded before is thus kept unless a random one is better (an augmenter that
    came with generators starts from these). From there the widths grow from a tenth to all at ``grown``: at small ones
    the equivariance term is quadratic in each generator, lowest on the directions in which the network is equivariant
    already, and the network is not yet bent to a wrong basis. Over the last 40 % of the steps the rates fall to 0.
    Where ``augmenter.requires_grad_(False)`` the basis stays as it is: augmentation by known generators, trained alike.
    Where ``net.requires_grad_(False)`` the network stays, and the basis is learned alone.

    :param Module net: from ``(B, *event)`` to ``(B, ...)``, logits for classes. It is trained in its training mode,
        looked at in its evaluation mode, and left in that it came in.
    :param data: inputs ``(N, *event)`` and observations ``(N, ...)``; regression is best standardised, since the
        weights of the terms take the task's loss to be of order 1.
    :param validation: like ``data``, at least two; for the :class:`Verdict`, which trains two copies of the network
        more, without augmentation and under random generators: three times the work.
    :param loss: one number for each datum, see :meth:`LieAugmenter.losses`; likewise ``inputs`` and ``outputs``.
    :param int draws: of the group for each input and step.
    :param float learning_rate: of the network.
    :param float basis_rate: of the basis.
    :param int seed: of the minibatches, the draws, the search and the control.
    :raises DataError: for no data, inputs and observations of different number, values that are not finite, inputs of
        another dtype than the network, or losses on validation data that are not finite.
    :raises OptionError: for what is no network or no augmenter, shares of the steps out of order, a negative rate, or a
        loss that is not finite.

    >>> import torch, pyro_equivariance as pe
    >>> x = torch.randn(64, 2)
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> data = (x, x.square().sum(1, keepdim=True))
    >>> result = pe.learn_augmentation(net, pe.LieAugmenter(2), data, steps=5)
    >>> len(result.history["equivariance"]), result.verdict
    (5, None)
    """
    settings = {
        "steps": positive_int(steps, "steps"), "batch_size": positive_int(batch_size, "batch_size"),
        "draws": positive_int(draws, "draws"), "learning_rate": learning_rate, "basis_rate": basis_rate,
        "warm_up": warm_up, "grown": grown, "starts": starts, "seed": seed,
    }  # fmt: skip
    _check_kinds(net, augmenter)
    _check_settings(settings)
    for part in (data,) if validation is None else (data, validation):
        _check_data(part, net)
    if validation is not None and len(validation[0]) < 2:
        raise DataError("Expected at least two validation data, for a standard error; got one.")
    settings["batch_size"] = min(settings["batch_size"], len(data[0]))
    settings["starts"] = int(starts) if augmenter.random_start else 0
    options = {"loss": loss, "inputs": inputs, "outputs": outputs}
    plain, other = (copy.deepcopy(net), copy.deepcopy(net)) if validation else (None, None)
    control = verdict = None
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[data[0].device] if data[0].is_cuda else []):
        history = _train(net, augmenter, data, settings, options)
        if validation:
            control = (other, random_like(augmenter, seed))
            _train(plain, None, data, settings, options)
            _train(*control, data, settings, options)
            verdict = judge((net, augmenter), control, plain, validation, **options)
    return LearnedAugmentation(net, augmenter, plain, control, history, verdict, settings, time.perf_counter() - start)


def _check_kinds(net: nn.Module, augmenter: LieAugmenter) -> None:
    if not isinstance(net, nn.Module):
        raise OptionError(
            f"Expected a network as a torch module; got {type(net).__name__}. Use augmenter.loss(f, x, y)."
        )
    if not isinstance(augmenter, LieAugmenter):
        hint = " It has .loss, for a loop of its own." if hasattr(augmenter, "loss") else ""
        raise OptionError(f"Expected a LieAugmenter; got {type(augmenter).__name__}.{hint}")


def _check_settings(settings: Mapping) -> None:
    for name in ("learning_rate", "basis_rate", "starts", "warm_up", "grown"):
        value = settings[name]
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise OptionError(f"Expected {name} as a number, not negative; got {value!r}.")
    if settings["starts"] % 1:
        raise OptionError(f"Expected starts as a whole number; got {settings['starts']!r}.")
    if not 0 < settings["warm_up"] < settings["grown"] <= 1:
        got = f"{settings['warm_up']} and {settings['grown']}"
        raise OptionError(f"Expected 0 < warm_up < grown <= 1, shares of the steps; got {got}.")


def _check_data(data: tuple[Tensor, Tensor], net: nn.Module) -> None:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataError(f"Expected data as a pair of tensors (x, y); got {type(data).__name__}.")
    check_pair(*data)
    for name, values in zip(("inputs", "observations"), data, strict=True):
        if not bool(values.isfinite().all()):
            raise DataError(f"Expected finite {name}; got NaN or inf.")
    dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()}
    if not data[0].is_floating_point() or (dtypes and data[0].dtype not in dtypes):
        wanted = ", ".join(map(str, dtypes)) or "floating point"
        raise DataError(
            f"Expected inputs of the network's dtype, {wanted}; got {data[0].dtype}. Convert with x.to(dtype)."
        )


def _generator(device: torch.device) -> torch.Generator:
    """Torch's own, that draws on the device."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


def _train(
    net: nn.Module, augmenter: LieAugmenter | None, data: tuple[Tensor, Tensor], settings: Mapping, options: Mapping
) -> dict[str, list[float]]:
    """All steps, without an augmenter on data as they are; returns the history."""
    _generator(data[0].device).manual_seed(settings["seed"])
    steps, history = settings["steps"], {name: [] for name in (*TERMS, "share")}
    learned = [p for p in net.parameters() if p.requires_grad]
    groups = [{"params": learned, "lr": settings["learning_rate"]}]
    if augmenter is not None:
        groups.append({"params": list(augmenter.parameters()), "lr": settings["basis_rate"]})
    optimizer = torch.optim.Adam(groups)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (1 - step / steps) / FALLING))
    with mode(net, training=bool(learned)):
        for step in range(steps):
            batch = _minibatch(data, settings["batch_size"])
            share = 0.0 if augmenter is None else _share(step / steps, settings["warm_up"], settings["grown"])
            if share and not history["share"][-1]:
                _search(net, augmenter, batch, settings["starts"], options)
            terms = _terms(net, augmenter, batch, share, settings["draws"], options)
            total = augmenter.weighted(terms) if share else terms["task"]
            if not bool(total.isfinite()):
                raise OptionError(
                    f"Expected a finite loss; it is {total.item()} in step {step}. Lower a rate or width."
                )
            optimizer.zero_grad()
            if total.requires_grad:  # a frozen network learns nothing alone
                total.backward()
            optimizer.step()
            rates.step()
            for name, values in history.items():
                values.append(share if name == "share" else float(terms[name].detach()) if name in terms else math.nan)
    optimizer.zero_grad()
    return history


def _minibatch(data: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
    if size == len(data[0]):
        return data
    rows = torch.randint(len(data[0]), (size,), device=data[0].device)
    return data[0][rows], data[1][rows]


def _share(done: float, warm_up: float, grown: float) -> float:
    """The part of the widths that is drawn from when this part of the steps is done."""
    return 0.0 if done < warm_up else min(1.0, max(FIRST_SHARE, (done - warm_up) / (grown - warm_up)))


def _terms(
    net: nn.Module, augmenter: LieAugmenter | None, batch: tuple[Tensor, Tensor], share: float, draws: int,
    options: Mapping,
) -> dict[str, Tensor]:  # fmt: skip
    """All five under augmentation; of data as they are the task alone."""
    x, y = batch
    if share:
        return augmenter.losses(net, x, y, draws=draws, share=share, **options)
    return {"task": each_loss(options["loss"], net(x), y).mean()}


@torch.no_grad()
def _search(
    net: nn.Module, augmenter: LieAugmenter, batch: tuple[Tensor, Tensor], starts: int, options: Mapping
) -> None:
    """Give the augmenter that of its own basis and orthogonal random ones whose loss for this network is the lowest.

    All are compared under the same coefficients, the network in evaluation mode; its own wins ties.
    """
    matrices = augmenter.matrices
    if not (starts and matrices.requires_grad):
        return
    found = torch.linalg.qr(torch.randn(starts, *matrices.shape).flatten(2).mT)[0].mT.reshape(starts, *matrices.shape)
    bases, values = [matrices.clone(), *found.to(matrices)], []
    generator = _generator(batch[0].device)
    state = generator.get_state()
    with mode(net, training=False):
        for basis in bases:
            generator.set_state(state)
            matrices.copy_(basis)
            value = float(augmenter.loss(net, *batch, draws=1, share=TRIAL_SHARE, **options))
            values.append(value if math.isfinite(value) else math.inf)
    matrices.copy_(bases[values.index(min(values))])
