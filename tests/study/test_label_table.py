"""The label-efficiency table and its picture: what is averaged, what is drawn, what is refused."""

import numpy as np
import pytest
from evaluation_tables import cycles
from sklearn.metrics import roc_auc_score

from laennec.errors import InputError
from laennec.evaluation.bootstrap import draw_patients, patient_codes
from laennec.evaluation.plots import figure_png
from laennec.study.label_table import format_label_table, label_efficiency_picture, label_table

NAMES = ["crackle", "wheeze"]
TWO = {"problem_type": "multi_label", "label_names": NAMES}


def cell(mode, fraction, draw, skill):
    """Answers of a model that got better with labels, on the same cycles as every other's."""
    table = cycles()
    rng = np.random.default_rng([draw, int(1000 * fraction), len(mode)])
    for name in NAMES:
        table[f"logit_{name}"] = skill * (table[name] - 0.5) + rng.normal(size=len(table))
    n = int(1000 * fraction)
    return {"mode": mode, "fraction": fraction, "draw": draw, "cycles": n, "patients": min(n, 20),
            "predictions": table, "thresholds": None}  # fmt: skip


@pytest.fixture(scope="module")
def cells():
    return [
        cell(mode, fraction, draw, skill + draw / 10)
        for mode, more in (("finetune", 0.5), ("linear", 0.0))
        for fraction, skill in ((1.0, 2 + more), (0.01, 0.3), (0.1, 1 + more))
        for draw in range(3)
    ]


@pytest.fixture(scope="module")
def rows(cells):
    return label_table(cells, **TWO, n_draws=60)


def at(rows, mode, fraction, figure):
    return next(r for r in rows if (r["mode"], r["fraction"], r["figure"]) == (mode, fraction, figure))


def test_rows_are_modes_by_ascending_fraction_with_every_shown_figure(rows):
    order = list(dict.fromkeys((r["mode"], r["fraction"]) for r in rows))
    assert order == [(m, f) for m in ("linear", "finetune") for f in (0.01, 0.1, 1.0)]
    figures = [r["figure"] for r in rows if (r["mode"], r["fraction"]) == ("linear", 0.1)]
    assert figures == ["roc_auc_macro", "crackle.roc_auc", "wheeze.roc_auc", "icbhi.Score"]
    row = at(rows, "linear", 0.1, "roc_auc_macro")
    assert (row["cycles"], row["patients"], row["draws"]) == (100, 20, 3)


def test_mean_and_deviation_are_over_the_draws_of_labels(cells, rows):
    mine = sorted((c for c in cells if (c["mode"], c["fraction"]) == ("linear", 0.1)), key=lambda c: c["draw"])
    areas = [roc_auc_score(c["predictions"]["crackle"], c["predictions"]["logit_crackle"]) for c in mine]
    row = at(rows, "linear", 0.1, "crackle.roc_auc")
    np.testing.assert_allclose(row["values"], areas)
    assert row["mean"] == pytest.approx(np.mean(areas)) and row["sd"] == pytest.approx(np.std(areas, ddof=1))


def test_the_interval_draws_patients_and_averages_within_each_draw(cells, rows):
    """By a loop over draws of patients, each figure from repeated rows."""
    mine = [c["predictions"] for c in cells if (c["mode"], c["fraction"]) == ("finetune", 0.1)]
    codes, n = patient_codes(mine[0])
    means = []
    for drawn in draw_patients(n, 60, 0):
        chosen = np.concatenate([np.flatnonzero(codes == patient) for patient in drawn])
        parts = [t.iloc[chosen] for t in mine]
        means.append(np.mean([roc_auc_score(t["wheeze"], t["logit_wheeze"]) for t in parts]))
    row = at(rows, "finetune", 0.1, "wheeze.roc_auc")
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_one_draw_has_no_deviation_and_few_patients_no_interval(cells):
    one = [c for c in cells if c["draw"] == 0 and c["mode"] == "linear"]
    assert {r["sd"] for r in label_table(one, **TWO, n_draws=20)} == {None}
    few = [c | {"predictions": c["predictions"].iloc[:60]} for c in one]
    assert {r["low"] for r in label_table(few, **TWO, n_draws=20)} == {None}
    assert {r["low"] for r in label_table(one, **TWO, n_draws=0)} == {None}


def test_a_figure_that_one_draw_does_not_have_is_undefined(cells):
    one = [c | {"predictions": c["predictions"].assign(wheeze=0)} for c in cells if c["mode"] == "linear"]
    rows = label_table(one, **TWO, n_draws=20)
    assert at(rows, "linear", 0.1, "wheeze.roc_auc")["mean"] is None
    assert "undefined" in format_label_table(rows)
    assert figure_png(label_efficiency_picture(rows, "undefined"))


def test_cells_scored_on_other_cycles_do_not_stand_in_one_table(cells):
    other = cells[0] | {"predictions": cells[0]["predictions"].iloc[1:]}
    with pytest.raises(InputError, match="scored on other cycles"):
        label_table([*cells[1:], other], **TWO, n_draws=5)


def test_the_text_has_a_line_for_each_mode_and_fraction(rows):
    lines = format_label_table(rows).splitlines()
    assert len(lines) == 7 and lines[0].split()[:5] == ["mode", "labels", "cycles", "patients", "draws"]
    row = at(rows, "linear", 0.01, "icbhi.Score")
    wanted = f"{row['mean']:.1f} ± {row['sd']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    assert lines[1].startswith("linear") and "1 %" in lines[1] and lines[1].endswith(wanted)


def test_the_picture_draws_the_rows(rows):
    figure = label_efficiency_picture(rows, "made up: 280 cycles of 14 patients")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["AUROC, mean of labels", "crackle AUROC", "wheeze AUROC", "ICBHI Score"]
    for axes, figure_id in zip(
        panels, ("roc_auc_macro", "crackle.roc_auc", "wheeze.roc_auc", "icbhi.Score"), strict=True
    ):
        assert axes.get_xscale() == "log"
        ticks = [t.get_text() for t in axes.get_xticklabels()]
        assert ticks == ["1 %\n10", "10 %\n100", "100 %\n1,000"]
        lines = {line.get_label(): line for line in axes.lines}
        for mode in ("linear", "fine-tuned"):
            line = next(v for k, v in lines.items() if k.startswith(mode) and "mean" in k)
            means = [at(rows, mode.replace("fine-tuned", "finetune"), f, figure_id)["mean"] for f in (0.01, 0.1, 1.0)]
            np.testing.assert_allclose(line.get_ydata(), means)
    assert panels[0].get_ylim() == panels[1].get_ylim() == panels[2].get_ylim()
    assert figure_png(figure) == figure_png(label_efficiency_picture(rows, "made up: 280 cycles of 14 patients"))


def test_a_lone_fraction_and_many_labels_have_a_picture(cells):
    lone = label_table([c for c in cells if c["fraction"] == 1.0], **TWO, n_draws=20)
    assert figure_png(label_efficiency_picture(lone, "one fraction")).startswith(b"\x89PNG")
    many = [
        row | {"figure": f"label {k}.roc_auc"} for k in range(9) for row in lone if row["figure"] == "roc_auc_macro"
    ]
    drawn = label_efficiency_picture([*many, *[r for r in lone if r["figure"] == "icbhi.Score"]], "many labels")
    assert sum(axes.get_visible() for axes in drawn.axes) == 6
    assert drawn.axes[5].get_title(loc="left") == "ICBHI Score"
