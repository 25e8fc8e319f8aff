import math

import numpy as np

from rmjax.evaluate import plots
from rmjax.evaluate.scaling import envelope, fit_power_law

CURVE = plots.Curve(np.arange(3.0), np.array([0.1, 0.2, 0.4]))


def test_policies_are_sorted_and_show_interval_and_baseline():
    def scorer(values):
        means = {
            name: {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 5} for name, value in values.items()
        }
        return {"overall": means["a"], "ties": 0, "policies": means}

    model, rival = scorer({"a": 0.6, "b": 0.9, "c": 0.7}), scorer({"a": 0.1, "b": 0.2, "c": 0.3})
    (axes,) = plots.accuracy_by_policy(model, {"length": rival}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c", "b"]
    assert [bar.get_width() for bar in axes.patches] == [0.6, 0.7, 0.9]
    (markers,) = [line for line in axes.lines if line.get_label() == "length"]
    assert list(markers.get_xdata()) == [0.1, 0.3, 0.2]
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in axes.lines)  # chance


def test_a_policy_without_triples_has_no_bar():
    none = {"value": None, "low": None, "high": None, "n": 0}
    some = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    scorer = {"overall": some, "ties": 0, "policies": {"a": some, "b": none}}
    (axes,) = plots.accuracy_by_policy(scorer, {}).axes
    assert len(axes.patches) == 1


def test_histogram_heights_are_percentages():
    histogram = {"edges": [0.0, 1.0, 2.0], "same": [1, 3], "other": [5, 0]}
    (axes,) = plots.reward_histogram(histogram).axes
    heights = [patch.get_data().values.tolist() for patch in axes.patches]
    assert heights[0] == [25, 75]
    assert heights[2] == [100, 0]
    assert "n = 4" in axes.get_legend().get_texts()[0].get_text()


def test_learning_curves_draw_training_evaluation_and_chance():
    curve = plots.Curve(np.arange(100.0), np.linspace(0.7, 0.3, 100))
    names = ("train/loss", "train/accuracy", "eval/unseen/accuracy", "train/tokens_per_second")
    figure = plots.learning_curves(dict.fromkeys(names, curve), (0.0, 0.8))
    loss, accuracy = figure.axes
    assert loss.get_ylim() == (0.0, 0.8)
    assert [line.get_label() for line in accuracy.lines][-2:] == ["training", "chance (loss ln 2)"]
    assert "unseen" in [line.get_label() for line in accuracy.lines]
    assert math.log(2) in [line.get_ydata()[0] for line in loss.lines]
    assert not plots.has_learning_curves({"train/tokens_per_second": curve})


def test_the_thick_line_is_a_running_mean():
    curve = plots.Curve(np.arange(200.0), np.tile([0.0, 1.0], 100))
    loss = plots.learning_curves({"train/loss": curve}).axes[0]
    thick = loss.lines[1].get_ydata()
    np.testing.assert_allclose(thick[10:], 0.5)
    assert thick[0] == 0


def test_scaling_law_draws_runs_envelope_and_fit():
    runs = {"small": ([1e12, 1e13], [0.6, 0.5]), "large": ([1e13, 1e14], [0.55, 0.4])}
    points = envelope(runs)
    law = fit_power_law([p.compute for p in points], [p.loss for p in points])
    figure = plots.scaling_law(runs, points, law)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert len(axes.lines) == 4
    assert f"{law.alpha:.4f}" in axes.lines[-1].get_label()
    assert plots.svg(figure, 'a "law"').startswith('<svg role="img" aria-label="a &quot;law&quot;"')


def test_growth_has_a_panel_for_each_axis_and_the_points_of_it():
    speeds = {"median": 4.0, "low": 3.0, "high": 4.5}
    figure = plots.growth(
        {"parameters": [(2e6, speeds), (3e7, speeds)], "devices": [(1, speeds), (2, speeds), (2048, speeds)]}
    )
    parameters, devices = figure.axes
    assert [t.get_text() for t in parameters.get_xticklabels()] == ["2 M", "30 M"]
    assert [t.get_text() for t in devices.get_xticklabels()] == ["1", "2", "2,048"]
    assert (
        devices.get_xlabel() == "devices" and devices.get_yscale() == "log" and len(devices.lines[0].get_xdata()) == 3
    )
    bottom, top = devices.get_ylim()
    assert bottom < 3.0 and top > 4.5 and round(top / bottom, 6) == 4, "what hardly changes looks flat"


def test_lines_against_size_stand_side_by_side_with_their_intervals():
    def means(*values):
        return [{"value": v, "low": v - 0.1, "high": v + 0.2, "n": 4} for v in values]

    none = {"value": None, "low": None, "high": None, "n": 0}
    figure = plots.against_size(
        [8, 64], {"facts": {"full": means(0.5, 0.2), "lora": [*means(0.6), none]}, "loss": {}}, "tasks"
    )
    facts, loss = figure.axes
    assert facts.get_title(loc="left") == "facts" and not loss.containers
    full, lora = facts.containers
    assert list(full.lines[0].get_ydata()) == [0.5, 0.2] and np.isnan(lora.lines[0].get_ydata()[1])
    assert full.lines[0].get_xdata()[0] < lora.lines[0].get_xdata()[0]
    (bars,) = full.lines[2]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.4, 0.7])
    assert "svg" in plots.svg(figure, "forgetting")


NAMES = ("$^$", "_hidden", "\x1b[31mred", "\ud800", "--><script>", "")


def test_any_name_can_be_drawn_and_is_shown_as_it_is():
    interval = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    scorer = {"overall": interval, "ties": 0, "policies": dict.fromkeys(NAMES, interval)}
    curve = plots.Curve(np.arange(9.0), np.linspace(0.7, 0.3, 9))
    runs = {name: ([1e12 * (i + 1), 1e13 * (i + 1)], [0.6 - i / 30, 0.5 - i / 30]) for i, name in enumerate(NAMES)}
    points = envelope(runs)
    law = fit_power_law([p.compute for p in points], [p.loss for p in points])
    figures = [
        plots.accuracy_by_policy(scorer, {name: scorer for name in NAMES[:4]}),
        plots.kind_matrix({name: dict.fromkeys(NAMES, interval) for name in NAMES}),
        plots.gap_distributions(dict.fromkeys(NAMES, [0.5, 1.0])),
        plots.learning_curves({f"eval/{name}/accuracy": curve for name in NAMES}),
        plots.routing_map(np.full((len(NAMES), 2, 2), 0.5), NAMES),
        plots.against_size([1, 10], {name: dict.fromkeys(NAMES, [interval] * 2) for name in NAMES}, "tasks"),
        plots.growth({name: [(1.0, {"median": 2.0, "low": 1.0, "high": 3.0})] * 2 for name in NAMES}),
        plots.scaling_law(runs, points, law),
    ]
    for figure in figures:
        drawn = plots.svg(figure, NAMES[0] + NAMES[2] + NAMES[3])
        assert "$^$" in drawn and r"\x1b[31mred" in drawn and "hidden" in drawn
        assert not {"\x1b", "\ud800"} & set(drawn) and "<script>" not in drawn


def test_margins_count_ties_half_and_color_what_is_wrong():
    (axes,) = plots.margins([1.0, 0.5, 0.0, -1.0]).axes
    assert axes.get_title() == "62% of 4 pairs in order"
    assert sum(bar.get_height() for bar in axes.patches) == 4
    wrong = {bar.get_facecolor() for bar in axes.patches if bar.get_x() + bar.get_width() <= 1e-9}
    assert wrong.isdisjoint({bar.get_facecolor() for bar in axes.patches if bar.get_x() >= -1e-9})
    assert plots.margins([]).axes[0].get_title() == "0 pairs in order"


def test_lines_draw_each_curve_and_the_guide():
    figure = plots.lines({"a": CURVE, "b": CURVE}, "metric", guide=0.5)
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert list(axes.lines[0].get_ydata()) == CURVE.values_S.tolist()
    assert set(axes.lines[2].get_ydata()) == {0.5}
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("metric", "optimizer step")
