"""Many draws of a guide at once: their terms of the ELBO, and the log density of a model at many vectors."""

import math

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor

import pyro_equivariance as pe

from .guides import error

CHUNK = 500


def fit(model, guide, *args, steps: int, particles: int, rate: float = 0.03, decay: float = 0.01) -> None:
    """SVI with a rate that falls to ``decay`` of the first, all particles in one pass."""
    guide(*args)  # its parameters are made outside of the plate of particles
    optimizer = pyro.optim.ClippedAdam({"lr": rate, "lrd": decay ** (1 / steps)})
    svi = SVI(model, guide, optimizer, Trace_ELBO(particles, vectorize_particles=True, max_plate_nesting=1))
    for _ in range(steps):
        svi.step(*args)


@torch.no_grad()
def drawn(model, guide, *args, count: int, chunk: int = CHUNK) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of the model's sites, and ``log p(x, θ) − log q(θ)`` of each."""
    nodes = poutine.trace(model).get_trace(*args).iter_stochastic_nodes()
    shapes = {name: site["value"].shape for name, site in nodes if not site_is_subsample(site)}
    sites, terms = {name: [] for name in shapes}, []
    for _ in range(count // chunk):
        with pyro.plate("draws", chunk, dim=-2):
            own = poutine.trace(guide).get_trace(*args)
            scored = poutine.trace(poutine.replay(model, own)).get_trace(*args)
        terms.append(_sums(scored, chunk) - _sums(own, chunk))
        for name, shape in shapes.items():
            sites[name].append(scored.nodes[name]["value"].reshape(chunk, *shape))
    return {name: torch.cat(parts) for name, parts in sites.items()}, torch.cat(terms)


@torch.no_grad()
def log_joint(model, guide, vectors: Tensor, *args) -> Tensor:
    """``log p(x, θ)`` and the Jacobian of an orbit mixture's coordinates, for vectors ``(N, n)``."""
    return torch.cat([_log_joint(model, guide, some, *args) for some in vectors.split(CHUNK)])


def _log_joint(model, guide, vectors: Tensor, *args) -> Tensor:
    count, sites, jacobian = len(vectors), {}, torch.zeros(len(vectors))
    for name, site, part in guide._slices():
        lead = [1] * (1 - sum(frame.vectorized for frame in site["cond_indep_stack"]))
        transform = guide._transforms[name]
        u = vectors[:, part].reshape(count, *lead, *guide._shapes[name])
        sites[name] = transform(u)
        jacobian = jacobian + transform.log_abs_det_jacobian(u, sites[name]).reshape(count, -1).sum(1)
    return jacobian + log_density(model, sites, *args)


@torch.no_grad()
def log_density(model, sites: dict[str, Tensor], *args) -> Tensor:
    """``log p(x, θ)`` of many values of the sites, laid out for a plate of draws at −2."""
    count = len(next(iter(sites.values())))
    with pyro.plate("draws", count, dim=-2):
        return _sums(poutine.trace(poutine.condition(model, sites)).get_trace(*args), count)


def _sums(trace, count: int) -> Tensor:
    trace.compute_log_prob()
    total = torch.zeros(count)
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            total = total + site["log_prob"].reshape(count, -1).sum(1)
    return total


@torch.no_grad()
def paired_gain(model, guide, *args, count: int) -> dict[str, float]:
    """ELBO(q^G) − ELBO(q) from draws ``θ`` of the base and the same draws moved, ``ρ(g) θ``; I from other draws."""
    mixture = guide.get_posterior()
    theta = mixture.q.sample((count,))
    moved = mixture.rep.act(mixture.rep.group.sample((count,)), theta)
    gain = log_joint(model, guide, moved, *args) - in_chunks(mixture.log_prob, moved)
    gain = gain - log_joint(model, guide, theta, *args) + in_chunks(mixture.q.log_prob, theta)
    found = information(mixture, count)
    return {
        "gain": float(gain.mean()), "gain_se": error(gain),
        "information": float(found.mean()), "information_se": error(found),
    }  # fmt: skip


@torch.no_grad()
def information(mixture: pe.OrbitMixture, count: int) -> Tensor:
    """``log |G| − H(g | θ)`` of draws of the mixture, the entropy by enumeration; its mean is ``I(g; θ)``."""

    def one(theta: Tensor) -> Tensor:
        posterior = mixture.log_densities(theta).log_softmax(0)
        return math.log(len(mixture.rep.group)) + (posterior.exp() * posterior.clamp_min(-700)).sum(0)

    return in_chunks(one, mixture.sample((count,)))


def in_chunks(function, values: Tensor) -> Tensor:
    """A function of the rows, a few hundred at a time."""
    return torch.cat([function(some) for some in values.split(CHUNK)])
