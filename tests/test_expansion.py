"""Growing a network by moved copies, and averaging a guide in place: against loops, and over whole orbits."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.networks.expanded import ARRANGEMENTS, SiteExpansion

RULES = ("geometric", "arithmetic", "projection")
TIES = (None, "parameters", "samples")
EQUIVARIANT = ("free", "gcnn", "row_rolled", "diagonal")
GROUPS = {"C4": lambda: pe.CyclicGroup(4), "D4": lambda: pe.DihedralGroup(4)}
each_group = pytest.mark.parametrize("group", [make() for make in GROUPS.values()], ids=GROUPS)


def turned(x, g):
    """Element ``g`` of C4 or D4 on images, by torch alone."""
    moved = torch.rot90(x, g % 4, (-2, -1))
    return moved if g < 4 else moved.flip(-1)


def turned_flat(channels, size, weight, g):
    """The same on the input axis of a linear layer that comes after a Flatten."""
    return turned(weight.reshape(-1, channels, size, size), g).reshape(weight.shape)


def quotient(group, g, h):
    """``g⁻¹h``: what must be done before ``g`` for both together to have the effect of ``h``."""
    image = torch.arange(9.0).reshape(3, 3)
    return next(k for k in range(len(group)) if torch.equal(turned(turned(image, k), g), turned(image, h)))


def inverse(group, g):
    return quotient(group, g, 0)


# One parameter


def kernel(group):
    return pe.trivial(group, (2, 3)) * pe.image(group, (3, 3)), turned


def bias(group):
    return pe.trivial(group, 2), lambda x, g: x


def dense(group):
    """Two channels of 2 × 2 pixels to three features."""
    rep = pe.trivial(group, 3) * (pe.trivial(group, 2) * pe.image(group, (2, 2))).reshape(8)
    return rep, functools.partial(turned_flat, 2, 2)


PARAMETERS = {"kernel": kernel, "dense": dense}
ROLES = {"first": (False, True), "hidden": (True, True), "last": (True, False)}


def by_loops(group, move, base, role, arrangement):
    """The docstring's formulas, block by block."""
    order = len(group)
    if role == "first":
        return torch.cat([move(base, g) for g in range(order)], 0)
    if role == "last":
        scale = order**-0.5 if arrangement == "free" else 1 / order
        return torch.cat([move(base, h) * scale for h in range(order)], 1)
    rows = []
    for g in range(order):
        blocks = []
        for h in range(order):
            if arrangement == "free":
                block = move(base[quotient(group, g, h)], g)
            elif arrangement == "gcnn":  # ρ(g h⁻¹ g) φ
                block = move(move(move(base, g), inverse(group, h)), g)
            elif arrangement == "row_rolled":  # ρ(g h⁻¹) φ
                block = move(move(base, inverse(group, h)), g)
            elif arrangement == "diagonal":  # δ_gh ρ(g) φ, not shrunk
                block = move(base, g) * (g == h) * order**0.5
            else:
                block = move(base, inverse(group, h))
            blocks.append(block / order**0.5)
        rows.append(torch.cat(blocks, 1))
    return torch.cat(rows, 0)


def exists(group, arrangement):
    return arrangement != "row_rolled" or isinstance(group, pe.CyclicGroup)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("parameter", PARAMETERS)
@pytest.mark.parametrize(("group", "arrangement"), [
    pytest.param(make(), arrangement, id=f"{name}-{arrangement}")
    for name, make in GROUPS.items() for arrangement in ARRANGEMENTS if exists(make(), arrangement)
])  # fmt: skip
def test_blocks_against_loops(group, parameter, role, arrangement):
    rep, move = PARAMETERS[parameter](group)
    expansion = SiteExpansion(rep, *ROLES[role], arrangement)
    base = torch.randn(expansion.base_shape)
    has_free_kernels = role == "hidden" and arrangement == "free"
    assert expansion.base_shape == (len(group),) * has_free_kernels + rep.event_shape
    expected = by_loops(group, move, base, role, arrangement)
    torch.testing.assert_close(expansion.expand(base), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(expansion.expand_scale(base.exp()),
                               by_loops(group, move, base.exp(), role, arrangement))  # fmt: skip


def test_row_rolled_needs_a_group_that_commutes():
    rep, _ = kernel(pe.DihedralGroup(4))
    with pytest.raises(pe.OptionError, match="abelian group for arrangement='row_rolled': under DihedralGroup"):
        SiteExpansion(rep, True, True, "row_rolled")


@each_group
def test_biases_are_repeated(group):
    rep, _ = bias(group)
    small = torch.randn(2)
    hidden, last = SiteExpansion(rep, False, True, "free"), SiteExpansion(rep, False, False, "free")
    assert torch.equal(hidden.expand(small), small.repeat(len(group)))
    assert torch.equal(last.expand(small), small)


def test_the_last_bias_of_outputs_that_move_is_averaged():
    rep = pe.regular(pe.CyclicGroup(4))
    expansion = SiteExpansion(rep, False, False, "free")
    torch.testing.assert_close(expansion.expand(torch.tensor([1.0, 2.0, 3.0, 6.0])), torch.full((4,), 3.0))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_leading_axes(parameter, role, arrangement):
    rep, _ = PARAMETERS[parameter](pe.CyclicGroup(4) if arrangement == "row_rolled" else pe.DihedralGroup(4))
    expansion = SiteExpansion(rep, *ROLES[role], arrangement)
    base = torch.randn(2, 3, *expansion.base_shape)
    each = torch.stack([torch.stack([expansion.expand(b) for b in row]) for row in base])
    torch.testing.assert_close(expansion.expand(base), each, rtol=0, atol=0)
    small = torch.randn(2, 3, *rep.event_shape)
    each = torch.stack([torch.stack([expansion.start(b) for b in row]) for row in small])
    torch.testing.assert_close(expansion.start(small), each, rtol=0, atol=0)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("parameter", PARAMETERS)
@each_group
def test_free_starts_as_gcnn_but_for_the_scale_of_the_readout(group, parameter, role):
    rep, _ = PARAMETERS[parameter](group)
    free, gcnn = (SiteExpansion(rep, *ROLES[role], arrangement) for arrangement in ("free", "gcnn"))
    small = torch.randn(rep.event_shape)
    ratio = len(group) ** 0.5 if role == "last" else 1.0
    torch.testing.assert_close(free.expand(free.start(small)), ratio * gcnn.expand(gcnn.start(small)))
    torch.testing.assert_close(free.expand_scale(free.start_scale(small.exp())),
                               ratio * gcnn.expand_scale(gcnn.start_scale(small.exp())))  # fmt: skip


def test_scales_move_without_the_signs():
    group = pe.CyclicGroup(4)
    plane = pe.signed_permutation(group, [[0, 1], [1, 0]] * 2, [[1, 1], [1, -1], [-1, -1], [-1, 1]])
    rep = pe.trivial(group, 3) * plane
    small, scale = torch.randn(3, 2), 0.1 + torch.rand(3, 2)
    for arrangement, role in [("free", "hidden"), ("gcnn", "hidden"), ("gcnn", "first"), ("free", "last")]:
        expansion = SiteExpansion(rep, *ROLES[role], arrangement)
        large, large_scale = (
            expansion.expand(expansion.start(small)),
            expansion.expand_scale(expansion.start_scale(scale)),
        )
        assert (large_scale > 0).all()
        noise = torch.randn(20_000, 3, 2)
        draws = expansion.expand(expansion.start(small + scale * noise))
        torch.testing.assert_close(draws.std(0), large_scale, rtol=0.03, atol=0)
        torch.testing.assert_close(draws.mean(0), large, rtol=0, atol=0.05)


# Whole networks


def rgb_net(width=2):
    """Two hidden layers on RGB images and a fully connected head."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.Tanh(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, 3),
    )  # fmt: skip


def dense_net(width=2):
    """A hidden layer that is fully connected."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, width), nn.Tanh(),
        nn.Linear(width, 3),
    )  # fmt: skip


def pooled_net(width=2):
    """A linear readout after global pooling."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip


NETS = {"head": rgb_net, "dense": dense_net, "pooled": pooled_net}
each_net = pytest.mark.parametrize("net", NETS)
PIXELS = (3, 4, 4)


def data(count=3):
    return torch.randn(count, *PIXELS), torch.arange(count) % 3


def randomise(guide, size=0.5):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_(std=size)


def small_start(net, group, **options):
    """A small model, its guide with random parameters, and its symmetry."""
    symmetry = pe.network_symmetry(net, group, PIXELS, hidden="trivial")
    model = pe.BayesianNetwork(net, **options)
    guide = pe.AutoMeanFieldNormal(model)
    guide.initialize(*data())
    randomise(guide)
    return model, guide, symmetry


def core(law):
    """The Normal behind a law."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return law


@torch.no_grad()
def law_gap(guide, symmetry):
    """How far location and scale of any site are from being fixed by any element."""
    worst = 0.0
    for site, rep in symmetry.sites.items():
        law = core(guide.get_posterior(site))
        for g in range(1, len(symmetry.group)):
            worst = max(worst, float((rep.act(g, law.loc) - law.loc).abs().max()))
            worst = max(worst, float((rep.act(g, law.scale) - law.scale).abs().max()))
    return worst


@torch.no_grad()
def draw_gap(model, guide, group, draws=3):
    """How far the outputs of single draws on turned images are from those on upright ones."""
    x, _ = data()
    gaps = []
    for _ in range(draws):
        draw = poutine.trace(guide).get_trace()
        upright, *others = (poutine.replay(model, draw)(turned(x, g)) for g in range(len(group)))
        gaps += [float((other - upright).abs().max()) for other in others]
    return max(gaps), float(upright.std())


def big_net(big_model):
    return big_model.big.net if isinstance(big_model, pe.handlers.ExpandedNetwork) else big_model.net


def combinations(ties):
    """Those of group, network, arrangement and tie that exist; rolled features need pooling before the last layer."""
    found = []
    for name, make in GROUPS.items():
        for arrangement in ARRANGEMENTS:
            for net in NETS if arrangement != "row_rolled" else ["pooled"]:
                for tie in ties if arrangement != "diagonal" else [t for t in ties if t == "samples"]:
                    if exists(make(), arrangement):
                        label = f"{name}-{net}-{arrangement}-{tie}"
                        found.append(pytest.param(make(), net, arrangement, tie, id=label))
    return found


@pytest.mark.parametrize(("group", "net", "arrangement", "tie"), combinations(TIES))
def test_what_expand_returns(group, net, arrangement, tie):
    small = NETS[net]()
    big_model, big_guide, big_symmetry = pe.expand(*small_start(small, group), arrangement, tie)
    order, wide = len(group), dict(big_net(big_model).named_parameters())
    hidden = [m for m in big_net(big_model) if hasattr(m, "weight")]
    assert [m.weight.shape[0] for m in hidden] == [2 * order, 2 * order, 3]
    expected = {name: p.shape for name, p in wide.items()}
    assert expected == {site: rep.event_shape for site, rep in big_symmetry.sites.items()}
    hidden = "rolled" if arrangement == "row_rolled" else "regular"
    assert big_symmetry == pe.network_symmetry(big_net(big_model), group, PIXELS, hidden=hidden)
    assert big_symmetry.check(big_net(big_model)) < 1e-12

    draw = poutine.trace(big_guide).get_trace()
    suffix = "_base" if tie == "samples" else ""
    assert list(draw.stochastic_nodes) == [name + suffix for name in wide]
    model_trace = poutine.trace(poutine.replay(big_model, draw)).get_trace(*data())
    assert {name: model_trace.nodes[name]["value"].shape for name in wide} == expected
    assert model_trace.nodes["_RETURN"]["value"].shape == (3, 3)
    assert big_guide.always_invariant == (tie is not None and arrangement in EQUIVARIANT)


@pytest.mark.parametrize(("group", "net", "arrangement", "tie"), combinations([None, "parameters"]))
def test_the_expanded_law_is_invariant(group, net, arrangement, tie):
    _, guide, symmetry = pe.expand(*small_start(NETS[net](), group), arrangement, tie)
    if arrangement in EQUIVARIANT:
        assert law_gap(guide, symmetry) < 1e-12
    else:
        assert law_gap(guide, symmetry) > 0.1
    randomise(guide)
    if tie == "parameters" and arrangement in EQUIVARIANT:
        assert law_gap(guide, symmetry) < 1e-12
    else:
        assert law_gap(guide, symmetry) > 0.1


@pytest.mark.parametrize(("group", "net", "arrangement", "tie"), combinations(["samples"]))
def test_every_draw_is_an_equivariant_network_when_samples_are_tied(group, net, arrangement, tie):
    model, guide, _ = pe.expand(*small_start(NETS[net](), group), arrangement, tie)
    for change in (lambda guide: None, randomise):
        change(guide)
        gap, size = draw_gap(model, guide, group)
        assert size > 0.05
        if arrangement in EQUIVARIANT:
            assert gap < 1e-10
        else:
            assert gap > 1e-2


@pytest.mark.parametrize("tie", [None, "parameters"])
def test_single_draws_are_not_equivariant_otherwise(tie):
    group = pe.CyclicGroup(4)
    model, guide, _ = pe.expand(*small_start(rgb_net(), group), "gcnn", tie)
    assert draw_gap(model, guide, group)[0] > 1e-2


@pytest.mark.parametrize("arrangement", ["free", "gcnn"])
def test_outputs_that_move(arrangement):
    """Four outputs that turn with the image: one for each of its sides, say."""
    group = pe.CyclicGroup(4)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(),
                        nn.Linear(32, 4))  # fmt: skip
    symmetry = pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial", outputs=pe.regular(group))
    model = pe.BayesianNetwork(net)
    start = pe.AutoMeanFieldNormal(model)
    x = torch.randn(3, 1, 4, 4)
    for tie in ("parameters", "samples"):
        big_model, guide, big_symmetry = pe.expand(model, start, symmetry, arrangement, tie)
        randomise(guide)
        assert guide.always_invariant
        if tie == "parameters":
            assert law_gap(guide, big_symmetry) < 1e-12
            continue
        fixed = poutine.replay(big_model, poutine.trace(guide).get_trace())
        for g in range(4):
            torch.testing.assert_close(fixed(turned(x, g)), fixed(x).roll(g, -1), rtol=0, atol=1e-10)


@each_net
@each_group
def test_diagonal_is_the_mean_of_the_small_network_over_the_orbit(group, net):
    model, guide, symmetry = small_start(NETS[net](), group)
    big_model, big_guide, _ = pe.expand(model, guide, symmetry, "diagonal")
    draw = poutine.trace(big_guide).get_trace()
    small = {name: draw.nodes[f"{name}_base"]["value"] for name, _ in model.net.named_parameters()}
    x, _ = data()
    orbit = [torch.func.functional_call(model.net, small, (turned(x, g),)) for g in range(len(group))]
    assert (orbit[0] - orbit[1]).abs().max() > 1e-2
    torch.testing.assert_close(poutine.replay(big_model, draw)(x), torch.stack(orbit).mean(0), rtol=0, atol=1e-12)


class Joined(nn.Module):
    """Channels of two convolutions side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 2, 3, padding=1) for i in (3, 3, 4))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))


UNFIT = {
    "row_rolled before a head that sees places": (rgb_net, "row_rolled", r"arrangement='row_rolled' .*'6.weight'"),
    "concatenated channels": (Joined, "gcnn", r"'c.weight' is not: its channels are not whole blocks"),
    "diagonal with layer norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.LayerNorm((2, 2, 2)), nn.Flatten(), nn.Linear(8, 3)),
        "diagonal", "for arrangement='diagonal'; a LayerNorm"),
    "a shortcut from the input": (
        lambda: nn.Sequential(pe.Residual(nn.Conv2d(3, 3, 3, padding=1)), nn.Flatten(), nn.Linear(48, 3)),
        "gcnn", "A shortcut from the input needs a convolution"),
    "tied layers": (lambda: TiedConvolutions(), "gcnn", "some are tied"),
    "diagonal with a softmax over channels": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Softmax(1), nn.Flatten(), nn.Linear(8, 3)),
        "diagonal", "for arrangement='diagonal'"),
    "a table of positions": (
        lambda: WithPositions(), "gcnn", "'positions' stands by itself"),
    "attention": (
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(16, 4), nn.MultiheadAttention(4, 1, batch_first=True)),
        "gcnn", "returns one tensor"),
}  # fmt: skip


class TiedConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.b.weight, self.head = self.a.weight, nn.Linear(2, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.b(torch.tanh(self.a(self.lift(x))))).mean((2, 3)))


class WithPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2, 3)
        self.positions = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x):
        return self.head(torch.relu(self.conv(x) + self.positions).mean((2, 3)))


@pytest.mark.parametrize("case", UNFIT)
def test_networks_that_cannot_be_arranged_are_refused(case):
    build, arrangement, match = UNFIT[case]
    with pytest.raises(pe.LayerError, match=match):
        pe.expand(*small_start(build(), pe.CyclicGroup(4)), arrangement)


NORMALISED = {
    "group norm": lambda: nn.GroupNorm(2, 2),
    "batch norm": lambda: nn.BatchNorm2d(2, track_running_stats=False),
    "layer norm": lambda: nn.LayerNorm((2, 4, 4)),
    "residual": lambda: pe.Residual(nn.Sequential(nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1))),
}


@pytest.mark.parametrize("kind", NORMALISED)
@each_group
def test_normalised_and_residual_networks_are_arranged(group, kind):
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), NORMALISED[kind](), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(),
                        nn.Linear(8, 3))  # fmt: skip
    for tie in TIES:
        model, guide, symmetry = pe.expand(*small_start(net, group), "free", tie)
        if tie == "samples":
            assert draw_gap(model, guide, group)[0] < 1e-10
        else:
            assert law_gap(guide, symmetry) < 1e-12


@pytest.mark.parametrize("arrangement", ["free", "gcnn"])
@each_group
def test_the_mean_network_is_equivariant_at_the_start(group, arrangement):
    model, guide, _ = pe.expand(*small_start(rgb_net(), group), arrangement, tie=None)
    x, _ = data()
    outputs = [mean_outputs(model.net, guide, turned(x, g)) for g in range(len(group))]
    assert outputs[0].std() > 0.05
    for output in outputs:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-10)


def kl_of(model, guide):
    """The KL from guide to prior as the ELBO has it, the data hidden; analytic, so without spread."""
    silent = poutine.block(model, hide=["y"])
    losses = {TraceMeanField_ELBO().differentiable_loss(silent, guide, *data()).item() for _ in range(3)}
    assert len(losses) == 1
    return losses.pop()


@each_net
@each_group
def test_kl_of_tied_samples(group, net):
    """It is the small network's; for ``free`` each hidden weight counts once for each of its |G| kernels."""
    model, guide, symmetry = small_start(NETS[net](), group, prior="fan_in")
    gcnn, gcnn_guide, _ = pe.expand(model, guide, symmetry, "gcnn", tie="samples")
    free, free_guide, _ = pe.expand(model, guide, symmetry, "free", tie="samples")
    kl = kl_of(model, guide)
    assert kl_of(gcnn, gcnn_guide) == pytest.approx(kl, rel=1e-12)
    hidden = [name for name in symmetry.sites if name.endswith("weight")][1]
    priors = poutine.trace(model).get_trace(*data())
    extra = float(pe.kl(guide.get_posterior(hidden), priors.nodes[hidden]["fn"]).detach())
    assert kl_of(free, free_guide) == pytest.approx(kl + (len(group) - 1) * extra, rel=1e-12)


@pytest.mark.parametrize("tie", TIES)
def test_priors_likelihood_and_size(tie):
    """Untied, the prior rule is applied to the large network's own fan-in; tied samples keep the small priors."""
    net, group = rgb_net(), pe.CyclicGroup(4)
    model, guide, symmetry = small_start(net, group, prior=pe.FanIn(gain=1.5, bias=0.3), size=60)
    big_model, _, _ = pe.expand(model, guide, symmetry, "gcnn", tie)
    trace = poutine.trace(big_model).get_trace(*data())
    suffix, widening = ("_base", 1) if tie == "samples" else ("", 4)
    fan_in = {"0.weight": 27, "2.weight": 18 * widening, "6.weight": 8 * widening}
    stds = {site: 1.5 / n**0.5 for site, n in fan_in.items()} | {"0.bias": 0.3, "2.bias": 0.3, "6.bias": 0.3}
    for site, std in stds.items():
        law = trace.nodes[site + suffix]["fn"]
        torch.testing.assert_close(law.stddev, torch.full(law.event_shape, std))
        assert law.mean.abs().max() == 0
    assert trace.nodes["y"]["scale"] == 60 / 3


@pytest.mark.parametrize("tie", TIES)
def test_the_small_guide_is_left_as_it_was(tie):
    model, guide, symmetry = small_start(rgb_net(), pe.CyclicGroup(4))
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    start = [p.clone() for p in model.net.parameters()]
    big_model, big_guide, _ = pe.expand(model, guide, symmetry, "free", tie)
    svi = pyro.infer.SVI(big_model, big_guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    svi.step(*data())
    randomise(big_guide)
    guide()
    assert all(torch.equal(value, state[name]) for name, value in guide.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(model.net.parameters(), start, strict=True))


def by_hand(model):
    """A guide of ``pyro.param``s."""

    def guide(*args):
        for name, p in model.net.named_parameters():
            loc = pyro.param(f"{name} loc", torch.randn_like(p))
            scale = pyro.param(f"{name} scale", 0.1 + torch.rand_like(p), constraint=dist.constraints.positive)
            pyro.sample(name, dist.Normal(loc, scale).to_event(p.ndim))

    return guide


def from_pe(model):
    guide = pe.AutoMeanFieldNormal(model)
    guide.initialize(*data())
    randomise(guide)
    return guide


def from_pyro(model):
    guide = AutoNormal(model)
    guide(*data())
    randomise(guide)
    return guide


MEAN_FIELD = {"pe": from_pe, "pyro": from_pyro, "by hand": by_hand}
each_guide = pytest.mark.parametrize("kind", MEAN_FIELD)


@torch.no_grad()
def moments(guide):
    """Mean and scale of each site that a guide draws from, whatever its kind."""
    nodes = poutine.trace(guide).get_trace().nodes.items()
    return {
        name.removesuffix("_unconstrained"): (core(node["fn"]).loc.clone(), core(node["fn"]).scale.clone())
        for name, node in nodes
        if node["type"] == "sample" and not isinstance(node["fn"], dist.Delta)
    }


@each_guide
def test_expand_starts_from_the_moments_of_any_mean_field_guide(kind):
    net, group = rgb_net(), pe.DihedralGroup(4)
    model, symmetry = pe.BayesianNetwork(net), pe.network_symmetry(net, group, PIXELS, hidden="trivial")
    small = MEAN_FIELD[kind](model)
    _, guide, _ = pe.expand(model, small, symmetry, "gcnn", tie=None)
    large, reps = moments(guide), {"0.weight": (turned, "first"), "2.weight": (turned, "hidden")}
    reps["6.weight"] = (functools.partial(turned_flat, 2, 2), "last")
    for site, parameters in moments(small).items():
        for ours, theirs in zip(large[site], parameters, strict=True):
            if site in reps:
                move, role = reps[site]
                expected = by_loops(group, move, theirs, role, "gcnn")
            else:
                expected = theirs.repeat(8) if site != "6.bias" else theirs
            torch.testing.assert_close(ours, expected)


def test_a_new_guide_is_initialised():
    net = rgb_net()
    model = pe.BayesianNetwork(net)
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), PIXELS, hidden="trivial")
    _, guide, _ = pe.expand(model, pe.AutoMeanFieldNormal(model), symmetry, "gcnn")
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(core(guide.get_posterior(f"{name}_base")).loc, parameter.detach())


def test_the_handler_samples_the_small_sites():
    """``pe.handlers.expand`` alone, with pyro's own guide and loss: the deterministic sites add nothing to it."""
    net = rgb_net()
    symmetry = pe.network_symmetry(net, pe.DihedralGroup(4), PIXELS, hidden="trivial")
    small = pe.BayesianNetwork(net, prior=0.7)
    model = pe.handlers.expand(small, symmetry, arrangement="gcnn")
    trace = poutine.trace(model).get_trace(*data())
    trace.compute_log_prob()
    for name in symmetry.sites:
        assert trace.nodes[name]["log_prob_sum"] == 0
        base = trace.nodes[f"{name}_base"]
        torch.testing.assert_close(base["log_prob_sum"], dist.Normal(0.0, 0.7).log_prob(base["value"]).sum())
    guide = AutoNormal(model)
    guide(*data())
    randomise(guide)
    assert draw_gap(model, guide, symmetry.group)[0] < 1e-10


def error_cases():
    net = rgb_net()
    model, symmetry = pe.BayesianNetwork(net), pe.network_symmetry(net, pe.CyclicGroup(4), PIXELS, hidden="trivial")
    guide = pe.AutoMeanFieldNormal(model)
    line = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    one_layer = pe.BayesianNetwork(line)
    averaging = pe.AutoSymmetricNormal(model, symmetry)
    return {
        "arrangement": (pe.OptionError, "'free', 'gcnn', 'row_rolled', 'row_constant', 'diagonal'; got 'spiral'",
                        (model, guide, symmetry, "spiral")),
        "diagonal": (pe.OptionError, "tie='samples' with arrangement='diagonal'",
                     (model, guide, symmetry, "diagonal", None)),
        "tie": (pe.OptionError, "None, 'parameters', 'samples'; got 'knot'", (model, guide, symmetry, "free", "knot")),
        "model": (pe.OptionError, "BayesianNetwork of the small network; got Sequential", (net, guide, symmetry)),
        "one layer": (pe.LayerError, "hidden layer to expand",
                      (one_layer, pe.AutoMeanFieldNormal(one_layer),
                       pe.network_symmetry(line, pe.CyclicGroup(4), PIXELS, hidden="trivial"))),
        "computed parameters": (pe.SymmetryError, "site '0.weight' to be parameters", (model, averaging, symmetry)),
    }  # fmt: skip


@pytest.mark.parametrize("case", ["arrangement", "diagonal", "tie", "model", "one layer", "computed parameters"])
def test_expand_checks_its_arguments(case):
    kind, match, arguments = error_cases()[case]
    with pytest.raises(kind, match=match):
        pe.expand(*arguments)


# One-shot symmetrization


def mean_outputs(net, guide, x):
    """The outputs of the network whose weights are the guide's means."""
    return torch.func.functional_call(net, {site: loc for site, (loc, _) in moments(guide).items()}, (x,))


def averaged(loc, scale, rep, rule):
    """The three averages under permutations, from the definitions."""
    locs, scales = rep.orbit(loc), rep.orbit(scale)
    if rule == "geometric":
        variance = 1 / (scales**-2).mean(0)
        return variance * (locs / scales**2).mean(0), variance.sqrt()
    if rule == "arithmetic":
        return locs.mean(0), ((scales**2 + locs**2).mean(0) - locs.mean(0) ** 2).sqrt()
    return locs.mean(0), scales.mean(0)


def gap(parameters, symmetry):
    """By site, how far mean and scale are from being fixed by any element."""
    return {
        site: max(float((rep.orbit(value) - value).abs().max()) for value in parameters[site])
        for site, rep in symmetry.sites.items()
    }


def one_shot(kind, group, hidden):
    """A network of regular width, a guide of it and the symmetry."""
    net = rgb_net(8)
    model, symmetry = pe.BayesianNetwork(net), pe.network_symmetry(net, group, PIXELS, hidden=hidden)
    return net, MEAN_FIELD[kind](model), symmetry


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("hidden", ["regular", "trivial"])
@each_guide
@each_group
def test_symmetrize_in_place(group, kind, hidden, rule):
    net, guide, symmetry = one_shot(kind, group, hidden)
    before, (x, _) = moments(guide), data()
    assert (mean_outputs(net, guide, turned(x, 1)) - mean_outputs(net, guide, x)).abs().max() > 0.1
    pe.symmetrize_(guide, symmetry, rule=rule)
    after = moments(guide)
    assert set(after) == {name for name, _ in net.named_parameters()}
    for site, parameters in before.items():
        for ours, theirs in zip(after[site], averaged(*parameters, symmetry[site], rule), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    moving = {site for site, off in gap(before, symmetry).items() if off > 0.1}
    assert moving == set(after) - {"6.bias"} - ({"0.bias", "2.bias"} if hidden == "trivial" else set())
    assert max(gap(after, symmetry).values()) < 1e-12
    upright = mean_outputs(net, guide, x)
    for g in range(1, len(group)):
        torch.testing.assert_close(mean_outputs(net, guide, turned(x, g)), upright, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
@each_guide
def test_symmetrizing_twice_changes_nothing_more(kind, rule):
    _, guide, symmetry = one_shot(kind, pe.DihedralGroup(4), "regular")
    pe.symmetrize_(guide, symmetry, rule=rule)
    once = moments(guide)
    pe.symmetrize_(guide, symmetry, rule=rule)
    for site, parameters in moments(guide).items():
        for ours, theirs in zip(parameters, once[site], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["pe", "pyro"])
def test_symmetrize_with_parameters_that_live_in_the_module(kind):
    with pyro.settings.context(module_local_params=True):
        _, guide, symmetry = one_shot(kind, pe.CyclicGroup(4), "regular")
        before = moments(guide)
        pe.symmetrize_(guide, symmetry, rule="projection")
        for site, parameters in moments(guide).items():
            for ours, theirs in zip(parameters, averaged(*before[site], symmetry[site], "projection"), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("build", [pe.AutoMeanFieldNormal, AutoNormal])
def test_symmetrize_a_positive_site(build):
    """Its average is taken of the Normal in unconstrained space."""
    group = pe.SymmetricGroup(3)

    def model():
        pyro.sample("rate", dist.Gamma(torch.ones(3), 1.0).to_event(1))

    guide = build(model)
    guide()
    randomise(guide)
    quantiles = guide.quantiles([0.5])["rate"].log().mean()
    pe.symmetrize_(guide, pe.Symmetry(group, {"rate": pe.permutation(group)}), rule="projection")
    torch.testing.assert_close(guide.quantiles([0.5])["rate"][0], quantiles.exp().expand(3))


OPTIMIZERS = {
    "torch": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "pyro": lambda parameters: pyro.optim.Adam({"lr": 0.1}),
}


def step(optimizer, parameters, gradient):
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer(parameters) if isinstance(optimizer, pyro.optim.PyroOptim) else optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_forgets(optimizer):
    """Adam's first step has length lr whatever the gradient; later ones depend on what came before."""
    _, guide, symmetry = one_shot("pe", pe.CyclicGroup(4), "regular")
    parameters = list(guide.parameters())
    optimizer = OPTIMIZERS[optimizer](parameters)
    for _ in range(3):
        step(optimizer, parameters, 1.0)
    for clear, length in ((False, "else"), (True, 0.1)):
        if clear:
            pe.symmetrize_(guide, symmetry, optimizer=optimizer)
        before = [p.detach().clone() for p in parameters]
        step(optimizer, parameters, -0.01)
        moves = torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)])
        if length == "else":
            assert (moves < 0).all()  # still going where the momentum points
        else:
            torch.testing.assert_close(moves, torch.full_like(moves, length), rtol=1e-5, atol=0)


def without(symmetry, site):
    return pe.Symmetry(symmetry.group, {s: rep for s, rep in symmetry.sites.items() if s != site}, symmetry.inputs)


def mixing(symmetry, site):
    """The same symmetry, but that pairs of inputs of one site are mirrored askew, which no mean-field Normal bears."""
    group = symmetry.group
    swap = torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    matrices = torch.stack([torch.eye(2) if g % 2 == 0 else swap for g in range(len(group))])
    outputs, inputs = symmetry[site].event_shape
    rep = pe.trivial(group, outputs) * pe.matrix(group, matrices) * pe.trivial(group, inputs // 2)
    return pe.Symmetry(group, {**symmetry.sites, site: rep.reshape((outputs, inputs))}, symmetry.inputs)


@pytest.mark.parametrize("broken", [without, mixing])
@each_guide
def test_an_error_half_way_changes_nothing(kind, broken):
    _, guide, symmetry = one_shot(kind, pe.CyclicGroup(4), "regular")
    before = moments(guide)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
    optimizer.step()
    with pytest.raises(pe.SymmetryError, match=r"'6.weight'|mixes entries"):
        pe.symmetrize_(guide, broken(symmetry, "6.weight"), optimizer=optimizer)
    for site, parameters in moments(guide).items():
        assert all(torch.equal(a, b) for a, b in zip(parameters, before[site], strict=True))
    assert optimizer.state


REFUSED = {
    "averaged": (lambda model, symmetry: pe.AutoSymmetricNormal(model, symmetry), "computed from others"),
    "point": (lambda model, symmetry: AutoDelta(model), "a Normal at site '0.weight' of the guide; got Delta"),
    "joint": (lambda model, symmetry: AutoDiagonalNormal(model), "a Normal at site '0.weight'.*got Delta"),
    "shared": (lambda model, symmetry: shared_scale(model), "site '0.weight' to be parameters"),
}


def shared_scale(model):
    """One scale for all entries of a site."""

    def guide(*args):
        for name, p in model.net.named_parameters():
            scale = pyro.param(f"{name} scale", torch.tensor(0.1), constraint=dist.constraints.positive)
            pyro.sample(name, dist.Normal(pyro.param(f"{name} loc", torch.randn_like(p)), scale).to_event(p.ndim))

    return guide


@pytest.mark.parametrize("kind", REFUSED)
def test_guides_whose_parameters_cannot_be_set(kind):
    build, match = REFUSED[kind]
    net = rgb_net(4)
    model = pe.BayesianNetwork(net)
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), PIXELS)
    guide = build(model, symmetry)
    guide(*data())
    with pytest.raises(pe.SymmetryError, match=match):
        pe.symmetrize_(guide, symmetry)


def test_an_expanded_guide_cannot_be_set_either():
    _, guide, symmetry = pe.expand(*small_start(rgb_net(), pe.CyclicGroup(4)), "gcnn", "parameters")
    with pytest.raises(pe.SymmetryError, match="computed from others"):
        pe.symmetrize_(guide, symmetry)


def test_symmetrize_checks_the_rule_first():
    _, guide, symmetry = one_shot("pe", pe.CyclicGroup(4), "regular")
    with pytest.raises(pe.OptionError, match="'harmonic'"):
        pe.symmetrize_(guide, symmetry, rule="harmonic")


@pytest.mark.parametrize("apply", ["symmetrize_", "handler", "always"])
def test_a_representation_of_part_of_a_site_is_refused(apply):
    """A kernel whose channels were forgotten would otherwise pass as a batch of images."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    group = pe.CyclicGroup(4)
    sites = {"0.weight": pe.image(group, (3, 3)), "0.bias": pe.trivial(group, 4)}
    symmetry, model = pe.Symmetry(group, sites, inputs=pe.image(group, (1, 4, 4))), pe.BayesianNetwork(net)
    data = (torch.zeros(1, 1, 4, 4), torch.zeros(1).long())
    guide = pe.AutoMeanFieldNormal(model)
    guide.initialize(*data)
    with pytest.raises(pe.SymmetryError, match=r"0.weight.*whole event \(4, 1, 3, 3\)"):
        if apply == "symmetrize_":
            pe.symmetrize_(guide, symmetry)
        elif apply == "handler":
            pe.handlers.symmetrize(guide, symmetry)(*data)
        else:
            pe.AutoSymmetricNormal(model, symmetry)(*data)
