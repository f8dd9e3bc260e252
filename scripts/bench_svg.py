"""Pictures of bench_curves.py: panels with logarithmic axes as one SVG that needs nothing else, for light and dark pages."""
import math
from typing import NamedTuple

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-size:15px;font-weight:600;fill:#24292f}"
    ".head{font-weight:600;fill:#24292f}.grid{stroke:#8c959f;stroke-opacity:.25}path{fill:none;stroke-width:2}"
    ".line{stroke-dasharray:5 4;stroke-width:1.5}.a{stroke:#0969da}.b{stroke:#bc4c00}circle.a{fill:#0969da}"
    "circle.b{fill:#bc4c00}.value{font-size:11px}"
    "@media(prefers-color-scheme:dark){text{fill:#9198a1}.title,.head{fill:#f0f6fc}.a{stroke:#58a6ff}.b{stroke:#f0883e}"
    "circle.a{fill:#58a6ff}circle.b{fill:#f0883e}}")
PANEL, HEIGHT, LEFT, GAP, TOP, BOTTOM = 430, 440, 60, 30, 72, 92


class Series(NamedTuple):
    name: str
    # Its colour: a or b.
    style: str
    # (x, y), both above zero.
    points: list
    # Measured: a line with dots and labels. Else a dashed line.
    dots: bool


def number(x):
    """Three digits, more before the point; millions and billions by their letters."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if x >= 0.9995 * unit:
            return f"{x / unit:.3g}{letter}"
    return f"{x:,.0f}" if x >= 999.5 else f"{x:.3g}"


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def ticks(low, high):
    """1, 2 and 5 times powers of ten from low to high; powers alone if those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    all_of = [m * 10.0 ** p for p in powers for m in (1, 2, 5)]
    inside = [t for t in all_of if low <= t * 1.0001 and t <= high * 1.0001]
    return inside if len(inside) <= 8 else [t for t in inside if round(math.log10(t) % 1, 3) in (0, 1)]


def panel(heading, series, label, left):
    xs = sorted({x for s in series for x, _ in s.points})
    ys = [y for s in series for _, y in s.points]
    # Room above the highest label and below the lowest point; a decade is never squeezed to nothing.
    low, high = min(ys) / 1.25, max(ys) * 1.35
    if high / low < 4:
        low, high = low / (4 * low / high) ** 0.5, high * (4 * low / high) ** 0.5
    spare = (xs[-1] / xs[0]) ** 0.06
    first, last = xs[0] / spare, xs[-1] * spare
    right, bottom = left + PANEL - LEFT, HEIGHT - BOTTOM
    x = lambda v: left + math.log(v / first) / math.log(last / first) * (right - left)
    y = lambda v: bottom - math.log(v / low) / math.log(high / low) * (bottom - TOP)
    out = [f'<text class="head" x="{left}" y="{TOP - 14}">{escaped(heading)}</text>']
    for tick in ticks(low, high):
        out.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
                   f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for v in xs:
        out.append(f'<line class="grid" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{TOP}" y2="{bottom}"/>'
                   f'<text x="{x(v):.1f}" y="{bottom + 18}" text-anchor="middle">{number(v)}</text>')
    out.append(f'<text x="{(left + right) / 2}" y="{bottom + 36}" text-anchor="middle">{escaped(label)}</text>')
    measured = [s for s in series if s.dots]
    for s in series:
        path = "".join(f"{'L' if i else 'M'}{x(a):.1f} {y(b):.1f}" for i, (a, b) in enumerate(s.points))
        out.append(f'<path class="{s.style}{"" if s.dots else " line"}" d="{path}"/>')
    for s in measured:
        for a, b in s.points:
            # The label stands on the side where the other curve is not.
            others = [v for o in measured if o is not s for u, v in o.points if u == a]
            below = bool(others) and b < others[0] or bool(others) and b == others[0] and s is measured[-1]
            out.append(f'<circle class="{s.style}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5"/><text class="value" '
                       f'x="{x(a):.1f}" y="{y(b) + (17 if below else -9):.1f}" text-anchor="middle">{number(b)}</text>')
    for i, s in enumerate(series):
        at, down = left + (i % 2) * (PANEL - LEFT) * 0.42, HEIGHT - 32 + (i // 2) * 18
        out.append(f'<path class="{s.style}{"" if s.dots else " line"}" d="M{at:.1f} {down}h22"/>'
                   + (f'<circle class="{s.style}" cx="{at + 11:.1f}" cy="{down}" r="3.5"/>' if s.dots else "")
                   + f'<text x="{at + 28:.1f}" y="{down + 4}">{escaped(s.name)}</text>')
    return out


def picture(title, label, panels):
    """The panels (heading, series), side by side, over the same x axis."""
    width = len(panels) * (PANEL + GAP) + GAP
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img" '
           f'aria-label="{escaped(title)}">', f"<style>{STYLE}</style>",
           f'<text class="title" x="{LEFT}" y="28">{escaped(title)}</text>']
    for i, (heading, series) in enumerate(panels):
        out += panel(heading, series, label, LEFT + i * (PANEL + GAP))
    return "\n".join(out) + "\n</svg>\n"
