"""The command line: ``pyro-equivariance compare``, ``pyro-equivariance report`` and ``pyro-equivariance theory``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from . import __version__
from .errors import SymmetryError
from .experiments.base import COUNTING, GROUPS, PRIORS, Config
from .experiments.theory import STUDIES, run_study

SMOKE = "a tiny version of all of it, in seconds, to see that it runs"


def parser() -> argparse.ArgumentParser:
    """The argument parser; the defaults are those of :class:`~pyro_equivariance.experiments.Config` and the studies."""
    top = argparse.ArgumentParser(
        prog="pyro-equivariance", description="Variational posteriors that respect a symmetry."
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    sub = commands.add_parser(
        "compare",
        help="train the baseline and each symmetrization on one data set, and say which one to use",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Config()
    add = sub.add_argument
    add(
        "--data",
        default=default.data,
        help="digits, mnist or fashion-mnist (downloaded), a folder with IDX files, or a .npz with images and labels",
    )
    add("--group", default=default.group, help=f"one of {', '.join(GROUPS)}")
    add("--methods", default=default.methods, type=_words, help="names separated by commas, or all")
    add("--train-size", default=default.train_size, type=int, help="training images")
    add("--validation-size", default=default.validation_size, type=int, help="images that choose states and the method")
    add("--test-size", default=default.test_size, type=int, help="test images; 0 for the rest, at most 1,000")
    add("--epochs", default=default.epochs, type=int, help="passes over the training images")
    add("--batch-size", default=default.batch_size, type=int, help="images in a minibatch")
    add("--seeds", default=default.seeds, type=_integers, help="numbers separated by commas")
    add("--kl-weight", default=default.kl_weight, type=float, help="weight of the KL, the same for every method")
    add("--kl-warmup", default=default.kl_warmup, type=int, help="epochs over which that weight grows from 0")
    add("--likelihood", default=default.likelihood, help=f"how moved copies count: {' or '.join(COUNTING)}")
    add("--learning-rate", default=default.learning_rate, type=float, help="Adam's, with a cosine decay")
    add("--width", default=default.width, type=int, help="channels of the first layer")
    add("--prior", default=default.prior, help=f"scales of the prior, one per site: {' or '.join(PRIORS)}")
    add("--prior-gain", default=default.prior_gain, type=float, help="weights ~ N(0, gain² / fan-in)")
    add("--prior-bias", default=default.prior_bias, type=float, help="biases ~ N(0, bias²)")
    add("--init-scale", default=default.init_scale, type=float, help="initial scale, as a fraction of the prior's")
    add("--draws", default=default.draws, type=int, help="posterior draws of an evaluation")
    add("--device", default=default.device, help="cpu, cuda, ...")
    add(
        "--threads",
        default=default.threads,
        type=int,
        help="torch threads; the same number repeats results bit for bit",
    )
    add("--out", default=default.out, help="folder for results.json, posterior.nc, pictures and checkpoints")
    add("--smoke", action="store_true", help=SMOKE)
    sub = commands.add_parser("report", help="draw a comparison's pictures and report again, without training")
    sub.add_argument("folder", metavar="DIR", help="what compare wrote to: results.json and posterior.nc")
    _add_studies(commands)
    return top


def _add_studies(commands) -> None:
    sub = commands.add_parser("theory", help="run one of the studies behind the theory")
    studies = sub.add_subparsers(dest="study", required=True, metavar="{" + ",".join(STUDIES) + "}")
    for name, study in STUDIES.items():
        one = studies.add_parser(name, help=study.words, description=f"Measures {study.words}.",
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
        for f in fields(study.config):
            kind = _integers if isinstance(f.default, tuple) else type(f.default)
            one.add_argument(f"--{f.name.replace('_', '-')}", default=f.default, type=kind, help=f.metadata["help"])
        one.add_argument("--smoke", action="store_true", help=SMOKE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for what the user can mend, 130 if interrupted."""
    options = vars(parser().parse_args(arguments))
    try:
        _run(options)
        if options.get("smoke"):
            print("This was a smoke run: all of it works, but its numbers mean nothing.")
    except SymmetryError as error:
        print(f"pyro-equivariance: error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        print(f"pyro-equivariance: error: {error} {notes}".rstrip(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = (
            "results.json holds the runs that were finished"
            if options["command"] == "compare"
            else "nothing is written"
        )
        print(f"pyro-equivariance: interrupted; {kept}.", file=sys.stderr)
        return 130
    return 0


def _run(options: dict) -> None:
    if options["command"] == "report":
        from .experiments.compare import report

        report(options["folder"])
        return
    kind = Config if options["command"] == "compare" else STUDIES[options["study"]].config
    config = kind(**{f.name: options[f.name] for f in fields(kind)})
    config = config.smoke() if options["smoke"] else config
    if options["command"] == "theory":
        run_study(options["study"], config)
        return
    from .experiments.compare import compare

    compare(config, progress=sys.stderr.isatty())


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, got {text!r}") from error
