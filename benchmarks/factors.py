"""Three latent factors, whose signs and names are free: what an orbit mixture over 48 elements keeps and gains."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_equivariance as pe

from .cases import one_thread
from .draws import fit
from .guides import DRAWS, IDENTITY, MANY, PARTICLES, SEEDS, compare_elbos
from .report import Column, Report, aim, gate

FEATURES, FACTORS, COUNT, NOISE, SCALE = 6, 3, 150, 0.5, 0.7
STEPS, RARE, ROUNDING = 1_500, 0.01, 1e-10
LIMITS = {"E[W]": FEATURES * FACTORS, "E[W Wᵀ]": FEATURES * (FEATURES + 1) // 2}


def run() -> Report:
    """The identity of the ELBOs, predictive means, the loadings after one representative was chosen."""
    report = Report("factors", f"a model of {FACTORS} factors, signs and permutations (order 48), float64")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with one_thread(), pyro.validation_enabled(False):
            _rows(report)
    finally:
        torch.set_default_dtype(dtype)
    return report


def loadings() -> Tensor:
    """Three distinct factors, each on features of its own and a little on the next one's."""
    true = torch.zeros(FEATURES, FACTORS)
    true[0, 0], true[1, 0], true[2, 0] = 2.0, 1.6, 0.4
    true[2, 1], true[3, 1], true[4, 1] = 1.5, -1.2, 0.3
    true[4, 2], true[5, 2] = 1.0, 0.8
    return true


def factors() -> tuple[Callable, pe.Symmetry]:
    """Factors integrated out, ``x ~ N(0, W Wᵀ + noise)``, and the symmetry that is found."""
    noise = NOISE**2 * torch.eye(FEATURES)
    x = dist.MultivariateNormal(torch.zeros(FEATURES), loadings() @ loadings().mT + noise).sample((COUNT,))

    def model():
        w = pyro.sample("W", dist.Laplace(torch.zeros(FEATURES, FACTORS), SCALE).to_event(2))
        with pyro.plate("data", COUNT):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(FEATURES), w @ w.mT + noise), obs=x)

    return model, pe.orthogonal_factors(model, "W")


def _rows(report: Report) -> None:
    described = (
        f"{COUNT} data of {FEATURES} features, x ~ N(0, W Wᵀ + {NOISE}²), W {FEATURES} × {FACTORS}, true loadings "
        f"sparse and of different sizes; prior W ~ Laplace(0, {SCALE}), which only signed permutations keep (a Normal "
        f"prior would leave all rotations free). Symmetry: pe.orthogonal_factors(model, 'W'). "
    )
    identity = report.table(
        "ELBO(q^G) − ELBO(q) = I(g; θ)",
        f"{described}AutoOrbitMixture, {STEPS} steps of ClippedAdam, rate 0.03 falling to 1 %, {PARTICLES} particles. "
        f"gain: ELBO(q^G) − ELBO(q) from {DRAWS:,} draws of each; I: log |G| − E[H(g | θ)] from {MANY:,} other draws, "
        f"by enumeration; ± standard errors. off: their difference in standard errors (aim: within 3); "
        f"I must not exceed log |G|. Seeds {SEEDS}.",
        *IDENTITY,
    )
    kept = []
    for base in ("diagonal", "full"):
        for seed in SEEDS:
            pyro.clear_param_store()
            pyro.set_rng_seed(seed)
            model, symmetry = factors()
            guide = pe.AutoOrbitMixture(model, symmetry, base=base)
            fit(model, guide, steps=STEPS, particles=PARTICLES)
            identity.add(base=base, seed=seed, **compare_elbos(model, guide, symmetry))
            kept.append((base, seed, symmetry, *_draws(guide)))
    _invariance(report, kept)
    _directions(report, kept)


@torch.no_grad()
def _draws(guide) -> tuple[Tensor, Tensor]:
    """Loadings drawn from the mixture, and as many from its base."""
    mixture = guide.get_posterior()
    return tuple(q.sample((MANY,)).reshape(MANY, FEATURES, FACTORS) for q in (mixture, mixture.q))


def _invariance(report: Report, kept: list) -> None:
    limits = {name: limit(entries) for name, entries in LIMITS.items()}
    entries = " and ".join(f"{limits[name]:.2f} for {LIMITS[name]} entries of {name}" for name in LIMITS)
    table = report.table(
        "Predictive means",
        f"{MANY:,} draws of the mixture. E[W]: largest |z| of its entries, which should be 0; base: the same of the "
        f"base, which is in one mode; E[W Wᵀ]: largest |z| of the difference between the posterior mean of the "
        f"predictive covariance under the mixture and under the base, from independent draws. Bounds: exceeded by the "
        f"largest of as many Normals once in {1 / RARE:.0f}, {entries}; the aim is that both hold. mean, covariance: "
        f"largest change, relative to the largest entry, of the predictive mean E[x₆ | x₁..x₅] at all five ones and of "
        f"the predictive covariance W Wᵀ + {NOISE}² when each draw is moved by an element of its own (must be below "
        f"{ROUNDING:.0e}).",
        Column("base", "base", width=9),
        Column("seed", "seed", "d", 4),
        Column("z_mean", "E[W]", ".2f", 7),
        Column("z_base", "base", ".0f", 7),
        Column("z_covariance", "E[W Wᵀ]", ".2f", 8),
        Column("aim", "aim", width=6),
        Column("mean", "mean", ".0e", 7),
        Column("covariance", "covariance", ".0e", 10),
        Column("verdict", "", width=4),
    )
    row, column = torch.tril_indices(FEATURES, FEATURES)
    for base, seed, symmetry, mixed, single in kept:
        own, other = ((w @ w.mT)[:, row, column] for w in (mixed, single))
        covariance = (own.mean(0) - other.mean(0)) / (own.var(0) / MANY + other.var(0) / MANY).sqrt()
        z = {"z_mean": _z(mixed), "z_base": _z(single), "z_covariance": float(covariance.abs().max())}
        moved = symmetry["W"].act(symmetry.group.sample((MANY,)), mixed)
        mean, cov = (_change(f(mixed), f(moved)) for f in (_conditional_mean, _covariance))
        met = z["z_mean"] <= limits["E[W]"] and z["z_covariance"] <= limits["E[W Wᵀ]"]
        table.add(base=base, seed=seed, **z, aim=aim(met), mean=mean, covariance=cov,
                  verdict=gate(max(mean, cov) <= ROUNDING))  # fmt: skip


def limit(entries: int) -> float:
    """What the largest of so many independent standard Normals exceeds in absolute value with probability ``RARE``."""
    return math.sqrt(2) * float(torch.erfinv(torch.tensor((1 - RARE) ** (1 / entries))))


def _z(values: Tensor) -> float:
    return float((values.mean(0) / (values.std(0) / len(values) ** 0.5)).abs().max())


def _covariance(w: Tensor) -> Tensor:
    return w @ w.mT + NOISE**2 * torch.eye(FEATURES)


def _conditional_mean(w: Tensor) -> Tensor:
    cov = _covariance(w)
    weights = torch.linalg.solve(cov[:, :-1, :-1], cov[:, :-1, -1:])
    return weights.sum((1, 2))


def _change(before: Tensor, after: Tensor) -> float:
    return float((before - after).abs().max() / before.abs().max())


def _directions(report: Report, kept: list) -> None:
    table = report.table(
        "One representative: the loadings against the truth",
        f"pe.canonicalize of {MANY:,} draws of the mixture, method 'match' with the truth as reference. raw: norm of "
        f"E[W] relative to the truth's, before; cosines: of each column of E[W] and the truth's, after; relative "
        f"error: ‖E[W] − W‖ / ‖W‖ after (that of a posterior from {COUNT} data). share: largest deviation of the 48 "
        f"elements' occupancy from 1/48, in its standard error; by chance the largest of 48 exceeds "
        f"{limit(48):.2f} once in {1 / RARE:.0f} (the aim is to stay below). The cosines have no aim: the likelihood "
        f"leaves all rotations of the factors free, and the prior prefers the true axes only a little.",
        Column("base", "base", width=9),
        Column("seed", "seed", "d", 4),
        Column("raw", "raw", ".4f", 7),
        Column("first", "cos 1", ".4f", 7),
        Column("second", "cos 2", ".4f", 7),
        Column("third", "cos 3", ".4f", 7),
        Column("relative", "relative error", ".3f", 14),
        Column("share", "share", ".2f", 6),
        Column("verdict", "aim", width=6),
    )
    true = loadings()
    for base, seed, symmetry, mixed, _ in kept:
        draws, reference = {"W": mixed}, {"W": true}
        mean = pe.canonicalize(draws, symmetry, reference=reference)["W"].mean(0)
        cosines = torch.cosine_similarity(mean, true, dim=0)
        elements = pe.canonical_elements(draws, symmetry, reference=reference)
        order = len(symmetry.group)
        counts = elements.bincount(minlength=order)
        share = float((counts / MANY - 1 / order).abs().max() / math.sqrt((1 - 1 / order) / order / MANY))
        first, second, third = cosines.tolist()
        table.add(base=base, seed=seed, raw=float(mixed.mean(0).norm() / true.norm()), first=first, second=second,
                  third=third, relative=float((mean - true).norm() / true.norm()), share=share,
                  verdict=aim(share <= limit(order)))  # fmt: skip
