"""Every guide under every part of Pyro that a model may be trained or used with: each cell of the table is run.

``python tests/test_matrix.py`` writes the table, docs/compatibility.md.
"""

import copy
import math
import pickle
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import ExpTransform
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal, AutoNormalMessenger, init_to_mean
from pyro.infer.reparam import LocScaleReparam
from pyro.ops.indexing import Vindex
from torch.distributions import kl_divergence

import pyro_equivariance as pe

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
SIGMAS = 4.0  # of a computed standard error
COMPONENTS = 3
Y = torch.tensor([-1.3, -0.9, -1.1, 0.2, 0.1, 1.4, 1.6, 1.2], dtype=torch.float64)

# The model: a mixture of three components, whose names may be exchanged, and variants of it


def model(y=Y, minibatch=None, spread=0.5):
    """Three components, each with a real and a positive latent value; who belongs to which is summed out."""
    loc, scale = components(spread)
    with pyro.plate("data", len(Y), subsample_size=minibatch) as rows:
        law = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(COMPONENTS)), dist.Normal(loc[..., None, :], scale[..., None, :])
        )
        return pyro.sample("y", law, obs=None if y is None else y[rows])


def components(spread=0.5):
    with pyro.plate("components", COMPONENTS):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(-0.5, spread))
    return loc, scale


def minibatches(y=Y):
    return model(y, minibatch=4)


def assigned(y=Y):
    """The same law, with the component of each datum as a discrete site."""
    loc, scale = components()
    with pyro.plate("data", len(Y)):
        k = pyro.sample("k", dist.Categorical(torch.ones(COMPONENTS)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(*(Vindex(t[..., None, :])[..., k] for t in (loc, scale))), obs=y)


def with_parameter(y=Y):
    return model(y, spread=pyro.param("spread", torch.tensor(0.5), constraint=constraints.positive))


def with_level(y=Y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    return model(None if y is None else y - level)


lifted = poutine.lift(with_parameter, prior={"spread": dist.LogNormal(-0.7, 0.3)})
decentered = poutine.reparam(model, config={"loc": LocScaleReparam(0.0)})


@dataclass(frozen=True)
class Program:
    """A model, and its latent sites by what moves them."""

    model: Callable
    real: str = "loc"
    fixed: str | None = None

    @property
    def symmetry(self) -> pe.Symmetry:
        group = pe.SymmetricGroup(COMPONENTS)
        sites = {self.real: pe.permutation(group), "scale": pe.permutation(group)}
        return pe.Symmetry(group, sites | ({self.fixed: pe.trivial(group, ())} if self.fixed else {}))


PLAIN = Program(model)

# Guides


def by_hand(real, fixed, *args, **kwargs):
    """A guide as one writes it: parameters by name, a Normal and a Normal under an exponential."""
    loc = pyro.param("loc_loc", lambda: torch.tensor([-0.2, 0.0, 0.3]))
    log = pyro.param("scale_loc", lambda: torch.tensor([-0.5, -0.4, -0.6]))
    loc_scale = pyro.param("loc_scale", lambda: torch.full((COMPONENTS,), 0.3), constraint=constraints.positive)
    log_scale = pyro.param("scale_scale", lambda: torch.full((COMPONENTS,), 0.2), constraint=constraints.positive)
    draws = {}
    if fixed is not None:
        center = pyro.param("fixed_loc", torch.tensor(-0.7))
        draws[fixed] = pyro.sample(fixed, dist.LogNormal(center, 0.2))
    with pyro.plate("components", COMPONENTS):
        draws[real] = pyro.sample(real, dist.Normal(loc, loc_scale))
        law = dist.TransformedDistribution(dist.Normal(log, log_scale), ExpTransform())
        return draws | {"scale": pyro.sample("scale", law)}


class ByHand(pyro.nn.PyroModule):
    """The same as a module, which holds its parameters."""

    def __init__(self, real, fixed):
        super().__init__()
        self.real, self.fixed = real, fixed
        self.locs = pyro.nn.PyroParam(torch.tensor([-0.2, 0.0, 0.3]))
        self.logs = pyro.nn.PyroParam(torch.tensor([-0.5, -0.4, -0.6]))
        self.stds = pyro.nn.PyroParam(torch.full((COMPONENTS,), 0.3), constraint=constraints.positive)

    def forward(self, *args, **kwargs):
        draws = {}
        if self.fixed is not None:
            draws[self.fixed] = pyro.sample(self.fixed, dist.LogNormal(self.logs.mean(), 0.2))
        with pyro.plate("components", COMPONENTS):
            draws[self.real] = pyro.sample(self.real, dist.Normal(self.locs, self.stds))
            law = dist.TransformedDistribution(dist.Normal(self.logs, self.stds), ExpTransform())
            return draws | {"scale": pyro.sample("scale", law)}


OURS = {
    "`pe.AutoSymmetricNormal(model, symmetry)`": (pe.AutoSymmetricNormal, {}),
    '`pe.AutoSymmetric(model, symmetry, families={"scale": "gamma"})`': (
        pe.AutoSymmetric, {"families": {"scale": "gamma"}},
    ),
    "`pe.AutoSymmetricMultivariateNormal(model, symmetry)`": (pe.AutoSymmetricMultivariateNormal, {}),
    "`pe.AutoSymmetricLowRankMultivariateNormal(model, symmetry)`": (pe.AutoSymmetricLowRankMultivariateNormal, {}),
    '`pe.AutoOrbitMixture(model, symmetry, base="diagonal")`': (pe.AutoOrbitMixture, {}),
    '`pe.AutoOrbitMixture(model, symmetry, base="full")`': (pe.AutoOrbitMixture, {"base": "full"}),
    '`pe.AutoOrbitMixture(model, symmetry, base="low_rank")`': (pe.AutoOrbitMixture, {"base": "low_rank"}),
    "`pe.AutoOrbitMixture(model, symmetry, max_exact=1, samples=3)`": (
        pe.AutoOrbitMixture, {"max_exact": 1, "samples": 3},
    ),
}  # fmt: skip


def ours(kind, options):
    return lambda program, model: kind(model, program.symmetry, **options)


def wrapped(build):
    return lambda program, model: pe.SymmetrizedGuide(build(program, model), program.symmetry)


def handwritten(program, model):
    return partial(by_hand, program.real, program.fixed)


GUIDES: dict[str, Callable] = {
    "`pe.AutoMeanFieldNormal(model)`": lambda program, model: pe.AutoMeanFieldNormal(model),
    **{name: ours(*how) for name, how in OURS.items()},
    "`pe.SymmetrizedGuide(AutoNormal(model), symmetry)`": wrapped(
        lambda program, model: AutoNormal(model, init_loc_fn=init_to_mean)
    ),
    "`pe.SymmetrizedGuide(AutoNormalMessenger(model), symmetry)`": wrapped(
        lambda program, model: AutoNormalMessenger(model)
    ),
    "`pe.handlers.symmetrize(AutoNormalMessenger(model), symmetry)`": lambda program, model: pe.handlers.symmetrize(
        AutoNormalMessenger(model), program.symmetry
    ),
    "`pe.SymmetrizedGuide(module, symmetry)`": wrapped(lambda program, model: ByHand(program.real, program.fixed)),
    "`pe.handlers.symmetrize(function, symmetry)`": lambda program, model: pe.handlers.symmetrize(
        handwritten(program, model), program.symmetry
    ),
}
*_, MESSENGER, HANDLED_MESSENGER, MODULE, FUNCTION = GUIDES

# What Pyro has for the same model, to show what it cannot do itself
PYRO: dict[str, Callable] = {
    "AutoNormal": lambda program, model: AutoNormal(model, init_loc_fn=init_to_mean),
    "AutoNormalMessenger": lambda program, model: AutoNormalMessenger(model),
    "function": handwritten,
}


def made(build, program=PLAIN, model=None):
    """The guide with its parameters."""
    guide = build(program, model or program.model)
    with poutine.block():
        guide()
    return guide


def parameters(guide):
    """Those of a module, or those in Pyro's store."""
    if isinstance(guide, torch.nn.Module):
        return list(guide.parameters())
    return [value for _, value in pyro.get_param_store().named_parameters()]


def draw(guide, seed=3):
    """The latent values of one call."""
    pyro.set_rng_seed(seed)
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace()
    return {name: trace.nodes[name]["value"] for name in ("loc", "scale")}


def assert_draws(guide, expected):
    """The same, bit for bit, under the same seed."""
    for name, value in draw(guide).items():
        assert torch.equal(value, expected[name]), name


def assert_trains(build, elbo, program=PLAIN, model=None, model_run=None):
    """Two steps run, with a finite loss, move every parameter and leave the law invariant."""
    guide = made(build, program, model)
    before = [p.detach().clone() for p in parameters(guide)]
    svi = SVI(model_run or program.model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = [svi.step() for _ in range(2)]
    assert all(map(math.isfinite, losses))
    assert_moved(guide, before)
    assert_invariant(guide, program)
    return guide


def assert_moved(guide, before):
    assert before
    for old, new in zip(before, parameters(guide), strict=True):
        assert not torch.equal(old, new)


def core(law):
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return law


@torch.no_grad()
def assert_invariant(guide, program):
    """The law of an always invariant guide at θ and at ρ(g)θ is the same, for all g; that of a free one is not."""
    gap = joint_gap(guide) if hasattr(guide, "_rep") else site_gap(guide, program)
    if getattr(guide, "always_invariant", True):
        assert gap < 1e-10
    else:
        assert gap > 1e-4


def joint_gap(guide):
    """Of the log density of the vector of all sites."""
    law, theta = guide.get_posterior(), torch.randn(guide.get_posterior().event_shape)
    if isinstance(law, pe.OrbitMixture):
        law = pe.OrbitMixture(law.q, law.rep)  # summed over the group
    moved = guide._rep.orbit(theta)
    return float((law.log_prob(moved) - law.log_prob(theta)).abs().max())


def site_gap(guide, program):
    """Of location and scale of each site in unconstrained coordinates, or of a Gamma's own parameters."""
    nodes, worst = poutine.trace(guide).get_trace().nodes, 0.0
    for name, rep in program.symmetry.sites.items():
        law = core(nodes[name + "_unconstrained" if name + "_unconstrained" in nodes else name]["fn"])
        gamma = isinstance(law, dist.Gamma)
        for value in (law.concentration, law.rate) if gamma else (law.loc, law.scale):
            worst = max(worst, float((rep.orbit(value) - value).abs().max()))
    return worst


def estimates(elbo, model, guide, repeats=20):
    with torch.no_grad():
        return torch.tensor([elbo.loss(model, guide) for _ in range(repeats)])


def vectorised(kind, particles=50, **options):
    return kind(num_particles=particles, vectorize_particles=True, max_plate_nesting=1, **options)


def gap_in_errors(first, second):
    """How far two means are apart, in standard errors of their difference."""
    error = (first.var() / len(first) + second.var() / len(second)).sqrt()
    return float((first.mean() - second.mean()).abs() / error)


def assert_agrees(elbo, guide, other=model, repeats=20):
    """The estimate is that of Trace_ELBO on the model."""
    first, second = estimates(vectorised(Trace_ELBO), model, guide), estimates(elbo, other, guide, repeats)
    assert gap_in_errors(first, second) < SIGMAS


# Uses: each is given a row's constructor, and fails if the guide does not work there


def trace(build):
    guide = assert_trains(build, Trace_ELBO())
    assert_agrees(Trace_ELBO(), guide, repeats=50)  # one draw after another


def mean_field(build):
    assert_agrees(TraceMeanField_ELBO(), assert_trains(build, TraceMeanField_ELBO()), repeats=100)


def graph(build):
    guide = assert_trains(build, TraceGraph_ELBO())
    assert_agrees(vectorised(TraceGraph_ELBO), guide)


def enumerated(build):
    """On the model with discrete assignments, which Pyro sums out: the loss is that of the mixture."""
    blocked = poutine.block(assigned, hide=["k"])
    guide = assert_trains(build, TraceEnum_ELBO(max_plate_nesting=1), model=blocked, model_run=assigned)
    assert_agrees(vectorised(TraceEnum_ELBO), guide, assigned)


def renyi(build):
    """Of two draws it bounds the evidence no worse than the ELBO does, on average."""
    guide = assert_trains(build, RenyiELBO(alpha=0.5, num_particles=2))
    loss, tighter = estimates(vectorised(Trace_ELBO), model, guide), estimates(vectorised(RenyiELBO), model, guide)
    assert tighter.mean() < loss.mean() + SIGMAS * (loss.var() / len(loss)).sqrt()


def jit(build):
    elbo = vectorised(JitTrace_ELBO, ignore_jit_warnings=True)
    guide = assert_trains(build, elbo)
    first = estimates(vectorised(Trace_ELBO), model, guide)
    second = torch.tensor([elbo.loss_and_grads(model, guide) for _ in range(20)])
    assert gap_in_errors(first, second) < SIGMAS


def particles(build):
    assert_trains(build, vectorised(Trace_ELBO, 4))


def mean_field_particles(build):
    assert_agrees(vectorised(TraceMeanField_ELBO), assert_trains(build, vectorised(TraceMeanField_ELBO, 4)))


def predictive(build, parallel=False):
    sites = ("loc", "scale", "y")
    predict = Predictive(model, guide=made(build), num_samples=5, parallel=parallel, return_sites=sites)
    shapes = {name: tuple(value.shape) for name, value in predict(None).items()}
    assert shapes == {"loc": (5, COMPONENTS), "scale": (5, COMPONENTS), "y": (5, len(Y))}


def elbo_module(build):
    guide = made(build)
    before = [p.detach().clone() for p in parameters(guide)]
    loss = Trace_ELBO()(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert math.isfinite(float(value.detach()))
    assert_moved(guide, before)
    assert_invariant(guide, PLAIN)


def guide_list(build):
    """With another guide for a site that the first is not given."""
    guide = AutoGuideList(with_level)
    guide.append(build(PLAIN, poutine.block(with_level, hide=["level"])))
    guide.append(AutoNormal(poutine.block(with_level, expose=["level"])))
    made(lambda program, model: guide)
    before = [p.detach().clone() for p in parameters(guide)]
    svi = SVI(with_level, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert all(math.isfinite(svi.step()) for _ in range(2))
    assert_moved(guide, before)
    assert {"loc", "scale", "level"} <= set(guide())


def lift(build):
    assert_trains(build, Trace_ELBO(), Program(lifted, fixed="spread"))


def reparam(build):
    assert_trains(build, Trace_ELBO(), Program(decentered, real="loc_decentered"))


def minibatch(build):
    """The loss of a half of the data, scaled, is on average that of all."""
    guide = assert_trains(build, Trace_ELBO(), Program(minibatches))
    assert_agrees(Trace_ELBO(), guide, minibatches, repeats=50)


def trained(build):
    guide = assert_trains(build, Trace_ELBO())
    guide()  # with derivatives, after which tensors that cannot be copied must not be left over
    return guide


def new_process(guide):
    """Empties Pyro's store; what is nowhere else, the parameters of a function, is brought along, as one must."""
    state = pyro.get_param_store().get_state()
    pyro.clear_param_store()
    if not isinstance(guide, torch.nn.Module):
        pyro.get_param_store().set_state(state)


def pickled(build):
    guide = trained(build)
    expected, content = draw(guide), pickle.dumps(guide)
    new_process(guide)
    assert_draws(pickle.loads(content), expected)


def deepcopied(build):
    guide = trained(build)
    assert_draws(copy.deepcopy(guide), draw(guide))


def state_dict(build):
    guide = trained(build)
    expected, state = draw(guide), {name: value.clone() for name, value in guide.state_dict().items()}
    new_process(guide)
    fresh = made(build)
    assert not torch.equal(draw(fresh)["loc"], expected["loc"])
    fresh.load_state_dict(state)
    assert_draws(fresh, expected)


def stored(build):
    guide = trained(build)
    expected = draw(guide)
    with tempfile.TemporaryDirectory() as folder:
        pe.save(Path(folder) / "guide.pt", guide)
        new_process(guide)
        assert_draws(pe.load(Path(folder) / "guide.pt", model), expected)


USES: dict[str, Callable] = {
    "`Trace_ELBO`": trace,
    "`TraceMeanField_ELBO`": mean_field,
    "`TraceGraph_ELBO`": graph,
    "`TraceEnum_ELBO`, with a discrete site that is summed out": enumerated,
    "`RenyiELBO`": renyi,
    "`JitTrace_ELBO`": jit,
    "`Trace_ELBO(vectorize_particles=True)`": particles,
    "`TraceMeanField_ELBO(vectorize_particles=True)`": mean_field_particles,
    "`Predictive`": predictive,
    "`Predictive(parallel=True)`": partial(predictive, parallel=True),
    "`Trace_ELBO()(model, guide)` with an optimizer of torch": elbo_module,
    "part of an `AutoGuideList`": guide_list,
    "a model under `poutine.lift`": lift,
    "a model under `poutine.reparam`": reparam,
    "a plate of minibatches": minibatch,
    "`pickle`": pickled,
    "`copy.deepcopy`": deepcopied,
    "`state_dict` and `load_state_dict`": state_dict,
    "`pe.save` and `pe.load`": stored,
}

# What does not work, and why


@dataclass(frozen=True)
class Refusal:
    """An error that is meant: its type, how its message begins, and the reason; ``pyro`` fails there alike."""

    error: type[Exception]
    message: str
    reason: str
    pyro: str | None


MESSENGERS_AND_ENUMERATION = Refusal(
    NotImplementedError,
    "TraceEnum_ELBO does not support GuideMessenger",
    "Use `pe.SymmetrizedGuide(AutoNormalMessenger(model), symmetry)`, which works.",
    "AutoNormalMessenger",
)
MESSENGERS_WITHOUT_DATA = Refusal(
    NotImplementedError,
    "Cannot transform MixtureSameFamilyConstraint constraints",
    "A messenger runs the model, and without the data takes the observation for a latent site. Draw the latent values "
    "with the data given, and pass them to `Predictive(model, posterior_samples)`.",
    "AutoNormalMessenger",
)
NO_MODULE = Refusal(
    ValueError,
    "optimizer got an empty parameter list",
    "`pe.handlers.symmetrize` returns a function, in which the optimizer finds no parameters. Use "
    "`pe.SymmetrizedGuide`, on a guide written as a `PyroModule`.",
    "function",
)
PLATES_TWICE = Refusal(
    RuntimeError,
    "Multiple sample sites named 'components'",
    "The list opens the plates of the model for its parts, and a guide that is not one of Pyro's autoguides opens them "
    "again.",
    "function",
)
NO_STATE = Refusal(
    AttributeError,
    "'_bound_partial' object has no attribute 'state_dict'",
    "`pe.handlers.symmetrize` returns a function; the parameters are in Pyro's store, "
    "`pyro.get_param_store().get_state()`.",
    None,
)
NOT_STORED = Refusal(
    pe.SymmetryError,
    "Expected one of the guides ",
    "Files hold no code, so only guides that are known by name can be rebuilt from one. Save `guide.state_dict()`, or "
    "Pyro's store.",
    None,
)

ENUM, PREDICTIVE, PARALLEL, MODULES, LIST, STATE, STORED = (
    next(name for name, use in USES.items() if use is wanted)
    for wanted in (
        enumerated, predictive, USES["`Predictive(parallel=True)`"], elbo_module, guide_list, state_dict, stored,
    )
)  # fmt: skip

EXCEPTIONS: dict[tuple[str, str], Refusal] = {
    (HANDLED_MESSENGER, ENUM): MESSENGERS_AND_ENUMERATION,
    **{(guide, use): MESSENGERS_WITHOUT_DATA
       for guide in (MESSENGER, HANDLED_MESSENGER) for use in (PREDICTIVE, PARALLEL)},
    **{(guide, MODULES): NO_MODULE for guide in (HANDLED_MESSENGER, FUNCTION)},
    **{(guide, LIST): PLATES_TWICE for guide in (MESSENGER, HANDLED_MESSENGER, MODULE, FUNCTION)},
    **{(guide, STATE): NO_STATE for guide in (HANDLED_MESSENGER, FUNCTION)},
    **{(guide, STORED): NOT_STORED for guide in (MESSENGER, HANDLED_MESSENGER, MODULE, FUNCTION)},
}  # fmt: skip

compiled = pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated:DeprecationWarning")  # Pyro's JitTrace


@compiled
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("guide", GUIDES)
def test_cell(guide, use):
    refusal = EXCEPTIONS.get((guide, use))
    if refusal is None:
        USES[use](GUIDES[guide])
        return
    with pytest.raises(refusal.error, match=re.escape(refusal.message)):
        USES[use](GUIDES[guide])


@pytest.mark.parametrize(
    ("use", "refusal"), dict.fromkeys((use, refusal) for (_, use), refusal in EXCEPTIONS.items() if refusal.pyro)
)
def test_pyro_cannot_either(use, refusal):
    """Its own guide fails there with the same error."""
    with pytest.raises(refusal.error, match=re.escape(refusal.message)):
        USES[use](PYRO[refusal.pyro])


# The page

INTRODUCTION = """# Compatibility

Which guide works with which part of Pyro. Every cell is run by `tests/test_matrix.py`, on a mixture of three
components whose names the group exchanges. `python tests/test_matrix.py` writes this page; a test fails where it
differs from what was run.

A mark ✓ says that the guide works there. Under a loss: two steps of training have a finite loss and move every
parameter, the guide is still invariant if it is one that always is, and the loss agrees with that of `Trace_ELBO`
within four standard errors (`RenyiELBO`, another bound, is no looser). Copied, or restored from a file: the guide
draws the same values, bit for bit, under the same seed. A number says that the error below the table is raised.

`model` is a Pyro model, `module` a guide written as a `PyroModule`, and `function` one written as a function with
`pyro.param`. The parameters of a function are in Pyro's store, which is to be saved next to its pickle.
"""


def render() -> str:
    """The page, from the tables above."""
    letters = dict(zip(GUIDES, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False))
    notes = list(dict.fromkeys(EXCEPTIONS.values()))
    lines = [INTRODUCTION, "| | guide |", "|---|---|"]
    lines += [f"| {letter} | {guide} |" for guide, letter in letters.items()]
    lines += ["", "| | " + " | ".join(letters.values()) + " |", "|---|" + ":-:|" * len(letters)]
    for use in USES:
        found = [EXCEPTIONS.get((guide, use)) for guide in GUIDES]
        cells = ["✓" if refusal is None else str(notes.index(refusal) + 1) for refusal in found]
        lines.append(f"| {use} | " + " | ".join(cells) + " |")
    lines.append("")
    for number, note in enumerate(notes, 1):
        message = note.message + "…" if note.message.endswith(" ") else note.message
        also = " Pyro's own guide of that kind raises the same." if note.pyro else ""
        lines.append(f"{number}. `{note.error.__name__}: {message}`: {note.reason}{also}")
    return "\n".join(lines) + "\n"


def test_the_page_is_what_was_run():
    assert PAGE.read_text() == render(), "run `python tests/test_matrix.py`"


def test_every_exception_is_of_a_cell():
    assert all(guide in GUIDES and use in USES for guide, use in EXCEPTIONS)


# What the cells do not show


def locs():
    with pyro.plate("components", COMPONENTS):
        pyro.sample("loc", dist.Normal(0.0, 1.0))


DIRECT = {
    **{name: locs for name in GUIDES if "AutoMeanFieldNormal" in name or "AutoSymmetricNormal" in name},
    **{name: components for name in (MODULE, FUNCTION)},  # whose positive site is that of the prior, transformed alike
}


@pytest.mark.parametrize("name", DIRECT)
def test_without_data_the_loss_is_the_kl_and_has_no_spread(name):
    """Of guides that draw each site by itself and directly."""
    prior = DIRECT[name]
    guide = made(GUIDES[name], model=prior)
    losses = {TraceMeanField_ELBO().loss(prior, guide) for _ in range(5)}
    sites = {"loc": dist.Normal(0.0, 1.0)} | ({"scale": dist.Normal(-0.5, 0.5)} if prior is components else {})
    nodes = poutine.trace(guide).get_trace().nodes
    kl = sum(float(kl_divergence(core(nodes[s]["fn"]), p).sum().detach()) for s, p in sites.items())
    assert len(losses) == 1
    assert losses.pop() == pytest.approx(kl, rel=1e-12)


RATES, COUNTS = 3, torch.ones(3, dtype=torch.float64)
SHAPE, RATE = 2.0, 1.0
TRUTH = (SHAPE + 1) / (RATE + 1)  # of Gamma(3, 2), the posterior of each rate


def counts():
    """Exchangeable rates, and one count of each."""
    with pyro.plate("rates", RATES):
        rate = pyro.sample("rate", dist.Gamma(SHAPE, RATE))
        pyro.sample("y", dist.Poisson(rate), obs=COUNTS)


def learned_mean(guide):
    """The mean rate under the trained guide and its standard error, from six stretches of the last 300 steps."""
    svi = SVI(counts, guide, pyro.optim.Adam({"lr": 0.03}), vectorised(TraceMeanField_ELBO, 200))
    means = []
    for step in range(420):
        svi.step()
        if step >= 120 and step % 10 == 9:
            draws = Predictive(counts, guide=guide, num_samples=2000, parallel=True, return_sites=("rate",))()
            means.append(draws["rate"].mean())
    stretches = torch.stack(means).reshape(6, -1).mean(1)
    return float(stretches.mean()), float(stretches.std() / 6**0.5)


@pytest.mark.parametrize("kind", [pe.AutoSymmetricNormal, pe.AutoSymmetricMultivariateNormal, pe.AutoOrbitMixture])
def test_gamma_sites_reach_their_mean(kind):
    """The best LogNormal has the mean of the Gamma posterior, where the Jacobian is kept."""
    group = pe.SymmetricGroup(RATES)
    rates = pe.Symmetry(group, {"rate": pe.permutation(group)})
    mean, error = learned_mean(kind(counts, rates))
    assert abs(mean - TRUTH) < SIGMAS * error
    assert error < 0.02


def test_the_guide_of_pyro_misses_it():
    """Its Delta drops the Jacobian under TraceMeanField_ELBO, as if there were one event less."""
    mean, error = learned_mean(AutoNormal(counts))
    assert abs(mean - SHAPE / (RATE + 1)) < SIGMAS * error
    assert TRUTH - mean > 10 * error


def test_a_wrapped_messenger_keeps_the_likelihood():
    """It runs the model, whose observation is no site of the guide."""
    first = wrapped(lambda program, model: AutoNormal(model, init_loc_fn=init_to_mean))(PLAIN, model)
    second = GUIDES[MESSENGER](PLAIN, model)
    for guide in (first, second):
        assert_agrees(vectorised(Trace_ELBO), guide)
    losses = [estimates(vectorised(Trace_ELBO), model, guide) for guide in (first, second)]
    assert gap_in_errors(*losses) < SIGMAS
    assert set(poutine.trace(second).get_trace().stochastic_nodes) == {"components", "data", "loc", "scale"}
    assert not poutine.trace(second).get_trace().observation_nodes


def test_copies_keep_the_model(tmp_path):
    guide = pe.AutoSymmetricNormal(model, PLAIN.symmetry)
    copy.deepcopy(guide).initialize()
    guide.initialize()
    pickle.dumps(guide)
    for one in (guide, copy.deepcopy(guide)):
        pe.save(tmp_path / "guide.pt", one)
        assert_draws(pe.load(tmp_path / "guide.pt", model), draw(guide))


def test_a_guide_without_its_model_says_so(tmp_path):
    guide = pe.AutoSymmetricNormal(model, PLAIN.symmetry)
    with pytest.raises(pe.SymmetryError, match="Expected a guide with its model, which pickling leaves out"):
        pickle.loads(pickle.dumps(guide))()
    guide.initialize()
    with pytest.raises(pe.SymmetryError, match="Expected a guide with its model; got one that has lost it"):
        pe.save(tmp_path / "guide.pt", pickle.loads(pickle.dumps(guide)))


if __name__ == "__main__":
    PAGE.write_text(render())
