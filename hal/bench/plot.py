"""A report as a picture: for each phase bars of speed against the baseline, and how fast the limit would be."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

FORMATS = (".png", ".svg")
INSTALL = "matplotlib is not installed: pip install 'attention-hal[bench]'"


def check(file: str) -> None:
    """Raises ValueError for a file that can't be written, ImportError without matplotlib: before anything is timed."""
    if Path(file).suffix.lower() not in FORMATS:
        raise ValueError(f"--plot {file}: {Path(file).suffix or 'no suffix'} is not supported (supported: "
                         f"{', '.join(FORMATS)})")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        # Figures made this way need no display and leave no global state.
        return importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ImportError(f"--plot: {INSTALL}") from None


def plot(report: dict[str, Any], file: str) -> None:
    """Write the picture: a panel for each kind of layer and phase; a bar is the baseline's time over one's own."""
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in report["cells"]:
        if any("median_s" in result and result["ratio"] for result in cell["results"]):
            panels.setdefault((cell["kind"], cell["phase"]), []).append(cell)
    if not panels:
        raise ValueError(f"--plot {file}: nothing was timed against a baseline, so there is nothing to draw")
    names = list(dict.fromkeys(r["contender"] for c in report["cells"] for r in c["results"] if "median_s" in r))
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    heights = [sum(len(_bars(cell)) + 1 for cell in cells) for cells in panels.values()]
    figure = _matplotlib().Figure(figsize=(9, 1.6 + 0.27 * sum(heights) + 0.75 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    ends: list[tuple[float, float]] = []
    for axis, ((kind, phase), cells) in zip(axes, panels.items()):
        ends.append(_panel(axis, cells, colours))
        axis.set_title(phase if kind == "all" else f"{kind}: {phase}", loc="left", fontsize=10, fontweight="bold")
    base = next(cell["baseline"] for cells in panels.values() for cell in cells if cell["baseline"])
    ticker = importlib.import_module("matplotlib.ticker")
    axes[-1].set_xscale("log")
    axes[-1].xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes[-1].xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}x"))
    axes[-1].xaxis.set_minor_locator(ticker.NullLocator())
    axes[-1].set_xlim(min(low for low, _ in ends) / 1.6, max(high for _, high in ends) * 4)  # room for the last label
    axes[-1].set_xlabel(f"speed, {base} = 1 (log scale); whiskers: spread; black line: the device's limit")
    patch = importlib.import_module("matplotlib.patches").Patch
    handles = [patch(color=colour, label=name.rpartition(":")[2]) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=min(4, len(handles)), frameon=False, fontsize=9)
    platform = report["platform"]
    from hal.bench.report import threads_of

    dtype = report["cells"][0]["config"]["dtype"]
    figure.suptitle(f"hal bench: {platform['name']}, {threads_of(report)}, {dtype}, "
                    f"torch {report['versions']['torch']}", x=0.01, ha="left", fontsize=9)
    figure.savefig(file, dpi=140)


def _bars(cell: dict[str, Any]) -> list[dict[str, Any]]:
    return [result for result in cell["results"] if "median_s" in result and result["ratio"]]


def _panel(axis: Any, cells: list[dict[str, Any]], colours: dict[str, str]) -> tuple[float, float]:
    """Groups of bars from the top, one group a shape. Returns the least and the largest speed drawn."""
    at, ticks, most, least = 0.0, [], 1.0, 1.0
    for cell in cells:
        bars = _bars(cell)
        base = bars[0]["ratio"] * bars[0]["median_s"]
        for i, result in enumerate(bars):
            y = at + i
            slow, fast = base / result["high_s"], base / result["low_s"]
            axis.barh(y, result["ratio"], height=0.85, color=colours[result["contender"]])
            axis.errorbar(result["ratio"], y, xerr=[[result["ratio"] - slow], [fast - result["ratio"]]], color="0.25",
                          capsize=2, linewidth=1)
            axis.annotate(f"{_time(result['median_s'])}, {result['ratio']:.2f}x", (fast, y), xytext=(5, 0),
                          textcoords="offset points", va="center", fontsize=8,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8})
            most, least = max(most, fast), min(least, slow)
        limit = base / cell["limit_s"]
        axis.plot([limit, limit], [at - 0.5, at + len(bars) - 0.5], color="black", linewidth=2)
        axis.annotate(cell["limit"], (limit, at - 0.5), xytext=(0, 1), textcoords="offset points", ha="center",
                      va="bottom", fontsize=7)
        most = max(most, limit)
        ticks.append((at + (len(bars) - 1) / 2, cell["shape"]))
        at += len(bars) + 1
    axis.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    axis.set_ylim(at - 1.2, -0.8)
    axis.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    return least, most


def _time(seconds: float) -> str:
    from hal.bench.report import figures

    return figures({"median_s": seconds, "low_s": seconds, "high_s": seconds})[0]
