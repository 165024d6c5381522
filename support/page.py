"""A group of completions as one web page: no network, no library; light and dark, wide and on a phone.

Python writes every number. A few lines of script let the reader change the cap, the bound and λ, and compute the
weights again, by the formulas of losses.py (E4-E11).
"""

import html
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #d0d0d0; --soft: #f4f4f4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --line: #3a3d44; --soft: #22252b } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
       color: var(--ink); background: var(--paper) }
h1 { font-size: 1.35rem; margin: 0 0 .3rem } p { margin: .4rem 0 } .where { opacity: .7; font-size: .85rem }
mark { color: #111; background: none; border-radius: 3px } mark[style] { padding: 0 1px } .dark { color: inherit }
.scale mark { padding: .1rem .5rem; font-size: .85rem }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.4rem; margin: 1rem 0; padding: .6rem .9rem; background: var(--soft);
       border-radius: 8px; position: sticky; top: 0; z-index: 1 }
label { white-space: nowrap } input[type=number] { width: 4.5rem } input, select { font: inherit; margin-left: .3rem }
details { border-top: 1px solid var(--line); padding: .5rem 0 } summary { cursor: pointer }
.text { font: 1.05rem/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 0 }
.facts { font-size: .85rem; opacity: .8 } .scroll { overflow-x: auto }
table { border-collapse: collapse; margin: .6rem 0; font: .82rem/1.5 ui-monospace, monospace }
th, td { padding: .1rem .55rem; text-align: right; font-variant-numeric: tabular-nums; white-space: pre }
th { border-bottom: 1px solid var(--line); font-weight: 600 } td:nth-child(2), td:last-child { text-align: left }
.chosen { background: var(--soft); font-weight: 700 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; font-size: .85rem } dd { margin: 0 }
"""

SCRIPT = """
const form = document.forms[0], last = a => a[a.length - 1]
const running = a => a.reduce((sums, x) => [...sums, (last(sums) || 0) + x], [])
const LOG_WEIGHTS = {
  "on-policy": r => r.map(() => 0),
  "is": r => r,
  "is-sequence": r => r.map(() => last(running(r))),
  "is-prefix": r => running(r),
  "is-geometric": r => r.map(() => last(running(r)) / r.length),
  "retrace": (r, lam) => {
    const low = r.map(x => Math.min(x, 0)), c = low.map(x => x + Math.log(lam))
    return low.map((x, t) => c.slice(t + 1).reduce((a, b) => a + b, x))
  },
  "retrace-token": (r, lam) => r.map(x => Math.min(x, 0) + Math.log(lam)),
}
function weights(kind, r, cap, bound, lam) {
  let w = LOG_WEIGHTS[kind](r, lam)
  if (kind.startsWith("is") && cap > 0) {
    const limit = Math.log(cap)
    w = w.map(x => bound == "mask" ? (Math.abs(x) > limit ? -Infinity : x) : Math.min(x, limit))
  }
  return w.map(Math.exp)
}
const digits = x => x == 0 || x >= 0.005 ? x.toFixed(2) : x.toExponential(0).replace(/e-(\\d)$/, "e-0$1")
function show() {
  const f = form.elements, lam = +f.lam.value
  f.shown.value = lam.toFixed(2)
  for (const table of document.querySelectorAll("table")) {
    const rows = [...table.tBodies[0].rows], r = rows.map(row => +row.dataset.r)
    for (const head of table.querySelectorAll("th[data-kind]")) {
      const kind = head.dataset.kind, chosen = kind == f.kind.value, place = head.cellIndex
      const w = weights(kind, r, +f.cap.value, f.bound.value, lam)
      head.classList.toggle("chosen", chosen)
      rows.forEach((row, t) => {
        row.cells[place].textContent = digits(w[t])
        row.cells[place].classList.toggle("chosen", chosen)
      })
    }
  }
}
if (form) form.addEventListener("input", show), form.hidden = false, show()
"""


@dataclass
class Row:
    """One token: its cells as texts, in the order of the columns, and log ρ."""

    cells: list[str]
    text: str  # as it stands in the completion
    log_rho: float
    colour: str  # of its background; empty for none


def page(
    title: str,
    facts: list[str],
    scale: list[tuple[str, str]],
    columns: dict[str, str],
    kinds: list[str],
    settings: dict,
    completions: list[tuple[str, list[Row]]],
    chosen: int,
) -> str:
    """The page as text.

    facts: lines under the title.  scale: (label, colour) of log ρ.  columns: name -> what it is, the kinds of weights
    among them.  settings: kind, cap, bound, lam, as they are at first.  completions: (a line about it, its rows).
    """
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p class=where>{html.escape(fact)}</p>" for fact in facts)]
    marks = "".join(f"<mark{ground(colour)}>{html.escape(label)}</mark>" for label, colour in scale)
    parts += [f"<p class=scale>log ρ {marks}</p>", controls(kinds, settings)]
    heads = "".join(
        f"<th{f' data-kind={name}' * (name in kinds)} title='{html.escape(said, quote=True)}'>{html.escape(name)}</th>"
        for name, said in columns.items()
    )
    for n, (about, rows) in enumerate(completions):
        text = "".join(marked(row, list(columns)) for row in rows)
        body = "".join(f"<tr data-r={row.log_rho:.6f}>{cells_of(row)}</tr>\n" for row in rows)
        parts.append(
            f"<details{' open' * (n == chosen)}><summary><span class=facts>{html.escape(about)}</span>"
            f"<div class=text>{text}</div></summary><div class=scroll><table><thead><tr>{heads}</tr></thead>"
            f"<tbody>\n{body}</tbody></table></div></details>"
        )
    meanings = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(said)}</dd>" for name, said in columns.items())
    parts.append(f"<h2>Columns</h2><dl>{meanings}</dl>")
    meta = "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
    head = f"{meta}<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en>{head}\n" + "\n".join(parts) + f"\n<script>{SCRIPT}</script>\n"


def controls(kinds: list[str], settings: dict) -> str:
    """What the reader may change; hidden until the script runs."""

    def options(names: list[str], chosen: str) -> str:
        return "".join(f"<option{' selected' * (name == chosen)}>{name}</option>" for name in names)

    return (
        f"<form hidden><label>correction<select name=kind>{options(kinds, settings['kind'])}</select></label>"
        f"<label>cap C<input name=cap type=number min=0 step=0.1 value={settings['cap']}></label>"
        f"<label>beyond it<select name=bound>{options(['truncate', 'mask'], settings['bound'])}</select></label>"
        f"<label>λ<input name=lam type=range min=0 max=1 step=0.05 value={settings['lam']}>"
        "<output name=shown></output></label></form>"
    )


def marked(row: Row, columns: list[str]) -> str:
    numbers = ", ".join(f"{name} {cell}" for name, cell in zip(columns[2:], row.cells[2:], strict=True) if cell)
    tip = html.escape(f"token {row.cells[0]}: {numbers}", quote=True)
    broken = "<br>" * row.text.count("\n")
    return f'<mark title="{tip}"{ground(row.colour)}>{html.escape(row.cells[1])}{broken}</mark>'


def cells_of(row: Row) -> str:
    cells = [f"<td>{html.escape(cell)}</td>" for cell in row.cells]
    cells[1] = f"<td><mark{ground(row.colour)}>{html.escape(row.cells[1])}</mark></td>"
    return "".join(cells)


def ground(colour: str) -> str:
    return f' style="background:{colour}"' if colour else " class=dark"
