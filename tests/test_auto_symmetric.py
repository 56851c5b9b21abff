"""Guides whose sites draw from families of their own: exact where the model is conjugate, and always invariant."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import init_to_value
from torch.distributions import Independent, TransformedDistribution, kl_divergence

import pyro_equivariance as pe
from pyro_equivariance.representations import Composed, Factor

RULES = ("geometric", "arithmetic", "projection")
SIGMAS = 4.5  # of a computed standard error: one failure in 150,000
S2, S3 = pe.SymmetricGroup(2), pe.SymmetricGroup(3)
PERMUTED, STILL = pe.permutation(S3), pe.trivial(S3, ())
KINDS = {
    "normal": (dist.Normal, ("loc", "scale")),
    "lognormal": (dist.LogNormal, ("loc", "scale")),
    "gamma": (dist.Gamma, ("concentration", "rate")),
    "inverse_gamma": (dist.InverseGamma, ("concentration", "rate")),
    "exponential": (dist.Exponential, ("rate",)),
    "beta": (dist.Beta, ("concentration1", "concentration0")),
    "dirichlet": (dist.Dirichlet, ("concentration",)),
    "laplace": (dist.Laplace, ("loc", "scale")),
}
PRIORS = {
    "normal": lambda: dist.Normal(0.0, 1.0),
    "lognormal": lambda: dist.LogNormal(0.0, 1.0),
    "gamma": lambda: dist.Gamma(2.0, 1.0),
    "inverse_gamma": lambda: dist.InverseGamma(3.0, 2.0),
    "exponential": lambda: dist.Exponential(1.5),
    "beta": lambda: dist.Beta(2.0, 3.0),
    "dirichlet": lambda: dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
    "laplace": lambda: dist.Laplace(0.0, 1.0),
}
kinds = pytest.mark.parametrize("family", KINDS)
rules = pytest.mark.parametrize("rule", RULES)
wide = pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")


def started(guide, *args):
    """The guide, initialised and with random parameters."""
    guide.initialize(*args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_()
    return guide


def bare(law):
    """A law without its ``to_event``."""
    while isinstance(law, Independent):
        law = law.base_dist
    return law


def constructed(law, family):
    return [getattr(bare(law), parameter) for parameter in KINDS[family][1]]


def free(guide, site, family):
    """The law that the parameters of a site describe before they are averaged."""
    kind, parameters = KINDS[family]
    return kind(*(attrgetter(f"{parameter}.{site}")(guide.standard) for parameter in parameters))


def rule_for(family):
    return "projection" if family == "laplace" else "geometric"


# Conjugate models: the exact posterior is a member of the guide's


@dataclass(frozen=True)
class Conjugate:
    """One site whose posterior is known: its family, the posterior's parameters, and the evidence (by Bayes' rule)."""

    family: str
    model: Callable
    rep: pe.Representation
    posterior: tuple

    @property
    def guide(self):
        return lambda **options: pe.AutoSymmetric(
            self.model, pe.Symmetry(S3, {"z": self.rep}), families={"z": self.family}, **options
        )

    @property
    def exact(self):
        law = KINDS[self.family][0](*map(torch.tensor, self.posterior))
        return law if self.family == "dirichlet" else law.expand([3])

    @property
    def evidence(self):
        """``log p(z, y) − log p(z | y)``, the same for all z."""
        values = self.exact.sample((5,))
        found = [
            poutine.trace(poutine.condition(self.model, data={"z": z})).get_trace().log_prob_sum()
            - self.exact.log_prob(z).sum()
            for z in values
        ]
        torch.testing.assert_close(torch.stack(found), found[0].expand(5), rtol=0, atol=1e-9)
        return float(found[0])


def alike(prior, likelihood, data):
    """Three towns of one prior, each with the same data."""
    data = torch.as_tensor(data, dtype=torch.float64)

    def model():
        with pyro.plate("towns", 3, dim=-1):
            z = pyro.sample("z", prior())
            with pyro.plate("data", len(data), dim=-2):
                pyro.sample("y", likelihood(z), obs=data[:, None].expand(-1, 3))

    return model


def counted():
    p = pyro.sample("z", dist.Dirichlet(torch.full((3,), 0.5)))
    pyro.sample("y", dist.Multinomial(12, p), obs=torch.full((3,), 4.0))


def outlasted():
    """What lasts longer than 0.5 and 2.5, of an exponential life."""
    with pyro.plate("towns", 3, dim=-1):
        z = pyro.sample("z", dist.Exponential(1.0))
        pyro.factor("y", -3.0 * z)


DEVIATIONS = [1.0, -2.0, 0.5, -0.5, 1.5, -1.0]
LOGS = torch.tensor([0.5, 1.4, 0.8, 1.7], dtype=torch.float64)
CONJUGATE = {
    "Gamma-Poisson": Conjugate(
        "gamma", alike(lambda: dist.Gamma(2.0, 1.0), dist.Poisson, [1, 0, 2]), PERMUTED, (5.0, 4.0)
    ),
    "Gamma-Exponential": Conjugate(
        "gamma", alike(lambda: dist.Gamma(3.0, 2.0), dist.Exponential, [0.5, 0.25, 1.25, 0.5, 0.5]), PERMUTED,
        (8.0, 5.0),
    ),
    "Beta-Bernoulli": Conjugate(
        "beta", alike(lambda: dist.Beta(2.0, 2.0), dist.Bernoulli, [1, 1, 0, 1, 1, 1]), PERMUTED, (7.0, 3.0)
    ),
    "Dirichlet-Multinomial": Conjugate("dirichlet", counted, PERMUTED, ((4.5, 4.5, 4.5),)),
    "InverseGamma-Normal": Conjugate(
        "inverse_gamma",
        alike(lambda: dist.InverseGamma(3.0, 2.0), lambda v: dist.Normal(0.0, v.sqrt()), DEVIATIONS),
        PERMUTED, (6.0, 2.0 + 8.75 / 2),
    ),
    "Exponential, censored": Conjugate("exponential", outlasted, PERMUTED, (4.0,)),
    "LogNormal-LogNormal": Conjugate(  # four of precision 2 and the prior's 1
        "lognormal", alike(lambda: dist.LogNormal(0.0, 1.0), lambda z: dist.LogNormal(z.log(), 0.5**0.5), LOGS.exp()),
        PERMUTED, (2 * float(LOGS.sum()) / 9, 1 / 3),
    ),
}  # fmt: skip
ELBOS = {"mean field": TraceMeanField_ELBO, "sampled": Trace_ELBO}
conjugate = pytest.mark.parametrize("case", CONJUGATE)


def estimator(kind, particles):
    return kind(num_particles=particles, vectorize_particles=True, max_plate_nesting=2)


def set_to(guide, posterior):
    """Give the guide the parameters of one law, at its one site."""
    for parameter, value in posterior.items():
        module = getattr(guide.standard, parameter)
        module.z = torch.as_tensor(value, dtype=torch.float64).expand_as(module.z).clone()


@conjugate
@rules
def test_the_exact_posterior_has_the_evidence_for_its_elbo(case, rule):
    """Each draw's, since log p(z, y) − log q(z) is the evidence there: no spread."""
    case = CONJUGATE[case]
    guide = case.guide(rule=rule)
    guide.initialize()
    set_to(guide, dict(zip(KINDS[case.family][1], case.posterior, strict=True)))
    for found, expected in zip(constructed(guide.get_posterior("z"), case.family), case.posterior, strict=True):
        torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64).expand_as(found))
    losses = torch.tensor([Trace_ELBO().loss(case.model, guide) for _ in range(5)])
    torch.testing.assert_close(losses, torch.full((5,), -case.evidence), rtol=0, atol=1e-9)


@conjugate
@pytest.mark.parametrize("elbo", ELBOS)
def test_training_reaches_the_exact_posterior(case, elbo):
    """Within 4 %, from a start that is at least 20 % off; the ELBO within 0.01 of the evidence, or 3 errors."""
    case = CONJUGATE[case]
    guide = case.guide(init_scale=0.4)
    guide.initialize()
    goal = [torch.as_tensor(t, dtype=torch.float64) for t in case.posterior]
    first = [t.detach() for t in constructed(guide.get_posterior("z"), case.family)]
    assert max(float((a / b - 1).abs().max()) for a, b in zip(first, goal, strict=True)) > 0.2
    steps = 200
    optim = pyro.optim.ClippedAdam({"lr": 0.2, "betas": (0.8, 0.95), "lrd": 0.01 ** (1 / steps)})
    svi = SVI(case.model, guide, optim, estimator(ELBOS[elbo], 60))
    for _ in range(steps):
        svi.step()
    law = guide.get_posterior("z")
    for found, expected in zip(constructed(law, case.family), goal, strict=True):
        torch.testing.assert_close(found.detach(), expected.expand_as(found), rtol=0.04, atol=0)
    gap = float(kl_divergence(bare(law), case.exact).sum().detach())  # of the evidence from the ELBO
    assert 0 <= gap < 1e-2
    losses = torch.tensor([estimator(ELBOS[elbo], 200).loss(case.model, guide) for _ in range(10)])
    error = float(losses.std() / 10**0.5)
    assert abs(float(losses.mean()) + case.evidence) < max(1e-2, 3 * error)
    assert error < 0.05


# Invariance, whatever the parameters


def both(rows, columns):
    """Rows permuted by S2, and columns by S3, one independently of the other."""
    group = S2 * S3
    return Composed(
        Factor(group, pe.permutation(S2) * pe.trivial(S2, columns), 0),
        Factor(group, pe.trivial(S3, rows) * pe.permutation(S3), 1),
    )


def scaled_swap():
    """``(a, b)`` goes to ``(2 b, a / 2)``."""
    return pe.matrix(pe.CyclicGroup(2), [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.5, 0.0]]])


def signs():
    """Two entries that change places and signs."""
    return pe.signed_permutation(pe.CyclicGroup(4), [[0, 1], [1, 0]] * 2, [[1, 1], [1, -1], [-1, -1], [-1, 1]])


PERMUTATIONS = {
    "S3": lambda: PERMUTED,
    "S3 and an axis": lambda: PERMUTED * pe.trivial(S3, 2),
    "S2 x S3": lambda: both(2, 3),
    "C4 on an image": lambda: pe.image(pe.CyclicGroup(4), (3, 3)),
}
ON_SIMPLICES = {
    "S3 on the categories": lambda: PERMUTED,
    "S2 on simplices": lambda: pe.permutation(S2) * pe.trivial(S2, 3),
    "S2 x S3": lambda: both(2, 3),
}
FURTHER = {
    "scaled swap": (scaled_swap, ("normal", "lognormal", "gamma", "inverse_gamma", "exponential", "laplace")),
    "signs": (signs, ("normal", "laplace")),
    "signs of unconstrained values": (lambda: signs().on_unconstrained(), ("lognormal", "beta")),
}
ACTIONS = {
    **{("dirichlet", name): rep for name, rep in ON_SIMPLICES.items()},
    **{(family, name): rep for family in KINDS if family != "dirichlet" for name, rep in PERMUTATIONS.items()},
    **{(family, name): rep for name, (rep, families) in FURTHER.items() for family in families},
}
CASES = [(*key, rule) for key in ACTIONS for rule in RULES if key[0] != "laplace" or rule == "projection"]


def one_site(family, action, rule, layout="event"):
    """A guide for one site of a family, with two more copies of it in a plate that does not move, and its action."""
    rep = ACTIONS[family, action]()
    shape = rep.event_shape[:-1] if family == "dirichlet" else rep.event_shape

    def model():
        prior = PRIORS[family]()
        if layout == "event":
            with pyro.plate("copies", 2, dim=-1):
                return pyro.sample("z", prior.expand([2, *shape]).to_event(len(shape)))
        with pyro.plate_stack("moved", shape):
            return pyro.sample("z", prior)

    return pe.AutoSymmetric(model, pe.Symmetry(rep.group, {"z": rep}), families={"z": family}, rule=rule), rep


def divergence(q, p):
    """KL(q ‖ p), by torch where the family is not an exponential one."""
    return kl_divergence(bare(q), bare(p)).sum() if isinstance(bare(q), dist.Laplace) else pe.kl(q, p)


def coordinates(q, family, rule):
    if rule == "projection":
        return constructed(q, family)
    return pe.natural(q) if rule == "geometric" else pe.mean(q)


@wide
@pytest.mark.parametrize(("family", "action", "rule"), CASES)
@pytest.mark.parametrize("layout", ["event", "plates"])
@torch.no_grad()
def test_invariant_for_every_value_of_its_parameters(family, action, rule, layout):
    guide, rep = one_site(family, action, rule, layout)
    started(guide)
    law, loose = guide.get_posterior("z"), free(guide, "z", family)
    assert guide.always_invariant
    assert (law.batch_shape + law.event_shape) == (() if layout == "plates" else (2,)) + rep.event_shape
    assert len(law.batch_shape) == (1 if layout == "event" else len(rep.event_shape) - (family == "dirichlet"))
    elements = range(len(rep.group))
    copies = [pe.push_forward(loose, rep, g) for g in elements]
    for g in elements:
        assert abs(float(divergence(law, pe.push_forward(law, rep, g)))) < 1e-12
    assert max(float(divergence(loose, copy)) for copy in copies) > 1e-2
    averaged = pe.average(loose, rep, rule)
    for found, expected in zip(constructed(law, family), constructed(averaged, family), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    moved = [coordinates(copy, family, rule) for copy in copies]
    for number, found in enumerate(coordinates(law, family, rule)):
        expected = torch.stack([c[number].expand_as(found) for c in moved]).mean(0)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if rep.is_permutation:
        values = law.sample((4,))
        for g in elements:
            torch.testing.assert_close(law.log_prob(rep.act(g, values)).sum(), law.log_prob(values).sum())


@kinds
def test_training_keeps_it_invariant(family):
    guide, rep = one_site(family, "S3 on the categories" if family == "dirichlet" else "S3", rule_for(family))
    guide.initialize()
    before = [p.detach().clone() for p in guide.parameters()]
    svi = SVI(guide.model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        assert math.isfinite(svi.step())
    assert not any(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    with torch.no_grad():
        law = guide.get_posterior("z")
        assert max(abs(float(divergence(law, pe.push_forward(law, rep, g)))) for g in range(6)) < 1e-12


# Gradients


@wide
@pytest.mark.parametrize(("family", "action", "rule"), CASES)
def test_gradients_are_reparameterised_and_finite(family, action, rule):
    guide, rep = one_site(family, action, rule)
    started(guide)
    node = poutine.trace(guide).get_trace().nodes["z"]
    assert node["fn"].has_rsample and node["value"].requires_grad and not node["infer"].get("is_auxiliary")
    weights = torch.randn(rep.event_shape)
    (weights * node["value"].square() + node["value"]).sum().backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad.abs() > 0).any() or (name.startswith("standard.loc") and "sign" in action), name


POISSON = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 5.0]])


def unlike():
    """Counts of three towns that are not alike, though their rates are exchangeable."""
    with pyro.plate("towns", 3, dim=-1):
        rate = pyro.sample("z", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 2, dim=-2):
            pyro.sample("y", dist.Poisson(rate), obs=POISSON)


def rates_guide(rule):
    torch.manual_seed(1)
    guide = pe.AutoSymmetric(unlike, pe.Symmetry(S3, {"z": PERMUTED}), families={"z": "gamma"}, rule=rule)
    guide.initialize()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(1.0 + 0.3 * torch.randn(3))
    return guide


def closed_form(a, b):
    """The ELBO of Gamma(a, b), each rate its own: ``E[log p(y | z)] − KL``, with ``E[log z] = ψ(a) − log b``."""
    logs, mean = a.digamma() - b.log(), a / b
    fit = (POISSON * logs - mean - torch.lgamma(POISSON + 1)).sum()
    entropy = a - b.log() + torch.lgamma(a) + (1 - a) * a.digamma()
    return fit + (logs - mean - math.lgamma(2.0) + entropy).sum()


def elbo_of(logs, rule):
    """The same from the logarithms of the parameters, the average taken by hand where it has a formula."""
    a, b = logs.exp()
    if rule == "arithmetic":
        law = pe.families.from_mean(dist.Gamma, (torch.full((3,), float((a.digamma() - b.log()).mean())),
                                        torch.full((3,), float((a / b).mean()))))  # fmt: skip
        return closed_form(law.concentration, law.rate)
    return closed_form(a.mean().expand(3), b.mean().expand(3))


@rules
def test_gradients_are_those_of_the_closed_form(rule):
    """By finite differences, of the loss that Trace_ELBO and TraceMeanField_ELBO estimate and of its average."""
    guide = rates_guide(rule)
    parameters = [guide.standard.concentration.z_unconstrained, guide.standard.rate.z_unconstrained]
    logs = torch.stack([p.detach() for p in parameters])
    step, differences = 1e-5, torch.zeros(2, 3)
    for i in range(2):
        for j in range(3):
            bump = torch.zeros(2, 3)
            bump[i, j] = step
            differences[i, j] = (elbo_of(logs + bump, rule) - elbo_of(logs - bump, rule)) / (2 * step)
    law = guide.get_posterior("z")
    exact = torch.autograd.grad(closed_form(law.concentration, law.rate), parameters)
    torch.testing.assert_close(torch.stack(exact), differences, rtol=1e-6, atol=1e-6)
    for kind in (Trace_ELBO, TraceMeanField_ELBO):
        found = []
        for _ in range(30):
            loss = estimator(kind, 100).differentiable_loss(unlike, guide)
            found.append(-torch.stack(torch.autograd.grad(loss, parameters)))
        found = torch.stack(found)
        assert ((found.mean(0) - differences).abs() < SIGMAS * found.std(0) / 30**0.5).all()
        assert (found.std(0) / 30**0.5).max() < 0.2 * differences.abs().max()


# Where they start

START = {
    "normal": (-0.7, lambda law: (law.mean, law.stddev)),
    "lognormal": (1.7, lambda law: (law.loc.exp(), law.scale)),
    "gamma": (1.7, lambda law: (law.mean, law.stddev / law.mean)),
    "inverse_gamma": (1.7, lambda law: (law.mean, law.variance.sqrt() / law.mean)),
    "exponential": (1.7, lambda law: (law.mean, None)),
    "beta": (0.3, lambda law: (law.mean, law.stddev / (law.mean * (1 - law.mean)))),
    "laplace": (-0.7, lambda law: (law.mean, law.stddev)),
}


@pytest.mark.parametrize("family", START)
@pytest.mark.parametrize("given", ["number", "callable"])
def test_start(family, given):
    value, summary = START[family]

    def model():
        with pyro.plate("towns", 3):
            pyro.sample("z", PRIORS[family]())

    scale = 0.2 if given == "number" else lambda site: torch.tensor(0.2 * len(site["name"]))
    guide = pe.AutoSymmetric(model, pe.Symmetry(S3, {"z": PERMUTED}), {"z": family}, rule_for(family), init_scale=scale,
                             init_loc_fn=init_to_value(values={"z": torch.full((3,), value)}))  # fmt: skip
    guide.initialize()
    mean, spread = summary(guide.get_posterior("z"))
    torch.testing.assert_close(mean.detach(), torch.full((3,), value))
    if spread is not None:
        torch.testing.assert_close(spread.detach(), torch.full((3,), 0.2))


def test_start_of_a_simplex_and_at_the_ends_of_a_support():
    def model():
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("q", dist.Beta(torch.ones(3), 1.0).to_event(1))
        pyro.sample("r", dist.HalfNormal(torch.ones(3)).to_event(1))

    still = pe.Symmetry(S3, {"p": pe.trivial(S3, 3), "q": PERMUTED, "r": PERMUTED})
    values = {"p": torch.tensor([0.2, 0.3, 0.5]), "q": torch.tensor([0.0, 1.0, 0.5]), "r": torch.zeros(3)}
    guide = pe.AutoSymmetric(model, still, families={"p": "dirichlet", "q": "beta", "r": "gamma"}, init_scale=0.01,
                             init_loc_fn=init_to_value(values=values))  # fmt: skip
    draws = guide()
    torch.testing.assert_close(guide.get_posterior("p").mean.detach(), values["p"])
    torch.testing.assert_close(guide.get_posterior("p").concentration.detach(), 3 * values["p"] / 0.01**2)
    assert all(draw.isfinite().all() and (draw > 0).all() for draw in draws.values())
    assert all(p.isfinite().all() for p in guide.parameters())


SUPPORTS = {
    "Uniform(0, 1)": ("beta", lambda: dist.Uniform(0.0, 1.0)),
    "Uniform of tensors": ("beta", lambda: dist.Uniform(torch.zeros(3), torch.ones(3))),
    "Kumaraswamy": ("beta", lambda: dist.Kumaraswamy(2.0, 3.0)),
    "HalfCauchy": ("gamma", lambda: dist.HalfCauchy(1.0)),
    "Weibull": ("exponential", lambda: dist.Weibull(1.0, 2.0)),
    "Exponential": ("inverse_gamma", lambda: dist.Exponential(1.0)),
    "StudentT": ("laplace", lambda: dist.StudentT(4.0, 0.0, 1.0)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_priors_of_other_families_on_the_same_support(name):
    family, prior = SUPPORTS[name]

    def model():
        with pyro.plate("towns", 3):
            pyro.sample("z", prior())

    guide = pe.AutoSymmetric(model, pe.Symmetry(S3, {"z": PERMUTED}), {"z": family}, rule_for(family))
    assert math.isfinite(Trace_ELBO().loss(model, guide))
    assert isinstance(guide.get_posterior("z"), KINDS[family][0])


# Sites of all kinds


def mixed(y=None):
    """A site of every family, two that are left to the Normal, and names with dots."""
    level = pyro.sample("all.level", dist.Normal(0.0, 1.0))
    spread = pyro.sample("all.spread", dist.HalfNormal(1.0))
    shares = pyro.sample("shares", dist.Dirichlet(torch.full((3,), 2.0)))
    with pyro.plate("towns", 3, dim=-1):
        rate = pyro.sample("town.rate", dist.Gamma(2.0, 1.0))
        pyro.sample("town.scale", dist.InverseGamma(3.0, 2.0))
        pyro.sample("wait", dist.Exponential(1.0))
        pyro.sample("size", dist.LogNormal(0.0, 1.0))
        pyro.sample("odds", dist.Beta(2.0, 2.0))
        pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("jump", dist.Laplace(0.0, 1.0))
        mean = level[..., None] + rate.mean(-1, keepdim=True) if level.ndim else level + rate.mean()
        with pyro.plate("data", 4, dim=-2):
            return pyro.sample("y", dist.Normal(mean * shares.sum(-1, keepdim=True), spread + 0.1), obs=y)


Y = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)[:, None].expand(4, 3)
FAMILIES = {
    "shares": "dirichlet", "town.rate": "gamma", "town.scale": "inverse_gamma", "wait": "exponential",
    "size": "lognormal", "odds": "beta", "shift": "normal", "jump": "laplace",
}  # fmt: skip
SHAPES = {
    "all.level": (dist.Normal, (), ()),
    "all.spread": (TransformedDistribution, (), ()),
    "shares": (dist.Dirichlet, (), (3,)),
    "town.rate": (dist.Gamma, (3,), ()),
    "town.scale": (dist.InverseGamma, (3,), ()),
    "wait": (dist.Exponential, (3,), ()),
    "size": (dist.LogNormal, (3,), ()),
    "odds": (dist.Beta, (3,), ()),
    "shift": (dist.Normal, (3,), (2,)),
    "jump": (dist.Laplace, (3,), ()),
}
SITES = {name: STILL if name.startswith("all") else PERMUTED for name in SHAPES}
SYMMETRY = pe.Symmetry(S3, SITES | {"shift": PERMUTED * pe.trivial(S3, 2)})


def mixed_guide(**options):
    return pe.AutoSymmetric(mixed, SYMMETRY, families=FAMILIES, rule="projection", **options)


def seeded(guide, *args, seed=3):
    pyro.set_rng_seed(seed)
    return guide(*args)


def assert_same_draws(first, second, *args):
    expected, found = seeded(first, *args), seeded(second, *args)
    assert list(expected) == list(found) == list(SHAPES)
    assert all(torch.equal(value, found[site]) for site, value in expected.items())


def test_draws_have_the_sites_of_the_model():
    guide = started(mixed_guide(), Y)
    trace = poutine.trace(guide).get_trace(Y)
    draws = trace.nodes["_RETURN"]["value"]
    sites = poutine.trace(mixed).get_trace(Y)
    assert list(draws) == list(SHAPES)
    for name, draw in draws.items():
        assert draw is trace.nodes[name]["value"]
        assert trace.nodes[name]["fn"].has_rsample and draw.requires_grad
        assert draw.shape == sites.nodes[name]["value"].shape
        assert sites.nodes[name]["fn"].support.check(draw).all()
    assert {f.name for f in trace.nodes["odds"]["cond_indep_stack"]} == {"towns"}


def test_sites_have_the_law_of_their_family():
    guide = started(mixed_guide(), Y)
    for name, (kind, batch, event) in SHAPES.items():
        law = guide.get_posterior(name)
        assert isinstance(bare(law), kind), name
        assert (law.batch_shape, law.event_shape) == (batch, event)
        drawn = poutine.trace(guide).get_trace(Y).nodes[name]
        torch.testing.assert_close(drawn["fn"].log_prob(drawn["value"]), law.log_prob(drawn["value"]))


def test_draws_follow_the_law():
    guide = started(mixed_guide(init_scale=0.2), Y)
    with torch.no_grad(), pyro.plate("draws", 3000, dim=-4):
        draws = poutine.trace(guide).get_trace(Y)
    for name in ("shares", "town.rate", "odds", "jump"):
        values, mean = draws.nodes[name]["value"].detach(), guide.get_posterior(name).mean.detach()
        values = values.reshape(3000, *mean.shape)
        assert ((values.mean(0) - mean).abs() < SIGMAS * values.std(0) / 3000**0.5).all(), name


def test_without_data_the_loss_is_the_kl_and_has_no_spread():
    def prior():
        pyro.sample("shares", dist.Dirichlet(torch.full((3,), 2.0)))
        with pyro.plate("towns", 3):
            for site in ("town.rate", "town.scale", "wait", "size", "odds"):
                pyro.sample(site, PRIORS[FAMILIES[site]]())

    sites = {name: SYMMETRY[name] for name in FAMILIES if name not in ("shift", "jump")}
    guide = started(pe.AutoSymmetric(prior, pe.Symmetry(S3, sites), {name: FAMILIES[name] for name in sites}))
    priors = {name: PRIORS[FAMILIES[name]]() for name in sites} | {"shares": dist.Dirichlet(torch.full((3,), 2.0))}
    expected = sum(float(pe.kl(guide.get_posterior(name), law.expand([3] if name != "shares" else [])).detach())
                   for name, law in priors.items())  # fmt: skip
    losses = {TraceMeanField_ELBO().loss(prior, guide) for _ in range(4)}
    assert len(losses) == 1
    assert losses.pop() == pytest.approx(expected, rel=1e-10)


def test_median_and_quantiles():
    """The share of new draws below a quantile is its level; both have a standard error of 1/200 or less."""
    guide = mixed_guide(init_scale=0.3)
    guide.initialize(Y)
    levels = [0.1, 0.5, 0.9]
    quantiles, median, one = guide.quantiles(levels), guide.median(), guide.quantiles(0.5)
    for name in SHAPES:
        law = guide.get_posterior(name)
        found = quantiles[name]
        assert found.shape == (3, *law.batch_shape, *law.event_shape)
        assert median[name].shape == found.shape[1:] and one[name].shape == (1, *found.shape[1:])
        assert not found.requires_grad and (found[1:] > found[:-1]).all()
        with torch.no_grad():
            draws = law.sample((10_000,))
        for level, value in zip([*levels, 0.5], [*found, median[name]], strict=True):
            below = (draws < value).double().mean(0)
            assert ((below - level).abs() < SIGMAS * (2 * level * (1 - level) / 10_000) ** 0.5).all(), name


def plain(observed=True):
    """Sites in plates, apart from the simplex, whose likelihood is a vector's."""
    shares = pyro.sample("shares", dist.Dirichlet(torch.full((3,), 2.0)))
    with pyro.plate("towns", 3, dim=-1):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        odds = pyro.sample("odds", dist.Beta(2.0, 2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        pyro.sample("y", dist.Normal(rate * odds, scale), obs=torch.tensor([0.4, 1.0, 0.2]) if observed else None)
    pyro.sample("counts", dist.Multinomial(6, shares), obs=torch.tensor([1.0, 2.0, 3.0]))


PLAIN = pe.Symmetry(S3, dict.fromkeys(("shares", "rate", "odds", "scale"), PERMUTED))


def plain_guide(**options):
    return pe.AutoSymmetric(plain, PLAIN, {"shares": "dirichlet", "rate": "gamma", "odds": "beta"}, **options)


@pytest.mark.parametrize("kind", ELBOS)
def test_vectorised_particles_have_the_loss_of_single_draws(kind):
    guide = plain_guide(init_scale=0.3)
    guide.initialize()
    with torch.no_grad():
        single = torch.tensor([ELBOS[kind]().loss(plain, guide) for _ in range(150)])
        many = torch.tensor([estimator(ELBOS[kind], 100).loss(plain, guide) for _ in range(10)])
    error = (single.var() / 150 + many.var() / 10).sqrt()
    assert (single.mean() - many.mean()).abs() < SIGMAS * error
    assert error < 0.2


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel):
    guide = started(plain_guide())
    predict = Predictive(plain, guide=guide, num_samples=5, parallel=parallel, return_sites=("rate", "shares", "y"))
    drawn = predict(False)
    assert {name: tuple(value.squeeze().shape) for name, value in drawn.items()} == dict.fromkeys(drawn, (5, 3))
    assert set(drawn) == {"rate", "shares", "y"}
    torch.testing.assert_close(drawn["shares"].sum(-1).squeeze(), torch.ones(5))
    assert drawn["y"].std(0).min() > 0


# Plates


def rows(subsample=None, moved=False):
    def model(indices=None):
        with (
            pyro.plate("columns", 2, dim=-2),
            pyro.plate("rows", 5, subsample_size=subsample, subsample=indices, dim=-1),
        ):
            pyro.sample("shares", dist.Dirichlet(torch.full((3,), 2.0)))
            pyro.sample("rates", dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1))
            pyro.sample("odds", dist.Beta(2.0, 2.0))

    group = pe.SymmetricGroup(5) if moved else S3
    sites = {"shares": pe.permutation(group), "rates": pe.permutation(group), "odds": pe.trivial(group, ())}
    if moved:
        across = pe.permutation(group) * pe.trivial(group, 3)
        sites = {"shares": across, "rates": across, "odds": pe.permutation(group)}
    families = {"shares": "dirichlet", "rates": "gamma", "odds": "beta"}
    return model, lambda **options: pe.AutoSymmetric(model, pe.Symmetry(group, sites), families, **options)


def test_a_full_plate_that_moves():
    _, build = rows(moved=True)
    guide = started(build())
    draws = guide()
    for name, shape in {"shares": (2, 5, 3), "rates": (2, 5, 3), "odds": (2, 5)}.items():
        mean = guide.get_posterior(name).mean
        assert draws[name].shape == mean.shape == shape
        torch.testing.assert_close(mean, mean[:, :1].expand_as(mean))
        assert (mean[0] - mean[1]).abs().max() > 1e-3  # the columns stay each their own


def test_a_subsampled_plate_has_parameters_for_all_its_rows():
    model, build = rows(subsample=3)
    guide = started(build())
    for name, event in {"shares": (3,), "rates": (3,), "odds": ()}.items():
        law = guide.get_posterior(name)
        assert (law.batch_shape, law.event_shape) == ((2, 5), event)
        trace = poutine.trace(guide).get_trace()
        seen = trace.nodes["rows"]["value"]
        assert trace.nodes[name]["value"].shape == (2, 3, *event)
        torch.testing.assert_close(trace.nodes[name]["fn"].mean, law.mean[:, seen])
        assert law.mean.std(1).min() > 0
    assert guide.median()["rates"].shape == (2, 5, 3)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    assert all(math.isfinite(svi.step()) for _ in range(3))


def test_the_loss_of_a_part_is_on_average_that_of_all():
    """Without data it is the KL of the rows that are seen, scaled."""
    model, build = rows(subsample=2)
    guide = started(build())
    whole, _ = rows()
    expected = TraceMeanField_ELBO().loss(whole, _with(guide, whole))
    losses = torch.tensor([TraceMeanField_ELBO().loss(model, guide) for _ in range(100)])
    assert (losses.mean() - expected).abs() < SIGMAS * losses.std() / 100**0.5
    assert losses.std() > 1e-3


def _with(guide, model):
    """The same parameters, in a guide of a model."""
    other = pe.AutoSymmetric(model, guide.symmetry, guide.families, guide.rule)
    other.initialize()
    other.load_state_dict(guide.state_dict())
    return other


def test_create_plates():
    model, build = rows(subsample=3)
    seen = torch.tensor([4, 0, 2])

    def plates(indices=None):
        return [pyro.plate("columns", 2, dim=-2), pyro.plate("rows", 5, subsample=seen, dim=-1)]

    guide = started(build(create_plates=plates))
    trace = poutine.trace(guide).get_trace()
    assert torch.equal(trace.nodes["rows"]["value"], seen)
    torch.testing.assert_close(trace.nodes["odds"]["fn"].mean, guide.get_posterior("odds").mean[:, seen])


# Copies, files, precision


def test_copies_draw_the_same_and_have_parameters_of_their_own():
    guide = started(mixed_guide(), Y)
    guide(Y)
    double = copy.deepcopy(guide)
    assert_same_draws(guide, double, Y)
    expected = seeded(guide, Y)["odds"]
    with torch.no_grad():
        for parameter in double.parameters():
            parameter.add_(1.0)
    assert not torch.equal(seeded(double, Y)["odds"], expected)
    assert torch.equal(seeded(guide, Y)["odds"], expected)


def test_pickle():
    guide = started(mixed_guide(), Y)
    content, expected = pickle.dumps(guide), seeded(guide, Y)
    pyro.clear_param_store()
    again = pickle.loads(content)
    assert (again.families, again.rule) == (FAMILIES, "projection")
    assert all(torch.equal(value, expected[name]) for name, value in seeded(again, Y).items())


def test_save_and_load(tmp_path):
    guide = started(mixed_guide(), Y)
    pe.save(tmp_path / "guide.pt", guide, (Y,))
    again = pe.load(tmp_path / "guide.pt", mixed)
    assert type(again) is pe.AutoSymmetric
    assert (again.families, again.rule, again.symmetry) == (FAMILIES, "projection", SYMMETRY)
    assert_same_draws(guide, again, Y)
    losses = []
    for one in (guide, again):
        pyro.set_rng_seed(5)
        svi = SVI(mixed, one, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        losses.append([svi.step(Y) for _ in range(3)])
    assert losses[0] == losses[1] and len(set(losses[0])) == 3


@rules
def test_single_precision(rule):
    """Draws, gradients and the average, which agrees with that in double precision."""
    torch.set_default_dtype(torch.float32)
    guide = started(plain_guide(rule=rule))
    assert {p.dtype for p in guide.parameters()} == {torch.float32}
    draws = guide()
    assert {value.dtype for value in draws.values()} == {torch.float32}
    assert {value.dtype for value in guide.median().values()} == {torch.float32}
    Trace_ELBO().differentiable_loss(plain, guide).backward()
    assert all(p.grad.isfinite().all() for p in guide.parameters())
    narrow = {name: guide.get_posterior(name).mean.detach() for name in ("shares", "rate", "odds")}
    guide.double()
    for name, mean in narrow.items():
        torch.testing.assert_close(mean.double(), guide.get_posterior(name).mean.detach(), rtol=1e-4, atol=1e-5)


def test_two_guides_share_no_parameters():
    first, second = started(plain_guide()), started(plain_guide())
    names = {name for guide in (first, second) for name in poutine.trace(guide, param_only=True).get_trace().nodes}
    assert len(names) == 2 * (1 + 2 + 2 + 2)
    kept = [p.detach().clone() for p in second.parameters()]
    moved = [p.detach().clone() for p in first.parameters()]
    svi = SVI(plain, first, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    second()
    assert all(torch.equal(a, b) for a, b in zip(kept, second.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(moved, first.parameters(), strict=True))


@rules
@pytest.mark.parametrize("families", [None, {}])
def test_without_families_it_has_the_law_of_the_symmetric_normal(rule, families):
    sites = {"rate": PERMUTED, "scale": PERMUTED, "odds": PERMUTED, "shift": PERMUTED * pe.trivial(S3, 2)}

    def model():
        with pyro.plate("towns", 3):
            pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("odds", dist.Beta(2.0, 2.0))
            pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    symmetry = pe.Symmetry(S3, sites)
    guide = started(pe.AutoSymmetric(model, symmetry, families, rule))
    normal = pe.AutoSymmetricNormal(model, symmetry, rule)
    normal.initialize()
    names = {"standard.loc": "locs", "standard.scale": "scales"}
    state = guide.state_dict()
    normal.load_state_dict({key.replace(old, new): value for key, value in state.items()
                            for old, new in names.items() if key.startswith(old + ".")})  # fmt: skip
    for name in sites:
        law, expected = guide.get_posterior(name), normal.get_posterior(name)
        draw = expected.sample((3,))
        assert type(law) is type(expected) and law.batch_shape == expected.batch_shape
        torch.testing.assert_close(law.log_prob(draw), expected.log_prob(draw))
    pyro.set_rng_seed(2)
    first = Trace_ELBO().loss(model, guide)
    pyro.set_rng_seed(2)
    assert Trace_ELBO().loss(model, normal) == pytest.approx(first, rel=1e-9)


def test_the_normal_that_is_named_is_the_one_of_other_sites():
    def model():
        with pyro.plate("towns", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    symmetry = pe.Symmetry(S3, {"z": PERMUTED})
    named, other = (pe.AutoSymmetric(model, symmetry, families) for families in ({"z": "normal"}, {}))
    started(named), other.initialize()
    other.load_state_dict(named.state_dict())
    draw = named.get_posterior("z").sample()
    torch.testing.assert_close(named.get_posterior("z").log_prob(draw), other.get_posterior("z").log_prob(draw))


# Errors


def site(prior, name="z"):
    return lambda: pyro.sample(name, prior())


def part():
    with pyro.plate("rows", 6, subsample_size=3):
        pyro.sample("z", dist.Gamma(2.0, 1.0))


def of(rep, name="z"):
    return pe.Symmetry(rep.group, {name: rep})


def three(prior):
    return site(lambda: prior.expand([3]).to_event(1))


FLIP = pe.signed_permutation(pe.SignGroup(), [[0, 1, 2]] * 2, [[1, 1, 1], [-1, -1, -1]])
TURN = pe.vector(pe.CyclicGroup(8))
SIMPLEX = site(lambda: dist.Dirichlet(torch.ones(3)))
ERRORS = {
    "unknown family": (
        three(dist.Gamma(2.0, 1.0)), of(PERMUTED), {"z": "poisson"}, "geometric", pe.OptionError,
        r"families\['z'\] to be one of 'normal', .*; got 'poisson'",
    ),
    "a family that is no name": (
        three(dist.Gamma(2.0, 1.0)), of(PERMUTED), {"z": ["gamma"]}, "geometric", pe.OptionError,
        r"families\['z'\] to be one of 'normal', .*; got \['gamma'\]",
    ),
    "no dict": (
        three(dist.Gamma(2.0, 1.0)), of(PERMUTED), "gamma", "geometric", pe.OptionError,
        "families= to be a dict of families by site; got 'gamma'",
    ),
    "unknown rule": (
        three(dist.Gamma(2.0, 1.0)), of(PERMUTED), {"z": "gamma"}, "median", pe.OptionError,
        "rule to be one of 'geometric', .*; got 'median'",
    ),
    "unknown site": (
        three(dist.Gamma(2.0, 1.0)), of(PERMUTED), {"rate": "gamma"}, "geometric", pe.OptionError,
        "families= to name latent sites, 'z'; got 'rate'",
    ),
    "a gamma of reals": (
        three(dist.Normal(0.0, 1.0)), of(PERMUTED), {"z": "gamma"}, "geometric", pe.OptionError,
        "support .* of site 'z'; got 'gamma', one of positive numbers. Leave it out",
    ),
    "a normal of positive numbers": (
        three(dist.Gamma(2.0, 1.0)), of(PERMUTED), {"z": "normal"}, "geometric", pe.OptionError,
        "support .* of site 'z'; got 'normal', one of real numbers. Leave it out",
    ),
    "a beta of positive numbers": (
        three(dist.Gamma(2.0, 1.0)), of(PERMUTED), {"z": "beta"}, "geometric", pe.OptionError,
        "support .* of site 'z'; got 'beta', one of numbers from 0 to 1. Leave it out",
    ),
    "a dirichlet of shares that need not sum to 1": (
        three(dist.Beta(2.0, 1.0)), of(PERMUTED), {"z": "dirichlet"}, "geometric", pe.OptionError,
        "support .* of site 'z'; got 'dirichlet', one of a simplex. Leave it out",
    ),
    "a beta on a simplex": (
        SIMPLEX, of(PERMUTED), {"z": "beta"}, "geometric", pe.OptionError, "support .* of site 'z'; got 'beta'",
    ),
    "a beta of another interval": (
        three(dist.Uniform(0.0, 2.0)), of(PERMUTED), {"z": "beta"}, "geometric", pe.OptionError,
        "support .* of site 'z'; got 'beta'",
    ),
    "a beta from -1 to 1": (
        three(dist.Uniform(-1.0, 1.0)), of(PERMUTED), {"z": "beta"}, "geometric", pe.OptionError,
        "support .* of site 'z'; got 'beta'",
    ),
    "a gamma of an interval": (
        three(dist.Uniform(1.0, 2.0)), of(PERMUTED), {"z": "gamma"}, "geometric", pe.OptionError,
        "support .* of site 'z'; got 'gamma'",
    ),
    "signs of positive numbers": (
        three(dist.Gamma(2.0, 1.0)), of(FLIP), {"z": "gamma"}, "geometric", pe.ClosednessError,
        "site 'z' to be moved by an action that keeps a Gamma; got .* model the logarithm",
    ),
    "a beta that is rescaled": (
        site(lambda: dist.Beta(torch.ones(2), 1.0).to_event(1)), of(scaled_swap()), {"z": "beta"}, "geometric",
        pe.ClosednessError, "site 'z' .* keeps a Beta; got .*on_unconstrained",
    ),
    "a gamma under x to 1/x": (
        three(dist.Gamma(2.0, 1.0)), of(FLIP.on_unconstrained()), {"z": "gamma"}, "geometric", pe.ClosednessError,
        "site 'z' .* keeps a Gamma; got .*under permutations and positive rescalings",
    ),
    "turns of a normal": (
        site(lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1)), of(TURN), {"z": "normal"}, "geometric",
        pe.ClosednessError, "site 'z' .* keeps a mean-field Normal; got .*full-covariance",
    ),
    "turns of a site left out": (
        site(lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1)), of(TURN), {}, "geometric", pe.ClosednessError,
        "site 'z' .* keeps a mean-field Normal; got .*full-covariance",
    ),
    "a simplex left out": (
        SIMPLEX, of(PERMUTED), {}, "geometric", pe.ClosednessError, r"site 'z' .*; got .*families=\{'z': 'dirichlet'\}",
    ),
    "a dirichlet of signs": (
        SIMPLEX, of(FLIP), {"z": "dirichlet"}, "geometric", pe.ClosednessError,
        "site 'z' .* keeps a Dirichlet; got .*under permutations of its last axis",
    ),
    "a laplace without natural parameters": (
        three(dist.Normal(0.0, 1.0)), of(PERMUTED), {"z": "laplace"}, "geometric", pe.ClosednessError,
        "rule='projection' for site 'z', since a Laplace has no natural parameters; got rule='geometric'",
    ),
    "a laplace without mean parameters": (
        three(dist.Normal(0.0, 1.0)), of(PERMUTED), {"z": "laplace"}, "arithmetic", pe.ClosednessError,
        "rule='projection' for site 'z', .*; got rule='arithmetic'",
    ),
    "a site without a representation": (
        site(lambda: dist.Gamma(2.0, 1.0)), of(PERMUTED, "other"), {"z": "gamma"}, "geometric", pe.SymmetryError,
        "representation for site 'z'; .* Add 'z' to sites=",
    ),
    "a site left out without a representation": (
        site(lambda: dist.Gamma(2.0, 1.0)), of(PERMUTED, "other"), {}, "geometric", pe.SymmetryError,
        "representation for site 'z'; .* Add 'z' to sites=",
    ),
    "another shape": (
        site(lambda: dist.Gamma(torch.ones(4), 1.0).to_event(1)), of(PERMUTED), {"z": "gamma"}, "geometric",
        pe.SymmetryError, r"site 'z' to act on the last axes of its shape \(4,\); got",
    ),
    "a part of the event": (
        site(lambda: dist.Gamma(torch.ones(2, 3), 1.0).to_event(2)), of(PERMUTED), {"z": "gamma"}, "geometric",
        pe.SymmetryError, "site 'z' to act on its whole event .*Multiply it by pe.trivial",
    ),
    "a subsampled plate that moves": (
        part, of(PERMUTED), {"z": "gamma"}, "geometric", pe.SymmetryError,
        "site 'z' to leave the plate 'rows' alone, which is subsampled.* Use the full plate",
    ),
    "a subsampled plate that moves, left out": (
        part, of(PERMUTED), {}, "geometric", pe.SymmetryError,
        "site 'z' to leave the plate 'rows' alone, which is subsampled.* Use the full plate",
    ),
    "no symmetry": (
        three(dist.Gamma(2.0, 1.0)), None, {"z": "gamma"}, "geometric", pe.SymmetryError, "to be a pe.Symmetry",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_site_and_the_way_out(name):
    model, symmetry, families, rule, error, message = ERRORS[name]
    with pytest.raises(error, match=message) as caught:
        pe.AutoSymmetric(model, symmetry, families, rule)()
    assert "\n" not in str(caught.value)


def test_discrete_sites_are_an_error():
    guide = pe.AutoSymmetric(site(lambda: dist.Poisson(2.0)), of(STILL), {"z": "gamma"})
    with pytest.raises(pe.SymmetryError, match="'z' is discrete.* pass it when the guide is first called"):
        guide()


def test_nothing_is_known_before_it_is_initialised():
    guide = mixed_guide()
    for ask in (lambda: guide.get_posterior("odds"), guide.median, lambda: guide.quantiles([0.5])):
        with pytest.raises(pe.SymmetryError, match=r"AutoSymmetric to be initialized.*guide\.initialize"):
            ask()
