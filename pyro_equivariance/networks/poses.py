"""Labels of (class, pose), for a lift that reads out both."""

import torch
from torch import Tensor

from ..errors import DataError
from ..groups import Group
from ..symmetry import Symmetry

SUM_TOLERANCE = 1e-3  # catches logits and log-probabilities, lets half precision pass


def joint_labels(labels: Tensor, poses: Tensor | int, classes: int) -> Tensor:
    """The labels of ``readout="joint"``: ``pose · K + class``. Upright data have pose 0, the identity.

    :param Tensor labels: classes, integers from 0 to ``classes - 1``.
    :param poses: elements of the group, integers of the shape of ``labels``, or one for all. That they are less than
        ``|G|``, which is not known here, :func:`joint_data` and a categorical likelihood check.
    :param int classes: K.
    :raises DataError: for labels that are no classes, or poses that are negative, no integers or of another shape.

    >>> joint_labels(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 3]), classes=10)
    tensor([ 0,  2, 31])
    """
    poses = torch.as_tensor(poses, device=labels.device)
    if not _are_integers(labels) or bool((labels < 0).any() | (labels >= classes).any()):
        raise DataError(f"Expected integer labels between 0 and {classes - 1}; got {labels.dtype}, or others.")
    if not _are_integers(poses) or bool((poses < 0).any()):
        raise DataError(f"Expected poses as integers from 0 on, elements of the group; got {poses.dtype}, or others.")
    if poses.ndim and poses.shape != labels.shape:
        raise DataError(
            f"Expected a pose for each of the labels {tuple(labels.shape)}, or one for all; got {tuple(poses.shape)}."
        )
    return poses * classes + labels


def _are_integers(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


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
    :raises DataError: for a last axis that ``|G|`` does not divide, or rows that are no probabilities, such as logits.

    >>> import pyro_equivariance as pe
    >>> class_and_pose(torch.tensor([0.0, 0.75, 0.0, 0.25]), pe.CyclicGroup(2))
    (tensor([0., 1.]), tensor([0.7500, 0.2500]))
    """
    if not probs.ndim or probs.shape[-1] % len(group):
        raise DataError(f"Expected (class, pose) probabilities (..., {len(group)}·K); got {tuple(probs.shape)}.")
    if not bool(((probs.double().sum(-1) - 1).abs() <= SUM_TOLERANCE).all() & (probs >= 0).all()):
        raise DataError(
            "Expected probabilities that sum to one over the last axis. Take a softmax of the logits first."
        )
    blocks = probs.unflatten(-1, (len(group), -1))
    return blocks.sum(-2), blocks.sum(-1)
