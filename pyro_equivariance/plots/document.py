"""A report as files: a picture of the page, or one self-contained HTML file with the pictures and the tables."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import OptionError
from ..symmetry import Symmetry
from .base import DPI, Figure, save, styled, write_whole, written
from .calibration import TITLES
from .page import WIDTH, Panel, diagnosis_rows, draw_page, draw_panel, pictures, run_mean_scores
from .summary import Evidence, comparison, evidence_of, head_lines

STYLE_SHEET = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd; }
td.n { white-space: nowrap; font-variant-numeric: tabular-nums; } th.s { padding-top: .9rem; }
p.note { color: #444; }
"""


@styled
def report(
    idata,
    path: str | os.PathLike | None = None,
    diagnosis=None,
    *,
    symmetry: Symmetry | None = None,
    observation: int = 0,
) -> Figure:
    """One page on a posterior from its ArviZ data: pictures, and the table of its diagnosis.

    With all groups there: the predictive over the orbit of one input, the defect of each group element, up to eight
    scalars of the posterior, reliability on upright data and on all moved copies, scores on each moved copy, the loss
    and the mean log likelihood of each run, and :func:`~pyro_equivariance.diagnose`'s table. What the data lack is left
    out and named at the end, but for a network's parameters. Data with several methods, a dimension ``method_name``,
    are compared; the page then has a table of the methods, and the HTML file the diagnosis of each as well. Runs of a
    method are pooled in the predictive over the orbit and in reliability, and averaged elsewhere. A group
    ``test_predictive``, as :func:`~pyro_equivariance.experiments.compare` writes it, has mean predictives of more data:
    reliability and all scores are then of these, and the line below the title has both numbers of observations.

    :param idata: ArviZ data of either series: what :func:`~pyro_equivariance.to_arviz` gives, or several stacked.
    :param path: a file to write, ``.png`` or ``.html``, whole or not at all; see :func:`report_html`.
    :param diagnosis: what :func:`~pyro_equivariance.diagnose` returned, or a dict of that by method; computed where
        it is shown and not given.
    :param Symmetry symmetry: needed where the outputs move, and to draw moved inputs that are no rotated images.
    :param int observation: the number of the input whose orbit is drawn.
    :returns: the figure, as wide as A4 and as high as its panels need.
    :raises OptionError: for a path with another suffix, or an observation that there is not.
    :raises DataError: for something that is no ArviZ data.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> guide = pe.AutoSymmetricNormal(model := pe.BayesianNetwork(net), sym)
    >>> data = (torch.randn(20, 1, 3, 3), torch.zeros(20).long())
    >>> report(pe.to_arviz(model, guide, data, symmetry=sym, draws=30), diagnosis=()).get_size_inches()[0].item()
    8.27
    """
    suffix = Path(path).suffix.lower() if path is not None else ""
    if suffix not in ("", ".png", ".html") or (path is not None and not suffix):
        raise OptionError(f"Expected a path that ends in .png or .html; got {str(path)!r}.")
    evidence = evidence_of(idata, diagnosis, symmetry, observation, every_diagnosis=suffix == ".html")
    figure = draw_page(evidence)
    if suffix == ".png":
        save(figure, path)
    elif suffix == ".html":
        write_whole(path, lambda part: part.write_text(_document(evidence), encoding="utf-8"))
    return figure


def report_html(
    idata,
    path: str | os.PathLike,
    diagnosis=None,
    *,
    symmetry: Symmetry | None = None,
    observation: int = 0,
) -> None:
    """The pictures and the tables of :func:`report` in one HTML file that needs no other, written whole or not at all.

    Pictures are inside the file, tables are tables; there are no scripts, and nothing is fetched. Arguments as for
    :func:`report`; the suffix of the path is not looked at.
    """
    evidence = evidence_of(idata, diagnosis, symmetry, observation, every_diagnosis=True)
    write_whole(path, lambda part: part.write_text(_document(evidence), encoding="utf-8"))


@styled
def _document(evidence: Evidence) -> str:
    title, line = map(html.escape, head_lines(evidence))
    body = [f"<h1>{title}</h1>", f"<p>{line}</p>"]
    if evidence.several:
        body += ["<h2>Comparison</h2>", _table(*comparison(evidence.methods)),
                 "<p class=note>Accuracy on upright data; accuracy, NLL (nats per datum) and ECE over all moved "
                 "copies, runs pooled; the unbiased defect ± its standard error; the mean log likelihood of the "
                 "draws ± their standard deviation.</p>"]  # fmt: skip
    body += ["<h2>Pictures</h2>", *map(_picture, pictures(evidence))]
    body += _scores_tables(evidence) + _diagnosis_tables(evidence)
    body += [f"<p class=note>{html.escape(evidence.missing)}</p>"] if evidence.missing else []
    body += ["<h2>Data</h2>", _table(["attribute", "value"], [[k, str(v)] for k, v in evidence.attrs.items()])]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE_SHEET}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _picture(panel: Panel) -> str:
    figure = Figure(figsize=(WIDTH / (2 if panel.half else 1), panel.height))
    draw_panel(Panel("", panel.height, panel.half, panel.draw), figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    title = html.escape(panel.title or "Legend")
    data = base64.b64encode(file.getvalue()).decode()
    width = round(96 * figure.get_figwidth())
    return (
        f'<figure><figcaption>{title}</figcaption><img alt="{title}" width="{width}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    for row in rows:
        cells = (
            f"<td class=n>{html.escape(cell)}</td>" if len(cell) < 30 else f"<td>{html.escape(cell)}</td>"
            for cell in row
        )
        lines.append("".join(cells))
    return "<div class=scroll><table>" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table></div>"


def _scores_tables(evidence: Evidence) -> list[str]:
    """For each method a table with a row for each element: its defect, and the scores of that moved copy."""
    found = []
    for name, method in evidence.methods.items():
        columns: dict[str, Sequence[str]] = {}
        if method.moves:
            columns["defect"] = [written(e.value, e.se) for e in method.defects]
        if method.scored:
            scores = run_mean_scores(method)
            columns |= {title: list(map(written, getattr(scores, key), getattr(scores, f"{key}_se")))
                        for key, title in TITLES.items()}  # fmt: skip
        if columns:
            rows = [list(row) for row in zip(method.elements, *columns.values(), strict=True)]
            found += [f"<h3>{html.escape(name)}</h3>" if name else "", _table(["element", *columns], rows)]
    return ["<h2>Elements</h2>", *found] if found else []


def _diagnosis_tables(evidence: Evidence) -> list[str]:
    found = []
    for name, diagnosis in evidence.diagnoses.items():
        found += [f"<h3>{html.escape(name)}</h3>" if name else "", _diagnosis_table(diagnosis)]
    return ["<h2>Diagnosis</h2>", *found] if found else []


def _diagnosis_table(diagnosis) -> str:
    """Rows under a heading for each section, with what each number means."""
    lines, section = ["<tr><th></th><th>value ± se</th><th>spread</th><th>verdict</th><th>definition</th></tr>"], None
    for row, (own, *cells) in zip(getattr(diagnosis, "rows", diagnosis), diagnosis_rows(diagnosis), strict=True):
        if own != section:
            lines.append(f'<tr><th class=s colspan="5">{html.escape(own)}</th></tr>')
            section = own
        name, value, spread, verdict, definition = map(html.escape, (*cells, str(row.definition)))
        lines.append(f"<tr><td>{name}</td><td class=n>{value}</td><td class=n>{spread}</td><td>{verdict}</td>"
                     f"<td>{definition}</td></tr>")  # fmt: skip
    return "<div class=scroll><table>" + "\n".join(lines) + "</table></div>"
