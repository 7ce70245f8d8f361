"""The rows that everything works on: the embedded sample corpus, and the competition's files read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from analyticup.engine.artifacts import fingerprint
from analyticup.engine.files import file_sha256
from analyticup.engine.graph import Stage
from analyticup.settings.schema import Settings, decisive

# The words of the sample corpus, in thirteen languages; the lexicon translates with them.
TABLES: Final = Path(__file__).parent / "tables"


def tables_sha256(folder: Path = TABLES) -> str:
    """sha256 (hex) over the names and contents of its tables."""
    return fingerprint({path.name: file_sha256(path) for path in sorted(folder.glob("*.tsv"))})


def sample_settings(own: Settings) -> dict[str, Any]:
    return {"sample": decisive(own.data.sample), "seed": own.seed, "tables": tables_sha256()}


def ingest_settings(own: Settings) -> dict[str, Any]:
    """Without what is switched off, so that artifacts made before a switch existed are found again."""
    data: dict[str, Any] = {"max_chars": own.data.max_chars, "train_rows": own.data.train_rows}
    if own.data.flip_labels:
        data["flip_labels"] = own.data.flip_labels
    if own.data.train_rows or own.data.flip_labels:
        data["seed"] = own.seed
    return data


SAMPLE = Stage("sample", version=1, run="analyticup.corpus.stage:sample", settings=sample_settings, model=False)
INGEST = Stage("ingest", version=1, run="analyticup.corpus.stage:ingest", settings=ingest_settings, model=False)
