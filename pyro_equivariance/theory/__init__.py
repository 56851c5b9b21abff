"""The theory as something to call: whether training stays equivariant, and a bound that holds for every input."""

from .assumptions import Assumptions, Condition, check_assumptions
from .certificate import Certificate, certificate

__all__ = ["Assumptions", "Certificate", "Condition", "certificate", "check_assumptions"]
