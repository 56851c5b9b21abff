"""The studies behind the theory: one registry, and what running one of them writes."""

import csv
import io
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch

from . import (
    affine,
    assumptions,
    augmenters,
    breaking,
    certificates,
    ensembles,
    families,
    generators,
    priors,
    relaxed,
    samples,
)
from .base import check_writable, finite, torch_threads, write_json, write_whole
from .study import StudyConfig, load_images


@dataclass(frozen=True)
class Study:
    """A study: what it is in words, its configuration, the function that runs it, and what its columns mean.

    ``run(config, data)`` prints a table while it works and returns ``rows``, one dict for each line of the CSV, whose
    keys are those of ``definitions``, and whatever else belongs to it. The function of its name in ``figures``
    draws it.
    """

    words: str
    config: type[StudyConfig]
    run: Callable[..., dict]
    definitions: dict[str, str]


STUDIES = {
    "priors": Study(priors.WORDS, priors.PriorsConfig, priors.run, priors.DEFINITIONS),
    "samples": Study(samples.WORDS, samples.SamplesConfig, samples.run, samples.DEFINITIONS),
    "families": Study(families.WORDS, families.FamiliesConfig, families.run, families.DEFINITIONS),
    "assumptions": Study(assumptions.WORDS, assumptions.AssumptionsConfig, assumptions.run, assumptions.DEFINITIONS),
    "certificate": Study(
        certificates.WORDS, certificates.CertificateConfig, certificates.run, certificates.DEFINITIONS
    ),
    "relaxed": Study(relaxed.WORDS, relaxed.RelaxedConfig, relaxed.run, relaxed.DEFINITIONS),
    "augmenters": Study(augmenters.WORDS, augmenters.AugmentersConfig, augmenters.run, augmenters.DEFINITIONS),
    "affine": Study(affine.WORDS, affine.AffineConfig, affine.run, affine.DEFINITIONS),
    "breaking": Study(breaking.WORDS, breaking.BreakingConfig, breaking.run, breaking.DEFINITIONS),
    "generators": Study(generators.WORDS, generators.GeneratorsConfig, generators.run, generators.DEFINITIONS),
    "ensembles": Study(ensembles.WORDS, ensembles.EnsemblesConfig, ensembles.run, ensembles.DEFINITIONS),
}


def run_study(name: str, config: StudyConfig) -> dict:
    """Run a study and write ``<name>.json``, ``<name>.csv`` and ``<name>.png`` below ``config.out``.

    :param str name: of ``STUDIES``.
    :param StudyConfig config: of that study's kind.
    :returns: the content of the JSON file.
    :raises SymmetryError: for options or data that cannot be used, before anything is trained.
    """
    from . import figures  # matplotlib is needed now, and only now

    study, start = STUDIES[name], time.perf_counter()
    data = load_images(config)
    out = check_writable(config.out, [f"{name}.{kind}" for kind in ("json", "csv", "png")], folders=())
    shape = list(data.images.shape)
    print(f"{name}: {study.words}\n{data.name}, {shape[0]:,} images of {shape[2]} × {shape[3]}, seeds "
          f"{', '.join(map(str, config.seeds))}\n")  # fmt: skip
    with torch_threads(config.threads), pyro.get_param_store().scope():
        found = study.run(config, data)
    result = {
        "study": name,
        "config": config.as_dict(),
        "versions": {"torch": torch.__version__, "pyro": pyro.__version__, "python": platform.python_version()},
        "data": {"name": data.name, "shape": shape, "classes": data.classes},
        "definitions": study.definitions,
        "seconds": time.perf_counter() - start,
        **found,
    }
    write_whole(out / f"{name}.csv", as_csv(result["rows"]))
    figures.save(getattr(figures, name)(result), out / f"{name}.png")
    write_json(out / f"{name}.json", result)
    print(f"\n{result['seconds']:.0f} s; written to {out}/{name}.json, .csv and .png")
    return result


def as_csv(rows: list[dict]) -> str:
    """The rows as CSV, the first line their keys; empty where a number is not finite.

    >>> print(as_csv([{"a": 1, "b": float("nan")}]), end="")
    a,b
    1,
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(finite(rows))
    return text.getvalue()
