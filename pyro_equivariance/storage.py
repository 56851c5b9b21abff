"""A trained guide in a file: saved as plain tensors, numbers and names, restored on a model in another process.

Files hold nothing that runs code when they are read (``torch.load`` with ``weights_only=True``).
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path

import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.poutine.messenger import unwrap
from torch import Tensor

from . import groups, guides, representations
from .errors import DataError, SymmetryError
from .generators import Generators
from .guides.base import _own_name as own_name
from .handlers import RelaxedNetwork
from .measures import ElementList, LearnedMeasure, LieBox
from .networks.bayesian import BayesianNetwork
from .symmetry import Symmetry

FORMAT = 1

# For each class, the attributes that its constructor takes, in order, or functions that compute them.
VALUES: dict[type, tuple[str | Callable, ...]] = {
    ElementList: ("law", "drawn"),
    Generators: ("basis", "names", "affine"),
    LieBox: ("generators", "widths"),
    groups.Affine: ("n",),
    groups.CyclicGroup: ("n",),
    groups.DihedralGroup: ("n",),
    groups.GeneralLinear: ("n",),
    groups.LatticeGroup: ("point", "shape"),
    groups.OctahedralGroup: ("reflections",),
    groups.PermutationGroup: (lambda group: [group._elements[g] for g in (0, *group.generators)],),
    groups.ProductGroup: ("left", "right"),
    groups.SignedPermutationGroup: ("n",),
    groups.SignGroup: (),
    groups.SpecialOrthogonal: ("n",),
    groups.Subgroup: ("parent", "parent_generators"),
    groups.SymmetricGroup: ("n",),
    groups.YoungSubgroup: ("sizes",),
    representations.Angle: ("group", "_shifts", "_reflections"),
    representations.BlockPermutation: ("group", "block"),
    representations.Composed: ("left", "right"),
    representations.DirectSum: ("left", "right"),
    representations.Factor: ("group", "base", "side"),
    representations.Grid: ("group", "event_shape", "kind"),
    representations.InterpolatedImage: ("group", "event_shape", "mode"),
    representations.Labels: ("group", "_permutations"),
    representations.Listed: ("base", "group"),
    representations.MatrixRepresentation: ("group", "_matrices"),
    representations.NaturalPermutation: ("group", "signed"),
    representations.Points: ("group", "_contragredient"),
    representations.Product: ("left", "right"),
    representations.Pullback: ("group", "base", "homomorphism"),
    representations.Reshaped: ("base", "event_shape", "_label"),
    representations.Rotation: ("group",),
    representations.SignedPermutation: ("group", "_permutations", "_signs", "_label"),
    representations.Trivial: ("group", "event_shape"),
    Symmetry: ("group", "sites", "inputs", "outputs", "features"),
}
NAMES = {kind.__name__: kind for kind in VALUES}

# For each guide, what it was built with besides the model.
GUIDES: dict[type, tuple[str, ...]] = {
    guides.AutoMeanFieldNormal: (),
    guides.AutoOrbitMixture: ("symmetry", "base", "rank", "max_exact", "samples"),
    guides.AutoSymmetric: ("symmetry", "families", "rule"),
    guides.AutoSymmetricLowRankMultivariateNormal: ("symmetry", "rule", "rank"),
    guides.AutoSymmetricMultivariateNormal: ("symmetry", "rule"),
    guides.AutoSymmetricNormal: ("symmetry", "rule"),
    autoguide.AutoDiagonalNormal: (),
    autoguide.AutoMultivariateNormal: (),
    autoguide.AutoNormal: (),
}


def save(path: str | os.PathLike, guide, args: tuple = ()) -> None:
    """Write a guide's parameters, its symmetry and options to a file; :func:`load` restores it on its model.

    The file is written whole or not at all, and holds tensors, numbers and names only.

    What a learned measure has learned is saved with a guide that was made on the model augmented by it.

    :param path: of the file.
    :param guide: an initialised guide of this package, Pyro's ``AutoNormal``, ``AutoDiagonalNormal`` or
        ``AutoMultivariateNormal``, or a :class:`~pyro_equivariance.SymmetrizedGuide` of one.
    :param tuple args: the model's arguments, which :func:`load` needs to run it once; of data the first two rows do.
    :raises SymmetryError: for another guide, or one without parameters yet.

    >>> import os, tempfile, torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3))
    >>> guide, args = pe.AutoMeanFieldNormal(model), (torch.zeros(2, 4), torch.zeros(2).long())
    >>> guide.initialize(*args)
    >>> path = os.path.join(tempfile.mkdtemp(), "guide.pt")
    >>> pe.save(path, guide, args)
    >>> restored = pe.load(path, model)
    >>> torch.equal(restored.median()["bias"], guide.median()["bias"])
    True
    """
    content = {
        "format": FORMAT,
        "guide": _encode_guide(guide),
        "args": encode(tuple(args)),
        "parameters": _state(guide),
        "plates": getattr(guide, "create_plates", None) is not None,
    }
    content["model"] = _learned(guide)
    if (measure := _measure(_inner(guide).model)) is not None:
        content["measure"] = {name: value.detach().clone() for name, value in measure.state_dict().items()}
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        torch.save(content, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike, model: Callable, map_location=None, create_plates: Callable | None = None):
    """Restore a guide that :func:`save` wrote, on its model: it draws and predicts as before, bit for bit.

    :param path: of the file.
    :param model: the model that the guide was made for, built as then.
    :param map_location: where the tensors go, as in ``torch.load``; the model must be there.
    :param create_plates: what the guide was given under that name: a file holds no code.
    :returns: the guide, with its parameters.
    :raises DataError: for a file that is no such file, or does not fit the model.
    """
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
        known = bool(content["format"] == FORMAT)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load raises whatever the bytes make it
        raise DataError(f"Expected {str(path)!r} to be a file of pe.save; it cannot be read as one.") from error
    if not known:
        raise DataError(f"Expected {str(path)!r} to be of format {FORMAT}; got {content['format']!r}.")
    if content.get("plates") and create_plates is None:
        raise DataError(
            f"Expected create_plates=, which the guide of {str(path)!r} was made with and no file can hold; got none."
        )
    guide = _decode_guide(content["guide"], model)
    if create_plates is not None:
        guide.create_plates = create_plates
    try:
        with torch.random.fork_rng(), poutine.block():
            guide(*decode(content["args"]))
    except Exception as error:  # whatever the model raises
        raise DataError(
            f"Expected the model that the guide of {str(path)!r} was made for, and its arguments in pe.save(path, "
            f"guide, args); running it failed: {str(error).partition(chr(10))[0]}"
        ) from error
    _restore(guide, content["parameters"], path)
    if (network := _network(model)) is not None:
        network.load_learned(content["model"])
    if "measure" in content:
        _load_measure(content["measure"], model, path)
    return guide


def encode(value):
    """A value as tensors, numbers, strings and lists; groups, representations and symmetries by name and arguments."""
    if type(value) in VALUES:
        arguments = [encode(a(value) if callable(a) else getattr(value, a)) for a in VALUES[type(value)]]
        return {"kind": type(value).__name__, "arguments": arguments, "space": getattr(value, "space", "constrained")}
    if isinstance(value, (tuple, list, torch.Size)):
        return [encode(v) for v in value]
    if hasattr(value, "items"):
        return {"items": [[name, encode(v)] for name, v in value.items()]}
    if value is None or isinstance(value, (Tensor, bool, int, float, str)):
        return value
    if isinstance(value, LearnedMeasure):
        raise SymmetryError(f"Expected a measure that learns no more, to save; got {value!r}. Use .fixed().")
    raise SymmetryError(f"Expected numbers, strings, tensors, groups or representations to save; got {value!r}.")


def decode(content):
    """The inverse of :func:`encode`; sequences become tuples."""
    if isinstance(content, list):
        return tuple(decode(v) for v in content)
    if isinstance(content, dict) and "items" in content:
        return {name: decode(v) for name, v in content["items"]}
    if not isinstance(content, dict):
        return content
    value = NAMES[content["kind"]](*map(decode, content["arguments"]))
    return value.on_unconstrained() if content["space"] == "unconstrained" else value


def _encode_guide(guide) -> dict:
    if isinstance(guide, guides.SymmetrizedGuide):
        inner = _encode_guide(guide.guide)
        return {"kind": "SymmetrizedGuide", "guide": inner, "options": encode((guide.symmetry, guide.rule))}
    if type(guide) not in GUIDES:
        known = ", ".join(kind.__name__ for kind in GUIDES)
        raise SymmetryError(
            f"Expected one of the guides {known}, or a SymmetrizedGuide of one, to save; got {type(guide).__name__}. "
            f"Its guide.state_dict() can be saved with torch.save."
        )
    options = [[name, encode(getattr(guide, name))] for name in GUIDES[type(guide)]]
    return {"kind": type(guide).__name__, "options": {"items": options}}


def _decode_guide(content: dict, model: Callable):
    if content["kind"] == "SymmetrizedGuide":
        return guides.SymmetrizedGuide(_decode_guide(content["guide"], model), *decode(content["options"]))
    kind = {k.__name__: k for k in GUIDES}[content["kind"]]
    guide = kind(model, **decode(content["options"]))
    if not isinstance(guide, guides.AutoDirect):  # Pyro names all guides of a class alike, and they share parameters
        guide._pyro_name = own_name(f"Loaded{kind.__name__}")
    return guide


def _state(guide) -> dict[str, Tensor]:
    state = {name: value.detach().clone() for name, value in guide.named_parameters()}
    if not state:
        raise SymmetryError("Expected a guide with parameters to save; call guide.initialize(*args) or train it first.")
    return state


@torch.no_grad()
def _restore(guide, state: dict[str, Tensor], path) -> None:
    own = dict(guide.named_parameters())
    shapes = {name: value.shape for name, value in own.items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        odd = sorted(set(shapes.items()) ^ {(name, value.shape) for name, value in state.items()})
        raise DataError(
            f"Expected the model that the guide of {str(path)!r} was made for; its sites differ: {odd[0][0]!r}."
        )
    for name, value in state.items():
        own[name].data = value  # as it was, its dtype included


def _learned(guide) -> dict[str, float]:
    inner = _inner(guide)
    if inner._model is None:
        raise SymmetryError(
            "Expected a guide with its model; got one that has lost it, as pickled guides do, and those of Pyro that "
            "were copied. Save it before that, or its guide.state_dict() with torch.save."
        )
    network = _network(inner.model)
    return {} if network is None else network.learned()


def _inner(guide):
    return guide.guide if isinstance(guide, guides.SymmetrizedGuide) else guide


def _measure(model: Callable) -> LearnedMeasure | None:
    """The learned measure that a model is augmented by."""
    while True:
        measure = getattr(getattr(model, "augmentation", None), "symmetry", None)
        if measure is not None and isinstance(measure.group, LearnedMeasure):
            return measure.group
        if (inner := inspect.unwrap(unwrap(model), stop=lambda f: hasattr(f, "augmentation"))) is model:
            return None
        model = inner


def _load_measure(state: dict[str, Tensor], model: Callable, path) -> None:
    measure = _measure(model)
    own = {} if measure is None else {name: value.shape for name, value in measure.state_dict().items()}
    if own != {name: value.shape for name, value in state.items()}:
        raise DataError(
            f"Expected the model of {str(path)!r} augmented by a learned measure of the same kind, whose parameters "
            f"the file holds; got {measure!r}."
        )
    measure.load_state_dict(state)


def _network(model: Callable) -> BayesianNetwork | RelaxedNetwork | None:
    """The network behind a model that handlers were wrapped round."""
    while (inner := inspect.unwrap(unwrap(model))) is not model:
        model = inner
    return model if isinstance(model, (BayesianNetwork, RelaxedNetwork)) else None
