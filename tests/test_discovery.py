"""Generators found in a function: known algebras exactly, the units of the singular values, their errors, refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_equivariance as pe
from pyro_equivariance.discovery import discover_generators, equations
from pyro_equivariance.discovery.base import cut, gaps, reducing
from pyro_equivariance.errors import DataError, OptionError
from pyro_equivariance.experiments import generators as study
from pyro_equivariance.generators import Generators
from pyro_equivariance.prediction import outputs, posterior_draws, posterior_mean

EXACT = 1e6  # a gap that only rounding ends


def points(n, count=60, seed=1):
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def radial(x):
    return x.square().sum(-1).sin()


def crooked(x):
    return (x[:, 0] + x[:, 1].square() / 2).sin() + x[:, 1] / 2


def squared(x):
    """``z²`` of complex numbers as vectors."""
    a, b = x.unbind(-1)
    return torch.stack([a * a - b * b, 2 * a * b], -1)


def spacings(c):
    """Of a cloud ``(N, P, n)``: a function of its distances."""
    return torch.cdist(c, c).square().sin().sum((1, 2))


def line(n, place, *entries):
    """An affine generator of one row."""
    matrix = torch.zeros(n + 1, n + 1)
    matrix[place, : len(entries)] = torch.tensor(entries)
    return matrix


def shifts_and_turns():
    return Generators.affine_plane().only(["translate x", "translate y", "rotate"])


KNOWN = {
    "so(2)": (radial, points(2), {}, Generators.so(2)),
    "so(3)": (radial, points(3), {}, Generators.so(3)),
    "so(4)": (radial, points(4, 120), {}, Generators.so(4)),
    "boost": (lambda x: (x[:, 0] ** 2 - x[:, 1] ** 2).sin(), points(2), {}, Generators.lorentz()),
    "growing": (lambda x: x / x.norm(dim=-1, keepdim=True), points(3), {}, Generators.scale(3)),
    "clouds": (spacings, points(8).reshape(60, 4, 2), {"affine": True}, shifts_and_turns()),
    "clouds of R^3": (spacings, points(9).reshape(60, 3, 3), {}, Generators.so(3)),
    "turned vectors": (lambda x: x * radial(x)[:, None], points(3), {"outputs": "same"}, Generators.so(3)),
    "moved vectors": (lambda c: c - c.mean(1, keepdim=True) * spacings(c)[:, None, None],
                      points(8).reshape(60, 4, 2), {"outputs": "same"}, Generators.so(2)),
    "shifted vectors": (lambda c: (c - c.mean(1, keepdim=True)) * spacings(c)[:, None, None],
                        points(8).reshape(60, 4, 2), {"outputs": "same", "affine": True}, shifts_and_turns()),
    "turned twice": (lambda x: squared(x) * radial(x)[:, None], points(2), {"outputs": lambda a: 2 * a},
                     Generators.so(2)),
    "translation": (lambda x: (x[:, 0] - 2 * x[:, 1]).sin() + x[:, 2].square(), points(3), {"affine": True}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_algebras_are_found(name):
    f, x, options, algebra = KNOWN[name]
    found = discover_generators(f, x, **options)
    if algebra is None:  # all that moves along the planes x₀ − 2 x₁ = c, at any speed, x₂ left alone
        algebra = Generators(
            torch.stack([line(3, 0, *row) + line(3, 1, *(v / 2 for v in row)) for row in torch.eye(4).tolist()]),
            affine=True,
        )
    assert found.dimension == len(algebra) and found.gap > EXACT and found.rank == x.shape[-1]
    assert found.generators.angle(algebra) < 1e-6
    assert found.angle_se < 1e-6


def test_the_map_of_the_outputs_is_found_with_that_of_the_inputs():
    found = discover_generators(squared, points(2), outputs="linear")
    assert found.dimension == 2 and found.gap > EXACT
    assert torch.allclose(found.outputs, 2 * found.generators.basis, atol=1e-9)  # z ↦ cz: z² ↦ c² z²
    alone = discover_generators(lambda x: squared(x) * radial(x)[:, None], points(2), outputs="linear")
    assert alone.dimension == 1 and torch.allclose(alone.outputs[0], torch.tensor([[0.0, -2.0], [2.0, 0.0]]))


def test_outputs_that_lie_in_a_plane_have_their_map_there():
    def f(x):
        return torch.cat([squared(x), squared(x).sum(-1, keepdim=True)], -1) * radial(x)[:, None]

    x = points(2)
    found = discover_generators(f, x, outputs="linear")
    a, response = found.generators.basis[0], found.outputs[0]
    moved = torch.autograd.functional.jvp(f, x, x @ a.mT)[1]
    assert found.dimension == 1 and torch.allclose(moved, f(x) @ response.mT, atol=1e-9)


@pytest.mark.parametrize("outputs", ["invariant", "linear"])
def test_no_symmetry_is_an_answer_and_so_are_all(outputs):
    none = discover_generators(lambda x: torch.stack([crooked(x), x[:, 0].exp()], -1), points(2), outputs)
    assert none.dimension == 0 and none.generators is None and math.isnan(none.gap)
    assert str(none).startswith("no symmetry among 4 matrices")
    for constant in (
        lambda x: 0 * x[:, 0] + 3,
        lambda x: 0 * x,
        lambda x: (x / x.norm(dim=-1, keepdim=True)).norm(dim=-1),
    ):
        found = discover_generators(constant, points(2), outputs)
        assert found.dimension == len(found.generators) == 4 and found.gap > EXACT
    both = discover_generators(lambda x: x @ torch.tensor([[1.0, 2.0], [-2.0, 1.5]]), points(2), outputs)
    assert both.dimension == (4 if outputs == "linear" else 0)  # f(Ax) = (W A W⁻¹) f(x) for every A


@pytest.mark.parametrize("affine", [False, True])
def test_singular_values_are_those_of_the_residuals_written_out(affine):
    """Against all matrices, one by one, in coordinates in which the inputs are white."""
    x = points(2) @ torch.tensor([[2.0, 0.3], [0.1, 0.5]]) + 1
    gradient = torch.autograd.functional.jacobian(lambda x: crooked(x).sum(), x)
    centre = x.mean(0) if affine else torch.zeros(2)
    root = torch.linalg.cholesky((x - centre).mT @ (x - centre) / len(x))
    z = torch.linalg.solve(root, (x - centre).mT).mT
    z = torch.cat([z, torch.ones(len(z), 1)], 1) if affine else z
    residuals = torch.stack([(gradient @ root)[:, i] * z[:, j] for i in range(2) for j in range(z.shape[1])], 1)
    values = torch.linalg.svdvals(residuals).flip(0)
    found = discover_generators(crooked, x, affine=affine)
    assert torch.allclose(found.singular_values, values / values.square().mean().sqrt())


def test_directions_have_the_residuals_that_their_values_say():
    def f(x):
        return squared(x).sin()

    x = points(2)
    found = discover_generators(f, x, outputs="linear")
    sizes = []
    for a, response in zip(found.directions, found.responses, strict=True):
        moved = torch.autograd.functional.jvp(f, x, x @ a.mT)[1]
        sizes.append(float((moved - f(x) @ response.mT).norm()))
        best = torch.linalg.lstsq(f(x), moved).solution
        assert torch.allclose(response, best.mT, atol=1e-9)
    sizes = torch.tensor(sizes)
    assert torch.allclose(sizes / sizes[-1], found.singular_values / found.singular_values[-1])


def test_units_of_inputs_and_outputs_do_not_matter():
    def f(x):
        return crooked(x) + x[:, 2].square()

    x, mix = points(3), torch.tensor([[1e3, 20.0, 0.0], [0.0, 1.0, 0.01], [0.0, 0.002, 1e-2]])
    plain = discover_generators(f, x, affine=True)
    back = torch.linalg.inv(mix)
    other = discover_generators(lambda y: -70 * f(y @ back.mT), x @ mix.mT, affine=True)
    assert torch.allclose(plain.singular_values, other.singular_values, atol=1e-9)
    assert torch.allclose(plain.singular_values.square().mean(), torch.tensor(1.0))
    turned = discover_generators(lambda y: radial(y @ back.mT), x @ mix.mT)
    assert turned.dimension == 3 and turned.generators.angle(Generators(mix @ Generators.so(3).basis @ back)) < 1e-5


@pytest.mark.parametrize("affine", [False, True])
def test_directions_that_the_inputs_lack_are_left_out(affine):
    flat = points(2)
    x = torch.stack([flat[:, 0], flat[:, 1], flat[:, 0]], -1) / torch.tensor([2**0.5, 1.0, 2**0.5])
    found = discover_generators(radial, x, affine=affine)
    assert found.rank == 2 and found.dimension == 1 and len(found.singular_values) == 4 + 2 * affine
    assert "the inputs extend in 2 of 3 directions" in str(found)
    velocity = found.generators.field(x)[0]
    assert torch.allclose(velocity[:, 0], velocity[:, 2]) and float((velocity * x).sum(-1).abs().max()) < 1e-9
    constant = torch.cat([flat, torch.full((60, 1), 3.7)], 1)
    assert discover_generators(radial, constant, affine=True).rank == 2


def test_the_cut_is_at_the_last_gap_below_the_tolerance_by_every_row():
    def alone(values, tolerance, floor=1e-9):
        return cut(torch.tensor(values)[None], tolerance, floor)

    values = [0.001, 0.002, 0.1, 0.5]
    assert alone(values, 0.2) == 3  # how exact the first two are does not matter
    assert alone(values, 0.0015) == 0 and alone(values, 0.0025) == 2
    assert alone([0.1, 0.25], 0.2) == 0  # a ratio below 3
    assert alone([0.01, 0.02], 0.2) == 2  # against 1, a random matrix
    assert alone([1e-19, 1e-16, 1.0], 0.2, 1e-14) == 2  # ratios of rounding errors do not count
    assert cut(torch.tensor([values, [0.001, 0.002, 0.3, 0.9]]), 0.2, 1e-9) == 2
    assert cut(torch.tensor([values, [0.01, 0.19, 0.3, 0.5]]), 0.2, 1e-9) == 0
    values = torch.tensor(values)
    assert torch.allclose(gaps(values, 1e-9), torch.tensor([math.nan, 2, 50, 5, 2]), equal_nan=True)


def test_another_cut_of_the_same_values():
    found = discover_generators(radial, points(3))
    assert found.at(2).dimension == 2 and len(found.at(2).generators) == 2 and found.at(2).gap == 1
    assert found.at(9).angle_se == 0 and found.at(0).generators is None
    for wrong in (10, -1, 1.5, "2", True):
        with pytest.raises(OptionError, match=rf"dimension in 0\.\.9; got {wrong!r}"):
            found.at(wrong)


def test_the_reduced_basis_spans_the_same_and_has_unit_pivots():
    matrices = torch.einsum("ck,kij->cij", points(3, 3), Generators.so(3).basis)
    mixed = torch.einsum("ck,kij->cij", reducing(matrices), matrices)
    assert torch.allclose(mixed, Generators.so(3).basis, atol=1e-9)
    anything = points(16, 5).reshape(5, 4, 4)
    mixed = torch.einsum("ck,kij->cij", reducing(anything), anything)
    assert Generators(mixed).angle(Generators(anything)) < 1e-5
    assert int(((mixed.abs() > 1e-9).sum(0) == 1).sum()) >= 5


def order(count):
    """That of the inputs: every tenth of it is a part."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def test_ten_copies_of_the_same_inputs_have_no_error():
    copies, x = points(2, 30).repeat_interleave(10, 0), torch.empty(300, 2)
    x[order(300)] = copies
    found = discover_generators(crooked, x)
    assert torch.allclose(found.replicates, found.singular_values.expand_as(found.replicates))
    assert found.at(1).gap_se < 1e-9 and found.at(1).angle_se < 1e-5
    assert discover_generators(crooked, copies).at(1).gap_se > 1e-2  # parts do not follow the order of the inputs


@pytest.mark.parametrize("options", [{}, {"affine": True}, {"outputs": "linear"}])
def test_replicates_are_what_the_other_inputs_give(options):
    def f(x):
        return torch.stack([radial(x), crooked(x)], -1)

    x = points(2, 80) @ torch.tensor([[2.0, 0.3], [0.1, 0.5]]) + 1
    found, generator = discover_generators(f, x, **options), torch.get_rng_state()
    for b in (0, 3, 9):
        kept = torch.ones(80).bool()
        kept[order(80)[b::10]] = False
        other = discover_generators(f, x[kept], **options)
        assert torch.allclose(found.replicates[b], other.singular_values)
        spans = [Generators(d[:2], affine=found.affine) for d in (found.replicate_directions[b], other.directions)]
        assert spans[0].angle(spans[1]) < 1e-5
    assert torch.equal(found.replicates, discover_generators(f, x, **options).replicates)
    assert torch.equal(generator, torch.get_rng_state())


def test_standard_errors_are_the_jackknife_of_what_is_said():
    def f(x):
        z = x / torch.tensor([1.0, 10.0])
        return radial(z / 2) + 0.02 * crooked(z)

    found = discover_generators(f, points(2, 200) * torch.tensor([1.0, 10.0]))
    angles = [Generators(d[:1]).angle(found.generators) for d in found.replicate_directions]
    assert found.dimension == 1
    assert math.isclose(found.angle_se, math.sqrt(0.9 * sum(a**2 for a in angles)), rel_tol=1e-6)
    ratios = found.replicates[:, 1] / found.replicates[:, 0]
    assert math.isclose(found.gap_se, math.sqrt(0.9 * 9 * ratios.var()))


@pytest.mark.parametrize("count", [20, 200, 2000])
def test_a_symmetry_that_one_input_makes_is_withdrawn(count):
    x = torch.cat([points(2, count - 1), torch.tensor([[50.0, 35.0]])])
    found = discover_generators(crooked, x)
    assert found.dimension == 0 and found.withdrawn > 0
    assert f"a cut at k = {found.withdrawn} is withdrawn: its gap rests on few inputs" in str(found)
    assert "withdrawn" not in str(discover_generators(crooked, x[:-1] if count > 20 else points(2)))
    turned = discover_generators(radial, x)
    assert turned.dimension == 1 and turned.gap > EXACT and turned.generators.angle(Generators.so(2)) < 1e-6


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_an_exact_symmetry_hides_no_approximate_one(share):
    def f(x):
        return radial(x[:, :2]) + share * crooked(x[:, :2])

    found = discover_generators(f, points(3, 500))
    assert found.dimension == 4 and found.gap < 200  # three ways to move the input that f ignores, and the turn
    turn = found.generators.angles(Generators(Generators.so(3).basis[:1]))
    assert float(turn) < 100 * share


def test_modules_are_asked_in_evaluation_mode_and_stay_as_they_were():
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(2, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Tanh(),
        torch.nn.Dropout(),
        torch.nn.Linear(8, 1),
    ]
    net, x = torch.nn.Sequential(*layers), points(2)
    net.eval()
    right, before = discover_generators(net, x), {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    net[3].eval()
    found = discover_generators(net, x)
    assert torch.equal(found.singular_values, right.singular_values)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net] == [True, True, True, False, True] and net.training
    with pytest.raises(DataError):
        discover_generators(net, x[:, :1] * math.nan)
    assert net.training


def test_how_far_inputs_must_extend_in_a_direction():
    flat = points(2)
    for leaves, rank, narrow in ((1e-7, 2, False), (3e-5, 3, True), (1e-3, 3, False)):
        x = torch.cat([flat, flat[:, :1] + leaves * points(1, seed=2)], 1)
        found = discover_generators(radial, x)
        assert found.rank == rank and ("may be noise" in str(found)) == narrow
    small = discover_generators(crooked, points(2) * torch.tensor([1.0, 1e-12]))
    assert small.rank == 2 and small.extent > 0.5  # a coordinate that is small by itself


def test_rounding_is_that_of_the_coarser_type():
    found = discover_generators(lambda x: radial(x.float()), points(2))
    assert found.floor == discover_generators(radial, points(2).float()).floor > 1e-6
    assert found.dimension == 1


def test_words_of_what_is_found():
    exact, near = (discover_generators(lambda x, s=s: radial(x) + s * crooked(x), points(2, 200)) for s in (0, 0.02))
    assert repr(exact) == f"DiscoveredGenerators(1 of 4, gap > {exact.gap:.0e} (rounding))"
    assert repr(near) == f"DiscoveredGenerators(1 of 4, gap {near.gap:.3g} ± {near.gap_se:.2g})"
    assert repr(near.at(0)) == "DiscoveredGenerators(0 of 4)"
    assert str(exact).splitlines()[0].startswith("1 of 4 matrices, gap > ")
    pair = discover_generators(squared, points(2), outputs="linear")
    usual = pair.singular_values.square().mean().sqrt()
    assert usual < 0.95 and f"a matrix at random has {usual:.2g}" in str(pair)


def test_standard_errors_are_those_of_fresh_inputs():
    def f(x):
        return radial(x / 2) + 0.02 * crooked(x)

    runs = [discover_generators(f, points(2, 200, seed)) for seed in range(60)]
    assert {r.dimension for r in runs} == {1}
    spread = torch.tensor([r.gap for r in runs]).std()
    errors = torch.tensor([r.gap_se for r in runs])
    # a standard deviation of 60 runs has a relative error of 1/√120, the mean error that of its own spread
    relative = math.sqrt(1 / 120 + float(errors.std() / errors.mean()) ** 2 / 60)
    assert abs(float(errors.square().mean().sqrt() / spread) - 1) < 4 * relative
    centre = discover_generators(f, points(2, 20000, 99)).generators
    away = torch.tensor([r.generators.angle(centre) for r in runs]).square().mean().sqrt()
    said = torch.tensor([r.angle_se for r in runs]).square().mean().sqrt()
    assert 0.5 < float(said / away) < 2


def test_chunks_and_precision_make_no_difference(monkeypatch):
    x = points(2, 200)
    whole = discover_generators(squared, x, outputs="linear")
    single = discover_generators(squared, x.float(), outputs="linear")
    assert single.dimension == 2 and single.gap > 1e3 and single.generators.basis.dtype == torch.float64
    assert torch.allclose(whole.singular_values[2:], single.singular_values[2:], atol=1e-5)
    monkeypatch.setattr(equations, "CHUNK", 7)
    parts = discover_generators(squared, x, outputs="linear")
    assert torch.allclose(whole.singular_values, parts.singular_values, atol=1e-9)
    assert torch.allclose(whole.outputs, parts.outputs)


WRONG = {
    "tensor": (lambda: discover_generators(radial, [1.0]), DataError, r"inputs, \(N, n\).* got list"),
    "shape": (lambda: discover_generators(radial, torch.zeros(30)), DataError, "at least 20 inputs"),
    "integers": (lambda: discover_generators(radial, torch.ones(30, 2).long()), DataError, "int64"),
    "half": (lambda: discover_generators(radial, points(2).half()), DataError, "float32 or float64; got torch.float16"),
    "no columns": (lambda: discover_generators(radial, torch.zeros(30, 0)), DataError, r"\(30, 0\)"),
    "no points": (lambda: discover_generators(radial, torch.zeros(30, 0, 2)), DataError, r"\(30, 0, 2\)"),
    "words": (lambda: discover_generators(radial, points(2), tolerance="0.1"), OptionError, "got '0.1'"),
    "classes": (lambda: discover_generators(lambda x: x.argmax(-1), points(2)), DataError, "floats.* got torch.int64"),
    "square": (lambda: discover_generators(squared, points(2), lambda a: a @ a), OptionError, "linear in A"),
    "constant": (lambda: discover_generators(squared, points(2), lambda a: a + 1), OptionError, "linear in A"),
    "few": (lambda: discover_generators(radial, points(2, 19)), DataError, r"\(19, 2\)"),
    "equations": (lambda: discover_generators(radial, points(5, 40)), DataError, "at least 50 equations.* got 40"),
    "nan": (lambda: discover_generators(radial, points(2) * math.nan), DataError, "finite inputs"),
    "equal": (lambda: discover_generators(radial, torch.ones(30, 2), affine=True), DataError, "inputs that differ"),
    "zero": (lambda: discover_generators(radial, torch.zeros(30, 2)), DataError, "inputs that differ"),
    "option": (lambda: discover_generators(radial, points(2), "equivariant"), OptionError, "'equivariant'"),
    "tolerance": (lambda: discover_generators(radial, points(2), tolerance=1.0), OptionError, "tolerance"),
    "output": (lambda: discover_generators(lambda x: x.sum(), points(2)), DataError, "one output for each"),
    "values": (lambda: discover_generators(lambda x: x.log(), points(2)), DataError, "f to be finite"),
    "slopes": (lambda: discover_generators(lambda x: x.abs().sqrt(), points(2) * torch.eye(2)[0]), DataError,
               "finite derivatives"),
    "gradient": (lambda: discover_generators(lambda x: x.detach(), points(2)), DataError, "differentiable"),
    "same": (lambda: discover_generators(radial, points(2), "same"), DataError, r"outputs \(\.\.\., 2\)"),
    "callable": (lambda: discover_generators(radial, points(2), lambda a: a), DataError, r"\(1, 1\).*got \(2, 2\)"),
    "many": (lambda: discover_generators(lambda x: torch.cat([x, x**2, x[:, :1] ** 3], -1), points(2), "linear"),
             OptionError, "at most 4 independent outputs.* got 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_refusals(name):
    call, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        call()


@pytest.fixture
def classifier():
    net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    model = pe.BayesianNetwork(net)
    guide = pe.AutoMeanFieldNormal(model, init_scale=0.3)
    guide.initialize(points(2)[:1], torch.zeros(1).long())
    return model, guide


def test_the_posterior_mean_is_that_of_the_predictions(classifier):
    x = points(2)
    mean = posterior_mean(*classifier, draws=4, seed=7)
    torch.manual_seed(7)
    assert torch.allclose(posterior_mean(*classifier, draws=1, seed=7)(x), pe.predict(*classifier, x, draws=1)[0])
    torch.manual_seed(7)
    draws = list(posterior_draws(classifier[1], 4, x))
    assert torch.allclose(mean(x), torch.stack([outputs(classifier[0], d, x) for d in draws]).mean(0))
    state = torch.get_rng_state()
    assert torch.equal(mean(x), mean(x)) and torch.equal(state, torch.get_rng_state())
    assert torch.allclose(mean(x)[3:5], mean(x[3:5]))
    assert not torch.allclose(mean(x), posterior_mean(*classifier, draws=4, seed=8)(x))


def test_the_posterior_mean_is_differentiable_in_its_inputs_alone(classifier):
    x = points(2, 3).requires_grad_()
    for returns in ("mean", "output"):
        mean = posterior_mean(*classifier, draws=3, returns=returns)
        assert torch.autograd.gradcheck(mean, x)
        assert not mean(x.detach()).requires_grad
    logits = [posterior_mean(*classifier, draws=1, returns=r)(x) for r in ("output", "mean")]
    assert torch.allclose(logits[0].softmax(-1), logits[1])


def test_the_posterior_mean_is_taken_without_dropout():
    net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Dropout(), torch.nn.Linear(20, 1))
    model = pe.BayesianNetwork(net, likelihood="normal")
    guide = pe.AutoMeanFieldNormal(model)
    guide.initialize(points(2)[:1], torch.zeros(1, 1))
    model.train()
    found = posterior_mean(model, guide, draws=2)(points(2))
    assert all(m.training for m in model.modules())
    model.eval()
    assert torch.equal(found, posterior_mean(model, guide, draws=2)(points(2)))


def test_a_model_that_returns_nothing_has_no_output():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w + pyro.param("shift", torch.tensor(0.5)), 1.0), obs=y)

    guide = AutoNormal(model)
    guide(points(2), torch.zeros(60))
    mean = posterior_mean(model, guide, draws=2)(points(2))
    (slope,) = torch.autograd.grad(mean.sum(), pyro.get_param_store()._params["shift"])
    assert slope == 60 and not any(p.grad is not None for p in guide.parameters())
    with pytest.raises(OptionError, match="returns a tensor.* got NoneType"):
        posterior_mean(model, guide, draws=2, returns="output")(points(2))


WRONG_MEANS = [
    {"draws": 0}, {"draws": 2.5}, {"draws": "3"}, {"draws": True}, {"seed": None}, {"seed": 1.5}, {"returns": "logits"},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG_MEANS)
def test_options_of_the_posterior_mean(classifier, options):
    with pytest.raises(OptionError):
        posterior_mean(*classifier, **options)


@pytest.mark.parametrize("name", study.TASKS)
def test_the_functions_of_the_study_have_the_algebras_that_it_compares_with(name):
    task = study.TASKS[name]
    x = study.in_ball(400, task.n, torch.Generator().manual_seed(0))
    assert float(x.norm(dim=-1).max()) < study.RADIUS
    found = discover_generators(task.function, x, outputs=task.outputs)
    assert found.dimension == (len(task.algebra) if task.algebra else 0)
    if task.algebra:
        assert found.gap > EXACT and found.generators.angle(task.algebra) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["so(2)", "so(3)"])
def test_fitted_networks_show_their_algebra(name):
    row, found = study._one(study.GeneratorsConfig(), study.TASKS[name], noise=0, seed=0)
    assert row["dimension"] == row["true"] and row["gap"] > 10 and row["angle"] < 5
    assert found.generators.closure() < 0.1
