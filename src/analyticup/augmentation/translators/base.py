"""What every translator offers, and a cache around those that cost much."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from analyticup.engine.cache import Cache, batches
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.settings.schema import EmbedderSettings

if TYPE_CHECKING:
    from analyticup.augmentation.embedders import Embedder
    from analyticup.training.source import Machine


@dataclass(frozen=True)
class Translation:
    """`text` is None where it was refused, for the reason `refused`; `score`: larger is surer, None where the
    translator cannot tell."""

    text: str | None
    score: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Tools:
    """What a translator may need beside its settings. `pool`: unlabelled queries by language; `embedder` makes it."""

    cache_dir: Path
    machine: Machine
    pool: Mapping[str, Sequence[str]]
    embedder: Callable[[], Embedder]


class Translator(Protocol):
    """`identity` names everything that changes a translation.

    `selective`: translates nothing but what it can find cheaply, so ask for everything; else ask for the
    needed only. `uses_source`: the source language changes the result, so `sources` must be given.
    """

    identity: str
    selective: bool
    uses_source: bool

    def translate(
        self, texts: list[str], target_language: str, sources: Sequence[str] | None = None
    ) -> list[Translation]:
        """One translation per text, in order. Languages are competition codes (`vn`)."""
        ...


class OfferedTranslator(Translator, Protocol):
    """A translator that the settings can name. `settings` is its section of them, None where it has none.

    `uses_embedder`: it asks for `Tools.embedder`. `any_language`: it may know languages beyond the competition's.
    """

    uses_embedder: ClassVar[bool]
    any_language: ClassVar[bool]

    @classmethod
    def build(cls, settings: Any, tools: Tools) -> Translator:
        """A translator, cached where a text costs much."""
        ...

    @classmethod
    def decides(cls, settings: Any, embedder: EmbedderSettings) -> dict[str, Any]:
        """What of it goes into the stage's identity; loads nothing."""
        ...

    @classmethod
    def models(cls, settings: Any) -> list[str]:
        """Folders or hub ids (at `settings.revision`) of the models that it may load."""
        ...


class CachedTranslator:
    """Asks `inner` for each (text, target language) once; keeps refusals too, batch by batch on disk."""

    def __init__(self, inner: Translator, cache_dir: Path, batch_size: int) -> None:
        self.identity = inner.identity
        self.selective = inner.selective
        self.uses_source = inner.uses_source
        self.inner = inner
        self._batch_size = batch_size
        digest = hashlib.sha256(inner.identity.encode()).hexdigest()
        self.path = Path(cache_dir) / f"translations-{digest[:16]}.sqlite"

    def translate(
        self, texts: list[str], target_language: str, sources: Sequence[str] | None = None
    ) -> list[Translation]:
        if self.uses_source and sources is None:
            name = self.identity.partition(":")[0]
            raise UserError(f"translate.translator={name} needs the source languages, but none were given")
        languages = list(sources) if self.uses_source and sources is not None else [""] * len(texts)
        asked = list(zip(texts, languages, strict=True))
        keys = {pair: json.dumps([target_language, pair[1], pair[0]]) for pair in asked}
        with closing(Cache(self.path)) as cache:
            known: dict[str, str] = cache.read(list(keys.values()))
            missing = [pair for pair in keys if keys[pair] not in known]
            # One source language after the other, as it may need its own model; texts of like length share a batch,
            # which keeps padding small.
            missing.sort(key=lambda pair: (pair[1], len(pair[0]), pair))
            with track(len(missing), f"translate to {target_language}") as progress:
                for batch in batches(missing, self._batch_size):
                    found = self._ask(batch, target_language)
                    fresh = {keys[pair]: json.dumps(astuple(item)) for pair, item in zip(batch, found, strict=True)}
                    cache.write(fresh)
                    known |= fresh
                    progress.advance(len(batch))
        return [Translation(*json.loads(known[keys[pair]])) for pair in asked]

    def _ask(self, batch: list[tuple[str, str]], target_language: str) -> list[Translation]:
        sources = [source for _, source in batch] if self.uses_source else None
        return self.inner.translate([text for text, _ in batch], target_language, sources)
