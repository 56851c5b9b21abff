"""Saved and loaded: descriptions as plain data, guides with their parameters, in this process and in a new one."""

import math
import pickle
import subprocess
import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import GROUPS, NETWORKS, REPRESENTATIONS
from pyro.infer import SVI, Trace_ELBO, autoguide
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance import storage
from pyro_equivariance.families.base import Carried
from pyro_equivariance.families.directional import Circle
from pyro_equivariance.families.simplex import Pairs
from pyro_equivariance.measures import ElementList
from pyro_equivariance.spaces import LogRatios
from pyro_equivariance.storage import decode, encode

MORE_GROUPS = {
    "octahedral": pe.OctahedralGroup,
    "octahedral, reflections": lambda: pe.OctahedralGroup(reflections=True),
    "SO(3)": lambda: pe.SpecialOrthogonal(3),
    "GL(2)": lambda: pe.GeneralLinear(2),
    "affine maps": lambda: pe.Affine(3),
    "a law on rotations and shifts": lambda: pe.LieBox(pe.Generators.affine_plane(), 0.1),
    "a list": lambda: pe.Symmetry(pe.LieBox(pe.Generators.so(3), 0.1), {}).listed(3).group,
    "S5 from generators": lambda: pe.PermutationGroup([(1, 2, 3, 4, 0), (1, 0, 2, 3, 4)]),
    "one permutation": lambda: pe.PermutationGroup([(0, 1, 2)]),
}
MORE_REPRESENTATIONS = {
    "angle": lambda: pe.angle(pe.CyclicGroup(2), [0.0, math.pi]),
    "interpolated": lambda: pe.image(pe.CyclicGroup(8), (2, 4, 4), interpolation="bicubic"),
    "interpolated, SO(2)": lambda: pe.image(pe.SpecialOrthogonal(2), (4, 4), interpolation="bilinear"),
    "rotation": lambda: pe.vector(pe.SpecialOrthogonal(3)),
    "points": lambda: pe.vector(pe.LieBox(pe.Generators.so(3), 0.5)).dual,
    "points under a law": lambda: pe.vector(pe.LieBox(pe.Generators.lorentz(), 0.5)),
    "points over a list": lambda: pe.Symmetry(G := pe.LieBox(pe.Generators.lorentz(), 0.5), {"p": pe.vector(G)}).listed(
        3
    )["p"],
    "quotient": lambda: pe.quotient(pe.DihedralGroup(4), ["s"]),
    "sequence": lambda: pe.sequence(pe.DihedralGroup(2), (2, 4)),
    "units": lambda: pe.trivial(G := pe.YoungSubgroup((2, 3)), 2) * pe.permutation(G, block=1),
    "ten things": lambda: pe.permutation(pe.SymmetricGroup(10)),
    "volume": lambda: pe.volume(pe.OctahedralGroup(), (2, 2, 2)),
    "one factor on unconstrained values": lambda: (
        pe.vector(pe.SignGroup()).on_unconstrained() * pe.trivial(pe.SignGroup(), 2)
    ),
}
WAYS = ["file", "pickle"]


def through(value, way, tmp_path):
    """The value after a round trip, as plain data or by pickle."""
    if way == "pickle":
        return pickle.loads(pickle.dumps(value))
    torch.save(encode(value), tmp_path / "value.pt")
    return decode(torch.load(tmp_path / "value.pt", weights_only=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GROUPS | MORE_GROUPS)
def test_groups(name, way, tmp_path):
    group = (GROUPS | MORE_GROUPS)[name]()
    again = through(group, way, tmp_path)
    assert again == group and hash(again) == hash(group) and again is not group
    if (
        group.is_finite and group.is_uniform
    ):  # transversals too: they decide in which order a mean over the group adds up
        assert (again.generators, again.names, again.transversals) == (
            group.generators, group.names, group.transversals
        )  # fmt: skip


@pytest.mark.parametrize("space", ["constrained", "unconstrained"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REPRESENTATIONS | MORE_REPRESENTATIONS)
def test_representations(name, way, space, tmp_path):
    rep = (REPRESENTATIONS | MORE_REPRESENTATIONS)[name]()
    rep = rep.on_unconstrained() if space == "unconstrained" else rep
    again = through(rep, way, tmp_path)
    assert again == rep and hash(again) == hash(rep)
    assert (again.space, repr(again), again.event_shape) == (space, repr(rep), rep.event_shape)
    x, g = torch.randn(rep.event_shape), rep.group.sample((3,))
    x = x.expand(3, *x.shape)
    assert torch.equal(again.act(g, x), rep.act(g, x))


@pytest.mark.parametrize("way", WAYS)
def test_labels(way, tmp_path):
    rep = pe.labels(pe.SymmetricGroup(3))
    again = through(rep, way, tmp_path)
    assert (
        again == rep
        and again.act(torch.arange(6)[:, None], torch.arange(3)).tolist()
        == rep.act(torch.arange(6)[:, None], torch.arange(3)).tolist()
    )


def test_spaces_tell_representations_apart(tmp_path):
    rep = REPRESENTATIONS["signs"]()
    assert through(rep.on_unconstrained(), "file", tmp_path) != rep


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_symmetries_of_networks(name, way, tmp_path):
    symmetry = NETWORKS[name]().symmetry
    again = through(symmetry, way, tmp_path)
    assert again == symmetry and hash(again) == hash(symmetry)
    assert list(again.sites) == list(symmetry.sites)  # the order of a joint vector


def test_every_description_can_be_saved():
    """A new kind of group or representation needs a line in the table."""

    def kinds(base):
        return {base} | {k for kind in base.__subclasses__() for k in kinds(kind)}

    abstract = {pe.Group, pe.Representation, pe.groups.MatrixGroup, pe.measures.Measure}
    described = set.union(*map(kinds, abstract)) | {pe.Generators, pe.Symmetry, pe.YoungSubgroup, ElementList}
    described = {kind for kind in described if kind.__module__.startswith("pyro_equivariance")}
    made_anew = {LogRatios, Carried, Circle, Pairs}  # by guides and families, from what was saved
    learned = kinds(pe.measures.LearnedMeasure)  # modules, saved as such; what they have learned by .fixed()
    assert described - abstract - made_anew - learned == set(storage.VALUES)


@pytest.mark.parametrize("value", [nn.Linear(2, 2), {1, 2}, len, object()], ids=["module", "set", "function", "object"])
def test_what_cannot_be_encoded(value):
    with pytest.raises(pe.SymmetryError, match="numbers, strings, tensors, groups or representations to save; got"):
        encode({"x": [value]})


# Guides


def network(likelihood="categorical", prior=1.0, dtype=torch.float64):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(4, 3)).to(dtype)  # fmt: skip
    return pe.BayesianNetwork(net, likelihood=likelihood, prior=prior)


def network_case(dtype=torch.float64, **options):
    model = network(dtype=dtype, **options)
    x = torch.randn(4, 1, 4, 4, dtype=dtype)
    symmetry = pe.network_symmetry(model.net, pe.CyclicGroup(4), (1, 4, 4))
    y = torch.arange(4) % 3 if "likelihood" not in options else torch.randn(4, 3, dtype=dtype)
    return model, symmetry, (x, y)


def rates(x, y=None):
    """Three exchangeable groups of data, each with a level and a positive scale, in a plate, and a common level."""
    common = pyro.sample("common", dist.Normal(x.new_tensor(0.0), 1.0))
    with pyro.plate("groups", 3):
        level = pyro.sample("level", dist.Normal(common, 1.0))
    scale = pyro.sample("scale", dist.Gamma(x.new_full((3,), 2.0), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(level + x[:, None], scale).to_event(1), obs=y)


def general_case(dtype=torch.float64):
    group = pe.SymmetricGroup(3)
    sites = {"common": pe.trivial(group, ()), "level": pe.permutation(group), "scale": pe.permutation(group)}
    return rates, pe.Symmetry(group, sites), (torch.randn(5, dtype=dtype), torch.randn(5, 3, dtype=dtype))


CASES = {"network": network_case, "general": general_case}
BUILD = {
    "AutoMeanFieldNormal": lambda model, symmetry: pe.AutoMeanFieldNormal(model),
    "AutoOrbitMixture": lambda model, symmetry: pe.AutoOrbitMixture(model, symmetry),
    "AutoOrbitMixture, full": lambda model, symmetry: pe.AutoOrbitMixture(model, symmetry, base="full"),
    "AutoOrbitMixture, low rank": lambda model, symmetry: pe.AutoOrbitMixture(
        model, symmetry, base="low_rank", rank=2, max_exact=2, samples=3
    ),
    "AutoSymmetric": lambda model, symmetry: pe.AutoSymmetric(
        model, symmetry, families={"scale": "gamma"} if "scale" in symmetry.sites else None, rule="arithmetic"
    ),
    "AutoSymmetricLowRankMultivariateNormal": lambda model, symmetry: pe.AutoSymmetricLowRankMultivariateNormal(
        model, symmetry, rule="arithmetic", rank=2
    ),
    "AutoSymmetricMultivariateNormal": lambda model, symmetry: pe.AutoSymmetricMultivariateNormal(
        model, symmetry, rule="projection"
    ),
    "AutoSymmetricNormal": lambda model, symmetry: pe.AutoSymmetricNormal(model, symmetry, rule="arithmetic"),
    "AutoDiagonalNormal": lambda model, symmetry: autoguide.AutoDiagonalNormal(model),
    "AutoMultivariateNormal": lambda model, symmetry: autoguide.AutoMultivariateNormal(model),
    "AutoNormal": lambda model, symmetry: autoguide.AutoNormal(model),
    "SymmetrizedGuide": lambda model, symmetry: pe.SymmetrizedGuide(
        autoguide.AutoNormal(model), symmetry, rule="arithmetic"
    ),
}
OURS = [name for name in BUILD if name.startswith(("AutoM", "AutoO", "AutoS")) and name != "AutoMultivariateNormal"]


def test_every_guide_is_tested():
    assert {name.split(",")[0] for name in BUILD} - {"SymmetrizedGuide"} == {kind.__name__ for kind in storage.GUIDES}


def started(guide, args):
    """The guide, initialised and with random parameters."""
    pyro.set_rng_seed(1)
    guide(*args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def draws(guide, args, seed=3):
    pyro.set_rng_seed(seed)
    return guide(*args)


def assert_same_draws(first, second, args):
    expected, found = draws(first, args), draws(second, args)
    assert list(expected) == list(found)
    for site, value in expected.items():
        assert torch.equal(value, found[site]) and value.dtype == found[site].dtype, site
    assert not torch.equal(next(iter(expected.values())), next(iter(draws(first, args, seed=4).values())))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BUILD)
@pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
class TestRoundTrip:
    def test_draws_are_the_same(self, name, case, tmp_path):
        model, symmetry, args = CASES[case]()
        guide = started(BUILD[name](model, symmetry), args)
        pe.save(tmp_path / "guide.pt", guide, args)
        again = pe.load(tmp_path / "guide.pt", model)
        assert type(again) is type(guide) and again is not guide
        assert_same_draws(guide, again, args)
        for option in ("symmetry", "families", "rule", "base", "rank", "max_exact", "samples"):
            if hasattr(guide, option):
                assert getattr(again, option) == getattr(guide, option)

    def test_the_two_are_independent(self, name, case, tmp_path):
        """Loading changes neither a guide that lives, nor the state of the random numbers."""
        model, symmetry, args = CASES[case]()
        guide = started(BUILD[name](model, symmetry), args)
        pe.save(tmp_path / "guide.pt", guide, args)
        saved = [p.detach().clone() for p in guide.parameters()]
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.add_(1.0)
        before = [p.detach().clone() for p in guide.parameters()]
        state = torch.get_rng_state()
        again = pe.load(tmp_path / "guide.pt", model)
        assert torch.equal(torch.get_rng_state(), state)
        guide(*args), again(*args)
        assert all(torch.equal(a, b) for a, b in zip(guide.parameters(), before, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), saved, strict=True))

    def test_it_trains_on(self, name, case, tmp_path):
        model, symmetry, args = CASES[case]()
        guide = started(BUILD[name](model, symmetry), args)
        pe.save(tmp_path / "guide.pt", guide, args)
        again = pe.load(tmp_path / "guide.pt", model)
        losses, parameters = [], []
        for one in (guide, again):
            pyro.set_rng_seed(5)
            svi = SVI(model, one, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
            losses.append([svi.step(*args) for _ in range(3)])
            parameters.append([p.detach().clone() for p in one.parameters()])
        assert losses[0] == losses[1] and losses[0][0] != losses[0][-1]
        assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
def test_files_hold_plain_data(name, tmp_path):
    model, symmetry, args = general_case()
    pe.save(tmp_path / "guide.pt", started(BUILD[name](model, symmetry), args), args)
    content = torch.load(tmp_path / "guide.pt", weights_only=True)

    def check(value):
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            return [check(v) for v in value.values()]
        if isinstance(value, list):
            return [check(v) for v in value]
        assert value is None or type(value) in (torch.Tensor, bool, int, float, str), value

    check(content)
    assert content["format"] == storage.FORMAT
    assert [p.name for p in tmp_path.iterdir()] == ["guide.pt"]


SCRIPT = """
import sys, torch, pyro, pyro_equivariance as pe
from torch import nn
from pathlib import Path
folder = Path(sys.argv[1])
torch.set_num_threads(1)
net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
x = torch.load(folder / "x")
found = {}
for path in sorted(folder.glob("*.pt")):
    model = pe.BayesianNetwork(net.to(x[path.stem].dtype))
    guide = pe.load(path, model)
    pyro.set_rng_seed(7)
    found[path.stem] = pe.predict(model, guide, x[path.stem], draws=3)
torch.save(found, folder / "found")
"""


@pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
def test_predictions_in_a_new_process(tmp_path):
    """Every guide, in double and in single precision; the new process has torch's default precision."""
    expected, inputs = {}, {}
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        for number, name in enumerate(BUILD):
            pyro.clear_param_store()  # Pyro's guides of a class share parameters
            model, symmetry, args = network_case(dtype)
            guide = started(BUILD[name](model, symmetry), args)
            key = f"{number}-{dtype}"
            pe.save(tmp_path / f"{key}.pt", guide, tuple(a[:2] for a in args))  # two rows do
            pyro.set_rng_seed(7)
            expected[key], inputs[key] = pe.predict(model, guide, args[0], draws=3), args[0]
    torch.save(inputs, tmp_path / "x")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found")
    assert found.keys() == expected.keys() and len(found) == 2 * len(BUILD)
    for key, prediction in expected.items():
        assert found[key].dtype == prediction.dtype
        assert torch.equal(found[key], prediction), key
        assert (prediction[0] - prediction[1]).abs().max() > 1e-3


def handled(model, symmetry, how):
    if how == "augmented":
        return pe.handlers.augment(model, symmetry)
    return pyro.poutine.scale(model, 0.5) if how == "scaled" else model


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped guide"])
@pytest.mark.parametrize("how", ["plain", "augmented", "scaled"])
def test_learned_noise_and_prior_scales_come_back(how, wrapped, tmp_path):
    def build():
        likelihood = pe.NormalLikelihood(0.3, learned=True)
        return network_case(likelihood=likelihood, prior="learned")

    model, symmetry, args = build()
    guide = pe.AutoMeanFieldNormal(handled(model, symmetry, how))
    guide = pe.SymmetrizedGuide(guide, symmetry) if wrapped else guide
    svi = SVI(handled(model, symmetry, how), guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(*args)
    learned = model.learned()
    assert len(learned) == 5 and learned["noise"] != pytest.approx(0.3, rel=1e-2)
    pe.save(tmp_path / "guide.pt", guide, args)
    other = build()[0]
    pe.load(tmp_path / "guide.pt", handled(other, symmetry, how))
    assert other.learned() == pytest.approx(learned, rel=1e-12)
    assert model.learned() == learned


def test_map_location(tmp_path):
    model, symmetry, args = network_case()
    guide = started(pe.AutoSymmetricNormal(model, symmetry), args)
    pe.save(tmp_path / "guide.pt", guide, args)
    for location in ("cpu", torch.device("cpu"), {"cuda:0": "cpu"}):
        assert_same_draws(guide, pe.load(tmp_path / "guide.pt", model, map_location=location), args)


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
class TestPrecision:
    @pytest.mark.parametrize("case", CASES)
    def test_changes_and_goes_on_training(self, name, case, tmp_path):
        model, symmetry, args = CASES[case](torch.float32)
        guide = started(BUILD[name](model, symmetry), args)
        for change, dtype in [("double", torch.float64), ("float", torch.float32), ("to", torch.float32)]:
            guide = guide.to("cpu") if change == "to" else getattr(guide, change)()
            model = model.to(dtype) if isinstance(model, nn.Module) else model
            inputs = tuple(a.to(dtype) if a.is_floating_point() else a for a in args)
            assert {p.dtype for p in guide.parameters()} == {dtype}
            assert {v.dtype for v in guide(*inputs).values()} == {dtype}
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
            before = [p.detach().clone() for p in guide.parameters()]
            assert all(svi.step(*inputs) < float("inf") for _ in range(2))
            assert not any(torch.equal(a, b) for a, b in zip(guide.parameters(), before, strict=True))
            assert {p.dtype for p in guide.parameters()} == {dtype}
            assert {v.dtype for v in guide.median(*inputs).values()} == {dtype}

    def test_comes_back_as_it_was(self, name, tmp_path):
        """Though the model's arguments and the default precision are others."""
        model, symmetry, args = general_case(torch.float32)
        guide = started(BUILD[name](model, symmetry), args).double()
        pe.save(tmp_path / "guide.pt", guide, args)
        torch.set_default_dtype(torch.float32)
        again = pe.load(tmp_path / "guide.pt", model)
        assert {p.dtype for p in again.parameters()} == {torch.float64}
        assert_same_draws(guide, again, args)


# Failures


class TestAtomic:
    def test_a_failing_save_keeps_the_old_file(self, tmp_path, monkeypatch):
        model, symmetry, args = general_case()
        guide, path = started(pe.AutoMeanFieldNormal(model), args), tmp_path / "guide.pt"
        pe.save(path, guide, args)
        before, save = path.read_bytes(), torch.save

        def full_disk(content, target):
            save({}, target)
            raise OSError("No space left on device")

        monkeypatch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            pe.save(path, guide, args)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["guide.pt"]

    def test_what_cannot_be_saved_leaves_no_file(self, tmp_path):
        model, symmetry, args = general_case()
        guide = started(pe.AutoMeanFieldNormal(model), args)
        with pytest.raises(pe.SymmetryError, match="to save; got <object"):
            pe.save(tmp_path / "guide.pt", guide, (*args, object()))
        assert not list(tmp_path.iterdir())

    def test_replaces(self, tmp_path):
        model, symmetry, args = general_case()
        path = tmp_path / "guide.pt"
        for guide in (pe.AutoMeanFieldNormal(model), pe.AutoSymmetricNormal(model, symmetry)):
            pe.save(str(path), started(guide, args), args)
            assert type(pe.load(str(path), model)) is type(guide)


def hand_written(x, y=None):
    loc = pyro.param("loc", torch.zeros(3))
    return pyro.sample("level", dist.Normal(loc, 1.0))


class TestErrors:
    @pytest.mark.parametrize("name", BUILD)
    def test_not_initialised(self, name, tmp_path):
        model, symmetry, _ = general_case()
        with pytest.raises(pe.SymmetryError, match=r"guide with parameters to save; call guide\.initialize\(\*args\)"):
            pe.save(tmp_path / "guide.pt", BUILD[name](model, symmetry))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("build", [autoguide.AutoDelta, autoguide.AutoNormalMessenger, lambda model: hand_written],
                             ids=["AutoDelta", "AutoNormalMessenger", "hand-written"])  # fmt: skip
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_unknown_guide(self, build, wrapped, tmp_path):
        model, symmetry, args = general_case()
        guide = build(model)
        guide = pe.SymmetrizedGuide(guide, symmetry) if wrapped else guide
        with pytest.raises(pe.SymmetryError, match="one of the guides AutoMeanFieldNormal, .* to save; got") as error:
            pe.save(tmp_path / "guide.pt", guide, args)
        assert "\n" not in str(error.value)

    WRONG = {
        "text": b"not a guide",
        "empty": b"",
        "zip": b"PK\x03\x04" + bytes(64),
        "pickle": pickle.dumps({"format": 1}),
    }

    @pytest.mark.parametrize("kind", WRONG)
    def test_wrong_file(self, kind, tmp_path):
        path = tmp_path / "guide.pt"
        path.write_bytes(self.WRONG[kind])
        self.cannot_be_read(path)

    @pytest.mark.parametrize("content", [{"a": 1}, torch.zeros(2), [1], {"format": torch.zeros(2)}], ids=repr)
    def test_a_file_of_torch_save(self, content, tmp_path):
        torch.save(content, tmp_path / "guide.pt")
        self.cannot_be_read(tmp_path / "guide.pt")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_cut_file(self, share, tmp_path):
        model, symmetry, args = general_case()
        path = tmp_path / "guide.pt"
        pe.save(path, started(pe.AutoSymmetricNormal(model, symmetry), args), args)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        self.cannot_be_read(path)

    def test_a_file_that_would_run_code(self, tmp_path):
        torch.save({"format": storage.FORMAT, "guide": pe.CyclicGroup(4)}, tmp_path / "guide.pt")
        self.cannot_be_read(tmp_path / "guide.pt")

    def cannot_be_read(self, path):
        with pytest.raises(pe.DataError, match=r"guide\.pt' to be a file of pe\.save; it cannot be read") as error:
            pe.load(path, rates)
        assert "\n" not in str(error.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            pe.load(tmp_path / "none.pt", rates)

    @pytest.mark.parametrize("number", [0, 2, "1", None])
    def test_another_format(self, number, tmp_path):
        model, symmetry, args = general_case()
        path = tmp_path / "guide.pt"
        pe.save(path, started(pe.AutoSymmetricNormal(model, symmetry), args), args)
        torch.save(torch.load(path) | {"format": number}, path)
        with pytest.raises(pe.DataError, match=rf"guide\.pt' to be of format 1; got {number!r}\.$"):
            pe.load(path, model)

    def test_another_network(self, tmp_path):
        """Wider, and of other sites."""
        model, symmetry, args = network_case()
        pe.save(tmp_path / "guide.pt", started(pe.AutoMeanFieldNormal(model), args), args)
        wider = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        deeper = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
        for net, site in [(wider, "0.bias"), (deeper, "0.bias")]:
            with pytest.raises(pe.DataError, match=f"made for; its sites differ: 'locs.{site}") as error:
                pe.load(tmp_path / "guide.pt", pe.BayesianNetwork(net))
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", OURS)
    def test_another_model(self, name, tmp_path):
        def other(x, y=None):
            pyro.sample("level", dist.Normal(torch.zeros(4), 1.0).to_event(1))

        model, symmetry, args = general_case()
        pe.save(tmp_path / "guide.pt", started(BUILD[name](model, symmetry), args), args)
        with pytest.raises(pe.DataError, match="the model that the guide of .* was made for") as error:
            pe.load(tmp_path / "guide.pt", other)
        assert "\n" not in str(error.value)

    def test_arguments_left_out(self, tmp_path):
        model, symmetry, args = network_case()
        pe.save(tmp_path / "guide.pt", started(pe.AutoMeanFieldNormal(model), args))
        with pytest.raises(pe.DataError, match=r"its arguments in pe\.save\(path, guide, args\).*argument: 'x'$"):
            pe.load(tmp_path / "guide.pt", model)


def test_plates_of_ones_own_are_asked_for(tmp_path):
    def model(rows):
        with pyro.plate("n", 10, subsample=rows):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def plates(rows):
        return pyro.plate("n", 10, subsample=rows)

    rows = torch.tensor([1, 2, 3])
    guide = pe.AutoMeanFieldNormal(model, create_plates=plates)
    guide.initialize(rows)
    with torch.no_grad():
        guide.locs.z.copy_(10.0 * torch.arange(10))
    pe.save(tmp_path / "guide.pt", guide, (rows,))
    with pytest.raises(pe.DataError, match="create_plates=, which the guide of .* was made with"):
        pe.load(tmp_path / "guide.pt", model)
    restored = pe.load(tmp_path / "guide.pt", model, create_plates=plates)
    pyro.set_rng_seed(3)
    expected = guide(rows)["z"]
    pyro.set_rng_seed(3)
    assert torch.equal(restored(rows)["z"], expected)
