"""The report as one page: sections of pictures with their numbers, from what was recorded. It computes no figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analyticup.corpus.languages import ISO
from analyticup.metrics import ALL, LanguageFigures
from analyticup.report import charts
from analyticup.report.charts import Drawing, StageCost, short, whole
from analyticup.report.figures import OUT_OF_FOLD, Example, Picture, Report
from analyticup.report.tables import SHOWN_THRESHOLDS, cells, describe_counts, number, printable
from analyticup.verdict import Item, Verdict

TASK_NAMES = {"QC": "does a category fit a query?", "QI": "does an item fit a query?"}


@dataclass(frozen=True)
class RowText:
    """A text of a data file, shown in its own direction."""

    text: str
    language: str


# More characters than this are set on several lines.
LONG = 40


def is_long(cell: str | RowText) -> bool:
    return isinstance(cell, str) and len(cell) > LONG


@dataclass(frozen=True)
class Grid:
    """A table of texts; its first `left` columns are words, as is one with a `LONG` text; the others are numbers. On a
    phone, a row of one that `stacks` is several lines."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | RowText]]
    left: int = 1
    stacks: bool = False

    def has_numbers(self, place: int) -> bool:
        """Whether a column is set as numbers: to the right, never on two lines."""
        return place >= self.left and not any(is_long(row[place]) for row in self.rows)


@dataclass(frozen=True)
class Figure:
    """A picture with the table of its numbers, which is open where it has no picture and is not `folded`. `wide`: over
    both columns."""

    title: str
    drawing: Drawing | None = None
    grid: Grid | None = None
    note: str = ""
    code: str = ""
    wide: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """`lead` says how the pictures are read; `key` names it in links."""

    key: str
    title: str
    lead: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Headline:
    """A task's F1 on the rows that say most: `source` names them."""

    task: str
    question: str
    source: str
    rows: int
    value: str
    interval: str
    auc: str
    floor: str
    expected: str
    verdict: Verdict
    says: str
    drawing: Drawing


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a page says besides the report's figures.

    `caveat` is what a reader must know of the data. `expected` are value and tolerance of a figure by its name in
    configs/expected.yaml, `verdicts` the comparison with them. `texts` are query and target by task and row id; empty
    where `no_texts` says why none are shown.
    """

    name: str
    command: str
    costs: Sequence[StageCost]
    verdicts: Sequence[Item] = ()
    expected: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    texts: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    no_texts: str = ""
    caveat: str = ""
    provenance: Sequence[Figure] = ()


def to_html(figures: Report, facts: Facts) -> str:
    """One self-contained page: no script, no font, nothing from a network."""
    return render(
        "report.html",
        title=f"{facts.name}: report",
        facts=facts,
        headlines=[headline(task, figures, facts) for task in figures.out_of_fold],
        sections=[section for section in _sections(figures, facts) if section.figures],
    )


@cache
def _environment() -> Environment:
    folder = Path(__file__).with_name("templates")
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


def render(template: str, **given: Any) -> str:
    """A page of the room's templates; half of a surrogate pair, which no page can hold, becomes a question mark."""
    kinds = {"is_text": lambda cell: isinstance(cell, RowText), "is_long": is_long}
    text = _environment().get_template(template).render(**given, **kinds, languages=ISO, width=charts.WIDTH)
    return text.encode("utf-8", "replace").decode("utf-8")


# ---------------------------------------------------------------- headline


def titles(figures: Report, task: str) -> list[str]:
    """The sets of scored rows of a task whose labels are known: the final split first, out of fold last."""
    return [title for title in (f"test {task}", f"dev {task}", f"{OUT_OF_FOLD} {task}") if title in figures.pictures]


def overall(picture: Picture) -> LanguageFigures:
    return next(row for row in picture["languages"] if row["language"] == ALL)


def headline(task: str, figures: Report, facts: Facts) -> Headline:
    title = titles(figures, task)[0]
    picture = figures.pictures[title]
    row = overall(picture)
    low, high = picture["intervals"][ALL]["f1"] or (row["f1"], row["f1"])
    expected = facts.expected.get(f"{title} {ALL}: f1")
    own = [item for item in facts.verdicts if item.what.startswith(f"figure {title} ")]
    worst = max((item.verdict for item in own), key=[*Verdict].index, default=Verdict.SKIPPED)
    floor = row["floor_f1"]
    if low > floor:
        says = "The whole interval lies above the floor."
    elif high < floor:
        says = "The whole interval lies below the floor: answering yes everywhere is better."
    else:
        says = "The interval holds the floor: not shown to be better than answering yes everywhere."
    drawn = f"{task}: F1 {row['f1']:.4f} on {title}, 95 % interval {low:.4f} to {high:.4f}, floor {floor:.4f}"
    return Headline(
        task=task,
        question=TASK_NAMES.get(task, ""),
        source=_source_name(title, task),
        rows=row["rows"],
        value=short(row["f1"]),
        interval=f"{short(low)} to {short(high)}",
        auc=short(row["auc"]),
        floor=short(floor),
        expected=f"{short(expected[0])} ± {short(expected[1])}" if expected else "",
        verdict=worst,
        says=says,
        drawing=charts.headline_strip(drawn, row, low, high, expected),
    )


def _source_name(title: str, task: str) -> str:
    name = title.removesuffix(f" {task}")
    return "training rows, out of fold" if name == OUT_OF_FOLD else f"{name} rows"


# ---------------------------------------------------------------- sections


def _sections(figures: Report, facts: Facts) -> Iterator[Section]:
    tasks = list(figures.out_of_fold)
    yield Section(
        "rows",
        "Where the training rows come from, and which are used",
        "Each stream is one kind of row, as wide as it has rows. What a stage sets aside has a dashed line.",
        [_flow(task, figures) for task in tasks if figures.flow.get(task)],
    )
    yield Section(
        "languages",
        "Figures by language",
        "A dot is the figure, its line the 95 % interval over queries. The upright tick is the F1 of answering yes "
        "everywhere: a language has learnt something where its line lies right of its tick. Seen languages have "
        "training rows as given, unseen ones have none.",
        [_languages(title, figures.pictures[title]) for title in _in_pairs(figures, tasks)],
    )
    yield Section(
        "threshold",
        "The threshold",
        "F1 of the out-of-fold training rows by threshold (Figure 2 of the paper), and the threshold in use.",
        [_sweep(task, figures) for task in tasks],
    )
    yield Section(
        "ranking",
        "Precision and recall",
        "Every threshold at once. The dot is the threshold in use; the dashed line is the share of positives, which a "
        "ranking by chance has as its precision.",
        [_precision_recall(task, figures) for task in tasks],
    )
    yield Section(
        "calibration",
        "Calibration",
        "Rows in ten bins of their score: on the diagonal the score is the probability of a yes. Larger dots are bins "
        "with more rows; the pale bars show how many.",
        [_calibration(task, figures) for task in tasks],
    )
    yield Section(
        "confusion",
        "Right and wrong answers",
        "The area of a square is the number of its rows; orange squares are errors.",
        [_confusion(task, figures) for task in tasks],
    )
    yield Section(
        "scores",
        "How scores spread",
        "Rows labelled yes point up in blue, rows labelled no down in orange. Each kind of row has its own scale.",
        [_spread(task, figures) for task in tasks if figures.spread.get(task)],
    )
    yield Section(
        "folds",
        "How the folds agree",
        "Each fold's model on the rows that it never saw; then all of them on the same rows.",
        [figure for task in tasks for figure in _folds(task, figures)],
    )
    yield Section(
        "examples",
        "Rows worth a look",
        "The suspects whose label the judges find least likely, and the errors farthest from the threshold. "
        + (facts.no_texts or "Texts are those of the data files."),
        [figure for task in tasks for figure in _examples(task, figures, facts)],
    )
    yield Section(
        "cost",
        "Time and memory",
        "Seconds in which no stage ran are left out; a cached stage is where it was when it was made. Memory is the "
        "most that its process, with those it started, had resident; the upright tick is what `check` estimates for a "
        "process that trains.",
        [_cost(facts)],
    )
    yield Section(
        "origin",
        "What this was made from",
        "The same files, settings, package versions and machine give the same submission, byte for byte.",
        facts.provenance,
    )


def _in_pairs(figures: Report, tasks: Sequence[str]) -> list[str]:
    """All titles, those of the tasks side by side."""
    columns = [titles(figures, task) for task in tasks]
    return [title for line in zip_longest(*columns) for title in line if title]


def _flow(task: str, figures: Report) -> Figure:
    steps, stages = figures.flow[task], figures.stages[task]
    after = []
    folds = [name for name in stages if name.startswith("train-fold")]
    trained = [stages[name]["counts"].get("trained on", 0) for name in folds]
    if trained:
        each = (
            whole(min(trained)) if min(trained) == max(trained) else f"{whole(min(trained))} to {whole(max(trained))}"
        )
        more = ", and once on all" if "train-all" in stages else ""
        after.append(("train", f"{len(folds)} folds, each on {each} rows{more}"))
    predicted = stages.get("ensemble", {}).get("counts", {})
    scored = [f"{whole(predicted[split])} {split}" for split in ("dev", "test") if split in predicted]
    if scored:
        after.append(("predict", f"{' and '.join(scored)} rows"))
    rows = [
        [step["stage"], *(whole(step["rows"].get(kind, 0)) for kind in charts.KINDS), _listed(step["aside"])]
        for step in steps
    ]
    made = [describe_counts(stages[step["stage"]]["counts"]) for step in steps]
    grid = Grid(
        ["stage", *charts.KINDS.values(), "set aside", "all that it counted"],
        [[*row, text] for row, text in zip(rows, made, strict=True)],
    )
    return Figure(task, charts.flow_chart(task, steps, after), grid)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{whole(count)} {why}" for why, count in counts.items()) or charts.NONE


def _languages(title: str, picture: Picture) -> Figure:
    columns = ["language", "rows", "positives", "F1", "95 %", "floor", "precision", "recall", "ROC-AUC", "95 %", "AP"]
    rows = []
    for row in picture["languages"]:
        own = picture["intervals"].get(row["language"], {})
        rows.append(
            [
                *(printable(row["language"]), whole(row["rows"]), whole(row["positives"])),
                *(number(row["f1"]), between(own.get("f1")), number(row["floor_f1"])),
                *(number(row["precision"]), number(row["recall"])),
                *(number(row["auc"]), between(own.get("auc")), number(row["ap"])),
            ]
        )
    drawn = f"{title}: F1 and ROC-AUC by language with 95 % intervals"
    shown = [{**row, "language": printable(row["language"])} for row in picture["languages"]]
    return Figure(title, charts.language_chart(drawn, shown, picture["intervals"]), Grid(columns, rows))  # type: ignore


def between(bounds: Sequence[float] | None) -> str:
    return charts.NONE if bounds is None else f"{short(bounds[0])} to {short(bounds[1])}"


def _sweep(task: str, figures: Report) -> Figure:
    decision = figures.out_of_fold[task]
    held_out = decision.out_of_fold
    drawing = charts.sweep_chart(task, decision.sweep, decision.value, held_out["f1"], held_out["floor_f1"])
    shown = [entry for entry in decision.sweep if round(entry["threshold"], 4) in SHOWN_THRESHOLDS]
    rows = [[f"{entry['threshold']:.2f}", number(entry["f1"])] for entry in shown]
    rows += [[f"{decision.value:.2f} (in use)", number(held_out["f1"])], ["floor", number(held_out["floor_f1"])]]
    for name, found in decision.optimism.items():
        rows.append([f"each fold by the others' threshold ({name})", number(found["nested_f1"])])
    for language, entry in decision.by_language.items():
        rows.append([f"{printable(language)}: {entry['value']:.2f}", f"{entry['rows']} rows"])
    for title, both in figures.cuts.items():
        if title.endswith(f" {task}"):
            rows += [[f"{cut['threshold']:.2f} on {title}, {cut['positive']} yes", number(cut["f1"])] for cut in both]
    kind = {
        "sweep": "has the best F1 of the sweep",
        "fixed": "is fixed by the settings",
        "off": "is one half: switched off",
    }
    note = f"{decision.value:.2f} {kind[decision.mode]}."
    if decision.mode == "sweep" and decision.optimism:
        found = decision.optimism.get("language", decision.optimism["task"])
        note += (
            f" It was chosen on the rows it is judged on here; decided by the other folds' threshold, F1 is "
            f"{short(found['nested_f1'])}."
        )
    if decision.swept is not None:
        note += f" The sweep's best is {decision.swept['threshold']:.2f}; submit-swept.zip is by such ones."
    if decision.by_language:
        note += " Languages have thresholds of their own; the table has them."
    return Figure(f"{task}, {whole(held_out['rows'])} rows", drawing, Grid(["threshold", "F1"], rows), note)


def _two(task: str, figures: Report) -> dict[str, Picture]:
    """The final labelled split and the out-of-fold rows, by what they are called in a picture."""
    found = titles(figures, task)
    return {title.removesuffix(f" {task}"): figures.pictures[title] for title in dict.fromkeys([found[0], found[-1]])}


def _precision_recall(task: str, figures: Report) -> Figure:
    two = {name: (picture["precision_recall"], overall(picture)) for name, picture in _two(task, figures).items()}
    drawing = charts.precision_recall_chart(f"{task}: precision by recall of {', '.join(two)} rows", two)
    rows = []
    for name, (points, _) in two.items():
        for level in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
            at = [point for point in points if point["recall"] >= level]
            if at:
                last = at[-1]
                rows.append([name, f"{last['threshold']:.3f}", number(last["precision"]), number(last["recall"])])
    return Figure(task, drawing, Grid(["rows", "threshold", "precision", "recall"], rows))


def _calibration(task: str, figures: Report) -> Figure:
    if figures.out_of_fold[task].scores != "probability":
        return Figure(task, note="The scores are ranks, not probabilities, so there is nothing to calibrate.")
    two = {name: picture["calibration"] for name, picture in _two(task, figures).items()}
    rows = [
        [
            name,
            f"{entry['low']:.1f} to {entry['high']:.1f}",
            whole(entry["rows"]),
            number(entry["score"]),
            number(entry["positives"]),
        ]
        for name, bins in two.items()
        for entry in bins
    ]
    drawing = charts.calibration_chart(f"{task}: share of positives by score", two)
    return Figure(task, drawing, Grid(["rows of", "score", "rows", "mean score", "share of positives"], rows))


def _confusion(task: str, figures: Report) -> Figure:
    names = titles(figures, task)
    title = names[0]
    rows = [
        [
            name.removesuffix(f" {task}"),
            *(whole(figures.pictures[name]["confusion"][pair]) for pair in ("yes_yes", "yes_no", "no_yes", "no_no")),  # type: ignore
        ]
        for name in names
    ]
    columns = ["rows", "yes, answered yes", "yes, answered no", "no, answered yes", "no, answered no"]
    found = figures.pictures[title]["confusion"]
    said = f"{title}: {found['yes_no'] + found['no_yes']} errors in {sum(found.values())} rows"  # type: ignore
    return Figure(title, charts.confusion_chart(said, found), Grid(columns, rows))


def _spread(task: str, figures: Report) -> Figure:
    found, judged = figures.spread[task], task in figures.suspects
    decision = figures.out_of_fold[task]
    drawing = charts.spread_chart(f"{task}: scores by kind of row", found, None if judged else decision.value)
    bins = charts.HISTOGRAM_BINS
    rows = [
        [charts.KINDS.get(entry["origin"], entry["origin"]), "yes" if entry["label"] else "no", whole(entry["rows"])]
        + [whole(count) for count in entry["counts"]]
        for entry in found
    ]
    columns = ["kind", "label", "rows", *(f"{place / bins:.2f}" for place in range(bins))]
    if judged:
        note = "Scores of the judges that the filter asked, each on rows that it was not trained on."
    else:
        note = "Scores out of fold."
        if any(step["rows"].keys() - {"original"} for step in figures.flow.get(task, [])):
            note += " Made rows are only trained on in this recipe; no model scored them."
    return Figure(task, drawing, Grid(columns, rows, left=2), note)


def _folds(task: str, figures: Report) -> Iterator[Figure]:
    folds = figures.folds.get(task)
    if folds:
        rows = [
            [
                *(fold["fold"], whole(fold["rows"]), number(fold["f1"]), between(fold["intervals"].get("f1"))),
                *(number(fold["floor_f1"]), number(fold["auc"]), between(fold["intervals"].get("auc"))),
            ]
            for fold in folds
        ]
        columns = ["fold", "rows", "F1", "95 %", "floor", "ROC-AUC", "95 %"]
        drawing = charts.fold_chart(f"{task}: F1 and ROC-AUC of each fold's held-out rows", folds)
        yield Figure(f"{task}: held-out rows of each fold", drawing, Grid(columns, rows))
    splits = {
        title.removesuffix(f" {task}"): found
        for title, found in figures.agreement.items()
        if title.endswith(f" {task}") and len(found["votes"]) > 2
    }
    if splits:
        most = max(len(found["votes"]) for found in splits.values())
        rows = [
            [split, whole(found["rows"]), *map(whole, found["votes"]), *_correlations(found["correlations"])]
            for split, found in splits.items()
        ]
        columns = ["file", "rows", *(f"{votes} yes" for votes in range(most)), "lowest rank correlation", "highest"]
        drawing = charts.vote_chart(f"{task}: how many folds say yes to a row", splits)
        same = {split: (found["votes"][0] + found["votes"][-1]) / found["rows"] for split, found in splits.items()}
        shares = " and ".join(f"{100 * share:.0f} % of the {split} rows" for split, share in same.items())
        note = f"All folds agree on {shares}."
        yield Figure(f"{task}: yeses of {most - 1} folds", drawing, Grid(columns, rows), note)


def _correlations(found: Sequence[Sequence[float | None]]) -> tuple[str, str]:
    pairs = [value for place, row in enumerate(found) for value in row[place + 1 :] if value is not None]
    return (number(min(pairs)), number(max(pairs))) if pairs else (charts.NONE, charts.NONE)


def _examples(task: str, figures: Report, facts: Facts) -> Iterator[Figure]:
    if task in figures.filter:
        columns = list(figures.filter[task][0])
        rows = [cells(entry) for entry in figures.filter[task]]
        title = f"{task}: suspects against the wrong labels that are known, by rule"
        yield Figure(title, grid=Grid(columns, rows), wide=True)
    if figures.suspects.get(task):
        yield _example_table(f"{task}: suspects", task, figures.suspects[task], facts, "why, and what was done")
    title = titles(figures, task)[0]
    if figures.pictures[title]["errors"]:
        name = f"{task}: confident errors, {_source_name(title, task)}"
        yield _example_table(name, task, figures.pictures[title]["errors"], facts, "")


def _example_table(title: str, task: str, examples: Sequence[Example], facts: Facts, why: str) -> Figure:
    rows: list[list[str | RowText]] = []
    for example in examples:
        texts = facts.texts.get((task, example["row_id"]))
        shown = [RowText(text, example["language"]) for text in texts] if texts else []
        row = [printable(example["language"]), *shown, "yes" if example["label"] else "no", f"{example['score']:.3f}"]
        rows.append([*row, *([example["why"]] if why else []), example["row_id"]])
    target = "category" if task == "QC" else "item title"
    columns = [
        "language",
        *(["query", target] if facts.texts else []),
        "label",
        "score",
        *([why] if why else []),
        "row",
    ]
    return Figure(title, grid=Grid(columns, rows, len(columns), stacks=bool(facts.texts)), wide=True)


def _cost(facts: Facts) -> Figure:
    total = sum(cost.seconds for cost in facts.costs)
    rows = [
        [
            cost.title,
            f"{cost.start:.1f}",
            f"{cost.seconds:.1f}",
            f"{cost.memory / 1e9:.2f}",
            f"{cost.estimate / 1e9:.2f}" if cost.estimate else charts.NONE,
        ]
        for cost in facts.costs
    ]
    span = max((cost.start + cost.seconds for cost in facts.costs), default=0.0)
    title = f"{len(facts.costs)} stages, {total:.0f} s of work in {span:.0f} s"
    drawing = charts.timeline_chart(f"seconds and peak memory of {title}", facts.costs)
    return Figure(title, drawing, Grid(["stage", "start, s", "seconds", "peak, GB", "estimate, GB"], rows))
