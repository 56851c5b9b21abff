"""What a report reads from ArviZ data: each method's predictives, scores and traces, and what is missing."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .. import metrics
from ..errors import DataError, OptionError, SymmetryError
from ..groups import CyclicGroup, DihedralGroup
from ..representations import image
from ..symmetry import Symmetry
from .base import shortened, written

METHOD = "method_name"
LOG_LIKELIHOOD = "mean_log_likelihood"
ROUNDING = 1e-12  # of the squared outputs: a defect below it is zero up to rounding
GROUPS = {"CyclicGroup": CyclicGroup, "DihedralGroup": DihedralGroup}


@dataclass(frozen=True, eq=False)
class Method:
    """The groups of one method's data, none of which must be there, and how inputs and outputs move."""

    groups: Mapping[str, xr.Dataset]
    symmetry: Symmetry | None
    outputs_known: bool

    def array(self, group: str, name: str) -> xr.DataArray | None:
        """A variable, or ``None`` where it or its group is absent."""
        return self.groups[group].get(name) if group in self.groups else None

    @property
    def action(self):
        """How the outputs move."""
        return self.symmetry.outputs if self.symmetry else None

    @cached_property
    def orbit(self) -> xr.DataArray | None:
        """Class probabilities ``(chain, draw, element, observation, class)`` at the moved inputs, or other means."""
        probs = self.array("orbit_predictive", "probs")
        return self.array("orbit_predictive", "mean") if probs is None else probs

    @cached_property
    def tested(self) -> xr.Dataset | None:
        """Mean predictives of more data, ``probs`` ``(chain, element, test_image, class)``, and their ``label``."""
        found = self.groups.get("test_predictive", xr.Dataset())
        axes = {"chain", "element", "test_image", "class"}
        if not {"probs", "label"} <= set(found) or set(found.probs.dims) != axes:
            return None
        same = self.orbit is None or [str(name) for name in found["element"].values] == self.elements
        return found.transpose("chain", "element", "test_image", "class") if same else None

    @cached_property
    def finite(self) -> bool:
        """Whether predictions, as far as there are any, hold neither NaN nor inf."""
        tested = None if self.tested is None else self.tested.probs
        known = (a for a in (self.orbit, tested, self.array("posterior_predictive", "probs")) if a is not None)
        return all(bool(np.isfinite(a.values).all()) for a in known)

    @property
    def has_classes(self) -> bool:
        return self.array("orbit_predictive", "probs") is not None

    @cached_property
    def elements(self) -> list[str]:
        source = self.tested if self.orbit is None else self.orbit
        return [str(name) for name in source["element"].values]

    @cached_property
    def chains(self) -> int:
        return max((d.sizes["chain"] for d in self.groups.values() if "chain" in d.sizes), default=1)

    @cached_property
    def count(self) -> int | None:
        """The number of observations that the draws are of."""
        pointwise = next((a for a in self.groups.get("log_likelihood", {}).values() if a.ndim == 3), None)
        if pointwise is not None:
            return pointwise.shape[2]
        return None if self.orbit is None else self.orbit.shape[3]

    @cached_property
    def observed_labels(self) -> Tensor | None:
        """The classes ``(chain, N)`` of the draws' data, the same in all runs unless they have data of their own."""
        observed = self.groups.get("observed_data", {})
        found = [a for a in observed.values() if np.issubdtype(a.dtype, np.integer)]
        if len(found) != 1 or found[0].ndim > 2:
            return None
        return self._by_run(found[0])

    @cached_property
    def labels(self) -> Tensor | None:
        """The classes ``(chain, N)`` of the data that are scored, the tested ones where there are any."""
        return self.observed_labels if self.tested is None else self._by_run(self.tested.label)

    def _by_run(self, labels: xr.DataArray) -> Tensor:
        values = torch.as_tensor(labels.values).long()
        return values.expand(self.chains, -1) if values.ndim == 1 else values

    @cached_property
    def orbit_labels(self) -> Tensor | None:
        """The classes of the moved copies, ``(chain, |G|, N)``."""
        if self.labels is None:
            return None
        copies = self.labels.unsqueeze(1).expand(-1, len(self.elements), -1)
        if self.action is None:
            return copies
        g = torch.arange(len(self.elements)).unsqueeze(-1)
        return torch.stack([self.symmetry.act_outputs(g, own[0]) for own in copies])

    @cached_property
    def orbit_mean(self) -> Tensor:
        """Each run's mean predictive ``(chain, |G|, N, K)`` of the data that are scored."""
        if self.tested is not None:
            return _tensor(self.tested.probs)
        return _tensor(self.array("orbit_predictive", "probs")).mean(1)

    @cached_property
    def upright(self) -> Tensor | None:
        """Each run's mean predictive on the data as they are, ``(chain, N, K)``."""
        if self.tested is not None or self.has_classes:
            return self.orbit_mean[:, 0]
        probs = self.array("posterior_predictive", "probs")
        return None if probs is None else _tensor(probs).mean(1)

    def image(self, observation: int) -> np.ndarray | None:
        """One input ``(C, h, w)`` of the first run, where inputs are images of one or three channels."""
        x = self.array("constant_data", "x")
        if x is None:
            return None
        x = x.isel(chain=0) if "chain" in x.dims else x
        return x.values[observation] if x.ndim == 4 and x.shape[1] in (1, 3) else None

    def label(self, observation: int) -> int | None:
        return None if self.observed_labels is None else int(self.observed_labels[0, observation])

    @cached_property
    def parameters(self) -> dict[str, xr.DataArray]:
        """The sites of the posterior, ``(chain, draw, ...)``; none for networks, unless they were asked for."""
        return {str(name): a.transpose("chain", "draw", ...) for name, a in self.groups.get("posterior", {}).items()
                if name != LOG_LIKELIHOOD and {"chain", "draw"} <= set(a.dims) and a.dtype.kind in "fiub"}  # fmt: skip

    @cached_property
    def defects(self) -> list[metrics.Estimate]:
        """The defect of each element: the mean over runs of their estimates, and its standard error."""
        if not self.finite:
            return [metrics.Estimate(np.nan, np.nan)] * len(self.elements)
        runs = [metrics.defect_by_element(_tensor(run), action=self.action) for run in self.orbit]
        return [self._rounded(_mean(several)) for several in zip(*runs, strict=True)]

    @cached_property
    def defect(self) -> metrics.Estimate:
        runs = [metrics.equivariance_defect(_tensor(run), action=self.action) for run in self.orbit]
        return self._rounded(_mean(runs))

    def _rounded(self, defect: metrics.Estimate) -> metrics.Estimate:
        """Zero where a defect is one up to rounding."""
        draws, count = self.orbit.shape[1], self.orbit.shape[3]
        scale = float(np.square(self.orbit.values[:, :, 0]).sum()) / (len(self.orbit) * draws * count)
        small = max(abs(defect.value), float(np.nan_to_num(defect.se))) < ROUNDING * scale
        return metrics.Estimate(0.0, 0.0) if small else defect

    def missing(self) -> dict[str, str]:
        """For each panel that cannot be drawn, the reason."""
        reasons = {}
        if self.orbit is None:
            reasons["predictive over the orbit, defect"] = "no orbit_predictive"
        elif not self.outputs_known:
            reasons["defect, calibration under rotation"] = "the outputs move, pass symmetry="
        elif self.orbit.sizes["draw"] < 2:
            reasons["defect"] = "fewer than two draws"
        if not self.finite:
            panels = ("predictive over the orbit", "defect", "reliability", "calibration under rotation")
            return dict.fromkeys(panels, "NaN or inf predicted") | self._missing_traces()
        if not self.calibrated:
            reasons["reliability"] = "no class probabilities with their labels"
        if not self.scored and self.outputs_known:
            reasons["calibration under rotation"] = "no class probabilities on moved copies with their labels"
        return reasons | self._missing_traces()

    def _missing_traces(self) -> dict[str, str]:
        wanted = {"training": ("variational", "loss"), "log likelihood": ("posterior", LOG_LIKELIHOOD)}
        return {panel: f"no {group}.{name}" for panel, (group, name) in wanted.items()
                if self.array(group, name) is None}  # fmt: skip

    @property
    def moves(self) -> bool:
        """Whether a defect can be computed."""
        return self.orbit is not None and self.outputs_known and self.orbit.sizes["draw"] > 1

    @property
    def calibrated(self) -> bool:
        """Whether there are labels for predictions on the data as they are."""
        return self.upright is not None and self.labels is not None

    @property
    def scored(self) -> bool:
        """Whether there are labels for predictions on the moved copies."""
        predicted = self.tested is not None or self.has_classes
        return predicted and self.outputs_known and self.labels is not None


@dataclass(frozen=True)
class Evidence:
    """All that a report shows: the data by method, attributes, tables of diagnoses by method, the input drawn."""

    methods: Mapping[str, Method]
    attrs: Mapping
    symmetry: Symmetry | None
    diagnoses: Mapping[str, object]
    observation: int

    @property
    def first(self) -> Method:
        return next(iter(self.methods.values()))

    @property
    def several(self) -> bool:
        return len(self.methods) > 1

    @property
    def missing(self) -> str:
        """One sentence on the panels that are left out."""
        reasons = self.first.missing()
        left_out = "; ".join(f"{panel} ({reason})" for panel, reason in reasons.items())
        broken = ", ".join(name for name, method in self.methods.items() if name and not method.finite)
        return (f"Not shown: {left_out}. " if reasons else "") + (
            f"NaN or inf predicted by {broken}." if broken else ""
        )


def evidence_of(idata, diagnosis, symmetry: Symmetry | None, observation: int, every_diagnosis: bool) -> Evidence:
    """Read the data; diagnose the only method, or each where ``every_diagnosis`` is asked for."""
    from ..diagnostics.base import groups_of  # here, since it imports ArviZ

    _check_kind(idata)
    groups, attrs = groups_of(idata), dict(idata.attrs)
    attrs = next((d.attrs for d in groups.values() if d.attrs), {}) | attrs
    methods = methods_of(groups, attrs, symmetry)
    if diagnosis is None and (every_diagnosis or len(methods) == 1):
        diagnosis = {name: _diagnosed(method, attrs, symmetry) for name, method in methods.items()}
    elif diagnosis is not None and not isinstance(diagnosis, Mapping):
        diagnosis = {next(iter(methods)): diagnosis}
    count = max((m.orbit.shape[3] for m in methods.values() if m.orbit is not None), default=1)
    if not 0 <= observation < count:
        raise OptionError(f"Expected observation, the number of an input, in 0..{count - 1}; got {observation}.")
    return Evidence(methods, attrs, symmetry, diagnosis or {}, observation)


def _check_kind(idata) -> None:
    """Refuse what is no ArviZ data of either series, in which groups are listed by a method, or a tree."""
    if isinstance(idata, str | os.PathLike):
        raise DataError(f"Expected ArviZ data; got the path {str(idata)!r}. Read it with pe.from_netcdf(path).")
    if not isinstance(idata, xr.DataTree) and not callable(getattr(idata, "groups", None)):
        kind = type(idata).__name__
        raise DataError(f"Expected ArviZ data; got {kind}. Pass what pe.to_arviz or pe.from_netcdf returns.")


def _diagnosed(method: Method, attrs: Mapping, symmetry: Symmetry | None):
    from ..diagnostics import diagnose
    from ..diagnostics.base import ARVIZ

    return diagnose(ARVIZ.container(method.groups, attrs), symmetry=symmetry)


def head_lines(evidence: Evidence) -> tuple[str, str]:
    """The title, and a line with the sizes and the origin of the data."""
    attrs, first = evidence.attrs, evidence.first
    guide = "" if evidence.several else str(attrs.get("guide", ""))
    named = guide and "<" not in guide  # as in the names of lambdas
    title = "Posterior report" + (f": {shortened(guide, 60)}" if named else "")
    sizes = next((d.sizes for d in first.groups.values() if "draw" in d.sizes), {})
    parts = [f"{len(evidence.methods)} methods"] if evidence.several else []
    parts += [_counted(sizes.get("chain", 1), "run") + (f" × {sizes['draw']} draws" if "draw" in sizes else "")]
    parts += _observations(first)
    group = attrs.get("group") or (evidence.symmetry and repr(evidence.symmetry.group))
    parts += [f"group {group}"] if group else []
    for key, name in (("seed", "seed"), ("fit_seed", "fits' seeds"), ("rule", "rule"), ("fit_loss", "loss")):
        parts += [f"{name} {attrs[key]}"] if key in attrs and str(attrs[key]) != "None" else []
    for name, key in ((attrs.get("inference_library"), "inference_library_version"),
                      ("pyro-equivariance", "pyro_equivariance_version")):  # fmt: skip
        parts += [f"{name} {attrs[key]}"] if name and key in attrs else []
    return title, ", ".join(parts)


def _observations(method: Method) -> list[str]:
    """How many observations the panels are of."""
    draws = [] if method.count is None else [_counted(method.count, "observation")]
    if method.tested is None:
        return draws
    scored = _counted(method.tested.sizes["test_image"], "observation")
    return [f"reliability and scores of {scored}"] + [f"all else of {own}" for own in draws]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def methods_of(groups: Mapping[str, xr.Dataset], attrs: Mapping, symmetry: Symmetry | None) -> dict[str, Method]:
    """The data of each method by name; of the only one by the empty name."""
    known = symmetry is not None or "outputs=" not in str(attrs.get("symmetry", "")) or _outputs(attrs) == "None"
    names = next((d[METHOD].values for d in groups.values() if METHOD in d.dims), None)
    if names is None:
        return {"": Method(groups, symmetry, known)}
    split = {
        str(name): {g: d.sel({METHOD: name}) if METHOD in d.dims else d for g, d in groups.items()} for name in names
    }
    return {name: Method(own, symmetry, known) for name, own in split.items()}


def moved_images(x: np.ndarray, elements: list[str], attrs: Mapping, symmetry: Symmetry | None) -> np.ndarray | None:
    """The copies ``(|G|, C, h, w)`` of an image, where the action is given, or the attributes say which it is.

    Attributes say it if the action on images that the name of the group stands for has the same text as the action that
    they record, and the elements the same names; else ``None``.
    """
    action = symmetry.inputs if symmetry is not None else _recorded_action(x.shape, elements, attrs)
    if action is None or tuple(action.event_shape) != x.shape:
        return None
    return action.orbit(torch.as_tensor(x)).numpy()


def scalars(parameters: Mapping[str, xr.DataArray], most: int) -> dict[str, np.ndarray]:
    """The draws ``(chain, draw)`` of at most so many scalars, of as many sites as possible, by name.

    >>> theta = xr.DataArray(np.zeros((1, 5, 2)), dims=("chain", "draw", "school"), coords={"school": ["A", "B"]})
    >>> list(scalars({"theta": theta, "tau": theta[..., 0]}, 2))
    ['theta[A]', 'tau']
    """
    entries = [(position, order, index) for order, array in enumerate(parameters.values())
               for position, index in enumerate(islice(np.ndindex(array.shape[2:]), most))]  # fmt: skip
    chosen = sorted(sorted(entries)[:most], key=lambda entry: entry[1::-1])
    arrays = list(parameters.items())
    found = {}
    for _, order, index in chosen:
        name, array = arrays[order]
        labels = [str(array[axis].values[i]) for axis, i in zip(array.dims[2:], index, strict=True)]
        found[f"{name}[{', '.join(labels)}]" if labels else name] = array.values[(..., *index)].astype(float)
    return found


def comparison(methods: Mapping[str, Method]) -> tuple[list[str], list[list[str]]]:
    """A table of the methods: its head, and a row of texts for each; what cannot be computed is left empty."""
    head = ["method", "upright", "accuracy", "NLL", "ECE", "defect ± se", "log likelihood ± sd"]
    return head, [[name, *_scores(method), _written_defect(method), _written_likelihood(method)]
                  for name, method in methods.items()]  # fmt: skip


def _scores(method: Method) -> list[str]:
    """Accuracy on upright data; accuracy, NLL and ECE over all moved copies, runs pooled."""
    if not method.scored or not method.finite:
        return ["", "", "", ""]
    probs, labels = method.orbit_mean, method.orbit_labels
    values = (metrics.accuracy(probs[:, 0], labels[:, 0]), metrics.accuracy(probs, labels),
              metrics.negative_log_likelihood(probs, labels), metrics.calibration_error(probs, labels))  # fmt: skip
    return [f"{value.item():.4f}" for value in values]


def _written_defect(method: Method) -> str:
    return written(method.defect.value, method.defect.se) if method.moves and method.finite else ""


def _written_likelihood(method: Method) -> str:
    values = method.array("posterior", LOG_LIKELIHOOD)
    return "" if values is None else written(float(values.mean()), float(values.std()))


def _recorded_action(shape: tuple[int, ...], elements: list[str], attrs: Mapping):
    text = str(attrs.get("symmetry", ""))
    found = re.match(r"(?:Symmetry\()?(CyclicGroup|DihedralGroup)\((\d+)\)", str(attrs.get("group", text)))
    recorded = attrs.get("inputs") or (re.search(r"inputs=(.*), outputs=", text) or [None, None])[1]
    if not found or recorded is None or shape[-1] != shape[-2]:
        return None
    group = GROUPS[found[1]](int(found[2]))
    try:
        action = image(group, shape)
    except SymmetryError:  # a group that does not act on pixels
        return None
    return action if repr(action) == recorded and list(group.names) == elements else None


def _outputs(attrs: Mapping) -> str:
    return str(attrs["symmetry"]).rsplit("outputs=", 1)[1].rstrip(")")


def _mean(estimates) -> metrics.Estimate:
    """Of independent estimates."""
    value = float(np.mean([e.value for e in estimates]))
    return metrics.Estimate(value, float(np.sqrt(np.sum(np.square([e.se for e in estimates])))) / len(estimates))


def _tensor(array: xr.DataArray) -> Tensor:
    return torch.as_tensor(array.values)
