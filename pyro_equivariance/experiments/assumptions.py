"""The study ``assumptions``: is training exactly equivariant where ``check_assumptions`` says so, and only there?"""

import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from ..data import ImageData
from ..errors import OptionError
from ..guides import AutoSymmetricNormal
from ..handlers import antithetic, augment
from ..networks import FanIn
from ..theory import certificate, check_assumptions
from ..training import fit
from .study import Setup, StudyConfig, make_setup, option, row_printer, shuffled

WORDS = "predicted against observed drift from invariance, over a catalogue of settings"
EXACT = 1e-10  # nats
RATE = 0.01
DEFINITIONS = {
    "setting": "what is trained and how; see settings",
    "seed": "of the data, the start and all noise",
    "predicted": "the outcome of check_assumptions on the state before training",
    "failing": "the first condition that it names as failing, empty if it names none",
    "start": "max over g of KL(q | g q) before training, nats; guides start averaged unless the setting says not",
    "drift": "the same after the last step",
    "largest": "the largest of it at the recorded steps after the first",
    "agrees": "whether drift < 1e-10 exactly where 'exactly equivariant' is predicted",
}
LAW = {
    "setting": "as in rows",
    "predicted": "as in rows",
    "runs": "independent runs, each from the same invariant start on the same data, with noise of its own",
    "steps": "of each run",
    "one_run": "root mean square over runs of a . mu after the last step; a is the gradient of the upright log "
    "likelihood at the start less its mean over the group, |a| = 1: fixed, and orthogonal to every invariant vector",
    "mean": "the mean of a . mu over runs; its expectation is 0 if the law over runs is symmetric",
    "se": "its standard error over runs",
    "z": "mean / se: within about 2 of 0 in law, far from 0 otherwise",
}


@dataclass(frozen=True)
class Setting:
    """A line of the catalogue; the defaults are those under which all conditions hold."""

    words: str
    linear: bool = False
    optimizer: str = "adam"
    orbit: str = "full"
    draws: str = "antithetic"
    batches: int = 1
    prior: str = "invariant"
    start: str = "invariant"
    symmetric: bool = False
    average: bool = False


OPTIMIZERS: dict[str, Callable] = {
    "sgd": functools.partial(torch.optim.SGD, lr=RATE / 10),
    "momentum": functools.partial(torch.optim.SGD, lr=RATE / 100, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=RATE),
}
LINEAR = Setting("linear regression, ELBO in closed form, Adam", linear=True, draws="exact")
NETWORK = Setting("network, orbit-antithetic draws, Adam")
CATALOGUE = {
    "exact gradients, SGD": replace(LINEAR, words="linear regression, ELBO in closed form", optimizer="sgd"),
    "exact gradients, momentum": replace(LINEAR, words="the same with momentum 0.9", optimizer="momentum"),
    "exact gradients, Adam": LINEAR,
    "exact gradients, minibatches": replace(LINEAR, words="the same, four minibatches of whole orbits", batches=4),
    "exact gradients, upright": replace(LINEAR, words="the same without augmentation", orbit="none"),
    "antithetic, SGD": replace(NETWORK, words="network, orbit-antithetic draws", optimizer="sgd"),
    "antithetic, momentum": replace(NETWORK, words="the same with momentum 0.9", optimizer="momentum"),
    "antithetic, Adam": NETWORK,
    "antithetic, minibatches": replace(NETWORK, words="the same, four minibatches of whole orbits", batches=4),
    "antithetic, one rotation": replace(NETWORK, words="the same, one random rotation per image", orbit="random"),
    "antithetic, upright": replace(NETWORK, words="the same without augmentation", orbit="none"),
    "independent draws": replace(NETWORK, words="network, independent draws", draws="independent"),
    "independent, one rotation": replace(
        NETWORK, words="the same, one random rotation per image", draws="independent", orbit="random"
    ),
    "prior scales differ": replace(NETWORK, words="antithetic, prior scales differ by weight", prior="scales"),
    "random prior": replace(NETWORK, words="antithetic, prior means random by weight", prior="means"),
    "start not invariant": replace(NETWORK, words="antithetic, start not averaged", start="random"),
    "AutoSymmetricNormal": replace(
        NETWORK, words="independent draws, upright", draws="independent", orbit="none", symmetric=True
    ),
    "average_gradient": replace(
        NETWORK, words="independent draws, one rotation", draws="independent", orbit="random", average=True
    ),
    "average_gradient, all wrong": replace(
        NETWORK, words="the same, upright, random prior, start not averaged", draws="independent", orbit="none",
        prior="means", start="random", average=True,
    ),
}  # fmt: skip
IN_LAW = ("independent draws", "independent, one rotation", "antithetic, one rotation", "antithetic, upright")


@dataclass(frozen=True)
class AssumptionsConfig(StudyConfig):
    """What :func:`run` depends on."""

    train_size: int = option(24, "training images, a multiple of 4")
    width: int = option(4, "hidden units, a multiple of 4")
    steps: int = option(500, "optimisation steps of each setting")
    law_runs: int = option(100, "runs over which the law is looked at")
    law_steps: int = option(5, "steps of each of them")

    def __post_init__(self):
        super().__post_init__()
        if self.train_size % 4 or self.law_runs < 2:
            raise OptionError(
                f"Expected --train-size to be a multiple of 4, for minibatches of one size, and --law-runs at least 2, "
                f"for a standard error; got {self.train_size} and {self.law_runs}."
            )

    def small(self) -> dict:
        return {"train_size": 8, "steps": 8, "law_runs": 3, "law_steps": 2}


class LinearELBO(ELBO):
    """The ELBO, exact, of a model that is linear in its weights and has a Normal likelihood, under a mean-field Normal.

    ``E_q[log p(y | θ)] = log p(y | E θ) − ½ Σ Var_q(f) / s²``, and for independent weights ``Var_q(f)`` is the same
    linear map of the variances and of the squared inputs. Pixels are exchanged alike in an image and in its square.
    """

    def _get_trace(self, model, guide, args, kwargs):
        raise NotImplementedError("It needs no draws.")

    def differentiable_loss(self, model, guide, x, y):
        laws = {n: s["fn"] for n, s in poutine.trace(guide).get_trace(x, y).nodes.items() if s["type"] == "sample"}
        means = {n: law.base_dist.loc for n, law in laws.items()}
        variances = {n: law.base_dist.scale.square() for n, law in laws.items()}
        at_means = poutine.trace(poutine.condition(model, means)).get_trace(x, y)
        spread = poutine.condition(model, variances)(x.square(), y)
        at_means.compute_log_prob()
        seen = at_means.nodes["y"]
        noise = seen["fn"].base_dist.scale
        expected = seen["log_prob_sum"] - (seen["scale"] * spread / noise.square()).sum() / 2
        divergence = sum(dist.kl.kl_divergence(law, at_means.nodes[n]["fn"]).sum() for n, law in laws.items())
        return divergence - expected

    def loss(self, model, guide, *args):
        return self.differentiable_loss(model, guide, *args).item()

    def loss_and_grads(self, model, guide, *args):
        loss = self.differentiable_loss(model, guide, *args)
        loss.backward()
        return loss.item()


class _OddPrior:
    """Not invariant: standard deviations, or means, that differ from weight to weight at random."""

    def __init__(self, kind: str, seed: int):
        self._kind, self._generator, self._noise = kind, torch.Generator().manual_seed(seed), {}

    def __call__(self, name: str, parameter: Tensor) -> dist.Distribution:
        usual = FanIn()(name, parameter).base_dist
        if name not in self._noise:
            self._noise[name] = torch.randn(parameter.shape, generator=self._generator, dtype=parameter.dtype)
        noise = self._noise[name]
        if self._kind == "means":
            return dist.Normal(noise * usual.stddev, usual.stddev).to_event(parameter.ndim)
        return dist.Normal(usual.mean, usual.stddev * noise.mul(0.3).exp()).to_event(parameter.ndim)


def run(config: AssumptionsConfig, data: ImageData) -> dict:
    """Predict, train and measure each setting with each seed; then look at the law over runs."""
    rows, paths = [], []
    show = row_printer((("setting", -29, ""), ("seed", 4, "d"), ("predicted", -19, ""), ("failing", -8, ""),
                        ("start", 8, ".1e"), ("drift", 8, ".1e"), ("agrees", 6, "")))  # fmt: skip
    for name, setting in CATALOGUE.items():
        for seed in config.seeds:
            trial = _Trial(config, data, setting, seed)
            predicted = trial.predict()
            path = trial.train(config.steps, seed)
            drift = path[-1][1]
            agrees = (drift < EXACT) == (predicted.outcome == "exactly equivariant")
            rows.append({"setting": name, "seed": seed, "predicted": predicted.outcome, "failing": _failing(predicted),
                         "start": path[0][1], "drift": drift, "largest": max(d for _, d in path[1:]),
                         "agrees": "yes" if agrees else "no"})  # fmt: skip
            paths.append({"setting": name, "seed": seed, "steps": [s for s, _ in path], "drift": [d for _, d in path]})
            show(rows[-1])
    agree = sum(r["agrees"] == "yes" for r in rows)
    print(f"\n{agree} of {len(rows)} outcomes as predicted\n")
    law = _in_law(config, data)
    settings = {name: setting.words for name, setting in CATALOGUE.items()}
    return {"settings": settings, "rows": rows, "paths": paths, "agreements": agree, "law": law, "law_definitions": LAW}


def _failing(predicted) -> str:
    """The letter of the condition that the reason names, and what it is."""
    return predicted.reason[:3] if predicted.reason.startswith("(") else ""


def _in_law(config: AssumptionsConfig, data: ImageData) -> list[dict]:
    found = []
    show = row_printer((("setting", -29, ""), ("predicted", -19, ""), ("runs", 4, "d"), ("one_run", 9, ".1e"),
                        ("mean", 9, ".1e"), ("se", 8, ".0e"), ("z", 6, ".1f")))  # fmt: skip
    for name in IN_LAW:
        predicted, values = _Trial(config, data, CATALOGUE[name], config.seeds[0]).predict(), []
        for i in range(config.law_runs):
            trial = _Trial(config, data, CATALOGUE[name], config.seeds[0])
            trial.train(config.law_steps, 50_000 + 7919 * i)
            values.append(trial.odd())
        mean, se = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
        found.append({"setting": name, "predicted": predicted.outcome, "runs": len(values), "steps": config.law_steps,
                      "one_run": math.sqrt(statistics.fmean(v * v for v in values)), "mean": mean, "se": se,
                      "z": mean / se if se > 0 else math.nan})  # fmt: skip
        show(found[-1])
    return found


class _Trial:
    """One setting with one seed: a model, a guide that has not been trained, and its training."""

    def __init__(self, config: AssumptionsConfig, data: ImageData, setting: Setting, seed: int):
        self._setting = setting
        x, y = shuffled(data, seed, config.train_size)
        x, y = x[: config.train_size], y[: config.train_size]
        prior = "fan_in" if setting.prior == "invariant" else _OddPrior(setting.prior, seed)
        width, options = config.width, {}
        if setting.linear:
            y = torch.nn.functional.one_hot(y, data.classes).double()
            width, options = 0, {"likelihood": "normal"}
        self._data = x, y
        self._setup: Setup = make_setup(x, y, data.classes, width, seed, prior, **options)
        self._guide = self._make_guide()
        augmented = setting.orbit != "none"
        model = self._setup.model
        self._model = augment(model, self._setup.symmetry, orbit=setting.orbit) if augmented else model
        orbits = setting.draws == "antithetic"
        self._trained = antithetic(self._guide, self._setup.symmetry) if orbits else self._guide
        self._direction = {} if setting.linear else self._odd_direction()

    def _make_guide(self):
        if not self._setting.symmetric:
            return self._setup.guide(self._data, invariant=self._setting.start == "invariant")
        guide = AutoSymmetricNormal(self._setup.model, self._setup.symmetry)
        guide.initialize(*self._data)
        return guide

    def predict(self):
        """What :func:`check_assumptions` says, told the same settings."""
        return check_assumptions(
            self._model,
            self._trained,
            self._setup.symmetry,
            OPTIMIZERS[self._setting.optimizer],
            augmentation=self._setting.orbit,
            data=tuple(t[:1] for t in self._data),
            draws=self._setting.draws,
            average_gradient=self._setting.average,
        )

    def train(self, steps: int, seed: int) -> list[tuple[int, float]]:
        """The step and the drift, before training, at a few steps in between and after the last."""
        setting = self._setting
        path, epochs = [], max(1, steps // setting.batches)
        recorded = {0, *(round(epochs ** (k / 12)) for k in range(12))}

        def record(training) -> None:
            if training.epoch in recorded:
                path.append((training.epoch * setting.batches, self._drift()))

        fit(
            self._model,
            self._trained,
            self._data,
            epochs=epochs,
            batch_size=len(self._data[0]) // setting.batches,
            optimizer=OPTIMIZERS[setting.optimizer],
            loss=LinearELBO() if setting.draws == "exact" else self._sampled(),
            callbacks=[record],
            seed=seed,
            progress=False,
            average_gradient=self._setup.symmetry if setting.average else None,
        )
        path.append((epochs * setting.batches, self._drift()))
        return path

    def _sampled(self) -> ELBO:
        return TraceMeanField_ELBO(num_particles=4 if self._setting.draws == "antithetic" else 1)

    def _drift(self) -> float:
        return float(certificate(self._guide, self._setup.symmetry).kl.max())

    def odd(self) -> float:
        """``a . μ``, a the part of the upright gradient at the start that no invariant vector has, of unit length."""
        product, square = 0.0, 0.0
        for name, a in self._direction.items():
            product += float((a * self._guide.get_posterior(name).base_dist.loc.detach()).sum())
            square += float(a.square().sum())
        return product / math.sqrt(square)

    def _odd_direction(self) -> dict[str, Tensor]:
        """``∇ log p(y | x, μ)`` of the upright data at the start, less its mean over the group."""
        net, symmetry = self._setup.net, self._setup.symmetry
        means = {n: self._guide.get_posterior(n).base_dist.loc.detach() for n, _ in net.named_parameters()}
        means = {n: mu.requires_grad_() for n, mu in means.items()}
        x, y = self._data
        torch.nn.functional.cross_entropy(torch.func.functional_call(net, means, (x,)), y).backward()
        return {n: symmetry[n].mean(mu.grad) - mu.grad for n, mu in means.items()}
