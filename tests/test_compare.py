"""The main job on small data: what it writes, what it says, and how it refuses what it cannot use."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import torch

import pyro_equivariance as pe
from pyro_equivariance import cli
from pyro_equivariance.data import synthetic
from pyro_equivariance.experiments import METHODS, Config, convolutional_network
from pyro_equivariance.experiments.base import GROUPS, load_data, make_problem
from pyro_equivariance.experiments.compare import recommend, write_json
from pyro_equivariance.experiments.evaluation import DEFINITIONS
from pyro_equivariance.experiments.evaluation import test_draws as draws_of_test
from pyro_equivariance.networks import network_symmetry

TINY = ["--train-size", "40", "--validation-size", "12", "--test-size", "12", "--epochs", "2", "--batch-size", "20",
        "--width", "8", "--draws", "3"]  # fmt: skip


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)


def write_npz(path, images=None, labels=None, **extra):
    data = synthetic(80, size=8, classes=4)
    images = data.images.numpy() if images is None else images
    np.savez(path, images=images, labels=data.labels.numpy() if labels is None else labels, **extra)
    return str(path)


@pytest.fixture
def npz(tmp_path):
    return write_npz(tmp_path / "shapes.npz")


def run(capsys, *arguments):
    status = cli.main(["compare", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("group", ["c4", "d4"])
def test_all_methods_on_an_npz(capsys, tmp_path, npz, group):
    out = tmp_path / "results"
    status, printed, _ = run(capsys, "--data", npz, "--group", group, "--out", str(out), *TINY)
    assert status == 0
    results = json.loads((out / "results.json").read_text())
    runs = results["runs"]
    assert [r["method"] for r in runs] == list(METHODS)
    assert all(set(r) == set(DEFINITIONS) for r in runs)
    assert [r["method"] for r in runs if r["certificate"] is None] == ["ensemble"]
    assert all(r["certificate"] >= r["defect"] - 3 * r["defect_se"] for r in runs if r["method"] != "ensemble")
    assert all(r["certificate"] == 0 for r in runs if r["exact"])
    assert results["config"]["group"] == group and results["config"]["kl_weight"] == Config().kl_weight
    tied = runs[list(METHODS).index("expansion-tied")]
    assert tied["osp"] == 1 and abs(tied["defect"]) < 1e-10 and tied["parameters"] < runs[0]["parameters"]
    assert results["recommendation"] in printed and printed.count("\n") > len(METHODS)
    written = {p.name for p in out.iterdir()}
    assert {"accuracy.png", "defect.png", "kernels.png", "training.png", "posterior.nc", "checkpoints"} <= written
    assert {f"{kind}-{m}.png" for m in METHODS for kind in ("orbit", "reliability")} <= written
    assert {"defect-elements.png", "defect-training.png", "rotation.png", "report.png", "report.html"} <= written
    assert not [name for name in written if name.endswith(".part")]
    checkpoint = torch.load(out / "checkpoints" / "always-seed0.pt", weights_only=True)
    assert sum(v.numel() for v in checkpoint.values()) == runs[list(METHODS).index("always")]["parameters"]


def test_posterior_reads_as_arviz(capsys, tmp_path, npz):
    options = [
        "--data",
        npz,
        "--methods",
        "baseline,expansion-tied",
        "--seeds",
        "0,1",
        "--out",
        str(tmp_path / "o"),
        *TINY,
    ]
    assert run(capsys, *options)[0] == 0
    idata = az.from_netcdf(tmp_path / "o" / "posterior.nc")
    tied = idata.sel(method_name="expansion-tied").orbit_predictive.probs
    assert tied.sizes["chain"] == 2 and list(tied.element.values) == ["e", "r90", "r180", "r270"]
    spread = tied - tied.sel(element="e")
    assert float(np.abs(spread).max()) < 1e-5  # every draw is equivariant
    baseline = idata.sel(method_name="baseline").orbit_predictive.probs
    assert float(np.abs(baseline - baseline.sel(element="e")).max()) > 1e-3


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison of two methods with two seeds."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("compared")
    options = ["--data", write_npz(folder / "shapes.npz"), "--methods", "projection,mixture", "--seeds", "0,1"]
    assert cli.main(["compare", *options, "--out", str(folder / "out"), *TINY]) == 0
    return folder / "out"


def test_every_test_image_is_in_the_file(compared):
    idata = pe.from_netcdf(compared / "posterior.nc", groups=["test_predictive"])
    results = json.loads((compared / "results.json").read_text())
    probs, label = (torch.tensor(idata.test_predictive[name].values) for name in ("probs", "label"))
    assert probs.shape == (2, 2, 4, 12, 4) and label.shape == (2, 2, 12)  # methods, seeds, turns, images, classes
    for row in results["runs"]:
        place = (["projection", "mixture"].index(row["method"]), row["seed"])
        assert pe.metrics.accuracy(probs[place], label[place]).item() == pytest.approx(row["accuracy_orbit"])
        nll = pe.metrics.negative_log_likelihood(probs[place].double(), label[place]).item()
        assert nll == pytest.approx(row["nll"], rel=1e-5)


def test_what_was_trained_is_in_the_file(compared):
    idata = pe.from_netcdf(compared / "posterior.nc")
    for history in json.loads((compared / "results.json").read_text())["histories"]:
        own = idata.variational.sel(method_name=history["method"], chain=history["seed"])
        assert own["loss"].values.tolist() == history["loss"] and own["step"].values.tolist() == history["steps"]
        assert np.isfinite(own["defect"].values).all() and (own["gradient_norm"].values > 0).all()
    assert "rule" not in idata.attrs and idata.attrs["group"] == "CyclicGroup(4)"  # what all runs say alike


def test_an_ensembles_defect_is_its_own_and_its_losses_stand_at_their_steps(capsys, tmp_path, npz):
    out = tmp_path / "o"
    assert run(capsys, "--data", npz, "--methods", "ensemble", "--out", str(out), *TINY)[0] == 0
    row, history = (json.loads((out / "results.json").read_text())[key][0] for key in ("runs", "histories"))
    assert history["steps"] == [2 * (epoch + 1) for epoch in range(len(history["loss"]))]
    idata = pe.from_netcdf(out / "posterior.nc", groups=["test_predictive"])
    probs = torch.tensor(idata.test_predictive["probs"].values[0, 0]).double()  # the mean of its members
    assert row["defect"] == pytest.approx((probs - probs[:1]).square().sum(-1).mean().item(), rel=1e-4)


def test_the_draws_of_an_ensemble_are_its_members_once_each(npz):
    sizes = {"train_size": 40, "validation_size": 12, "test_size": 12, "batch_size": 20, "width": 8}
    config = Config(data=npz, epochs=2, draws=3, **sizes)
    problem = make_problem(config, load_data(config), seed=0)
    fitted = METHODS["ensemble"].train(problem, 0, False)
    members = fitted.guide.predict(problem.splits.test[0])  # of upright images
    torch.testing.assert_close(draws_of_test(problem, fitted)[:, 0], members)


def test_what_compares_q_with_its_posterior_is_left_out_of_the_report(compared):
    assert pe.from_netcdf(compared / "posterior.nc").attrs["held_out"] == 1
    page = (compared / "report.html").read_text()
    assert not any(f"<td>{name}</td>" in page for name in ("elbo", "k_hat", "elpd_loo")) and "<td>accuracy</td>" in page


def test_report_rebuilds_the_pictures_without_training(capsys, tmp_path, compared, monkeypatch):
    copy = shutil.copytree(compared, tmp_path / "copy")
    pictures = {path.name: path.read_bytes() for path in copy.iterdir() if path.suffix in (".png", ".html")}
    shutil.rmtree(copy / "checkpoints")
    for name in pictures:
        (copy / name).unlink()
    for method in METHODS.values():
        monkeypatch.setattr(type(method), "train", None, raising=False)
    assert cli.main(["report", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in copy.iterdir()} == {"results.json", "posterior.nc", *pictures}
    assert all((copy / name).read_bytes() == content for name, content in pictures.items())
    results = json.loads((copy / "results.json").read_text())
    assert results["recommendation"] in printed and "mean ± standard deviation" in printed
    assert all(f"{row['nll']:.4f}" in printed for row in results["runs"])


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def changed(folder, change):
    results = json.loads((folder / "results.json").read_text())
    change(results)
    (folder / "results.json").write_text(json.dumps(results))


def unfinished(folder):
    changed(folder, lambda results: results.update(recommendation=None))


DAMAGE = {
    "no folder": (shutil.rmtree, r"no results\.json"),
    "no posterior": (lambda p: (p / "posterior.nc").unlink(), r"none at .*posterior\.nc"),
    "a posterior cut short": (lambda p: cut(p / "posterior.nc", 0.5), r"posterior\.nc"),
    "results cut short": (lambda p: cut(p / "results.json", 0.5), r"results\.json.*Run compare again"),
    "other results": (lambda p: (p / "results.json").write_text("{}"), r"lack config"),
    "an interrupted comparison": (unfinished, r"finished"),
    "a run without a field": (lambda p: changed(p, lambda r: r["runs"][0].pop("nll")), r"nll is missing"),
    "a method less": (lambda p: changed(p, lambda r: r.update(runs=r["runs"][:1])), r"same methods.*mixture"),
    "another posterior": (
        lambda p: pe.diagnostics.save(az.from_dict(posterior={"z": np.zeros((1, 3))}), p / "posterior.nc"),
        r"orbit_predictive"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_one_line_and_status_2(capsys, tmp_path, compared, case):
    damage, expected = DAMAGE[case]
    copy = shutil.copytree(compared, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in copy.glob("*.png")}
    damage(copy)
    assert cli.main(["report", str(copy)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and re.search(expected, captured.err), captured.err
    assert all((copy / name).read_bytes() == content for name, content in before.items() if copy.exists())


def test_two_runs_agree_bit_for_bit(capsys, tmp_path, npz):
    rows = []
    for name in ("a", "b"):
        options = ["--data", npz, "--methods", "baseline,expansion", "--out", str(tmp_path / name), *TINY]
        assert run(capsys, *options)[0] == 0
        runs = json.loads((tmp_path / name / "results.json").read_text())["runs"]
        rows.append([{k: v for k, v in r.items() if k != "train_seconds"} for r in runs])
    assert rows[0] == rows[1]


def test_sum_is_mean_with_a_smaller_kl_weight(capsys, tmp_path, npz):
    """For a method that trains upright the convention only weighs the KL, by 1/|G|."""
    rows = []
    for convention, weight in (("sum", "1.0"), ("mean", "0.25")):
        out = tmp_path / convention
        options = ["--data", npz, "--methods", "always", "--likelihood", convention, "--kl-weight", weight]
        assert run(capsys, *options, "--out", str(out), *TINY)[0] == 0
        rows.append(json.loads((out / "results.json").read_text())["runs"][0]["nll"])
    assert rows[0] == rows[1]


def bad_labels(tmp_path, labels):
    return ["--data", write_npz(tmp_path / "bad.npz", labels=labels)]


def nan_images(tmp_path):
    images = synthetic(80).images.numpy().copy()
    images[3, 0, 2, 2] = np.nan
    return ["--data", write_npz(tmp_path / "bad.npz", images=images)]


def damaged(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    return ["--data", str(tmp_path / "bad.npz")]


BAD_INPUT = {
    "negative label": (lambda p: bad_labels(p, np.full(80, -1)), r"labels"),
    "labels of the wrong length": (lambda p: bad_labels(p, np.zeros(79, int)), r"79"),
    "fractional labels": (lambda p: bad_labels(p, np.full(80, 0.5)), r"labels"),
    "NaN image": (nan_images, r"finite"),
    "not square": (lambda p: ["--data", write_npz(p / "w.npz", images=np.zeros((80, 8, 6)))], r"square.*8 × 6.*c2"),
    "empty split": (lambda p: ["--train-size", "68", "--test-size", "0"], r"at least 1 image"),
    "split too large": (lambda p: ["--train-size", "500"], r"smaller"),
    "unknown method": (lambda p: ["--methods", "baseline,magic"], r"--methods.*'magic'"),
    "no method": (lambda p: ["--methods", ","], r"--methods"),
    "unknown group": (lambda p: ["--group", "c8"], r"group.*'c4'.*'c8'"),
    "missing file": (lambda p: ["--data", str(p / "nowhere.npz")], r"nowhere.npz"),
    "unknown data": (lambda p: ["--data", "imagenet"], r"imagenet"),
    "damaged file": (damaged, r"bad.npz"),
    "empty folder": (lambda p: ["--data", str(p)], r"IDX"),
    "likelihood": (lambda p: ["--likelihood", "median"], r"likelihood.*'median'"),
    "width": (lambda p: ["--width", "30"], r"--width.*multiple of 4"),
    "epochs": (lambda p: ["--epochs", "1"], r"2 epochs"),
    "KL weight": (lambda p: ["--kl-weight", "0"], r"--kl-weight"),
    "seed": (lambda p: ["--seeds=-1"], r"--seeds"),
    "infinite weight": (lambda p: ["--kl-weight", "inf"], r"--kl-weight"),
    "test size": (lambda p: ["--test-size", "-5"], r"--test-size"),
    "a label too large": (lambda p: bad_labels(p, np.r_[np.zeros(79, int), 10**12]), r"numbered"),
    "meta device": (lambda p: ["--device", "meta"], r"--device.*'meta'"),
    "no seed": (lambda p: ["--seeds", ","], r"seed"),
    "device": (lambda p: ["--device", "abacus"], r"--device.*'abacus'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(capsys, tmp_path, npz, case):
    make, expected = BAD_INPUT[case]
    out = tmp_path / "results"
    status, printed, error = run(capsys, "--data", npz, *TINY, *make(tmp_path), "--out", str(out))
    assert status == 2 and printed == ""
    assert error.count("\n") == 1 and error.startswith("pyro-equivariance: error: ")
    assert re.search(expected, error), error
    assert not out.exists()


def test_out_that_is_a_file_is_found_before_training(capsys, tmp_path, npz):
    (tmp_path / "taken").write_text("mine")
    status, printed, error = run(capsys, "--data", npz, "--out", str(tmp_path / "taken"), *TINY)
    assert (status, printed) == (2, "") and "--out" in error and (tmp_path / "taken").read_text() == "mine"


def test_results_that_cannot_be_replaced_are_found_before_training(capsys, tmp_path, npz):
    (tmp_path / "results.json").mkdir()
    status, printed, error = run(capsys, "--data", npz, "--out", str(tmp_path), *TINY)
    assert (status, printed) == (2, "") and "--out" in error


def test_words_for_seeds_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", "--seeds", "one"])
    assert stop.value.code == 2 and "whole numbers" in capsys.readouterr().err


def test_the_module_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "pyro_equivariance", "compare", "--group", "c8", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and "Traceback" not in done.stderr and "c8" in done.stderr


@pytest.mark.parametrize("side", [5, 7, 8, 9, 12, 15, 28, 32])
@pytest.mark.parametrize("group", ["c4", "d4"])
def test_the_network_is_compatible_at_every_size(side, group):
    net = convolutional_network((1, side, side), classes=3, width=8)
    assert net(torch.zeros(2, 1, side, side)).shape == (2, 3)
    assert network_symmetry(net, GROUPS[group](), (1, side, side)).check(net) < 1e-10


def test_an_interrupted_comparison_says_what_it_keeps(capsys, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_equivariance.experiments.compare.compare", stop)
    assert cli.main(["compare"]) == 130 and "results.json" in capsys.readouterr().err
    monkeypatch.setattr("pyro_equivariance.cli.run_study", stop)
    assert cli.main(["theory", "samples"]) == 130 and "nothing is written" in capsys.readouterr().err


def test_recommendation_names_the_lowest_validation_nll():
    base = {"validation_nll": 0.5, "nll": 0.6, "accuracy_orbit": 0.8, "exact": False, "defect": 0.1, "defect_se": 0.01}
    runs = [{**base, "method": "a"}, {**base, "method": "b", "validation_nll": 0.3, "exact": True}]
    assert recommend(runs).startswith("Use b:") and "exactly equivariant" in recommend(runs)
    assert "not equivariant" in recommend(runs[:1])
    assert "cannot be told from 0" in recommend([{**base, "method": "a", "defect": 0.01}])


def test_json_is_strict_and_whole(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"a": float("nan"), "b": (1.5, float("inf"))})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"] == [1.5, None]


def test_smoke_is_small():
    smoke = Config(seeds=(3, 4)).smoke()
    assert smoke.train_size <= 100 and smoke.seeds == (3,) and smoke.epochs >= 2
    assert Path(smoke.out) == Path(Config().out)


def test_a_smoke_run_says_that_its_numbers_mean_nothing(capsys, tmp_path):
    data = synthetic(260, size=8, classes=4)
    path = write_npz(tmp_path / "more.npz", images=data.images.numpy(), labels=data.labels.numpy())
    status, printed, _ = run(capsys, "--data", path, "--smoke", "--methods", "baseline", "--out", str(tmp_path / "o"))
    assert status == 0 and "mean nothing" in printed
