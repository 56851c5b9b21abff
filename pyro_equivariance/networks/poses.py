"""Labels of (class, pose), for a lift that reads out both."""

import torch
from torch import Tensor

from ..errors import DataError
from ..groups import Group
from ..symmetry import Symmetry


def joint_labels(labels: Tensor, poses: Tensor | int, classes: int) -> Tensor:
    """The labels of ``readout="joint"``: ``pose · K + class``. Upright data have pose 0, the identity.

    :param Tensor labels: classes, integers from 0 to ``classes - 1``.
    :param Tensor poses: elements of the group, that broadcast against ``labels``.
    :param int classes: K.
    :raises DataError: for labels that are no classes.

    >>> joint_labels(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 3]), classes=10)
    tensor([ 0,  2, 31])
    """
    if labels.is_floating_point() or (labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise DataError(f"Expected integer labels between 0 and {classes - 1}; got {labels.dtype}, or others.")
    return torch.as_tensor(poses, device=labels.device) * classes + labels


def joint_data(
    symmetry: Symmetry, x: Tensor, labels: Tensor, classes: int, poses: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs moved from upright, ``ρ_X(g_n) x_n``, and their joint labels.

    :param Symmetry symmetry: with ``inputs``.
    :param Tensor x: upright inputs ``(N, *inputs.event_shape)``.
    :param Tensor labels: their classes, ``(N,)``.
    :param int classes: K.
    :param Tensor poses: ``g_n``; left out, uniform.
    :returns: ``(N, *inputs.event_shape)`` and ``(N,)``.

    >>> import pyro_equivariance as pe
    >>> C4 = pe.CyclicGroup(4)
    >>> turning = pe.Symmetry(C4, {}, inputs=pe.image(C4, (2, 2)))
    >>> x = torch.tensor([[[1, 2], [3, 4]]])
    >>> joint_data(turning, x, torch.tensor([7]), classes=10, poses=torch.tensor([1]))
    (tensor([[[2, 4],
             [1, 3]]]), tensor([17]))
    """
    poses = symmetry.group.sample((len(x),)) if poses is None else symmetry.group.as_elements(poses)
    return symmetry.act_inputs(poses, x), joint_labels(labels, poses, classes)


def class_and_pose(probs: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """From probabilities of (class, pose) those of the class, which are invariant, and those of the pose.

    :param Tensor probs: ``(..., |G|·K)``, as ``readout="joint"`` lays them out, after a softmax.
    :returns: ``(..., K)`` and ``(..., |G|)``.
    :raises DataError: for a last axis that ``|G|`` does not divide.

    >>> import pyro_equivariance as pe
    >>> class_and_pose(torch.tensor([0.0, 0.75, 0.0, 0.25]), pe.CyclicGroup(2))
    (tensor([0., 1.]), tensor([0.7500, 0.2500]))
    """
    if probs.shape[-1] % len(group):
        raise DataError(f"Expected (class, pose) probabilities (..., {len(group)}·K); got {tuple(probs.shape)}.")
    blocks = probs.unflatten(-1, (len(group), -1))
    return blocks.sum(-2), blocks.sum(-1)
