"""The study ``families``: Normal, Laplace and LogNormal posteriors of one network's weights against each other."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from ..data import ImageData
from ..errors import ClosednessError
from ..families import is_closed, natural
from ..groups import CyclicGroup
from ..guides import AutoSymmetric
from ..handlers import augment
from ..metrics import accuracy, equivariance_defect, negative_log_likelihood
from ..networks import BayesianNetwork, network_symmetry
from ..representations import trivial
from ..symmetrize import RULES, average
from ..symmetry import Symmetry
from ..theory import certificate
from ..training import fit
from .base import convolutional_network
from .study import Setup, StudyConfig, option, over_seeds, row_printer, shuffled

WORDS = "Normal, Laplace and LogNormal posteriors of a convolutional network's weights, free and symmetric"
SPREAD = 1.0  # standard deviation of the logarithm under the LogNormal prior
SETTINGS = (("normal", "plain"), ("laplace", "plain"), ("normal", "split"), ("lognormal", "split"))
GUIDES = ("free", "symmetric")
DEFINITIONS = {
    "family": "of the posterior and of its prior, independent over weights; priors have mean 0 and the standard "
    "deviation s = --prior-gain / sqrt(fan-in); LogNormal: that standard deviation, and 1 of the logarithm",
    "network": "convolutions with tanh, no biases. plain: a layer sees h; split: it sees (h, -h), so that its weights "
    "act as a difference A - B, as they must where A and B are positive; fan-in, and so the prior of A - B, as plain",
    "guide": "free: mean-field, trained with full augmentation; symmetric: averaged over C4 at every evaluation, "
    "trained upright, which is the same ELBO for an invariant posterior",
    "rule": "of the average: geometric where the family has natural parameters, otherwise projection",
    "seed": "of the order of the data, the start (a draw from the prior; symmetric: its average over C4), the training "
    "and the draws",
    "elbo": "evidence lower bound per training image with full augmentation, KL weight 1, mean over draws, nats",
    "elbo_se": "its standard error over the draws of the weights",
    "objective": "the same with the KL weight of the training, elbo + (1 - --kl-weight) kl: what was maximised",
    "kl": "KL(q | prior) per training image, closed, nats",
    "accuracy": "fraction of upright test images whose most probable class is right, probabilities averaged over draws",
    "orbit_accuracy": "the same over all moved copies of them",
    "nll": "mean negative log probability of the label over all moved copies, nats",
    "defect": "unbiased mean over test images x and g of |F(gx) - F(x)|^2, g = e included; draws common to the orbit",
    "defect_se": "its jackknife standard error over draws",
    "divergence": "the largest KL(q | g q) over g, closed, nats",
    "certificate": "mean over g of 2 TV(q, g q)^2, a bound on the defect from the guide alone; 1.5 says nothing",
    "seconds": "wall-clock seconds of training",
}
FAMILY_DEFINITIONS = {
    "family": "as in the rows",
    "closed": "whether the push-forward of every weight by C4 stays in the family, as pe.is_closed says",
    "natural": "whether pe.natural knows natural parameters",
    "rules": "the rules by which pe.average averages it",
}
SUMMARIZED = ("elbo", "objective", "kl", "accuracy", "orbit_accuracy", "nll", "defect", "divergence", "certificate",
              "seconds")  # fmt: skip


@dataclass(frozen=True)
class FamiliesConfig(StudyConfig):
    """What :func:`run` depends on."""

    train_size: int = option(800, "training images")
    width: int = option(16, "channels of the first layer, a multiple of 4")
    epochs: int = option(60, "passes over the training images")
    batch_size: int = option(100, "images in a minibatch")
    learning_rate: float = option(0.01, "Adam's, falling to 0")
    kl_weight: float = option(0.1, "weight of the KL in training")
    prior_gain: float = option(2.0, "s sqrt(fan-in), s the prior's standard deviation")
    images: int = option(200, "test images")
    draws: int = option(100, "posterior draws of a prediction")
    elbo_draws: int = option(20, "posterior draws of the ELBO")

    def small(self) -> dict:
        return {"train_size": 20, "width": 4, "epochs": 2, "batch_size": 20, "images": 6, "draws": 4, "elbo_draws": 3}


class Split(nn.Module):
    """``(h, -h)`` along the channels: weights ``(A, B)`` of what follows act as ``A - B``.

    >>> Split()(torch.ones(1, 2)).tolist()
    [[1.0, 1.0, -1.0, -1.0]]
    """

    def forward(self, h):
        return torch.cat([h, -h], 1)


def bare_network(input_shape, classes: int, width: int, split: bool) -> nn.Sequential:
    """The convolutional network of the comparison without biases; split: every layer after a :class:`Split`."""
    copies, layers = 2 if split else 1, []
    for layer in convolutional_network(input_shape, classes, width):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layers += [Split()] if split else []
            layer = _bare(layer, copies)
        layers.append(nn.Tanh() if isinstance(layer, nn.ReLU) else layer)
    return nn.Sequential(*layers)


def _bare(layer: nn.Conv2d | nn.Linear, copies: int) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(copies * layer.in_features, layer.out_features, bias=False)
    inputs, outputs = copies * layer.in_channels, layer.out_channels
    return nn.Conv2d(inputs, outputs, layer.kernel_size, padding=layer.padding, bias=False)


def law_of(family: str, std: float) -> dist.Distribution:
    """The prior of one weight, of the given standard deviation.

    >>> [round(float(law_of(family, 0.5).stddev), 6) for family in ("normal", "laplace", "lognormal")]
    [0.5, 0.5, 0.5]
    """
    if family == "normal":
        return dist.Normal(0.0, std)
    if family == "laplace":
        return dist.Laplace(0.0, std / math.sqrt(2))
    return dist.LogNormal(math.log(std) - (SPREAD**2 + math.log(math.expm1(SPREAD**2))) / 2, SPREAD)


def prior_of(family: str, gain: float) -> Callable[[str, Tensor], dist.Distribution]:
    """The prior of every weight, by its fan-in."""

    def prior(name: str, parameter: Tensor) -> dist.Distribution:
        return law_of(family, gain / math.sqrt(parameter[0].numel())).expand(parameter.shape).to_event()

    return prior


def run(config: FamiliesConfig, data: ImageData) -> dict:
    """Train both guides of every family with each seed, and ask the library what each family allows."""
    rows, laws = [], {}
    show = row_printer((("family", -9, ""), ("network", -7, ""), ("guide", -9, ""), ("seed", 4, "d"),
                        ("elbo", 7, ".3f"), ("elbo_se", 7, ".3f"), ("objective", 9, ".3f"), ("accuracy", 8, ".3f"),
                        ("orbit_accuracy", 14, ".3f"), ("nll", 6, ".3f"), ("defect", 9, ".1e"),
                        ("defect_se", 9, ".0e"), ("divergence", 10, ".1e"), ("certificate", 11, ".1e"),
                        ("seconds", 7, ".1f")))  # fmt: skip
    for seed in config.seeds:
        x, y = shuffled(data, seed, config.train_size + config.images)
        x = x.to(torch.get_default_dtype())  # float32, in which convolutions are faster
        train = x[: config.train_size], y[: config.train_size]
        test = x[-config.images :], y[-config.images :]
        for family, network in SETTINGS:
            for guide in GUIDES:
                setup = make_family_setup(config, family, network, guide, x.shape[1:], data.classes, seed)
                laws.setdefault(family, allowed(family, setup))
                found = _trained(config, setup, family, guide, laws[family]["rules"][0], train, test, seed)
                rows.append({"family": family, "network": network, "guide": guide, **found})
                show(rows[-1])
    summary = [_summary(rows, *setting, guide) for setting in SETTINGS for guide in GUIDES]
    print("\nmean ± standard deviation over seeds")
    for s in summary:
        print(f"{s['family']}, {s['network']}, {s['guide']}: " + ", ".join(
            f"{name} {s[name]['mean']:.3g} ± {s[name]['sd']:.1g}" for name in SUMMARIZED))  # fmt: skip
    print()
    for law in laws.values():
        print(f"{law['family']}: closed under C4: {law['closed']}; natural parameters: {law['natural']}; rules: "
              f"{', '.join(law['rules']) or 'none'}")  # fmt: skip
    return {"family_definitions": FAMILY_DEFINITIONS, "rows": rows, "summary": summary,
            "families": list(laws.values())}  # fmt: skip


def make_family_setup(
    config: FamiliesConfig, family: str, network: str, guide: str, input_shape, classes: int, seed: int
) -> Setup:
    """A network whose weights are a draw from the prior (its average over the group), its model and its symmetry."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    net = bare_network(input_shape, classes, config.width, network == "split")
    prior = prior_of(family, config.prior_gain)
    symmetry = network_symmetry(net, CyclicGroup(4), input_shape)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            draw = prior(name, parameter).sample()
            parameter.copy_(symmetry[name].mean(draw) if guide == "symmetric" else draw)
    return Setup(net, BayesianNetwork(net, prior, size=config.train_size), symmetry)


def allowed(family: str, setup: Setup) -> dict:
    """What the library says of a family under the actions on the weights: asked of the prior, a member of it."""
    laws = {n: setup.model.prior_of(n, p) for n, p in setup.net.named_parameters()}
    closed = all(is_closed(q, setup.symmetry[n]) for n, q in laws.items())
    return {
        "family": family,
        "closed": "yes" if closed else "no",
        "natural": "yes" if _exists(lambda: [natural(q) for q in laws.values()]) else "no",
        "rules": [rule for rule in RULES if _exists(functools.partial(average, laws, setup.symmetry, rule))],
    }


def _exists(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except ClosednessError:
        return False
    return True


def make_guide(setup: Setup, family: str, guide: str, rule: str) -> AutoSymmetric:
    """The symmetric guide; under the trivial group, whose averages change nothing, it is the free one."""
    sites = dict(setup.net.named_parameters())
    one = CyclicGroup(1)
    still = Symmetry(one, {name: trivial(one, p.shape) for name, p in sites.items()})
    symmetry = setup.symmetry if guide == "symmetric" else still
    return AutoSymmetric(setup.model, symmetry, dict.fromkeys(sites, family), rule, init_scale=_first_scale)


def _first_scale(site: dict) -> Tensor:
    """A tenth of the prior's standard deviation, of positive weights a tenth of the value."""
    law = site["fn"]
    positive = bool((law.mean > 0).all())
    return torch.full_like(site["value"], 0.1) if positive else 0.1 * law.variance.sqrt()


def _trained(config: FamiliesConfig, setup: Setup, family: str, kind: str, rule: str, train, test, seed: int) -> dict:
    """The row of one guide, but for its name."""
    pyro.set_rng_seed(seed)
    guide = make_guide(setup, family, kind, rule)
    augmented = augment(setup.model, setup.symmetry)
    fitted = fit(
        setup.model if kind == "symmetric" else augmented,
        guide,
        train,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=functools.partial(torch.optim.Adam, lr=config.learning_rate),
        scheduler=functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda e: 1 - e / config.epochs),
        kl_weight=config.kl_weight,
        seed=seed,
        progress=False,
    )
    kl = _prior_divergence(setup, guide) / len(train[0])
    bounds = elbo_draws(augmented, guide, train, config.elbo_draws)
    probs = orbit_probabilities(setup, guide, test[0], config.draws)
    defect, mean, bound = equivariance_defect(probs), probs.double().mean(0), certificate(guide, setup.symmetry)
    return {
        "rule": rule if kind == "symmetric" else None,
        "seed": seed,
        "elbo": float(bounds.mean()),
        "elbo_se": float(bounds.std() / len(bounds) ** 0.5),
        "objective": float(bounds.mean()) + (1 - config.kl_weight) * kl,
        "kl": kl,
        "accuracy": float(accuracy(mean[0], test[1])),
        "orbit_accuracy": float(accuracy(mean, test[1])),
        "nll": float(negative_log_likelihood(mean, test[1])),
        "defect": defect.value,
        "defect_se": defect.se,
        "divergence": float(bound.kl.max()),
        "certificate": bound.defect,
        "seconds": fitted.seconds,
    }


@torch.no_grad()
def elbo_draws(model, guide, data, count: int) -> Tensor:
    """Estimates of the ELBO per datum from one draw each, the KL in closed form: ``(count,)``."""
    loss = TraceMeanField_ELBO()
    return -torch.tensor([loss.loss(model, guide, *data) for _ in range(count)]).double() / len(data[0])


@torch.no_grad()
def _prior_divergence(setup: Setup, guide: AutoSymmetric) -> float:
    return sum(
        float(torch.distributions.kl_divergence(guide.get_posterior(n), setup.model.prior_of(n, p)))
        for n, p in setup.net.named_parameters()
    )


@torch.no_grad()
def orbit_probabilities(setup: Setup, guide: AutoSymmetric, x: Tensor, count: int) -> Tensor:
    """As :func:`~pyro_equivariance.orbit_predict`: class probabilities ``(T, |G|, N, K)``."""
    copies = setup.symmetry.inputs.orbit(x)
    weights = {n: guide.get_posterior(n).sample((count,)) for n, _ in setup.net.named_parameters()}
    outputs = [
        torch.func.functional_call(setup.net, {n: w[t] for n, w in weights.items()}, (copies.flatten(0, 1),))
        for t in range(count)
    ]
    return torch.stack(outputs).softmax(-1).unflatten(1, copies.shape[:2])


def _summary(rows: list[dict], family: str, network: str, guide: str) -> dict:
    own = [r for r in rows if (r["family"], r["network"], r["guide"]) == (family, network, guide)]
    return {"family": family, "network": network, "guide": guide} | {
        name: over_seeds([r[name] for r in own]) for name in SUMMARIZED
    }
