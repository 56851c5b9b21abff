"""Averages and the orbit mixture where the truth is known: the identity of the ELBOs, two separated modes, the cost."""

import math
import time
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_equivariance as pe

from .cases import one_thread
from .report import Column, Report, aim, gate, quartiles

SEEDS = (0, 1, 2)
STEPS, PARTICLES, DRAWS, MANY = 800, 8, 2_000, 100_000
DIMENSIONS, CENTRE, SPREAD = 6, 2.0, 0.4
ROUNDS, REPEATS = 30, 20

# What compare_elbos fills in.
IDENTITY = (
    Column("base", "base", width=9),
    Column("seed", "seed", "d", 4),
    Column("gain", "gain", ".4f", 8),
    Column("gain_se", "± SE", ".4f", 7),
    Column("information", "I", ".4f", 8),
    Column("information_se", "± SE", ".4f", 7),
    Column("most", "log |G|", ".4f", 8),
    Column("off", "off", "+.1f", 5),
    Column("verdict", "aim", width=6),
)


def run() -> Report:
    """The identity, the two modes, the cost of the exact density."""
    report = Report("guides", "the orbit mixture against its base and the averages")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with one_thread(), pyro.validation_enabled(False):
            _identity(report)
            _two_modes(report)
            _cost(report)
    finally:
        torch.set_default_dtype(dtype)
    return report


def relabelable() -> tuple[Callable, pe.Symmetry]:
    """Three components of a mixture of Normals on 30 numbers, assignments summed out; S_3 relabels them."""
    x = torch.cat([torch.randn(10) * 0.5 + centre for centre in (-2.0, 0.0, 2.5)])

    def model():
        with pyro.plate("components", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
            scale = pyro.sample("scale", dist.LogNormal(-0.5, 0.5))
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale)), obs=x)

    group = pe.SymmetricGroup(3)
    sites = ("loc", "scale", "weights")
    return model, pe.Symmetry(group, dict.fromkeys(sites, pe.permutation(group)))


def factors() -> tuple[Callable, pe.Symmetry]:
    """Probabilistic PCA with two factors integrated out: ``x ~ N(0, W Wᵀ + 1/4)``; the sign of each column is free."""
    true = torch.tensor([[1.5, 0.0], [1.0, 0.8], [0.0, 1.2], [-0.5, 1.0]])
    noise = 0.25 * torch.eye(4)
    x = dist.MultivariateNormal(torch.zeros(4), true @ true.mT + noise).sample((60,))

    def model():
        loadings = pyro.sample("W", dist.Normal(torch.zeros(4, 2), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(4), loadings @ loadings.mT + noise), obs=x)

    group = pe.SignGroup() * pe.SignGroup()
    first, second = group.split(group.elements)
    signs = torch.stack([1 - 2 * first, 1 - 2 * second], -1)
    columns = pe.signed_permutation(group, torch.arange(2).expand(4, 2), signs)
    return model, pe.Symmetry(group, {"W": pe.trivial(group, 4) * columns})


MODELS = {"relabelable mixture": relabelable, "sign-symmetric factors": factors}


def _identity(report: Report) -> None:
    table = report.table(
        "ELBO(q^G) − ELBO(q) = I(g; θ)",
        f"q is the base (diagonal or full Normal) of an AutoOrbitMixture trained for {STEPS} steps ({PARTICLES} "
        f"particles), q^G the mixture. gain: ELBO(q^G) − ELBO(q) from {DRAWS:,} draws of each; I: the mutual "
        f"information log |G| − E[H(g | θ)] from {MANY:,} other draws of q^G, the entropy of g by enumeration; ± "
        f"standard errors. off: their difference in standard errors (aim: within 3); I must not exceed log |G|. Seeds "
        f"{SEEDS}.",
        Column("model", "model", width=23),
        *IDENTITY,
    )
    for name, make in MODELS.items():
        for base in ("diagonal", "full"):
            for seed in SEEDS:
                pyro.clear_param_store()
                pyro.set_rng_seed(seed)
                model, symmetry = make()
                guide = pe.AutoOrbitMixture(model, symmetry, base=base)
                train(model, guide)
                table.add(model=name, base=base, seed=seed, **compare_elbos(model, guide, symmetry))


def train(model, guide, steps: int = STEPS) -> None:
    """SVI with a decaying rate."""
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.1 ** (1 / steps)}), Trace_ELBO(PARTICLES))
    for _ in range(steps):
        svi.step()


@torch.no_grad()
def compare_elbos(model, guide, symmetry: pe.Symmetry) -> dict:
    """Both ELBOs and the information, from independent draws."""
    mixture, order = guide.get_posterior(), len(symmetry.group)
    theta, moved, other = mixture.q.sample((DRAWS,)), mixture.sample((DRAWS,)), mixture.sample((MANY,))
    single = log_joint(model, guide, theta) - mixture.q.log_prob(theta)
    mixed = log_joint(model, guide, moved) - mixture.log_prob(moved)
    posterior = mixture.log_densities(other).log_softmax(0)
    information = math.log(order) + (posterior.exp() * posterior.clamp_min(-700)).sum(0)
    gain, gain_se = float(mixed.mean() - single.mean()), math.hypot(error(mixed), error(single))
    found, found_se = float(information.mean()), error(information)
    off = (gain - found) / math.hypot(gain_se, found_se)
    return {
        "gain": gain, "gain_se": gain_se, "information": found, "information_se": found_se, "most": math.log(order),
        "off": off, "verdict": aim(abs(off) <= 3 and found <= math.log(order) + 1e-12),
    }  # fmt: skip


def log_joint(model, guide, vectors: torch.Tensor) -> torch.Tensor:
    """``log p(x, θ)`` and the Jacobian of the unconstrained coordinates, for each of many vectors."""
    values = []
    for vector in vectors:
        total = torch.zeros(())
        sites = {}
        for name, _, part in guide._slices():
            u = vector[part].reshape(guide._shapes[name])
            sites[name] = guide._transforms[name](u)
            total = total + guide._transforms[name].log_abs_det_jacobian(u, sites[name]).sum()
        trace = pyro.poutine.trace(pyro.poutine.condition(model, sites)).get_trace()
        values.append(total + trace.log_prob_sum())
    return torch.stack(values)


def error(values: torch.Tensor) -> float:
    """Standard error of the mean."""
    return float(values.std() / len(values) ** 0.5)


def _two_modes(report: Report) -> None:
    table = report.table(
        "Two separated modes",
        f"Target ½ N(+{CENTRE:g}·1, {SPREAD}² I) + ½ N(−{CENTRE:g}·1, {SPREAD}² I) in {DIMENSIONS} dimensions, "
        f"normalised, so that the best ELBO is 0; AutoNormal started at +{CENTRE:g}·1, its averages over the sign "
        f"group, and AutoOrbitMixture. ELBO ± standard error from 5,000 draws; warned: whether WideOrbitWarning came. "
        f"Aims: the mixture above −0.1, the averages below −50 and warned. Seed {SEEDS[0]}.",
        Column("posterior", "posterior", width=22),
        Column("elbo", "ELBO", ".4f", 10),
        Column("se", "± SE", ".4f", 8),
        Column("warned", "warned", width=6),
        Column("verdict", "", width=6),
    )
    pyro.clear_param_store()
    pyro.set_rng_seed(SEEDS[0])
    ones = torch.ones(2, DIMENSIONS, dtype=torch.long)
    flip = pe.signed_permutation(
        pe.SignGroup(), torch.arange(DIMENSIONS).expand(2, -1), ones * torch.tensor([[1], [-1]])
    )
    target = pe.OrbitMixture(dist.Normal(torch.full((DIMENSIONS,), CENTRE), SPREAD).to_event(1), flip)
    symmetry = pe.Symmetry(pe.SignGroup(), {"z": flip})

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(DIMENSIONS), 1.0).to_event(1).mask(False))
        pyro.factor("target", target.log_prob(z))

    start = {"init_loc_fn": lambda site: torch.full((DIMENSIONS,), CENTRE)}
    single, mixture = AutoNormal(model, **start), pe.AutoOrbitMixture(model, symmetry, **start)
    for guide in (single, mixture):
        train(model, guide)
    averages = {
        f"average, {rule}": pe.SymmetrizedGuide(single, symmetry, rule)
        for rule in ("geometric", "arithmetic", "projection")
    }
    for name, guide in {"AutoNormal": single, **averages, "AutoOrbitMixture": mixture}.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", pe.WideOrbitWarning)
            values = torch.tensor([-Trace_ELBO().loss(model, guide) for _ in range(5000)])
        warned = any(issubclass(w.category, pe.WideOrbitWarning) for w in caught)
        elbo = float(values.mean())
        verdict = "" if name == "AutoNormal" else gate(elbo < -50 and warned if "average" in name else elbo > -0.1)
        table.add(posterior=name, elbo=elbo, se=error(values), warned="yes" if warned else "no", verdict=verdict)


def _cost(report: Report) -> None:
    table = report.table(
        "Cost of the exact mixture",
        f"Time of log q^G(θ), a logsumexp over the group, relative to that of log q(θ), for one θ of 34,314 entries "
        f"(the digits network's), evaluated in turns; quartiles of {ROUNDS} paired ratios. Aim: under |G|.",
        Column("base", "base", width=10),
        Column("group", "group", width=16),
        Column("order", "|G|", "d", 4),
        Column("lower", "q1", ".2f", 6),
        Column("ratio", "median", ".2f", 6),
        Column("upper", "q3", ".2f", 6),
        Column("verdict", "aim", width=6),
    )
    for group in (pe.CyclicGroup(4), pe.DihedralGroup(4)):
        net = pe.experiments.convolutional_network((1, 8, 8), 10, 32)
        symmetry = pe.network_symmetry(net, group, (1, 8, 8))
        for base in ("diagonal", "low_rank"):
            guide = pe.AutoOrbitMixture(pe.BayesianNetwork(net), symmetry, base=base, rank=5)
            guide.initialize(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())
            mixture = guide.get_posterior()
            theta = mixture.sample()
            ratios = [timed(mixture.log_prob, theta) / timed(mixture.q.log_prob, theta) for _ in range(ROUNDS)]
            lower, middle, upper = quartiles(ratios)
            table.add(base=base, group=str(group), order=len(group), lower=lower, ratio=middle, upper=upper,
                      verdict=aim(middle < len(group)))  # fmt: skip


@torch.no_grad()
def timed(function, theta) -> float:
    """Seconds of some calls."""
    start = time.perf_counter()
    for _ in range(REPEATS):
        function(theta)
    return time.perf_counter() - start
