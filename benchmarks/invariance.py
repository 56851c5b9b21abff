"""Is what the package calls invariant invariant, to the precision of float64?"""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import Tensor

import pyro_equivariance as pe

from .cases import GROUPS, NETWORKS, example, one_thread, random_start, scramble
from .report import Column, Report, Table, gate

SEEDS = (0, 1, 2)
IMAGES, DRAWS = 4, 3
LAW, OUTPUT, BROKEN = 1e-12, 1e-10, 1e-3
RULES = ("geometric", "arithmetic", "projection")


def run() -> Report:
    """Averages of a random guide, and expansions of one."""
    report = Report("invariance", "deviation of laws and outputs along the orbit, float64")
    seeds = f"{len(SEEDS)} random guides (seeds {', '.join(map(str, SEEDS))})"
    with one_thread():
        _averages(_averages_table(report, seeds))
        _expansions(_expansions_table(report, seeds))
    return report


@dataclass(frozen=True)
class Problem:
    """A random Bayesian network in float64, its symmetry and some images."""

    model: pe.BayesianNetwork
    symmetry: pe.Symmetry
    x: Tensor


def problem(group: str, network: str, hidden: str, width: int, seed: int) -> Problem:
    """The problem of one seed, everything random drawn from it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    build, shape = NETWORKS[network]
    net = build(width).double()
    symmetry = pe.network_symmetry(net, GROUPS[group], shape, hidden=hidden)
    x = torch.randn(IMAGES, *shape, dtype=torch.float64)
    return Problem(pe.BayesianNetwork(net, prior="fan_in"), symmetry, x)


def random_guide(p: Problem, kind: Callable, *args):
    """An initialized guide with random means and scales."""
    guide = kind(p.model, *args, **random_start(0.2))
    guide.initialize(*example(p.x))
    return guide


@torch.no_grad()
def law_deviation(guide, symmetry: pe.Symmetry) -> float:
    """Largest ``|μ − ρ(g) μ|`` and ``|σ − |ρ(g)| σ|`` over sites, elements and entries."""
    worst = 0.0
    for site, rep in symmetry.sites.items():
        q = guide.get_posterior(site).base_dist
        gaps = (rep.orbit(q.loc) - q.loc, rep.modulus().orbit(q.scale) - q.scale)
        worst = max(worst, *(float(gap.abs().max()) for gap in gaps))
    return worst


@torch.no_grad()
def output_deviation(model: Callable, latents: dict[str, Tensor], symmetry: pe.Symmetry, x: Tensor) -> float:
    """Largest ``|f(gx) − f(x)|`` over elements, images and logits, the network's latents being given."""
    network = poutine.block(poutine.condition(model, data=latents))
    logits = network(symmetry.inputs.orbit(x).flatten(0, 1)).unflatten(0, (len(symmetry.group), len(x)))
    return float((logits - logits[0]).abs().max())


def mean_deviation(p: Problem, guide) -> float:
    """The same for the network at the guide's means."""
    return output_deviation(p.model, guide.median(), p.symmetry, p.x)


def _averages_table(report: Report, seeds: str) -> Table:
    return report.table(
        "Averages of a mean-field guide",
        f"law: max over sites, g and entries of |μ − ρ(g)μ| and |σ − |ρ(g)|σ| (bound {LAW:.0e}); output: max over g, "
        f"{IMAGES} images and logits of |f(gx) − f(x)|, f the network at the guide's means (bound {OUTPUT:.0e}), after "
        f"pe.symmetrize_ and, under before, ahead of it; always-on: the same of AutoSymmetricNormal with random "
        f"parameters. Largest over {seeds}.",
        Column("group", "group", width=5),
        Column("network", "network", width=12),
        Column("hidden", "hidden", width=7),
        Column("rule", "rule", width=10),
        Column("before", "before", ".1e", 8),
        Column("law", "law", ".1e", 8),
        Column("output", "output", ".1e", 8),
        Column("always_law", "always-on law", ".1e", 13),
        Column("always_output", "output", ".1e", 8),
        Column("verdict", "", width=4),
    )


def _averages(table: Table) -> None:
    for group, network, hidden, rule in itertools.product(GROUPS, NETWORKS, ("regular", "trivial"), RULES):
        row = _largest(_average(problem(group, network, hidden, 16, seed), rule) for seed in SEEDS)
        passed = max(row["law"], row["always_law"]) <= LAW and max(row["output"], row["always_output"]) <= OUTPUT
        table.add(group=group, network=network, hidden=hidden, rule=rule, **row, verdict=gate(passed))


def _average(p: Problem, rule: str) -> dict[str, float]:
    once = random_guide(p, pe.AutoMeanFieldNormal)
    before = mean_deviation(p, once)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pe.WideOrbitWarning)  # random copies lie apart; their average is invariant
        pe.symmetrize_(once, p.symmetry, rule=rule)
    always = random_guide(p, pe.AutoSymmetricNormal, p.symmetry, rule)
    scramble(always)
    return {
        "before": before,
        "law": law_deviation(once, p.symmetry),
        "output": mean_deviation(p, once),
        "always_law": law_deviation(always, p.symmetry),
        "always_output": mean_deviation(p, always),
    }


def _expansions_table(report: Report, seeds: str) -> Table:
    return report.table(
        "Expansions of a small network (pe.expand)",
        f"law and output as above, at the start (tie None) or for random parameters of the large guide (tie "
        f"parameters); draws (tie samples): the same as output, of single draws, {DRAWS} per guide. Largest over "
        f"{seeds}. row_constant is the negative control: it passes if its law, outputs and draws all deviate by more "
        f"than {BROKEN:.0e}.",
        Column("group", "group", width=5),
        Column("network", "network", width=12),
        Column("arrangement", "arrangement", width=12),
        Column("none_law", "None: law", ".1e"),
        Column("none_output", "output", ".1e", 8),
        Column("parameters_law", "parameters: law", ".1e", 15),
        Column("parameters_output", "output", ".1e", 8),
        Column("samples_draws", "samples: draws", ".1e", 14),
        Column("verdict", "", width=4),
    )


def _expansions(table: Table) -> None:
    for group, network, arrangement in itertools.product(GROUPS, NETWORKS, ("free", "gcnn", "row_constant")):
        row = _largest(_expansion(problem(group, network, "trivial", 2, seed), arrangement) for seed in SEEDS)
        if arrangement == "row_constant":
            verdict = "PASS (breaks)" if min(row.values()) > BROKEN else "FAIL"
        else:
            laws = (row["none_law"], row["parameters_law"])
            outputs = (row["none_output"], row["parameters_output"], row["samples_draws"])
            verdict = gate(max(laws) <= LAW and max(outputs) <= OUTPUT)
        table.add(group=group, network=network, arrangement=arrangement, **row, verdict=verdict)


def _expansion(p: Problem, arrangement: str) -> dict[str, float]:
    small = random_guide(p, pe.AutoMeanFieldNormal)
    row = {}
    for tie in (None, "parameters"):
        model, guide, symmetry = pe.expand(p.model, small, p.symmetry, arrangement, tie)
        if tie:
            scramble(guide)
        key = str(tie).lower()
        row[f"{key}_law"] = law_deviation(guide, symmetry)
        row[f"{key}_output"] = output_deviation(model, guide.median(), symmetry, p.x)
    model, guide, symmetry = pe.expand(p.model, small, p.symmetry, arrangement, "samples")
    scramble(guide)
    draws = (guide() for _ in range(DRAWS))
    row["samples_draws"] = max(output_deviation(model, draw, symmetry, p.x) for draw in draws)
    return row


def _largest(rows) -> dict[str, float]:
    """The largest value of each field over several rows."""
    rows = list(rows)
    return {key: max(row[key] for row in rows) for key in rows[0]}
