"""A network's symmetry against one written out by hand, and the Pyro model against plain densities."""

import copy
import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from catalogue import NETWORKS, Case, Nested, Shared, small_conv
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import DataError, LayerError, OptionError, SymmetryError
from pyro_equivariance.networks import FanIn, Scalar, widen_network
from pyro_equivariance.networks.layers import LAYERS

C4, D4 = pe.CyclicGroup(4), pe.DihedralGroup(4)


def moved_blocks(g, index, copies):
    """Where the group sends channel ``h · copies + c``."""
    h, c = divmod(index, copies)
    return int(D4.compose(g, h)) * copies + c


def turned(g, image):
    """``s·r^k``: turn k times, then mirror left and right."""
    turns = torch.rot90(image, g % 4, (-2, -1))
    return turns.flip(-1) if g >= 4 else turns


class TestSymmetry:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_sites_have_the_parameters_shapes(self, name):
        case = NETWORKS[name]()
        sym = case.symmetry
        for site, parameter in case.net.named_parameters():
            assert sym.sites[site].event_shape == parameter.shape
        assert sym.group == case.group and sym.outputs is case.outputs
        if case.inputs is not None:
            assert sym.inputs == case.inputs
        else:
            grid = {2: pe.sequence, 3: pe.image, 4: pe.volume}[len(case.input_shape)]
            assert sym.inputs == grid(case.group, case.input_shape)

    def test_features_are_the_layers_outputs(self):
        sym = NETWORKS["fully connected head"]().symmetry
        shapes = {name: tuple(rep.event_shape) for name, rep in sym.features.items()}
        assert shapes == {"0": (8, 6, 6), "1": (8, 6, 6), "2": (8, 3, 3), "3": (72,), "4": (8,), "5": (8,), "6": (3,)}

    @pytest.mark.parametrize("g", range(8))
    def test_kernels_against_loops(self, g):
        """First layer: blocks move and kernels turn; hidden layer: both axes of channels move."""
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                            nn.Linear(16, 2))  # fmt: skip
        sym = pe.network_symmetry(net, D4, (3, 8, 8))
        first, hidden = torch.randn(8, 3, 3, 3), torch.randn(16, 8, 2, 2)
        bias, head = torch.randn(16), torch.randn(2, 16)
        values = {"0.weight": first, "2.weight": hidden, "2.bias": bias, "5.weight": head, "5.bias": bias[:2]}
        moved = sym.act(g, values)
        for o in range(8):
            for i in range(3):
                assert torch.equal(moved["0.weight"][moved_blocks(g, o, 1), i], turned(g, first[o, i]))
        for o in range(16):
            for i in range(8):
                target = moved["2.weight"][moved_blocks(g, o, 2), moved_blocks(g, i, 1)]
                assert torch.equal(target, turned(g, hidden[o, i]))
            assert moved["2.bias"][moved_blocks(g, o, 2)] == bias[o]
            assert torch.equal(moved["5.weight"][:, moved_blocks(g, o, 2)], head[:, o])
        assert torch.equal(moved["5.bias"], bias[:2])

    @pytest.mark.parametrize("g", range(8))
    @pytest.mark.parametrize("hidden", ["regular", "trivial"])
    def test_dense_after_flatten_against_loops(self, g, hidden):
        """A row of the first dense weight is an image for each channel; it turns, and its blocks move."""
        sym = Case(small_conv(), D4, (1, 6, 6), hidden=hidden).symmetry
        dense = torch.randn(8, 72)
        moved = sym.act(g, {"4.weight": dense})["4.weight"].reshape(8, 8, 3, 3)
        for o in range(8):
            for i in range(8):
                blocks = (moved_blocks(g, o, 1), moved_blocks(g, i, 1)) if hidden == "regular" else (o, i)
                assert torch.equal(moved[blocks], turned(g, dense.reshape(8, 8, 3, 3)[o, i]))

    @pytest.mark.parametrize("g", range(4))
    def test_outputs_move_the_last_layer(self, g):
        sym = NETWORKS["equivariant head"]().symmetry
        weight, bias = torch.randn(4, 4), torch.randn(4)
        moved = sym.act(g, {"4.weight": weight, "4.bias": bias})
        assert torch.equal(moved["4.weight"], weight.roll((g, g), (0, 1)))
        assert torch.equal(moved["4.bias"], bias.roll(g))

    def test_functions_are_read_as_modules(self):
        class Functional(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
                self.head = nn.Linear(32, 3)

            def forward(self, x):
                x = F.max_pool2d(F.relu(self.first(x), inplace=True), 2, stride=2)
                x = F.avg_pool2d(F.leaky_relu(self.second(x), 0.1).sigmoid(), 1)
                return self.head(F.adaptive_avg_pool2d(x, (2, 2)).flatten(1).relu())

        modules = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(32, 3),
        )  # fmt: skip
        found, expected = (pe.network_symmetry(net, D4, (1, 8, 8)) for net in (Functional(), modules))
        assert list(found.sites.values()) == list(expected.sites.values())
        assert list(found.sites)[:2] == ["first.weight", "first.bias"]
        assert found.check(Functional()) < 1e-10

    def test_nested_names(self):
        sym = pe.network_symmetry(Nested(), C4, (2, 8, 8))
        assert [*sym.sites] == [name for name, _ in Nested().named_parameters()]
        assert [*sym.features] == ["blocks.0.conv", "blocks.1.conv", "head"]

    def test_a_shared_module_has_one_action(self):
        sym = pe.network_symmetry(Shared(), C4, (1, 5, 5))
        assert {name for name, _ in Shared().named_parameters()} == set(sym.sites)

    def test_a_shared_module_that_needs_two_actions(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.pool, self.flatten = nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten()
                self.head = nn.Linear(16, 2)

            def forward(self, x):
                return self.head(self.flatten(self.pool(self.conv(self.conv(x)))))

        with pytest.raises(LayerError, match="one action on the shared parameter 'conv.weight'"):
            pe.network_symmetry(Twice(), C4, (4, 4, 4))
        assert pe.network_symmetry(Twice(), C4, (4, 4, 4), hidden="trivial").check(Twice()) < 1e-10

    def test_the_network_is_not_run_or_changed(self):
        net = small_conv()
        before = copy.deepcopy(net.state_dict())
        state = torch.get_rng_state()
        pe.network_symmetry(net, C4, (1, 6, 6))
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Squared(nn.Module):
    """A layer that the catalogue does not have."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return self.scale * x**2


def with_squares():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Squared(4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))


class TestByHand:
    channels = pe.regular(C4)
    features = {"1": channels * pe.image(C4, (4, 4)), "2": channels * pe.image(C4, (4, 4))}
    sites = {"1.scale": channels.reshape((4, 1, 1)), "2.weight": channels, "2.bias": channels}

    def test_unknown_layers_are_named_with_the_way_out(self):
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 2))
        message = r"'1' is a PReLU\. To use it, pass features=\{'1': .*\} and sites=\{parameter: representation\}"
        with pytest.raises(LayerError, match=message):
            pe.network_symmetry(net, C4, (1, 4, 4))

    def test_given_layers_are_used(self):
        sym = pe.network_symmetry(with_squares(), C4, (1, 4, 4), sites=self.sites, features=self.features)
        assert sym.check(with_squares()) < 1e-10
        assert sym.sites["1.scale"] == self.sites["1.scale"] and sym.features["2"] == self.features["2"]
        expected = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 2))
        assert sym.sites["4.weight"] == pe.network_symmetry(expected, C4, (1, 4, 4)).sites["2.weight"]

    def test_a_given_layer_that_does_not_move_so_is_named(self):
        features = self.features | {"1": pe.trivial(C4, 4) * pe.image(C4, (4, 4))}
        sym = pe.network_symmetry(with_squares(), C4, (1, 4, 4), sites=self.sites, features=features)
        with pytest.raises(LayerError, match="layer '1' to move"):
            sym.check(with_squares())

    def test_a_missing_site_is_named(self):
        sites = {name: rep for name, rep in self.sites.items() if name != "2.bias"}
        with pytest.raises(SymmetryError, match=r"sites=\{'2.bias': representation\}, since '2' is read by hand"):
            pe.network_symmetry(with_squares(), C4, (1, 4, 4), sites=sites, features=self.features)

    def test_features_without_space(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        sites = {"2.weight": self.channels, "2.bias": self.channels}
        sym = pe.network_symmetry(net, C4, (1, 3, 3), sites=sites, features={"2": self.channels})
        assert sym.check(net) < 1e-10


def sequential(*layers, shape=(4, 4, 4), group=C4, **options):
    return lambda: pe.network_symmetry(nn.Sequential(*layers), group, shape, **options)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Accumulates(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 1)


HEAD = (nn.Flatten(), nn.Linear(64, 2))
BAD_NETWORKS = {
    "indivisible": (r"6 channels of layer '0' .*multiple of 4.*hidden='trivial'",
                    sequential(nn.Conv2d(4, 6, 3), *HEAD)),
    "indivisible, dense": (r"the 6 channels of layer '1'",
                           sequential(nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, 2))),
    "stride": (r"stride that commutes with CyclicGroup\(4\) .*'0'; stride \(2, 2\) .*\(4, 4\) is moved.*pool after",
               sequential(nn.Conv2d(4, 4, 3, stride=2), *HEAD)),
    "groups": (r"groups 1 .*'0'; got groups 2", sequential(nn.Conv2d(4, 4, 3, groups=2), *HEAD)),
    "even kernel, same": (r"odd kernel for padding='same' in '0'; got \(2, 2\)",
                          sequential(nn.Conv2d(4, 4, 2, padding="same"), *HEAD)),
    "convolution after flatten": (r"images \(C, H, W\) before '1' \(Conv2d\); got \(64,\)",
                                  sequential(nn.Flatten(), nn.Conv2d(4, 4, 3))),
    "pooling after flatten": (r"images \(C, H, W\) before '1' \(MaxPool2d\)",
                              sequential(nn.Flatten(), nn.MaxPool2d(2))),
    "dense without flatten": (r"features without space before the linear layer '0'; put a Flatten",
                              sequential(nn.Linear(4, 4))),
    "flatten of two axes": (r"Flatten of axes that move on their own, .* for '0'",
                            sequential(nn.Flatten(1, 2), nn.Linear(16, 2))),
    "one-dimensional convolution": (r"sequences \(C, L\) before '0' \(Conv1d\); got \(4, 4, 4\)",
                                    sequential(nn.Conv1d(4, 4, 3))),
    "function": (r"got the function 'cumsum'\. Use a torch\.nn module", sequential(Accumulates())),
    "output that moves": (r"output that is invariant \(outputs=None\); the network's moves by trivial\(4,\) \* image",
                          sequential(nn.Conv2d(4, 4, 3, padding=1))),
    "control flow": (r"no control flow on its inputs; torch\.fx says.*pe\.Symmetry\(", sequential(Branches())),
    "signed features": (
        r"features that are permuted before the activation '3'; got signed",
        sequential(
            nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU(), nn.Linear(2, 2),
            features={"2": pe.signed_permutation(C4, [[0, 1], [1, 0]] * 2, [[1, 1], [1, -1], [-1, -1], [-1, 1]])},
        ),
    ),
    "outputs of another size": (r"outputs= on shape \(2,\).* layer '1'; got \(4,\)",
                                sequential(*HEAD, outputs=pe.regular(C4))),
    "image not square": (r"images that are square", sequential(nn.Conv2d(4, 4, 3), *HEAD, shape=(4, 4, 6))),
    "kernel not square": (r"images that are square", sequential(nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), *HEAD)),
    "group": (r"90° rotations and mirrors", sequential(*HEAD, group=pe.CyclicGroup(3))),
    "hidden": (r"hidden to be 'regular', 'trivial', .*; got 'isotropic'", sequential(*HEAD, hidden="isotropic")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NETWORKS)
def test_bad_networks(case):
    message, call = BAD_NETWORKS[case]
    with pytest.raises(SymmetryError, match=message):
        call()


@pytest.fixture
def case(request):
    """A network of the catalogue by its name."""
    return NETWORKS[request.param]()


each_case = pytest.mark.parametrize("case", NETWORKS, indirect=True)


class TestLaws:
    """For every network of the catalogue; that f(ρ_X(g) x; ρ(g) θ) = ρ_Y(g) f(x; θ) is in test_symmetry."""

    @staticmethod
    def posterior(case):
        """An averaged guide with random parameters."""
        model = pe.BayesianNetwork(case.net, likelihood=lambda f: dist.Normal(f, 1.0).to_event(f.ndim - 1))
        guide, symmetry = pe.AutoSymmetricNormal(model, case.symmetry), case.symmetry
        guide.initialize(x := case.batch(2), case.net(x))
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.normal_(std=0.5)
        return guide, symmetry

    @each_case
    def test_the_averaged_law_is_invariant(self, case):
        guide, symmetry = self.posterior(case)
        moved = []
        for site, rep in symmetry.sites.items():
            law = guide.get_posterior(site).base_dist
            for value, action in ((law.loc.detach(), rep), (law.scale.detach(), rep.modulus())):
                for g in symmetry.group.generators:
                    assert_close(action.act(g, value), value, rtol=0, atol=1e-10)
            free = functools.reduce(getattr, site.split("."), guide.locs).detach()
            moved += [float((rep.act(g, free) - free).abs().max()) for g in symmetry.group.generators]
        assert max(moved) > 0.1 or isinstance(case.group, pe.SymmetricGroup)  # whose networks treat all points alike

    @each_case
    @torch.no_grad()
    def test_the_predictive_is_equivariant(self, case):
        """That of the mean weights, and the mean over draws that come with all their moved copies."""
        guide, symmetry = self.posterior(case)
        net, x = case.net.eval(), case.batch(2)
        means = {site: guide.get_posterior(site).base_dist.loc for site in symmetry.sites}
        draws = [guide() for _ in range(2)]

        def predictive(x):
            copies = [symmetry.act(g, draw) for draw in draws for g in range(len(symmetry.group))]
            mean = sum(torch.func.functional_call(net, copy, (x,)) for copy in copies) / len(copies)
            return torch.stack([torch.func.functional_call(net, means, (x,)), mean])

        upright = predictive(x)
        assert upright.std() > 1e-3
        for g in symmetry.group.generators:
            moved = predictive(symmetry.act_inputs(g, x))
            expected = upright if symmetry.outputs is None else symmetry.outputs.act(g, upright)
            assert_close(moved, expected, rtol=0, atol=1e-10)


def at_one_dimension(kind):
    """How a layer of a kind is built between eight channels, and the axes of its space."""
    axes = next((int(n) for n in "123" if kind.__name__.endswith(f"{n}d")), 2)
    name = kind.__name__
    if name.startswith("Conv"):
        return kind(8, 8, 3, padding=1), axes
    if name.startswith("Adaptive"):
        return kind(2), axes
    if "Pool" in name:
        return kind(2), axes
    if name.startswith(("BatchNorm", "InstanceNorm")):
        return kind(8, track_running_stats=False, affine=True), axes
    built = {
        "GroupNorm": lambda: kind(4, 8), "LayerNorm": lambda: kind((8, 4, 4)), "Softmax": lambda: kind(1),
        "LogSoftmax": lambda: kind(1), "Upsample": lambda: kind(scale_factor=2), "Linear": lambda: kind(4, 4),
        "SupportedConv2d": lambda: kind(8, 8, 3, kept="cross", padding=1),
    }  # fmt: skip
    return built.get(name, kind)(), axes


# Layers that are tested with tokens, in the catalogue.
ON_TOKENS = {nn.Embedding, nn.MultiheadAttention}


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind not in ON_TOKENS], ids=lambda kind: kind.__name__)
def test_every_kind_of_layer(kind):
    """Between two layers of eight channels: the action, the averaged law and the predictive, as for the catalogue."""
    layer, axes = at_one_dimension(kind)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    group = {1: pe.DihedralGroup(1), 2: C4, 3: pe.OctahedralGroup().subgroup([1])}[axes]
    shape = (1, *[4] * axes)
    tail = [nn.Flatten(), nn.LazyLinear(3)]
    net = nn.Sequential(conv(1, 8, 3, padding=1), nn.Tanh(), layer, *tail)
    if kind is nn.Linear:  # on the last axis of a set of points
        net, shape = nn.Sequential(nn.Linear(2, 4), layer, nn.Tanh(), *tail), (5, 2)
    inputs = pe.trivial(group, 5) * pe.vector(group) if kind is nn.Linear else None
    net(torch.randn(2, *shape))  # the lazy layer finds its size
    case = Case(net.eval(), group, shape, inputs=inputs)
    assert case.symmetry.check(net) < 1e-10
    TestLaws().test_the_averaged_law_is_invariant(case)
    TestLaws().test_the_predictive_is_equivariant(case)


def test_every_layer_of_tokens_is_in_the_catalogue():
    kinds = {type(m) for make in NETWORKS.values() for m in make().net.modules()}
    assert kinds >= ON_TOKENS


FUNCTIONAL = {
    "subtraction": lambda x: x - 0.5 * x.tanh(),
    "a number less features": lambda x: 1 - x,
    "division and negation": lambda x: -(x / 3),
    "extrema": lambda x: x.amax((2, 3), keepdim=True) - x.amin((2, 3), keepdim=True),
    "axes": lambda x: x.flatten(2).transpose(1, 2).permute(0, 2, 1).swapaxes(1, 2),
    "sizes": lambda x: x.reshape(x.size(0), x.size(1) * x.size(2) * x.size(3)),
    "shape": lambda x: x.view(x.shape[0], -1),
    "product": lambda x: x * torch.sigmoid(x),
    "softmax": lambda x: torch.softmax(x, 1),
    "concatenation": lambda x: torch.cat([x, x.relu()], 1),
}


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d])
def test_running_statistics_are_refused(kind):
    axes = int(kind.__name__[-2])
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    group = {1: pe.DihedralGroup(1), 2: C4, 3: pe.OctahedralGroup()}[axes]
    net = nn.Sequential(conv(1, 24, 3, padding=1), kind(24, track_running_stats=True), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(LayerError, match=r"without running statistics for '1': they are buffers .* no action moves"):
        pe.network_symmetry(net, group, (1, *[4] * axes))


class Masked(nn.Module):
    """A convolution whose kernels are kept to a support."""

    def __init__(self, support):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.register_buffer("support", support)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.support, padding=1)


@pytest.mark.parametrize("support, fits", [
    ([[0, 1, 0], [1, 1, 1], [0, 1, 0]], True), ([[1, 0, 0], [1, 0, 0], [1, 1, 0]], False),
], ids=["cross", "L"])  # fmt: skip
def test_a_support_must_be_kept_by_the_group(support, fits):
    net = nn.Sequential(Masked(torch.tensor(support).double()), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    channels = pe.regular(C4)
    sites = {"0.weight": channels * pe.image(C4, (1, 3, 3))}
    symmetry = pe.network_symmetry(net, C4, (1, 4, 4), sites=sites, features={"0": channels * pe.image(C4, (4, 4))})
    if fits:
        assert symmetry.check(net) < 1e-10
    else:
        with pytest.raises(LayerError, match="layer '0' to move with the symmetry"):
            symmetry.check(net)


def test_zero_padding_breaks_shifts():
    net = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(LayerError, match=r"layer '0' to move .*padding_mode='circular'"):
        pe.network_symmetry(net, C4, (1, 8)).check(net)


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(1, 8, 3, padding=1), function
        self.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.head(torch.flatten(self.function(self.conv(x)), 1))


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functions_and_methods(name):
    net = Applies(FUNCTIONAL[name])
    net(torch.randn(2, 1, 4, 4))
    assert pe.network_symmetry(net, C4, (1, 4, 4)).check(net) < 1e-10


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self, last=False):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.head, self.last = nn.Linear(4, 3), last

    def forward(self, x):
        x = self.b(torch.tanh(self.a(torch.tanh(self.first(x)))))
        return x if self.last else self.head(torch.tanh(x))


class Bare(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.line, self.shift = nn.Linear(2, 2), nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.line(x) + self.shift


PLANE = {"inputs": pe.vector(C4)}
MISREAD = {
    "tied layers that would need two actions": (Tied(last=True), (2,), PLANE, r"one action on the tied parameters"),
    "one number added to a vector": (
        Bare((1,)), (2,), PLANE | {"outputs": pe.vector(C4)}, r"all entries of an axis that is not permuted"),
    "pooling over an axis without neighbours": (
        nn.Sequential(nn.Linear(2, 4), nn.AvgPool1d(3, 1, 1), nn.Linear(4, 2)), (5, 2),
        {"inputs": pe.trivial(C4, 5) * pe.vector(C4)}, r"pooling '1' over a grid.*regular\(4\) has no neighbours"),
    "a misspelt site": (nn.Linear(2, 3), (2,), PLANE | {"sites": {"wieght": pe.trivial(C4, 3)}}, r"'wieght' is none"),
    "a misspelt feature": (
        nn.Linear(2, 3), (2,), PLANE | {"features": {"a": pe.trivial(C4, 3)}}, r"features=.*'a' is none"),
    "a kernel larger than the image": (
        nn.Sequential(nn.Conv2d(1, 4, 7), nn.Flatten(), nn.Linear(4, 2)), (1, 4, 4), {}, r"torch says: .*ernel size"),
    "a module that returns two tensors": (nn.Sequential(nn.Conv2d(1, 4, 1), nn.MaxPool2d(2, return_indices=True)),
                                          (1, 4, 4), {}, r"can be read on this input"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISREAD)
def test_networks_that_would_be_misread(name):
    net, shape, options, match = MISREAD[name]
    with pytest.raises(SymmetryError, match=match) as error:
        pe.network_symmetry(net, C4, shape, **options)
    assert "\n" not in str(error.value)


def test_tied_layers_have_one_site():
    symmetry = pe.network_symmetry(Tied(), C4, (2,), **PLANE)
    assert "b.weight" not in symmetry.sites and symmetry.check(Tied()) < 1e-12


def test_pruned_layers_are_named():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    prune.l1_unstructured(net[0], "weight", 0.3)
    with pytest.raises(LayerError, match=r"'0.weight' to be a parameter of the network; it is computed from others"):
        pe.network_symmetry(net, C4, (1, 4, 4))


def test_a_subclass_of_a_layer_is_not_taken_for_it():
    class Masked(nn.Conv2d):
        pass

    net = nn.Sequential(Masked(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(LayerError, match=r"'0' is a Masked\. To use it, pass features="):
        pe.network_symmetry(net, C4, (1, 4, 4))


class TestWiden:
    WIDENED = ["fully connected head", "hidden trivial", "no bias", "RGB, global pooling", "nested", "shared",
               "even kernel, no padding", "not square, C2", "multilayer perceptron"]  # fmt: skip

    @pytest.mark.parametrize("name", WIDENED)
    def test_shapes(self, name):
        case = NETWORKS[name]()
        small, order = dict(case.net.named_parameters()), len(case.group)
        big = widen_network(case.net, case.group, case.input_shape)
        assert type(big) is type(case.net) and [n for n, _ in big.named_parameters()] == list(small)
        first, last = [n for n in small if n.endswith("weight")][0], [n for n in small if n.endswith("weight")][-1]
        for site, parameter in big.named_parameters():
            expected = list(small[site].shape)
            layer = site.rpartition(".")[0]
            if layer != last.rpartition(".")[0]:
                expected[0] *= order
            if parameter.ndim > 1 and site != first:
                expected[1] *= order
            assert list(parameter.shape) == expected
        x = torch.randn(2, *case.input_shape)
        assert big(x).shape == case.net(x).shape
        assert pe.network_symmetry(big, case.group, case.input_shape).check(big) < 1e-10

    def test_keeps_the_geometry_and_leaves_the_small_network(self):
        net = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=2, dilation=2, padding_mode="circular"), nn.Flatten(), nn.Linear(32, 2)
        )
        before = copy.deepcopy(net.state_dict())
        big = widen_network(net, C4, (1, 4, 4))
        assert repr(big[0]) == repr(nn.Conv2d(1, 8, 3, padding=2, dilation=2, padding_mode="circular"))
        assert big[0].weight.dtype == torch.float64
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    def test_starts_as_the_small_network_does(self):
        """Each entry is one of the small layer's, shrunk by the root of the growth of the fan-in."""
        net = small_conv()
        big = widen_network(net, C4, (1, 6, 6))
        shrink = {"0.weight": 1.0, "4.weight": 0.5, "6.weight": 0.5}
        for name, parameter in big.named_parameters():
            entries = net.get_parameter(name).flatten() * shrink.get(name, 1.0)
            assert torch.isin(parameter.flatten(), entries).all()
            assert len(parameter.unique()) > len(entries) / 3

    @pytest.mark.parametrize("layers", [(nn.Linear(9, 2),), ()], ids=["one", "none"])
    def test_nothing_to_widen(self, layers):
        with pytest.raises(LayerError, match="with a hidden layer to expand"):
            widen_network(nn.Sequential(nn.Flatten(), *layers), C4, (1, 3, 3))


X, Y = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4), torch.tensor([0, 2, 1, 1, 0])


def linear():
    return nn.Linear(4, 3)


class TestModel:
    def test_a_site_for_each_parameter(self):
        case = NETWORKS["nested"]()
        model = pe.BayesianNetwork(case.net)
        trace = poutine.trace(model).get_trace(torch.randn(2, 2, 8, 8), torch.tensor([0, 2]))
        latent = {name: trace.nodes[name] for name in trace.stochastic_nodes if name != "data"}
        assert list(latent) == [name for name, _ in case.net.named_parameters()]
        for name, parameter in case.net.named_parameters():
            assert latent[name]["fn"].event_shape == latent[name]["value"].shape == parameter.shape

    @pytest.mark.parametrize("size, scale", [(None, 1.0), (5, 1.0), (100, 20.0)])
    def test_density(self, size, scale):
        """log p = Σ log N(θ; 0, 1) + (size / batch) Σ log softmax."""
        trace = poutine.trace(pe.BayesianNetwork(linear(), size=size)).get_trace(X, Y)
        weight, bias = trace.nodes["weight"]["value"], trace.nodes["bias"]["value"]
        logits = X @ weight.mT + bias
        assert_close(trace.nodes["_RETURN"]["value"], logits)
        likelihood = logits.log_softmax(-1)[torch.arange(5), Y].sum()
        prior = sum(dist.Normal(0.0, 1.0).log_prob(v).sum() for v in (weight, bias))
        trace.compute_log_prob()
        assert_close(trace.nodes["y"]["log_prob_sum"], scale * likelihood, rtol=1e-12, atol=0)
        assert_close(trace.log_prob_sum(), prior + scale * likelihood, rtol=1e-12, atol=0)

    def test_unobserved(self):
        trace = poutine.trace(pe.BayesianNetwork(linear(), size=7)).get_trace(X)
        site = trace.nodes["y"]
        assert not site["is_observed"] and site["value"].shape == (5,) and site["value"].dtype == torch.int64

    def test_the_network_is_copied(self):
        net = linear()
        before = copy.deepcopy(net.state_dict())
        model = pe.BayesianNetwork(net)
        model(X, Y)
        assert net.weight.requires_grad and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert torch.equal(model.init_loc_fn({"name": "weight"}), net.weight)
        with torch.no_grad():
            net.weight.zero_()
        assert torch.equal(model.init_loc_fn({"name": "weight"}), before["weight"])
        assert not any(p.requires_grad for p in model.parameters())

    def test_with_net(self):
        model = pe.BayesianNetwork(linear(), prior="fan_in", likelihood=poisson, size=7)
        other = model.with_net(nn.Linear(4, 2))
        assert (other.prior, other.likelihood, other.size) == (FanIn(), model.likelihood, 7)
        assert other.net.weight.shape == (2, 4)

    def test_categorical_by_callable_is_the_same(self):
        model = pe.BayesianNetwork(linear(), likelihood=lambda logits: dist.Categorical(logits=logits))
        named = pe.BayesianNetwork(model.net)
        replayed = poutine.trace(model).get_trace(X, Y)
        assert poutine.trace(poutine.replay(named, replayed)).get_trace(X, Y).log_prob_sum() == replayed.log_prob_sum()


class Viewing(nn.Module):
    """Takes contiguous images only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(18, 2)

    def forward(self, x):
        return self.layer(x.view(len(x), -1))


class TestLayout:
    """Images are laid out with the channels last where that is faster; the numbers stay."""

    @pytest.fixture
    def strides(self):
        """Runs a model on images and reports the strides that its network saw."""

        def seen(model, x):
            found = []
            hook = model.net.register_forward_pre_hook(lambda module, args: found.append(args[0].stride()))
            model(x)
            hook.remove()
            return found[-1]

        return seen

    @pytest.mark.parametrize("channels", [1, 2])
    @pytest.mark.parametrize("dtype, option, last", [
        (torch.float32, None, True), (torch.float64, None, False), (torch.float64, True, True),
        (torch.float32, False, False),
    ])  # fmt: skip
    def test_follows_the_option(self, strides, channels, dtype, option, last):
        net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4, 2)).to(dtype)
        model = pe.BayesianNetwork(net, channels_last=option)
        x = torch.randn(5, channels, 3, 3, dtype=dtype)
        expected = (9 * channels, 1, 3 * channels, channels) if last else (9 * channels, 9, 3, 1)
        assert strides(model, x) == strides(model, x) == expected

    def test_does_not_change_the_output(self):
        net = small_conv().float()
        x, outputs = torch.randn(3, 1, 6, 6, dtype=torch.float32), []
        for option in (True, False, None):
            model = pe.BayesianNetwork(net, channels_last=option)
            outputs.append(poutine.condition(model, dict(net.named_parameters()))(x))
        assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
        assert_close(outputs[2], net(x), atol=1e-5, rtol=1e-5)

    def test_networks_that_view_are_left_as_they_are(self, strides):
        model = pe.BayesianNetwork(Viewing().float())
        assert strides(model, torch.randn(5, 2, 3, 3, dtype=torch.float32)) == (18, 9, 3, 1)
        assert model.with_net(Viewing()).channels_last is False


def poisson(output):
    return dist.Poisson(output[..., 0].exp())


class TestPrior:
    def scales(self, prior):
        trace = poutine.trace(pe.BayesianNetwork(small_conv(), prior=prior)).get_trace(torch.randn(2, 1, 6, 6))
        sites = {name: trace.nodes[name]["fn"] for name, _ in small_conv().named_parameters()}
        assert all((fn.base_dist.loc == 0).all() and fn.batch_shape == () for fn in sites.values())
        return {name: fn.base_dist.scale.unique().item() for name, fn in sites.items()}

    @pytest.mark.parametrize("prior", [0.5, 2, Scalar(3.0)])
    def test_scalar(self, prior):
        expected = prior.scale if isinstance(prior, Scalar) else prior
        assert set(self.scales(prior).values()) == {expected}

    def test_fan_in(self):
        expected = {"0.weight": (2 / 9) ** 0.5, "4.weight": (2 / 72) ** 0.5, "6.weight": (2 / 8) ** 0.5}
        expected |= {"0.bias": 0.1, "4.bias": 0.1, "6.bias": 0.1}
        assert self.scales("fan_in") == pytest.approx(expected) == self.scales(FanIn())

    def test_callable(self):
        def prior(name, parameter):
            return dist.Normal(torch.zeros_like(parameter), len(name)).to_event(parameter.ndim)

        assert self.scales(prior) == {name: len(name) for name, _ in small_conv().named_parameters()}

    def test_takes_the_parameters_dtype(self):
        assert pe.BayesianNetwork(linear().float()).prior("w", torch.zeros(2, dtype=torch.float32)).sample().dtype \
            == torch.float32  # fmt: skip

    @pytest.mark.parametrize("prior", [0, -1.0, "normal", None, True, float("nan")], ids=str)
    def test_unknown(self, prior):
        with pytest.raises(OptionError, match="positive scale, 'fan_in', .* or a callable"):
            pe.BayesianNetwork(linear(), prior=prior)

    def test_unknown_likelihood(self):
        with pytest.raises(OptionError, match="likelihood to be one of 'categorical', .*; got 'gamma'"):
            pe.BayesianNetwork(linear(), likelihood="gamma")


class TestLabels:
    @pytest.mark.parametrize("y, found", [([0, 3], "0 to 3"), ([-1, 2], "-1 to 2")])
    def test_out_of_range(self, y, found):
        with pytest.raises(DataError, match=f"labels between 0 and 2, the network's outputs; got {found}"):
            pe.BayesianNetwork(linear()).check_data(X[:2], torch.tensor(y))

    def test_fitting(self):
        pe.BayesianNetwork(linear()).check_data(X, Y)
        pe.BayesianNetwork(linear()).check_data(X)

    def test_counts_are_no_classes(self):
        pe.BayesianNetwork(linear(), likelihood=poisson).check_data(X, torch.tensor([0, 7, 3, 1, 100]))

    def test_other_targets_are_not_checked(self):
        regression = pe.BayesianNetwork(linear(), likelihood=lambda f: dist.Normal(f, 1.0).to_event(1))
        regression.check_data(X, torch.randn(5, 3))


class TestInference:
    @pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
    @pytest.mark.parametrize("make_guide", [AutoNormal, pe.AutoMeanFieldNormal])
    def test_trains_and_predicts(self, elbo, make_guide):
        """Labels that a linear map separates: twenty steps lower the loss; draws have the plate's length."""
        x = torch.randn(40, 4)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()
        model = pe.BayesianNetwork(linear(), size=80)
        guide = make_guide(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo(num_particles=2))
        losses = [svi.step(x, y) for _ in range(40)]
        assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
        draws = Predictive(model, guide=guide, num_samples=6, return_sites=["y", "_RETURN", "weight"])(x[:3])
        assert draws["y"].shape == (6, 3) and draws["_RETURN"].shape == (6, 3, 3)
        assert draws["weight"].squeeze(1).shape == (6, 3, 4)

    def test_subsample_is_an_unbiased_likelihood(self):
        """Two halves of the data, each scaled by two, have the mean of the whole."""
        weights = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
        model = poutine.condition(pe.BayesianNetwork(linear(), size=4), weights)

        def likelihood(rows):
            trace = poutine.trace(model).get_trace(X[rows], Y[rows])
            trace.compute_log_prob()
            return trace.nodes["y"]["log_prob_sum"]

        halves = likelihood(slice(0, 2)) + likelihood(slice(2, 4))
        assert_close(halves / 2, likelihood(slice(0, 4)), rtol=1e-12, atol=0)
