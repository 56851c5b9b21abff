"""A report shows the numbers of its data, says what is missing, and its files are whole and need no others."""

import base64
import io
import os
import re
from collections import namedtuple
from functools import cache
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from drawn import drawn_texts

import pyro_equivariance as pe
from pyro_equivariance import metrics, plots
from pyro_equivariance.diagnostics.base import ARVIZ, Modern, groups_of
from pyro_equivariance.errors import DataError, OptionError
from pyro_equivariance.plots.base import written

METHODS = ("baseline", "baseline-noaug", "geometric", "arithmetic", "projection", "always", "expansion",
           "expansion-tied", "equivarified")  # fmt: skip
ELEVEN = (*METHODS, "mixture", "ensemble")
LONG = ("a very long name of a method that does not fit", "another long name of a method, with more words")
Row = namedtuple("Row", "section name value se spread verdict definition")
Table = namedtuple("Table", "rows")


def diagnosis(count=26):
    sections = ("fit", "coverage of the orbit", "convergence between runs", "equivariance", "prediction")
    verdicts = ("flat", "cannot be told from 0 <at> two standard errors & more", "a long verdict " * 12)
    errors, spreads = (0.01, None, float("nan")), (0.02, None)
    return Table([
        Row(sections[5 * i // count], f"quantity {i}", 0.1234 * i, errors[i % 3], spreads[i % 2], verdicts[i % 3],
            f"definition <{i}> & ünits")
        for i in range(count)
    ])  # fmt: skip


def groups(group=None, classes=10, chains=2, draws=12, count=30, methods=None, seed=0):
    """All groups that a report reads, of a made-up classifier that is worse on moved copies."""
    group = group or pe.CyclicGroup(4)
    noise = np.random.default_rng(seed)
    labels = noise.integers(0, classes, count)
    shape = (len(methods) if methods else 1, chains, draws, len(group), count, classes)
    boost = np.linspace(3, 1, len(group))[:, None, None] * np.eye(classes)[labels]
    logits = boost - 0.1 * np.arange(shape[0]).reshape(-1, 1, 1, 1, 1, 1) + 0.8 * noise.normal(size=shape)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    at = 100 * np.arange(1, 21)
    arrays = {
        "posterior": {"mean_log_likelihood": (("draw",), noise.normal(-0.4, 0.05, shape[:3]))},
        "posterior_predictive": {"probs": (("draw", "observation", "class"), probs[:, :, :, 0])},
        "orbit_predictive": {"probs": (("draw", "element", "observation", "class"), probs)},
        "log_likelihood": {"y": (("draw", "observation"), np.log(probs[:, :, :, 0, np.arange(count), labels]))},
        "variational": {"loss": (("step",), np.exp(-at / 500) + 0.1 * noise.random((*shape[:2], 20)))},
    }
    coords = {"element": list(group.names), "step": at} | ({"method_name": list(methods)} if methods else {})
    outer = ("method_name", "chain") if methods else ("chain",)
    found = {
        name: xr.Dataset({key: ((*outer, *dims), v if methods else v[0]) for key, (dims, v) in variables.items()})
        for name, variables in arrays.items()
    }
    found = {name: d.assign_coords({k: v for k, v in coords.items() if k in d.dims}) for name, d in found.items()}
    images = noise.random((count, 1, 8, 8))
    return found | {
        "observed_data": xr.Dataset({"y": (("observation",), labels)}),
        "constant_data": xr.Dataset({"x": (("observation", "x_dim_1", "x_dim_2", "x_dim_3"), images)}),
    }


def attributes(group=None, outputs=None):
    group = group or pe.CyclicGroup(4)
    symmetry = f"Symmetry({group}, 3 sites, inputs={pe.image(group, (1, 8, 8))}, outputs={outputs})"
    return {"guide": "AutoNormal", "group": repr(group), "symmetry": symmetry, "seed": "3"}


def data(attrs=True, group=None, **options):
    return ARVIZ.container(groups(group, **options), attributes(group) if attrs else {})


def without(*names, attrs=True, **options):
    kept = {name: d for name, d in groups(**options).items() if name not in names}
    return ARVIZ.container(kept, attributes() if attrs else {})


def spoiled(methods=None):
    """NaN in the predictions of the only method, or of the second, and in some losses."""
    found = groups(methods=methods)
    found["orbit_predictive"].probs.values[1 if methods else slice(None)] = np.nan
    found["variational"].loss.values[..., 3:6] = np.nan
    return ARVIZ.container(found, attributes())


def regression(chains=2):
    found = groups(chains=chains)
    mean = found["orbit_predictive"].probs.isel({"class": 0}, drop=True)
    found["orbit_predictive"] = xr.Dataset({"mean": mean})
    found["observed_data"] = xr.Dataset({"y": (("observation",), np.linspace(-1, 1, 30))})
    return ARVIZ.container({n: d for n, d in found.items() if n != "posterior_predictive"}, attributes())


def with_tests(methods=None, chains=2, count=200, own_labels=False, group=None, **options):
    """All groups, and mean predictives of more data, which the draws are not of."""
    found = groups(methods=methods, chains=chains, group=group, **options)
    more = groups(methods=methods, chains=chains, group=group, count=count, draws=1, seed=1)
    probs = more["orbit_predictive"].probs.mean("draw").rename(observation="test_image")
    labels = more["observed_data"].y.rename(observation="test_image")
    if own_labels:
        labels = labels.expand_dims(chain=chains).copy()
        labels[1] = labels[1].roll(test_image=1)
    test = xr.Dataset({"probs": probs, "label": labels})
    return ARVIZ.container(found | {"test_predictive": test}, attributes(group))


def schools(chains=3, methods=None, seed=0):
    """Draws of parameters of several sites and scales, and no predictions."""
    noise = np.random.default_rng(seed)
    outer = (("method_name",) if methods else ()) + ("chain", "draw")
    shape = ((len(methods),) if methods else ()) + (chains, 50)
    arrays = {
        "mean_log_likelihood": (outer, noise.normal(size=shape)),
        "mu": (outer, 1e6 + noise.normal(size=shape)),
        "theta": ((*outer, "school", "theta_dim_1"), 1e-5 * noise.normal(size=(*shape, 3, 2))),
        "tau": (outer, noise.gamma(2, size=shape)),
        "a very long name of a site, with words": ((*outer, "axis"), np.ones((*shape, 40))),
    }
    coords = {"school": ["A", "B", "C"]} | ({"method_name": list(methods)} if methods else {})
    return ARVIZ.container({"posterior": xr.Dataset(arrays, coords)}, {"guide": "<lambda>"})


D4 = pe.DihedralGroup(4)
REPORTS = {
    "one method": lambda: plots.report(data(), diagnosis=diagnosis()),
    "one run": lambda: plots.report(data(chains=1), diagnosis=diagnosis(3)),
    "nine runs": lambda: plots.report(data(chains=9), diagnosis=diagnosis(3)),
    "eight elements, two classes": lambda: plots.report(data(group=D4, classes=2), diagnosis=diagnosis()),
    "nine methods": lambda: plots.report(data(methods=METHODS)),
    "nine methods, eight elements": lambda: plots.report(data(methods=METHODS, group=D4, chains=3)),
    "long names": lambda: plots.report(data(methods=LONG)),
    "no attributes": lambda: plots.report(data(attrs=False), diagnosis=()),
    "no attributes, two methods": lambda: plots.report(data(attrs=False, methods=METHODS[:2])),
    "NaN": lambda: plots.report(spoiled(), diagnosis=diagnosis(5)),
    "NaN in one method": lambda: plots.report(spoiled(METHODS[:3])),
    "regression": lambda: plots.report(regression(), diagnosis=diagnosis(5)),
    "no orbit": lambda: plots.report(without("orbit_predictive"), diagnosis=diagnosis(5)),
    "no images": lambda: plots.report(without("constant_data"), diagnosis=()),
    "posterior only": lambda: plots.report(ARVIZ.container({"posterior": groups()["posterior"]}, {}), diagnosis=()),
    "many elements": lambda: plots.report(
        data(group=pe.CyclicGroup(24), attrs=False, draws=4), diagnosis=diagnosis(3)),
    "more test data": lambda: plots.report(with_tests(), diagnosis=()),
    "more test data, eleven methods": lambda: plots.report(with_tests(ELEVEN, group=D4)),
    **{f"parameters of {c} runs": lambda c=c: plots.report(schools(c), diagnosis=diagnosis(2)) for c in (1, 3, 9)},
    "parameters of eleven methods": lambda: plots.report(schools(methods=ELEVEN)),
    "its own diagnosis": lambda: plots.report(data()),
}  # fmt: skip


@cache
def page(name):
    """A report of ``REPORTS`` that several tests read."""
    return REPORTS[name]()


@pytest.mark.parametrize("name", REPORTS)
def test_texts_neither_overlap_nor_leave_the_page_and_nothing_global_changes(name, monkeypatch):
    before = dict(matplotlib.rcParams)
    figure = page(name)
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []
    boxes = drawn_texts(figure, monkeypatch)
    overlapping = [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)]
    assert not overlapping
    width, height = figure.bbox.size
    assert not [t for t, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]


def test_an_overlap_on_the_page_is_found(monkeypatch):
    figure = plots.report(data(), diagnosis=diagnosis(3))
    figure.text(0.02, 0.98, "planted")
    boxes = drawn_texts(figure, monkeypatch)
    assert [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)]


# Numbers


def panel(figure, title):
    """The axes below the heading that starts with ``title``."""
    parts, found = [figure], []
    while parts:
        part = parts.pop()
        heading = part.get_suptitle() if part is not figure else ""
        if heading.startswith(title):
            found = part.axes
        parts += part.subfigs
    assert found, f"no panel {title!r}"
    return found


def texts(figure):
    """All texts of the page that stand outside axes."""
    parts, found = [figure], []
    while parts:
        part = parts.pop()
        found += [t.get_text() for t in part.texts]
        parts += part.subfigs
    return "\n".join(found)


def bars(container):
    points, _, (segments,) = container.lines
    return points.get_xydata(), np.array(segments.get_segments())


def test_the_orbit_of_the_input_and_its_moved_images():
    idata = data()
    figure = plots.report(idata, diagnosis=(), observation=7)
    found = groups_of(idata)
    axes = panel(figure, "Predictive over the orbit of input 7, class")
    image = torch.as_tensor(found["constant_data"].x.values[7])
    draws = found["orbit_predictive"].probs.values[..., 7, :].reshape(24, 4, 10)
    for g, copy in enumerate(pe.image(pe.CyclicGroup(4), (1, 8, 8)).orbit(image)):
        (shown,) = [ax for ax in axes if ax.images and ax.get_title() == ("e", "r90", "r180", "r270")[g]]
        np.testing.assert_allclose(shown.images[0].get_array(), copy[0])
    heights = [[bar.get_height() for bar in ax.containers[0]] for ax in axes if ax.containers]
    np.testing.assert_allclose(heights, draws.mean(0))


@pytest.mark.parametrize("attrs", ["none", "another group", "another action"])
def test_inputs_whose_action_is_not_known_are_drawn_once(attrs):
    given = {
        "none": {},
        "another group": attributes(pe.DihedralGroup(2)),
        "another action": attributes() | {"symmetry": "Symmetry(CyclicGroup(4), 3 sites, inputs=x, outputs=None)"},
    }
    axes = panel(plots.report(ARVIZ.container(groups(), given[attrs]), diagnosis=()), "Predictive")
    assert [ax.get_title() for ax in axes if ax.images] == ["input"]
    assert [ax.get_title() for ax in axes if ax.containers] == ["e", "r90", "r180", "r270"]


def test_defects_are_means_over_runs():
    idata = data()
    (ax,) = panel(page("one method"), "Defect of each")
    runs = [metrics.defect_by_element(torch.as_tensor(r)) for r in groups_of(idata)["orbit_predictive"].probs.values]
    shown = [bars(c) for c in ax.containers]
    for g, (point, ends) in enumerate(shown, start=1):
        value = np.mean([r[g].value for r in runs])
        error = np.sqrt(sum(r[g].se ** 2 for r in runs)) / 2
        np.testing.assert_allclose(point[0, 0], value)
        np.testing.assert_allclose(ends[0, :, 0], [value - error, value + error])
    assert len(shown) == 3


def test_reliability_and_scores_are_those_of_the_metrics():
    idata = data()
    figure = page("one method")
    found = groups_of(idata)
    probs = torch.as_tensor(found["orbit_predictive"].probs.values).mean(1)
    labels = torch.as_tensor(found["observed_data"].y.values)
    (ax, *_) = panel(figure, "Reliability, 2 runs pooled")
    named = [t.get_text() for t in ax.get_legend().get_texts()]
    assert named[1:] == [f"upright, ECE {metrics.calibration_error(probs[:, 0], labels).item():.3f}",
                         f"all moved copies, ECE {metrics.calibration_error(probs, labels).item():.3f}"]  # fmt: skip
    functions = (metrics.accuracy, metrics.negative_log_likelihood, metrics.calibration_error)
    for ax, score in zip(panel(figure, "Calibration under rotation"), functions, strict=True):
        expected = [np.mean([score(run[g], labels).item() for run in probs]) for g in range(4)]
        np.testing.assert_allclose(bars(ax.containers[0])[0][:, 1], expected)


def test_training_and_log_likelihoods_of_runs():
    idata = data(chains=3)
    figure = plots.report(idata, diagnosis=())
    found = groups_of(idata)
    (ax,) = panel(figure, "Training")
    np.testing.assert_allclose([line.get_ydata() for line in ax.get_lines()], found["variational"].loss)
    (ax,) = panel(figure, "Mean log likelihood")
    values = found["posterior"].mean_log_likelihood.values
    for patch, run in zip(ax.patches, values, strict=True):
        counts, edges, _ = patch.get_data()
        ranks = (values.ravel() < run[:, None]).sum(1)
        np.testing.assert_array_equal(counts, [((edges[b] < ranks) & (ranks < edges[b + 1])).sum() for b in range(2)])
    one = panel(plots.report(data(chains=1), diagnosis=()), "Mean log likelihood")[0].get_lines()[0]
    np.testing.assert_allclose(one.get_ydata(), groups_of(data(chains=1))["posterior"].mean_log_likelihood[0])


def test_methods_are_compared():
    idata = data(methods=METHODS[:3])
    figure = plots.report(idata)
    found = groups_of(idata)
    draws = torch.as_tensor(found["orbit_predictive"].probs.values)
    labels = torch.as_tensor(found["observed_data"].y.values)
    (ax,) = [ax for ax in panel(figure, "Predictive") if ax.containers]
    for container, values in zip(ax.containers, draws, strict=True):
        own = values[..., 0, int(labels[0])].flatten(0, 1)
        point, ends = bars(container)
        np.testing.assert_allclose(point[:, 1], own.mean(0))
        np.testing.assert_allclose(ends[:, :, 1].T, np.quantile(own, (0.05, 0.95), axis=0))
    axes = panel(figure, "Reliability")
    errors = [tuple(metrics.calibration_error(p, labels).item() for p in (m[:, 0], m)) for m in draws.mean(2)]
    assert [ax.get_title() for ax in axes] == [f"{n}\nECE {a:.3f}, {b:.3f}" for n, (a, b) in zip(METHODS, errors)]  # noqa: B905
    (ax,) = panel(figure, "Mean log likelihood")
    shown = [line.get_xdata() for line in ax.get_lines() if len(line.get_xdata()) == 2]
    values = found["posterior"].mean_log_likelihood.values.reshape(6, -1)
    np.testing.assert_allclose(shown, np.quantile(values, (0.05, 0.95), axis=1).T)
    table = texts(figure)
    for name, mean in zip(METHODS[:3], draws.mean(2), strict=True):
        scores = (metrics.accuracy(mean[:, 0], labels), metrics.accuracy(mean, labels),
                  metrics.negative_log_likelihood(mean, labels), metrics.calibration_error(mean, labels))  # fmt: skip
        assert re.search(rf"{name} +" + " +".join(f"{s.item():.4f}" for s in scores), table)


@pytest.mark.parametrize("own_labels", [False, True])
def test_scores_are_of_the_test_data_where_there_are_any(own_labels):
    idata = with_tests(METHODS[:2], own_labels=own_labels)
    found = groups_of(idata)
    probs = torch.as_tensor(found["test_predictive"].probs.values)  # (method, chain, element, image, class)
    labels = torch.as_tensor(found["test_predictive"].label.values).expand(2, -1)
    copies = labels[:, None].expand(-1, 4, -1)
    figure = plots.report(idata)
    for name, mean in zip(METHODS[:2], probs, strict=True):
        scores = (metrics.accuracy(mean[:, 0], labels), metrics.accuracy(mean, copies),
                  metrics.negative_log_likelihood(mean, copies), metrics.calibration_error(mean, copies))  # fmt: skip
        assert re.search(rf"{name} +" + " +".join(f"{s.item():.4f}" for s in scores), texts(figure))
    errors = [tuple(metrics.calibration_error(*of).item() for of in ((m[:, 0], labels), (m, copies))) for m in probs]
    shown = [ax.get_title().split("\n")[1] for ax in panel(figure, "Reliability")]
    assert shown == [f"ECE {a:.3f}, {b:.3f}" for a, b in errors]
    values = bars(panel(figure, "Calibration")[0].containers[0])[0][:, 1]
    expected = [np.mean([metrics.accuracy(probs[0, c, g], labels[c]).item() for c in range(2)]) for g in range(4)]
    np.testing.assert_allclose(values, expected)


def test_orbit_and_defects_are_of_the_draws_and_the_head_has_both_numbers():
    figure, small = page("more test data"), plots.report(data(), diagnosis=())
    for title in ("Defect of each", "Predictive over the orbit"):
        one, two = (
            [line.get_xydata().tolist() for ax in panel(f, title) for line in ax.get_lines()] for f in (figure, small)
        )
        assert one == two
    assert panel(figure, "Predictive over the orbit of input 0, class " + str(int(groups()["observed_data"].y[0])))
    assert "reliability and scores of 200 observations, all else of 30 observations" in texts(figure).replace("\n", " ")
    assert "2 runs × 12 draws, 30 observations," in texts(small)


@pytest.mark.parametrize("spoil", ["elements", "axes", "no label"])
def test_another_group_of_that_name_is_left_alone(spoil):
    found = groups_of(with_tests())
    test = found["test_predictive"]
    found["test_predictive"] = {
        "elements": test.assign_coords(element=list("abcd")),
        "axes": test.isel(element=0),
        "no label": test[["probs"]],
    }[spoil]
    idata = ARVIZ.container(found, attributes())
    assert texts(plots.report(idata, diagnosis=())) == texts(plots.report(data(), diagnosis=()))


def test_every_method_is_labelled_and_marked_as_elsewhere():
    figure = page("more test data, eleven methods")
    (ax,) = panel(figure, "Mean log likelihood")
    assert [t.get_text() for t in ax.get_yticklabels()] == list(ELEVEN)
    drawn = [(line.get_marker(), line.get_markerfacecolor()) for line in ax.get_lines() if line.get_marker() != "None"]
    legend = next(part for part in figure.subfigs if part.legends).legends[0]
    expected = {h.get_label(): (h.get_marker(), h.get_markerfacecolor()) for h in legend.legend_handles}
    assert drawn[::2] == drawn[1::2] == [expected[name] for name in ELEVEN]  # a point for each of two runs
    assert len(set(drawn)) == 11


def test_parameters_are_shown_by_run():
    axes = panel(page("parameters of 3 runs"), "Parameters: median, 50 % and 90 % of each run's draws, 8 of 48")
    posterior = groups_of(schools())["posterior"]
    long = "a very long name of a site, with words"
    draws = {"mu": posterior.mu, **{f"theta[{s}, {i}]": posterior.theta.sel(school=s)[..., i]
                                    for s, i in (("A", 0), ("A", 1), ("B", 0))},
             "tau": posterior.tau, **{f"{long}[{i}]": posterior[long][..., i] for i in range(3)}}  # fmt: skip
    assert [ax.get_title()[:5] for ax in axes] == [name[:5] for name in draws]
    assert [ax.get_title() for ax in axes[:5]] == list(draws)[:5]
    for ax, values in zip(axes, draws.values(), strict=True):
        ends = np.quantile(values, (0.05, 0.95, 0.25, 0.75, 0.5), axis=1).T
        shown = [np.concatenate([line.get_xdata() for line in ax.get_lines()[3 * r : 3 * r + 3]]) for r in range(3)]
        np.testing.assert_allclose(shown, ends)
        assert len({line.get_color() for line in ax.get_lines()}) == 3
    pooled = panel(page("parameters of eleven methods"), "Parameters: median, 50 % and 90 % of the draws")[0]
    assert len(pooled.get_lines()) == 33


def test_draws_of_parameters_that_are_not_finite_are_left_out():
    found = groups_of(schools(1))
    found["posterior"].tau.values[0, :10] = np.nan
    found["posterior"].mu.values[:] = np.nan
    axes = panel(plots.report(ARVIZ.container(found, {}), diagnosis=()), "Parameters")
    kept = found["posterior"].tau.values[0, 10:]
    (ax,) = [ax for ax in axes if ax.get_title() == "tau"]
    assert ax.get_lines()[2].get_xdata()[0] == pytest.approx(np.median(kept))


def test_the_head_names_the_library_of_the_data_and_no_lambda():
    attrs = {"inference_library": "numpyro", "inference_library_version": "0.18"}
    other = ARVIZ.container(groups(), attrs)
    assert "numpyro 0.18" in texts(plots.report(other, diagnosis=()))
    nameless = ARVIZ.container(groups(), {"inference_library_version": "4.2.2"})
    assert "4.2.2" not in texts(plots.report(nameless, diagnosis=()))
    assert "<lambda>" not in texts(page("parameters of 3 runs")) and "AutoNormal" in texts(page("one method"))


@pytest.mark.parametrize(("value", "error", "text"), [
    (-2153.4, 4.2, "-2153 ± 4"), (29.4, 18.0, "30 ± 20"), (0.12345, 0.0967, "0.1 ± 0.1"),
    (-3e-5, 2e-3, "0.000 ± 0.002"),
    (1.2345e-7, 3e-9, "1.23e-07 ± 3e-09"), (0.0, 2e-9, "0 ± 2e-09"),
    (-1.5e7, 2e5, "-1.50e+07 ± 2e+05"), (0.25, 1e-17, "0.25 ± 1e-17"),
    (0.0, 0.0, "0"), (0.5, 0.0, "0.5 ± 0"), (2.0, None, "2"), (12.0, 310.0, "0 ± 300"),
])  # fmt: skip
def test_numbers_have_the_digits_of_their_errors(value, error, text):
    assert written(value, error) == text


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_rounding_errors_are_zero(scale, tmp_path):
    """In the unit of the outputs: a defect of small outputs is none."""
    found = groups_of(regression(chains=1))
    outputs = found["orbit_predictive"]["mean"].values
    outputs[:] = scale * outputs[:, :, :1]
    outputs[:, :, 2] *= 1 + 1e-15
    outputs[:, ::2, 3] *= 2
    rows = [Row("equivariance", "defect", 1e-17, 2e-17, 0.0, "0 up to rounding", ""),
            Row("equivariance", "symmetric_kl", -1e-16, 2e-17, 0.0, "small", ""),
            Row("prediction", "p", 1e-17, 2e-18, 0.0, "", "")]  # fmt: skip
    plots.report_html(ARVIZ.container(found, attributes()), tmp_path / "r.html", Table(rows))
    cells = read(tmp_path / "r.html").cells
    assert cells[cells.index("r180") + 1] == "0" and " ± " in cells[cells.index("r270") + 1]
    assert [cells[cells.index(name) + 1] for name in ("symmetric_kl", "p")] == ["0", "1.0e-17 ± 2e-18"]
    assert "0" == cells[len(cells) - cells[::-1].index("defect")]


@pytest.mark.parametrize("draw", [plots.report, lambda idata: plots.report_html(idata, "never.html")])
@pytest.mark.parametrize(("given", "match"), [
    ("net.nc", r"got the path 'net\.nc'\. Read it with pe\.from_netcdf\(path\)"),
    (Path("net.nc"), "from_netcdf"),
    ({"posterior": 1}, "got dict"), (None, "got NoneType"), (np.ones(3), "got ndarray"),
])  # fmt: skip
def test_what_is_no_arviz_data_is_refused(draw, given, match):
    with pytest.raises(DataError, match=match) as caught:
        draw(given)
    assert "\n" not in str(caught.value)


def test_outputs_that_move_need_the_symmetry():
    group = pe.CyclicGroup(2)
    found = groups(group, classes=2)
    attrs = attributes(group, outputs=pe.regular(group))
    table = texts(plots.report(ARVIZ.container(found, attrs), diagnosis=()))
    assert "defect, calibration under rotation (the outputs move, pass symmetry=)" in table
    symmetry = pe.Symmetry(group, {}, inputs=pe.image(group, (1, 8, 8)), outputs=pe.regular(group))
    figure = plots.report(ARVIZ.container(found, attrs), diagnosis=(), symmetry=symmetry)
    probs = torch.as_tensor(found["orbit_predictive"].probs.values)
    labels = torch.as_tensor(found["observed_data"].y.values)
    values = bars(panel(figure, "Calibration")[0].containers[0])[0][:, 1]
    expected = [np.mean([metrics.accuracy(run[g], (labels + g) % 2).item() for run in probs.mean(1)]) for g in (0, 1)]
    np.testing.assert_allclose(values, expected)
    defect = bars(panel(figure, "Defect")[0].containers[0])[0][0, 0]
    moved = np.mean([metrics.defect_by_element(run, action=pe.regular(group))[1].value for run in probs])
    assert defect == pytest.approx(moved)


def test_the_diagnosis_is_in_the_page():
    table = texts(plots.report(data(), diagnosis=diagnosis(6)))
    assert re.search(r"quantity 3 +0\.37 ± 0\.01 +flat", table)
    assert "COVERAGE OF THE ORBIT" in table
    assert " ".join(table.split()).count("a long verdict") == 24
    own = texts(page("its own diagnosis"))
    assert re.search(r"accuracy", own) and "EQUIVARIANCE" in own


@pytest.mark.parametrize(("name", "missing"), [
    ("no orbit", "predictive over the orbit, defect (no orbit_predictive)"),
    ("NaN", "predictive over the orbit (NaN or inf predicted); defect (NaN or inf predicted)"),
    ("NaN in one method", "NaN or inf predicted by baseline-noaug"),
    ("regression", "reliability (no class probabilities with their labels)"),
    ("posterior only", "training (no variational.loss)"),
])  # fmt: skip
def test_what_is_missing_is_said(name, missing):
    assert missing in texts(page(name)).replace("\n", " ")


def test_nothing_is_missing_from_all_groups():
    assert "Not shown" not in texts(page("one method")) + texts(page("nine methods"))


def test_both_series_of_arviz_give_the_same_page():
    legacy, modern = data(), Modern().container(groups(), attributes())
    one, two = (texts(plots.report(idata, diagnosis=())) for idata in (legacy, modern))
    assert one == two and "2 runs × 12 draws, 30 observations, group CyclicGroup(4), seed 3" in one


# Files


class Reader(HTMLParser):
    """Collects the tags, their attributes and the texts, and checks that tags close in order."""

    VOID = {"meta", "img", "br"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.cells = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += text


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open
    return reader


def test_png_and_html(tmp_path):
    small = without("orbit_predictive", "posterior_predictive", "variational")
    figure = plots.report(small, tmp_path / "a.png", diagnosis(6))
    plots.report(small, tmp_path / "b.html", diagnosis(6))
    plots.report_html(small, tmp_path / "c", diagnosis(6))
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.html", "c"]
    height, width, _ = matplotlib.image.imread(tmp_path / "a.png").shape
    assert (width, height) == tuple(int(150 * inches) for inches in figure.get_size_inches())
    assert read(tmp_path / "b.html").cells == read(tmp_path / "c").cells


def test_html_needs_no_other_file_and_escapes_what_it_is_given(tmp_path):
    found = ARVIZ.container(groups(methods=("a <b>&", "c")), attributes() | {"note": "<script>1</script> ü"})
    plots.report(found, tmp_path / "r.html", {"a <b>&": diagnosis(6), "c": diagnosis(4)})
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = read(tmp_path / "r.html")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "b"} and {"table", "title", "h1", "img"} <= tags
    assert ("meta", {"charset": "utf-8"}) in page.tags and any(a.get("name") == "viewport" for _, a in page.tags)
    for _, attrs in page.tags:
        assert "href" not in attrs and attrs.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and "@import" not in text
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 7 and all(attrs["alt"] for attrs in pictures)
    for attrs in pictures:
        assert matplotlib.image.imread(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1]))).ndim == 3
    assert "definition <3> & ünits" in page.cells and "<script>1</script> ü" in page.cells


def test_html_tables_hold_the_numbers(tmp_path):
    idata = data(chains=1)
    plots.report_html(idata, tmp_path / "r.html", diagnosis(6))
    cells = read(tmp_path / "r.html").cells
    row = cells.index("r180")
    run = torch.as_tensor(groups_of(idata)["orbit_predictive"].probs.values[0])
    defect = metrics.defect_by_element(run)[2]
    labels = torch.as_tensor(groups_of(idata)["observed_data"].y.values)
    accuracy, error = (f(run.mean(0)[2], labels).item() for f in (metrics.accuracy, metrics.calibration_error))
    assert cells[row + 1] == f"{defect.value:.3f} ± {defect.se:.3f}" and f"{defect.se:.0e}".endswith("e-03")
    assert cells[row + 2].startswith(f"{accuracy:.6g} ± 0") and cells[row + 4].startswith(f"{error:.2f} ± 0.")
    quantity = cells.index("quantity 3")
    assert cells[quantity : quantity + 5] == ["quantity 3", "0.37 ± 0.01", "", "flat", "definition <3> & ünits"]


def test_every_method_is_diagnosed_in_html(tmp_path, monkeypatch):
    seen = []

    def diagnose(idata, symmetry=None):
        seen.append(dict(groups_of(idata)["orbit_predictive"].probs.sizes))
        return diagnosis(3)

    monkeypatch.setattr("pyro_equivariance.diagnostics.diagnose", diagnose)
    plots.report(data(methods=METHODS[:2]))
    assert not seen
    plots.report_html(data(methods=METHODS[:2]), tmp_path / "r.html")
    assert seen == [{"chain": 2, "draw": 12, "element": 4, "observation": 30, "class": 10}] * 2


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_a_failed_report_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("pyro_equivariance.plots.base.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.report(without("orbit_predictive", "variational"), path, diagnosis=())
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["a.pdf", "a"])
def test_other_files_are_refused(tmp_path, name):
    with pytest.raises(OptionError, match=r"ends in \.png or \.html"):
        plots.report(data(), tmp_path / name, diagnosis=())


@pytest.mark.parametrize("observation", [-1, 30])
def test_an_input_that_there_is_not(observation):
    with pytest.raises(OptionError, match=rf"in 0\.\.29; got {observation}"):
        plots.report(data(), diagnosis=(), observation=observation)


@pytest.mark.parametrize("runs", [1, 2])
def test_a_stack_of_one_method_is_drawn_as_that_method(tmp_path, runs):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4))
    model = pe.BayesianNetwork(net)
    data = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    several = [pe.to_arviz(model, pe.AutoMeanFieldNormal(model), data, symmetry, draws=6) for _ in range(runs)]
    stacked = pe.diagnostics.stack({"baseline": several})
    figure = pe.plots.report(stacked, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "coverage" in page and figure.axes
