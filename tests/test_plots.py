"""The pictures show the numbers they are given, nothing overlaps, and nothing global changes."""

import importlib
import math
import os
import sys
from itertools import combinations
from types import ModuleType

import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from drawn import drawn_texts
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import pyro_equivariance as pe
from pyro_equivariance import metrics, plots
from pyro_equivariance.diagnostics import VSBC
from pyro_equivariance.diagnostics.base import ARVIZ
from pyro_equivariance.errors import DataError, OptionError

METHODS = ("baseline", "baseline-noaug", "geometric", "arithmetic", "projection", "always", "expansion",
           "expansion-tied", "equivarified")  # fmt: skip
DEFECTS = (2e-2, 3e-1, 1e-3, 5e-4, 2e-5, 1e-6, 5e-3, 0.0, -3e-5)
ELEMENTS = ("e", "r90", "r180", "r270", "s", "s·r90", "s·r180", "s·r270")


def runs(methods, seeds=1):
    """Runs as in results.json, all numbers different."""
    noise = np.random.default_rng(0)
    return [
        {"method": method, "seed": seed, "accuracy": 0.9 + 0.05 * noise.random(),
         "accuracy_orbit": 0.5 + 0.4 * noise.random(), "defect": size * (1 + 0.1 * seed),
         "defect_se": abs(size) * (2.0 if abs(size) < 1e-4 else 0.1), "certificate": None}
        for method, size in zip(METHODS[:methods], DEFECTS, strict=False)
        for seed in range(seeds)
    ]  # fmt: skip


def histories(methods, seeds=1, epochs=40, size=1.0):
    epoch = np.arange(epochs)
    return {
        method: [
            {"loss": list(size * (np.exp(-epoch / 8) + 0.2 + 0.1 * i + 0.01 * seed)), "kl_weight": [1.0] * epochs,
             "validation": [0.2 + 0.1 * i + 0.01 * seed if e % 5 == 4 else math.nan for e in epoch]}
            for seed in range(seeds)
        ]
        for i, method in enumerate(METHODS[:methods])
    }  # fmt: skip


def orbit_case(elements, classes=10, channels=1):
    images, probs = torch.rand(elements, channels, 8, 8), torch.randn(30, elements, classes).softmax(-1)
    return images, probs, [ELEMENTS[g % 8] for g in range(elements)]


def kernel_case(count, names=True):
    before = torch.randn(count, 3, 3)
    return before, before + before.flip(-1), [f"channel {k}" for k in range(count)] if names else None


def swept(sizes=(1, 2, 4, 8, 16, 32, 64), defect=0.0, noise=1.0, seed=0):
    """A sweep of Normal outputs, by default of one law at every pose."""
    generator = torch.Generator().manual_seed(seed)
    mean = defect * torch.arange(4.0)[:, None, None]
    return metrics.defect_sweep(
        lambda draws, independent: mean + noise * torch.randn(draws, 4, 2, 3, generator=generator), sizes, repeats=8
    )


LONG = ("a very long name of a method that does not fit", "another long name of a method, with more words")
SWAP = pe.Symmetry(
    pe.SymmetricGroup(3),
    {"locs": pe.permutation(pe.SymmetricGroup(3)), "scale": pe.trivial(pe.SymmetricGroup(3), ())},
)


def predictions(elements=4, classes=10, count=120, strength=3.0, seed=0):
    """Mean predictives ``(|G|, N, K)`` that get worse along the orbit, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(elements, count, classes, generator=generator)
    worse = strength * torch.linspace(1, 0.3, elements)[:, None, None]
    return (logits + worse * torch.nn.functional.one_hot(labels, classes)).softmax(-1), labels


def variational(methods=None, chains=3, steps=20, nan=False, seed=0):
    """The group of that name, all numbers different; the defect at every fifth step."""
    noise = np.random.default_rng(seed)
    at = 50 * np.arange(1, steps + 1)
    shape = (*((len(methods),) if methods else ()), chains, steps)
    loss = np.exp(-at / 300) + 0.1 + 0.02 * noise.random(shape)
    defect = np.where(np.arange(steps) % 5 == 4, 0.1 * np.exp(-at / 200) * (1 + noise.random(shape)), np.nan)
    if nan:
        loss[..., 3:6] = np.nan
    dims = ("method_name",) * bool(methods) + ("chain", "step")
    arrays = {"loss": loss, "defect": defect, "defect_se": 0.2 * defect}
    coords = {"step": at} | ({"method_name": list(methods)} if methods else {})
    return xr.Dataset({name: (dims, values) for name, values in arrays.items()}, coords)


def simulated(quantities=1, simulations=200, draws=99, names=None, seed=0):
    """Uniform ranks, as a calibrated guide has."""
    ranks = np.random.default_rng(seed).integers(0, draws + 1, (simulations, quantities))
    names = tuple(names or (f"theta[{i}]" for i in range(quantities)))
    return VSBC(ranks, names, draws=draws, losses=np.full(simulations, np.nan))


def element_draws(elements=4, step=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draws = 0.2 * torch.randn(30, elements, 6, 3, generator=generator)
    return draws + step * torch.arange(elements)[:, None, None]


def locations(draws=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    locs = torch.tensor([-2.0, 0.0, 2.0]) + 0.2 * torch.randn(draws, 3, generator=generator)
    return {"locs": locs, "scale": torch.rand(draws, generator=generator)}


def negative_losses():
    early = 50 * np.exp(-np.arange(100) / 4)
    return {name: {"loss": list(early - 3 - shift - 0.01 * np.arange(100))} for name, shift in (("a", 0), ("b", 0.2))}


FIGURES = {
    "reliability": lambda: plots.reliability(predictions()[0][0], predictions()[1]).get_figure(),
    "reliability, moved copies": lambda: plots.reliability(
        {"upright": predictions()[0][0], "all moved copies": predictions()[0]}, predictions()[1]).get_figure(),
    "reliability, two classes": lambda: plots.reliability(*predictions(8, 2)).get_figure(),
    "reliability, eight series": lambda: plots.reliability(
        dict(zip(ELEMENTS, predictions(8)[0], strict=True)), predictions(8)[1]).get_figure(),
    "reliability, long names": lambda: plots.reliability(
        dict(zip(LONG, predictions(2)[0], strict=True)), predictions(2)[1]).get_figure(),
    **{f"elbo, {c} runs": lambda c=c: plots.elbo(variational(chains=c)).get_figure() for c in (1, 3, 20)},
    "elbo, nine methods": lambda: plots.elbo(variational(METHODS)).get_figure(),
    "elbo, long names": lambda: plots.elbo(variational(LONG)).get_figure(),
    "elbo, NaN": lambda: plots.elbo(variational(nan=True)).get_figure(),
    "elbo, negative": lambda: plots.elbo(negative_losses()).get_figure(),
    "elbo, never finite": lambda: plots.elbo({"loss": [math.nan] * 3}).get_figure(),
    **{f"ranks, {q} quantities": lambda q=q: plots.ranks(simulated(q)) for q in (1, 2, 4, 7)},
    "ranks, long names": lambda: plots.ranks(simulated(4, 60, 49, ["layers.0.weight[12, 30, 2, 2]"] * 4)),
    **{f"defect by element, {g} elements": lambda g=g: plots.defect_by_element(
        element_draws(g), ELEMENTS[:g]).get_figure() for g in (1, 2, 4, 8)},
    "defect by element, nine methods": lambda: plots.defect_by_element(
        {m: element_draws(8, 0.05 * i) for i, m in enumerate(METHODS)}, ELEMENTS).get_figure(),
    "defect by element, long names": lambda: plots.defect_by_element(
        dict.fromkeys(LONG, element_draws(2)), LONG).get_figure(),
    "defect by element, all zero": lambda: plots.defect_by_element(
        torch.rand(5, 1, 3, 2).expand(5, 4, 3, 2), ELEMENTS[:4]).get_figure(),
    "defect training": lambda: plots.defect_training(variational()).get_figure(),
    "defect training, nine methods": lambda: plots.defect_training(variational(METHODS)).get_figure(),
    "defect training, no errors": lambda: plots.defect_training({"defect": [0.1, math.nan, 0.01]}).get_figure(),
    "parameters": lambda: plots.parameters(locations(), SWAP).get_figure(),
    "parameters, many elements": lambda: plots.parameters(
        {"a": torch.randn(40, 4)},
        pe.Symmetry(pe.SymmetricGroup(4), {"a": pe.permutation(pe.SymmetricGroup(4))})).get_figure(),
    **{f"kernels over the orbit, {k}": lambda k=k: plots.kernels_orbit(
        torch.randn(8, k, 3, 3), ELEMENTS, [f"channel {i}" for i in range(k)]) for k in (1, 5)},
    **{f"calibration under rotation, {g} elements": lambda g=g: plots.calibration_under_rotation(
        *predictions(g), ELEMENTS[:g]) for g in (1, 4, 8)},
    "calibration under rotation, nine methods": lambda: plots.calibration_under_rotation(
        {m: predictions(8, seed=i)[0] for i, m in enumerate(METHODS)}, predictions(8)[1], ELEMENTS),
    "calibration under rotation, long names": lambda: plots.calibration_under_rotation(
        dict.fromkeys(LONG, predictions(8)[0]), predictions(8)[1], [f"element number {g}" for g in range(8)]),
    "calibration under rotation, 48 elements": lambda: plots.calibration_under_rotation(
        *predictions(48, count=20), [f"g{g}" for g in range(48)]),
    **{f"accuracy, {m} methods, {s} seeds": lambda m=m, s=s: plots.accuracy(runs(m, s)).get_figure()
       for m, s in [(1, 1), (3, 3), (9, 5)]},
    "accuracy with errors": lambda: plots.accuracy(runs(9, 2), test_size=100).get_figure(),
    **{f"defect, {m} methods, {s} seeds": lambda m=m, s=s: plots.defect(runs(m, s)).get_figure()
       for m, s in [(1, 1), (3, 3), (6, 2), (9, 5)]},
    "defect, all zero": lambda: plots.defect([{"method": "a", "defect": 0.0, "defect_se": 0.0}]).get_figure(),
    **{f"training, {m} methods, {s} seeds": lambda m=m, s=s: plots.training(histories(m, s))
       for m, s in [(1, 1), (3, 3), (9, 5)]},
    "training, one epoch": lambda: plots.training(histories(3, epochs=1)),
    "training, large numbers": lambda: plots.training(histories(2, epochs=1000, size=1e4)),
    **{f"kernels, {k}": lambda k=k: plots.kernels(*kernel_case(k)) for k in (1, 3, 8, 9, 20)},
    "kernels without names": lambda: plots.kernels(*kernel_case(16, names=False)),
    **{f"orbit, {g} elements": lambda g=g: plots.orbit(*orbit_case(g), label=3) for g in (1, 2, 4, 8, 12)},
    "sweep, no defect": lambda: plots.defect_sweep(swept()),
    "sweep, large defect": lambda: plots.defect_sweep(swept(defect=3.0)),
    "sweep, tiny numbers": lambda: plots.defect_sweep(swept(defect=1e-5, noise=1e-4)),
    "sweep, two sizes": lambda: plots.defect_sweep(swept((2, 3))),
    "sweep, one size": lambda: plots.defect_sweep(swept((5,))),
    "sweep, many sizes": lambda: plots.defect_sweep(swept(range(10, 101, 5))),
    "sweep, far apart": lambda: plots.defect_sweep(swept((1, 2, 3, 1000))),
    "sweep, all zero": lambda: plots.defect_sweep(swept((1, 2, 4), noise=0.0)),
    "sample size": lambda: plots.sample_size().get_figure(),
    "sample size, both estimators": lambda: plots.sample_size(order=4).get_figure(),
    "sample size, one epsilon": lambda: plots.sample_size([0.1], [0.2]).get_figure(),
    "six generators": lambda: plots.generators(pe.LieBox(pe.Generators.affine_plane(), 1 / 3), image=torch.rand(8, 8)),
    **{f"generators of SO({n})": lambda n=n: plots.generators(pe.Generators.so(n)) for n in (2, 3, 4)},
    "generators at far points": lambda: plots.generators(pe.Generators.lorentz(), 300 * torch.randn(20, 2)),
    "generators of SO(8)": lambda: plots.generators(pe.Generators.so(8)),
    "six generators at tiny points": lambda: plots.generators(
        pe.LieBox(pe.Generators.affine_plane(), 1 / 3), 1e-6 * torch.randn(20, 2)
    ),
    "six generators off the origin": lambda: plots.generators(
        pe.Generators.affine_plane(), torch.tensor([1000.0, -500.0]) + torch.randn(20, 2)
    ),
    "generator at a fixed point": lambda: plots.generators(pe.Generators.so(2), torch.zeros(1, 2)),
    "generators at a fixed point": lambda: plots.generators(pe.Generators.so(3), torch.zeros(1, 3)),
    "dependent generators": lambda: plots.generators(pe.Generators.as_learned(torch.zeros(2, 4, 4))),
    "generator of a line": lambda: plots.generators(pe.Generators.scale(1)),
    "orbit, many classes": lambda: plots.orbit(*orbit_case(4, classes=100)),
    "orbit, two classes in colour": lambda: plots.orbit(*orbit_case(8, classes=2, channels=3)),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_texts_neither_overlap_nor_leave_the_figure_and_nothing_global_changes(name, monkeypatch):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    boxes = drawn_texts(figure, monkeypatch)
    assert boxes
    overlapping = [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)]
    assert not overlapping
    width, height = figure.bbox.size
    outside = [t for t, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]
    assert not outside


def test_the_users_settings_do_not_matter():
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        ax = plots.accuracy(runs(1))
        assert matplotlib.rcParams["font.size"] == 30
    assert ax.get_facecolor() == (1, 1, 1, 1)
    assert ax.xaxis.label.get_fontsize() == plots.base.STYLE["font.size"]


@pytest.mark.parametrize("n", [2, 3])
def test_arrows_point_along_the_velocities(n):
    """One length for all of a panel, so that they are proportional to ``A p``."""
    places, turning = torch.randn(7, n), pe.Generators.so(n)
    for ax, velocities in zip(plots.generators(turning, places).axes, turning.field(places), strict=True):
        if n == 3:  # each arrow a line from its tip to its point, then the heads
            lines = torch.tensor(np.array(ax.collections[0]._segments3d))[:7]
            drawn, starts = lines[:, 0] - lines[:, 1], lines[:, 1]
        else:
            quiver = ax.collections[0]
            drawn, starts = torch.tensor(np.stack([quiver.U, quiver.V], 1)), torch.tensor(quiver.XY)
        assert torch.allclose(starts, places)
        ratios = (drawn / velocities)[velocities.abs() > 1e-9]
        assert torch.allclose(ratios, ratios[0].expand_as(ratios)) and ratios[0] > 0


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e5])
@pytest.mark.parametrize("centre", [0, 3, -1000])
def test_the_frame_holds_points_and_arrows_and_little_else(centre, size):
    """Wherever the points are and however far apart: the longest arrow is about as long as they are apart."""
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5))
    places = size * (grid + centre)
    for ax in plots.generators(pe.Generators.affine_plane(), places).axes:
        quiver = ax.collections[0]
        starts, arrows = np.array(quiver.XY), np.stack([quiver.U, quiver.V], 1)
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        for at in (starts, starts + arrows):
            assert bool((at > [left, low]).all()) and bool((at < [right, high]).all())
        assert math.isclose(right - left, high - low) and right - left < 3.2 * size
        assert math.isclose((left + right) / 2, size * centre, abs_tol=1e-6 * size)
        assert 0.5 < np.linalg.norm(arrows, axis=1).max() / (size / 2) < 1


def test_an_arrow_at_one_point():
    (ax,) = plots.generators(pe.Generators.so(2), [[3.0, 4.0]]).axes
    arrow = np.array([ax.collections[0].U[0], ax.collections[0].V[0]])
    assert np.allclose(arrow / np.linalg.norm(arrow), [-0.8, 0.6])
    assert ax.get_xlim()[0] < 3 + arrow[0] < 3 < ax.get_xlim()[1]


def test_a_matrix_of_zeros_is_white():
    ax = plots.generators(pe.Generators.as_learned(torch.zeros(1, 4, 4))).axes[0]
    assert np.ptp(ax.images[0].to_rgba(ax.images[0].get_array())[0, 0, :3]) < 0.01


def test_arrows_on_an_image_keep_to_its_frame():
    (ax,) = plots.generators(pe.Generators.so(2), 0.1 * torch.rand(9, 2), image=torch.rand(1, 6, 6)).axes
    assert ax.get_xlim()[0] < -1 and ax.get_ylim()[1] > 1 and ax.images[0].get_extent() == [-1, 1, -1, 1]
    assert np.hypot(ax.collections[0].U, ax.collections[0].V).max() < 0.1


def test_arrows_at_the_back_of_the_sphere_are_pale():
    """The three lines of an arrow have one opacity, which grows towards the viewer."""
    ax = plots.generators(pe.Generators.so(3)).axes[0]
    arrows = ax.collections[0]
    starts, alpha = np.array(arrows._segments3d)[:81, 1], np.asarray(arrows.get_alpha()).reshape(3, 81)
    FigureCanvasAgg(ax.figure).draw()  # the view is set by drawing
    up, turned = math.radians(ax.elev), math.radians(ax.azim)
    depth = starts @ [math.cos(up) * math.cos(turned), math.cos(up) * math.sin(turned), math.sin(up)]
    assert (alpha == alpha[0]).all() and 0 < alpha.min() < 0.2 and math.isclose(alpha.max(), 1)
    assert np.array_equal(alpha[0].argsort(), depth.argsort())


@pytest.mark.parametrize(("n", "columns", "rows"), [(2, 1, 1), (3, 3, 1), (4, 3, 2), (5, 4, 3), (8, 7, 4)])
def test_panels_of_many_generators(n, columns, rows):
    axes = plots.generators(pe.Generators.so(n)).axes
    grid = axes[0].get_gridspec()
    assert (grid.ncols, grid.nrows) == (columns, rows) and len(axes) == n * (n - 1) // 2


# Accuracy and defect


def points(ax, marker):
    """The ``(x, row)`` of all points with this marker, rows being whole numbers."""
    lines = [line for line in ax.get_lines() if line.get_marker() == marker]
    return [(x, round(float(y))) for line in lines for x, y in line.get_xydata()]


def test_accuracy_shows_every_run_and_the_means():
    rows = runs(3, seeds=4)
    ax = plots.accuracy(rows)
    for field, marker in [("accuracy", "o"), ("accuracy_orbit", "D")]:
        assert points(ax, marker) == [(run[field], METHODS.index(run["method"])) for run in rows]
    means = [(np.mean([r[f] for r in rows if r["method"] == m]), row)
             for f in ("accuracy", "accuracy_orbit") for row, m in enumerate(METHODS[:3])]  # fmt: skip
    assert points(ax, "|") == [(pytest.approx(x), row) for x, row in means]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(METHODS[:3])
    assert ax.yaxis_inverted()


def test_methods_stand_in_order_of_first_appearance():
    rows = runs(3, seeds=2)
    rows = [rows[4], rows[0], rows[5], rows[2]]
    ax = plots.accuracy(rows)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["geometric", "baseline", "baseline-noaug"]
    assert points(ax, "o") == [(rows[0]["accuracy"], 0), (rows[2]["accuracy"], 0), (rows[1]["accuracy"], 1),
                               (rows[3]["accuracy"], 2)]  # fmt: skip


def test_a_missing_accuracy_is_left_out():
    ax = plots.accuracy([{"method": "a", "accuracy": None, "accuracy_orbit": 0.5}])
    assert points(ax, "o") == []
    assert points(ax, "D") == [(0.5, 0)]


def test_accuracy_has_binomial_errors_where_the_number_of_inputs_is_known():
    rows = [*runs(2, seeds=2), {"method": "baseline", "accuracy": None, "accuracy_orbit": 1.0}]
    ax = plots.accuracy(rows, test_size=400)
    drawn = [(low, high) for lines in ax.collections for (low, _), (high, _) in lines.get_segments()]
    for m in METHODS[:2]:
        for field in ("accuracy", "accuracy_orbit"):
            for a in [r[field] for r in rows if r["method"] == m and r[field] is not None]:
                error = math.sqrt(a * (1 - a) / 400)
                assert pytest.approx((a - error, a + error)) in drawn
    assert len(drawn) == 9 and "±1 standard error" in ax.get_xlabel()
    without = plots.accuracy(rows)
    assert not without.collections and "±" not in without.get_xlabel()


def bars(ax):
    """For each run the estimate, its row, and the ends of its error bar."""
    drawn = []
    for container in ax.containers:
        point, _, lines = container.lines
        for (x, y), segment in zip(point.get_xydata(), lines[0].get_segments(), strict=True):
            drawn.append((x, round(float(y)), *segment[:, 0]))
    return drawn


def test_defect_shows_each_estimate_and_its_error():
    rows = runs(9, seeds=3)
    expected = [(r["defect"], METHODS.index(r["method"]), r["defect"] - r["defect_se"], r["defect"] + r["defect_se"])
                for r in rows]  # fmt: skip
    assert bars(plots.defect(rows)) == [pytest.approx(row, abs=0) for row in expected]


@pytest.mark.parametrize("value, error", [(0.0, 0.0), (-3e-5, 1e-5), (-1e-17, 1e-16), (0.0, 1e-3), (0.4, 1e-3)])
def test_defect_of_any_sign_is_inside_and_zero_is_marked(value, error):
    ax = plots.defect([{"method": "a", "defect": value, "defect_se": error}])
    low, high = ax.get_xlim()
    assert low < min(value - error, 0) and max(value + error, 0) < high
    labels = dict(zip(ax.get_xticks(), [t.get_text() for t in ax.get_xticklabels()], strict=True))
    assert labels[0.0] == "0" and len(labels) > 1
    for tick, text in labels.items():
        assert tick == 0 or tick == pytest.approx(float(text.strip("$").replace("10^{", "1e").replace("}", "")))


def test_defect_is_linear_where_it_cannot_be_told_from_zero():
    rows = [{"method": "a", "defect": 0.3, "defect_se": 0.01}, {"method": "b", "defect": -2e-5, "defect_se": 3e-5}]
    ax = plots.defect(rows)
    transform = ax.xaxis.get_transform()
    assert transform.linthresh == 1e-4
    shift = transform.transform(np.array([-8e-5, 0.0, 8e-5]))
    assert shift[1] == 0 and shift[2] == -shift[0]
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (band.x0, band.x1) == (pytest.approx(-1e-4), pytest.approx(1e-4))


@pytest.mark.parametrize("error, linear", [(1e-5, 1e-4), (None, 1e-1)])
def test_a_zero_up_to_rounding_does_not_stretch_the_axis(error, linear):
    rows = [{"method": "a", "defect": 0.3, "defect_se": 0.01}, {"method": "b", "defect": 1e-17, "defect_se": 1e-17}]
    rows += [{"method": "c", "defect": 1e-5, "defect_se": error}] if error else []
    assert plots.defect(rows).xaxis.get_transform().linthresh == pytest.approx(linear)


@pytest.mark.parametrize("error", [None, math.nan])
def test_a_defect_without_error_has_no_bar(error):
    ax = plots.defect([{"method": "a", "defect": 0.1, "defect_se": error}])
    container = ax.containers[0]
    assert container.lines[0].get_xdata().tolist() == [0.1]
    assert not container.has_xerr


def test_a_missing_defect_leaves_an_empty_row():
    ax = plots.defect([{"method": "a", "defect": None, "defect_se": None}])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a"]
    assert not np.isfinite(ax.containers[0].lines[0].get_xydata()).all()


@pytest.mark.parametrize("draw", [plots.accuracy, plots.defect])
def test_axes_may_be_given(draw):
    ax = Figure().subplots()
    assert draw(runs(2), ax=ax) is ax


# Kernels, orbits and training


def test_kernels_on_one_scale_around_zero():
    before, after, names = kernel_case(10)
    figure = plots.kernels(before, after, names)
    pictures = [ax for ax in figure.axes if ax.images]
    shown = [np.asarray(ax.images[0].get_array()) for ax in pictures]
    for k in range(10):
        pair = [i for i, ax in enumerate(pictures) if ax.get_title() == names[k]]
        assert len(pair) == 1 and np.array_equal(shown[pair[0]], before[k].numpy())
        assert any(np.array_equal(picture, after[k].numpy()) for picture in shown)
    largest = float(max(before.abs().max(), after.abs().max()))
    assert {ax.images[0].get_clim() for ax in pictures} == {(-largest, largest)}
    assert figure.axes[-1].get_ylabel() == "weight"


def test_a_kernel_stands_above_its_average():
    before, after, names = kernel_case(3)
    figure = plots.kernels(before, after, names)
    FigureCanvasAgg(figure).draw()
    place = {ax: ax.get_position() for ax in figure.axes if ax.images}
    for k in range(3):
        (top,) = [ax for ax in place if np.array_equal(ax.images[0].get_array(), before[k].numpy())]
        (low,) = [ax for ax in place if np.array_equal(ax.images[0].get_array(), after[k].numpy())]
        assert place[top].x0 == pytest.approx(place[low].x0) and place[top].y0 > place[low].y1


def test_kernels_of_zeros():
    figure = plots.kernels(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3))
    assert figure.axes[0].images[0].get_clim() == (-1, 1)


def test_orbit_shows_images_means_and_spread():
    images, probs, names = orbit_case(4)
    figure = plots.orbit(images, probs, names, label=3)
    for g, (top, below) in enumerate(zip(figure.axes[:4], figure.axes[4:], strict=True)):
        assert top.get_title() == names[g]
        assert np.array_equal(top.images[0].get_array(), images[g, 0].numpy())
        bars = below.containers[0]
        assert [bar.get_height() for bar in bars] == pytest.approx(probs[:, g].mean(0).tolist())
        ends = np.array(below.collections[0].get_segments())[:, :, 1]
        np.testing.assert_allclose(ends.T, np.quantile(probs[:, g].numpy(), [0.05, 0.95], axis=0))
        assert below.get_ylim() == (0, 1)
        assert [bar.get_facecolor() == matplotlib.colors.to_rgba(plots.base.RED) for bar in bars] == [
            k == 3 for k in range(10)
        ]


def test_orbit_in_colour():
    images, probs, names = orbit_case(2, channels=3)
    picture = plots.orbit(images, probs, names).axes[0].images[0].get_array()
    assert np.array_equal(picture, images[0].permute(1, 2, 0).numpy())


def test_training_shows_each_seed_and_only_the_epochs_that_were_validated():
    given = histories(3, seeds=2)
    loss, validation = plots.training(given).axes
    flat = [history for several in given.values() for history in several]
    assert [line.get_ydata().tolist() for line in loss.get_lines()] == [h["loss"] for h in flat]
    for line, history in zip(validation.get_lines(), flat, strict=True):
        assert line.get_xdata().tolist() == [5, 10, 15, 20, 25, 30, 35, 40]
        assert line.get_ydata().tolist() == history["validation"][4::5]
    named = [line.get_label() for line in loss.get_lines() if not line.get_label().startswith("_")]
    assert named == list(METHODS[:3])
    assert loss.get_yscale() == validation.get_yscale() == "linear"


def test_methods_differ_by_color_or_dash():
    lines = plots.training(histories(9)).axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


@pytest.mark.parametrize("values, scale", [([100.0, 1.0], "log"), ([20.0, 1.0], "linear"), ([100.0, -1.0], "linear")])
def test_a_steep_positive_loss_is_on_a_logarithmic_axis(values, scale):
    figure = plots.training({"a": [{"loss": values, "kl_weight": [1.0, 1.0], "validation": [math.nan] * 2}]})
    assert figure.axes[0].get_yscale() == scale
    assert figure.axes[1].get_lines()[0].get_xdata().size == 0
    assert [t.get_text() for t in figure.axes[1].texts] == ["not evaluated"]


# Sweeps over the number of draws


def drawn_bars(ax, name):
    """``(T, value, low, high)`` of the points of one estimator."""
    (container,) = [c for c in ax.containers if c.get_label() == name]
    point, _, (bars,) = container.lines
    ends = [segment[:, 1] if len(segment) else (np.nan, np.nan) for segment in bars.get_segments()]
    return np.column_stack([point.get_xdata(), point.get_ydata(), ends])


@pytest.mark.parametrize("defect", [0.0, 3.0])
def test_sweep_shows_means_and_spreads_with_their_errors(defect):
    sweep = swept(defect=defect)
    left, right = plots.defect_sweep(sweep).axes
    sizes = np.array(sweep.sizes)
    for name, series, shift in (("biased", sweep.biased, 64**-0.01), ("unbiased", sweep.unbiased, 64**0.01)):
        for ax, x, y, e in (
            (left, sizes * shift, series.mean, series.se),
            (right, sizes, series.spread, series.spread_se),
        ):
            expected = np.column_stack([x, y, y - e, y + e])
            shown = drawn_bars(ax, name)
            known = np.isfinite(expected).all(1)
            np.testing.assert_allclose(shown[known], expected[known], rtol=1e-9)
            assert known.sum() == (7 if name == "biased" else 6)


def test_sweep_draws_the_laws_through_the_first_points():
    sweep = swept((1, 2, 4, 8), defect=3.0)
    left, right = plots.defect_sweep(sweep).axes
    lines = {line.get_label(): line.get_xydata() for ax in (left, right) for line in ax.get_lines()}
    size, mean = lines["reference + c/T"].T
    np.testing.assert_allclose(mean - sweep.reference.value, float(sweep.excess[0]) / size)
    assert size[0] == 1 and size[-1] == pytest.approx(8)
    for name, slope in (("slope −1/2", -0.5), ("slope −1", -1)):
        np.testing.assert_allclose(
            lines[name], [(t, float(sweep.unbiased.spread[1]) * (t / 2) ** slope) for t in (2, 4, 8)]
        )


@pytest.mark.parametrize(("defect", "scale"), [(0.0, "symlog"), (3.0, "log")])
def test_sweep_axes(defect, scale):
    left, right = plots.defect_sweep(swept(defect=defect)).axes
    assert (left.get_yscale(), right.get_yscale()) == (scale, "log")
    for ax in (left, right):
        assert ax.get_xscale() == "log" and ax.get_xlabel() == "posterior draws T"
        assert ax.get_xticks().tolist() == [1, 2, 4, 8, 16, 32, 64]
    low, high = left.get_ylim()
    for name in ("biased", "unbiased"):
        bars = drawn_bars(left, name)[1:, 2:]
        assert low < bars.min() and bars.max() < high


@pytest.mark.parametrize("order", [None, 4])
def test_sample_size_shows_its_function(order):
    ax = plots.sample_size([0.05, 0.5], deltas=(0.1, 0.01), order=order)
    estimators = ["unbiased"] if order is None else ["unbiased", "biased"]
    expected = {
        f"{name}, δ = {delta}": [(e, metrics.sample_size(e, delta, order, name)) for e in (0.05, 0.5)]
        for delta in (0.1, 0.01) for name in estimators
    }  # fmt: skip
    assert {line.get_label(): [tuple(xy) for xy in line.get_xydata()] for line in ax.get_lines()} == expected
    assert ax.get_xscale() == ax.get_yscale() == "log"
    given = Figure().subplots()
    assert plots.sample_size(ax=given) is given


# Calibration


def test_reliability_shows_the_bins_and_the_error_of_the_metric():
    probs, labels = predictions(1)
    probs = probs[0]
    ax = plots.reliability(probs, labels, bins=7)
    error = metrics.calibration_error(probs, labels, 7).item()
    assert ax.get_legend().get_texts()[-1].get_text() == f"ECE {error:.3f}"
    confidence, right = probs.max(-1).values, (probs.argmax(-1) == labels).double()
    member = [(confidence > b / 7) & (confidence <= (b + 1) / 7) for b in range(7)]
    member = [m for m in member if m.any()]
    points, _, (bars,) = ax.containers[0].lines
    expected = [(confidence[m].mean().item(), right[m].mean().item()) for m in member]
    np.testing.assert_allclose(points.get_xydata(), expected)
    share = torch.stack(member).double().mean(1)
    gap = points.get_xydata()[:, 1] - points.get_xydata()[:, 0]
    assert (share.numpy() * abs(gap)).sum() == pytest.approx(error)
    for (_, low), (_, high), m in zip(*np.moveaxis(np.array(bars.get_segments()), 1, 0), member, strict=True):
        n, p, z = int(m.sum()), right[m].mean().item(), 1.959964
        for end in (low, high):  # Wilson's ends are where the score test is at its critical value
            assert n * (p - end) ** 2 == pytest.approx(z**2 * end * (1 - end), rel=1e-4, abs=1e-9)
    (strip,) = ax.child_axes
    heights, edges, _ = strip.patches[0].get_data()
    np.testing.assert_allclose(heights[heights > 0], share)
    np.testing.assert_allclose(edges, np.arange(8) / 7)


def test_copies_of_one_image_do_not_narrow_the_intervals_of_reliability():
    probs, labels = predictions(1)
    once, many = (plots.reliability(p, labels).containers[0].lines for p in (probs[0], probs.expand(6, -1, -1)))
    np.testing.assert_allclose(once[0].get_xydata(), many[0].get_xydata())
    np.testing.assert_allclose(*(lines[2][0].get_segments() for lines in (once, many)), rtol=1e-6)


def test_scores_on_each_copy_are_those_of_the_metrics():
    probs, labels = predictions(4)
    figure = plots.calibration_under_rotation(probs, labels, ELEMENTS[:4], bins=9)
    functions = (metrics.accuracy, metrics.negative_log_likelihood, lambda p, y: metrics.calibration_error(p, y, 9))
    n = len(labels)
    for ax, score in zip(figure.axes, functions, strict=True):
        points, _, (bars,) = ax.containers[0].lines
        values = [score(copy, labels).item() for copy in probs]
        np.testing.assert_allclose(points.get_xydata(), list(enumerate(values)))
        ends = np.array(bars.get_segments())[:, :, 1]
        for copy, (low, high) in zip(probs, ends, strict=True):
            left_out = [score(copy[k], labels[k]).item() for i in range(n) if (k := torch.arange(n) != i) is not None]
            error = math.sqrt((n - 1) * np.var(left_out))
            assert (high - low) / 2 == pytest.approx(error * math.sqrt((n - 1) / n) if score not in functions[2:]
                                                     else error)  # fmt: skip
        assert ax.get_lines()[-1].get_ydata()[0] == pytest.approx(values[0])
        assert [t.get_text() for t in ax.get_xticklabels()] == list(ELEMENTS[:4])


def test_scores_of_methods_stand_beside_one_another():
    probs = {m: predictions(4, seed=i)[0] for i, m in enumerate("ab")}
    figure = plots.calibration_under_rotation(probs, predictions(4)[1], ELEMENTS[:4])
    left, right = (c.lines[0].get_xdata() for c in figure.axes[0].containers)
    assert (left < np.arange(4)).all() and (right > np.arange(4)).all()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]


def test_rank_bars_count_the_ranks_in_equal_bins():
    result = simulated(3, 200, 99)
    figure = plots.ranks(result, ["theta[2]", "theta[0]"])
    for ax, column in zip(figure.axes, (2, 0), strict=True):
        bars = ax.containers[0]
        assert len(bars) == 20
        for b, bar in enumerate(bars):
            assert (bar.get_x(), bar.get_width()) == (pytest.approx(5 * b - 0.5), pytest.approx(5))
            assert bar.get_height() == ((result.ranks[:, column] // 5) == b).sum()
    assert [ax.get_title() for ax in figure.axes] == ["theta[2]", "theta[0]"]


def test_the_rank_band_has_its_rate():
    """Of uniform histograms, at least 95 % lie in the band, and not many more: Bonferroni over exclusive bins."""
    (low, high) = plots.ranks(simulated()).axes[0].collections[0].get_paths()[0].get_extents().intervaly
    counts = np.random.default_rng(0).multinomial(200, np.full(20, 1 / 20), size=20_000)
    inside = ((counts >= low) & (counts <= high)).all(1).mean()
    error = math.sqrt(0.05 * 0.95 / 20_000)
    assert 0.95 - 4 * error < inside < 0.99


@pytest.mark.parametrize(
    ("draws", "simulations", "bins"), [(99, 200, 20), (99, 60, 5), (63, 1000, 16), (100, 200, 101)]
)
def test_rank_bins_divide_the_ranks(draws, simulations, bins):
    assert len(plots.ranks(simulated(1, simulations, draws)).axes[0].containers[0]) == bins


# Elements, training and parameters


def test_defect_by_element_shows_the_metric_but_for_the_identity():
    draws = element_draws(4)
    ax = plots.defect_by_element(draws, ELEMENTS[:4])
    expected = [(e.value, row, e.value - e.se, e.value + e.se)
                for row, e in enumerate(metrics.defect_by_element(draws)[1:])]  # fmt: skip
    assert bars(ax) == [pytest.approx(row) for row in expected]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(ELEMENTS[1:4])


def test_defect_by_element_moves_outputs_and_separates_methods():
    group = pe.CyclicGroup(3)
    x = torch.randn(7, 1, 5, 3)
    moved = torch.cat([x.roll(g, -1) for g in range(3)], 1)
    ax = plots.defect_by_element({"a": moved, "b": element_draws(3)[:7, :, :5]}, group.names, action=pe.regular(group))
    shown = np.array(bars(ax))
    np.testing.assert_allclose(shown[:2], [[0, 0, 0, 0], [0, 1, 0, 0]], atol=1e-12)
    assert (shown[2:, 0] > 1e-3).all()
    assert [t.get_text() for t in ax.get_legend().get_texts()][:2] == ["a", "b"]


@pytest.mark.parametrize("methods", [None, ("one", "two")])
def test_elbo_of_arviz_data(methods):
    given = variational(methods, nan=True)
    ax = plots.elbo(given)
    losses = given.loss.values.reshape(-1, 20)
    known = np.isfinite(losses[0])
    for line, loss in zip(ax.get_lines(), losses, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([given.step.values, loss])[known])
    named = [t.get_text() for t in ax.get_legend().get_texts()]
    assert named == (list(methods) if methods else ["run 0", "run 1", "run 2"])
    assert ax.get_xlabel() == "optimizer step"


@pytest.mark.parametrize("kind", ["history", "result", "list", "dict of results"])
def test_elbo_of_fits(kind):
    history = {"loss": [3.0, 2.0, 1.0], "validation": [math.nan] * 3}
    result = pe.FitResult(guide=None, history=history, best_epoch=0, seconds=0.0)
    given = {"history": history, "result": result, "list": [result, history], "dict of results": {"a": [result]}}[kind]
    ax = plots.elbo(given)
    assert ax.get_xlabel() == "epoch"
    assert [line.get_xydata().tolist() for line in ax.get_lines()] == [[[1, 3], [2, 2], [3, 1]]] * (
        1 + (kind == "list")
    )


def test_elbo_cuts_off_a_start_far_above_the_rest():
    low, high = plots.elbo(negative_losses()).get_ylim()
    late = [v for h in negative_losses().values() for v in h["loss"][25:]]
    assert low < min(late) and max(late) < high < max(late) + 0.2 * np.ptp(late)
    assert plots.elbo({"loss": [1.0, 0.5, -0.5, -1.0]}).get_ylim()[1] > 1


def test_defect_training_shows_where_it_was_evaluated():
    given = variational()
    ax = plots.defect_training(given)
    for container, defect in zip(ax.containers, given.defect.values, strict=True):
        points, _, (bars,) = container.lines
        known = np.isfinite(defect)
        assert known.sum() == 4
        np.testing.assert_array_equal(points.get_xydata(), np.column_stack([given.step.values, defect])[known])
        ends = np.array(bars.get_segments())[:, :, 1]
        np.testing.assert_allclose(ends, np.outer(defect[known], [0.8, 1.2]))
    assert ax.get_yscale() == "symlog" and ax.get_ylim()[0] < 0


def test_parameters_shows_the_draws_and_their_moved_copies():
    samples = locations()
    ax = plots.parameters(samples, SWAP, ("locs[2]", "scale"))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("locs[2]", "scale")
    for g, points in enumerate(ax.collections):
        moved = SWAP.act(g, samples)
        np.testing.assert_allclose(points.get_offsets(), torch.stack([moved["locs"][:, 2], moved["scale"]], -1))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(SWAP.group.names)


def test_parameters_shows_at_most_300_draws_spread_evenly():
    shown = plots.parameters(locations(1000), SWAP).collections[0].get_offsets()
    np.testing.assert_allclose(shown, locations(1000)["locs"][::4, :2])


def test_kernels_over_the_orbit():
    copies = torch.randn(4, 2, 3, 3)
    figure = plots.kernels_orbit(copies, ELEMENTS[:4], ["a", "b"])
    pictures = [ax for ax in figure.axes if ax.images]
    for i, ax in enumerate(pictures):
        assert np.array_equal(ax.images[0].get_array(), copies[i % 4, i // 4].numpy())
        assert ax.images[0].get_clim() == (-copies.abs().max(), copies.abs().max())
    assert [ax.get_title() for ax in pictures] == [*ELEMENTS[:4], "", "", "", ""]
    assert [pictures[0].get_ylabel(), pictures[4].get_ylabel()] == ["a", "b"]


@pytest.mark.parametrize("draw", [
    lambda ax: plots.reliability(*predictions(1), ax=ax), lambda ax: plots.elbo(variational(), ax=ax),
    lambda ax: plots.defect_training(variational(), ax=ax), lambda ax: plots.parameters(locations(), SWAP, ax=ax),
    lambda ax: plots.defect_by_element(element_draws(), ELEMENTS[:4], ax=ax),
], ids=["reliability", "elbo", "defect_training", "parameters", "defect_by_element"])  # fmt: skip
def test_new_axes_may_be_given(draw):
    ax = Figure().subplots()
    assert draw(ax) is ax


# Errors and files


BAD = {
    "no runs, accuracy": (lambda: plots.accuracy([]), "at least one run"),
    "no runs, defect": (lambda: plots.defect([]), "at least one run"),
    "no histories": (lambda: plots.training({"a": []}), "at least one training history"),
    "no epsilons": (lambda: plots.sample_size([]), "at least one epsilon and one delta; got 0 and 3"),
    "no deltas": (lambda: plots.sample_size(deltas=[]), "at least one epsilon"),
    "kernels that differ": (lambda: plots.kernels(torch.zeros(2, 3, 3), torch.zeros(3, 3, 3)), "as many before"),
    "no kernels": (lambda: plots.kernels(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3)), "as many before"),
    "kernel names": (lambda: plots.kernels(*kernel_case(3)[:2], names=["a"]), "a name for each kernel, 3; got 1"),
    "elements": (lambda: plots.orbit(orbit_case(4)[0], orbit_case(2)[1], ELEMENTS[:4]), r"probabilities \(T"),
    "no series": (lambda: plots.reliability({}, torch.zeros(3)), "at least one set of probabilities"),
    "no runs, elbo": (lambda: plots.elbo([]), "at least one run"),
    "no loss": (lambda: plots.elbo({"a": {"validation": [1.0]}}), "'loss' in the record of each run; got validation"),
    "no defect": (lambda: plots.defect_training({"loss": [1.0]}), "'defect' in the record"),
    "defects of NaN": (lambda: plots.defect_training({"defect": [math.nan]}), "evaluated at least once"),
    "no draws": (lambda: plots.defect_by_element({}, []), "at least one method"),
    "names of elements": (lambda: plots.defect_by_element(element_draws(), ["e"]), "each group element, 4; got 1"),
    "no scores": (lambda: plots.calibration_under_rotation({}, torch.zeros(3), []), "at least one method"),
    "scores of one copy": (
        lambda: plots.calibration_under_rotation(predictions(1)[0][0], predictions(1)[1], "e"),
        r"mean predictives \(\|G\|, N, K\)",
    ),
    "moved kernels": (lambda: plots.kernels_orbit(torch.zeros(2, 3, 3), ["e"]), r"\(\|G\|, K, h, w\)"),
    "no such entry": (lambda: plots.parameters(locations(), SWAP, ("locs[3]", "scale")), r"got 'locs\[3\]'"),
    "no such site": (lambda: plots.parameters(locations(), SWAP, ("locs[0]", "w")), r"locs \(3,\), scale \(\)"),
    "points of another space": (lambda: plots.generators(pe.Generators.so(2), torch.ones(5, 3)), r"points \(N, 2\)"),
    "no points": (lambda: plots.generators(pe.Generators.so(2), torch.ones(0, 2)), r"at least one point, .* \(0, 2\)"),
    "points of NaN": (lambda: plots.generators(pe.Generators.so(2), [[math.nan, 0.0]]), "all of them finite"),
    "two images": (lambda: plots.generators(pe.Generators.so(2), image=torch.ones(2, 5, 5)), r"one image \(H, H\)"),
    "an oblong image": (lambda: plots.generators(pe.Generators.so(2), image=torch.ones(4, 5)), r"got shape \(4, 5\)"),
    "an image in space": (lambda: plots.generators(pe.Generators.so(3), image=torch.ones(5, 5)), r"of R\^3; an image"),
    "one scalar": (lambda: plots.parameters({"scale": torch.rand(5)}, SWAP), "at least two scalars"),
    "element names": (lambda: plots.orbit(*orbit_case(4)[:2], ["e"]), "each group element, 4; got 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    draw, match = BAD[name]
    with pytest.raises(DataError, match=match):
        draw()


KINDS = {
    "accuracy": plots.accuracy,
    "calibration_under_rotation": lambda given: plots.calibration_under_rotation(given, torch.zeros(3).long(), "abcd"),
    "defect": plots.defect,
    "defect_by_element": lambda given: plots.defect_by_element(given, ELEMENTS[:4]),
    "defect_sweep": plots.defect_sweep,
    "defect_training": plots.defect_training,
    "elbo": plots.elbo,
    "generators": plots.generators,
    "kernels": lambda given: plots.kernels(given, given),
    "kernels_orbit": lambda given: plots.kernels_orbit(given, ["e"]),
    "labels": lambda given: plots.reliability(predictions(1)[0][0], given),
    "labels of moved copies": lambda given: plots.calibration_under_rotation(predictions()[0], given, ELEMENTS[:4]),
    "orbit": lambda given: plots.orbit(given, given, ["e"]),
    "parameters": lambda given: plots.parameters(given, SWAP),
    "ranks": plots.ranks,
    "reliability": lambda given: plots.reliability(given, torch.zeros(3).long()),
    "sample_size": plots.sample_size,
    "save": lambda given: plots.save(given, "never.png"),
    "symmetry": lambda given: plots.parameters(locations(), given),
    "training": plots.training,
}
GIVEN = {
    "ArviZ data": lambda: ARVIZ.container({"posterior": xr.Dataset({"mu": (("chain", "draw"), np.ones((1, 3)))})}, {}),
    "tree": lambda: xr.DataTree.from_dict({"posterior": xr.Dataset({"mu": (("chain", "draw"), np.ones((1, 3)))})}),
    "group": lambda: xr.Dataset({"mu": (("chain", "draw"), np.ones((1, 3)))}),
    "path": lambda: "net.nc",
    "dict": lambda: {"a": "b"},
    "None": lambda: None,
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("name", KINDS)
def test_an_object_of_another_kind_is_refused_in_one_line(name, kind):
    with pytest.raises(DataError, match=r"^Expected .*; got (\w+|'\w+')") as caught:
        KINDS[name](GIVEN[kind]())
    assert "\n" not in str(caught.value)
    assert kind not in ("ArviZ data", "tree", "group") or "pe.plots.report" in str(caught.value)


def test_only_pictures_are_listed():
    own = {name for name in dir(plots) if not name.startswith("_")}
    modules = {name for name in own if isinstance(getattr(plots, name), ModuleType)}
    assert own - modules <= set(plots.__all__)


@pytest.mark.parametrize("options", [{"quantities": ["mu"]}, {"quantities": []}, {"alpha": 1.0}])
def test_ranks_of_bad_options(options):
    with pytest.raises(OptionError, match="Expected"):
        plots.ranks(simulated(), **options)


def test_an_overlap_is_found(monkeypatch):
    figure = plots.accuracy(runs(1)).get_figure()
    figure.text(0.5, 0.5, "planted")
    figure.text(0.5, 0.5, "on one another")
    boxes = drawn_texts(figure, monkeypatch)
    assert any(one.overlaps(two) for (_, one), (_, two) in combinations(boxes, 2))


@pytest.mark.parametrize("kind", ["figure", "axes"])
def test_save_writes_a_png_at_150_dpi(tmp_path, kind):
    ax = plots.accuracy(runs(2))
    figure = ax.get_figure()
    plots.save(figure if kind == "figure" else ax, tmp_path / "accuracy.png")
    assert os.listdir(tmp_path) == ["accuracy.png"]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    height, width, _ = matplotlib.image.imread(tmp_path / "accuracy.png").shape
    assert (width, height) == tuple(int(150 * inches) for inches in figure.get_size_inches())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    class Failing:
        def savefig(self, path, **options):
            path.write_text("half")
            raise OSError("disk full")

    (tmp_path / "a.png").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        plots.save(Failing(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [n for n in sys.modules if n.split(".")[:2] == ["pyro_equivariance", "plots"]]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("pyro_equivariance.plots")
    assert 'pip install "pyro-equivariance[plots]"' in caught.value.__notes__[0]
