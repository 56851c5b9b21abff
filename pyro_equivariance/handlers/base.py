"""What the handlers share."""

from collections.abc import Callable

from pyro.poutine.messenger import Messenger

AUXILIARY = "_unconstrained"  # AutoNormal draws "<site>_unconstrained" and puts a Delta of its image on the site
BASE = "_base"


def wrap(messenger: Messenger, fn: Callable | None):
    """What a lower-case handler returns: ``fn`` inside the messenger, or without ``fn`` the messenger itself."""
    return messenger if fn is None else messenger(fn)
