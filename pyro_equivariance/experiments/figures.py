"""The pictures of the studies of the theory: functions of what a study returns."""

from collections.abc import Mapping

import numpy as np

from .. import metrics
from ..plots.base import BLACK, BLUE, CYCLE, DASHES, GREEN, RED, Axes, Figure, Line2D, NullLocator, save, styled
from .affine_figures import affine
from .augmenters_figures import augmenters
from .breaking_figures import breaking
from .ensemble_figures import ensembles
from .generators_figures import generators
from .relaxed_figures import relaxed

__all__ = [
    "affine",
    "assumptions",
    "augmenters",
    "breaking",
    "certificate",
    "ensembles",
    "families",
    "generators",
    "priors",
    "relaxed",
    "samples",
    "save",
]

COLORS = {"exactly equivariant": BLUE, "in law only": GREEN, "not": RED}
FLOOR = 1e-34  # where a drift or defect of exactly 0 is drawn


@styled
def samples(result: Mapping) -> Figure:
    """The defect and its spread against T for both posteriors, and the sample size bound beside what is needed."""
    figure = Figure(figsize=(10, 4.4))
    left, middle, right = figure.subplots(1, 3)
    order = {"baseline": (RED, "D"), "symmetric": (BLUE, "o")}
    for name, (color, marker) in order.items():
        draws, excess, excess_se = _over_seeds(result, {"posterior": name}, "draws", "excess")
        left.errorbar(
            draws, excess, excess_se, fmt=marker, color=color, ms=4, capsize=2, label=f"{name}, biased − reference"
        )
        draws, unbiased, spread = _over_seeds(result, {"posterior": name}, "draws", "unbiased")
        label = f"{name}, unbiased" + (
            "" if name == "baseline" else f": {abs(unbiased[-1]):.0e} at the last, not drawn"
        )
        shown = unbiased if name == "baseline" else np.full_like(unbiased, np.nan)
        left.errorbar(draws, shown, spread, fmt=marker, mfc="white", color=color, ms=4, capsize=2, lw=1, label=label)
        draws, values, error = _over_seeds(result, {"posterior": name}, "draws", "unbiased_spread")
        middle.errorbar(draws, values, error, fmt=marker, color=color, ms=4, capsize=2, label=name)
        fitted = next(s for s in result["summary"] if s["posterior"] == name)["spread_slope"]["mean"]
        middle.plot(
            draws, _through(draws, values, fitted), "-", color=color, lw=0.9, label=f"fitted, slope {_signed(fitted)}"
        )
        _, away, error = _over_seeds(result, {"posterior": name}, "draws", "deviation")
        right.errorbar(away, draws, xerr=error, fmt=marker, color=color, ms=4, capsize=2, label=f"{name}, measured")
    _, first, _ = _over_seeds(result, {"posterior": "symmetric"}, "draws", "excess")
    left.plot(draws, _through(draws, first, -1), "-", color=BLACK, lw=0.7, label="slope −1")
    fine = np.geomspace(0.1, 1.5, 30)
    right.plot(
        fine, [metrics.sample_size(float(e), 0.05) for e in fine], color=BLACK, lw=1, label="bound, any posterior"
    )
    for ax in (left, middle):
        _log_draws(ax, draws)
        ax.set(yscale="log")
    left.set(title="mean over re-evaluations", ylabel="defect (squared probability difference)")
    middle.set(title="spread over re-evaluations, unbiased", ylabel="standard deviation of the defect")
    right.set(title="sample size, δ = 0.05", xscale="log", yscale="log", ylabel="posterior draws T",
              xlabel="deviation ε of the unbiased defect")  # fmt: skip
    for ax in (left, middle, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
    return figure


@styled
def priors(result: Mapping) -> Figure:
    """Defect and distances from invariance over the number of training images, for both priors and both models."""
    figure = Figure(figsize=(10, 3.6))
    axes = figure.subplots(1, 3)
    titles = {"defect": ("defect", "squared difference of outputs"),
              "natural_distance": ("natural parameters", "|η − gη| / |η|"),
              "mean_distance": ("means", "|μ − gμ| / |m − gm|, m the random prior's")}  # fmt: skip
    for ax, (column, (title, label)) in zip(axes, titles.items(), strict=True):
        for model, color, marker in (("classifier", BLUE, "o"), ("regression", RED, "D")):
            sizes, values, error = _over_seeds(result, {"model": model, "prior": "random"}, "train_size", column)
            fitted = next(s for s in result["summary"] if s["model"] == model)[column]["mean"]
            ax.errorbar(sizes, values, error, fmt=marker, color=color, ms=4, lw=1, capsize=2)
            ax.plot(sizes, _through(sizes, values, fitted), color=color, lw=0.9, label=f"slope {_signed(fitted)}")
        ax.set(xscale="log", yscale="log", title=title, ylabel=label, xlabel="training images N")
        ax.set_xticks(sizes, [f"{s:,.0f}" for s in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.legend(loc="lower left")
    marks = [Line2D([], [], color=BLUE, marker="o", ms=4, label="classifier, random prior"),
             Line2D([], [], color=RED, marker="D", ms=4, label="regression in closed form, random prior"),
             Line2D([], [], ls="", label="invariant prior, not drawn: defect at most "
                    f"{result['largest_defect_under_invariant_prior']:.0e}")]  # fmt: skip
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    return figure


@styled
def families(result: Mapping) -> Figure:
    """Objective, accuracy, defect and divergence of every family: each seed, and the mean over them."""
    figure = Figure(figsize=(10, 3.4))
    axes = figure.subplots(1, 4, sharey=True)
    settings = list(dict.fromkeys((r["family"], r["network"]) for r in result["rows"]))
    panels = (("objective", "nats per image"), ("orbit_accuracy", "fraction of moved copies"),
              ("defect", "squared probability difference"), ("divergence", "max KL(q | g q) (nats)"))  # fmt: skip
    guides = (("free", RED, "D", -0.14), ("symmetric", BLUE, "o", 0.14))
    for ax, (column, label) in zip(axes, panels, strict=True):
        for guide, color, marker, shift in guides:
            for place, setting in enumerate(settings):
                rows = [r for r in result["rows"] if (r["family"], r["network"], r["guide"]) == (*setting, guide)]
                values = [r[column] for r in rows]
                ax.plot(values, [place + shift] * len(values), marker, color=color, ms=4, mfc="none")
                ax.plot(np.mean(values), place + shift, "|", color=color, ms=11, mew=1.5)
        ax.set(title=column.replace("_", " "), xlabel=label)
    axes[2].set_xscale("symlog", linthresh=1e-3)
    axes[2].axvline(0, color="0.4", lw=0.8)
    axes[3].set_xscale("symlog", linthresh=1)
    axes[3].set(xlim=(-0.5, 1e6), xticks=(0, 1e2, 1e4, 1e6))
    axes[3].xaxis.set_minor_locator(NullLocator())
    axes[0].set_yticks(range(len(settings)), [f"{family}, {network}" for family, network in settings])
    axes[0].invert_yaxis()
    marks = [Line2D([], [], color=c, marker=m, mfc="none", ls="", ms=4, label=name) for name, c, m, _ in guides]
    marks.append(Line2D([], [], color=BLACK, marker="|", ls="", ms=11, mew=1.5, label="mean over seeds"))
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    return figure


@styled
def assumptions(result: Mapping) -> Figure:
    """The drift of each setting against training steps, one panel for each predicted outcome; 0 is drawn at 1e−34."""
    predicted = {r["setting"]: r["predicted"] for r in result["rows"]}
    outcomes = [o for o in COLORS if o in predicted.values()]
    figure = Figure(figsize=(10, 5.6))
    axes = np.atleast_1d(figure.subplots(1, len(outcomes), sharey=True))
    for ax, outcome in zip(axes, outcomes, strict=True):
        names = [n for n, o in predicted.items() if o == outcome]
        for i, name in enumerate(names):
            for j, path in enumerate(p for p in result["paths"] if p["setting"] == name):
                style = {"color": CYCLE[i % len(CYCLE)], "ls": DASHES[i // len(CYCLE) % len(DASHES)]}
                ax.plot(np.array(path["steps"]) + 1, np.maximum(path["drift"], FLOOR), lw=1, marker=".", ms=3,
                        label=None if j else name, **style)  # fmt: skip
        ax.axhline(1e-10, color="0.4", lw=0.8)
        ax.set(xscale="log", yscale="log", ylim=(FLOOR / 10, 1e5), title=f"predicted: {outcome}", xlabel="step + 1")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
    axes[0].set_ylabel("drift: max KL(q | g q) over g (nats)")
    axes[0].text(
        0.98, 3e-10, "exact below", transform=axes[0].get_yaxis_transform(), fontsize=8, ha="right", color="0.4"
    )
    return figure


@styled
def certificate(result: Mapping) -> Figure:
    """The certificate and the measured defect against the size of the perturbation."""
    figure = Figure(figsize=(7.6, 3.8))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, kind in zip(axes, ("one weight", "all weights"), strict=True):
        for column, color, marker in (("certificate", RED, "D"), ("largest", GREEN, "s"), ("defect", BLUE, "o")):
            for row in (r for r in result["rows"] if r["perturbed"] == kind and r["size"] > 0):
                ax.plot(row["size"], max(row[column], 1e-14), marker, color=color, ms=4, mew=0, alpha=0.7)
        ax.axhline(result["trivial_bound"], color=BLACK, lw=0.8, ls="--")
        ax.set(xscale="log", yscale="log", title=kind, xlabel="perturbation of the means (σ)")
    axes[0].set_ylabel("squared probability difference")
    labels = {"certificate": (RED, "D"), "worst image": (GREEN, "s"), "measured defect": (BLUE, "o")}
    marks = [Line2D([], [], color=c, marker=m, ls="", ms=4, label=name) for name, (c, m) in labels.items()]
    marks.append(Line2D([], [], color=BLACK, lw=0.8, ls="--", label="vacuous, 2(1 − 1/|G|)"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4)
    return figure


def _over_seeds(result: Mapping, fixed: Mapping, over: str, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values of ``over``, and mean and standard deviation over seeds of the column at each."""
    rows = [r for r in result["rows"] if all(r[k] == v for k, v in fixed.items())]
    places = sorted({r[over] for r in rows})
    values = [np.array([r[column] for r in rows if r[over] == place], dtype=float) for place in places]
    spread = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values]
    return np.array(places, dtype=float), np.array([v.mean() for v in values]), np.array(spread)


def _signed(number: float) -> str:
    return f"{number:.2f}".replace("-", "−")


def _through(draws: np.ndarray, values: np.ndarray, slope: float) -> np.ndarray:
    """The power law through the geometric middle of the points."""
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        return np.full_like(values, np.nan)
    level = np.log(values[known]).mean() - slope * np.log(draws[known]).mean()
    return np.exp(level + slope * np.log(draws))


def _log_draws(ax: Axes, draws: np.ndarray) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(draws, [f"{d:.0f}" for d in draws])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("posterior draws T")
