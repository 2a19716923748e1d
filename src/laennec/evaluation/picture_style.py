"""How every picture looks.

Decisions: figures are made through matplotlib's object interface, so no global figure or backend is touched;
colours are those of Okabe and Ito, which colour-blind readers can tell apart, and each label keeps its colour in
every picture. Pictures are PNG without a time stamp, so equal numbers give equal files.
"""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, QUIET, HAIR = "#1f2933", "#66727f", "#d9dfe5"
_LABEL_COLOURS = {"crackle": BLUE, "wheeze": VERMILION}
OTHER_COLOURS = (GREEN, PURPLE, ORANGE, SKY, BLUE, VERMILION)
DEPTH = LinearSegmentedColormap.from_list("depth", ["#f7fafc", "#9cc5e0", "#0072B2", "#003f63"])
DPI = 160
LEGEND: dict[str, Any] = {"fontsize": 8, "frameon": True, "framealpha": 0.9, "edgecolor": HAIR}


def figure_png(figure: Figure) -> bytes:
    """A figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    # Tight: the layout does not always leave room for the titles of square panels.
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return buffer.getvalue()


def house_figure(width: float, height: float, columns: int, lines: int = 1) -> tuple[Figure, list[Any]]:
    """A figure in inches with panels side by side (and below one another), in the house style."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = list(np.atleast_1d(figure.subplots(lines, columns)).ravel())
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(QUIET)
        one.tick_params(colors=QUIET, labelsize=9, labelcolor=INK)
        one.grid(color=HAIR, lw=0.6)
        one.set_axisbelow(True)
    return figure, axes


def house_title(axes: Any, text: str) -> None:
    """A left-aligned title."""
    axes.set_title(text.replace("$", r"\$"), loc="left", fontsize=10, color=INK, fontweight="bold", pad=9)


def shown_name(name: str, most: int = 32) -> str:
    """A name out of somebody's data as a picture can hold it: not too long, and no formula."""
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$")


def label_colour(name: str, k: int) -> str:
    """A label's colour, the same in every picture."""
    return _LABEL_COLOURS.get(name.lower(), OTHER_COLOURS[k % len(OTHER_COLOURS)])
