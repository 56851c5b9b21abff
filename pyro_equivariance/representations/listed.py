"""A representation restricted to a list of elements that stands for a law."""

from .base import Representation


class Listed(Representation):
    """How the numbered elements of a list act: number ``i`` as the element ``g_i`` of the law it was drawn from.

    :param Representation base: of the law.
    :param elements: an :class:`~pyro_equivariance.measures.ElementList` of that law.
    """

    def __init__(self, base: Representation, elements):
        self.base, self.group, self.event_shape = base, elements, base.event_shape

    is_permutation = property(lambda self: self.base.is_permutation)
    is_monomial = property(lambda self: self.base.is_monomial)
    is_orthogonal = property(lambda self: self.base.is_orthogonal)
    is_linear = property(lambda self: self.base.is_linear)
    is_approximate = property(lambda self: self.base.is_approximate)
    dual = property(lambda self: Listed(self.base.dual, self.group))

    def _act(self, g, x, dim=-1):
        chosen = self.group.both.to(x.device)[g if isinstance(g, int) else g.to(x.device)]
        return self.base._act(int(chosen) if chosen.ndim == 0 else chosen, x, dim)

    def _modulus(self, power):
        return Listed(self.base._modulus(power), self.group)

    def _key(self):
        return (self.base,)

    def __repr__(self):
        return f"{self.base} over a list"
