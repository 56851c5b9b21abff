"""The catalogue of layers whose symmetry is known."""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import LayerError, SymmetryError
from ..representations import Representation, Trivial, is_grid, kernel_of, resized, trivial
from .base import Feature, LayerRule, UnlikeActions, probe, resample

SHAPES = {1: "sequences (C, L)", 2: "images (C, H, W)", 3: "volumes (C, D, H, W)"}


class Residual(nn.Module):
    """``branch(x) + shortcut(x)``; without a shortcut ``branch(x) + x``.

    :param Module branch: any layers.
    :param Module shortcut: likewise, to the same shape; left out, the input itself.

    >>> import torch
    >>> Residual(torch.nn.Linear(4, 4))(torch.zeros(2, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x):
        return self.branch(x) + self.shortcut(x)


class Pointwise(LayerRule):
    """Acts on each entry alone, so it commutes with every permutation; Dropout does so in law."""

    def read(self, name, layer, feature, reader):
        need_permutation(name, feature, "the activation")
        return feature, {}


class Odd(LayerRule):
    """Acts on each entry alone, and ``f(-x) = -f(x)``: it commutes with signed permutations as well."""

    def read(self, name, layer, feature, reader):
        if not (feature.representation.is_monomial and feature.representation.is_orthogonal):
            need_permutation(name, feature, "the activation")
        return feature, {}


class Softmax(LayerRule):
    """Permuted entries of an axis that moves alone have permuted probabilities."""

    def read(self, name, layer, feature, reader):
        need_permutation(name, feature, "the softmax")
        if layer.dim is None or feature.factor_of(layer.dim) is None:
            raise LayerError(f"Expected the softmax {name!r} over one axis that moves alone; got dim={layer.dim}.")
        return feature, {}


class Pooling(LayerRule):
    """Acts on each channel's space alone; whether the windows fit the action is left to ``Symmetry.check``."""

    def read(self, name, layer, feature, reader):
        channels, space = channels_and_space(name, layer, feature)
        if isinstance(layer, _MAXIMA):
            need_permutation(name, feature, "the maximum")
        if isinstance(layer, _DROPOUTS):
            return feature, {}
        shape = layer(probe(feature)).shape[2:]
        if not (is_grid(space) or (shape.numel() == 1 and space.is_permutation)):
            raise LayerError(
                f"Expected the pooling {name!r} over a grid, or over all places at once; {space} has no neighbours."
            )
        return feature.with_factors((channels, _resized(name, space, shape))), {}


class Flatten(LayerRule):
    """Neighbouring axes become one."""

    def read(self, name, layer, feature, reader):
        flat = feature.flattened(layer.start_dim, layer.end_dim) if layer.start_dim != 0 else None
        if flat is None:
            raise LayerError(
                f"Expected Flatten of axes that move on their own, such as from axis 1 to the last, for {name!r}; got "
                f"{layer}."
            )
        return flat, {}


class Convolution(LayerRule):
    """``W ↦ ρ_out(g) W ρ_in(g)⁻¹``, the kernel turned in space; the bias moves with the output channels."""

    mixes = True

    def read(self, name, layer, feature, reader):
        channels, space = channels_and_space(name, layer, feature)
        if layer.groups != 1:
            raise LayerError(f"Expected groups 1 for the convolution {name!r}; got groups {layer.groups}.")
        if layer.padding == "same" and any(k % 2 == 0 for k in layer.kernel_size):
            raise LayerError(f"Expected an odd kernel for padding='same' in {name!r}; got {layer.kernel_size}.")
        out = reader.output_channels(name, layer.out_channels, feature)
        around = _kernel(name, space, layer.kernel_size)
        moved = _resized(name, space, _single(layer)(torch.zeros(1, 1, *space.event_shape)).shape[2:])
        if set(layer.stride) != {1} and not isinstance(space, Trivial):
            _check_stride(name, layer, space, around, moved)
        return feature.after_layer((out, moved)), _with_bias(layer, out * channels.dual * around, out)

    def widen(self, layer, inputs, outputs):
        wide = type(layer)(
            layer.in_channels * inputs, layer.out_channels * outputs, bias=layer.bias is not None, **_kind(layer)
        )
        return wide.to(layer.weight)


class Dense(LayerRule):
    """``W ↦ ρ_out(g) W ρ_in(g)⁻¹`` on the last axis, the same at every place of the axes before it."""

    mixes = True

    def read(self, name, layer, feature, reader):
        *places, channels = feature.factors
        if len(channels.event_shape) != 1:
            raise LayerError(
                f"Expected features without space before the linear layer {name!r}; put a Flatten before it."
            )
        out = reader.output_channels(name, layer.out_features, feature, -1)
        return feature.after_layer((*places, out)), _with_bias(layer, out * channels.dual, out)

    def widen(self, layer, inputs, outputs):
        wide = nn.Linear(layer.in_features * inputs, layer.out_features * outputs, bias=layer.bias is not None)
        return wide.to(layer.weight)


class Embedding(LayerRule):
    """A row of channels for each token; tokens keep their meaning, so only the channels of the table move."""

    mixes = True

    def read(self, name, layer, feature, reader):
        if layer.padding_idx is not None or layer.max_norm is not None:
            raise LayerError(f"Expected an Embedding without padding_idx and max_norm; got {layer} as {name!r}.")
        out = reader.output_channels(name, layer.embedding_dim, feature, -1)
        table = trivial(reader.group, layer.num_embeddings) * out
        return feature.after_layer((*feature.factors, out)), {"weight": table}


class Attention(LayerRule):
    """Self-attention over tokens ``(places, channels)``, which may be permuted; the group must map heads to heads.

    The projections move as linear layers do, ``q``, ``k`` and ``v`` alike. It returns the output and no weights.
    """

    mixes = True

    def read(self, name, layer, feature, reader):
        if len(feature.factors) != 2 or any(len(f.event_shape) != 1 for f in feature.factors):
            raise LayerError(f"Expected tokens (places, channels) before {name!r}; got {tuple(feature.shape)}.")
        if not layer.batch_first or not layer._qkv_same_embed_dim or layer.bias_k is not None:
            raise LayerError(
                f"Expected batch_first=True, equal dimensions and no bias_k for the attention {name!r}; got {layer}."
            )
        need_permutation(name, feature, "the attention")
        places, channels = feature.factors
        hidden = reader.inner_channels(name, layer.embed_dim, feature)
        if not permutes_blocks(hidden, layer.num_heads):
            raise LayerError(
                f"Expected channels of the attention {name!r} that move head by head; {hidden} does not keep its "
                f"{layer.num_heads} heads together. Use, for example, a multiple of {len(reader.group)} heads, or one."
            )
        out = reader.output_channels(name, layer.embed_dim, feature, -1)
        own = {
            "in_proj_weight": (hidden + hidden + hidden) * channels.dual,
            "out_proj.weight": out * hidden.dual,
        }
        if layer.in_proj_bias is not None:
            own |= {"in_proj_bias": hidden + hidden + hidden, "out_proj.bias": out}
        return feature.after_layer((places, out)), own


class BatchNormalization(LayerRule):
    """Each channel by its mean and variance over the batch and its space; the affine parameters move with it."""

    def read(self, name, layer, feature, reader):
        if layer.track_running_stats:
            raise LayerError(
                f"Expected normalisation without running statistics for {name!r}: they are buffers that training fills "
                f"channel by channel and no action moves. Use track_running_stats=False, GroupNorm or LayerNorm."
            )
        need_permutation(name, feature, "the normalisation")
        channels = feature.factors[0]
        return feature, {parameter: channels for parameter, _ in layer.named_parameters()}

    def widen(self, layer, inputs, outputs):
        affine = layer.weight is not None
        wide = type(layer)(
            layer.num_features * inputs, eps=layer.eps, momentum=layer.momentum, affine=affine,
            track_running_stats=False,
        )  # fmt: skip
        return wide.to(layer.weight) if affine else wide


class GroupNormalization(LayerRule):
    """Channels in groups, each by the mean and variance over its group and space; the group must map these blocks
    of channels to one another."""

    def read(self, name, layer, feature, reader):
        need_permutation(name, feature, "the normalisation")
        channels = feature.factors[0]
        if not permutes_blocks(channels, layer.num_groups):
            group, count = reader.group, channels.event_shape[0]
            raise UnlikeActions(
                f"Expected channels that move group by group in {name!r}; {channels} does not keep its "
                f"{layer.num_groups} groups together. Use, for example, a multiple of "
                f"{len(group) if group.is_indexed else count}, or one.",
                channels,
                trivial(group, count),
            )
        return feature, {parameter: channels for parameter, _ in layer.named_parameters()}

    def widen(self, layer, inputs, outputs):
        wide = nn.GroupNorm(layer.num_groups * inputs, layer.num_channels * inputs, layer.eps, layer.affine)
        return wide.to(layer.weight) if layer.affine else wide


class LayerNormalization(LayerRule):
    """The last axes by their mean and variance; the affine parameters move as these axes do."""

    def read(self, name, layer, feature, reader):
        need_permutation(name, feature, "the normalisation")
        normalised = _last_factors(feature, len(layer.normalized_shape))
        if normalised is None or normalised.event_shape != layer.normalized_shape:
            raise LayerError(
                f"Expected the LayerNorm {name!r} over whole axes of the features {tuple(feature.shape)}; got "
                f"{tuple(layer.normalized_shape)}."
            )
        return feature, {parameter: normalised for parameter, _ in layer.named_parameters()}

    def widen(self, layer, inputs, outputs):
        channels, *space = layer.normalized_shape
        wide = nn.LayerNorm((channels * inputs, *space), layer.eps, layer.elementwise_affine, layer.bias is not None)
        return wide.to(layer.weight) if layer.elementwise_affine else wide


def need_permutation(name: str, feature: Feature, what: str) -> None:
    """Raise unless the features are permuted."""
    if not feature.representation.is_permutation:
        raise LayerError(
            f"Expected features that are permuted before {what} {name!r}; got {feature.representation}. Put a layer "
            f"with hidden channels before it."
        )


def channels_and_space(name: str, layer: nn.Module, feature: Feature) -> tuple[Representation, Representation]:
    """The two factors that a convolution or pooling needs."""
    axes = [len(factor.event_shape) for factor in feature.factors]
    wanted = next((n for n in SHAPES if type(layer).__name__.endswith(f"{n}d")), None)  # Upsample takes all of them
    if len(axes) != 2 or axes[0] != 1 or wanted not in (None, axes[1]):
        what = SHAPES[wanted or 2]
        raise LayerError(f"Expected {what} before {name!r} ({type(layer).__name__}); got {tuple(feature.shape)}.")
    return feature.factors


def permutes_blocks(channels: Representation, blocks: int) -> bool:
    """Whether the group maps ``blocks`` equal runs of neighbouring channels onto one another."""
    block_of = torch.arange(channels.event_shape[0]) // (channels.event_shape[0] // blocks)
    for g in channels.group.generators:
        moved = channels.act(g, block_of).reshape(blocks, -1)
        if not bool((moved == moved[:, :1]).all()):
            return False
    return True


def _with_bias(layer: nn.Module, weight: Representation, out: Representation) -> dict[str, Representation]:
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": out}


def _kind(layer: nn.Module) -> dict:
    """What a convolution is, besides its channels."""
    return {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}


def _single(layer: nn.Module) -> nn.Module:
    """The same convolution of one channel, without a bias and without a draw for its weights."""
    return nn.utils.skip_init(type(layer), 1, 1, **_kind(layer), bias=False)


@torch.no_grad()
def _check_stride(name: str, layer: nn.Module, space, around, moved) -> None:
    """Raise unless a strided convolution of one channel commutes with the action."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, *space.event_shape, generator=generator)
    kernel = torch.randn(1, 1, *layer.kernel_size, generator=generator)
    single, turned = _single(layer), _single(layer)
    single.weight.copy_(kernel)
    for g in space.group.generators:
        turned.weight.copy_(around.act(g, kernel))
        gap = turned(space.act(g, x)) - moved.act(g, single(x))
        if gap.abs().max() > 1e-4 * x.abs().max() * kernel.numel():
            raise LayerError(
                f"Expected a stride that commutes with {space.group} for the convolution {name!r}; stride "
                f"{layer.stride} visits other places once {tuple(space.event_shape)} is moved. Choose the size so that "
                f"size + 2 · padding − kernel is a multiple of the stride, or pool after the convolution."
            )


def _resized(name: str, space: Representation, shape) -> Representation:
    try:
        return resized(space, shape)
    except SymmetryError as error:
        raise LayerError(f"Expected {name!r} to keep the symmetry of its places. {error}") from error


def _kernel(name: str, space: Representation, size) -> Representation:
    try:
        return kernel_of(space, size)
    except SymmetryError as error:
        raise LayerError(f"Expected a kernel that the group can move in {name!r}. {error}") from error


def _last_factors(feature: Feature, axes: int) -> Representation | None:
    """The product of the last factors that have ``axes`` axes together."""
    chosen = None
    for factor in reversed(feature.factors):
        chosen = factor if chosen is None else factor * chosen
        if len(chosen.event_shape) >= axes:
            break
    return chosen if len(chosen.event_shape) == axes else None


_POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Softplus,
              nn.ReLU6, nn.Hardswish, nn.Hardtanh, nn.LogSigmoid)  # fmt: skip
_ODD = (nn.Identity, nn.Dropout, nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink)
_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POOLING = (*_MAXIMA, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d, *_DROPOUTS, nn.Upsample)  # fmt: skip
_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMALIZATIONS = (*_BATCH, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # whose weights are gains

LAYERS: dict[type[nn.Module], LayerRule] = {
    **dict.fromkeys(_POINTWISE, Pointwise()),
    **dict.fromkeys(_ODD, Odd()),
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax), Softmax()),
    **dict.fromkeys(_POOLING, Pooling()),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), Convolution()),
    **dict.fromkeys(_BATCH, BatchNormalization()),
    nn.GroupNorm: GroupNormalization(),
    nn.LayerNorm: LayerNormalization(),
    nn.Flatten: Flatten(),
    nn.Linear: Dense(),
    nn.Embedding: Embedding(),
    nn.MultiheadAttention: Attention(),
}

FUNCTIONS = {
    **dict.fromkeys(
        (torch.relu, F.relu, torch.sigmoid, F.sigmoid, F.gelu, F.silu, F.elu, F.softplus, F.leaky_relu, torch.exp),
        nn.ReLU,
    ),
    **dict.fromkeys((torch.tanh, F.tanh, F.dropout), nn.Identity),
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.avg_pool3d: nn.AvgPool3d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_avg_pool3d: nn.AdaptiveAvgPool3d,
    F.softmax: nn.Softmax,
    torch.softmax: nn.Softmax,
    torch.flatten: nn.Flatten,
}
METHODS = {"relu": nn.ReLU, "tanh": nn.Identity, "sigmoid": nn.ReLU, "flatten": nn.Flatten, "softmax": nn.Softmax}
_ENTRYWISE = (nn.ReLU, nn.Identity)


def stand_in(function, args: tuple, kwargs: dict) -> nn.Module | None:
    """The module that does what a function or tensor method with these arguments does, if there is one."""
    table = METHODS if isinstance(function, str) else FUNCTIONS
    if function not in table:
        return None
    module = table[function]
    if module in _ENTRYWISE:
        return module()
    if module is nn.Flatten:  # which starts at axis 1 unless told otherwise, unlike the function
        return nn.Flatten(*(args or [kwargs.pop("start_dim", 0)]), **kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("_stacklevel", "dtype")}
    return module(*args, **kwargs)


def widened(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A layer of the same kind with ``inputs`` and ``outputs`` times the channels."""
    return resample(LAYERS[type(layer)].widen(layer, inputs, outputs), layer)
