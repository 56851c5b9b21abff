"""A Gaussian mixture on the wine data: whether a posterior with six labellings is right, and what chains then say."""

import math
import time
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from torch import Tensor

import pyro_equivariance as pe

from .cases import one_thread
from .draws import drawn, fit, log_density, paired_gain
from .guides import error
from .report import Column, Report, Table, aim

CHAINS = (0, 1, 2, 3)
COMPONENTS, HELD_OUT, STARTS = 3, 38, 100
STEPS, PARTICLES, DRAWS = 2_000, 4, 10_000
WARMUP, SAMPLES, CHAIN = 300, 500, 1_000
BASES = ("diagonal", "full", "low_rank")
LABELLINGS = math.factorial(COMPONENTS)
RARE, SMALLEST = 0.01, 1e-6


def run() -> Report:
    """ELBOs, posteriors against NUTS, R-hat."""
    report = Report("mixtures", "a Gaussian mixture with K = 3 on the wine data (13 features), float64")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with one_thread(), pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _Wine(report).run()
    finally:
        torch.set_default_dtype(dtype)
    return report


def model(x: Tensor) -> None:
    """Three clusters with Normal features, assignments summed out; bears axes of draws at the left."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((COMPONENTS,), 5.0)))
    with pyro.plate("components", COMPONENTS):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(x.shape[1]), 2.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(torch.full((x.shape[1],), -0.5), 0.5).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", _likelihood(weights, loc, scale), obs=x)


def _likelihood(weights: Tensor, loc: Tensor, scale: Tensor) -> dist.Distribution:
    if loc.ndim > 2:  # many draws: an axis for the data
        loc, scale = loc[..., None, :, :], scale[..., None, :, :]
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale).to_event(1))


def wine() -> tuple[Tensor, Tensor]:
    """Standardised features of the wines, those to be fitted and those held out."""
    from sklearn.datasets import load_wine

    x = torch.as_tensor(load_wine().data, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:-HELD_OUT]], x[order[-HELD_OUT:]]


def best_start(x: Tensor, seed: int) -> dict[str, Tensor]:
    """Of many starts, with three data points as means, that of the highest log joint density."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(len(x), generator=generator)[:COMPONENTS] for _ in range(STARTS)])
    values = {
        "weights": torch.full((STARTS, 1, COMPONENTS), 1 / COMPONENTS),
        "loc": x[chosen],
        "scale": torch.full((STARTS, COMPONENTS, x.shape[1]), 0.8),
    }
    best = int(log_density(model, values, x).argmax())
    return {
        name: value[best].reshape(value.shape[1:] if name != "weights" else (-1,)) for name, value in values.items()
    }


class _Wine:
    """The runs, of which several tables are made."""

    def __init__(self, report: Report):
        self.report = report
        self.x, self.test = wine()
        self.symmetry = pe.exchangeable(model, "components", self.x)
        self.draws: dict[tuple[str, str, int], dict[str, Tensor]] = {}
        self.elbos: dict[tuple[str, str, int], tuple[float, float]] = {}

    def run(self) -> None:
        chains, seconds = self._nuts()
        self._elbo_table(seconds)
        self._posterior_table(chains)
        self._rhat_table(chains)

    def _nuts(self) -> tuple[dict[str, Tensor], float]:
        """Four chains from starts of their own, ``(chain, draw, *site)``."""
        begun, runs = time.perf_counter(), []
        for seed in CHAINS:
            pyro.set_rng_seed(seed)
            start = init_to_value(values=best_start(self.x, seed))
            kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, init_strategy=start)
            chain = MCMC(kernel, num_samples=SAMPLES, warmup_steps=WARMUP, disable_progbar=True)
            chain.run(self.x)
            runs.append(chain.get_samples())
        return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}, time.perf_counter() - begun

    def _elbo_table(self, seconds: float) -> None:
        table = self.report.table(
            "ELBO, and what the mixture gains",
            f"Wine (scikit-learn), features standardised, {len(self.x)} wines fitted, {len(self.test)} held out. "
            f"Weights ~ Dirichlet(5, 5, 5), means ~ N(0, 2²), scales ~ LogNormal(−½, ½), assignments summed out; 80 "
            f"unconstrained values. Start of every guide and chain: the best of {STARTS} by log joint density, each "
            f"with three data points as means. {STEPS} steps of ClippedAdam, rate 0.03 falling to 1 %, {PARTICLES} "
            f"particles. ELBO ± standard error from {DRAWS:,} draws. gain: ELBO(q^G) − ELBO(q) of a mixture against "
            f"its own get_base(), paired: the model is scored at θ and at ρ(g)θ. short: log 6 − gain (log 6 = "
            f"{math.log(LABELLINGS):.4f}; aim: within 3 standard errors, or {SMALLEST:.0e}, which is rounding). "
            f"− Pyro's: ELBO less that of Pyro's guide of the same kind and seed, trained by itself; the families "
            f"differ a little (stick-breaking there, isometric log ratios here) and so does where training ends. "
            f"average: AutoSymmetric guides, between the modes (loc and scale; the weights, which an elementwise or "
            f"low-rank average refuses, by AutoSymmetricMultivariateNormal in an AutoGuideList). Seeds 1–3 with "
            f"diagonal bases alone. NUTS took {seconds:.0f} s: {len(CHAINS)} chains, {WARMUP} warm-up steps, {SAMPLES} "
            f"draws.",
            Column("kind", "guide", width=7),
            Column("base", "base", width=8),
            Column("seed", "seed", "d", 4),
            Column("elbo", "ELBO", ".3f", 9),
            Column("elbo_se", "± SE", ".3f", 6),
            Column("gain", "gain", ".4f", 7),
            Column("gain_se", "± SE", ".0e", 6),
            Column("short", "short", ".0e", 6),
            Column("against", "− Pyro's", ".3f", 8),
            Column("against_se", "± SE", ".3f", 6),
            Column("seconds", "s", ".0f", 4),
            Column("verdict", "aim", width=6),
        )
        for base in BASES:
            for kind in ("Pyro", "average", "mixture"):
                self._train(table, kind, base, 0)
        for seed in CHAINS[1:]:
            for kind in ("Pyro", "mixture"):
                self._train(table, kind, "diagonal", seed)

    def _train(self, table: Table, kind: str, base: str, seed: int) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide, begun = self._guide(kind, base, seed), time.perf_counter()
        fit(model, guide, self.x, steps=STEPS, particles=PARTICLES)
        seconds = time.perf_counter() - begun
        self.draws[kind, base, seed], terms = drawn(model, guide, self.x, count=DRAWS)
        elbo, elbo_se = self.elbos[kind, base, seed] = float(terms.mean()), error(terms)
        row = {"kind": kind, "base": base, "seed": seed, "elbo": elbo, "elbo_se": elbo_se, "seconds": seconds}
        if kind != "Pyro":
            other, other_se = self.elbos["Pyro", base, seed]
            row |= {"against": elbo - other, "against_se": math.hypot(elbo_se, other_se)}
        if kind == "mixture":
            row |= paired_gain(model, guide, self.x, count=DRAWS)
            row["short"] = math.log(LABELLINGS) - row["gain"]
            row["verdict"] = aim(abs(row["short"]) <= max(3 * row["gain_se"], SMALLEST))
        table.add(**row)

    def _guide(self, kind: str, base: str, seed: int):
        start = {"init_loc_fn": init_to_value(values=best_start(self.x, seed))}
        if kind == "Pyro":
            return dict(zip(BASES, (AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal), strict=True))[
                base
            ](model, **start)
        if kind == "mixture":
            return pe.AutoOrbitMixture(model, self.symmetry, base=base, **start)
        joint = pe.AutoSymmetricMultivariateNormal
        if base == "full":
            return joint(model, self.symmetry, **start)
        average = {"diagonal": pe.AutoSymmetricNormal, "low_rank": pe.AutoSymmetricLowRankMultivariateNormal}[base]
        guide = AutoGuideList(model)
        guide.append(average(poutine.block(model, hide=["weights"]), self.symmetry, **start))
        guide.append(joint(poutine.block(model, expose=["weights"]), self.symmetry, **start))
        return guide

    def _posterior_table(self, chains: dict[str, Tensor]) -> None:
        limit = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - RARE / chains["loc"][0, 0].numel())))
        table = self.report.table(
            "The posteriors against NUTS",
            f"uneven: largest deviation from 1/6 of the occupancy of the six labellings, pe.canonical_elements of "
            f"{DRAWS:,} draws (its standard error "
            f"{math.sqrt((1 - 1 / LABELLINGS) / LABELLINGS / DRAWS):.4f}); p: of chi-square; even: whether p > 0.001. "
            f"NUTS's is that of its chains, which do not leave the labelling they start in. Component means after "
            f"pe.canonicalize with NUTS's as reference: largest |difference| of 39, z: in standard errors, az.mcse of "
            f"NUTS and that of the draws together; sd: in posterior standard deviations. near: whether z ≤ "
            f"{limit:.2f}, exceeded by chance once in {1 / RARE:.0f}. held-out: log predictive density per wine held "
            f"out, log mean over draws, ± Monte Carlo standard error; − NUTS's: the difference, ± standard error over "
            f"the {len(self.test)} wines.",
            Column("kind", "guide", width=7),
            Column("base", "base", width=8),
            Column("seed", "seed", "d", 4),
            Column("uneven", "uneven", ".4f", 6),
            Column("p", "p", ".3f", 5),
            Column("even", "even", width=6),
            Column("z", "z", ".1f", 5),
            Column("sd", "sd", ".2f", 5),
            Column("near", "near", width=6),
            Column("held_out", "held-out", ".3f", 8),
            Column("held_out_se", "± SE", ".3f", 5),
            Column("worse", "− NUTS's", ".3f", 8),
            Column("worse_se", "± SE", ".3f", 5),
        )
        truth = pe.canonicalize(chains, self.symmetry)
        mean, deviation = truth["loc"].mean((0, 1)), truth["loc"].flatten(0, 1).std(0)
        own_error = _mcse(truth["loc"])
        reference, flat = self._held_out({name: value.flatten(0, 1) for name, value in chains.items()})
        influence = (flat - reference).exp().mean(1).reshape(len(CHAINS), SAMPLES)
        table.add(kind="NUTS", uneven=self._uneven(chains, truth)[0], held_out=float(reference.mean()),
                  held_out_se=float(_mcse(influence)))  # fmt: skip
        for (kind, base, seed), draws in self.draws.items():
            moved = pe.canonicalize(draws, self.symmetry, reference=truth_of(truth))
            difference = (moved["loc"].mean(0) - mean).abs()
            z = difference / (own_error.square() + moved["loc"].var(0) / DRAWS).sqrt()
            held_out, each = self._held_out(draws)
            row = {
                "kind": kind, "base": base, "seed": seed, "z": float(z.max()),
                "sd": float((difference / deviation).max()), "near": aim(bool(z.max() <= limit)),
                "held_out": float(held_out.mean()), "held_out_se": error((each - held_out).exp().mean(1)),
                "worse": float((held_out - reference).mean()), "worse_se": error(held_out - reference),
            }  # fmt: skip
            row["uneven"], p = self._uneven(draws, truth)
            if kind == "mixture":
                row |= {"p": p, "even": aim(p > 0.001)}
            table.add(**row)

    def _held_out(self, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``log p(x | data)`` of each wine held out, and ``log p(x | θ)`` for each draw as well."""
        law = _likelihood(draws["weights"][:, None], draws["loc"], draws["scale"])
        each = law.log_prob(self.test)
        return each.logsumexp(0) - math.log(len(each)), each

    def _uneven(self, draws: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, float]:
        from scipy.stats import chisquare

        counts = self._elements(draws, truth).flatten().bincount(minlength=LABELLINGS)
        share = counts / counts.sum()
        return float((share - 1 / LABELLINGS).abs().max()), float(chisquare(counts.numpy()).pvalue)

    def _elements(self, draws: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
        return pe.canonical_elements(draws, self.symmetry, reference=truth_of(truth))

    def _rhat_table(self, chains: dict[str, Tensor]) -> None:
        table = self.report.table(
            "R-hat of four runs",
            f"Largest az.rhat (rank-normalised, split) over means, scales and weights; chains: NUTS with seeds "
            f"{CHAINS}, {SAMPLES} draws each, or {CHAIN:,} draws of each of four SVI runs with decayed rate, of the "
            f"same seeds. labellings: where each run is (the element that takes it to a common reference, or how many "
            f"of the six it visits); seeds were fixed beforehand. match, order: after pe.canonicalize. Aims: raw above "
            f"1.5 where runs may stay in one labelling, both others below 1.05.",
            Column("source", "runs", width=20),
            Column("labellings", "labellings", width=24),
            Column("raw", "raw", ".4f", 8),
            Column("match", "match", ".4f", 8),
            Column("order", "order", ".4f", 8),
            Column("verdict", "aim", width=6),
        )
        truth = pe.canonicalize(chains, self.symmetry)
        sources = {"NUTS": chains}
        for name, kind in (("AutoNormal", "Pyro"), ("AutoOrbitMixture", "mixture")):
            runs = [self.draws[kind, "diagonal", seed] for seed in CHAINS]
            sources[name] = {site: torch.stack([run[site][:CHAIN] for run in runs]) for site in runs[0]}
        for name, draws in sources.items():
            raw = _rhat(draws)
            match, order = (_rhat(pe.canonicalize(draws, self.symmetry, method=m)) for m in ("match", "order"))
            visited = [chain.unique().tolist() for chain in self._elements(draws, truth)]
            single = all(len(chain) == 1 for chain in visited)
            places = " ".join(self._name(chain[0]) if len(chain) == 1 else f"{len(chain)} of 6" for chain in visited)
            met = max(match, order) < 1.05 and (raw > 1.5 or not single)
            table.add(source=name, labellings=places, raw=raw, match=match, order=order, verdict=aim(met))

    def _name(self, g: int) -> str:
        return "".join(str(i) for i in self.symmetry.group.permutations(torch.tensor(g)).tolist())


def truth_of(draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of matched draws by chain."""
    return {name: value.mean((0, 1)) for name, value in draws.items()}


def _mcse(values: Tensor) -> Tensor:
    """``az.mcse`` of the mean of ``(chain, draw, *entries)``."""
    import arviz as az

    return torch.as_tensor(az.mcse(az.convert_to_dataset({"value": values.numpy()}))["value"].values)


def _rhat(draws: dict[str, Tensor]) -> float:
    import arviz as az

    found = az.rhat(az.convert_to_dataset({name: value.numpy() for name, value in draws.items()}))
    return max(float(found[name].max()) for name in found)
