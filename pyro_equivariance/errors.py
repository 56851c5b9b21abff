"""The exceptions of the library: one base, a few kinds.

Every error that a user can cause derives from :class:`SymmetryError`, so one ``except`` clause (and the
command line's exit status 2) serves them all. Messages are one line: the thing, what was expected, the way out.
"""


class SymmetryError(ValueError):
    """Base of the library's errors: something does not fit the symmetry that was declared."""


class ClosednessError(SymmetryError):
    """The action takes a distribution out of its family, as a rotation by 45° does a mean-field Normal."""


class LayerError(SymmetryError):
    """A layer breaks the compatibility condition, or cannot be read."""


class DataError(SymmetryError):
    """Data that cannot be used: a damaged file, labels out of range, an empty split."""


class OptionError(SymmetryError):
    """An option whose value is not one of those that exist."""


class WideOrbitWarning(UserWarning):
    """An average of distributions that lie far apart: the modes of one another's copies, with little in between."""


def check_option(name: str, value: object, options) -> None:
    """Raise :class:`OptionError` unless ``value`` is one of ``options``.

    >>> check_option("rule", "geometric", ("geometric", "arithmetic"))
    """
    if value not in tuple(options):
        listed = ", ".join(repr(o) for o in options)
        raise OptionError(f"Expected {name} to be one of {listed}; got {value!r}.")
