"""What every number of a diagnosis is, and what it cannot see."""

FIT = {
    "elbo": "mean over the draws of log p(θ, y) − log q(θ), nats: a lower bound on the log evidence log p(y) of the "
    "data given, as they are, at KL weight 1: of the training data, or it is no fit; how far below, it cannot say; per "
    "datum, or per observation of several sites: divided by the sum of the scales of all that are not masked",
    "loss_trend": "slope of the training loss (−ELBO per datum, nats) over the last quarter of its values, per 100 "
    "steps, by least squares on 10 block means; flat at level 0.0027 of Student's t; it cannot see a plateau before a "
    "fall",
    "divergences": "divergent transitions of a Hamiltonian sampler in one run; it cannot see what no trajectory came "
    "near",
    "k_hat": "Pareto k̂ of the joint weights p(θ, y) / q(θ); good up to 0.5, usable up to min(1 − 1 / log₁₀ T, 0.7), "
    "poor beyond; 0 where ratios are bounded: the 20 largest differ by less than 5 %; of the training data; in many "
    "dimensions it is poor for useful posteriors too; it looks only where q has mass: a mode "
    "that q misses, symmetric copies included, does not show; with other data than q was fitted to it is another "
    "posterior that q is held against",
    "k_hat[·]": "k̂ of the marginal weights p(h) / q(h) of one functional h, at least 0, limits as for k_hat; from the"
    " joint weights to second order in the cumulants of log w given h, at most their k̂: too small where log w is "
    "skewed given h; of the training data; it too looks only where q has mass",
}

COVERAGE = {
    "coverage": "share of the orbit that q covers, exp(−KL(q‖q^G)), q^G the mean of q's moved copies; from 1/|G| (one "
    "copy alone) to 1 (q is invariant); it cannot see modes that no element moves q onto",
    "mixture_gain": "KL(q‖q^G), nats: what the ELBO gains by the orbit mixture in place of q where the model has the "
    "symmetry; at most log |G|",
    "log_density_gap": "mean over g ≠ e and the draws of log q(θ) − log q(ρ(g)θ), nats, the mean divergence of q from "
    "its moved copies: what k̂ cannot see",
    "model_symmetry": "largest |log p(ρ(g)θ, y) − log p(θ, y)| over the draws and g, nats, the data as they are; 0 up "
    "to 1e-5 of |log p| where the posterior has the symmetry; it sees the draws of q only",
}

CONVERGENCE = {
    "max_rhat": "largest rank-normalized split R̂ over the variables of the posterior; alike up to 1.01; runs in "
    "different copies of one mode differ without fault",
    "min_ess": "smallest bulk effective sample size over the variables of the posterior; enough from 100 per run on, "
    "or half of the draws where a run has less than 200; where runs differ it is small however many draws there are",
    "max_rhat_canonical": "the same R̂ after each draw is moved to one representative of its orbit (pe.canonicalize)",
    "min_ess_canonical": "the same effective sample size after each draw is moved to one representative of its orbit",
    "max_rhat_invariant": "the same R̂ of log p(θ, y) and the mean log likelihood, which no symmetry of the posterior "
    "moves; unlike modes of equal density do not show",
    "min_ess_invariant": "the same effective sample size of log p(θ, y) and the mean log likelihood",
}

EQUIVARIANCE = {
    "defect": "unbiased estimate of mean over x and g of |F(gx) − ρ_Y(g)F(x)|², F the mean over the draws, g = e "
    "included; may be slightly negative; error by the jackknife over draws, the inputs as given; told from 0 from 2"
    " errors on",
    "osp": "orbit same prediction: fraction of (x, g), g = e included, with argmax F(gx) = argmax ρ_Y(g)F(x); error by"
    " the jackknife over 20 blocks of inputs; 1 for one class throughout: see the accuracy beside it",
    "symmetric_kl": "KL(ρ_Y(g)F(x)‖F(gx)) + KL(F(gx)‖ρ_Y(g)F(x)), nats, mean over x and g ≠ e; error by the jackknife "
    "over 20 blocks of draws; small up to 0.01; T draws alone make it positive, by a part that falls as 1/T",
}

PREDICTION = {
    "accuracy": "fraction of the data whose most probable class is the label; error by the jackknife over 20 blocks of"
    " the data",
    "nll": "mean negative log predictive probability of the label, nats; error by the jackknife over 20 blocks of the "
    "data",
    "ece": "expected calibration error of the top probability, 15 equal bins; error by the jackknife over 20 blocks of"
    " the data; noise alone makes it positive; calibrated: mean confidence and accuracy within 2 errors",
    "brier": "mean squared distance of the class probabilities from the label, 0 to 2; error by the jackknife over 20 "
    "blocks of the data",
    "set_size": "mean number of classes in split conformal sets of level 1 − alpha, calibrated on a random half of the"
    " data; error over the other half",
    "set_coverage": "fraction of these sets that hold the label; right within 2 errors of 1 − alpha, the calibration's"
    " error included",
}

DENSITY = {
    "log_predictive_density": "mean over the data of log (1/T) Σ_t p(y_n | θ_t), nats per datum, of the data given "
    "that are not masked; error over the data; of training data it is too high: give others, with held_out=True",
    "elpd_loo": "expected log predictive density of left-out data, sum over the data that are not masked, nats, by "
    "Pareto smoothed leave-one-out with ratios p(θ, y) / (q(θ) p(y_n | θ)^s), s the model's scale of the likelihood, "
    "or p(y_n | θ)^−s where q's k̂ does not allow that or q is not known; of the training data; error over the data; "
    "reliable where the k̂ of each datum is at most 0.7, and that of q by 2 errors below its limit",
}

ORBIT = (
    "; over all moved copies, those of one datum counting as one; worse than upright from 2 errors of the difference on"
)
POSES = " (one pose each, the i-th moved by element i mod |G|)"


def moved(name: str) -> str:
    """The definition of a prediction's number over all moved copies of the data."""
    text = PREDICTION[name]
    return (text.replace("half of the data", f"half of the data{POSES}") if name == "set_size" else text) + ORBIT
