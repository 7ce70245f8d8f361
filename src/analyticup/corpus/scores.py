"""Score tables: Parquet files with a row per scored row, the same bytes for the same values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame


def save_table(columns: Mapping[str, Any], path: Path) -> None:
    """Writes columns of equal length as Parquet, types as NumPy has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)), path)


def load_table(path: Path) -> DataFrame:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read().to_pandas()
