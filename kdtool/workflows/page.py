"""The parts of a self-contained HTML page: shell and style, sections, tables, figures, what is folded.

On a telephone the rows of a short table become cards; a long one keeps its form and is moved sideways.

Every function escapes the text that it is given; only what is named `body` or `svg` is HTML already.
Left out: what the page says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

CARDS = 12  # rows of a table that may be cards: more are easier to compare below one another

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f8fa; --ink: #24292f; --soft: #57606a; --faint: #d8dee4;
  LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9da7b3;
  --faint: #30363d; DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; scroll-margin-top: 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1.25rem; padding: 0; margin: .75rem 0 1rem; }
a { color: var(--series-1); }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.soft, caption, dt { color: var(--soft); }
.headline { font-size: 1.1rem; margin: 1rem 0; }
.notice { border-left: .25rem solid var(--series-2); background: var(--card); padding: .5rem 1rem; }
.notice ul { margin: .25rem 0; padding-left: 1.25rem; }
.wide { overflow-x: auto; }
.wide + p { margin-top: .6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; font-weight: 600; padding-left: 0; min-width: 12rem; }
thead th { font-weight: 400; color: var(--soft); vertical-align: bottom; white-space: normal; }
td.best { font-weight: 700; }
details { border-top: 1px solid var(--faint); padding: .5rem 0; }
summary { cursor: pointer; }
details[open] > summary { margin-bottom: .75rem; }
.swatch { width: 1.6rem; height: .7rem; margin-right: .4rem; vertical-align: baseline; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1.25rem; padding: 0; margin: .5rem 0 1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem 2rem; }
figure { margin: 0; max-width: 32rem; }
.sheets { columns: 24rem; column-gap: 2rem; }
.sheets > * { break-inside: avoid; margin: 0 0 1.5rem; }
figcaption { margin-bottom: .25rem; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
pre { background: var(--card); border: 1px solid var(--faint); padding: .75rem; font-size: .85rem; }
pre code { display: inline-block; width: 100%; padding-left: 2ch; text-indent: -2ch; white-space: pre-wrap; }
pre code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards, .cards :is(tbody, tr, th, td) { display: block; width: 100%; }
  .cards tr { border-bottom: 1px solid var(--faint); padding: .5rem 0; }
  .cards :is(th, td) { border: 0; padding: .1rem 0; }
  .cards td { display: flex; justify-content: space-between; gap: .5rem; }
  .cards td::before { content: attr(data-label); color: var(--soft); white-space: normal; text-align: left; }
  .cards td::before { font-weight: 400; }
  .cards td.none { display: none; }
  table:not(.cards) th:first-child { position: sticky; left: 0; background: var(--page); min-width: 9rem; }
  table:not(.cards) { font-size: .9rem; }
  nav a { display: inline-block; padding: .25rem 0; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print { main { max-width: none; } figure, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its head with a swatch (HTML, may be empty), and its cells; an empty cell has no value.

    best: for every cell, whether it is set off as the best of its column; empty for none.
    """

    head: str
    cells: Sequence[str]
    swatch: str = ""
    best: Sequence[bool] = ()


def page(title: str, series: Mapping[str, str], body: str) -> str:
    """The whole document; series: light colour -> dark colour of --series-0, --series-1 and so on."""
    light = " ".join(f"--series-{number}: {colour};" for number, colour in enumerate(series))
    dark = " ".join(f"--series-{number}: {colour};" for number, colour in enumerate(series.values()))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE.replace('LIGHT', light).replace('DARK', dark)}</style>\n"
        f"</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *body: str) -> str:
    """A section with its heading, to which links of `contents` lead; empty parts are left out."""
    heading = f'<section>\n<h2 id="{anchor(title)}">{escape(title)}</h2>'
    return "\n".join((heading, *filter(None, body), "</section>"))


def anchor(title: str) -> str:
    """The id of a section."""
    return escape(title.lower().replace(" ", "-"))


def contents(titles: Sequence[str]) -> str:
    """Links to sections."""
    links = "".join(f'<li><a href="#{anchor(title)}">{escape(title)}</a></li>' for title in titles)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def subheading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, style: str = "soft") -> str:
    """A paragraph of plain text; nothing for none."""
    return text and f'<p class="{style}">{escape(text)}</p>'


def table(head: str, columns: Sequence[str], rows: Sequence[TableRow], cards: bool = True) -> str:
    """A table without the columns in which no row has a value; cards: narrow screens show every row as a card."""
    shown = [number for number in range(len(columns)) if any(row.cells[number] for row in rows)]
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in (head, *(columns[n] for n in shown)))
    style = ' class="cards"' if cards and len(rows) <= CARDS else ""
    lines = [f'<div class="wide"><table{style}>\n<thead><tr>{heads}</tr></thead>\n<tbody>']
    for row in rows:
        cells = "".join(cell(columns[n], row.cells[n], bool(row.best) and row.best[n]) for n in shown)
        lines.append(f'<tr><th scope="row">{row.swatch}{escape(row.head)}</th>{cells}</tr>')
    return "\n".join((*lines, "</tbody>\n</table></div>"))


def cell(column: str, text: str, best: bool) -> str:
    """A cell of a table, with the name of its column for screens that show rows as cards."""
    style = ' class="best"' if best else "" if text else ' class="none"'
    return f'<td data-label="{escape(column)}"{style}>{escape(text)}</td>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """A list of (swatch as HTML, label)."""
    return f'<ul class="legend">{"".join(f"<li>{swatch}{escape(label)}</li>" for swatch, label in entries)}</ul>'


def figure(caption: str, svg: str, titled: bool = False) -> str:
    """A figure with its caption above it, which also stands for it where it cannot be seen.

    titled: the drawing has a title of its own, so that the caption is not shown.
    """
    shown = "" if titled else f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure role="img" aria-label="{escape(caption)}">{shown}{svg}</figure>'


def figures(*drawn: str) -> str:
    """Figures beside one another, as far as there is room."""
    return "\n".join(('<div class="figures">', *drawn, "</div>"))


def sheets(*drawn: str) -> str:
    """Figures of very different heights, packed in columns."""
    return "\n".join(('<div class="sheets">', *drawn, "</div>"))


def definitions(entries: Sequence[tuple[str, str]]) -> str:
    """A list of terms and what they stand for."""
    return f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in entries)}</dl>"


def commands(lines: Sequence[str]) -> str:
    """Command lines as they are typed; long ones are wrapped with an indent, of which a copy has nothing."""
    return f"<pre>{chr(10).join(f'<code>{escape(line)}</code>' for line in lines)}</pre>"


def details(summary: str, body: str, swatch: str = "") -> str:
    """Something that is shown when it is asked for."""
    return f"<details><summary>{swatch}{escape(summary)}</summary>{body}</details>"


def notice(text: str, points: Sequence[str]) -> str:
    """A box that cannot be overlooked."""
    return (
        f'<div class="notice">{escape(text)}<ul>{"".join(f"<li>{escape(point)}</li>" for point in points)}</ul></div>'
    )
