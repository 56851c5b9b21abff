"""What a figure shows, as matplotlib draws it."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def drawn_texts(figure, monkeypatch):
    """The texts that drawing the figure puts on it, and their boxes in pixels."""
    texts, draw = [], Text.draw

    def record(self, renderer):
        if self.get_visible() and self.get_text().strip():
            texts.append(self)
        return draw(self, renderer)

    monkeypatch.setattr(Text, "draw", record)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in dict.fromkeys(texts)]
