"""Figures of a report, as matplotlib figures and as SVG to put into a page.

Text and axes are drawn in one marker color that `svg` turns into `currentColor`, so a figure takes
the color of the page's text, light or dark. Figures are narrow, to stay legible on a phone.
"""

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from rmjax.evaluate.discrimination import Histogram, PolicyAccuracy
from rmjax.evaluate.scaling import Point, PowerLaw
from rmjax.evaluate.statistics import Interval
from rmjax.terminal import printable

BLUE, ORANGE, GREEN, GRAY = "#3f83d1", "#d97a1e", "#2f9e77", "#8a8a8a"
LN2 = math.log(2)
_INK = "#0a0b0c"  # becomes the page's text color
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRAY,
    "grid.alpha": 0.25,
    "text.color": _INK,
    "text.parse_math": False,  # a name may have dollars in it
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
}
WIDTH = 5.2  # inches


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over training: `(S,)` optimizer steps and `(S,)` values."""

    steps_S: NDArray[np.float64]
    values_S: NDArray[np.float64]


def svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for inlining: no network, no fixed size.

    Args:
      figure: one of this module's figures.
      label: what it shows, for readers who cannot see it; also keeps ids apart within a page.
    """
    label = printable(label)
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+">', "<g>", text)
    text = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' (?:d|x|y|x1|x2|y1|y2)="[^"]*"', _hundredths, text)
    text = " ".join(line.strip() for line in text.splitlines()) + "\n"
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" ', 1)


def _hundredths(attribute: re.Match[str]) -> str:
    """Coordinates in hundredths of a point, of which nobody sees a part."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])


@matplotlib.rc_context(STYLE)
def learning_curves(curves: Mapping[str, Curve], loss_limits: tuple[float, float] | None = None) -> Figure:
    """Loss and accuracy of one run over its steps, training and evaluation.

    Args:
      curves: name -> curve. Names ending in `loss` (nats) go above, in `accuracy` below; others are
        left out. Evaluation curves are those that do not start with `train/`.
      loss_limits: range of the loss axis, to compare runs side by side; None: by the data.
    """
    figure, (loss_axes, accuracy_axes) = _figure(4.6, rows=2, sharex=True)
    _draw_curves(loss_axes, _ending(curves, "loss"))
    _draw_curves(accuracy_axes, _ending(curves, "accuracy"))
    _chance_line(loss_axes, LN2)
    _chance_line(accuracy_axes, 0.5)
    loss_axes.set_ylabel("loss (nats per pair)")
    if loss_limits is not None:
        loss_axes.set_ylim(*loss_limits)
    accuracy_axes.set_ylabel("accuracy (fraction)")
    accuracy_axes.set_ylim(min(0.4, accuracy_axes.get_ylim()[0]), 1.02)
    accuracy_axes.set_xlabel("optimizer step")
    handles = {
        label: handle
        for axes in (accuracy_axes, loss_axes)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    _legend_above(figure, handles, ("training",))
    return figure


def has_learning_curves(curves: Mapping[str, Curve]) -> bool:
    """Whether a run has anything that `learning_curves` draws."""
    return bool(_ending(curves, "loss") or _ending(curves, "accuracy"))


@matplotlib.rc_context(STYLE)
def reward_histogram(histogram: Histogram) -> Figure:
    """Rewards of same-policy and of other-policy outputs: the further apart the better."""
    figure, (axes,) = _figure(3.1)
    edges_E = np.asarray(histogram["edges"])
    for name, color in (("same", BLUE), ("other", ORANGE)):
        counts_B = np.asarray(histogram[name], np.float64)  # type: ignore[literal-required]
        total = int(counts_B.sum())
        axes.stairs(
            100 * counts_B / max(total, 1),
            edges_E,
            fill=True,
            color=color,
            alpha=0.45,
            label=f"{name} policy (n = {total:,})",
        )
        axes.stairs(100 * counts_B / max(total, 1), edges_E, color=color, linewidth=1.2)
    axes.set_xlabel("reward (no unit)")
    axes.set_ylabel("share of outputs (%)")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    axes.legend(loc="upper left")
    return figure


@matplotlib.rc_context(STYLE)
def gap_distributions(fractions: Mapping[str, ArrayLike]) -> Figure:
    """Fractions of reward gaps |Δr| by size, a line per model; every model's gaps are in units of its own largest one.

    Args:
      fractions: model → the fraction of its gaps in each of so many equal bins, from `gaps.gap_fractions`.
    """
    figure, (axes,) = _figure(3.0)
    for (name, found), color in zip(fractions.items(), itertools.cycle((BLUE, ORANGE, GREEN, GRAY)), strict=False):
        found_B = np.asarray(found, np.float64)
        axes.stairs(found_B, np.linspace(0, 1, len(found_B) + 1), color=color, label=_named(name))
    axes.set(xlabel="|Δr|, fraction of the largest", ylabel="fraction of pairs", xlim=(0, 1))
    axes.legend()
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_by_policy(scorer: PolicyAccuracy, baselines: Mapping[str, PolicyAccuracy]) -> Figure:
    """A bar per policy A, best on top, with 95 % intervals; each baseline is a marker.

    Args:
      scorer: the reward model's accuracies.
      baselines: name -> accuracies of the same policies.
    """
    measured = {name: mean for name, mean in scorer["policies"].items() if mean["n"]}
    names = sorted(measured, key=lambda name: (measured[name]["value"] or 0.0, name))
    figure, (axes,) = _figure(1.25 + 0.21 * len(names))
    rows_P = np.arange(len(names))
    _draw_bars(axes, rows_P, [measured[name] for name in names])
    styles = zip(baselines.items(), (("o", ORANGE), ("D", GREEN)) * 2, strict=False)
    for (name, baseline), (marker, color) in styles:
        values = [_value(baseline["policies"][policy]) for policy in names]
        label = _named(name.replace("_", " "))
        axes.plot(values, rows_P, marker, color=color, markersize=4.5, label=label, zorder=4)
    axes.axvline(0.5, color=_INK, linestyle="--", linewidth=1, label="chance")
    axes.set_yticks(rows_P, [_shortened(_named(name)) for name in names], fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlim(0, 1.03)
    axes.set_xlabel("accuracy (fraction of triples), 95 % interval")
    axes.grid(axis="y", visible=False)
    handles, labels = axes.get_legend_handles_labels()
    _legend_above(figure, dict(zip(labels, handles, strict=True)), ("reward model",))
    return figure


@matplotlib.rc_context(STYLE)
def kind_matrix(kinds: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Accuracy by kind of the reference's policy (rows) and of the other policy (columns)."""
    rows, columns = list(kinds), sorted({other for cells in kinds.values() for other in cells})
    values_AB = np.asarray([[_value(kinds[a][b]) if b in kinds[a] else np.nan for b in columns] for a in rows])
    figure, (axes,) = _figure(1.7 + 0.36 * len(rows))
    colors = matplotlib.colormaps["RdYlBu"]
    axes.pcolormesh(values_AB, cmap=colors, vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(values_AB):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        ink = _INK if np.isnan(value) else _readable_on(colors(value))
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
    axes.invert_yaxis()
    axes.set_xticks(
        np.arange(len(columns)) + 0.5, [_named(name) for name in columns], rotation=35, ha="right", fontsize=8
    )
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_named(name) for name in rows], fontsize=8)
    axes.set_xlabel("kind of the other policy")
    axes.set_ylabel("kind of the policy")
    axes.grid(visible=False)
    return figure


@matplotlib.rc_context(STYLE)
def routing_map(shares_ZLN: ArrayLike, types: Sequence[str] = ()) -> Figure:
    """Share of the routers' mass (%) by layer and expert, a panel for each type; white is an even spread.

    Args:
      shares_ZLN: types × layers × experts, from `routing.expert_shares`; NaN where a type has no groups.
      types: their names; by default their numbers.
    """
    percent_ZLN = 100 * np.asarray(shares_ZLN, np.float64)
    Z, L, N = percent_ZLN.shape
    figure = Figure(figsize=(WIDTH, 1.3 + 0.14 * max(L, 8)), layout="constrained")
    panels = figure.subplots(1, Z, sharey=True, squeeze=False)[0]
    spread = max(1.0, float(np.nanmax(np.abs(percent_ZLN - 100 / N), initial=0.0)))
    for z, axes in enumerate(panels):
        mesh = axes.pcolormesh(percent_ZLN[z], cmap="RdBu_r", vmin=100 / N - spread, vmax=100 / N + spread)
        axes.set_title(_named(types[z]) if types else f"type {z}")
        axes.set_xticks(np.arange(N) + 0.5, [str(n) for n in range(N)], fontsize=8)
        axes.set_xlabel("expert")
        axes.grid(visible=False)
    panels[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("layer")
    figure.colorbar(mesh, ax=list(panels), label="share of the mass (%)", format="{x:.3g}")
    return figure


@matplotlib.rc_context(STYLE)
def against_size(sizes: Sequence[int], panels: Mapping[str, Mapping[str, Sequence[Interval]]], label: str) -> Figure:
    """Measures against the amount of data (logarithmic), a panel for each, a line with 95 % intervals for each arm.

    Args:
      sizes: amounts of data.
      panels: axis label → arm → an interval for each size.
      label: of the axis of sizes.
    """
    figure, all_axes = _figure(1.0 + 1.75 * len(panels), rows=len(panels), sharex=True)
    for axes, (heading, arms) in zip(all_axes, panels.items(), strict=True):
        for number, (name, means) in enumerate(arms.items()):
            values_S = np.asarray([_value(mean) for mean in means])
            low_S, high_S = (np.asarray([_value(mean, side) for mean in means]) for side in ("low", "high"))
            shift = 1.03 ** (number - (len(arms) - 1) / 2)  # side by side, so that intervals can be told apart
            errors_2S = np.maximum(np.stack([values_S - low_S, high_S - values_S]), 0)
            color = (BLUE, ORANGE, GREEN, "#9467bd", "#c23b5a", GRAY)[number % 6]
            axes.errorbar(
                shift * np.asarray(sizes), values_S, yerr=errors_2S, fmt="o-", color=color, markersize=3.5,
                linewidth=1.2, elinewidth=1, label=_named(name),
            )  # fmt: skip
        axes.set_title(_named(heading), loc="left", fontsize=10)
    all_axes[-1].set(xscale="log", xlabel=label)
    all_axes[-1].set_xticks(list(sizes), [str(size) for size in sizes])
    all_axes[-1].minorticks_off()
    handles, labels = all_axes[0].get_legend_handles_labels()
    _legend_above(figure, dict(zip(labels, handles, strict=True)))
    return figure


@matplotlib.rc_context(STYLE)
def growth(panels: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]]) -> Figure:
    """Speed against what makes it change, both logarithmic, a panel for each.

    Args:
      panels: axis label → (value, `median`, `low` and `high` of pairs per second) for each point.
    """
    figure, all_axes = _figure(0.4 + 1.9 * len(panels), rows=len(panels))
    for axes, (label, points) in zip(all_axes, panels.items(), strict=True):
        values_P, found = np.asarray([x for x, _ in points]), [speeds for _, speeds in points]
        median_P, low_P, high_P = (np.asarray([s[name] for s in found]) for name in ("median", "low", "high"))
        axes.errorbar(values_P, median_P, yerr=np.stack([median_P - low_P, high_P - median_P]), fmt="o-", color=BLUE,
                      markersize=4, linewidth=1.2, elinewidth=1)  # fmt: skip
        # Four times from the bottom to the top at least, so that what does not change looks flat.
        center, half = np.sqrt(low_P.min() * high_P.max()), max(2.0, 1.1 * np.sqrt(high_P.max() / low_P.min()))
        axes.set(
            xscale="log", yscale="log", xlabel=_named(label), ylabel="pairs/s", ylim=(center / half, center * half)
        )
        axes.set_xticks(list(values_P), [f"{x:,.0f}" if x < 1e4 else f"{x / 1e6:,.3g} M" for x in values_P])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.minorticks_off()
    return figure


@matplotlib.rc_context(STYLE)
def scaling_law(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    points: Sequence[Point],
    law: PowerLaw,
    unit: str = "FLOP",
) -> Figure:
    """Validation loss against compute, both logarithmic: every run, the envelope, the fitted law.

    Args:
      runs: name -> (compute in `unit`, losses in nats).
      points: the envelope, from `scaling.envelope`.
      law: fitted to `points`.
      unit: of compute.
    """
    figure, (axes,) = _figure(3.8)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.85, max(len(runs), 1)))
    for (name, (compute, losses)), color in zip(runs.items(), colors, strict=False):
        axes.plot(compute, losses, ".-", color=color, linewidth=1, markersize=5, label=_named(name))
    compute_P = np.asarray([point.compute for point in points])
    axes.plot(compute_P, [point.loss for point in points], "o", mfc="none", color=_INK,
              markersize=8, label="envelope")  # fmt: skip
    line_L = np.geomspace(compute_P.min(), compute_P.max(), 50)
    axes.plot(line_L, law(line_L), "--", color=ORANGE, linewidth=2, label=_law_label(law))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:.0e}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"compute ({unit})")
    axes.set_ylabel("validation loss (nats per pair)")
    handles, labels = axes.get_legend_handles_labels()
    _legend_above(figure, dict(zip(labels, handles, strict=True)), ("reward model",))
    return figure


@matplotlib.rc_context(STYLE)
def margins(margins_P: ArrayLike) -> Figure:
    """How far the better of two answers is ahead, r(better) − r(worse), of any number of pairs: right of 0 the order is right."""
    values_P = np.asarray(margins_P, np.float64)
    most = max(float(np.abs(values_P).max(initial=0.0)), 1e-12)
    figure, (axes,) = _figure(3.0)
    counts_B, edges_E = np.histogram(values_P, np.linspace(-most, most, 41))
    axes.bar(edges_E[:-1], counts_B, np.diff(edges_E), align="edge", color=[ORANGE] * 20 + [BLUE] * 20, alpha=0.75)
    axes.axvline(0, color=_INK, linestyle="--", linewidth=1)
    right = f"{np.mean((np.sign(values_P) + 1) / 2):.0%} of " if values_P.size else ""
    axes.set(xlabel="r(better) − r(worse)", ylabel="pairs", title=f"{right}{values_P.size:,} pairs in order")
    return figure


@matplotlib.rc_context(STYLE)
def lines(
    curves: Mapping[str, Curve], ylabel: str, xlabel: str = "optimizer step", guide: float | None = None
) -> Figure:
    """Any metrics over training, a line for each name; `guide` is a value that a dashed line marks."""
    figure, (axes,) = _figure(3.0)
    for (name, curve), color in zip(
        curves.items(), itertools.cycle((BLUE, ORANGE, GREEN, GRAY, "#9467bd")), strict=False
    ):
        axes.plot(curve.steps_S, curve.values_S, color=color, linewidth=1.4, label=_named(name))
    if guide is not None:
        axes.axhline(guide, color=_INK, linestyle="--", linewidth=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    _legend_above(figure, dict(zip(labels, handles, strict=True)))
    return figure


def _figure(height: float, rows: int = 1, sharex: bool = False) -> tuple[Figure, tuple[Axes, ...]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=sharex, squeeze=False)
    return figure, tuple(axes[:, 0])


def _ending(curves: Mapping[str, Curve], ending: str) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if name.split("/")[-1] == ending}


def _draw_curves(axes: Axes, curves: Mapping[str, Curve]) -> None:
    colors = iter((ORANGE, GREEN, "#9467bd", "#c23b5a", "#17a2b8") * 4)
    for name, curve in sorted(curves.items()):
        if name.startswith("train/"):
            axes.plot(curve.steps_S, curve.values_S, color=BLUE, alpha=0.25, linewidth=0.8)
            mean_S = _running_mean(curve.values_S)
            axes.plot(curve.steps_S, mean_S, color=BLUE, linewidth=1.6, label="training")
        else:
            label = _named(name.removeprefix("eval/").rsplit("/", 1)[0].replace("_", " "))
            axes.plot(curve.steps_S, curve.values_S, ".-", color=next(colors), label=label)


def _running_mean(values_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last 5 % of the run, fewer where fewer came before; NaN are left out."""
    window = max(1, len(values_S) // 20)
    known_S = np.isfinite(values_S)
    sums_S = np.cumsum(np.where(known_S, values_S, 0.0))
    counts_S = np.cumsum(known_S).astype(np.float64)
    sums_S[window:] -= sums_S[:-window].copy()
    counts_S[window:] -= counts_S[:-window].copy()
    return np.where(counts_S > 0, sums_S / np.maximum(counts_S, 1), np.nan)


def _chance_line(axes: Axes, value: float) -> None:
    axes.axhline(value, color=_INK, linestyle="--", linewidth=1, label="chance (loss ln 2)")


def _legend_above(figure: Figure, handles: Mapping[str, Artist], first: Sequence[str] = ()) -> None:
    """A legend over the axes, where it hides no data; the labels in `first` lead."""
    labels = sorted(handles, key=lambda label: label not in first)
    columns = 2 if max(map(len, labels)) > 16 else 3
    figure.legend([handles[label] for label in labels], labels, loc="outside upper left", ncols=columns)


def _draw_bars(axes: Axes, rows_P: NDArray[np.int64], means: Sequence[Interval]) -> None:
    values_P = np.asarray([_value(mean) for mean in means])
    low_P = np.asarray([_value(mean, "low") for mean in means])
    high_P = np.asarray([_value(mean, "high") for mean in means])
    errors_2P = np.maximum(np.stack([values_P - low_P, high_P - values_P]), 0)
    axes.barh(rows_P, values_P, height=0.72, color=BLUE, alpha=0.75, label="reward model")
    axes.errorbar(values_P, rows_P, xerr=errors_2P, fmt="none", ecolor=_INK, elinewidth=1, zorder=3)


def _value(mean: Interval, field: str = "value") -> float:
    value = mean[field]  # type: ignore[literal-required]
    return math.nan if value is None else float(value)


def _readable_on(color: tuple[float, float, float, float]) -> str:
    red, green, blue, _ = color
    return "#111111" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "#ffffff"


def _named(name: str) -> str:
    """A name from data as a label. Matplotlib leaves labels that begin with an underscore out of a legend."""
    return printable(f" {name}" if name.startswith("_") else name)


def _shortened(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _law_label(law: PowerLaw) -> str:
    return f"L = {law.beta:.3g} · C^({law.alpha:.4f}), R² = {law.r_squared:.4f}"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
