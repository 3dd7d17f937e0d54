"""Charts of a page, drawn by Bokeh: lines with intervals, and points to hover over and select.

Colours are those of Okabe and Ito 2008, which people with any kind of colour vision tell apart;
never colour alone tells two things apart. Ink and ground are set by the page's script, which knows
whether the page is light or dark. No name from data is in a chart: the script has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
GREEN: Final = "#009E73"
BLUE: Final = "#0072B2"
VERMILLION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
# Yellow is left out: on white it is hardly seen.
CYCLE: Final = (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE)
MARKERS: Final = ("circle", "triangle", "square", "inverted_triangle", "diamond", "hex")
_DASHES: Final = ("solid", "dashed", "dotted", "dotdash", "dashdot", "solid")

_HEIGHT: Final = 320


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What the legend calls it; no name from data.
        x: Where its points are.
        y: Their values.
        low: Lower ends of their intervals; empty without.
        high: Upper ends.
        tips: Text for each point, such as how many images it is of.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    tips: Sequence[str] = ()


def lines(
    content: Sequence[Line],
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> Any:
    """Return a chart of lines with whiskers for their intervals; the page's text names its axes.

    Args:
        content: The lines, at most as many as there are colours.
        x_range: Its ends; those of the values by default.
        y_range: Its ends; those of the values by default.
        diagonal: Whether to draw where both are equal.
    """
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    ranges = {"x_range": x_range, "y_range": y_range}
    chart = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        **{name: ends for name, ends in ranges.items() if ends is not None},
    )
    if diagonal:
        chart.line([0, 1], [0, 1], line_dash="dotted", line_width=1.5, line_color="#888888")
    shown = []
    for place, line in enumerate(content):
        colour = CYCLE[place % len(CYCLE)]
        tips = line.tips or [""] * len(line.x)
        source = ColumnDataSource({"x": list(line.x), "y": list(line.y), "tip": list(tips)})
        name = {"legend_label": line.name} if len(content) > 1 else {}
        if line.low:
            chart.segment(line.x, line.low, line.x, line.high, line_color=colour, line_width=2,
                          line_alpha=0.55)  # fmt: skip
        chart.line("x", "y", source=source, line_color=colour, line_width=2,
                   line_dash=_DASHES[place % len(_DASHES)], **name)  # fmt: skip
        shown.append(
            chart.scatter(
                "x",
                "y",
                source=source,
                size=8,
                marker=MARKERS[place % len(MARKERS)],
                fill_color=colour,
                line_color=colour,
                **name,
            )
        )
    chart.add_tools(HoverTool(renderers=shown, tooltips="@tip"))
    _plain(chart)
    return chart


def points(x: Sequence[float], y: Sequence[float], *, height: int = 560) -> Any:
    """Return a chart of points that the page's script colours, filters and describes.

    Args:
        x: Where the points are across.
        y: Where they are up.
        height: Of the chart in pixels.
    """
    from bokeh.models import (
        BooleanFilter,
        CDSView,
        ColumnDataSource,
        HoverTool,
        LassoSelectTool,
        PanTool,
        ResetTool,
        TapTool,
        WheelZoomTool,
    )
    from bokeh.plotting import figure

    count = len(x)
    source = ColumnDataSource(
        {
            "x": np.asarray(x, dtype=np.float32),
            "y": np.asarray(y, dtype=np.float32),
            "colour": [BLUE] * count,
            "marker": [MARKERS[0]] * count,
        },
        name="points",
    )
    chart = figure(height=height, sizing_mode="stretch_width", tools="", toolbar_location=None,
                   lod_threshold=None)  # fmt: skip
    shown = BooleanFilter(booleans=[True] * count, name="shown")
    drawn = chart.scatter(
        "x", "y", source=source, view=CDSView(filter=shown), marker="marker", size=8,
        fill_color="colour", line_color="colour", fill_alpha=0.6, line_alpha=0.9,
        nonselection_alpha=0.12,
    )  # fmt: skip
    # On a phone, a finger that moves scrolls the page until the lasso is asked for.
    chart.add_tools(
        HoverTool(renderers=[drawn], tooltips=None, name="hover"),
        TapTool(renderers=[drawn], name="tap"),
        LassoSelectTool(renderers=[drawn], name="lasso", continuous=False),
        PanTool(name="pan"),
        WheelZoomTool(name="zoom"),
        ResetTool(name="reset"),
    )
    chart.toolbar.active_drag = None
    chart.toolbar.active_scroll = None
    _plain(chart)
    chart.axis.visible = False
    chart.grid.visible = False
    return chart


def embed(charts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page's frame needs of charts: ``items`` by name, and Bokeh's ``script``.

    A page without charts needs no Bokeh.
    """
    if not charts:
        return {"items": {}, "script": ""}
    from bokeh.embed import json_item

    items = {name: json_item(chart, name) for name, chart in charts.items()}
    return {"items": items, "script": _script()}


def _script() -> str:
    """Return BokehJS, the part of it that charts need, with the licence that it begins with."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def _plain(chart: Any) -> None:
    """Leave out what only fills space."""
    chart.outline_line_color = None
    chart.background_fill_color = None
    chart.border_fill_color = None
    chart.min_border_right = 16
    for axis in chart.axis:
        axis.minor_tick_line_color = None
        axis.axis_label = None
        axis.major_label_text_font = "system-ui, sans-serif"
        axis.major_label_text_font_size = "13px"
    if chart.legend:
        chart.add_layout(chart.legend[0], "above")
        chart.legend.orientation = "horizontal"
        chart.legend.padding = 0
        chart.legend.background_fill_alpha = 0
        chart.legend.border_line_color = None
        chart.legend.label_text_font = "system-ui, sans-serif"
        chart.legend.label_text_font_size = "13px"
