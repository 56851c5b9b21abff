"""The Bayesian network's likelihoods, priors and particles, each against torch by itself."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from catalogue import small_conv
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import DataError, OptionError, SymmetryError
from pyro_equivariance.networks import FanIn, Scalar
from pyro_equivariance.prediction import log_predictive

C4 = pe.CyclicGroup(4)
N, K = 4, 3
ZERO = torch.zeros((), dtype=torch.float64)  # distributions are made at import, before float64 is the default


def images():
    return torch.randn(N, 1, 6, 6)


def pointwise():
    """Maps of logits: three classes at every pixel."""
    return nn.Conv2d(1, K, 3, padding=1)


def weights_of(net, *lead):
    return {name: torch.randn(*lead, *p.shape) for name, p in net.named_parameters()}


def call(net, weights, x):
    return torch.func.functional_call(net, weights, (x,))


# Likelihoods


def categorical(f, y):
    return -F.cross_entropy(f, y, reduction="sum")


def bernoulli(f, y):
    return -F.binary_cross_entropy_with_logits(f, y, reduction="sum")


def poisson(f, y):
    return (y * f - f.exp() - torch.lgamma(y + 1)).sum()


def gaussian(scale):
    return lambda f, y: (-((y - f) ** 2) / (2 * scale**2) - math.log(scale * math.sqrt(2 * math.pi))).sum()


def log_gamma(f, y):
    """Of the callable ``Gamma(exp f, 2)`` on the first output."""
    a = f[..., 0].exp()
    return (a * math.log(2) + (a - 1) * y.log() - 2 * y - torch.lgamma(a)).sum()


def scalars():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.Flatten(0))


def labels(*shape):
    return lambda: torch.randint(K, shape)


def reals(*shape):
    return lambda: torch.randn(shape)


def counts(*shape):
    return lambda: torch.randint(9, shape).double()


def binary(*shape):
    return lambda: torch.randint(2, shape).double()


LIKELIHOODS = {
    "labels": ("categorical", small_conv, labels(N), categorical),
    "maps of labels": ("categorical", pointwise, labels(N, 6, 6), categorical),
    "binary": ("bernoulli", small_conv, binary(N, K), bernoulli),
    "binary maps": ("bernoulli", pointwise, binary(N, K, 6, 6), bernoulli),
    "binary scalars": ("bernoulli", scalars, binary(N), bernoulli),
    "counts": ("poisson", small_conv, counts(N, K), poisson),
    "scalar counts": ("poisson", scalars, counts(N), poisson),
    "unit noise": ("normal", small_conv, reals(N, K), gaussian(1.0)),
    "noisy maps": (pe.NormalLikelihood(0.3), pointwise, reals(N, K, 6, 6), gaussian(0.3)),
    "noisy scalars": (pe.NormalLikelihood(0.3), scalars, reals(N), gaussian(0.3)),
    "learned noise": (pe.NormalLikelihood(0.7, learned=True), small_conv, reals(N, K), gaussian(0.7)),
    "callable": (
        lambda f: dist.Gamma(f[..., 0].exp(), 2.0), small_conv, lambda: torch.rand(N) + 0.1, log_gamma,
    ),
}  # fmt: skip
each_likelihood = pytest.mark.parametrize("case", LIKELIHOODS)


class TestLikelihood:
    @pytest.mark.parametrize("size, scale", [(None, 1), (10 * N, 10)])
    @each_likelihood
    def test_density(self, case, size, scale):
        likelihood, make, draw, reference = LIKELIHOODS[case]
        net, x, y = make(), images(), draw()
        weights = weights_of(net)
        model = poutine.condition(pe.BayesianNetwork(net, likelihood=likelihood, size=size), weights)
        trace = poutine.trace(model).get_trace(x, y)
        trace.compute_log_prob()
        site, f = trace.nodes["y"], call(net, weights, x)
        assert torch.equal(trace.nodes["_RETURN"]["value"], f)
        assert site["fn"].batch_shape == (N,)
        assert_close(site["log_prob_sum"], scale * reference(f, y), rtol=1e-12, atol=1e-12)
        assert poutine.trace(model).get_trace(x).nodes["y"]["value"].shape == y.shape

    @each_likelihood
    def test_wrong_shape(self, case):
        likelihood, make, draw, _ = LIKELIHOODS[case]
        model, y = pe.BayesianNetwork(make(), likelihood=likelihood), draw()
        for wrong in (y[:, None], y[:-1]):
            with pytest.raises(DataError) as error:
                model(images(), wrong)
            expected, found = str(tuple(y.shape)), str(tuple(wrong.shape))
            assert f"observations of shape {expected} for this" in str(error.value)
            assert str(error.value).endswith(f"got {found}.")

    def test_one_output_has_no_classes(self):
        with pytest.raises(OptionError, match=r"logits \(N, K\) .* output is \(4,\)\. Its last layer needs one output"):
            pe.BayesianNetwork(scalars())(images())

    @pytest.mark.parametrize("scale", [0, -1.0, float("nan")])
    def test_noise_is_positive(self, scale):
        with pytest.raises(OptionError, match=f"scale to be positive; got {scale}"):
            pe.NormalLikelihood(scale)

    def test_learned_noise_has_its_own_name(self):
        first, second, named = (pe.NormalLikelihood(0.5, True, name=name) for name in (None, None, "noise"))
        assert len({first.name, second.name, named.name}) == 3 and named.name == "noise"
        for likelihood in (first, second, named):
            assert likelihood.fitted() == 0.5
            pe.BayesianNetwork(small_conv(), likelihood=likelihood)(images())
            pyro.get_param_store()[likelihood.name] = torch.tensor(0.7)
            assert abs(likelihood.fitted() - 0.7) < 1e-12
        assert pe.NormalLikelihood(0.2).fitted() == 0.2

    def test_learned_noise_of_a_linear_network(self):
        """The residuals' deviation within one standard error, the true one within three."""
        count, noise = 400, 0.3
        x, true = torch.randn(count, 4), torch.randn(2, 4)
        y = x @ true.mT + noise * torch.randn(count, 2)
        likelihood = pe.NormalLikelihood(learned=True)
        model = pe.BayesianNetwork(nn.Linear(4, 2), likelihood=likelihood)
        decay = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.99})
        guide = pe.AutoMeanFieldNormal(model)

        def cool(training):
            decay.step()

        pe.fit(model, guide, (x, y), epochs=400, optimizer=decay, callbacks=[cool], progress=False)
        found, error = likelihood.fitted(), noise / math.sqrt(2 * y.numel())
        inputs = torch.cat([x, torch.ones(count, 1)], 1)
        residuals = y - inputs @ torch.linalg.lstsq(inputs, y).solution
        assert abs(found - (residuals.square().sum() / (y.numel() - 10)).sqrt()) < error
        assert abs(found - noise) < 3 * error


class TestMapsOfLabels:
    @pytest.mark.parametrize("bad, message", [
        (lambda y: y + K, r"labels between 0 and 2, the network's outputs; got 3 to 5"),
        (lambda y: y.double(), r"integers of shape \(4, 6, 6\); got torch.float64"),
        (lambda y: y[:, 0], r"integers of shape \(4, 6, 6\); got .* of shape \(4, 6\)"),
    ])  # fmt: skip
    def test_labels_are_checked_by_fit(self, bad, message):
        model = pe.BayesianNetwork(pointwise())
        y = torch.arange(N * 36).reshape(N, 6, 6) % K
        model.check_data(images(), y)
        with pytest.raises(DataError, match=message):
            pe.fit(model, pe.AutoMeanFieldNormal(model), (images(), bad(y)), epochs=1, progress=False)

    def test_predictions_have_classes_where_the_logits_do(self):
        net, x, y = pointwise(), images(), torch.randint(K, (N, 6, 6))
        model, drawn = pe.BayesianNetwork(net), []

        def guide(*args):
            drawn.append({name: pyro.sample(name, dist.Normal(w, 0.5).to_event(w.ndim)) for name, w in start.items()})

        start = weights_of(net)
        probs, scores = pe.predict(model, guide, x, draws=5), log_predictive(model, guide, (x, y), draws=5)
        logits = torch.stack([call(net, weights, x) for weights in drawn])
        assert probs.shape == (5, N, K, 6, 6)
        assert_close(probs, logits[:5].softmax(2), rtol=0, atol=1e-14)
        losses = torch.stack([F.cross_entropy(f, y, reduction="none").sum((1, 2)) for f in logits[5:]])
        assert_close(scores, -losses, rtol=1e-12, atol=1e-12)

    def test_equivariant_maps_have_no_defect(self):
        net, group = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, K, 1)), C4
        symmetry = pe.network_symmetry(net, group, (1, 6, 6), hidden="trivial", outputs=pe.image(group, (K, 6, 6)))
        model = pe.handlers.expand(pe.BayesianNetwork(net), symmetry)
        guide = pe.AutoMeanFieldNormal(model)
        guide.initialize(images(), torch.zeros(N, 6, 6).long())
        probs = pe.orbit_predict(model, guide, symmetry, images(), draws=3)
        assert probs.shape == (3, 4, N, K, 6, 6) and probs.std() > 1e-3
        assert abs(pe.metrics.equivariance_defect(probs, action=symmetry.outputs).value) < 1e-12


# Priors


def normalised(norm):
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(288, K))


NORMS = {
    "batch": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "group": lambda: nn.GroupNorm(2, 8),
    "layer": lambda: nn.LayerNorm((8, 6, 6)),
}


def laws(prior, net):
    """The prior of each site as the model samples it; checks its shape."""
    trace = poutine.trace(pe.BayesianNetwork(net, prior=prior)).get_trace(images())
    found = {name: trace.nodes[name]["fn"] for name, _ in net.named_parameters()}
    for name, p in net.named_parameters():
        assert found[name].event_shape == p.shape and found[name].batch_shape == ()
    return found


def moments(prior, net):
    """Mean and standard deviation of each site, the same for all its entries."""
    found = laws(prior, net).items()
    return {name: (fn.mean.unique().item(), pytest.approx(fn.stddev.unique().item())) for name, fn in found}


def by_name(name, parameter):
    return dist.Normal(torch.zeros_like(parameter), len(name)).to_event(parameter.ndim)


class TestPrior:
    fan_in = {"0.weight": math.sqrt(2 / 9), "4.weight": math.sqrt(2 / 72), "6.weight": math.sqrt(2 / 8)}

    @pytest.mark.parametrize("prior, weight, bias", [
        (0.5, 0.5, 0.5),
        ("fan_in", None, 0.1),
        (FanIn(bias=0.2), None, 0.2),
        ({"*.bias": 0.3, "*": 2}, 2, 0.3),
        ({"*": 2, "*.bias": 0.3}, 2, 2),
        ({"?.bias": Scalar(0.3), "*": "fan_in"}, None, 0.3),
        ({"[046].bias": dist.Normal(ZERO, 0.3), "*.weight": dist.Laplace(ZERO, 1.0)}, math.sqrt(2), 0.3),
        (dist.Laplace(ZERO, 2.0), math.sqrt(8), math.sqrt(8)),
        (torch.distributions.Laplace(ZERO, 2.0), math.sqrt(8), math.sqrt(8)),
        (by_name, 8, 6),
        ("learned", None, 0.1),
        (pe.LearnedScale(0.5), 0.5, 0.5),
        ({"*.bias": "learned", "*": pe.LearnedScale(0.5)}, 0.5, 0.1),
    ], ids=["scale", "fan-in", "FanIn", "dict", "first pattern", "question mark", "distributions by site", "Laplace",
            "torch's Laplace", "callable", "learned", "LearnedScale", "learned by site"])  # fmt: skip
    def test_moments(self, prior, weight, bias):
        found = moments(prior, small_conv())
        assert [*found] == [name for name, _ in small_conv().named_parameters()]
        for name, (mean, deviation) in found.items():
            assert mean == 0
            assert (bias if "bias" in name else weight or self.fan_in[name]) == deviation

    @pytest.mark.parametrize("kind", [dist, torch.distributions])
    def test_density_of_a_heavy_tailed_prior(self, kind):
        net, prior = small_conv(), kind.StudentT(3.0, 0.0, 0.5)
        trace = poutine.trace(pe.BayesianNetwork(net, prior=prior)).get_trace(images())
        trace.compute_log_prob()
        for name, _ in net.named_parameters():
            site = trace.nodes[name]
            assert_close(site["log_prob_sum"], prior.log_prob(site["value"]).sum(), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("law", [
        lambda: dist.Normal(torch.arange(24.0).reshape(3, 8), 1.0),
        lambda: dist.Normal(torch.arange(24.0).reshape(3, 8), 1.0).to_event(1),
        lambda: dist.Normal(torch.arange(24.0).reshape(3, 8), 1.0).to_event(2),
        lambda: torch.distributions.Normal(torch.arange(24.0).reshape(3, 8), 1.0),
        lambda: torch.distributions.MultivariateNormal(torch.arange(24.0).reshape(3, 8), torch.eye(8)),
    ])  # fmt: skip
    def test_of_the_full_shape(self, law):
        law = law()
        found = laws({"6.weight": law, "*": 1.0}, small_conv())["6.weight"]
        assert torch.equal(found.mean, law.mean)
        value = torch.randn(3, 8)
        assert_close(found.log_prob(value), law.log_prob(value).sum())

    def test_of_another_shape(self):
        message = r"prior of site '0.bias' to be scalar or of its shape \(8,\); got \(3,\)\."
        with pytest.raises(OptionError, match=message):
            laws({"*.bias": dist.Normal(torch.zeros(3), 1.0), "*": 1.0}, small_conv())

    def test_a_site_without_a_pattern(self):
        message = r"prior for site '0.weight'; the patterns are '\*.bias', '6.*'\. Add '\*' for the rest\."
        with pytest.raises(OptionError, match=message):
            laws({"*.bias": 1.0, "6.*": 1.0}, small_conv())

    @pytest.mark.parametrize("bad", [0, "flat", None, True])
    def test_a_bad_rule_in_a_dict(self, bad):
        with pytest.raises(OptionError, match="positive scale, 'fan_in', 'learned', .*; got "):
            pe.BayesianNetwork(small_conv(), prior={"*": bad})

    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("prior, center, deviation", [
        (0.5, 1, 0.5),
        ("fan_in", 1, 0.1),
        (FanIn(bias=0.2), 1, 0.2),
        ({"1.*": 0.5, "*": 1.0}, 1, 0.5),
        ({"1.weight": {"*": "fan_in"}, "*": 1.0}, 1, 0.1),
        (pe.LearnedScale(0.5), 1, 0.5),
        ("learned", 1, 0.1),
        (pe.LearnedScale(by_name), 0, 8),
        (by_name, 0, 8),
        (dist.Normal(ZERO, 0.5), 0, 0.5),
        ({"1.*": by_name, "*": 1.0}, 0, 8),
    ], ids=["scale", "fan-in", "FanIn", "dict", "dict in a dict", "LearnedScale", "learned", "learned from a callable",
            "callable", "distribution", "dict of a callable"])  # fmt: skip
    def test_gains_of_normalisations(self, norm, prior, center, deviation):
        """Centred at 1 by the library's priors, never by the user's own; nothing else is."""
        found = moments(prior, normalised(NORMS[norm]()))
        assert found.pop("1.weight") == (center, deviation)
        assert all(mean == 0 for mean, _ in found.values())

    def test_gains_of_a_normalisation_by_itself(self):
        assert moments(0.5, nn.LayerNorm((6, 6))) == {"weight": (1, 0.5), "bias": (0, 0.5)}

    def test_a_normalisation_over_the_batch_is_trained(self):
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, K))
        model = pe.BayesianNetwork(net)
        data = torch.randn(5, 4), torch.arange(5) % K
        pe.fit(model, pe.AutoMeanFieldNormal(model), data, epochs=2, progress=False)


class TestLearnedScale:
    def test_minimises_the_kl(self):
        """At the minimum s² is the mean of (μ - m)² + σ², m = 1 for the gains of a normalisation and 0 elsewhere."""
        net = normalised(NORMS["group"]())
        prior = pe.LearnedScale(1.0)
        network = pe.BayesianNetwork(net, prior=prior)
        laws = {n: (torch.randn(p.shape), torch.rand(p.shape) + 0.1) for n, p in net.named_parameters()}

        def model():
            for name, p in net.named_parameters():
                pyro.sample(name, network.prior_of(name, p))

        def guide():
            for name, (loc, scale) in laws.items():
                pyro.sample(name, dist.Normal(loc, scale).to_event(loc.ndim))

        steps = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.985}
        svi = SVI(model, guide, optimizer := pyro.optim.ExponentialLR(steps), TraceMeanField_ELBO())
        for _ in range(400):
            svi.step()
            optimizer.step()
        assert set(pyro.get_param_store()) == {f"{prior._prefix}{name}" for name in laws}
        expected = {n: ((m - float(n == "1.weight")) ** 2 + s**2).mean().sqrt().item() for n, (m, s) in laws.items()}
        assert prior.scales() == pytest.approx(expected, abs=1e-4)

    def test_models_do_not_share_scales(self):
        first, second = pe.LearnedScale(0.5), pe.LearnedScale(2.0)
        for prior in (first, second):
            assert prior.scales() == {}
            pe.BayesianNetwork(small_conv(), prior=prior)(images())
        names = [name for name, _ in small_conv().named_parameters()]
        assert first.scales() == pytest.approx(dict.fromkeys(names, 0.5))
        assert second.scales() == pytest.approx(dict.fromkeys(names, 2.0))
        assert len(pyro.get_param_store()) == 12

    @pytest.mark.parametrize("make", [
        pe.LearnedScale, lambda start: {"*": pe.LearnedScale(start)}, lambda start: {"*": {"*": pe.LearnedScale(start)}}
    ], ids=["alone", "in a dict", "nested"])  # fmt: skip
    def test_another_network_has_its_own(self, make):
        model = pe.BayesianNetwork(small_conv(), prior=make(0.5))
        other = model.with_net(nn.Sequential(nn.Flatten(), nn.Linear(36, K)))
        model(images()), other(images())
        assert len(pyro.get_param_store()) == 6 + 2
        again = model.with_net(small_conv())
        again(images())
        assert len(pyro.get_param_store()) == 6 + 2 + 6
        assert again.prior_of("6.bias", torch.zeros(K)).stddev[0].item() == pytest.approx(0.5)

    def test_fit_trains_them(self):
        prior = pe.LearnedScale(0.5)
        model = pe.BayesianNetwork(small_conv(), prior=prior)
        guide = pe.AutoMeanFieldNormal(model)
        pe.fit(model, guide, (images(), torch.arange(N) % K), epochs=3, progress=False)
        scales = prior.scales()
        assert [*scales] == [name for name, _ in small_conv().named_parameters()]
        assert all(abs(scale - 0.5) > 1e-3 for scale in scales.values())

    @pytest.mark.parametrize("arrangement", ["free", "gcnn"])
    def test_of_an_expanded_network(self, arrangement):
        """A scale for each base; fit changes it with the guide."""
        symmetry = pe.network_symmetry(small_conv(), C4, (1, 6, 6), hidden="trivial")
        prior = pe.LearnedScale("fan_in")
        model = pe.handlers.expand(pe.BayesianNetwork(small_conv(), prior=prior), symmetry, arrangement)
        model(images())
        before = prior.scales()
        assert before["4.weight"] == pytest.approx(math.sqrt(2 / 72)) and len(before) == 6
        guide = pe.AutoMeanFieldNormal(model)
        pe.fit(model, guide, (images(), torch.arange(N) % K), epochs=3, progress=False)
        after = prior.scales()
        assert [*after] == [*before] and all(abs(after[n] - before[n]) > 1e-3 for n in before)
        own = [name for name in pyro.get_param_store() if name.startswith("prior_scale_")]
        assert len(own) == 6


# Vectorised particles


def network(**options):
    return pe.BayesianNetwork(small_conv(), **options)


def tied(**options):
    symmetry = pe.network_symmetry(small_conv(), C4, (1, 6, 6), hidden="trivial")
    return pe.handlers.expand(network(**options), symmetry)


def symmetric(model, **options):
    return pe.AutoSymmetricNormal(model, pe.network_symmetry(small_conv(), C4, (1, 6, 6)), **options)


PAIRS = {
    "AutoNormal": (network, AutoNormal),
    "AutoMeanFieldNormal": (network, pe.AutoMeanFieldNormal),
    "AutoSymmetricNormal": (network, symmetric),
    "tied": (tied, pe.AutoMeanFieldNormal),
    "tied, AutoNormal": (tied, AutoNormal),
}
each_pair = pytest.mark.parametrize("pair", PAIRS)
each_elbo = pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
OPTIONS = {
    "plain": {},
    "minibatch": {"size": 10 * N},
    "learned": {"prior": "learned", "likelihood": pe.NormalLikelihood(0.5, learned=True)},
    "Laplace": {"prior": dist.Laplace(ZERO, 1.0)},
}
each_option = pytest.mark.parametrize("option", OPTIONS)


def pair_of(pair, option="plain", **guide_options):
    """Model, guide and data."""
    (make, make_guide), options = PAIRS[pair], OPTIONS[option]
    model = make(**options)
    y = torch.randn(N, K) if "likelihood" in options else torch.arange(N) % K
    return model, make_guide(model, **guide_options), images(), y


def vectorised(model, guide, *args, particles=3):
    """The traces of guide and model under a plate of particles to the left of the data's."""
    plate = pyro.plate("particles", particles, dim=-2)
    drawn = poutine.trace(plate(guide)).get_trace(*args)
    return drawn, poutine.trace(plate(poutine.replay(model, drawn))).get_trace(*args)


def network_of(model):
    """The network that is run, and its sites' names."""
    net = model.big.net if isinstance(model, type(tied())) else model.net
    return net, [name for name, _ in net.named_parameters()]


class TestParticles:
    @each_option
    @each_pair
    def test_each_is_the_network_at_its_weights(self, pair, option):
        model, guide, x, y = pair_of(pair, option)
        drawn, trace = vectorised(model, guide, x, y)
        output, (net, names) = trace.nodes["_RETURN"]["value"], network_of(model)
        assert output.shape == (3, N, K)
        assert trace.nodes["y"]["fn"].batch_shape == (3, N)
        total = 0.0
        latents = [name for name in trace.stochastic_nodes if name not in ("data", "particles")]
        for i in range(3):
            expected = call(net, {name: trace.nodes[name]["value"][i, 0] for name in names}, x)
            assert_close(output[i], expected, rtol=0, atol=1e-12)
            values = {name: drawn.nodes[name]["value"][i, 0] for name in latents}
            total += poutine.trace(poutine.condition(model, values)).get_trace(x, y).log_prob_sum()
        assert_close(trace.log_prob_sum(), total, rtol=1e-11, atol=0)
        assert (output[0] - output[1]).abs().max() > 1e-3

    @each_elbo
    @each_option
    @each_pair
    def test_train(self, pair, option, elbo):
        model, guide, x, y = pair_of(pair, option)
        loss = elbo(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss)
        losses = [svi.step(x, y) for _ in range(20)]
        assert sum(losses[-5:]) < sum(losses[:5])

    @each_option
    @pytest.mark.parametrize("pair", [pair for pair in PAIRS if PAIRS[pair][1] is not AutoNormal])
    def test_loss_is_that_of_one_after_another(self, pair, option):
        """All particles at the same weights; the KL is analytic, or (Laplace) the same for all."""
        model, guide, x, y = pair_of(pair, option, init_scale=1e-12)
        if option == "Laplace":
            guide = AutoDelta(model, init_loc_fn=model.init_loc_fn)
        losses = [
            TraceMeanField_ELBO(num_particles=3, vectorize_particles=together, max_plate_nesting=1).loss(
                model, guide, x, y
            )
            for together in (True, False)
        ]
        assert_close(*losses, rtol=1e-9, atol=0)

    @each_elbo
    @each_option
    @pytest.mark.parametrize("make", [network, tied])
    def test_loss_at_fixed_weights(self, make, option, elbo):
        model = make(**OPTIONS[option])
        guide = AutoDelta(model, init_loc_fn=model.init_loc_fn)
        y = torch.randn(N, K) if option == "learned" else torch.arange(N) % K
        args = images(), y
        together = elbo(num_particles=3, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, *args)
        assert_close(together, elbo(num_particles=3).loss(model, guide, *args), rtol=1e-9, atol=0)

    def test_maps_of_labels(self):
        net, x, y = pointwise(), images(), torch.randint(K, (N, 6, 6))
        model = pe.BayesianNetwork(net)
        _, trace = vectorised(model, pe.AutoMeanFieldNormal(model), x, y)
        output = trace.nodes["_RETURN"]["value"]
        assert output.shape == (3, N, K, 6, 6)
        trace.compute_log_prob()
        expected = -F.cross_entropy(output.flatten(0, 1), y.repeat(3, 1, 1), reduction="none").sum((1, 2))
        assert_close(trace.nodes["y"]["log_prob"], expected.reshape(3, N))

    def test_two_axes_of_particles(self):
        """Weights may lack an axis that others have."""
        net, x = small_conv(), images()
        weights = weights_of(net, 2, 3, 1)
        weights["0.bias"], weights["6.bias"] = torch.randn(8), torch.randn(3, 1, K)
        with pyro.plate("a", 2, dim=-3), pyro.plate("b", 3, dim=-2):
            output = poutine.condition(pe.BayesianNetwork(net), weights)(x)
        assert output.shape == (2, 3, N, K)
        full = {
            name: w.expand(2, 3, 1, *p.shape)
            for (name, p), w in zip(net.named_parameters(), weights.values(), strict=True)
        }
        expected = call(net, {name: w[1, 2, 0] for name, w in full.items()}, x)
        assert_close(output[1, 2], expected, rtol=0, atol=1e-12)

    def test_an_axis_for_the_data_plate(self):
        model, guide, x, y = pair_of("AutoMeanFieldNormal")
        message = r"without an axis for the data plate; they have leading axes \({}\)\. Give .*max_plate_nesting=1\)"
        with pytest.raises(SymmetryError, match=message.format("3,")):
            Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=0).loss(model, guide, x, y)
        for lead in ((2, N), (1, N)):
            with pytest.raises(SymmetryError, match=message.format(", ".join(map(str, lead)))):
                poutine.condition(model, weights_of(small_conv(), *lead))(x)


class TestPredictive:
    @each_pair
    def test_with_a_guide(self, pair):
        model, guide, x, y = pair_of(pair)
        guide(x, y)
        sites = ["y", "_RETURN", *network_of(model)[1]]
        draws = Predictive(model, guide=guide, num_samples=5, parallel=True, return_sites=sites)(x)
        assert draws["y"].shape == (5, N) and draws["_RETURN"].shape == (5, N, K)
        assert set(draws["y"].unique().tolist()) <= set(range(K))
        net, names = network_of(model)
        for i in range(5):
            weights = {name: draws[name][i].reshape(net.get_parameter(name).shape) for name in names}
            assert_close(draws["_RETURN"][i], call(net, weights, x), rtol=0, atol=1e-12)
        assert draws["_RETURN"].std(0).min() > 1e-3
        assert Predictive(model, guide=guide, num_samples=5, parallel=True)(x)["y"].shape == (5, N)

    @pytest.mark.parametrize("axes", [(), (1,)], ids=["as MCMC has them", "with the plate's axis"])
    @pytest.mark.parametrize("samples", [1, 2, N])
    @pytest.mark.parametrize("make", [network, tied])
    def test_given_samples(self, make, samples, axes):
        """Also where there are as many as data."""
        model, x = make(size=10 * N), images()
        latent = poutine.trace(model).get_trace(x)
        shapes = {n: latent.nodes[n]["fn"].event_shape for n in latent.stochastic_nodes if n not in ("data", "y")}
        posterior = {name: torch.randn(samples, *axes, *shape) for name, shape in shapes.items()}
        one, other = (
            Predictive(model, posterior, parallel=parallel, return_sites=["_RETURN", "y"])(x)
            for parallel in (True, False)
        )
        assert one["y"].shape == other["y"].shape == (samples, N)
        assert one["_RETURN"].shape == (samples, N, K)
        assert_close(one["_RETURN"], other["_RETURN"].reshape(samples, N, K), rtol=0, atol=1e-12)

    def test_samples_of_some_sites(self):
        """The others are drawn from the prior."""
        model, x = network(), images()
        posterior = {"0.weight": torch.randn(5, 8, 1, 3, 3), "6.bias": torch.randn(5, K)}
        names = [name for name, _ in small_conv().named_parameters()]
        draws = Predictive(model, posterior, parallel=True, return_sites=["_RETURN", *names])(x)
        assert torch.equal(draws["6.bias"].squeeze(), posterior["6.bias"])
        for i in range(5):
            weights = {name: draws[name][i, 0] for name in names}
            assert_close(draws["_RETURN"][i], call(model.net, weights, x), rtol=0, atol=1e-12)
