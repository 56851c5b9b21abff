"""What an experiment is: its configuration, and the data and networks that follow from it."""

import errno
import json
import math
import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..data import ImageData, Splits, load, split
from ..errors import DataError, OptionError, check_option
from ..groups import CyclicGroup, DihedralGroup, Group
from ..guides import FractionOfPrior
from ..networks import BayesianNetwork, FanIn, LearnedScale, network_symmetry
from ..representations import image
from ..symmetry import Symmetry

GROUPS = {
    "c2": partial(CyclicGroup, 2),
    "c4": partial(CyclicGroup, 4),
    "d2": partial(DihedralGroup, 2),
    "d4": partial(DihedralGroup, 4),
}

PRIORS = ("fan_in", "learned")
COUNTING = ("mean", "sum")  # the third convention, "predictive", needs the full orbit at every step


@dataclass(frozen=True)
class Config:
    """All that a comparison depends on; it is written with the results.

    Sizes are numbers of images; ``test_size=0`` takes all that is left, at most 1,000. ``width`` is the number of
    channels of the first layer, in ``len(group)`` blocks where they move. ``prior_gain`` and ``prior_bias`` are those
    of :class:`~pyro_equivariance.FanIn`, from which ``prior="learned"`` starts
    (:class:`~pyro_equivariance.LearnedScale`); ``init_scale`` is the fraction of the prior's scale that guides start
    with.
    """

    data: str = "digits"
    group: str = "c4"
    methods: tuple[str, ...] = ("all",)
    train_size: int = 1000
    validation_size: int = 200
    test_size: int = 0
    epochs: int = 120
    batch_size: int = 100
    seeds: tuple[int, ...] = (0,)
    kl_weight: float = 0.25
    kl_warmup: int = 0
    likelihood: str = "mean"
    learning_rate: float = 0.01
    width: int = 32
    prior: str = "fan_in"
    prior_gain: float = 3.0
    prior_bias: float = 0.1
    init_scale: float = 0.1
    draws: int = 100
    device: str = "cpu"
    threads: int = 1
    out: str = "results"

    def __post_init__(self):
        check_option("group", self.group, GROUPS)
        check_option("likelihood", self.likelihood, COUNTING)
        check_option("prior", self.prior, PRIORS)
        sizes = ("train_size", "validation_size", "batch_size", "width", "threads")
        positive = (*sizes, "kl_weight", "learning_rate", "prior_gain", "prior_bias", "init_scale")
        for name in positive:
            if not 0 < getattr(self, name) < 2**31:
                raise OptionError(f"Expected --{name.replace('_', '-')} to be positive; got {getattr(self, name)}.")
        if self.kl_warmup < 0:
            raise OptionError(f"Expected --kl-warmup to be at least 0; got {self.kl_warmup}.")
        if self.test_size < 0 or self.threads > 1024:
            raise OptionError(
                f"Expected --test-size at least 0 and --threads at most 1024; got {self.test_size} and {self.threads}."
            )
        if any(not 0 <= seed < 2**32 for seed in self.seeds):
            raise OptionError(f"Expected --seeds between 0 and 2**32 - 1; got {', '.join(map(str, self.seeds))}.")
        if self.epochs < 2 or self.draws < 3:
            raise OptionError(
                f"Expected at least 2 epochs (one-shot methods act half way) and 3 draws (for a jackknife error); "
                f"got {self.epochs} and {self.draws}."
            )
        if not self.methods:
            raise OptionError("Expected --methods to name at least one; got none.")
        _check_device(self.device)
        if not self.seeds:
            raise OptionError("Expected at least one seed; got none.")
        if self.width % len(GROUPS[self.group]()):
            raise OptionError(
                f"Expected --width to be a multiple of {len(GROUPS[self.group]())}, the order of {self.group}; "
                f"got {self.width}."
            )

    def smoke(self) -> "Config":
        """The same comparison made as small as it can be, to see that all of it runs; its numbers mean nothing."""
        return replace(self, train_size=100, validation_size=50, test_size=100, epochs=4, batch_size=50,
                       seeds=self.seeds[:1], width=8, draws=10)  # fmt: skip

    def as_dict(self) -> dict:
        """For JSON: tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Problem:
    """The data of one seed, on the device, and the models and symmetries that fit them."""

    config: Config
    group: Group
    splits: Splits
    classes: int

    @property
    def input_shape(self) -> torch.Size:
        return self.splits.train[0].shape[1:]

    def network(self, width: int) -> nn.Module:
        """A convolutional network with ``width`` channels in its first layer."""
        return convolutional_network(self.input_shape, self.classes, width)

    def model(self, net: nn.Module) -> BayesianNetwork:
        """The network's Pyro model, with the prior of the configuration and the size of the training set."""
        fixed = FanIn(self.config.prior_gain, self.config.prior_bias)
        prior = LearnedScale(fixed) if self.config.prior == "learned" else fixed
        return BayesianNetwork(net, prior, size=len(self.splits.train[1])).to(self.config.device)

    def symmetry(self, net: nn.Module, hidden: str) -> Symmetry:
        """The network's symmetry, confirmed on random weights."""
        symmetry = network_symmetry(net, self.group, self.input_shape, hidden)
        symmetry.check(net)
        return symmetry

    @property
    def inputs(self) -> Symmetry:
        """The action on images alone: what predictions over an orbit need."""
        return Symmetry(self.group, {}, inputs=image(self.group, self.input_shape))

    @property
    def start(self) -> dict:
        """How every guide starts: at the network's own values, with a fraction of the prior's scale."""
        return {"init_scale": FractionOfPrior(self.config.init_scale)}


def make_problem(config: Config, data: ImageData, seed: int) -> Problem:
    """Split the data with the seed and put the parts on the device.

    :raises DataError: for images that are not square or splits that do not fit.
    """
    group = GROUPS[config.group]()
    left = len(data) - config.train_size - config.validation_size
    test = config.test_size or max(min(left, 1000), 0)
    parts = split(data, config.train_size, config.validation_size, test, seed=seed)
    moved = [(x.to(config.device), y.to(config.device)) for x, y in (parts.train, parts.validation, parts.test)]
    return Problem(config, group, Splits(*moved), data.classes)


def load_data(config: Config) -> ImageData:
    """The images of the configuration, checked to be square where the group turns them by 90°."""
    data = load(config.data)
    height, width = data.images.shape[-2:]
    if height != width and config.group in ("c4", "d4"):
        raise DataError(
            f"Expected square images for the group {config.group!r}; those of {config.data!r} are {height} × {width}. "
            f"Crop or pad them, or use --group c2 or d2."
        )
    return data


def convolutional_network(input_shape, classes: int, width: int) -> nn.Module:
    """Convolutions and poolings down to at most 7 × 7, one convolution over what is left, and a linear layer.

    Sizes stay even before each pooling (an odd size is first made even by a 4 × 4 kernel with padding 1), so that
    rotations commute with all of it. Weights start by He et al. (2015), biases at 0.

    :param input_shape: ``(C, H, W)``.

    >>> convolutional_network((1, 8, 8), classes=10, width=4)
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
      (1): ReLU()
      (2): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
      (3): Conv2d(4, 8, kernel_size=(4, 4), stride=(1, 1))
      (4): ReLU()
      (5): Flatten(start_dim=1, end_dim=-1)
      (6): Linear(in_features=8, out_features=10, bias=True)
    )
    """
    channels, *space = input_shape
    layers: list[nn.Module] = []
    while max(space) > 7:
        kernel, padding = zip(*((5, 2) if side % 2 == 0 else (4, 1) for side in space), strict=True)
        layers += [nn.Conv2d(channels, width, kernel, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
        channels, space = width, [side // 2 for side in space]
    layers += [nn.Conv2d(channels, 2 * width, space), nn.ReLU(), nn.Flatten(), nn.Linear(2 * width, classes)]
    net = nn.Sequential(*layers)
    for parameter in net.parameters():
        nn.init.kaiming_normal_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    return net


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"Expected --device to be one that torch can use here, such as cpu; got {name!r}.") from error


def check_writable(
    out: str, files: Sequence[str] = ("results.json", "posterior.nc"), folders: Sequence[str] = ("checkpoints",)
) -> Path:
    """The folder, made if need be with its subfolders, once these files could be written into it."""
    path = Path(out)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path, *(path / name for name in folders)):
            folder.mkdir(exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        if any((path / name).is_dir() for name in files):
            raise IsADirectoryError(errno.EISDIR, f"{' or '.join(files)} is a folder there")
    except OSError as error:
        raise OptionError(f"Expected --out to be a folder that can be written; {out!r}: {error.strerror}.") from error
    return path


def write_json(path: Path, content: dict) -> None:
    """Write JSON whole or not at all; numbers that are not finite become null."""
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def finite(value):
    """The same with ``None`` for numbers that are not finite."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def torch_threads(count: int):
    """So many torch threads; one is the fastest for small images unless the cores are idle."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
