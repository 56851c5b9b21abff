"""The study ``samples``: the measured defect against the number of posterior draws, with fitted slopes."""

import functools
from dataclasses import dataclass

import torch
from pyro.infer import TraceMeanField_ELBO

from ..data import ImageData
from ..errors import OptionError
from ..guides import AutoSymmetricNormal
from ..handlers import augment
from ..metrics import DefectSweep, defect_sweep, deviation, sample_size
from ..training import fit
from .study import Setup, StudyConfig, make_setup, option, orbit_draws, over_seeds, row_printer, shuffled

WORDS = "the defect against the number of draws, biased and unbiased"
DELTA = 0.05
DEFINITIONS = {
    "posterior": "baseline: mean-field Normal from a random start, trained with random rotations; symmetric: "
    "AutoSymmetricNormal, trained upright, invariant for every value of its parameters",
    "seed": "of the order of the data, the start, the training and the draws",
    "draws": "T, posterior draws of one evaluation",
    "biased": "mean over K evaluations from fresh draws each of the plug-in defect mean over x, g of |F(gx) - F(x)|^2, "
    "g = e included; draws independent for each g",
    "biased_se": "standard error of that mean, spread / sqrt(K)",
    "biased_spread": "standard deviation over the K evaluations",
    "unbiased": "the same of the U-statistic, draws common to the orbit; needs T >= 2",
    "unbiased_se": "standard error of that mean",
    "unbiased_spread": "standard deviation over the K evaluations",
    "excess": "biased less the reference: 0 for symmetric, the unbiased mean at the largest T for baseline",
    "deviation": "the (1 - delta)-quantile over the K evaluations of |unbiased - its mean|, delta = 0.05",
    "bound": "deviation that no posterior exceeds with probability 1 - delta, sqrt(16 log(2/delta) / T)",
}
FITS = {
    "excess_slope": "d log excess / d log T of the biased estimate, theory -1; and its standard error",
    "spread_slope": "d log spread / d log T of the unbiased estimate, theory -1/2 where the defect dominates, -1 for "
    "an invariant posterior; and its standard error",
    "drift": "d mean / d log T of the unbiased estimate, theory 0; and its standard error",
}


@dataclass(frozen=True)
class SamplesConfig(StudyConfig):
    """What :func:`run` depends on."""

    train_size: int = option(200, "training images")
    epochs: int = option(100, "passes over the training images")
    width: int = option(16, "hidden units, a multiple of 4")
    kl_weight: float = option(0.01, "weight of the KL in training")
    images: int = option(20, "test images whose orbits the defect is a mean over")
    repeats: int = option(100, "K, re-evaluations")
    sizes: tuple[int, ...] = option((4, 8, 16, 32, 64, 128), "numbers of draws, separated by commas")

    def __post_init__(self):
        super().__post_init__()
        if list(self.sizes) != sorted({*self.sizes}) or not 1 <= min(self.sizes, default=0) < max(
            self.sizes, default=0
        ):
            raise OptionError(f"Expected --sizes to be increasing numbers of draws, at least two; got {self.sizes}.")
        if self.repeats < 3:
            raise OptionError(f"Expected --repeats, of which a spread is taken, to be at least 3; got {self.repeats}.")

    def small(self) -> dict:
        return {"train_size": 20, "epochs": 3, "width": 4, "images": 5, "repeats": 5, "sizes": (1, 2, 4)}


def run(config: SamplesConfig, data: ImageData) -> dict:
    """Train both posteriors with each seed and sweep over the number of draws."""
    rows, fits = [], []
    show = row_printer((("posterior", -10, ""), ("seed", 4, "d"), ("draws", 6, "d"), ("biased", 10, ".2e"),
                        ("excess", 10, ".2e"), ("unbiased", 10, ".2e"), ("unbiased_spread", 16, ".1e")))  # fmt: skip
    for seed in config.seeds:
        x, y = shuffled(data, seed, config.train_size + config.images)
        train, test = (x[: config.train_size], y[: config.train_size]), x[-config.images :]
        for name, train_one in (("baseline", _baseline), ("symmetric", _symmetric)):
            setup, guide = train_one(config, train, data.classes, seed)
            sweep = defect_sweep(functools.partial(orbit_draws, setup, guide, test), config.sizes, config.repeats,
                                 reference=0.0 if name == "symmetric" else None)  # fmt: skip
            for row in _rows(sweep, name, seed):
                rows.append(row)
                show(row)
            fits.append(_fits(sweep, name, seed))
    summary = [_summary(fits, name) for name in ("baseline", "symmetric")]
    print()
    for s in summary:
        print(f"{s['posterior']:<10} " + ", ".join(_words(s, name) for name in FITS))
    return {"fit_definitions": FITS, "rows": rows, "fits": fits, "summary": summary,
            "sample_size": [{"epsilon": e, "delta": DELTA, "draws": sample_size(e, DELTA)}
                            for e in (1.0, 0.3, 0.1, 0.03, 0.01)]}  # fmt: skip


def _words(summary: dict, name: str) -> str:
    return f"{name} {summary[name]['mean']:.3g} ± {summary[name]['sd']:.1g} over seeds"


def _rows(sweep: DefectSweep, posterior: str, seed: int) -> list[dict]:
    values = sweep.unbiased.values
    away = (values - values.mean(1, keepdim=True)).abs().quantile(1 - DELTA, 1)
    return [
        {"posterior": posterior, "seed": seed, **row, "deviation": away[i].item(),
         "bound": deviation(row["draws"], DELTA) if row["draws"] > 1 else float("nan")}
        for i, row in enumerate(sweep.rows())
    ]  # fmt: skip


def _fits(sweep: DefectSweep, posterior: str, seed: int) -> dict:
    found = {"posterior": posterior, "seed": seed}
    for name in FITS:
        fitted = getattr(sweep, name)
        found |= {name: fitted.value, f"{name}_se": fitted.se, f"{name}_left_out": fitted.left_out}
    return found


def _summary(fits: list[dict], posterior: str) -> dict:
    own = [f for f in fits if f["posterior"] == posterior]
    return {"posterior": posterior} | {name: over_seeds([f[name] for f in own]) for name in FITS}


def _baseline(config: SamplesConfig, train, classes: int, seed: int) -> tuple[Setup, object]:
    setup = make_setup(*train, classes, config.width, seed)
    guide = setup.guide(train, invariant=False)
    _train(config, augment(setup.model, setup.symmetry, orbit="random"), guide, train, seed)
    return setup, guide


def _symmetric(config: SamplesConfig, train, classes: int, seed: int) -> tuple[Setup, object]:
    setup = make_setup(*train, classes, config.width, seed)
    guide = AutoSymmetricNormal(setup.model, setup.symmetry)
    _train(config, setup.model, guide, train, seed)
    return setup, guide


def _train(config: SamplesConfig, model, guide, train, seed: int) -> None:
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    fit(model, guide, train, config.epochs, min(50, len(train[0])), adam, kl_weight=config.kl_weight,
        loss=TraceMeanField_ELBO(), seed=seed, progress=False)  # fmt: skip
