"""The catalogue of layers whose symmetry is known."""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import LayerError
from ..representations import Representation, image
from .base import Feature, LayerRule, probe, resample


class Pointwise(LayerRule):
    """Acts on each entry alone, so it commutes with every permutation; Dropout does so in law."""

    def read(self, name, layer, feature, reader):
        if not feature.channels.is_permutation:
            raise LayerError(
                f"Expected features that are permuted before the activation {name!r}; got {feature.channels}."
            )
        return feature, {}


class Pooling(LayerRule):
    """Acts on each channel's image alone; whether the windows fit the turns is left to ``Symmetry.check``."""

    def read(self, name, layer, feature, reader):
        _need_space(name, layer, feature)
        return feature.resized(layer(probe(feature)).shape[2:]), {}


class Flatten(LayerRule):
    """Channels and space become one axis."""

    def read(self, name, layer, feature, reader):
        if (layer.start_dim, layer.end_dim) not in ((1, -1), (1, len(feature.shape))):
            raise LayerError(f"Expected Flatten from axis 1 to the last for {name!r}; got {layer}.")
        return feature.flattened(), {}


class Convolution(LayerRule):
    """``W ↦ ρ_out(g) W ρ_in(g)⁻¹``, the kernel turned in space; the bias moves with the output channels."""

    def read(self, name, layer, feature, reader):
        _need_space(name, layer, feature)
        if layer.groups != 1 or set(layer.stride) != {1}:
            raise LayerError(
                f"Expected stride 1 and groups 1 for the convolution {name!r}; got stride {layer.stride}, groups "
                f"{layer.groups}. Pool after the convolution instead of striding."
            )
        if layer.padding == "same" and any(k % 2 == 0 for k in layer.kernel_size):
            raise LayerError(f"Expected an odd kernel for padding='same' in {name!r}; got {layer.kernel_size}.")
        out = reader.output_channels(name, layer.out_channels)
        kernel = out * feature.channels.dual * image(reader.group, layer.kernel_size)
        space = _convolved(layer, feature.space)
        return Feature(out, space, hidden=True), _with_bias(layer, kernel, out)

    def widen(self, layer, inputs, outputs):
        wide = type(layer)(
            layer.in_channels * inputs,
            layer.out_channels * outputs,
            layer.kernel_size,
            padding=layer.padding,
            dilation=layer.dilation,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
        )
        return wide.to(layer.weight)


class Dense(LayerRule):
    """``W ↦ ρ_out(g) W ρ_in(g)⁻¹`` on the last axis; after a Flatten the inputs are channels × pixels."""

    def read(self, name, layer, feature, reader):
        if feature.space:
            raise LayerError(
                f"Expected features without space before the linear layer {name!r}; put a Flatten before it."
            )
        out = reader.output_channels(name, layer.out_features)
        return Feature(out, hidden=True), _with_bias(layer, out * feature.channels.dual, out)

    def widen(self, layer, inputs, outputs):
        wide = nn.Linear(layer.in_features * inputs, layer.out_features * outputs, bias=layer.bias is not None)
        return wide.to(layer.weight)


def _with_bias(layer: nn.Module, weight: Representation, out: Representation) -> dict[str, Representation]:
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": out}


def _convolved(layer: nn.Conv2d, space: tuple[int, ...]) -> tuple[int, ...]:
    """The size of the layer's output, from one channel of zeros."""
    kernel = torch.zeros(1, 1, *layer.kernel_size)
    return tuple(F.conv2d(torch.zeros(1, 1, *space), kernel, padding=layer.padding, dilation=layer.dilation).shape[2:])


def _need_space(name: str, layer: nn.Module, feature: Feature) -> None:
    if len(feature.space) != 2:
        raise LayerError(
            f"Expected images (C, H, W) before {name!r} ({type(layer).__name__}); got {tuple(feature.shape)}."
        )


_POINTWISE = (nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
              nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.Hardswish)  # fmt: skip
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout2d)

LAYERS: dict[type[nn.Module], LayerRule] = {
    **dict.fromkeys(_POINTWISE, Pointwise()),
    **dict.fromkeys(_POOLING, Pooling()),
    nn.Flatten: Flatten(),
    nn.Conv2d: Convolution(),
    nn.Linear: Dense(),
}

FUNCTIONS = {
    **dict.fromkeys(
        (torch.relu, F.relu, torch.tanh, torch.sigmoid, F.gelu, F.silu, F.elu, F.softplus, F.leaky_relu, F.dropout),
        nn.Identity,
    ),
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    torch.flatten: nn.Flatten,
}
METHODS = {"relu": nn.Identity, "tanh": nn.Identity, "sigmoid": nn.Identity, "flatten": nn.Flatten}


def stand_in(function, args: tuple, kwargs: dict) -> nn.Module | None:
    """The module that does what a function or tensor method with these arguments does, if there is one."""
    table = METHODS if isinstance(function, str) else FUNCTIONS
    if function not in table:
        return None
    module = table[function]
    return nn.Identity() if module is nn.Identity else module(*args, **kwargs)


def widened(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A layer of the same kind with ``inputs`` and ``outputs`` times the channels."""
    return resample(LAYERS[type(layer)].widen(layer, inputs, outputs), layer)
