"""Logarithmic axes over any range, and lines on them that show where a value is 0 or missing.

Left out: linear axes, whose ticks matplotlib finds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kdtool.analysis.figures.sheets import Key
from kdtool.analysis.plots import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter

DECADES = 12  # that an axis shows at most: what is smaller is rounding
LARGEST = 1e308
MOST_TICKS = 6
BELOW = Key("0, or below the axis", INK, "", "v")
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Range = tuple[float, float]
Values = Sequence[float | None]


def log_range(values: Iterable[float | None], decades: float = DECADES) -> Range:
    """From a little below the smallest positive value to a little above the largest, over so many decades at most."""
    found = [value for value in values if value is not None and value > 0]
    if not found:
        return 0.1, 10.0
    high = max(found)
    low = max(min(found), high * 10.0**-decades)
    margin = max(0.1, 0.04 * (math.log10(high) - math.log10(low)))
    return low / 10**margin, min(high * 10**margin, LARGEST)


def is_below(values: Iterable[float | None], limits: Range) -> bool:
    """Whether a value is left out of the axis because it is too small."""
    return any(value is not None and value < limits[0] for value in values)


def make_log(axes: Axes, which: str, limits: Range) -> None:
    """Makes the x or y axis of the axes a logarithmic one."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(*limits)
    axis.set_major_locator(FixedLocator(log_ticks(limits)))
    axis.set_minor_locator(NullLocator())
    formatter: Formatter = FuncFormatter(lambda value, _: log_text(value))
    axis.set_major_formatter(formatter)


def log_ticks(limits: Range) -> list[float]:
    """Powers of ten; on short axes 3 times these too, or round numbers."""
    from matplotlib.ticker import MaxNLocator

    low, high = map(math.log10, limits)
    step = math.ceil((high - low) / MOST_TICKS)
    for bases in ((1, 3), (1, 2, 5)) if high - low < MOST_TICKS / 2 else ((1,),):
        powers = [power for power in range(math.floor(low), math.ceil(high) + 1) if power % step == 0]
        ticks = [base * 10.0**power for power in powers for base in bases]
        ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
        if len(ticks) >= 3 or high - low >= MOST_TICKS / 2:
            return ticks
    found = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(*limits)
    return [float(tick) for tick in found if limits[0] <= tick <= limits[1]]


def log_text(value: float) -> str:
    """A tick in few letters: 0.01, 500, 3·10⁶."""
    power = math.floor(math.log10(value) + 1e-9)
    if -4 < power < 5:
        return f"{value:.6g}"
    base = f"{value / 10.0**power:.3g}"
    return f"{'' if base == '1' else f'{base}·'}10{str(power).translate(SUPERSCRIPTS)}"


def draw_line(axes: Axes, x: Sequence[float], values: Values, limits: Range, **look: Any) -> None:
    """A line over the values that exist; limits: of the logarithmic axis, at whose foot smaller values are marked."""
    shown = [value is not None and value >= limits[0] for value in values]
    y = [value if seen and value is not None else math.nan for value, seen in zip(values, shown, strict=True)]
    alone = any(is_alone(shown, place) for place in range(len(shown)))
    marker = look.pop("marker", "") or ("o" if alone else "")
    axes.plot(x, y, marker=marker, **{"linewidth": 1.6, "markersize": 4, **look})
    foot = [place for place, value in zip(x, values, strict=True) if value is not None and value < limits[0]]
    axes.plot(
        foot,
        [0.02] * len(foot),
        "v",
        color=look["color"],
        markersize=5,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )


def is_alone(shown: Sequence[bool], place: int) -> bool:
    """Whether a value has none beside it, so that no line shows it."""
    return shown[place] and not any(shown[max(0, place - 1) : place]) and not any(shown[place + 1 : place + 2])
