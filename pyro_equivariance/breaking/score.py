"""The score: data and moved copies of other data, classified fold after fold."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..errors import DataError, OptionError
from ..symmetry import Symmetry
from .base import SymmetryBreaking, SymmetryBreakingTable, wilson_interval
from .classifier import called_moved
from .containment import MAX_LISTED, containments
from .reading import as_symmetry, check_options, is_matched, read

MAX_CLASSES = 1000
MARGIN = 2  # pixels, over which two interpolations may read beyond the edge


def symmetry_breaking_score(
    data,
    group,
    *,
    labels: bool = False,
    classifier: Callable[[], object] | None = None,
    folds: int = 5,
    level: float = 0.95,
    there_and_back: bool | None = None,
    seed: int = 0,
) -> SymmetryBreaking | SymmetryBreakingTable:
    """How well a classifier tells the data from moved copies, ``x`` from ``ρ(g) x``, ``g ≠ e``: 0.5 if symmetric.

    A fair coin says of each datum whether it is moved, by a ``g`` of its own, uniform over the elements other than
    ``e`` (of a continuous group or a measure as it is drawn), and no datum is used in both forms. The data are split
    into folds, and each fold but the first is classified after training on those before it. Under symmetry every answer
    on held-out data is then a fair coin, whatever the classifier and however many data, and symmetric data are called
    broken with probability at most ``(1 - level) / 2``. The best accuracy is ``(1 + TV(p, p')) / 2``, ``p'`` the law of
    the moved data: 0.5 only if ``p`` is invariant under the whole group, 1 for data in one pose.

    A score of 0.5 may also be that of a weak classifier or of few data, see :attr:`SymmetryBreaking.detectable`. A
    datum that is there several times, perhaps moved, is recognised from an earlier fold: give each once.

    :param data: ``(N, *event)``; or a pair of these and labels or targets, ``(N,)`` or ``(N, ...)``; or
        :class:`~pyro_equivariance.data.ImageData`.
    :param group: a representation on the event; a symmetry with ``inputs``; a group or measure, which then moves images
        ``(N, H, W)`` or ``(N, C, H, W)`` by :func:`pe.image`, bilinear if it has no list of elements, and vectors
        ``(N, n)`` by :func:`pe.vector`; or a list of these, for a table.
    :param bool labels: whether the law of ``(x, y)`` is tested, not that of ``x`` alone: labels are shown to the
        classifier, integers as one-hot, of at most 1,000 classes. They stay as they are, or move by the ``outputs`` of
        a symmetry.
    :param classifier: makes a new classifier: a network from ``(n, d)``, the event flattened and standardised, to
        ``(n, 1)`` logits of having been moved; or an object with ``fit(x, y)`` and ``predict(x)`` on arrays. Left out,
        two hidden layers of 64 units, trained by Adam with early stopping.
    :param int folds: at least 2, of at least 8 data each.
    :param float level: of the interval; of a table's intervals together.
    :param there_and_back: compare ``ρ(h⁻¹) ρ(h) x`` with ``ρ(h) ρ(h) x`` within the disc of the image, so that both are
        interpolated nearly alike, for images of at least 6 pixels a side; left out, for continuous groups whose
        representation interpolates.
    :param int seed: of the lots, the elements and the training; the global generator is left as it was.
    :returns: a :class:`SymmetryBreaking`, or a :class:`SymmetryBreakingTable` for a list.
    :raises DataError: for too few data, values that are not finite, or labels that do not fit.
    :raises SymmetryError: for a group that does not act on the data, or has no element but ``e``.
    :raises OptionError: for other values of the options.

    >>> import torch, pyro_equivariance as pe
    >>> x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([3.0, 0.0])
    >>> turns = pe.DihedralGroup(4)
    >>> table = pe.symmetry_breaking_score(x, [turns.subgroup(["s·r180"]), pe.CyclicGroup(4), turns])
    >>> [score.is_broken for score in table]
    [False, True, True]
    >>> table.largest.group.names  # (x, y) goes to (x, -y)
    ('e', 's·r180')
    """
    check_options(labels, classifier, folds, level, seed)
    x, y = read(data, labels, folds)
    groups = list(group) if isinstance(group, (list, tuple)) else [group]
    if not groups:
        raise OptionError("Expected a group, or a list of at least one; got an empty list.")
    symmetries = [as_symmetry(g, x) for g in groups]
    own_level = 1 - (1 - level) / len(groups)
    settings = [(s, is_matched(s.inputs, there_and_back)) for s in symmetries]
    scores = tuple(_score(x, y, *setting, classifier, folds, own_level, seed) for setting in settings)
    if not isinstance(group, (list, tuple)):
        return scores[0]
    return SymmetryBreakingTable(scores, *containments([s.inputs for s in symmetries], x[:8]), level)


def _score(x, y, symmetry, matched, classifier, folds, level, seed) -> SymmetryBreaking:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would change those of other devices as well
        fold, moved = _lots(len(x), folds)
        features, elements = _features(x, y, symmetry, moved, matched)
        calls = torch.zeros_like(moved)
        for k in range(1, folds):
            train, test = fold < k, fold == k
            calls[test] = called_moved(features[train], moved[train], features[test], classifier)
    held = fold > 0
    return _summary(symmetry, calls[held], moved[held], elements[held], level, matched)


def _lots(count: int, folds: int) -> tuple[Tensor, Tensor]:
    """The fold of every datum, and whether it is moved: a fair coin each, but half of the first fold, never held out.

    Were half of every fold moved, answers would not be independent, and wrong more or less often than coins.
    """
    order, place = torch.randperm(count), torch.arange(count)
    fold, moved = torch.empty_like(place), torch.empty(count, dtype=torch.bool)
    fold[order] = place * folds // count
    moved[order] = torch.where(place * folds < count, place % 2 == 0, torch.rand(count) < 0.5)
    return fold, moved


@torch.no_grad()
def _features(x, y, symmetry: Symmetry, moved: Tensor, matched: bool) -> tuple[Tensor, Tensor]:
    """What the classifier sees, ``(N, d)``, and the number of the element that each datum was moved by, 0 for none."""
    act, elements = symmetry.inputs.act, torch.zeros(len(x), dtype=torch.long)
    count = int(moved.sum())
    if symmetry.group.is_indexed:
        g = elements[moved] = _others(len(symmetry.group), count)
    else:
        g = symmetry.group.sample((count,))
    if matched:
        h = symmetry.group.sample((len(x) - count,))
        still = act(symmetry.group.inverse(h), act(h, x[~moved]))
        parts = _within_disc(still), _within_disc(act(g, act(g, x[moved])))
        g = symmetry.group.compose(g, g)
    else:
        parts = (x[~moved], act(g, x[moved]))
    features = torch.empty(len(x), x[0].numel(), dtype=torch.float64)
    features[~moved], features[moved] = (part.flatten(1).double() for part in parts)
    if y is not None:
        features = torch.cat([features, _targets(y, symmetry, moved, g)], 1)
    if not bool(torch.isfinite(features).all()):
        raise DataError(f"Expected moved copies that are finite; got NaN or inf under {symmetry.group}.")
    return features, elements


def _others(order: int, count: int) -> Tensor:
    """Elements other than ``e`` at random, as nearly equally often as can be."""
    if order - 1 > count:
        return 1 + torch.randint(order - 1, (count,))
    return 1 + (torch.arange(count) % (order - 1))[torch.randperm(count)]


def _within_disc(x: Tensor) -> Tensor:
    """Images ``(..., H, W)``, 0 outside a disc that two rotations with interpolation fill from inside the frame."""
    down, right = ((2 * torch.arange(n, dtype=torch.float64) + 1 - n) / 2 for n in x.shape[-2:])
    radius = min(x.shape[-2:]) / 2 - MARGIN
    return x * (down[:, None] ** 2 + right**2 <= radius**2).to(x)


def _targets(y: Tensor, symmetry: Symmetry, moved: Tensor, g: Tensor) -> Tensor:
    if symmetry.outputs is not None:
        y = y.clone()
        y[moved] = symmetry.act_outputs(g, y[moved]).to(y)
    return (y if y.is_floating_point() else _one_hot(y)).reshape(len(y), -1).double()


def _one_hot(y: Tensor) -> Tensor:
    classes, places = torch.unique(y, return_inverse=True)
    if len(classes) > MAX_CLASSES:
        raise OptionError(
            f"Expected at most {MAX_CLASSES:,} classes among integer labels; got {len(classes):,}. Give numbers as "
            f"floats: data=(x, labels.double())."
        )
    return one_hot(places, len(classes))


def _summary(symmetry: Symmetry, calls, moved, elements, level: float, matched: bool) -> SymmetryBreaking:
    group, count, right = symmetry.group, len(calls), int((calls == moved).sum())
    low, high = wilson_interval(right, count, level)
    named = _by_name(group, elements)
    return SymmetryBreaking(
        group=group,
        accuracy=right / count,
        low=low,
        high=high,
        level=level,
        count=count,
        by_element={name: float(calls[own].double().mean()) for name, own in named.items()},
        elements={name: int(own.sum()) for name, own in named.items()},
        has_traces=symmetry.inputs.is_approximate,
        compared=float(_within_disc(torch.ones(symmetry.inputs.event_shape)).mean()) if matched else None,
    )


def _by_name(group, elements: Tensor) -> dict[str, Tensor]:
    """Which of the data were moved by each element, of those that moved any."""
    if not group.is_indexed or len(group) > MAX_LISTED:
        return {}
    pairs = ((name, elements == g) for g, name in enumerate(group.names))
    return {name: own for name, own in pairs if own.any()}
