"""What a report reads from ArviZ data: each method's predictives, scores and traces, and what is missing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .. import metrics
from ..errors import OptionError, SymmetryError
from ..groups import CyclicGroup, DihedralGroup
from ..representations import image
from ..symmetry import Symmetry
from .base import shortened

METHOD = "method_name"
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
    def finite(self) -> bool:
        """Whether predictions, as far as there are any, hold neither NaN nor inf."""
        known = (a for a in (self.orbit, self.array("posterior_predictive", "probs")) if a is not None)
        return all(bool(np.isfinite(a.values).all()) for a in known)

    @property
    def has_classes(self) -> bool:
        return self.array("orbit_predictive", "probs") is not None

    @cached_property
    def elements(self) -> list[str]:
        return [str(name) for name in self.orbit["element"].values]

    @cached_property
    def chains(self) -> int:
        return max((d.sizes["chain"] for d in self.groups.values() if "chain" in d.sizes), default=1)

    @cached_property
    def labels(self) -> Tensor | None:
        """The classes ``(chain, N)``, the same in all runs unless they have data of their own."""
        observed = self.groups.get("observed_data", {})
        found = [a for a in observed.values() if np.issubdtype(a.dtype, np.integer)]
        if len(found) != 1 or found[0].ndim > 2:
            return None
        values = torch.as_tensor(found[0].values).long()
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
        """Each run's mean predictive ``(chain, |G|, N, K)``."""
        return _tensor(self.array("orbit_predictive", "probs")).mean(1)

    @cached_property
    def upright(self) -> Tensor | None:
        """Each run's mean predictive on the data as they are, ``(chain, N, K)``."""
        if self.has_classes:
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
        return None if self.labels is None else int(self.labels[0, observation])

    @cached_property
    def defects(self) -> list[metrics.Estimate]:
        """The defect of each element: the mean over runs of their estimates, and its standard error."""
        if not self.finite:
            return [metrics.Estimate(np.nan, np.nan)] * len(self.elements)
        runs = [metrics.defect_by_element(_tensor(run), action=self.action) for run in self.orbit]
        return [_mean(several) for several in zip(*runs, strict=True)]

    @cached_property
    def defect(self) -> metrics.Estimate:
        return _mean([metrics.equivariance_defect(_tensor(run), action=self.action) for run in self.orbit])

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
        wanted = {"training": ("variational", "loss"), "log likelihood": ("posterior", "mean_log_likelihood")}
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
        return self.orbit is not None and self.has_classes and self.outputs_known and self.labels is not None


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


def _diagnosed(method: Method, attrs: Mapping, symmetry: Symmetry | None):
    from ..diagnostics import diagnose
    from ..diagnostics.base import ARVIZ

    return diagnose(ARVIZ.container(method.groups, attrs), symmetry=symmetry)


def head_lines(evidence: Evidence) -> tuple[str, str]:
    """The title, and a line with the sizes and the origin of the data."""
    attrs, first = evidence.attrs, evidence.first
    guide = "" if evidence.several else str(attrs.get("guide", ""))
    title = "Posterior report" + (f": {shortened(guide, 60)}" if guide else "")
    sizes = next((d.sizes for d in first.groups.values() if "draw" in d.sizes), {})
    parts = [f"{len(evidence.methods)} methods"] if evidence.several else []
    parts += [_counted(sizes.get("chain", 1), "run") + (f" × {sizes['draw']} draws" if "draw" in sizes else "")]
    pointwise = next((a for a in first.groups.get("log_likelihood", {}).values() if a.ndim == 3), None)
    parts += [] if pointwise is None else [_counted(pointwise.shape[2], "observation")]
    group = attrs.get("group") or (evidence.symmetry and repr(evidence.symmetry.group))
    parts += [f"group {group}"] if group else []
    for key, name in (("seed", "seed"), ("fit_seed", "fits' seeds"), ("rule", "rule"), ("fit_loss", "loss")):
        parts += [f"{name} {attrs[key]}"] if key in attrs and str(attrs[key]) != "None" else []
    for key, name in (("inference_library_version", "pyro"), ("pyro_equivariance_version", "pyro-equivariance")):
        parts += [f"{name} {attrs[key]}"] if key in attrs else []
    return title, ", ".join(parts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


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
    values = method.array("posterior", "mean_log_likelihood")
    return "" if values is None else written(float(values.mean()), float(values.std()))


def written(value: float | None, error: float | None = None) -> str:
    """A number with its error, the error where there is one.

    >>> written(0.12345, 0.0067), written(2.0, float("nan")), written(None)
    ('0.123 ± 0.007', '2', '')
    """
    if value is None or not np.isfinite(value):
        return "" if value is None else str(value)
    if error is None or not np.isfinite(error):
        return f"{value:.4g}"
    return f"{value:.3g} ± {error:.1g}"


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
