"""Every network of the tests' catalogue: is its symmetry one, and what breaks it?"""

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_equivariance as pe

from .cases import one_thread
from .report import Column, Report, gate

CATALOGUE = Path(__file__).parents[1] / "tests" / "catalogue.py"
SEEDS, INPUTS, DRAWS = (0, 1, 2), 2, 2
BOUND, BROKEN = 1e-10, 1e-3
SPREAD = 0.5  # of the guide's random parameters


def run() -> Report:
    """The catalogue, then what must not pass."""
    report = Report("layers", "the symmetry of every network in the tests' catalogue, float64")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the catalogue builds its networks in the default precision
    try:
        with one_thread(), pyro.validation_enabled(False):
            _networks(report)
            _controls(report)
    finally:
        torch.set_default_dtype(dtype)
    return report


def _networks(report: Report) -> None:
    table = report.table(
        "Networks",
        f"Largest over seeds {', '.join(map(str, SEEDS))}, each with its own weights and {INPUTS} random inputs. "
        f"compatible: |f(ρ_X(g)x; ρ(g)θ) − ρ_Y(g) f(x; θ)| over the elements g (at most 64, and then the generators "
        f"among them), relative to the largest output, of the network and of each layer (Symmetry.check). law: |ρ(g)μ "
        f"− μ| and ||ρ(g)|σ − σ| over the generators, sites and entries, of AutoSymmetricNormal with parameters from "
        f"N(0, {SPREAD}²); before: the same of its means ahead of the average, so that 0 means that no site moves. "
        f"predictive: |F(ρ_X(g)x) − ρ_Y(g)F(x)| over the generators, F the network at the mean weights, and the mean "
        f"network of {DRAWS} draws with all |G| moved copies of each. Bound {BOUND:.0e} on all three.",
        Column("network", "network", width=33),
        Column("group", "group", width=42),
        Column("order", "|G|", "d", 4),
        Column("compatible", "compatible", ".1e", 10),
        Column("before", "before", ".1e", 7),
        Column("law", "law", ".1e", 7),
        Column("predictive", "predictive", ".1e", 10),
        Column("verdict", "", width=4),
    )
    for name, build in catalogue().NETWORKS.items():
        rows = [deviations(build, seed) for seed in SEEDS]
        row = {key: max(r[key] for r in rows) for key in rows[0]}
        passed = max(row["compatible"], row["law"], row["predictive"]) <= BOUND
        group = build().group
        table.add(network=name, group=repr(group), order=len(group), **row, verdict=gate(passed))


def catalogue() -> ModuleType:
    """The tests' catalogue of networks, read from its file."""
    spec = importlib.util.spec_from_file_location("pe_test_catalogue", CATALOGUE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def deviations(build: Callable, seed: int) -> dict[str, float]:
    """The numbers of one network and seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    case = build()
    symmetry, x = case.symmetry, case.batch(INPUTS)
    compatible = symmetry.check(case.net, seed)
    guide = random_guide(case.net, symmetry, x)
    laws = {site: guide.get_posterior(site).base_dist for site in symmetry.sites}
    free = {site: guide.locs.get_parameter(site).detach() for site in symmetry.sites}
    return {
        "compatible": compatible,
        "before": max(moved_by(symmetry[site], value) for site, value in free.items()),
        "law": law_deviation(symmetry, laws),
        "predictive": predictive_deviation(case.net.eval(), symmetry, guide, laws, x),
    }


@torch.no_grad()
def random_guide(net: nn.Module, symmetry: pe.Symmetry, x: Tensor) -> pe.AutoSymmetricNormal:
    """An averaged guide with random parameters."""
    model = pe.BayesianNetwork(net, likelihood=lambda f: dist.Normal(f, 1.0).to_event(f.ndim - 1))
    guide = pe.AutoSymmetricNormal(model, symmetry)
    guide.initialize(x, net(x))
    for parameter in guide.parameters():
        parameter.normal_(std=SPREAD)
    return guide


@torch.no_grad()
def moved_by(rep, value: Tensor) -> float:
    """How far the generators move a value."""
    return max(float((rep.act(g, value) - value).abs().max()) for g in rep.group.generators)


def law_deviation(symmetry: pe.Symmetry, laws: dict[str, dist.Normal]) -> float:
    """Largest movement of a location or a scale."""
    return max(
        max(moved_by(symmetry[site], law.loc), moved_by(symmetry[site].modulus(), law.scale))
        for site, law in laws.items()
    )


@torch.no_grad()
def predictive_deviation(
    net: nn.Module, symmetry: pe.Symmetry, guide, laws: dict[str, dist.Normal], x: Tensor
) -> float:
    """Largest difference between the predictions for moved inputs and the moved predictions."""
    draws = [guide() for _ in range(DRAWS)]
    copies = [symmetry.act(g, draw) for draw, g in itertools.product(draws, range(len(symmetry.group)))]
    means = {site: law.loc for site, law in laws.items()}

    def predictions(x: Tensor) -> Tensor:
        mean = sum(torch.func.functional_call(net, copy, (x,)) for copy in copies) / len(copies)
        return torch.stack([torch.func.functional_call(net, means, (x,)), mean])

    upright, worst = predictions(x), 0.0
    for g in symmetry.group.generators:
        expected = upright if symmetry.outputs is None else symmetry.outputs.act(g, upright)
        worst = max(worst, float((predictions(symmetry.act_inputs(g, x)) - expected).abs().max()))
    return worst


# What must not pass


def _controls(report: Report) -> None:
    table = report.table(
        "Negative controls",
        f"Networks that the group does not act on. deviation: |f(ρ_X(g)x; ρ(g)θ) − ρ_Y(g) f(x; θ)| over all g, "
        f"relative to the largest output, with the action that would be right without the flaw, largest over seeds "
        f"{', '.join(map(str, SEEDS))} (– where there is no such action); the package says: the first sentence of its "
        f"error, from network_symmetry, Symmetry.check or expand. A control passes if there is an error, and the "
        f"deviation, where given, is more than {BROKEN:.0e}.",
        Column("control", "control", width=40),
        Column("deviation", "deviation", ".1e"),
        Column("verdict", "", width=4),
        Column("said", "the package says"),
    )
    for name, control in CONTROLS.items():
        gap, said = control()
        passed = said is not None and (gap is None or gap > BROKEN)
        said = "nothing" if said is None else said
        table.add(control=name, deviation=gap, verdict=gate(passed), said=said)


def first_sentence(call: Callable) -> str | None:
    """The first sentence of the error that a call raises."""
    try:
        call()
    except pe.SymmetryError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0].split('. ')[0]}"
    return None


def deviation(net: nn.Module, symmetry: pe.Symmetry) -> float:
    """How far a network is from compatible, over random weights and inputs."""
    return max(_deviation(net.double().eval(), symmetry, seed) for seed in SEEDS)


@torch.no_grad()
def _deviation(net: nn.Module, symmetry: pe.Symmetry, seed: int) -> float:
    torch.manual_seed(seed)
    weights = {name: torch.randn_like(p) / max(p[0].numel(), 1) ** 0.5 for name, p in net.named_parameters()}
    x = torch.randn(INPUTS, *symmetry.inputs.event_shape)
    expected, worst = torch.func.functional_call(net, weights, (x,)), 0.0
    for g in range(len(symmetry.group)):
        moved = torch.func.functional_call(net, symmetry.act(g, weights), (symmetry.act_inputs(g, x),))
        worst = max(worst, float((moved - expected).abs().max() / expected.abs().max()))
    return worst


def odd_pooling() -> tuple[float | None, str | None]:
    """A pooling that drops the last row and column."""
    net = images(nn.MaxPool2d(2), places=9)
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 7, 7))
    return deviation(net, symmetry), first_sentence(lambda: symmetry.check(net))


class MaskedConvolution(nn.Conv2d):
    """A convolution whose kernels live on an L-shaped part of 3 × 3."""

    SUPPORT = ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.weight.new_tensor(self.SUPPORT), self.bias)


def masked_kernel() -> tuple[float | None, str | None]:
    """The kernels are said to turn, but their support does not."""
    net, plain = images(masked=True), images()
    group = pe.CyclicGroup(4)
    unmasked = pe.network_symmetry(plain, group, (1, 6, 6))
    moved = {"features": {"0": unmasked.features["0"]}, "sites": {n: unmasked[n] for n in ("0.weight", "0.bias")}}
    by_hand = pe.network_symmetry(net, group, (1, 6, 6), **moved)
    return deviation(net, unmasked), first_sentence(lambda: by_hand.check(net))


def masked_kernel_unread() -> tuple[float | None, str | None]:
    """The same layer without a word about it."""
    return None, first_sentence(lambda: pe.network_symmetry(images(masked=True), pe.CyclicGroup(4), (1, 6, 6)))


def row_rolled() -> tuple[float | None, str | None]:
    """An arrangement that needs the elements to commute."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))  # fmt: skip
    symmetry = pe.network_symmetry(net, pe.DihedralGroup(4), (1, 6, 6), hidden="trivial")
    return None, first_sentence(lambda: pe.handlers.expand(pe.BayesianNetwork(net), symmetry, "row_rolled"))


def running_statistics() -> tuple[float | None, str | None]:
    """The deviation is that after statistics that differ from channel to channel, as training makes them."""
    net, without = images(nn.BatchNorm2d(8)), images(nn.BatchNorm2d(8, track_running_stats=False))
    group = pe.CyclicGroup(4)
    net[1].running_mean.copy_(torch.linspace(-1, 1, 8))
    expected = pe.network_symmetry(without, group, (1, 6, 6))
    return deviation(net, expected), first_sentence(lambda: pe.network_symmetry(net, group, (1, 6, 6)))


def even_stride() -> tuple[float | None, str | None]:
    """Every second pixel from the first on: a turn moves them to others. The action is that of a pooling."""
    net, fits = images(nn.Identity(), stride=2, places=16), images(stride=2, places=25)
    group = pe.CyclicGroup(4)
    pe.network_symmetry(fits, group, (1, 9, 9)).check(fits)
    pooled = images(nn.AvgPool2d(2), places=16)
    expected = pe.network_symmetry(pooled, group, (1, 8, 8))
    return deviation(net, expected), first_sentence(lambda: pe.network_symmetry(net, group, (1, 8, 8)))


def zeros_under_shifts() -> tuple[float | None, str | None]:
    """The edge is not shifted."""
    net = sequences("zeros")
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (2, 8))
    return deviation(net, symmetry), first_sentence(lambda: symmetry.check(net))


def images(*between: nn.Module, stride: int = 1, places: int = 36, masked: bool = False) -> nn.Module:
    """One convolution of grey images, other layers, and a head that sees the places."""
    kind = MaskedConvolution if masked else nn.Conv2d
    return nn.Sequential(
        kind(1, 8, 3, padding=1, stride=stride), *between, nn.ReLU(), nn.Flatten(), nn.Linear(8 * places, 3)
    )


def sequences(padding_mode: str) -> nn.Module:
    """Two convolutions of sequences, and a head after global pooling."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1, padding_mode=padding_mode), nn.ReLU(),
        nn.Conv1d(8, 8, 3, padding=1, padding_mode=padding_mode), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


CONTROLS: dict[str, Callable[[], tuple[float | None, str | None]]] = {
    "pooling of an odd size, 7 to 3, C4": odd_pooling,
    "kernels on an L, read by hand, C4": masked_kernel,
    "kernels on an L, not read by hand, C4": masked_kernel_unread,
    "arrangement row_rolled, D4": row_rolled,
    "BatchNorm with running statistics, C4": running_statistics,
    "stride 2 on the even size 8, C4": even_stride,
    "zero padding under cyclic shifts, C4": zeros_under_shifts,
}
