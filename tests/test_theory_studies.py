"""The studies of the theory: what they write, how they refuse, and the arithmetic behind their numbers."""

import csv
import json
import math
import re

import pytest
import torch
from pyro import poutine

import pyro_equivariance as pe
from pyro_equivariance import cli
from pyro_equivariance.data import ImageData, synthetic
from pyro_equivariance.experiments import assumptions, families, priors, study
from pyro_equivariance.experiments.theory import STUDIES, as_csv

SMALL = {"samples": ["--sizes", "2,4"], "priors": [], "assumptions": ["--steps", "4"], "certificate": [],
         "families": [], "ensembles": [], "generators": [], "breaking": [],
         "relaxed": [], "affine": [], "augmenters": []}  # fmt: skip


def run(capsys, *arguments):
    status = cli.main(["theory", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each study's smoke run, made once."""
    found = {}

    def make(name):
        if name not in found:
            out = tmp_path_factory.mktemp(name)
            assert cli.main(["theory", name, "--smoke", "--seeds", "3,4", "--out", str(out), *SMALL[name]]) == 0
            found[name] = out
        return found[name]

    return make


@pytest.fixture
def results(written):
    return lambda name: json.loads((written(name) / f"{name}.json").read_text())


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_writes_three_files_that_agree(written, results, name):
    assert {p.name for p in written(name).iterdir()} == {f"{name}.json", f"{name}.csv", f"{name}.png"}
    result = results(name)
    assert (
        result["study"] == name and result["config"]["seeds"] == [3] and result["versions"].keys() >= {"torch", "pyro"}
    )
    with (written(name) / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in result["rows"]]
    assert rows == expected and rows
    assert set(rows[0]) == set(result["definitions"])
    assert (written(name) / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_every_prediction_comes_true(results):
    result = results("assumptions")
    assert [r["setting"] for r in result["rows"]] == list(assumptions.CATALOGUE)
    assert all(r["agrees"] == "yes" for r in result["rows"])
    assert {r["predicted"] for r in result["rows"]} == {"exactly equivariant", "in law only", "not"}
    assert result["agreements"] == len(result["rows"])
    assert all(set(row) == set(result["law_definitions"]) for row in result["law"])


def test_an_invariant_prior_has_no_defect_and_a_random_one_has(results):
    rows = results("priors")["rows"]
    for row in rows:
        assert (row["defect"] < 1e-20) == (row["prior"] == "invariant")
        assert (row["natural_distance"] < 1e-10) == (row["prior"] == "invariant")


def test_the_bound_holds_and_starts_at_zero(results):
    result = results("certificate")
    assert result["holding"] == len(result["rows"]) and result["trivial_bound"] == 1.5
    assert all(r["certificate"] < 1e-10 and abs(r["defect"]) < 1e-20 for r in result["rows"] if r["size"] == 0)
    assert any(r["vacuous"] == "yes" for r in result["rows"])


def test_symmetric_posteriors_of_every_family_are_invariant_and_rules_are_those_of_the_library(results):
    result = results("families")
    for row in result["rows"]:
        assert (row["divergence"] < 1e-6) == (row["guide"] == "symmetric")
        assert math.isclose(row["objective"], row["elbo"] + 0.9 * row["kl"], rel_tol=1e-6)
    found = {law["family"]: (law["closed"], law["natural"], len(law["rules"])) for law in result["families"]}
    assert found == {"normal": ("yes", "yes", 3), "laplace": ("yes", "no", 1), "lognormal": ("yes", "yes", 3)}
    assert all(set(law) == set(result["family_definitions"]) for law in result["families"])


def test_split_weights_act_as_a_difference():
    plain, split = (families.bare_network((1, 8, 8), 10, 4, kind) for kind in (False, True))
    halves = {n: p.chunk(2, 1) for n, p in split.named_parameters()}
    for parameter, (a, b) in zip(plain.parameters(), halves.values(), strict=True):
        parameter.data = a - b
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(plain(x), split(x), atol=1e-5)


def test_the_fits_of_samples_are_defined(results):
    result = results("samples")
    names = set(result["fit_definitions"])
    assert all(names <= set(fit) for fit in result["fits"]) and all(names <= set(s) for s in result["summary"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["priors", "--data", "nowhere.npz"], "nowhere.npz"),
        (["priors", "--train-sizes", "50,20"], "--train-sizes"),
        (["priors", "--train-sizes", "20,5000"], "images"),
        (["samples", "--seeds", ","], "--seeds"),
        (["samples", "--sizes", "4,2"], "increasing"),
        (["samples", "--repeats", "2"], "--repeats"),
        (["assumptions", "--train-size", "10"], "multiple of 4"),
        (["samples", "--width", "6"], "--width"),
        (["samples", "--epochs", "0"], "--epochs"),
        (["samples", "--kl-weight", "0"], "--kl-weight"),
        (["certificate", "--threads", "0"], "--threads"),
        (["assumptions", "--steps=-1"], "--steps"),
    ],
)
def test_bad_options_are_one_line_and_status_2(capsys, tmp_path, arguments, expected):
    status, _, error = run(capsys, *arguments, "--out", str(tmp_path / "o"))
    assert status == 2 and error.count("\n") == 1 and re.search(expected, error), error
    assert not list(tmp_path.glob("o/*"))


def test_an_unknown_study_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["theory", "everything"])
    assert stop.value.code == 2 and "everything" in capsys.readouterr().err


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_an_out_that_cannot_be_written_is_found_before_training(capsys, tmp_path, taken):
    out = tmp_path / "out"
    if taken == "file":
        out.write_text("mine")
    else:
        (out / "samples.json").mkdir(parents=True)
    status, printed, error = run(capsys, "samples", "--out", str(out))
    assert (status, printed) == (2, "") and "--out" in error


def test_slope_of_a_power_law():
    sizes = [10, 40, 160, 640]
    assert abs(study.slope(sizes, [3 * n**-0.7 for n in sizes]) + 0.7) < 1e-12
    assert math.isnan(study.slope([5], [1.0])) and math.isnan(study.slope([1, 2], [1.0, 0.0]))


def test_over_seeds():
    found = study.over_seeds([1.0, 2.0, 3.0, math.nan])
    assert found == {"mean": 2.0, "sd": 1.0, "se": 1 / math.sqrt(3), "seeds": 3}
    assert math.isnan(study.over_seeds([1.0])["sd"])


def test_csv_leaves_out_what_is_not_finite():
    assert as_csv([{"a": 1.5, "b": math.inf}, {"a": math.nan, "b": "x, y"}]) == 'a,b\n1.5,\n,"x, y"\n'


def test_large_images_are_averaged(tmp_path, monkeypatch):
    big = synthetic(6, size=28)
    monkeypatch.setattr(study, "load", lambda source: big)
    small = study.load_images(study.StudyConfig())
    assert small.images.shape == (6, 1, 14, 14)
    assert torch.allclose(small.images.mean(), big.images.mean())
    monkeypatch.setattr(
        study, "load", lambda source: ImageData("wide", torch.zeros(2, 1, 4, 6).float(), torch.tensor([0, 1]), 2)
    )
    with pytest.raises(pe.DataError, match="square"):
        study.load_images(study.StudyConfig())


def small_setup(width=4, **options):
    data = synthetic(12, size=4)
    x, y = study.shuffled(data, 0, 12)
    return study.make_setup(x, y, data.classes, width, 0, **options), x, y


def test_draws_agree_with_orbit_predict():
    setup, x, y = small_setup()
    guide = setup.guide((x, y), invariant=False)
    fast, slow = study.orbit_draws(setup, guide, x, 2000), pe.orbit_predict(setup.model, guide, setup.symmetry, x, 500)
    assert fast.shape[1:] == slow.shape[1:]
    error = (fast.var(0) / 2000 + slow.var(0) / 500).sqrt()
    assert ((fast.mean(0) - slow.mean(0)) / error).abs().max() < 5
    assert study.orbit_draws(setup, guide, x, 3, independent=True).shape == (3, 4, 12, 4)


def test_orbits_of_draws_have_no_defect_if_invariant_and_the_right_one_otherwise():
    setup, x, y = small_setup()
    assert abs(study.orbit_defect(setup, setup.guide((x, y)), x, 5)[0].value) < 1e-25
    guide = setup.guide((x, y), invariant=False)
    orbits, _ = study.orbit_defect(setup, guide, x, 400)
    plain = pe.metrics.equivariance_defect(study.orbit_draws(setup, guide, x, 1600))
    assert abs(orbits.value - plain.value) < 4 * math.hypot(orbits.se, plain.se)


def test_linear_elbo_is_the_mean_of_sampled_ones():
    setup, x, y = small_setup(0, likelihood="normal")
    targets = torch.nn.functional.one_hot(y, 4).double()
    model, guide = pe.handlers.augment(setup.model, setup.symmetry), setup.guide((x, targets), invariant=False)
    exact = assumptions.LinearELBO().loss(model, guide, x, targets)

    def sampled():
        draw = poutine.trace(guide).get_trace(x, targets)
        seen = poutine.trace(poutine.replay(model, draw)).get_trace(x, targets)
        return (draw.log_prob_sum() - seen.log_prob_sum()).item()

    values = torch.tensor([sampled() for _ in range(300)])
    assert abs(values.mean() - exact) < 4 * values.std() / 300**0.5


def test_regression_optimum_has_zero_gradient():
    setup, x, y = small_setup(0, likelihood="normal")
    means = {n: torch.randn_like(p) for n, p in setup.net.named_parameters()}
    moments = priors.regression_optimum(setup, (x, y), 4, means, 1.0)
    law = pe.BayesianNetwork(
        setup.net, lambda n, p: pe.networks.bayesian.dist.Normal(means[n], 1.0).to_event(p.ndim), "normal"
    )
    guide = pe.AutoMeanFieldNormal(law, init_loc_fn=lambda site: moments[site["name"]][0],
                                   init_scale=lambda site: moments[site["name"]][1])  # fmt: skip
    targets = torch.nn.functional.one_hot(y, 4).double()
    guide.initialize(x, targets)
    assumptions.LinearELBO().loss_and_grads(pe.handlers.augment(law, setup.symmetry), guide, x, targets)
    assert max(float(p.grad.abs().max()) for p in guide.parameters()) < 1e-9


def test_the_direction_that_the_law_is_looked_at_in_is_odd():
    config = assumptions.AssumptionsConfig(train_size=8)
    trial = assumptions._Trial(config, synthetic(8, size=4), assumptions.CATALOGUE["independent draws"], 0)
    for name, a in trial._direction.items():
        assert trial._setup.symmetry[name].mean(a).abs().max() < 1e-12
    assert abs(trial.odd()) < 1e-12  # at an invariant start
