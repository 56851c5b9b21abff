"""The study ``breaking``: does the score of symmetry breaking name the group that the images were turned by?"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..breaking import SymmetryBreakingTable, symmetry_breaking_score
from ..data import ImageData
from ..groups import CyclicGroup, DihedralGroup, Group
from ..representations import image
from .study import StudyConfig, option, over_seeds, row_printer, shuffled

WORDS = "which of C2, C4 and D4 the score of symmetry breaking finds in images turned by them at random"
GROUPS = {"C2": CyclicGroup(2), "C4": CyclicGroup(4), "D4": DihedralGroup(4)}
POSES = ("upright", *GROUPS)  # C2 < C4 < D4: images turned by one are symmetric under it and those before it
DEFINITIONS = {
    "pose": "upright: images as they are; otherwise each image moved once, by a random element of that group, uniform "
    "and e included",
    "group": "that the score is of",
    "seed": "of the order of the images, their poses, and the score",
    "accuracy": "of telling held-out images from moved copies, g other than e; five folds, each but the first "
    "classified after training on those before it (--folds)",
    "low": "lower end of its Wilson interval; the three of one table hold together at --level (Bonferroni)",
    "high": "upper end",
    "count": "held-out images",
    "broken": "yes if so many right answers are too many for fair coins: exact binomial test, one-sided, at half of "
    "what the interval may miss",
    "expected": "yes if the pose's group does not contain the group: the law of the images is not invariant",
    "agrees": "whether the two are the same",
    "covers": "whether 0.5 is within the interval",
    "broken_by": "elements whose moved copies are called moved more often than the images are",
    "seconds": "wall-clock seconds of the table, the three groups together",
}
PICK_DEFINITIONS = {
    "pose": "as in the rows",
    "seed": "as in the rows",
    "largest": "the largest group under which no breaking was found, nor in a group that it contains",
    "agrees": "yes if it is the pose's group; for upright images, if it is none",
}


@dataclass(frozen=True)
class BreakingConfig(StudyConfig):
    """What :func:`run` depends on."""

    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "numbers separated by commas; of order, poses and training")
    images: int = option(1797, "images at most")
    folds: int = option(5, "of the score")
    level: float = option(0.95, "of the intervals of one table together, below 1")

    def small(self) -> dict:
        return {"images": 60, "folds": 2}


def run(config: BreakingConfig, data: ImageData) -> dict:
    """Score every pose with every seed, and compare with what was done to the images."""
    rows, picks = [], []
    show = row_printer((("pose", -8, ""), ("group", -6, ""), ("seed", 4, "d"), ("accuracy", 8, ".3f"),
                        ("low", 6, ".3f"), ("high", 6, ".3f"), ("count", 6, "d"), ("broken", 6, ""),
                        ("expected", 8, ""), ("agrees", 6, ""), ("seconds", 7, ".1f")))  # fmt: skip
    for seed in config.seeds:
        x, _ = shuffled(data, seed, 16)
        for pose in POSES:
            start = time.perf_counter()
            table = symmetry_breaking_score(
                turned(x[: config.images], GROUPS.get(pose), seed),
                list(GROUPS.values()),
                folds=config.folds,
                level=config.level,
                seed=seed,
            )
            rows += _rows(table, pose, seed, time.perf_counter() - start)
            picks.append(_pick(table, pose, seed))
            for row in rows[-len(GROUPS) :]:
                show(row)
    summary = [_summary(rows, pose, group) for pose in POSES for group in GROUPS]
    right, named = (sum(r["agrees"] == "yes" for r in found) for found in (rows, picks))
    symmetric = [r for r in rows if r["expected"] == "no"]
    covering = sum(r["covers"] == "yes" for r in symmetric)
    print(f"\n{right} of {len(rows)} scores agree with what was done to the images, {named} of {len(picks)} times the "
          f"largest group is the right one; of {len(symmetric)} intervals of symmetric images {covering} hold 0.5\n"
          "mean accuracy ± standard deviation over seeds")  # fmt: skip
    for s in summary:
        print(f"{s['pose']}, {s['group']}: {s['accuracy']['mean']:.3f} ± {s['accuracy']['sd']:.3f}")
    return {"pick_definitions": PICK_DEFINITIONS, "rows": rows, "picks": picks, "summary": summary,
            "agreements": right, "named": named, "symmetric": len(symmetric), "covering": covering}  # fmt: skip


def turned(x: Tensor, group: Group | None, seed: int) -> Tensor:
    """Each image moved by a random element, or as it is without a group.

    >>> turned(torch.eye(2)[None, None], CyclicGroup(4), seed=0).shape
    torch.Size([1, 1, 2, 2])
    """
    if group is None:
        return x
    lots = torch.randint(len(group), (len(x),), generator=torch.Generator().manual_seed(seed))
    return image(group, x.shape[1:]).act(lots, x)


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _rows(table: SymmetryBreakingTable, pose: str, seed: int, seconds: float) -> list[dict]:
    found = []
    for name, score in zip(GROUPS, table, strict=True):
        expected = POSES.index(name) > POSES.index(pose)
        found.append({
            "pose": pose,
            "group": name,
            "seed": seed,
            "accuracy": score.accuracy,
            "low": score.low,
            "high": score.high,
            "count": score.count,
            "broken": _yes(score.is_broken),
            "expected": _yes(expected),
            "agrees": _yes(score.is_broken == expected),
            "covers": _yes(score.low <= 0.5 <= score.high),
            "broken_by": " ".join(score.broken_by),
            "seconds": seconds,
        })  # fmt: skip
    return found


def _pick(table: SymmetryBreakingTable, pose: str, seed: int) -> dict:
    names = {group: name for name, group in GROUPS.items()}
    largest = names[table.largest.group] if table.largest else "none"
    return {"pose": pose, "seed": seed, "largest": largest, "agrees": _yes(largest == pose.replace("upright", "none"))}


def _summary(rows: list[dict], pose: str, group: str) -> dict:
    own = [r for r in rows if (r["pose"], r["group"]) == (pose, group)]
    return {
        "pose": pose,
        "group": group,
        "accuracy": over_seeds([r["accuracy"] for r in own]),
        "agreements": sum(r["agrees"] == "yes" for r in own),
    }
