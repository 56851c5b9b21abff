"""Equivarification: any network or function made equivariant, by running it on the moved copies of its input."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..errors import DataError, LayerError, OptionError, SymmetryError, check_option
from ..groups import Group
from ..representations import Representation, regular, trivial
from ..symmetry import Symmetry, needed, random_inputs
from .bayesian import NetworkModel, _channels_last
from .fibres import action_after, channel_axis, combined_fibres, is_bare, layer_places, need_layers_in_turn, takes_fibre

WAYS = ("global", "each")


def equivarify(
    net: nn.Module | Callable[[Tensor], Tensor],
    symmetry: Symmetry,
    readout: str = "mean",
    layers: str = "global",
    align: bool = True,
) -> "Lift":
    r"""The lift of a network, or of any function of a batch: equivariant, with the network's own parameters.

    .. math:: \hat F(x)(g) = F(\rho_X(g)^{-1} x), \qquad (h \cdot s)(g) = s(h^{-1} g),
        \qquad \hat F(\rho_X(h) x) = h \cdot \hat F(x).

    The *fibre* ``s = F̂(x)``, ``(N, |G|, *out)``, holds the outputs for all ``|G|`` moved copies of an input; they go
    through the network in one batch, so that in a Pyro model its weights are drawn once. The read-outs are

    - ``"mean"``: ``(1/|G|) Σ_g s(g)``, invariant; where the outputs move, ``(1/|G|) Σ_g ρ_Y(g) s(g)``, which moves by
      ``ρ_Y``;
    - ``"max"``: ``max_g s(g)`` entry by entry, invariant; where the outputs are permuted, ``max_g ρ_Y(g) s(g)``, which
      moves by ``ρ_Y``;
    - ``"fibre"``: all of ``s``, which moves as above: by ``pe.regular(G) * pe.trivial(G, out)``;
    - ``"joint"``: of logits ``(N, K)`` those of (class, pose), ``(N, |G|·K)``, pose ``g`` and class ``k`` at the index
      ``g · K + k``; it moves by ``pe.regular(G, K)``: turning the input by ``h`` takes pose ``g`` to ``hg``. See
      :func:`joint_labels` and :func:`class_and_pose`;
    - ``"projection"``: ``p(s) = s(e)``, which is ``F`` itself and not equivariant.

    ``F`` is not looked into: strides, odd sizes, paddings, attention and layers that no symmetry can be read from
    (:func:`network_symmetry`) all do. Its parameters do not move: :attr:`Lift.symmetry` is the lift's own symmetry.

    **Layer by layer.** With ``layers="each"`` every layer of an ``nn.Sequential``, and of those inside it, is lifted in
    turn; one inside with a forward or hooks of its own counts as a single layer. The first layer is lifted as above.
    One that takes ``|G|`` times the channels is a map ``L`` of the whole fibre, and becomes ``g ↦ L(g⁻¹ · s)``, the
    fibre laid out in blocks, channel ``k · C + c``; all others act at each element alike. With ``align`` every feature
    map is turned back before ``L`` combines them, ``s(k) ↦ ρ(k) s(k)``, and then a convolution with kernels ``V_k``
    becomes the group convolution ``t'(g) = Σ_h (ρ(g) V_{g⁻¹h}) * t(h)`` of the turned-back ``t(g) = ρ(g) s(g)``. It is
    equivariant with or without. :func:`with_fibre_inputs` makes such a network of a plain one; on a plain one itself
    both kinds of lift are the same.

    **Noise and batches.** Each copy has a Dropout mask of its own, so in training mode a lift with Dropout is
    equivariant in law only; in evaluation mode it is so exactly. A BatchNorm in training mode sees the moved copies of
    all the batch, which are the same however its inputs were moved: the lift stays equivariant, but depends on the
    batch, and ``p`` then recovers ``F`` only in evaluation mode.

    :param net: a module or function from ``(N, *inputs.event_shape)`` to ``(N, *out)``.
    :param Symmetry symmetry: with ``inputs``, of a group that lists its elements; ``outputs`` where they move. Its
        sites play no part.
    :param str readout: see above.
    :param str layers: ``"global"`` or ``"each"``.
    :param bool align: with ``"each"``, whether feature maps are turned back before they are combined.
    :returns: a module with the network's parameters, buffers and modules under the network's own names: they share
        values and state dicts.
    :raises OptionError: for another option, a class instead of a module, a network that is no ``nn.Sequential`` or has
        a forward or hooks of its own for ``"each"``, or outputs that the read-out cannot move.
    :raises SymmetryError: without ``inputs``, or for a group that has no list of elements; when called, for inputs of
        another shape.
    :raises DataError: when called, for anything but one tensor.

    Source: Bao, Lu, Song, Hart-Hodgson, Parson, Zhou (2019) "Equivariant neural networks and equivarification",
    arXiv:1906.07172.

    >>> import torch, pyro_equivariance as pe
    >>> C4 = pe.CyclicGroup(4)
    >>> turning = pe.Symmetry(C4, {}, inputs=pe.image(C4, (1, 5, 5)))
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3), torch.nn.Tanh()).double()
    >>> lifted = pe.equivarify(net, turning)
    >>> x = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    >>> torch.allclose(lifted(x.rot90(1, (-2, -1))), lifted(x)), torch.allclose(net(x.rot90(1, (-2, -1))), net(x))
    (True, False)
    >>> model = pe.BayesianNetwork(lifted)
    >>> sorted(name for name, _ in model.net.named_parameters())
    ['1.bias', '1.weight']
    """
    check_option("readout", readout, READOUTS)
    check_option("layers", layers, WAYS)
    symmetry = needed(symmetry)
    if symmetry.inputs is None:
        raise SymmetryError(f"Expected inputs= in {symmetry}: how the group moves one input.")
    _ = symmetry.group.elements  # raises for a group that lists none, with the way out
    READOUTS[readout].check(symmetry)
    if isinstance(net, type):
        raise OptionError(f"Expected a torch module or a function; got the class {net.__name__}. Make one of it.")
    if not callable(net) or isinstance(net, NetworkModel):
        raise OptionError(f"Expected a torch module or a function; got {net!r}. A lift goes into pe.BayesianNetwork.")
    if layers == "each":
        need_layers_in_turn(net)
    return Lift(net if isinstance(net, nn.Module) else _Function(net), symmetry, readout, layers, align)


class Lift(nn.Module):
    """What :func:`equivarify` returns.

    It is another view of the network: parameters, buffers and modules are the network's own, under the same names, and
    so are its modes and what its state dict holds.
    """

    def __init__(self, net: nn.Module, symmetry: Symmetry, readout: str, layers: str, align: bool):
        training = net.training
        object.__setattr__(self, "_net", net)  # not registered as a part, for its parts are this module's
        super().__init__()
        net.training = training
        self._parameters, self._buffers, self._modules = net._parameters, net._buffers, net._modules
        self._non_persistent_buffers_set = net._non_persistent_buffers_set
        self._symmetry, self._readout, self._layers, self._align = symmetry, readout, layers, align
        self._actions: dict[tuple, Representation] = {}
        self._kind: dict[str, torch.dtype | torch.device] = {}  # of the inputs of the last call
        if taken := [
            n for n in (*net._parameters, *net._buffers, *net._modules) if n in vars(self) or hasattr(Lift, n)
        ]:
            raise OptionError(
                f"Expected a network without a part named {taken[0]!r}, which the lift has as well. Wrap it: "
                f"torch.nn.Sequential(net)."
            )

    @property
    def training(self) -> bool:
        """Whether the network is in training mode."""
        return self._net.training

    @training.setter
    def training(self, mode: bool) -> None:
        self._net.training = mode

    def train(self, mode: bool = True) -> "Lift":
        """Put the network in training mode, as it does so itself."""
        self._net.train(mode)
        return self

    def eval(self) -> "Lift":
        """Put the network in evaluation mode, as it does so itself."""
        self._net.eval()
        return self

    def _save_to_state_dict(self, *args) -> None:
        self._net._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args) -> None:
        self._net._load_from_state_dict(*args)

    @property
    def group(self) -> Group:
        """The group ``G``."""
        return self._symmetry.group

    @property
    def is_exact(self) -> bool:
        """Whether the lift is equivariant up to rounding; not where the action on inputs or outputs interpolates."""
        return not any(
            rep is not None and rep.is_approximate for rep in (self._symmetry.inputs, self._symmetry.outputs)
        )

    @property
    def outputs(self) -> Representation | None:
        """How the read-out and its labels move, exactly or (see :attr:`is_exact`) nearly; ``None`` where they stay.

        For the projection, which does not move so, it is the ``outputs`` that the lift was made with.

        :raises OptionError: for ``"joint"`` where the output is not logits ``(N, K)``.
        """
        return READOUTS[self._readout].moves(self._symmetry, self._output_shape)

    @property
    def symmetry(self) -> Symmetry:
        """The symmetry of the lift: its parameters stay, and :attr:`outputs` is how its read-out moves.

        A posterior of any kind is invariant under it, and so the predictive is equivariant: for guides, metrics,
        augmentation and :func:`~pyro_equivariance.to_arviz`.

        :raises SymmetryError: where the lift is approximate, or reads out the projection: then it has none.
        """
        if not self.is_exact or self._readout == "projection":
            why = "reads out the projection" if self.is_exact else "interpolates"
            raise SymmetryError(
                f"Expected a lift that is equivariant; this one {why}. For metrics and augmentation use "
                f"pe.Symmetry({self.group}, {{}}, inputs=..., outputs=lifted.outputs)."
            )
        sites = {name: trivial(self.group, parameter.shape) for name, parameter in self.named_parameters()}
        return Symmetry(self.group, sites, self._symmetry.inputs, self.outputs)

    @torch.no_grad()
    def _output_shape(self) -> torch.Size:
        """The shape of one output at one element, by running a copy of the network on two inputs."""
        net = copy.deepcopy(self).eval()
        return net.fibre(net._two_inputs()).shape[2:]

    def _two_inputs(self) -> Tensor:
        """Random numbers; where the last inputs were integers zeros, which every range of tokens or pixels has."""
        like, shape = next(self.parameters(), torch.zeros((), **self._kind)), self._symmetry.inputs.event_shape
        dtype = self._kind.get("dtype", like.dtype)
        if not dtype.is_floating_point:
            return torch.zeros(2, *shape, dtype=dtype, device=like.device)
        x = random_inputs(self, shape, torch.Generator().manual_seed(0))
        return x.to(like) if x.is_floating_point() else x.to(like.device)

    def forward(self, x: Tensor, *others, **named) -> Tensor:
        if isinstance(x, fx.Proxy):
            raise LayerError(
                "Expected a network whose layers can be read; got a lift, whose symmetry is lifted.symmetry. Read or "
                "expand the network that was lifted."
            )
        if others or named or not isinstance(x, Tensor):
            raise DataError("Expected one tensor as the input of a lift. Lift a function of it that holds all else.")
        return READOUTS[self._readout].read(self.fibre(x), self._symmetry)

    def fibre(self, x: Tensor) -> Tensor:
        """``F̂(x)``, whatever the read-out: ``(N, |G|, *out)``, the identity first."""
        self._kind = {"dtype": x.dtype, "device": x.device}
        copies, order = _moved_back(self._symmetry.inputs, x), len(self.group)
        copies = _run(self._net, copies) if self._layers == "global" else self._through_layers(copies)
        return copies.unflatten(0, (order, len(x))).transpose(0, 1)

    def _through_layers(self, copies: Tensor) -> Tensor:
        """Each layer lifted in turn."""
        need_layers_in_turn(self._net)
        action, passed = self._symmetry.inputs, ()
        for i, (_, _, layer) in enumerate(layer_places(self._net)):
            if i > 0 and takes_fibre(i, layer, copies.shape[1:], len(self.group)):
                copies = combined_fibres(copies, action if self._align else None, self.group, channel_axis(layer))
            copies = _run(layer, copies)
            passed += ((type(layer), is_bare(layer), copies.shape[1:]),)
            if passed not in self._actions:  # kept from the first call on
                self._actions[passed] = action_after(action, layer, copies.shape[1:])
            action = self._actions[passed]
        return copies

    def extra_repr(self) -> str:
        layers = [] if self._layers == "global" else [f"layers={self._layers!r}", f"align={self._align}"]
        return ", ".join(
            [repr(self.group), f"readout={self._readout!r}", *layers, *["approximate"] * (not self.is_exact)]
        )


class _Function(nn.Module):
    """A function as a module without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self._function = function

    def _get_name(self) -> str:
        return getattr(self._function, "__name__", type(self._function).__name__)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


# Read-outs


def _turned(fibre: Tensor, symmetry: Symmetry) -> Tensor:
    """``ρ_Y(g) s(g)``."""
    return fibre if symmetry.outputs is None else symmetry.outputs.act(symmetry.group.elements, fibre)


def _check_logits(out: torch.Size) -> None:
    if len(out) != 1:
        raise OptionError(
            f"Expected a network whose output is logits (N, K) for readout='joint'; got (N, *{tuple(out)})."
        )


def _joint(fibre: Tensor, symmetry: Symmetry) -> Tensor:
    _check_logits(fibre.shape[2:])
    return fibre.flatten(1)


def _joint_action(symmetry: Symmetry, shape: Callable[[], torch.Size]) -> Representation:
    out = shape()
    _check_logits(out)
    return regular(symmetry.group, out[0])


def _fibre_action(symmetry: Symmetry, shape: Callable[[], torch.Size]) -> Representation:
    out, permuted = shape(), regular(symmetry.group)
    return permuted * trivial(symmetry.group, out) if out else permuted


def _given_action(symmetry: Symmetry, shape: Callable[[], torch.Size]) -> Representation | None:
    return symmetry.outputs


def _any_outputs(symmetry: Symmetry) -> None:
    """Every action on outputs will do."""


def _permuted_outputs(symmetry: Symmetry) -> None:
    if symmetry.outputs is not None and not symmetry.outputs.is_permutation:
        raise OptionError(f"Expected outputs that are permuted for readout='max'; got {symmetry.outputs}. Use 'mean'.")


def _invariant_outputs(symmetry: Symmetry) -> None:
    if symmetry.outputs is not None:
        raise OptionError(f"Expected invariant classes, outputs=None, for readout='joint'; got {symmetry.outputs}.")


@dataclass(frozen=True)
class Readout:
    """What becomes of the fibre ``(N, |G|, *out)``, how that moves (finding ``out`` if need be), and what it takes."""

    read: Callable[[Tensor, Symmetry], Tensor]
    moves: Callable[[Symmetry, Callable[[], torch.Size]], Representation | None]
    check: Callable[[Symmetry], None] = _any_outputs


READOUTS = {
    "mean": Readout(lambda fibre, symmetry: _turned(fibre, symmetry).mean(1), _given_action),
    "max": Readout(lambda fibre, symmetry: _turned(fibre, symmetry).amax(1), _given_action, _permuted_outputs),
    "fibre": Readout(lambda fibre, symmetry: fibre, _fibre_action),
    "joint": Readout(_joint, _joint_action, _invariant_outputs),
    "projection": Readout(lambda fibre, symmetry: fibre[:, 0], _given_action),
}


# The fibre, inside with the elements and the batch as one axis, the elements first: (|G|·N, *event)


def _moved_back(inputs: Representation, x: Tensor) -> Tensor:
    """``ρ_X(g)⁻¹ x`` for every ``g``, laid out in memory as ``x`` is: ``(|G|·N, *event)``."""
    if x.ndim != 1 + len(inputs.event_shape):
        raise SymmetryError(f"Expected inputs (N, *{tuple(inputs.event_shape)}) for a lift; got {tuple(x.shape)}.")
    back = inputs.group.inverse(inputs.group.elements)
    moved = inputs.orbit(x).index_select(0, back.to(x.device)) if len(x) else inputs.act(back[:, None], x)
    copies = moved.flatten(0, 1)
    return _channels_last(copies) if x.ndim == 4 and x.stride(1) == 1 else copies


def _run(layer: nn.Module, copies: Tensor) -> Tensor:
    """The layer at every element, all in one batch."""
    out = layer(copies)
    if not isinstance(out, Tensor) or out.shape[:1] != copies.shape[:1]:
        found = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise DataError(
            f"Expected {layer._get_name()} to return one tensor with a row for each of its {len(copies)} inputs; "
            f"got {found}. Wrap it in a function that does."
        )
    return out
