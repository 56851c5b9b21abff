"""The study ``augmenters``: generators learned with a network, on tasks whose symmetry is known and on one without."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import ImageData
from ..generators import Generators
from ..learned.fit import LearnedAugmentation, learn_augmentation
from ..learned.lie import LieAugmenter, default_loss
from ..learned.verdict import averaged
from ..measures import LieBox
from ..representations import image
from .study import StudyConfig, option, over_seeds, row_printer, shuffled

WORDS = "generators learned with a network: the angle to the true ones, test errors, and whether a symmetry holds"
NOISE, POINTS = 0.1, 3  # standard deviation of the noise on the standardised target; points of a cloud
DEFINITIONS = {
    "task": "plane: y = sin 3|x|; boost: y = 2s / (1 + s^2), s = t^2 - x^2; scale: y = sin 2a + cos(3a)/2, a "
    "the angle of x; clouds: 3 points in space, y a sum of four functions of their Gram matrix; digits: each image "
    "turned by a uniform angle, bilinear; none: y = sin 2x + x cos(1.5 y + 0.5); noisy: the same, fewer data, noise of "
    "1.5 and all divided by 1.8. Points are standard normal, targets standardised, then noise of standard deviation "
    "0.1 added",
    "seed": "of the data, the network's start, the first basis and the training",
    "angle": "largest principal angle between the learned span and the true one, degrees",
    "closure": "of the learned span under brackets, 0 for a Lie algebra, at most 1",
    "learned": "test error under the learned augmentation, predictions averaged over --test-draws elements: mean "
    "squared error against noisy targets; digits: share of wrong classes, probabilities averaged",
    "true": "the same with the generators fixed to the true ones, all else alike (same widths and start)",
    "plain": "the same network trained as many steps without augmentation, no averaging",
    "difference": "mean validation loss with the learned augmentation less without (squared error; digits: nats)",
    "difference_se": "its standard error over the validation data, paired",
    "control": "mean validation loss with the learned augmentation less that under random generators, as many, of the "
    "same widths, at right angles to the learned ones, kept while the same network is trained",
    "control_se": "its standard error, paired",
    "deviation": "E|f(gx) - f(x)|^2 / (2 E|f - E f|^2) of the plain network f, g learned",
    "verdict": "does not hold: difference above two standard errors; undecided: else, and control not below minus two; "
    "helps: else, and difference below minus two; holds: else",
    "seconds": "wall-clock seconds of the four trainings",
}
SUMMARIZED = ("angle", "closure", "learned", "true", "plain", "difference", "control", "deviation")


@dataclass(frozen=True)
class AugmentersConfig(StudyConfig):
    """What :func:`run` depends on."""

    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "numbers separated by commas; each draws its own data and start")
    plane_size: int = option(200, "training points of the tasks in the plane")
    noisy_size: int = option(100, "training points of the task noisy")
    cloud_size: int = option(1000, "training clouds")
    image_size: int = option(600, "training images")
    validation: int = option(300, "data for the verdict")
    test: int = option(890, "test data")
    steps: int = option(1500, "optimizer steps")
    draws: int = option(4, "elements for each input and step")
    test_draws: int = option(32, "elements of a prediction")
    hidden: int = option(64, "units of each of the two hidden layers")
    starts: int = option(64, "random bases that the search starts from")
    equivariance: float = option(1.0, "weight of that term of the loss")

    def small(self) -> dict:
        return {"plane_size": 20, "noisy_size": 10, "cloud_size": 20, "image_size": 20, "validation": 10,
                "test": 10, "steps": 6, "draws": 2, "test_draws": 2, "hidden": 8}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Data with a known symmetry, or with none.

    :param Generators known: the true generators; ``None`` where there are none.
    :param int n: the dimension of the points.
    :param float width: of the augmenter.
    :param Callable target: from points ``(N, *event)`` to targets ``(N,)``; ``None`` for the images.
    :param float noise: standard deviation of what is added to the standardised target.
    :param float unit: what the two are divided by.
    """

    known: Generators | None
    n: int
    width: float
    target: Callable[[Tensor], Tensor] | None
    noise: float = NOISE
    unit: float = 1.0


def of_interval(x: Tensor) -> Tensor:
    """A function of ``t² − x²``, ``(N, 2)`` to ``(N,)``."""
    s = x[:, 0].square() - x[:, 1].square()
    return 2 * s / (1 + s.square())


def of_direction(x: Tensor) -> Tensor:
    """A function of the direction of ``x``, ``(N, 2)`` to ``(N,)``."""
    angle = torch.atan2(x[:, 1], x[:, 0])
    return (2 * angle).sin() + 0.5 * (3 * angle).cos()


def of_gram(x: Tensor) -> Tensor:
    """A function of the Gram matrix of three points, ``(N, 3, 3)`` to ``(N,)``.

    >>> x, turned = torch.eye(3)[None], torch.eye(3)[None, :, [1, 2, 0]]
    >>> torch.equal(of_gram(x), of_gram(turned))
    True
    """
    gram = x @ x.mT
    first, last = gram[:, 0, 0].sqrt(), gram[:, 2, 2].sqrt()
    return gram[:, 0, 1].sin() + 0.5 * gram[:, 1, 2].tanh() + 0.5 * (1.5 * first).cos() + 0.3 * (1.5 * last).sin()


def of_place(x: Tensor) -> Tensor:
    """A function of the plane without a symmetry, ``(N, 2)`` to ``(N,)``."""
    return (2 * x[:, 0]).sin() + x[:, 0] * (1.5 * x[:, 1] + 0.5).cos()


TASKS = {
    "plane": Task(Generators.so(2), 2, 1.0, lambda x: (3 * x.norm(dim=1)).sin()),
    "boost": Task(Generators.lorentz(), 2, 1.0, of_interval),
    "scale": Task(Generators.scale(2), 2, 1.0, of_direction),
    "clouds": Task(Generators.so(3), 3, 1.0, of_gram),
    "digits": Task(Generators.so(2), 2, 2.0, None),
    "none": Task(None, 2, 1.0, of_place),
    "noisy": Task(None, 2, 1.0, of_place, noise=1.5, unit=1.8),
}


def run(config: AugmentersConfig, data: ImageData) -> dict:
    """Learn the generators of every task with each seed, beside the true ones and no augmentation."""
    show = row_printer((("task", -7, ""), ("seed", 4, "d"), ("angle", 6, ".2f"), ("closure", 7, ".3f"),
                        ("learned", 8, ".4f"), ("true", 8, ".4f"), ("plain", 8, ".4f"), ("difference", 10, ".3f"),
                        ("difference_se", 13, ".3f"), ("control", 7, ".3f"), ("control_se", 10, ".3f"),
                        ("deviation", 9, ".3f"), ("verdict", 13, ""),
                        ("seconds", 7, ".1f")))  # fmt: skip
    rows, found = [], {}
    for name, task in TASKS.items():
        for seed in config.seeds:
            row, generators = one_run(config, data, name, task, seed)
            rows.append(row)
            found.setdefault(name, []).append(generators.basis.tolist())
            show({name: None if value != value else value for name, value in row.items()})
    summary = [summarized(rows, name) for name in TASKS]
    print("\nlargest angle; mean test error, learned over true and over plain; verdicts")
    for s in summary:
        known = "{largest_angle:5.2f}°  {over_true:.3f}".format(**s) if s["angle"]["seeds"] else " " * 13
        print("{task:<7} {known}  {over_plain:.3f}  {verdicts}".format(known=known, **s))
    return {"rows": rows, "summary": summary, "summary_definitions": SUMMARY, "generators": found}


SUMMARY = {
    "task": "as in the rows; the quantities of the rows with their spread over seeds",
    "largest_angle": "over seeds, degrees",
    "over_true": "mean test error with the learned augmentation over that with the true one",
    "over_plain": "and over that without augmentation",
    "verdicts": "how many seeds had which",
}


def one_run(config: AugmentersConfig, data: ImageData, name: str, task: Task, seed: int) -> tuple[dict, Generators]:
    """The row of a task and a seed, and the learned generators."""
    train, validation, test = make_data(config, data, name, task, seed)
    torch.manual_seed(seed)
    net = network(math.prod(train[0].shape[1:]), data.classes if task.target is None else 1, config.hidden)
    other = copy.deepcopy(net)
    count = 1 if task.known is None else len(task.known)
    weights = {"equivariance": config.equivariance}
    augmenter = LieAugmenter(task.n, count, task.width, weights=weights, seed=seed)
    options = {"steps": config.steps, "draws": config.draws, "starts": config.starts, "seed": seed}
    learned = learn_augmentation(net, augmenter, train, validation, **options)
    row = {"task": name, "seed": seed, "angle": math.nan, "closure": augmenter.generators.closure()}
    row["learned"] = error_of(learned.network, augmenter, test, config.test_draws, seed)
    row["true"], seconds = math.nan, learned.seconds
    if task.known is not None:
        row["angle"] = augmenter.generators.angle(task.known)
        fixed = LieAugmenter(task.n, task.known, task.width, weights=weights).requires_grad_(False)
        known = learn_augmentation(other, fixed, train, **options)
        row["true"] = error_of(known.network, fixed, test, config.test_draws, seed)
        seconds += known.seconds
    return row | _judged(learned, test) | {"seconds": seconds}, augmenter.generators


def _judged(learned: LearnedAugmentation, test: tuple[Tensor, Tensor]) -> dict:
    verdict = learned.verdict
    return {
        "plain": error_of(learned.plain, None, test, 1, 0),
        "difference": verdict.difference,
        "difference_se": verdict.se,
        "control": verdict.control,
        "control_se": verdict.control_se,
        "deviation": verdict.deviation,
        "verdict": verdict.word,
    }


def network(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """Two hidden layers.

    >>> network(2, 1, hidden=8)[1]
    Linear(in_features=2, out_features=8, bias=True)
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
                         nn.Linear(hidden, outputs))  # fmt: skip


def make_data(config: AugmentersConfig, data: ImageData, name: str, task: Task, seed: int) -> list:
    """Training, validation and test data, each a pair."""
    own = {"clouds": config.cloud_size, "digits": config.image_size, "noisy": config.noisy_size}
    size = own.get(name, config.plane_size)
    sizes = (size, config.validation, config.test)
    generator = torch.Generator().manual_seed(1000 + seed)
    x, y = _turned(data, seed, sizes) if task.target is None else _points(task, sum(sizes), generator)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def _turned(data: ImageData, seed: int, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images of root mean square 1, each turned by a uniform angle, and their labels."""
    x, y = shuffled(data, seed, sum(sizes))
    x, y = x[: sum(sizes)].to(torch.get_default_dtype()), y[: sum(sizes)]
    torch.manual_seed(seed)
    turns = LieBox(Generators.so(2), math.pi)
    x = image(turns, x.shape[1:], interpolation="bilinear").act(turns.sample((len(x),)), x)
    return x / x.square().mean().sqrt(), y


def _points(task: Task, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standard normal points and standardised targets with noise, ``(N, 1)``."""
    shape = (count, POINTS, 3) if task.n == 3 else (count, task.n)
    x = torch.randn(*shape, generator=generator)
    y = task.target(x)
    y = (y - y.mean()) / y.std() + task.noise * torch.randn(count, generator=generator)
    return x, y[:, None] / task.unit


@torch.no_grad()
def error_of(
    net: nn.Module, augmenter: LieAugmenter | None, data: tuple[Tensor, Tensor], draws: int, seed: int
) -> float:
    """Of predictions averaged over the measure, or of the network as it is: wrong classes, or squared error."""
    (x, y), classes = data, not data[1].is_floating_point()
    torch.manual_seed(seed)
    values = net(x) if augmenter is None else averaged(net, augmenter, x, classes, draws)
    return float((values.argmax(-1) != y).float().mean() if classes else default_loss(y)(values, y).mean())


def summarized(rows: list[dict], name: str) -> dict:
    """Over the seeds of one task."""
    own = [r for r in rows if r["task"] == name]
    means = {quantity: over_seeds([r[quantity] for r in own]) for quantity in SUMMARIZED}
    words = sorted({r["verdict"] for r in own})
    return {
        "task": name,
        "largest_angle": max(r["angle"] for r in own),
        "over_true": means["learned"]["mean"] / means["true"]["mean"],
        "over_plain": means["learned"]["mean"] / means["plain"]["mean"],
        "verdicts": ", ".join(f"{word} {sum(r['verdict'] == word for r in own)}" for word in words),
    } | means
