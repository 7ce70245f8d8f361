"""The thirteen languages of the competition, in the order its tables use."""

from __future__ import annotations

from typing import Final

LANGUAGES: Final[dict[str, str]] = {
    "en": "English",
    "fr": "French",
    "es": "Spanish",
    "ko": "Korean",
    "pt": "Portuguese",
    "ja": "Japanese",
    "th": "Thai",
    "de": "German",
    "it": "Italian",
    "pl": "Polish",
    "ar": "Arabic",
    "vn": "Vietnamese",
    "id": "Indonesian",
}
# The competition codes Vietnamese by its country, vn; translators and tokenizers expect ISO 639-1, vi.
ISO: Final[dict[str, str]] = {code: "vi" if code == "vn" else code for code in LANGUAGES}
