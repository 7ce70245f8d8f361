"""Results as one table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from analyticup.experiments.bench.harness import Result, Round
from analyticup.terminal import markdown_table

COLUMNS = ("part", "what", "rows/s", "tokens/s", "seconds", "CPU s", "peak GB", "GFLOP/s", "of limit", "note")
MATMUL = "matrix product: the limit"


def to_record(result: Result) -> dict[str, Any]:
    """One line of the table as plain values: bytes, seconds, rates with median, min and max, and every round."""
    rounds = result.rounds
    done = rounds[0].done if rounds else None
    return {
        "part": result.entry.part,
        "what": result.entry.name,
        "note": result.note,
        "failed": result.failed,
        "rows": done.rows if done else None,
        "tokens": done.tokens if done else None,
        "optimiser_steps": done.steps if done else None,
        "flops": done.flops if done else None,
        "seconds": _spread(rounds, lambda one: one.seconds),
        "cpu_seconds": _spread(rounds, lambda one: one.cpu_seconds),
        "rows_per_second": _spread(rounds, lambda one: one.done.rows / one.seconds if one.done.rows else None),
        "tokens_per_second": _spread(rounds, lambda one: one.done.tokens and one.done.tokens / one.seconds),
        "flops_per_second": _spread(rounds, lambda one: one.done.flops and one.done.flops / one.seconds),
        "peak_bytes": max((one.peak_bytes for one in rounds), default=None),
        "device_bytes": max((one.device_bytes for one in rounds if one.device_bytes), default=None),
        "of_limit": None,
        "rounds": [asdict(one) for one in rounds],
    }


def _spread(rounds: Sequence[Round], value: Callable[[Round], float | None]) -> dict[str, float] | None:
    values = [found for found in map(value, rounds) if found is not None]
    return {"median": median(values), "min": min(values), "max": max(values)} if values else None


def with_limit(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of one part with their share of that part's own matrix-multiply rate, medians both."""
    limits = [one["flops_per_second"]["median"] for one in records if one["what"] == MATMUL and one["flops_per_second"]]
    if not limits:
        return records
    return [
        one | {"of_limit": one["flops_per_second"]["median"] / limits[0]} if one["flops_per_second"] else one
        for one in records
    ]


def cells(record: dict[str, Any]) -> list[str]:
    """One line of text cells under COLUMNS; rates as median (min..max), else medians."""
    peak, share = record["device_bytes"] or record["peak_bytes"], record["of_limit"]
    return [
        record["part"],
        record["what"],
        _rate(record["rows_per_second"]),
        _rate(record["tokens_per_second"]),
        _median(record["seconds"]),
        _median(record["cpu_seconds"]),
        f"{peak / 1e9:.2f}" if peak else "",
        _median(record["flops_per_second"], 1e9),
        f"{share:.1%}" if share is not None else "",
        record["note"],
    ]


def _rate(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    middle, low, high = (_short(spread[name]) for name in ("median", "min", "max"))
    return f"{middle} ({low}..{high})"


def _median(spread: dict[str, float] | None, unit: float = 1.0) -> str:
    return _short(spread["median"] / unit) if spread else ""


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def to_markdown(records: Sequence[dict[str, Any]], about: Sequence[str]) -> str:
    return "\n\n".join([*about, markdown_table(COLUMNS, map(cells, records))])
