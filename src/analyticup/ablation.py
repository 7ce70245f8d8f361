"""The ablation: the rows of the paper's Table 3 on the same data, with intervals, and its Figure 2.

A row is a config under configs/ablation/ that is laid over the given one. Rows share every stage that they have in
common, as any two runs do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.bootstrap import FIGURES, RESAMPLES, interval, query_weights, weighted_figures

if TYPE_CHECKING:
    import numpy as np

    from analyticup.artifacts import Artifact

ALL, SEEN, UNSEEN = "all", "with training rows", "without training rows"


@dataclass(frozen=True)
class Row:
    """One row of the table: its config's file name and the row that it adds one thing to."""

    task: str
    config: str
    title: str
    parent: str | None


# Table 3 of arXiv 2510.21671, per task in its order; DPO is an alternative to SFT, nothing builds on it. The last two
# rows of QC are not in it: one rival found that easy negatives help and hard ones hurt.
ROWS = (
    Row("QC", "qc1-sft", "SFT", None),
    Row("QC", "qc2-dpo", "DPO", "qc1-sft"),
    Row("QC", "qc3-translation", "SFT + translation", "qc1-sft"),
    Row("QC", "qc4-negatives", "+ translation + negatives", "qc3-translation"),
    Row("QC", "qc5-filter", "+ translation + negatives + filter", "qc4-negatives"),
    Row("QC", "qc6-threshold", "+ translation + negatives + threshold", "qc4-negatives"),
    Row("QC", "qc7-easy-negatives", "+ translation + easy negatives", "qc3-translation"),
    Row("QC", "qc8-hard-negatives", "+ translation + hard negatives", "qc3-translation"),
    Row("QI", "qi1-sft", "SFT", None),
    Row("QI", "qi2-translation", "SFT + translation", "qi1-sft"),
    Row("QI", "qi3-filter", "+ translation + filter", "qi2-translation"),
    Row("QI", "qi4-threshold", "+ translation + filter + threshold", "qi3-filter"),
)


@dataclass(frozen=True)
class Scored:
    """One trained row of the table, scored: arrays [rows] in the order of the input."""

    queries: list[str]
    languages: list[str]
    labels: np.ndarray
    scores: np.ndarray
    predictions: np.ndarray
    trained: frozenset[str]
    sweep: list[dict[str, float]]
    threshold: float


def read_scored(task: str, artifacts: Mapping[str, Artifact], raw: Mapping[str, Path]) -> tuple[str, Scored]:
    """(what was scored, the scores) of a finished run: the dev or test rows where labels lie beside them, else the
    training rows out of fold, which have no languages without training rows."""
    from analyticup.corpus.rows import load_rows

    chosen = json.loads(artifacts[f"threshold-{task}"].file("threshold.json").read_text(encoding="utf-8"))
    train = load_rows(artifacts[f"ingest-{task}"].file("train.parquet"))
    for split in ("dev", "test"):
        if f"{split}_{task}.labels.txt" in raw and f"{split}_{task}.txt" in raw:
            return split, _labelled(task, split, artifacts, raw, frozenset(train["language"]), chosen)
    return "out-of-fold train", _out_of_fold(task, artifacts, train, chosen)


def _labelled(
    task: str,
    split: str,
    artifacts: Mapping[str, Artifact],
    raw: Mapping[str, Path],
    trained: frozenset[str],
    chosen: Mapping[str, Any],
) -> Scored:
    from analyticup.corpus.rows import load_rows
    from analyticup.corpus.scores import load_table
    from analyticup.errors import UserError
    from analyticup.submission import read_labels

    truth = read_labels(raw[f"{split}_{task}.labels.txt"])
    table = load_table(artifacts["submit-all"].file(f"{split}/scores_{task}.parquet"))
    rows = load_rows(artifacts[f"ingest-{task}"].file(f"{split}.parquet"))
    missing = [number for number in table["id"] if number not in truth]
    if missing:
        path = raw[f"{split}_{task}.labels.txt"]
        raise UserError(f"{path}: {len(missing)} ids have no label, e.g. {missing[0]}; complete the file")
    return Scored(
        queries=rows["group"].tolist(),
        languages=table["language"].tolist(),
        labels=table["id"].map(truth).to_numpy(dtype=int),
        scores=table["score"].to_numpy(),
        predictions=table["prediction"].to_numpy(dtype=int),
        trained=trained,
        sweep=chosen["sweep"],
        threshold=chosen["value"],
    )


def _out_of_fold(task: str, artifacts: Mapping[str, Artifact], train: Any, chosen: Mapping[str, Any]) -> Scored:
    from analyticup.corpus.scores import load_table

    table = load_table(artifacts[f"threshold-{task}"].file("out_of_fold.parquet"))
    return Scored(
        queries=train.set_index("row_id")["group"].loc[table["row_id"]].tolist(),
        languages=table["language"].tolist(),
        labels=table["label"].to_numpy(dtype=int),
        scores=table["score"].to_numpy(),
        predictions=(table["score"] >= chosen["value"]).to_numpy(dtype=int),
        trained=frozenset(train["language"]),
        sweep=chosen["sweep"],
        threshold=chosen["value"],
    )


def make_table(runs: Mapping[str, Sequence[Scored]], rows: Sequence[Row] = ROWS) -> list[dict[str, Any]]:
    """One entry per row of the table and language group, in order; `runs` maps a config to its scored seeds.

    Each figure is the mean over the seeds; `low`, `high` are its 95 % bootstrap interval over queries. `gain` is the
    difference to the row's parent with its own, paired interval, and `inside_noise` whether that holds 0. `seed_sd` is
    the standard deviation over seeds (None with one).
    """
    drawn = {(row.config, part): _resampled(runs[row.config], part) for row in rows for part in (ALL, SEEN, UNSEEN)}
    table = []
    for row in rows:
        for part in (ALL, SEEN, UNSEEN):
            own = drawn[row.config, part]
            if own is None:
                continue
            base = drawn.get((row.parent or "", part))
            table.append({"task": row.task, "row": row.title, "config": row.config, "languages": part, **own["about"]})
            table[-1] |= {name: _entry(own, base, name) for name in FIGURES}
    return table


def _resampled(seeds: Sequence[Scored], part: str) -> dict[str, Any] | None:
    """Figures and their resamples, each with a row per seed; None where the group has no rows."""
    import numpy as np

    point: dict[str, list[float]] = {name: [] for name in FIGURES}
    resamples: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
    floors, sizes = [], []
    for scored in seeds:
        chosen = _members(scored, part)
        if not chosen.any():
            return None
        given = (scored.labels[chosen], scored.scores[chosen], scored.predictions[chosen])
        queries = [query for query, inside in zip(scored.queries, chosen, strict=True) if inside]
        once = weighted_figures(*given, np.ones((1, len(queries))))
        drawn = weighted_figures(*given, query_weights(queries, RESAMPLES, seed=0))
        for name in FIGURES:
            point[name].append(float(once[name][0]))
            resamples[name].append(drawn[name])
        positives = int(given[0].sum())
        floors.append(2 * positives / (positives + len(queries)))
        sizes.append(len(queries))
    about = {"rows": sizes[0], "seeds": len(seeds), "floor_f1": float(np.mean(floors))}
    return {"point": point, "resamples": {k: np.mean(v, axis=0) for k, v in resamples.items()}, "about": about}


def _members(scored: Scored, part: str) -> np.ndarray:
    import numpy as np

    seen = np.isin(scored.languages, sorted(scored.trained))
    return {ALL: np.ones(len(seen), dtype=bool), SEEN: seen, UNSEEN: ~seen}[part]


def _entry(own: Mapping[str, Any], base: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    import numpy as np

    values = own["point"][name]
    low, high = interval(own["resamples"][name])
    entry = {"value": float(np.mean(values)), "low": low, "high": high, "per_seed": values}
    entry["seed_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    if base is not None:
        gain_low, gain_high = interval(own["resamples"][name] - base["resamples"][name])
        entry["gain"] = {
            "value": entry["value"] - float(np.mean(base["point"][name])),
            "low": gain_low,
            "high": gain_high,
            "inside_noise": gain_low <= 0 <= gain_high,
        }
    return entry


def figures_by_name(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures as configs/expected.yaml calls them, e.g. "qc1-sft all: auc"."""
    return {
        f"{entry['config']} {entry['languages']}: {name}": entry[name]["value"] for entry in table for name in FIGURES
    }


COLUMNS = ("task", "row", "languages", "rows", "floor F1", "F1", "gain", "AUC", "gain", "AP", "gain")


def cells(entry: Mapping[str, Any]) -> list[str]:
    """One entry of `make_table` as the texts of COLUMNS."""
    shown = [entry["task"], entry["row"], entry["languages"], str(entry["rows"]), _number(entry["floor_f1"])]
    for name in ("f1", "auc", "ap"):
        figure = entry[name]
        shown.append(f"{_number(figure['value'])} [{_number(figure['low'])}, {_number(figure['high'])}]")
        shown.append(_gain(figure.get("gain")))
    return shown


def _number(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "-"
    text = f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
    return f"{text} inside the noise" if gain["inside_noise"] else text


def to_markdown(table: Sequence[Mapping[str, Any]], about: str) -> str:
    lines = [about, "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(entry)) + " |" for entry in table]
    return "\n".join(lines) + "\n"


LONG_COLUMNS = (
    *("task", "config", "row", "languages", "rows", "seeds", "floor_f1", "figure"),
    *("value", "low", "high", "seed_sd", "gain", "gain_low", "gain_high", "inside_noise"),
)


def long_rows(table: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """One row of LONG_COLUMNS per entry and figure, numbers unrounded, None where there is none."""
    found = []
    for entry in table:
        for name in FIGURES:
            figure = entry[name]
            gain = figure.get("gain") or {}
            own = [figure[key] for key in ("value", "low", "high", "seed_sd")]
            tail = [gain.get(key) for key in ("value", "low", "high", "inside_noise")]
            found.append([*(entry[key] for key in LONG_COLUMNS[:7]), name, *own, *tail])
    return found


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    import csv
    import io

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([LONG_COLUMNS, *long_rows(table)])
    return stream.getvalue()


def draw_thresholds(task: str, scored: Scored, path: Path) -> None:
    """Figure 2 of the paper for this run: F1 over threshold out of fold (where it is chosen) and on the scored rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from analyticup.metrics import f1_at_thresholds

    grid = [entry["threshold"] for entry in scored.sweep]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(grid, [entry["f1"] for entry in scored.sweep], label="out of fold")
    axes.plot(grid, f1_at_thresholds(scored.labels, scored.scores, grid), label="scored rows")
    axes.axvline(scored.threshold, color="black", linestyle="--", label=f"chosen: {scored.threshold:.2f}")
    axes.set(title=f"{task}: F1 over threshold", xlabel="threshold", ylabel="F1 of the positive class")
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
