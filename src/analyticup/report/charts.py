"""The report's pictures as marks of an SVG drawing; a template writes them out.

A drawing is `WIDTH` units wide, the width of a phone, and only scaled up from there, so that its text stays legible.
Colours are classes of the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analyticup.ensembling.threshold import SweepPoint
from analyticup.metrics import ALL, SEEN, UNSEEN, LanguageFigures
from analyticup.report.curves import HISTOGRAM_BINS, CalibrationBin, Confusion, CurvePoint, Series
from analyticup.report.figures import Agreement, FlowStep, FoldFigures

WIDTH = 360
NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Mark:
    """One SVG element."""

    tag: str
    attributes: dict[str, Any]
    text: str = ""


@dataclass
class Drawing:
    """`title` says what is drawn, for those who cannot see it; the numbers are in the table below the picture."""

    title: str
    height: float
    marks: list[Mark] = field(default_factory=list)

    def add(self, tag: str, kind: str, text: str = "", **attributes: Any) -> None:
        rounded = {name: round(value, 1) if isinstance(value, float) else value for name, value in attributes.items()}
        self.marks.append(Mark(tag, {"class": kind, **rounded}, text))

    def line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def text(self, x: float, y: float, text: str, kind: str = "label", anchor: str = "start") -> None:
        self.add("text", kind, text, x=x, y=y, **({} if anchor == "start" else {"text-anchor": anchor}))

    def bar(self, kind: str, x: float, y: float, width: float, height: float) -> None:
        self.add("rect", kind, x=x, y=y, width=max(width, 0.0), height=height)

    def dot(self, kind: str, x: float, y: float, radius: float = 4.0) -> None:
        self.add("circle", kind, cx=x, cy=y, r=radius)

    def path(self, kind: str, points: Sequence[tuple[float, float]], closed: bool = False) -> None:
        steps = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.add("path", kind, d=f"M{steps}{'Z' if closed else ''}")


@dataclass(frozen=True)
class Scale:
    """Values low..high on start..end of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values from low to high, at most so many."""
        for step in (0.05, 0.1, 0.2, 0.25, 0.5):
            first, last = -int(-self.low / step // 1), int(self.high / step + 1e-9)
            if last - first < most:
                return [round(place * step, 2) for place in range(first, last + 1)]
        return [self.low, self.high]


def short(value: float | None) -> str:
    """A figure in 0..1 with three places, as .828."""
    if value is None:
        return NONE
    return f"{value:.3f}".lstrip("0") if value < 0.9995 else "1.00"


def tick_text(value: float) -> str:
    """A round value of a scale, as .25."""
    return f"{value:g}".replace("0.", ".")


def whole(count: float) -> str:
    """A number of rows, its thousands set apart."""
    return f"{count:,.0f}".replace(",", "\N{THIN SPACE}")


def range_around(values: Sequence[float | None]) -> tuple[float, float]:
    """Tenths around the values, at least .3 apart."""
    known = [value for value in values if value is not None] or [0.0, 1.0]
    low, high = int(min(known) * 10 + 1e-9) / 10, -int(-max(known) * 10 // 1) / 10
    while high - low < 0.299:
        low, high = max(0.0, low - 0.1), min(1.0, high + 0.1)
    return round(low, 1), round(min(high, 1.0), 1)


# ---------------------------------------------------------------- curves


_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, WIDTH - 12.0, 26.0, 30.0


def _axes(drawing: Drawing, x: Scale, y: Scale, x_name: str, y_name: str) -> None:
    for tick in y.ticks():
        drawing.line("grid", x.start, y(tick), x.end, y(tick))
        drawing.text(x.start - 6, y(tick) + 4, tick_text(tick), "tick", "end")
    for tick in x.ticks(6):
        drawing.text(x(tick), y.start + 15, tick_text(tick), "tick", "middle")
    drawing.line("axis", x.start, y.start, x.end, y.start)
    drawing.text(x.end, y.start + 27, x_name, "name", "end")
    drawing.text(0, 11, y_name, "name")


def _plane(title: str, height: float, x: tuple[float, float], y: tuple[float, float]) -> tuple[Drawing, Scale, Scale]:
    drawing = Drawing(title, height)
    return drawing, Scale(*x, _LEFT, _RIGHT), Scale(*y, height - _BOTTOM, _TOP)


def _beside(drawing: Drawing, x: float, y: float, text: str, kind: str = "strong") -> None:
    """A label next to a point, on the side where there is room."""
    left = x > WIDTH * 0.55
    drawing.text(x + (-9 if left else 9), y, text, kind, "end" if left else "start")


def sweep_chart(task: str, sweep: Sequence[SweepPoint], value: float, f1: float, floor: float) -> Drawing:
    """F1 by threshold with the chosen one: the paper's Figure 2."""
    # Far below the floor there is nothing to choose.
    lowest = min(floor, f1) - 0.25
    shown = [point for point in sweep if point["f1"] >= lowest]
    known = [point["f1"] for point in shown]
    title = f"{task}: F1 of the out-of-fold rows by threshold; the threshold is {value:.2f}, the floor {floor:.3f}"
    ends = (sweep[0]["threshold"], sweep[-1]["threshold"]) if len(sweep) > 1 else (0.0, 1.0)
    drawing, x, y = _plane(title, 220, (min(0.0, ends[0]), max(1.0, ends[1])), range_around([*known, floor, f1]))
    _axes(drawing, x, y, "threshold", "F1")
    drawing.line("floor", x.start, y(floor), x.end, y(floor))
    drawing.text(x.start + 4, y(floor) + 13, f"floor {short(floor)}", "floor-label halo")
    drawing.line("chosen", x(value), y.start, x(value), y.end)
    drawing.path("line one", [(x(point["threshold"]), y(point["f1"])) for point in shown])
    drawing.dot("dot one", x(value), y(f1))
    _beside(drawing, x(value), y.end + 2, f"{value:.2f}: F1 {short(f1)}")
    return drawing


def precision_recall_chart(title: str, curves: Mapping[str, tuple[Sequence[CurvePoint], Mapping[str, Any]]]) -> Drawing:
    """Precision by recall of one or two sets of rows, with the point of the threshold and the share of positives, which
    is the precision of a ranking by chance; a set's figures are `LanguageFigures`."""
    drawing, x, y = _plane(title, 250, (0, 1), (0, 1))
    _axes(drawing, x, y, "recall", "precision")
    for kind, (name, (points, figures)) in zip(("two", "one"), reversed(list(curves.items())), strict=False):
        base = figures["positives"] / figures["rows"]
        drawing.line(f"floor {kind}", x.start, y(base), x.end, y(base))
        drawing.path(f"line {kind}", [(x(point["recall"]), y(point["precision"])) for point in points])
        drawing.dot(f"dot {kind}", x(figures["recall"]), y(figures["precision"]))
        low = 16 if kind == "one" else 32
        drawing.bar(f"fill {kind}", x.start + 8, y(0) - low - 4, 14, 3)
        drawing.text(x.start + 28, y(0) - low + 1, f"{name}: AP {short(figures['ap'])}")
    return drawing


def calibration_chart(title: str, curves: Mapping[str, Sequence[CalibrationBin]]) -> Drawing:
    """The share of positives by mean score, of one or two sets of rows, over a bar per bin for its rows."""
    drawing, x, y = _plane(title, 250, (0, 1), (0, 1))
    _axes(drawing, x, y, "score", "share of positives")
    drawing.line("ideal", x(0), y(0), x(1), y(1))
    # In the list of lines: beside the diagonal it would lie on curves.
    drawing.line("ideal", x.start + 8, y.end + 37, x.start + 22, y.end + 37)
    drawing.text(x.start + 28, y.end + 41, "as it should be")
    for kind, (name, bins) in zip(("two", "one"), reversed(list(curves.items())), strict=False):
        most = max((entry["rows"] for entry in bins), default=1)
        total = sum(entry["rows"] for entry in bins)
        if kind == "one":
            for entry in bins:
                height = 30 * entry["rows"] / most
                drawing.bar("rows", x(entry["low"]) + 1, y(0) - height, x(0.1) - x(0) - 2, height)
        drawing.path(f"line {kind}", [(x(entry["score"]), y(entry["positives"])) for entry in bins])
        for entry in bins:
            radius = 2.0 + 5.0 * (entry["rows"] / total) ** 0.5
            drawing.dot(f"dot {kind}", x(entry["score"]), y(entry["positives"]), radius)
        low = 0 if kind == "one" else 16
        drawing.bar(f"fill {kind}", x.start + 8, y.end + 4 + low, 14, 3)
        drawing.text(x.start + 28, y.end + 9 + low, name)
    return drawing


# ---------------------------------------------------------------- languages, folds

# Groups of languages, as a picture has room to name them.
GROUPS = {SEEN: "seen", UNSEEN: "unseen", ALL: "all"}


def headline_strip(title: str, figures: Mapping[str, Any], low: float, high: float, expected: Any = None) -> Drawing:
    """F1 with its interval on a scale from the floor's surroundings to 1, and what was expected, with its tolerance."""
    drawing = Drawing(title, 58)
    floor = figures["floor_f1"]
    known = [floor, low, high, figures["f1"]]
    if expected is not None:
        known += [expected[0] - expected[1], min(1.0, expected[0] + expected[1])]
    x = Scale(*range_around(known), 4, WIDTH - 4)
    middle = 26.0
    if expected is not None:
        left, right = x(expected[0] - expected[1]), x(expected[0] + expected[1])
        drawing.bar("expected", left, middle - 11, right - left, 22)
        drawing.line("expected-value", x(expected[0]), middle - 11, x(expected[0]), middle + 11)
    drawing.line("axis", x.start, middle + 14, x.end, middle + 14)
    for tick in x.ticks(6):
        drawing.text(x(tick), middle + 28, tick_text(tick), "tick", "middle")
    drawing.line("floor", x(floor), middle - 14, x(floor), middle + 14)
    drawing.line("interval one", x(low), middle, x(high), middle)
    drawing.dot("dot one", x(figures["f1"]), middle, 5.0)
    drawing.text(
        x(floor) + (4 if x(floor) < 60 else -4), 9, "floor", "floor-label", "start" if x(floor) < 60 else "end"
    )
    if expected is not None:
        drawing.text(x(expected[0]) + 4, 9, "expected", "tick")
    return drawing


def language_chart(title: str, rows: Sequence[LanguageFigures], intervals: Mapping[str, Any]) -> Drawing:
    """F1 and AUC by language with their intervals, each with its number; the floor of each language's F1 as a tick."""
    step, top = 21.0, 42.0
    groups = [row for row in rows if row["language"] in GROUPS]
    drawing = Drawing(title, top + step * len(rows) + (8 if groups else 0) + 16)
    bounds = [bound for own in intervals.values() for name in ("f1", "auc") for bound in (own.get(name) or ())]
    lowest = min([*bounds, *(row["floor_f1"] for row in rows), 0.5])
    ends = (max(0.0, int(lowest * 10) / 10), 1.0)
    panels = {"f1": Scale(*ends, 88, 184), "auc": Scale(*ends, 228, 326)}
    bottom = drawing.height - 20
    drawing.text(74, 12, "rows", "name", "end")
    for name, x in panels.items():
        drawing.text(x.start, 12, {"f1": "F1", "auc": "ROC-AUC"}[name], "name")
        for tick in (ends[0], *[tick for tick in (0.5, 1.0) if tick > ends[0] + 0.05]):
            drawing.line("grid", x(tick), top - 12, x(tick), bottom)
            drawing.text(x(tick), bottom + 14, tick_text(tick), "tick", "middle")
    drawing.line("floor", panels["auc"](0.5), top - 12, panels["auc"](0.5), bottom)
    drawing.text(panels["auc"](0.5), top - 16, "chance", "floor-label", "middle")
    drawing.line("floor-tick", 150, 3, 150, 15)
    drawing.text(155, 12, "floor", "floor-label")
    y = top
    for row in rows:
        if groups and row is groups[0]:
            drawing.line("grid", 0, y - 4, WIDTH, y - 4)
            y += 8
        _language_line(drawing, y, row, intervals.get(row["language"], {}), panels)
        y += step
    return drawing


def _language_line(
    drawing: Drawing, y: float, row: LanguageFigures, own: Mapping[str, Any], panels: Mapping[str, Scale]
) -> None:
    name, kind = row["language"], "strong" if row["language"] in GROUPS else "label"
    drawing.text(0, y + 4, GROUPS.get(name, name), kind)
    drawing.text(74, y + 4, whole(row["rows"]), "tick", "end")
    for figure, x in panels.items():
        value: float | None = row[figure]  # type: ignore[literal-required]
        if figure == "f1":
            drawing.line("floor-tick", x(row["floor_f1"]), y - 7, x(row["floor_f1"]), y + 7)
        if own.get(figure):
            drawing.line("interval one", x(own[figure][0]), y, x(own[figure][1]), y)
        if value is not None:
            drawing.dot("dot one", x(value), y, 4.5 if kind == "strong" else 3.5)
        drawing.text(x.end + 34, y + 4, short(value), kind if value is not None else "tick", "end")


def fold_chart(title: str, folds: Sequence[FoldFigures]) -> Drawing:
    """F1 and AUC of each fold's held-out rows."""
    rows = [{**fold, "language": fold["fold"]} for fold in folds]
    return language_chart(title, rows, {fold["fold"]: fold["intervals"] for fold in folds})  # type: ignore[arg-type]


def vote_chart(title: str, splits: Mapping[str, Agreement]) -> Drawing:
    """How many of the folds say yes to a row, as one bar of 100 % for each file."""
    drawing = Drawing(title, 22 + 44.0 * len(splits))
    x = Scale(0, 1, 44, WIDTH - 2)
    drawing.text(x.start, 11, "no fold says yes", "tick")
    drawing.text(x.end, 11, "all say yes", "tick", "end")
    for place, (split, found) in enumerate(splits.items()):
        y, at = 20 + 44.0 * place, 0.0
        drawing.text(0, y + 16, split)
        most = len(found["votes"]) - 1
        for votes, count in enumerate(found["votes"]):
            share = count / found["rows"]
            drawing.add(
                "rect",
                "vote",
                x=x(at),
                y=y,
                width=max(0.0, x(at + share) - x(at) - 1),
                height=24,
                style=f"--share:{100 * votes / most:.0f}%",
            )
            if share > 0.09:
                drawing.text((x(at) + x(at + share)) / 2, y + 36, f"{100 * share:.0f} %", "tick", "middle")
            at += share
    return drawing


# ---------------------------------------------------------------- confusion, scores


def confusion_chart(title: str, found: Confusion) -> Drawing:
    """A square for each pair of label and answer, its area the number of rows; errors in the other colour."""
    drawing = Drawing(title, 236)
    largest = max(*found.values(), 1)  # type: ignore[type-var]
    size, left, top = 92.0, 92.0, 40.0
    for place, name in enumerate(("answer yes", "answer no")):
        drawing.text(left + size * (1.2 * place + 0.5), 18, name, "name", "middle")
    for row, label in enumerate(("yes", "no")):
        middle = top + size * (row + 0.5)
        drawing.text(0, middle + 4, f"label {label}", "name")
        for column, answer in enumerate(("yes", "no")):
            count = found[f"{label}_{answer}"]  # type: ignore[literal-required]
            side = (size - 6) * (count / largest) ** 0.5
            centre = left + size * (1.2 * column + 0.5)
            kind = "square right" if label == answer else "square wrong"
            drawing.bar(kind, centre - side / 2, middle - side / 2, side, side)
            drawing.text(centre, middle + 5, whole(count), "number", "middle")
    return drawing


KINDS = {"original": "original", "translation": "translated", "negative": "negatives"}


def spread_chart(title: str, found: Sequence[Series], cut: float | None) -> Drawing:
    """For each kind of rows the scores of those with label yes upwards and of those with label no downwards."""
    origins = list(dict.fromkeys(entry["origin"] for entry in found))
    half, step, room = 34.0, 98.0, 0.0 if cut is None else 16.0
    drawing = Drawing(title, step * len(origins) + 28 + room)
    x = Scale(0, 1, 2, WIDTH - 2)
    width = (x.end - x.start) / HISTOGRAM_BINS
    for place, origin in enumerate(origins):
        middle = 20 + room + half + step * place
        own = [entry for entry in found if entry["origin"] == origin]
        rows = sum(entry["rows"] for entry in own)
        most = max(count for entry in own for count in entry["counts"])
        drawing.text(0, middle - half - 8, f"{KINDS.get(origin, origin)}, {whole(rows)} rows", "strong")
        drawing.text(x.end - 56, middle - half - 8, "label yes", "one-label", "end")
        drawing.text(x.end, middle - half - 8, "label no", "three-label", "end")
        for entry in own:
            kind = "fill one" if entry["label"] else "fill three"
            for number, count in enumerate(entry["counts"]):
                height = half * count / most
                top = middle - height if entry["label"] else middle
                drawing.bar(kind, x.start + number * width + 0.5, top, width - 1, height)
        drawing.line("axis", x.start, middle, x.end, middle)
    bottom = drawing.height - 22
    if cut is not None:
        drawing.line("chosen", x(cut), 2, x(cut), bottom)
        _beside(drawing, x(cut) + (4 if x(cut) > WIDTH * 0.55 else -4), 10, f"threshold {cut:.2f}", "tick")
    for tick in (0.0, 0.5, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(tick, "middle")
        drawing.text(x(tick), bottom + 16, f"{tick:g}", "tick", anchor)
    return drawing


# ---------------------------------------------------------------- rows through the stages


def flow_chart(task: str, steps: Sequence[FlowStep], after: Sequence[tuple[str, str]]) -> Drawing:
    """The training rows from stage to stage as streams, one for each origin, as wide as they have rows; what is set
    aside ends on the right. `after` are lines on what the rows were used for."""
    most = max(sum(step["rows"].values()) + sum(step["aside"].values()) for step in steps)
    x, thick, gap = Scale(0, most, 76, WIDTH - 2), 22.0, 58.0
    drawing = Drawing(
        f"{task}: training rows from stage to stage",
        8 + (thick + gap) * len(steps) - (12 if steps[-1]["aside"] else 26) + 20 * len(after),
    )
    y, before = 8.0, {}
    for step in steps:
        drawing.text(0, y + 15, step["stage"], "strong")
        at, places = 0.0, {}
        for origin in KINDS:
            count = step["rows"].get(origin, 0)
            if not count:
                continue
            places[origin] = (x(at), x(at + count))
            if origin in before:
                left, right = before[origin]
                below, above = y, y - gap
                drawing.path(
                    f"stream {origin}", [(left, above), (right, above), (x(at + count), below), (x(at), below)], True
                )
            drawing.bar(f"fill {origin}", x(at), y, x(at + count) - x(at), thick)
            at += count
        aside = sum(step["aside"].values())
        if aside:
            drawing.bar("aside", x(at) + 1, y, x(at + aside) - x(at) - 1, thick)
        names = [f"{whole(step['rows'][origin])} {KINDS[origin]}" for origin in KINDS if step["rows"].get(origin)]
        drawing.text(x.start, y + thick + 14, " + ".join(names), "label halo")
        if aside:
            drawing.text(x.start, y + thick + 28, f"{MINUS} {_reasons(step['aside'])}", "aside-label halo")
        before, y = places, y + thick + gap
    y -= 24 - (14 if steps[-1]["aside"] else 0)
    for name, text in after:
        drawing.text(0, y, name, "strong")
        drawing.text(x.start, y, text, "label")
        y += 20
    return drawing


def _reasons(aside: Mapping[str, int]) -> str:
    """The reason that most rows have, and how many have another."""
    (why, count), *rest = sorted(aside.items(), key=lambda entry: -entry[1])
    others = f", {whole(sum(other for _, other in rest))} others" if rest else ""
    return f"{whole(count)} {why}{others}"


# ---------------------------------------------------------------- time and memory


@dataclass(frozen=True)
class StageCost:
    """What a stage took: seconds, the most resident bytes of its process with its children, an estimate of these bytes
    where there is one, and its start in seconds from the first one's."""

    title: str
    seconds: float
    memory: int
    estimate: float | None = None
    start: float = 0.0


def timeline_chart(title: str, stages: Sequence[StageCost]) -> Drawing:
    """A line per stage: its seconds from its start on, its peak of memory with the estimate as a tick."""
    step, top = 17.0, 30.0
    drawing = Drawing(title, top + step * len(stages) + 6)
    total = max([stage.start + stage.seconds for stage in stages], default=0.0) or 1.0
    most = max([*(stage.memory for stage in stages), *(stage.estimate or 0 for stage in stages), 1])
    time, memory = Scale(0, total, 112, 238), Scale(0, most, 272, WIDTH - 30)
    drawing.text(time.start, 12, "seconds, from the first start", "name")
    drawing.text(memory.start, 12, "peak, GB", "name")
    for place, stage in enumerate(stages):
        y = top + step * place
        drawing.text(0, y + 4, stage.title, "tick")
        drawing.line("grid", time.start, y, WIDTH, y)
        drawing.bar("fill one", time(stage.start), y - 5, max(time(stage.seconds) - time(0), 1.2), 10)
        drawing.text(
            264, y + 4, f"{stage.seconds:.0f}" if stage.seconds >= 10 else f"{stage.seconds:.1f}", "tick", "end"
        )
        drawing.bar("fill two", memory.start, y - 5, memory(stage.memory) - memory.start, 10)
        if stage.estimate:
            drawing.line("estimate", memory(stage.estimate), y - 7, memory(stage.estimate), y + 7)
        drawing.text(WIDTH, y + 4, f"{stage.memory / 1e9:.1f}" if stage.memory else NONE, "tick", "end")
    return drawing


# ---------------------------------------------------------------- several runs


@dataclass(frozen=True)
class Difference:
    """A run's figure on a group of languages less that of another run, with its interval."""

    run: str
    group: str
    figure: str
    value: float
    low: float
    high: float


RUN_KINDS = ("one", "three", "made", "two")


def signed(value: float) -> str:
    """A difference with its sign and three places."""
    return f"{'+' if value >= 0 else MINUS}{f'{abs(value):.3f}'.lstrip('0') if abs(value) < 1 else f'{abs(value):.2f}'}"


def difference_chart(title: str, found: Sequence[Difference]) -> Drawing:
    """A line per figure, run and group of languages on one scale around 0."""
    step, top = 21.0, 24.0
    blocks = list(dict.fromkeys((entry.figure, entry.run) for entry in found))
    drawing = Drawing(title, top + step * len(found) + 26 * len(blocks) + 16)
    widest = max([abs(bound) for entry in found for bound in (entry.low, entry.high)] + [0.01])
    reach = next((round(step, 2) for step in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0) if step >= widest), 1.0)
    x = Scale(-reach, reach, 70, WIDTH - 48)
    bottom = drawing.height - 20
    for tick in (-reach, -reach / 2, 0.0, reach / 2, reach):
        drawing.line("floor" if tick == 0 else "grid", x(tick), top - 8, x(tick), bottom)
        drawing.text(x(tick), bottom + 14, signed(tick)[:4] if tick else "0", "tick", "middle")
    drawing.text(x(0) - 6, 10, "worse", "tick", "end")
    drawing.text(x(0) + 6, 10, "better", "tick")
    y = top
    for figure, run in blocks:
        drawing.text(0, y + 10, f"{figure}, {run}", "strong halo")
        y += 28
        for entry in (one for one in found if (one.figure, one.run) == (figure, run)):
            kind = "one" if entry.low > 0 or entry.high < 0 else "two"
            drawing.text(0, y + 4, entry.group)
            drawing.line(f"interval {kind}", x(entry.low), y, x(entry.high), y)
            drawing.dot(f"dot {kind}", x(entry.value), y)
            drawing.text(WIDTH, y + 4, signed(entry.value), "label", "end")
            y += step
        y -= 2
    return drawing


def side_by_side_chart(
    title: str, runs: Sequence[str], lines: Sequence[tuple[str, float, Sequence[float | None]]]
) -> Drawing:
    """A line per language, (its code, the floor, each run's F1): a dot for each run and a tick for the floor."""
    step, top = 21.0, 24.0 + 16 * len(runs)
    drawing = Drawing(title, top + step * len(lines) + 12)
    x = Scale(*range_around([value for _, floor, values in lines for value in (floor, *values)]), 44, WIDTH - 8)
    for place, run in enumerate(runs):
        kind = RUN_KINDS[place % len(RUN_KINDS)]
        drawing.dot(f"dot {kind}", 8, 8 + 16.0 * place)
        drawing.text(18, 12 + 16 * place, run)
    drawing.line("floor-tick", 8, 3 + 16 * len(runs), 8, 14 + 16 * len(runs))
    drawing.text(18, 12 + 16 * len(runs), "floor", "floor-label")
    bottom = drawing.height - 20
    for tick in x.ticks():
        drawing.line("grid", x(tick), top - 4, x(tick), bottom)
        drawing.text(x(tick), bottom + 14, tick_text(tick), "tick", "middle")
    for place, (language, floor, values) in enumerate(lines):
        y = top + 8 + step * place
        drawing.text(0, y + 4, language, "strong" if language in GROUPS else "label")
        drawing.line("floor-tick", x(floor), y - 7, x(floor), y + 7)
        known = [value for value in values if value is not None]
        if known:
            drawing.line("axis", x(min(known)), y, x(max(known)), y)
        for run, value in reversed(list(enumerate(values))):
            if value is not None:
                drawing.dot(f"dot {RUN_KINDS[run % len(RUN_KINDS)]}", x(value), y)
    return drawing
