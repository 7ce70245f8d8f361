"""What the translate stage reports about its translations: all pairs, figures per language, and examples to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from analyticup.augmentation.translate import Pair, Pairs
from analyticup.engine.files import write_json, write_json_lines
from analyticup.seeds import seeded_key

PAIRS, REPORT, READABLE = "pairs.jsonl", "translation_report.json", "translation_report.md"
EXAMPLES: Final = 20
QUANTILES: Final = (5, 25, 50, 75, 95)
_DIGITS: Final = 6


def write_report(pairs: Mapping[str, Pairs], counts: Mapping[str, Mapping[str, int]], seed: int, folder: Path) -> None:
    """Writes PAIRS, REPORT and READABLE into `folder`; the same translations give the same bytes."""
    languages = {language: summary(pairs[language], counts[language], seed) for language in pairs}
    write_json_lines(folder / PAIRS, [_plain(pair) for language in pairs for pair in pairs[language].found])
    write_json(folder / REPORT, {"languages": languages})
    (folder / READABLE).write_text(readable(languages), encoding="utf-8", newline="\n")


def summary(pairs: Pairs, counts: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Pairs found and refused (by reason), counts of rows, quantiles of the scores of all pairs found, and EXAMPLES of
    the pairs that became rows, in an order drawn from the seed."""
    used = [pair for pair in pairs.found if pair.rows]
    used.sort(key=lambda pair: seeded_key(seed, "example", pair.language, pair.source_language, pair.source))
    return {
        "pairs found": len(pairs.found),
        "pairs refused": dict(pairs.refused),
        "rows": dict(counts),
        "score": _quantiles([pair.score for pair in pairs.found if pair.score is not None]),
        "examples": [_plain(pair) for pair in used[:EXAMPLES]],
    }


def _quantiles(scores: list[float]) -> dict[str, float] | None:
    if not scores:
        return None
    values = np.percentile(scores, QUANTILES)
    return {f"p{part}": round(float(value), _DIGITS) for part, value in zip(QUANTILES, values, strict=True)}


def _plain(pair: Pair) -> dict[str, Any]:
    score = None if pair.score is None else round(pair.score, _DIGITS)
    return asdict(pair) | {"score": score}


def readable(languages: Mapping[str, Mapping[str, Any]]) -> str:
    """The report as Markdown: per language its figures and a table of examples."""
    parts = ["# Translations\n"]
    if not languages:
        parts.append("No language to translate to.\n")
    for language, entry in languages.items():
        parts.append(f"## {language}\n")
        parts.append(f"- pairs found: {entry['pairs found']}; refused: {_listed(entry['pairs refused'])}")
        parts.append(f"- rows: {_listed(entry['rows'])}")
        if entry["score"]:
            parts.append(f"- score: {_listed(entry['score'])}")
        parts.append("")
        if entry["examples"]:
            parts += ["| from | query | translation | score |", "|---|---|---|---|"]
            parts += [_table_row(example) for example in entry["examples"]]
            parts.append("")
    return "\n".join(parts)


def _listed(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items()) or "none"


def _table_row(example: Mapping[str, Any]) -> str:
    score = "" if example["score"] is None else str(example["score"])
    cells = (example["source_language"], example["source"], example["translation"], score)
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """A query as it is, though Markdown and HTML would read some of its characters."""
    for character in "\\`*_[]<|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
