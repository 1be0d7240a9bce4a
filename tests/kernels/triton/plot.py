"""A line plot as SVG, without a plotting library: an ordinary CUDA image has none."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 640, 400, 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def line_plot(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """One line a series over evenly spaced `labels`; the vertical axis begins at 0."""
    top = 1.1 * max(value for values in series.values() for value in values)
    step = (WIDTH - 2 * MARGIN) / max(1, len(labels) - 1)

    def at(place: int, value: float) -> tuple[float, float]:
        return MARGIN + place * step, HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)

    parts = [f'<text x="{MARGIN}" y="30" font-size="16">{escape(title)}</text>']
    for tick in range(5):
        x, y = at(0, top * tick / 4)
        parts.append(f'<text x="{x - 45:.0f}" y="{y + 4:.0f}">{top * tick / 4:.2f}</text>')
        parts.append(f'<path d="M{x:.0f} {y:.0f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
    for place, label in enumerate(labels):
        parts.append(
            f'<text x="{at(place, 0)[0] - 20:.0f}" y="{HEIGHT - MARGIN + 20}">{escape(label)}</text>'
        )
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*at(place, value)) for place, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{MARGIN + 130 * number}" y="{HEIGHT - 12}" fill="{colour}">{escape(name)}</text>'
        )
    body = "\n".join(parts)
    size = f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n</svg>\n'
