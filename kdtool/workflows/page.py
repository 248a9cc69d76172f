"""The parts of a self-contained HTML page: shell and style, sections, tables that become cards on a telephone.

Every function escapes the text that it is given; only what is named `body` or `svg` is HTML already.
Left out: what the page says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f8fa; --ink: #24292f; --soft: #57606a; --faint: #d8dee4;
  LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9da7b3;
  --faint: #30363d; DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.soft, caption, dt { color: var(--soft); }
.headline { font-size: 1.1rem; margin: 1rem 0; }
.notice { border-left: .25rem solid var(--series-2); background: var(--card); padding: .5rem 1rem; }
.notice ul { margin: .25rem 0; padding-left: 1.25rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; font-weight: 600; padding-left: 0; min-width: 12rem; }
thead th { font-weight: 400; color: var(--soft); vertical-align: bottom; white-space: normal; }
.swatch { width: 1.6rem; height: .7rem; margin-right: .4rem; vertical-align: baseline; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1.25rem; padding: 0; margin: .5rem 0 1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem 2rem; }
figure { margin: 0; max-width: 32rem; }
figcaption { margin-bottom: .25rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
pre { background: var(--card); border: 1px solid var(--faint); padding: .75rem; overflow-x: auto; }
pre { font-family: ui-monospace, monospace; font-size: .85rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, th, td { display: block; width: 100%; }
  tr { border-bottom: 1px solid var(--faint); padding: .5rem 0; }
  th, td { border: 0; padding: .1rem 0; }
  td { display: flex; justify-content: space-between; gap: .5rem; }
  td::before { content: attr(data-label); color: var(--soft); white-space: normal; text-align: left; }
  td.none { display: none; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print { main { max-width: none; } figure, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its head with a swatch (HTML, may be empty), and its cells; an empty cell has no value."""

    head: str
    cells: Sequence[str]
    swatch: str = ""


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
    """A section with its heading; empty parts are left out."""
    return "\n".join((f"<section>\n<h2>{escape(title)}</h2>", *filter(None, body), "</section>"))


def paragraph(text: str, style: str = "soft") -> str:
    """A paragraph of plain text; nothing for none."""
    return text and f'<p class="{style}">{escape(text)}</p>'


def table(head: str, columns: Sequence[str], rows: Sequence[TableRow]) -> str:
    """A table without the columns in which no row has a value; narrow screens show every row as a card."""
    shown = [number for number in range(len(columns)) if any(row.cells[number] for row in rows)]
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in (head, *(columns[n] for n in shown)))
    lines = [f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>"]
    for row in rows:
        cells = (
            f'<td data-label="{escape(columns[n])}"{"" if row.cells[n] else " class=none"}>{escape(row.cells[n])}</td>'
            for n in shown
        )
        lines.append(f'<tr><th scope="row">{row.swatch}{escape(row.head)}</th>{"".join(cells)}</tr>')
    return "\n".join((*lines, "</tbody>\n</table>"))


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """A list of (swatch as HTML, label)."""
    return f'<ul class="legend">{"".join(f"<li>{swatch}{escape(label)}</li>" for swatch, label in entries)}</ul>'


def figure(caption: str, svg: str) -> str:
    """A figure with its caption above it, which also stands for it where it cannot be seen."""
    return f'<figure role="img" aria-label="{escape(caption)}"><figcaption>{escape(caption)}</figcaption>{svg}</figure>'


def definitions(entries: Sequence[tuple[str, str]]) -> str:
    """A list of terms and what they stand for."""
    return f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in entries)}</dl>"


def commands(lines: Sequence[str]) -> str:
    """Command lines as they are typed."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def details(summary: str, body: str) -> str:
    """Something that is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def notice(text: str, points: Sequence[str]) -> str:
    """A box that cannot be overlooked."""
    return (
        f'<div class="notice">{escape(text)}<ul>{"".join(f"<li>{escape(point)}</li>" for point in points)}</ul></div>'
    )
