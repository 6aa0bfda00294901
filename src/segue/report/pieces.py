"""The pieces of a page as HTML: tables, figures with their numbers, legends and parts that fold."""

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from segue.report.curves import LineStyle, NoPicture
from segue.report.tables import Cell, Table
from segue.system.untrusted import plain


def escape(text: object) -> str:
    """Return text as HTML without markup and control characters."""
    return html.escape(plain(text))


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def html_table(table: Table, words: bool = False) -> str:
    """Return a table in a region that scrolls by itself. `words` is true if the cells are texts, not numbers."""

    def row(cells: Sequence[Cell | str | None]) -> str:
        name, *rest = cells
        breakable = re.sub(r"([._/])(?=\w)", r"\1<wbr>", escape(name))
        return f'<tr><th scope="row">{breakable}</th>{"".join(f"<td>{html_cell(each)}</td>" for each in rest)}</tr>'

    caption = escape(table.caption)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    published = ""
    if table.landmarks:
        about = f'<tr><th class="about" scope="rowgroup" colspan="{len(table.head)}">Published: other versions of '
        about += "environments and data</th></tr>"
        published = f'<tbody class="theirs">{about}{"".join(map(row, table.landmarks))}</tbody>'
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table{" class=words" * words}>'
        f"<caption><span>{caption}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(map(row, table.rows))}</tbody>{published}</table></div>"
    )


def html_cell(each: Cell | str | None) -> str:
    if each is None:
        return "–"
    if isinstance(each, str):
        return escape(each)
    value, spread = (escape(text).replace("-", "\N{MINUS SIGN}") for text in (each.value, each.spread))
    interval = f' <span class="pm">{spread}</span>' if spread else ""
    return f"<span>{value}</span>{interval}{escape(each.more)}"


def folded(summary: str, body: str, opened: bool = False) -> str:
    return f"<details{' open' * opened}><summary>{escape(summary)}</summary>{body}</details>"


class Figure(NamedTuple):
    """A picture as a function that draws it, its alternative text, its caption, and its numbers as a table."""

    picture: Callable[[], str]
    alt: str
    caption: str
    data: Table | None


def html_figures(figures: Sequence[Figure]) -> str:
    """Return pictures side by side, if there is room, and below them their numbers as tables."""
    tables = [figure.data for figure in figures if figure.data]
    numbers = "".join(folded(f"Numbers: {table.caption}", html_table(table)) for table in tables)
    return f'<div class="figures">{"".join(map(html_figure, figures))}</div>{numbers}'


def html_figure(figure: Figure) -> str:
    try:
        source = base64.b64encode(figure.picture().encode()).decode()
        image = f'<img role="img" alt="{escape(figure.alt)}" src="data:image/svg+xml;base64,{source}">'
    except NoPicture as error:
        image = f"<p>{escape(error)}</p>"
    return f"<figure>{image}<figcaption>{escape(figure.caption)}</figcaption></figure>"


def legend(names: Mapping[str, str], styles: Mapping[str, LineStyle]) -> str:
    """Return a legend. `names` maps a method's label to the text beside its line."""
    dashes = {"-": "", "-.": ' stroke-dasharray="8 3 2 3"', ":": ' stroke-dasharray="2 3"'}
    entries = "".join(
        f'<li><svg width="30" height="12" aria-hidden="true"><line x1="2" y1="6" x2="28" y2="6" stroke-width="3" '
        f'stroke="{styles[label].colour}"{dashes[styles[label].style]}/></svg>{escape(text)}</li>'
        for label, text in names.items()
    )
    return f'<ul class="legend" aria-label="Lines">{entries}</ul>'
