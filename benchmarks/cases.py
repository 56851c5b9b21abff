"""Networks, models and random guides that the sections share."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import pyro_equivariance as pe

CLASSES = 5


def grey_pooled(width: int) -> nn.Module:
    """Grey images 8 × 8, two convolutions, a head after global pooling."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES),
    )  # fmt: skip


def rgb_dense(width: int) -> nn.Module:
    """RGB images 8 × 8, two convolutions, a fully connected head over 4 × 4 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
        nn.Flatten(), nn.Linear(16 * width, width), nn.GELU(), nn.Linear(width, CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, int, int]]] = {
    "grey, pooled": (grey_pooled, (1, 8, 8)),
    "RGB, dense": (rgb_dense, (3, 8, 8)),
}
GROUPS = {"C4": pe.CyclicGroup(4), "D4": pe.DihedralGroup(4)}


def random_start(fraction: float) -> dict:
    """Arguments of a guide: means drawn from the prior, scales between ``fraction`` and twice that of the prior's."""
    return {
        "init_loc_fn": lambda site: site["fn"].sample(),
        "init_scale": lambda site: fraction * site["fn"].stddev * (1 + torch.rand_like(site["fn"].stddev)),
    }


@torch.no_grad()
def scramble(guide: nn.Module) -> None:
    """Add noise to every parameter of a guide, as large as the spread of its entries."""
    for parameter in guide.parameters():
        parameter.add_(parameter.std() * torch.randn_like(parameter))


def example(x: Tensor) -> tuple[Tensor, Tensor]:
    """The model's arguments for one datum, to initialize a guide with."""
    return x[:1], torch.zeros(1, dtype=torch.long)


@contextmanager
def one_thread():
    """Tensors of a few hundred numbers gain nothing from more threads, and lose much where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
