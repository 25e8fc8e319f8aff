"""A report as one self-contained HTML page: no network, readable on a phone, light or dark."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rmjax.evaluate import plots
from rmjax.evaluate.plots import Curve
from rmjax.evaluate.routing import spread_of
from rmjax.evaluate.statistics import Interval
from rmjax.evaluate.table import LABELS, Report, Section, column_names, format_mean, spaced
from rmjax.terminal import printable

_CSS = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --dim: #777; }
@media (prefers-color-scheme: dark) { :root { --dim: #aaa; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, figcaption { max-width: 44rem; } figcaption, .dim { color: var(--dim); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { padding-top: 1rem; font-weight: 600; white-space: normal; }
td b { font-weight: 600; } td small { color: var(--dim); }
.figures { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr)); }
figure { margin: 0; } svg { width: 100%; height: auto; max-width: 34rem; }
svg text { font-family: system-ui, sans-serif; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def render(report: Report, sections: Sequence[Section], runs: Mapping[str, Mapping[str, Curve]]) -> str:
    """The page's HTML.

    Args:
      report: as `rmjax.evaluate.report` describes; what is missing is left out.
      sections: its table.
      runs: name of a training run -> its curves.
    """
    title = _escaped(str(report.get("title", "Reward model report")))
    parts = [
        f"<h1>{title}</h1>",
        _seconds(report),
        _results(sections),
        _differences(report.get("differences", {})),
        _discrimination(report.get("discrimination", {})),
        _routing(report.get("routing", {})),
        _learning_curves(runs),
        _provenance(report.get("provenance", {})),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _seconds(report: Report) -> str:
    seconds = report.get("seconds")
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f'<p class="dim">Wall time {minutes} min {rest} s.</p>'


def _results(sections: Sequence[Section]) -> str:
    names = column_names(sections)
    if not names:
        return ""
    head = "".join(f"<th>{_escaped(spaced(name))}</th>" for name in names)
    body = "".join(_section(section, names) for section in sections)
    return (
        "<h2>Results</h2>\n"
        "<p>Accuracy, with its 95 % bootstrap interval (prompts resampled). Ties count one half; "
        "chance is 0.5 where two answers are compared. <i>Length</i> and <i>word overlap</i> are "
        "trivial baselines: a result is one only above them.</p>\n"
        f'<div class="scroll"><table><thead><tr><th></th>{head}<th>n</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _section(section: Section, names: Sequence[str]) -> str:
    rows = [f'<tr><th colspan="{len(names) + 2}">{_escaped(section.heading)}</th></tr>']
    for row in section.rows:
        cells = "".join(f"<td>{_mean(row.means.get(name))}</td>" for name in names)
        count = max(mean["n"] for mean in row.means.values())
        rows.append(f"<tr><td>{_escaped(row.label)}</td>{cells}<td>{count:,}</td></tr>")
    return "\n".join(rows)


def _mean(mean: Interval | None) -> str:
    value, _, bounds = format_mean(mean).partition(" ")
    return f"<b>{value}</b> <small>{bounds}</small>"


def _differences(differences: Mapping[str, Interval]) -> str:
    known = {label: gain for label, gain in differences.items() if gain["value"] is not None}
    if not known:
        return ""
    rows = "".join(
        f"<tr><td>{_escaped(label)}</td><td><b>{gain['value']:+.3f}</b></td>"
        f"<td>{gain['low']:+.3f} to {gain['high']:+.3f}</td><td>{gain['n']:,}</td></tr>"
        for label, gain in known.items()
    )
    return (
        "<h2>Differences on the same rows</h2>\n"
        "<p>Paired: an interval that leaves out 0 is a difference that other prompts are unlikely "
        "to undo.</p>\n"
        '<div class="scroll"><table><thead><tr><th></th><th>difference</th><th>95 % interval</th>'
        f"<th>n</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _discrimination(splits: Mapping[str, Any]) -> str:
    histograms, policies, kinds = [], [], []
    for split, result in splits.items():
        name = LABELS.get(split, split)
        if result["rewards"]["edges"]:
            figure = plots.reward_histogram(result["rewards"])
            histograms.append(_figure(figure, f"Rewards, {name}"))
        if result["policies"]:
            figure = plots.accuracy_by_policy(result, result["baselines"])
            policies.append(_figure(figure, f"Accuracy by policy, {name}"))
        if result["kinds"]:
            kinds.append(_figure(plots.kind_matrix(result["kinds"]), f"By kind, {name}"))
    return (
        _group("Rewards of same-policy and other-policy answers", "", histograms)
        + _group(
            "Accuracy by policy",
            "The policy that wrote the reference; the other answer is by any other policy.",
            policies,
        )
        + _group(
            "Accuracy by pair of kinds",
            "Rows: kind of the policy that wrote the reference. Columns: kind of the other one. "
            "Yellow is chance, blue above it, red below.",
            kinds,
        )
    )


def _routing(routed: Mapping[str, Any]) -> str:
    """A heat map for each router of a model."""
    figures = []
    for name, routing in routed.items():
        for router, values in routing["shares"].items():
            shares_ZLN = np.asarray(values, np.float64)
            caption = f"{name}, {router}: coefficient of variation {spread_of({router: shares_ZLN}):.3f}"
            figures.append(_figure(plots.routing_map(shares_ZLN, routing["types"]), caption))
    note = (
        "Share of a router's mass by layer (from the first with an adapter), expert and type of text, on held-out texts. "
        "White is an even spread. The coefficient of variation is 0 then, and √(N − 1) where one of N experts has it all."
    )
    return _group("Routing", note, figures)


def _learning_curves(runs: Mapping[str, Mapping[str, Curve]]) -> str:
    drawn = {name: curves for name, curves in runs.items() if plots.has_learning_curves(curves)}
    limits = _loss_limits(curve for curves in drawn.values() for curve in curves.items())
    figures = [
        _figure(plots.learning_curves(curves, limits), f"Learning curves, {name}") for name, curves in drawn.items()
    ]
    note = "Thin: every step; thick: mean over the last 5 % of the run. One scale for all runs."
    return _group("Learning curves", note, figures)


def _loss_limits(curves: Iterable[tuple[str, Curve]]) -> tuple[float, float] | None:
    """A range that holds all losses but the highest half percent, which are spikes."""
    losses = [curve.values_S for name, curve in curves if name.split("/")[-1] == "loss"]
    known_S = np.concatenate([np.zeros(0), *losses])
    known_S = known_S[np.isfinite(known_S)]
    if not known_S.size:
        return None
    return 0.0, 1.08 * max(plots.LN2, float(np.percentile(known_S, 99.5)))


def _figure(figure: Figure, caption: str) -> str:
    caption_html = f"<figcaption>{_escaped(caption)}</figcaption>"
    return f"<figure>{caption_html}{plots.svg(figure, caption)}</figure>"


def _group(heading: str, note: str, figures: Sequence[str]) -> str:
    if not figures:
        return ""
    text = f"<p>{_escaped(note)}</p>" if note else ""
    body = "\n".join(figures)
    return f'<h2>{_escaped(heading)}</h2>\n{text}<div class="figures">{body}</div>\n'


def _escaped(text: str) -> str:
    """For HTML, with what a browser could not show spelled out."""
    return html.escape(printable(text, keep="\n\t"))


def _provenance(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    items = "".join(f"<dt>{_escaped(name)}</dt><dd>{_fact(v)}</dd>" for name, v in facts.items())
    return f"<h2>Provenance</h2>\n<dl>{items}</dl>"


def _fact(value: object) -> str:
    if isinstance(value, Mapping | list | tuple):
        text = _escaped(json.dumps(value, indent=2, ensure_ascii=False, default=str))
        return f"<details><summary>show</summary><pre>{text}</pre></details>"
    return _escaped(str(value))
