"""The study ``priors``: what a prior that is not invariant does to the posterior, and how it fades with more data."""

import functools
import time
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ..data import ImageData
from ..errors import OptionError
from ..metrics import accuracy
from ..symmetry import Symmetry
from ..theory import certificate
from .study import (
    Setup,
    StudyConfig,
    fit_in_orbits,
    make_setup,
    option,
    orbit_defect,
    over_seeds,
    row_printer,
    shuffled,
    slope,
)

WORDS = "an invariant against a random prior, over the size of the training set"
MODELS = ("classifier", "regression")
PRIORS = ("invariant", "random")
DEFINITIONS = {
    "model": "classifier: softmax of a linear map of the pixels (of a hidden layer with --width), trained with full "
    "augmentation and orbit-antithetic draws, KL weight 1; regression: a linear map of the pixels to one-hot labels "
    "with unit noise, its mean-field optimum in closed form, full augmentation",
    "prior": "invariant: N(0, s^2) for every weight, s = --prior-scale; random: N(m_i, s^2), m_i ~ N(0, (spread s)^2) "
    "drawn once for each weight and seed",
    "seed": "of the order of the data, the start, the random prior and the draws",
    "train_size": "N, training images",
    "defect": "mean over x, g of |F(gx) - F(x)|^2, g = e included, F the mean class probabilities (unbiased, from "
    "orbits of draws) or the mean of the regression (exact); on images that are in no training set",
    "defect_se": "its jackknife standard error over orbits of draws; 0 where exact",
    "mean_distance": "root mean square over g other than e of |mu - g mu|, divided by that of the prior means m; for "
    "the invariant prior by that of the random prior of the same seed",
    "natural_distance": "root mean square over g other than e of |eta - g eta|, divided by |eta|; eta = (mu / s^2, "
    "-1 / (2 s^2)) the natural parameters of q",
    "divergence": "the largest KL(q | g q) over g, nats",
    "accuracy": "fraction of moved copies of the same images whose most probable class is right",
    "seconds": "wall-clock seconds of training; 0 for the regression",
}
SLOPED = {
    "defect": "d log defect / d log N, least squares over the sizes; theory -2 for the optimum of a unique minimum",
    "mean_distance": "the same of mean_distance; theory -1 in the directions that the data determine, 0 in the others",
    "natural_distance": "the same of natural_distance; theory -1 for the optimum",
}
SLOPED |= {f"{name}_last": f"the slope of {name} between the two largest sizes alone" for name in SLOPED}
SIZES = 4
HELD_OUT = 0.2


@dataclass(frozen=True)
class PriorsConfig(StudyConfig):
    """What :func:`run` depends on."""

    train_sizes: tuple[int, ...] = option((), "numbers of training images; left out, four, each four times the last")
    width: int = option(0, "hidden units, a multiple of 4; 0 for a linear classifier, whose optimum is unique")
    steps: int = option(400, "optimisation steps")
    batch_size: int = option(100, "images in a minibatch")
    learning_rate: float = option(0.05, "Adam's, falling to 0")
    prior_scale: float = option(1.0, "s, standard deviation of every weight under the prior")
    prior_spread: float = option(0.5, "standard deviation of the random prior means, in units of s")
    images: int = option(200, "test images")
    draws: int = option(100, "orbits of draws of an evaluation")

    def small(self) -> dict:
        return {"train_sizes": (10, 20), "steps": 5, "images": 10, "draws": 5}


class RandomMeans:
    """The prior ``N(m_i, s²)`` with means ``m_i ~ N(0, (spread s)²)``, drawn once: not invariant."""

    def __init__(self, scale: float, spread: float, seed: int):
        self._scale, self._spread = scale, spread
        self._generator = torch.Generator().manual_seed(seed)
        self.means: dict[str, Tensor] = {}

    def __call__(self, name: str, parameter: Tensor) -> dist.Distribution:
        if name not in self.means:
            noise = torch.randn(parameter.shape, generator=self._generator, dtype=torch.float64)
            self.means[name] = (self._spread * self._scale * noise).to(parameter.dtype)
        return dist.Normal(self.means[name], self._scale).to_event(parameter.ndim)


def run(config: PriorsConfig, data: ImageData) -> dict:
    """Train under both priors at every size and seed; fit slopes over the sizes."""
    sizes = _sizes(config, data)
    rows = []
    show = row_printer((("model", -10, ""), ("prior", -9, ""), ("seed", 4, "d"), ("train_size", 10, "d"),
                        ("defect", 9, ".2e"), ("defect_se", 9, ".0e"), ("mean_distance", 13, ".2e"),
                        ("natural_distance", 16, ".2e"), ("accuracy", 8, ".3f"), ("seconds", 7, ".1f")))  # fmt: skip
    for seed in config.seeds:
        x, y = shuffled(data, seed, max(sizes) + config.images)
        test = x[-config.images :], y[-config.images :]
        for model, one in (("classifier", _classifier), ("regression", _regression)):
            for prior in PRIORS:
                for size in sizes:
                    found = one(config, (x[:size], y[:size]), test, data.classes, prior, seed)
                    rows.append({"model": model, "prior": prior, "seed": seed, "train_size": size, **found})
                    show(rows[-1])
    slopes = [_slopes(rows, model, seed) for model in MODELS for seed in config.seeds]
    summary = [
        {"model": model} | {n: over_seeds([s[n] for s in slopes if s["model"] == model]) for n in SLOPED}
        for model in MODELS
    ]
    print("\nslopes over log N under the random prior, mean ± standard deviation over seeds")
    for s in summary:
        print(f"{s['model']}: " + ", ".join(f"{n} {s[n]['mean']:.2f} ± {s[n]['sd']:.2f}" for n in SLOPED))
    largest = max(abs(r["defect"]) for r in rows if r["prior"] == "invariant")
    print(f"invariant prior: the largest |defect| is {largest:.1e}")
    return {"fit_definitions": SLOPED, "rows": rows, "fits": slopes, "summary": summary,
            "largest_defect_under_invariant_prior": largest}  # fmt: skip


def _sizes(config: PriorsConfig, data: ImageData) -> tuple[int, ...]:
    sizes = config.train_sizes
    if not sizes:
        largest = int((1 - HELD_OUT) * len(data))
        sizes = tuple(largest // 4**k for k in reversed(range(SIZES)))
    if len(set(sizes)) < 2 or min(sizes) < 1 or sorted(sizes) != list(sizes):
        raise OptionError(f"Expected --train-sizes to be at least two increasing numbers of images; got {sizes}.")
    return sizes


def _slopes(rows: list[dict], model: str, seed: int) -> dict:
    own = [r for r in rows if (r["model"], r["prior"], r["seed"]) == (model, "random", seed)]
    found = {"model": model, "seed": seed}
    for name in SLOPED:
        used = own[-2:] if name.endswith("_last") else own
        column = name.removesuffix("_last")
        found[name] = slope([r["train_size"] for r in used], [r[column] for r in used])
    return found


def _classifier(config: PriorsConfig, train, test, classes: int, prior: str, seed: int) -> dict:
    random = RandomMeans(config.prior_scale, config.prior_spread, seed)
    law = random if prior == "random" else config.prior_scale
    setup = make_setup(*train, classes, config.width, seed, prior=law)
    for name, parameter in setup.net.named_parameters():
        random(name, parameter)  # the means that distances are relative to, under either prior
    guide = setup.guide(tuple(t[:1] for t in train))
    start = time.perf_counter()
    fit_in_orbits(setup, guide, train, config.steps, config.batch_size, config.learning_rate, seed)
    seconds = time.perf_counter() - start
    defect, probs = orbit_defect(setup, guide, test[0], config.draws)
    laws = {n: guide.get_posterior(n).base_dist for n, _ in setup.net.named_parameters()}
    moments = {n: (q.loc.detach(), q.scale.detach()) for n, q in laws.items()}
    return {
        "defect": defect.value,
        "defect_se": defect.se,
        **_distances(setup.symmetry, moments, random.means),
        "divergence": float(certificate(guide, setup.symmetry).kl.max()),
        "accuracy": float(accuracy(probs, test[1])),
        "seconds": seconds,
    }


def _regression(config: PriorsConfig, train, test, classes: int, prior: str, seed: int) -> dict:
    random = RandomMeans(config.prior_scale, config.prior_spread, seed)
    setup = make_setup(*train, classes, 0, seed)
    for name, parameter in setup.net.named_parameters():
        random(name, parameter)
    means = random.means if prior == "random" else {n: torch.zeros_like(m) for n, m in random.means.items()}
    moments = regression_optimum(setup, train, classes, means, config.prior_scale)
    copies = setup.symmetry.inputs.orbit(test[0])
    weights = {n: mu for n, (mu, _) in moments.items()}
    outputs = torch.func.functional_call(setup.net, weights, (copies.flatten(0, 1),)).unflatten(0, copies.shape[:2])
    return {
        "defect": (outputs - outputs[0]).square().sum(-1).mean().item(),
        "defect_se": 0.0,
        **_distances(setup.symmetry, moments, random.means),
        "divergence": float(_divergence(setup.symmetry, moments)),
        "accuracy": float((outputs.argmax(-1) == test[1]).double().mean()),
        "seconds": 0.0,
    }


def regression_optimum(setup: Setup, train, classes: int, means, scale: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean-field Normal that maximises the fully augmented ELBO of a linear regression: means and deviations.

    Its means are those of the exact posterior, its precisions the diagonal of that of the exact one.
    """
    (weight, _), (bias, _) = setup.net.named_parameters()
    x, y = train
    moved = setup.symmetry.inputs.orbit(x).flatten(0, 1).flatten(1)
    features = torch.cat([moved, torch.ones_like(moved[:, :1])], 1)
    targets = torch.nn.functional.one_hot(y, classes).double().repeat(len(setup.symmetry.group), 1)
    prior = torch.cat([means[weight], means[bias][:, None]], 1)
    order = len(setup.symmetry.group)
    precision = features.T @ features / order + torch.eye(features.shape[1], dtype=features.dtype) / scale**2
    mean = torch.linalg.solve(precision, features.T @ targets / order + prior.T / scale**2).T
    deviation = precision.diagonal().rsqrt().expand_as(mean)
    return {weight: (mean[:, :-1], deviation[:, :-1]), bias: (mean[:, -1], deviation[:, -1])}


def _distances(symmetry: Symmetry, moments, prior_means) -> dict[str, float]:
    """Of the means, relative to the prior's, and of the natural parameters, relative to their size."""
    means = {n: mu for n, (mu, _) in moments.items()}
    first = {n: mu / s**2 for n, (mu, s) in moments.items()}
    second = {n: -0.5 / s**2 for n, (_, s) in moments.items()}
    moduli = {n: symmetry[n].modulus() for n in moments}
    natural = _distance(symmetry, first) ** 2 + _distance(moduli, second) ** 2
    size = sum(float(v.square().sum()) for part in (first, second) for v in part.values())
    return {
        "mean_distance": _distance(symmetry, means) / _distance(symmetry, prior_means),
        "natural_distance": (natural / size) ** 0.5,
    }


def _distance(actions, values: dict[str, Tensor]) -> float:
    """Root mean square over g other than e of the distance between the values and their moved copy."""
    squares = 0.0
    for name, value in values.items():
        gaps = (actions[name].orbit(value) - value).square().sum()
        squares += float(gaps) / (len(actions[name].group) - 1)
    return squares**0.5


def _divergence(symmetry: Symmetry, moments) -> float:
    """``max_g KL(q ‖ ρ(g)_# q)`` of independent Normals."""
    total = functools.reduce(torch.add, (
        torch.stack([
            torch.distributions.kl_divergence(
                torch.distributions.Normal(mu, s),
                torch.distributions.Normal(symmetry[n].act(g, mu), symmetry[n].modulus().act(g, s)),
            ).sum() for g in range(len(symmetry.group))
        ]) for n, (mu, s) in moments.items()
    ))  # fmt: skip
    return float(total.max())
