"""Convolutions whose kernels live on some of their entries, and whether a group keeps that set of entries.

The weights that a network may take are part of its architecture: augmentation makes ensembles equivariant only if the
group maps that set to itself [1]. A kernel that is 0 off its support is the simplest case where it may not.

References:

[1] Nordenfors, Flinth (2024) "Ensembles provably learn equivariance through data augmentation" arXiv:2410.01452
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..errors import LayerError, OptionError, SymmetryError, check_option
from ..representations import Representation, kernel_of
from .base import factors_of
from .layers import LAYERS, Convolution

SUPPORTS = ("full", "cross", "corner", "row")

VARIANTS = MappingProxyType(
    {
        "symmetric": {"support": "cross", "core_start": False},
        "asymmetric, symmetric start": {"support": "corner", "core_start": True},
        "asymmetric": {"support": "corner", "core_start": False},
    }
)
"""Three ensembles after the description in [1], as options of :func:`~pyro_equivariance.fit_ensemble`.

All have equally many weights.
"""


def support(name: str, kernel_size) -> Tensor:
    """The entries of a kernel that a support keeps, by name: booleans ``(k, l)``.

    - ``"full"``: all;
    - ``"cross"``: the middle row and the middle column, which quarter turns and reflections keep;
    - ``"corner"``: the same with the first entry in place of the middle one: equally many, and no turn keeps it. It
      follows the description of an asymmetric support in [1];
    - ``"row"``: the middle row, which half turns keep and quarter turns do not.

    :param kernel_size: ``(k, l)``, or one number for both.
    :raises OptionError: for another name, a side that has no middle, or ``"corner"`` where it is the middle.

    >>> support("corner", 3).int().tolist()
    [[1, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    check_option("support", name, SUPPORTS)
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if name == "full":
        return torch.ones(height, width, dtype=torch.bool)
    if height % 2 == 0 or width % 2 == 0:
        raise OptionError(f"Expected a kernel of odd sides for the support {name!r}; got {height} × {width}.")
    if name == "corner" and min(height, width) == 1:
        raise OptionError(f"Expected sides of at least 3 for the support 'corner'; got {height} × {width}. Use 'row'.")
    kept = torch.zeros(height, width, dtype=torch.bool)
    kept[height // 2] = True
    if name != "row":
        kept[:, width // 2] = True
    if name == "corner":
        kept[height // 2, width // 2], kept[0, 0] = False, True
    return kept


def is_invariant_support(kept: Tensor, rep: Representation) -> bool:
    """Whether every element of the group maps the support to itself.

    :param Tensor kept: booleans of ``rep.event_shape``.
    :param Representation rep: how the group moves one kernel, such as ``pe.image(group, (3, 3))``.

    >>> import pyro_equivariance as pe
    >>> turn = pe.image(pe.CyclicGroup(4), (3, 3))
    >>> [is_invariant_support(support(name, 3), turn) for name in SUPPORTS]
    [True, True, False, False]
    """
    return _broken_by(kept, rep) is None


def check_support(kept: Tensor, rep: Representation, name: str = "kernel") -> None:
    """Raise unless every element of the group maps the support to itself.

    :param str name: what the message calls it.
    :raises LayerError: naming the first element that does not.

    >>> import pyro_equivariance as pe
    >>> check_support(support("cross", 3), pe.image(pe.CyclicGroup(4), (3, 3)))
    """
    g = _broken_by(kept, rep)
    if g is not None:
        lost = int((_moved(kept, rep, g) & ~kept).sum())
        raise LayerError(
            f"Expected the support of {name!r} to be mapped to itself by {rep.group}; {rep.group.names[g]!r} takes "
            f"{lost} of its {int(kept.sum())} entries out of it. Use the support 'cross' or 'full'."
        )


def core_of(kept: Tensor, rep: Representation) -> Tensor:
    """The largest part of a support that the group maps to itself: what all moved copies share.

    >>> import pyro_equivariance as pe
    >>> core_of(support("corner", 3), pe.image(pe.CyclicGroup(4), (3, 3))).int().tolist()
    [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    _check_shape(kept, rep)
    return torch.stack([_moved(kept, rep, g) for g in range(len(rep.group))]).all(0)


def _broken_by(kept: Tensor, rep: Representation) -> int | None:
    """The first generator that takes the support out of itself."""
    _check_shape(kept, rep)
    return next((g for g in rep.group.generators if not torch.equal(_moved(kept, rep, g), kept)), None)


def _moved(kept: Tensor, rep: Representation, g: int) -> Tensor:
    return rep.act(g, kept.double()) != 0


def _check_shape(kept: Tensor, rep: Representation) -> None:
    if kept.dtype != torch.bool or kept.shape != rep.event_shape:
        raise SymmetryError(
            f"Expected a support as booleans of shape {tuple(rep.event_shape)}; got {kept.dtype} of shape "
            f"{tuple(kept.shape)}."
        )


class SupportedConv2d(nn.Conv2d):
    """A convolution whose kernels are 0 off a support: ``(W · m) * x + b`` with the mask ``m``.

    The weight keeps its full shape, and its name. Its entries off the support have no gradient, so an optimizer
    that starts them at 0 leaves them there, weight decay included.

    :param Tensor kept: booleans ``(k, l)``, or a name of :func:`support`; the other arguments are those of
        :class:`torch.nn.Conv2d`.

    >>> layer = SupportedConv2d(1, 2, 3, kept="cross", padding=1)
    >>> layer(torch.zeros(5, 1, 8, 8)).shape, int(layer.weight.count_nonzero())
    (torch.Size([5, 2, 8, 8]), 10)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, kept: Tensor | str = "full", **options):
        super().__init__(in_channels, out_channels, kernel_size, **options)
        kept = support(kept, self.kernel_size) if isinstance(kept, str) else kept
        if kept.dtype != torch.bool or kept.shape != torch.Size(self.kernel_size) or not kept.any():
            raise OptionError(
                f"Expected a support as booleans of shape {tuple(self.kernel_size)}, not all False; got {kept.dtype} "
                f"of shape {tuple(kept.shape)}."
            )
        self.register_buffer("kept", kept.to(self.weight.device))
        with torch.no_grad():
            self.weight *= self.kept

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.kept, self.bias)


class SupportedConvolution(Convolution):
    """Reads a convolution on a support like any other, once the group was seen to keep the support."""

    def read(self, name, layer, feature, reader):
        read = super().read(name, _plain(layer), feature, reader)
        check_support(layer.kept, kernel_of(feature.factors[-1], layer.kernel_size), name)
        return read

    def widen(self, layer, inputs, outputs):
        return _on_support(super().widen(_plain(layer), inputs, outputs), layer.kept)


LAYERS[SupportedConv2d] = SupportedConvolution()


def with_support(net: nn.Module, kept: str | Tensor | Mapping[str, str | Tensor]) -> nn.Module:
    """A copy of the network with its convolutions on a support; kernels of one entry stay as they are.

    A convolution that is used in several places remains one, and so does a weight that several of them share.

    :param kept: a name of :func:`support`, booleans ``(k, l)``, or a dict of these by the names of convolutions, which
        leaves the others as they are.
    :raises OptionError: for a network without such convolutions, names that are none, or two supports for one layer.

    >>> net = with_support(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)), {"0": "cross"})
    >>> [type(layer).__name__ for layer in net]
    ['SupportedConv2d', 'ReLU', 'Conv2d']
    """
    net = copy.deepcopy(net)
    layers = dict(net.named_modules(remove_duplicate=False))
    known = [name for name, m in layers.items() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    chosen = dict(kept) if isinstance(kept, Mapping) else dict.fromkeys(known, kept)
    if not chosen or (unknown := [name for name in chosen if name not in known]):
        raise OptionError(
            f"Expected a support for convolutions of the network, {', '.join(map(repr, known)) or 'which has none'}; "
            f"got {unknown[0]!r}." if chosen else "Expected a network with a Conv2d for support=; it has none."
        )  # fmt: skip
    replaced = {}
    for name, mask in chosen.items():
        new = _on_support(layers[name], mask)
        if not torch.equal(replaced.setdefault(layers[name], new).kept, new.kept):
            raise OptionError(
                f"Expected one support for the convolution {name!r}, which has another name too; got two."
            )
    for name in known:
        if layers[name] in replaced and name:
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, replaced[layers[name]])
    return replaced.get(net, net)


def masks_of(net: nn.Module) -> dict[str, Tensor]:
    """The supports of a network's weights by parameter name, those of convolutions on one only.

    >>> masks_of(nn.Sequential(SupportedConv2d(1, 2, 3, kept="row")))["0.weight"].int().tolist()
    [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
    """
    layers = ((name, m) for name, m in net.named_modules() if isinstance(m, SupportedConv2d))
    return {f"{name}.weight" if name else "weight": m.kept for name, m in layers}


def cores_of(net: nn.Module, inputs: Representation) -> dict[str, Tensor]:
    """As :func:`masks_of`, the part of each support that the group keeps, for inputs that move so."""
    space = factors_of(inputs)[-1]
    return {name: core_of(kept, kernel_of(space, kept.shape)) for name, kept in masks_of(net).items()}


def _on_support(layer: nn.Conv2d, kept: str | Tensor) -> SupportedConv2d:
    restricted = SupportedConv2d(layer.in_channels, layer.out_channels, kept=kept, groups=layer.groups,
                                 bias=layer.bias is not None, **_kind(layer)).to(layer.weight)  # fmt: skip
    restricted.weight, restricted.bias = layer.weight, layer.bias  # not copies, for other layers may share them
    with torch.no_grad():
        restricted.weight *= restricted.kept
    return restricted


def _plain(layer: nn.Conv2d) -> nn.Conv2d:
    """The same convolution without a support; its values do not count."""
    return nn.utils.skip_init(nn.Conv2d, layer.in_channels, layer.out_channels, groups=layer.groups,
                              bias=layer.bias is not None, **_kind(layer)).to(layer.weight)  # fmt: skip


def _kind(layer: nn.Conv2d) -> dict:
    """What a convolution is, besides its channels."""
    return {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
