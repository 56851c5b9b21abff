"""The study ``affine``: which moves of an image each way of learning their widths finds."""

import functools
import math
import time
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn

from ..data import ImageData
from ..errors import DataError
from ..generators import Generators
from ..guides import AutoMeanFieldNormal
from ..handlers import augment
from ..learned.affine import AffineAugmenter
from ..measures import LieBox
from ..networks import BayesianNetwork
from ..networks.priors import FanIn
from ..prediction import predict
from ..representations import image
from ..symmetry import Symmetry
from ..training import fit
from .study import StudyConfig, option, over_seeds, row_printer, shuffled, small_network

WORDS = "widths of the affine moves, learned with and without an Occam factor"
RADII, SPREAD = (0.25, 0.6), 0.2  # of the blobs' centres in the task distance, and the blobs' standard deviation
BLOBS, DIGITS = ("distance", "direction"), ("turned", "upright")
CLASSES, PADDING, BATCH = 4, 2, 100  # of the digits: 0 to 3, pixels around them, images of one step
FORMS = {  # likelihood of the ELBO and the weight of its KL; or the weight of the bonus, of a network's loss
    "ELBO, predictive": ("predictive", 1.0),
    "ELBO, mean": ("mean", 1.0),
    "almost no KL": ("predictive", 1e-3),
    "loss, no bonus": (None, 0.0),
    "loss, bonus": (None, 0.01),
}
LOSSES = [form for form, (likelihood, _) in FORMS.items() if likelihood is None]
DEFINITIONS = {
    "task": "images of one round blob. distance: the class is its distance from the centre, 0.25 or 0.6 half widths, "
    "its direction uniform; direction: the class is its direction, 17° or 107°, its distance uniform from 0.2 to 0.7. "
    "Classes 0 to 3 of the data, 2 pixels of 0 around them: turned by a uniform angle, or upright",
    "form": "ELBO, predictive: E_q[log (1/K) sum_k p(y | g_k x)] - KL, mean-field Normal weights; ELBO, mean: the "
    "mean outside the logarithm; almost no KL: the first with KL weight 0.001; loss, no bonus: the mean over draws of "
    "the cross-entropy of a network; loss, bonus: that less 0.01 |widths|. Both losses also for the digits",
    "seed": "of images, start, training and draws",
    "rotate": "learned width, radians, at most pi",
    "translate_x": "learned width, half widths of the image, at most 2; likewise translate_y",
    "translate_y": "as translate_x",
    "scale": "learned width, log factor, at most 2; likewise stretch and shear",
    "stretch": "as scale",
    "shear": "as scale",
    "rotation": "yes if the width of rotate is at least pi / 2: half of all turns or more",
    "translation": "yes if the width of a translation is more than one pixel",
    "pixel": "2 / side, in half widths; digits with their padding",
    "objective": "what is minimised, nats per image, KL and bonus included: mean over the last 50 steps",
    "accuracy": "on other images, mean probabilities over draws of weights and moves",
    "seconds": "wall-clock seconds of the training",
}
WIDTHS = ("rotate", "translate_x", "translate_y", "scale", "stretch", "shear")


@dataclass(frozen=True)
class AffineConfig(StudyConfig):
    """What :func:`run` depends on."""

    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "numbers separated by commas; each draws its own images and start")
    train_size: int = option(64, "training images of blobs")
    digits: int = option(400, "training images of digits, 100 of them in a step")
    images: int = option(500, "other images, of the accuracy; digits at most")
    side: int = option(12, "pixels along a side, of blobs")
    width: int = option(16, "tanh units, a multiple of 4")
    steps: int = option(400, "of Adam")
    draws: int = option(8, "K, moves drawn for each image and step")
    start: float = option(0.5, "of all six widths")
    rate: float = option(0.03, "of Adam, falling to 0 over the second half")

    def small(self) -> dict:
        return {"train_size": 8, "digits": 8, "images": 8, "side": 4, "width": 4, "steps": 2, "draws": 2}


def run(config: AffineConfig, data: ImageData) -> dict:
    """Learn the widths of every task with its forms and seeds."""
    rows = []
    show = row_printer((("task", -9, ""), ("form", -16, ""), ("seed", 4, "d"), *((name, 11, ".3f") for name in WIDTHS),
                        ("rotation", 8, ""), ("translation", 11, ""), ("accuracy", 8, ".3f"),
                        ("seconds", 7, ".1f")))  # fmt: skip
    settings = [(task, form) for task in (*BLOBS, *DIGITS) for form in FORMS if task in BLOBS or form in LOSSES]
    for task, form in settings:
        for seed in config.seeds:
            rows.append({"task": task, "form": form, "seed": seed, **_one(config, data, task, form, seed)})
            show(rows[-1])
    summary = [_summary(rows, task, form) for task, form in settings]
    print("\nwidths over seeds, mean ± standard deviation, and the number of seeds that find rotation, translation")
    for s in summary:
        shift = f"{_spread(s['translate_x'])} and {_spread(s['translate_y'])}"
        print(f"{s['task']:<9} {s['form']:<16} rotate {_spread(s['rotate'])}, translate {shift}, found "
              f"{s['rotation']} and {s['translation']} of {s['seeds']}")  # fmt: skip
    return {"rows": rows, "summary": summary}


def blobs(task: str, count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of one blob each, ``(count, 1, side, side)``, and their classes; see ``DEFINITIONS``."""
    y = torch.randint(2, (count,), generator=generator)
    free = torch.rand(count, generator=generator, dtype=torch.float64)
    if task == "distance":
        away, angle = torch.tensor(RADII, dtype=torch.float64)[y], 2 * math.pi * free
    else:
        away, angle = 0.2 + 0.5 * free, 0.3 + math.pi / 2 * y
    places = (2 * torch.arange(side, dtype=torch.float64) + 1 - side) / side
    right, down = away * angle.cos(), -away * angle.sin()
    across = torch.exp(-(places - right[:, None]).square() / (2 * SPREAD**2))
    along = torch.exp(-(places - down[:, None]).square() / (2 * SPREAD**2))
    return (along[:, :, None] * across[:, None, :])[:, None], y


def digits(config: AffineConfig, data: ImageData, turned: bool, seed: int):
    """Training and other images of the first classes, each turned by an angle of its own or all upright."""
    x, y = shuffled(data, seed, config.digits + 1)
    x, y = nn.functional.pad(x[y < CLASSES], [PADDING] * 4), y[y < CLASSES]
    if len(x) <= config.digits:
        raise DataError(f"Expected more than --digits images of classes 0 to 3, {config.digits:,}; got {len(x):,}.")
    if turned:
        law = LieBox(Generators.so(2), math.pi)
        x = image(law, x.shape[1:], interpolation="bilinear").act(law.sample((len(x),)), x)
    x, y = x[: config.digits + config.images], y[: config.digits + config.images]
    return (x[: config.digits], y[: config.digits]), (x[config.digits :], y[config.digits :])


def _images(config: AffineConfig, data: ImageData, task: str, seed: int):
    if task in DIGITS:
        return digits(config, data, task == "turned", seed)
    draws = torch.Generator().manual_seed(seed)
    return tuple(blobs(task, count, config.side, draws) for count in (config.train_size, config.images))


def _one(config: AffineConfig, data: ImageData, task: str, form: str, seed: int) -> dict:
    """One training: the learned widths, what they count as, and the accuracy."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    train, test = _images(config, data, task, seed)
    side, start = train[0].shape[-1], time.perf_counter()
    net = small_network(train[0].shape[1:], CLASSES if task in DIGITS else 2, config.width)
    augmenter = AffineAugmenter(config.start).double()
    likelihood, weight = FORMS[form]
    train_one = train_network if likelihood is None else functools.partial(train_posterior, likelihood=likelihood)
    losses, probabilities = train_one(config, net, augmenter, train, weight=weight, seed=seed)
    seconds = time.perf_counter() - start
    widths = {name.replace(" ", "_"): width for name, width in augmenter.widths.items()}
    return {
        **{name: widths[name] for name in WIDTHS},
        "rotation": "yes" if widths["rotate"] >= math.pi / 2 else "no",
        "translation": "yes" if max(widths["translate_x"], widths["translate_y"]) > 2 / side else "no",
        "pixel": 2 / side,
        "objective": sum(losses[-50:]) / len(losses[-50:]),
        "accuracy": float((probabilities(test[0]).argmax(-1) == test[1]).double().mean()),
        "seconds": seconds,
    }


def train_posterior(config: AffineConfig, net, augmenter: AffineAugmenter, data, likelihood: str, weight: float,
                    seed: int):  # fmt: skip
    """Mean-field Normal weights and the widths, by one ELBO: its path, and a function that predicts."""
    moves = Symmetry(augmenter, {}, inputs=image(augmenter, data[0].shape[1:], interpolation="bilinear"))
    model = BayesianNetwork(net, prior=FanIn(gain=4.0, bias=4.0), size=len(data[0]))
    guide = AutoMeanFieldNormal(model, init_scale=0.1)
    fitted = fit(
        augment(model, moves, orbit=config.draws, likelihood=likelihood),
        guide,
        data,
        epochs=config.steps,
        optimizer=functools.partial(torch.optim.Adam, lr=config.rate, betas=(0.9, 0.99)),
        scheduler=functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=functools.partial(_falling, config)),
        kl_weight=weight,
        seed=seed,
        progress=False,
    )

    def probabilities(x: Tensor) -> Tensor:
        return augmenter.average(lambda moved: predict(model, guide, moved, 20).mean(0), x, 8)

    return fitted.history["loss"], torch.no_grad()(probabilities)


def train_network(config: AffineConfig, net, augmenter: AffineAugmenter, data, weight: float, seed: int):
    """The weights of a network and the widths, by the loss with a bonus: its path, and a function that predicts."""
    optimizer = torch.optim.Adam([*net.parameters(), *augmenter.parameters()], lr=config.rate, betas=(0.9, 0.99))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_falling, config))
    losses = []
    for _ in range(config.steps):
        optimizer.zero_grad()
        rows = torch.randperm(len(data[0]))[:BATCH]
        loss = augmenter.loss(net, data[0][rows], data[1][rows], draws=config.draws, bonus=weight)
        loss.backward()
        optimizer.step()
        rates.step()
        losses.append(loss.item())
    return losses, torch.no_grad()(lambda x: augmenter.average(lambda moved: net(moved).softmax(-1), x, 32))


def _falling(config: AffineConfig, step: int) -> float:
    return min(1.0, 2 * (1 - step / config.steps))


def _summary(rows: list[dict], task: str, form: str) -> dict:
    own = [r for r in rows if (r["task"], r["form"]) == (task, form)]
    found = {name: sum(r[name] == "yes" for r in own) for name in ("rotation", "translation")}
    widths = {name: over_seeds([r[name] for r in own]) for name in (*WIDTHS, "accuracy")}
    return {"task": task, "form": form, "seeds": len(own), **found, **widths}


def _spread(found: dict) -> str:
    spread = f" ± {found['sd']:.3f}" if math.isfinite(found["sd"]) else ""  # of one seed there is none
    return f"{found['mean']:.3f}{spread}"
