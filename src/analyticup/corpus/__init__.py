"""The rows that everything works on: the embedded sample corpus, and the competition's files read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from analyticup.artifacts import file_sha256, fingerprint

# The words of the sample corpus, in thirteen languages; the lexicon translates by them.
TABLES: Final = Path(__file__).parent / "tables"


def tables_sha256(folder: Path = TABLES) -> str:
    """sha256 (hex) over the names and contents of its tables."""
    return fingerprint({path.name: file_sha256(path) for path in sorted(folder.glob("*.tsv"))})
