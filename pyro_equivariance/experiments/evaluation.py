"""The numbers of one trained posterior, each with its definition."""

import torch
from torch import Tensor

from .. import metrics
from ..ensembles import Ensemble
from ..guides import AutoDirectNormal
from ..prediction import orbit_predict
from ..theory import certificate
from .base import Problem
from .methods import Fitted

DEFINITIONS = {
    "method": "the name of the method, see the README",
    "seed": "seed of the split, the start, the order of the data and all draws",
    "accuracy": "fraction of upright test images whose most probable class is right",
    "accuracy_orbit": "the same over all |G| moved copies of the test images",
    "nll": "negative log predictive probability of the label, nats, mean over all moved copies",
    "ece": "expected calibration error over all moved copies, 15 equal bins of the top probability",
    "brier": "mean over all moved copies of the squared distance between the class probabilities and the label",
    "set_size": "mean number of classes in split conformal sets of level 0.9 over all moved copies, calibrated on the "
    "validation images, the i-th moved by element i mod |G|",
    "set_coverage": "fraction of these sets that hold the label",
    "defect": "unbiased estimate of mean over x and g of |F(gx) - F(x)|^2, F the mean class probabilities; draws "
    "common to the orbit, g = e included; may be slightly negative; of an ensemble its own, from all members once",
    "defect_se": "its jackknife standard error over posterior draws; of an ensemble over members",
    "osp": "orbit same prediction: fraction of (x, g), g = e included, with argmax F(gx) = argmax F(x)",
    "osp_majority": "mean over x of the largest share of the orbit that agrees on a class",
    "symmetric_kl": "KL(F(x)|F(gx)) + KL(F(gx)|F(x)) in nats, mean over x and g other than e",
    "certificate": "a bound on the defect for all inputs, from the guide alone: mean over g of 2 TV(q, gq)^2, by the "
    "smaller of the two KL divergences, the smaller of the actions with regular and with trivial hidden channels where "
    "both apply; from about 2 (1 - 1/|G|) on it says nothing; null for an ensemble, which has no density",
    "train_seconds": "wall-clock seconds of training, validation included",
    "parameters": "number of real parameters of the guide",
    "validation_nll": "nll on the validation images, which chooses the recommended method",
    "exact": "whether the posterior predictive is equivariant for every value of the guide's parameters",
}


@torch.no_grad()
def test_draws(problem: Problem, fitted: Fitted) -> Tensor:
    """Class probabilities at all moved copies of the test images, ``(T, |G|, N, K)``: the only look at them."""
    return _draws(problem, fitted, problem.splits.test[0])


@torch.no_grad()
def evaluate(problem: Problem, fitted: Fitted, draws: Tensor, name: str, seed: int) -> dict:
    """The fields of one run, as ``DEFINITIONS`` says, from :func:`test_draws`."""
    x, y = problem.splits.test
    probs = draws.double().mean(0)
    # The mean over an ensemble's members is its prediction, without Monte Carlo error, and so is its plug-in defect.
    estimator = "biased" if isinstance(fitted.guide, Ensemble) else "unbiased"
    defect = metrics.equivariance_defect(draws, estimator=estimator)
    bounds = [certificate(fitted.guide, symmetry, x[:1], y[:1]).defect for symmetry in fitted.symmetries]
    held_out, labels = _validation(problem, fitted)
    sets = metrics.conformal_set_size(_one_pose_each(held_out), labels, probs, y)
    return {
        "method": name,
        "seed": seed,
        "accuracy": float(metrics.accuracy(probs[0], y)),
        "accuracy_orbit": float(metrics.accuracy(probs, y)),
        "nll": float(metrics.negative_log_likelihood(probs, y)),
        "ece": float(metrics.calibration_error(probs, y)),
        "brier": float(metrics.brier_score(probs, y)),
        "set_size": sets.size,
        "set_coverage": sets.coverage,
        "defect": defect.value,
        "defect_se": defect.se,
        "osp": float(metrics.orbit_same_prediction(probs)),
        "osp_majority": float(metrics.orbit_same_prediction(probs, definition="majority")),
        "symmetric_kl": float(metrics.symmetric_kl(probs)),
        "certificate": min(bounds, default=None),
        "train_seconds": fitted.seconds,
        "parameters": count_parameters(fitted.guide),
        "validation_nll": float(metrics.negative_log_likelihood(held_out, labels)),
        "exact": fitted.exact,
    }


def _validation(problem: Problem, fitted: Fitted) -> tuple[Tensor, Tensor]:
    """Mean class probabilities over the orbits of the validation images, ``(|G|, N, K)``, and the labels."""
    x, y = problem.splits.validation
    return _draws(problem, fitted, x).double().mean(0), y


def _draws(problem: Problem, fitted: Fitted, x: Tensor) -> Tensor:
    """As many draws as configured, of an ensemble each member once: ``(T, |G|, N, K)``."""
    guide, count = fitted.guide, problem.config.draws
    if isinstance(guide, Ensemble):
        guide, count = guide.in_turn(), len(guide)
    return orbit_predict(fitted.model, guide, problem.inputs, x, count)


def _one_pose_each(probs: Tensor) -> Tensor:
    """From ``(|G|, N, K)`` one moved copy of each image, all poses alike: ``(N, K)``."""
    images = torch.arange(probs.shape[1], device=probs.device)
    return probs[images % len(probs), images]


def count_parameters(guide: AutoDirectNormal) -> int:
    """The number of real parameters of a guide."""
    return sum(p.numel() for p in guide.parameters())
