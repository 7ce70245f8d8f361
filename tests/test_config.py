"""Settings: every shipped file loads, and a mistake is named with its place and the nearest valid key."""

from __future__ import annotations

import json
import pickle
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
from pydantic import ValidationError

from analyticup.errors import UserError
from analyticup.settings.loading import load_settings, settings_from_dict, task_settings
from analyticup.settings.schema import (
    TASK_SECTIONS,
    NegativesSettings,
    Seq2SeqSettings,
    Settings,
    by_task,
    leaves,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "expected.yaml")


@pytest.fixture
def empty(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    return path


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def errors(path, *overrides):
    with pytest.raises(UserError) as caught:
        load_settings(path, list(overrides))
    return str(caught.value).split("\n")


def error(path, *overrides):
    (only,) = errors(path, *overrides)
    return only


def test_configs_are_shipped():
    assert {"sample.yaml", "small.yaml", "paper.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_shipped_config_loads(path):
    settings = load_settings(path, [])
    for task in settings.tasks:
        assert task_settings(settings, task).prompt.template != "" and (
            settings.name != "run" or path.name.startswith("_")
        )


def test_no_config_text_gives_the_defaults(empty):
    assert load_settings(empty, []) == Settings()
    assert task_settings(Settings(), "QC") == Settings()


@pytest.mark.parametrize("key", leaves())
def test_every_setting_is_described_and_its_default_is_allowed(empty, key):
    section, field = leaves()[key].section, leaves()[key].field
    assert section.__doc__ and field.description and len(field.description.splitlines()) == 1
    value = field.default
    given = "null" if value is None else json.dumps(value)
    assert load_settings(empty, [f"{key}={given}"]) == Settings()


BOUNDS = {key: leaf for key, leaf in leaves().items() if leaf.low is not None}


@pytest.mark.parametrize("key", BOUNDS)
def test_a_value_at_a_bound_is_taken_and_one_beyond_it_is_refused(empty, key):
    leaf = BOUNDS[key]
    step = 1 if "int" in str(leaf.field.annotation) else 0.001
    high = leaf.high or 0
    # What is added to a very large bound is lost.
    above = high + step if high + step > high else 2 * high
    for bound, beyond in ((leaf.low, leaf.low - step), (leaf.high, above)):
        if bound is not None:
            leaf.section.model_validate({leaf.name: bound}, context=[])
            assert error(empty, f"{key}={beyond}").startswith(f"argument '{key}={beyond}': {key} = {beyond}: must be ")


@pytest.mark.parametrize("key", [key for key, leaf in leaves().items() if leaf.choices])
def test_every_choice_is_taken_and_another_text_is_refused(empty, key):
    for choice in leaves()[key].choices:
        assert load_settings(empty, [f"{key}={choice}", "translate.seq2seq.model=x"])
    told = f"{key} = 'other-one': not one of {', '.join(leaves()[key].choices)}"
    assert told in error(empty, f"{key}=other-one")


def test_settings_are_checked_wherever_they_are_made_and_cannot_be_changed():
    for wrong in ({"share": -1.0}, {"low": 0.95}, {"low": float("nan")}, {"sharre": 1.0}, {"origins": []}):
        with pytest.raises(ValidationError):
            NegativesSettings(**wrong)
        with pytest.raises(ValidationError):
            NegativesSettings().replace(**wrong)
    with pytest.raises(ValidationError):
        Seq2SeqSettings(codes=["de"])
    with pytest.raises(ValidationError):
        Settings().seed = 3


def test_a_copy_with_other_values_leaves_the_rest_as_it_is():
    before = Settings(seed=5)
    after = before.replace(**{"name": "x", "train.lr": 0.5, "train.epochs": 3, "model.lora.r": 2})
    assert (after.name, after.seed, after.train.lr, after.train.epochs, after.model.lora.r) == ("x", 5, 0.5, 3, 2)
    assert before == Settings(seed=5) and after.train.schedule == before.train.schedule


def test_settings_go_to_other_processes_and_come_back(empty):
    settings = load_settings(empty, ["QC.folds.n=3", "translate.languages=[de]"])
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings_from_dict(json.loads(json.dumps(settings.model_dump())), "manifest.json", []) == settings


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trian.lr=1", "unknown key 'trian.lr'; the nearest valid key is 'train.lr'"),
        ("lr=1", "unknown key 'lr'; the nearest valid key is 'train.lr'"),
        ("QC.lr=1", "unknown key 'QC.lr'; the nearest valid key is 'QC.train.lr'"),
        ("train.lr.peak=1", "unknown key 'train.lr.peak'; the nearest valid key is 'train.lr'"),
        ("model.lora={rank: 8}", "unknown key 'model.lora.rank'; the nearest valid key is 'model.lora.r'"),
        ("zzz=1", "unknown key 'zzz'; see src/analyticup/settings/schema.py for all keys"),
        ("train.epochs=1.5", "train.epochs = 1.5: must be a whole number"),
        ("train.epochs=true", "train.epochs = True: must be a whole number"),
        ("train.epochs=null", "train.epochs = None: must be a whole number"),
        ("train.lr=fast", "train.lr = 'fast': must be a finite number"),
        ("train.lr=.nan", "train.lr = nan: must be a finite number"),
        ("train.lr=.inf", "train.lr = inf: must be a finite number"),
        ("train.lr=true", "train.lr = True: must be a finite number"),
        ('train.lr="1"', "train.lr = '1': must be a finite number"),
        ('train.lr="1e-4 "', "train.lr = '1e-4 ': must be a finite number"),
        ("train.lr=1e999", "train.lr = inf: must be a finite number"),
        ('train.epochs="1"', "train.epochs = '1': must be a whole number"),
        ("train.epochs=2.0", "train.epochs = 2.0: must be a whole number"),
        (
            "QC.translate.volumes=[de]",
            "QC.translate.volumes: 'de' is not of the form language=value, e.g. QC.translate.volumes=[de=...]",
        ),
        ("negatives.enabled=1", "negatives.enabled = 1: must be true or false"),
        ('negatives.enabled="false"', "negatives.enabled = 'false': must be true or false"),
        ("prompt.positive_word=yes", "prompt.positive_word = True: must be a text (quote it)"),
        ("prompt.negative_word=no", "prompt.negative_word = False: must be a text (quote it)"),
        ('prompt.template="{query}:"', "prompt.template = '{query}:': must hold {query} and {target}, each once"),
        (
            'QC.prompt.template="{target}{query}{query}:"',
            "QC.prompt.template = '{target}{query}{query}:': must hold {query} and {target}, each once",
        ),
        (
            'prompt.template="{target} {query} "',
            "prompt.template = '{target} {query} ': ends in white space, but a blank and the label word follow it; "
            "take that out",
        ),
        ("data.dir=[a]", "data.dir = ['a']: must be a text (quote it)"),
        ("name=2024-01-01", "name = datetime.date(2024, 1, 1): must be a text (quote it)"),
        ("tasks=", "tasks = None: must be a text (quote it)"),
        ("tasks=[QC, QC]", "tasks = ['QC', 'QC']: name QC, QI or both, each once"),
        ("tasks=[]", "tasks = []: name QC, QI or both, each once"),
        ("tasks=[QX]", "tasks = 'QX': not one of QC, QI; did you mean 'QI'?"),
        (
            "train.schedule=cosin",
            "train.schedule = 'cosin': not one of constant, linear, cosine; did you mean 'cosine'?",
        ),
        (
            "filter.rules=[ambiguity, noise]",
            "filter.rules = 'noise': not one of disagreement, ambiguity, confident-learning",
        ),
        ("folds.n=1", "folds.n = 1: must be between 2 and 100"),
        ("QI.folds.n=1", "QI.folds.n = 1: must be between 2 and 100"),
        ("filter.max_share=1.5", "filter.max_share = 1.5: must be between 0 and 1"),
        ("filter.max_share=-1", "filter.max_share = -1: must be between 0 and 1"),
        ("train.epochs=0", "train.epochs = 0: must be at least 1"),
        ("train.label_smoothing=0.5", "train.label_smoothing = 0.5: must be between 0 and 0.49"),
        ("QI.train.label_smoothing=-0.1", "QI.train.label_smoothing = -0.1: must be between 0 and 0.49"),
        ("train.dpo_beta=0", "train.dpo_beta = 0: must be at least 0.001"),
        (
            "name=../up",
            "name = '../up': use at most 100 letters, digits, '.', '_' and '-': it names a folder",
        ),
        (
            "negatives.low=0.95",
            "negatives.low = 0.95 is above negatives.high = 0.9; change one of them",
        ),
        (
            "negatives.relations=[]",
            "negatives.relations is empty; name at least one of sibling, cousin, other",
        ),
        (
            "QC.negatives.origins=[]",
            "QC.negatives.origins is empty; name at least one of original, translation",
        ),
        (
            "QI.negatives.same_leaf=allow",
            "QI.negatives.same_leaf: the targets of QI are titles, not category paths; set it only for QC",
        ),
        ("negatives.positive_share=0", "negatives.positive_share = 0: must be between 0.01 and 1"),
        (
            "QC.threshold.high=0.01",
            "threshold.low = 0.05 is above QC.threshold.high = 0.01; change one of them",
        ),
        (
            "QC.model.backbone=x",
            "'model.backbone' cannot differ between tasks; set it without `QC.`",
        ),
        ("QC.seed=1", "'seed' cannot differ between tasks; set it without `QC.`"),
        ("QI.data.dir=x", "'data.dir' cannot differ between tasks; set it without `QI.`"),
        ("pln", "neither a command (see --help) nor of the form key=value, e.g. train.lr=2e-4"),
        ("=1", "neither a command (see --help) nor of the form key=value, e.g. train.lr=2e-4"),
        (
            "prompt.positive_word=${data.dir}",
            "prompt.positive_word = '${data.dir}': nothing is filled in for ${...} and ???; write the value out",
        ),
        (r'data.dir="\0"', r"data.dir = '\x00': a NUL or half of a surrogate pair is in no file; take it out"),
        (
            r'QC.prompt.positive_word="a\ud800"',
            r"QC.prompt.positive_word = 'a\ud800': a NUL or half of a surrogate pair is in no file; take it out",
        ),
        ("data.dir=~no-such-user/x", "data.dir = '~no-such-user/x': no such user; write the path out"),
        ("paths.cache=~no-such-user", "paths.cache = '~no-such-user': no such user; write the path out"),
        (
            "model.backbone='gguf:~no-such-user/m.gguf'",
            "model.backbone = 'gguf:~no-such-user/m.gguf': no such user; write the path out",
        ),
        ("seed=9223372036854775808", "seed = '9223372036854775808': must be a whole number"),
        ("seed=!!bool x", "seed = '!!bool x': must be a whole number"),
        (
            "prompt.positive_word=???",
            "prompt.positive_word = '???': nothing is filled in for ${...} and ???; write the value out",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_wrong(empty, override, told):
    message = error(empty, override)
    assert message.startswith("argument ") and repr(override) in message
    assert message.removeprefix(f"argument {override!r}: ") == told


@pytest.mark.parametrize("override", ["seed=9" * 200, "train.lr=1" + "0" * 400, "prompt.positive_word=" + "[" * 1500])
def test_absurd_values_end_in_an_error_or_stay_text_but_never_in_a_traceback(empty, override):
    try:
        settings = load_settings(empty, [override])
    except UserError:
        return
    assert settings.prompt.positive_word == "[" * 1500


@pytest.mark.parametrize("task", ["", "QC.", "QI."])
def test_an_adapter_of_the_other_task_must_have_the_same_form(empty, task):
    start = f"{task}train.start_from=other_task"
    load_settings(empty, [start])
    told = (
        f"argument '{start}': {task}train.start_from = other_task: the tasks have other model.lora; give both the same"
    )
    assert error(empty, start, "QC.model.lora.r=3") == told
    load_settings(empty, [start, "QC.model.lora.dropout=0.3"])


def test_the_setting_that_starts_from_the_other_task_is_named(empty):
    given = ("QC.train.start_from=base", "QI.train.start_from=other_task", "QC.model.lora.r=3")
    assert error(empty, *given).startswith(
        "argument 'QI.train.start_from=other_task': QI.train.start_from = other_task"
    )


def test_a_threshold_range_written_without_a_dot_is_compared_as_numbers(empty):
    assert load_settings(empty, ["threshold.low=1e-4"]).threshold.low == 1e-4
    assert "is above" in error(empty, "threshold.low=9e-1", "threshold.high=1e-4")


def test_a_wrong_value_in_a_file_is_named_with_the_file(tmp_path):
    path = write(tmp_path, "mine.yaml", "train:\n  lr: quick\nfolds: {n: 1}\n")
    assert errors(path) == [
        f"{path}: train.lr = 'quick': must be a finite number",
        f"{path}: folds.n = 1: must be between 2 and 100",
    ]


def test_all_errors_of_files_and_arguments_are_shown_together(tmp_path):
    write(tmp_path, "base.yaml", "sed: 3\n")
    path = write(tmp_path, "mine.yaml", "extends: base.yaml\ntrain:\n  epoch: 2\n")
    found = errors(path, "train.lr=fast", "oops", "negatives.low=0.9", "negatives.high=0.1")
    assert len(found) == 5
    for told in ("key 'sed'", "key 'train.epoch'", "train.lr = 'fast'", "argument 'oops'", "is above"):
        assert sum(told in line for line in found) == 1
    # Each with the place it was given at.
    assert sum(line.startswith(f"{tmp_path / 'base.yaml'}: ") for line in found) == 1
    assert sum(line.startswith(f"{path}: ") for line in found) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  lr: [1\n", ":3: not valid YAML"),
        ("a: b: c\n", ":1: not valid YAML"),
        ("- 1\n", ": a config must be a mapping of `section: ...`, not a list"),
        ("seed\n", ": a config must be a mapping of `section: ...`, not a str"),
        ("name: 2024-13-45\n", ": not valid YAML (month must be in 1..12"),
        ("a: " + "[" * 1500, ": not valid YAML"),
        ("!!python/object/apply:os.getcwd []\n", ":1: not valid YAML"),
        ("seed: 1\ntrain: {}\nseed: 2\n", ":3: not valid YAML (key 'seed' is given twice); fix that line"),
        ("a: &a\n  b: *a\n", ":2: not valid YAML (an alias (*name) is not read; write the value out"),
        ("a: &a [x]\ntasks: [*a, *a]\n", ":2: not valid YAML (an alias (*name) is not read; write the value out"),
        ("seed: !!bool maybe\n", ": not valid YAML (a value does not fit the !!type before it)"),
        ("seed: !!int ''\n", ": not valid YAML (a value does not fit the !!type before it)"),
        ("seed: !!timestamp x\n", ": not valid YAML (a value does not fit the !!type before it)"),
        ("seed: 1" + ":1" * 400 + ".0\n", ": not valid YAML (int too large to convert to float)"),
        ("\nseed: 0x" + "f" * 5000 + "\n", ":2: not valid YAML (a whole number beyond 64 bits; quote it as a text)"),
        ("seed: \0\n", ": not valid YAML (unacceptable character #x0000"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, told):
    path = write(tmp_path, "broken.yaml", text)
    assert error(path).startswith(f"{path}{told}")


@pytest.mark.parametrize("parent", ['"\\0"', "a" * 5000, "0", "''", "[a]", "{a: b}", "."])
def test_a_parent_that_can_be_no_file_is_one_error(tmp_path, parent):
    path = write(tmp_path, "mine.yaml", f"extends: {parent}\n")
    message = error(path)
    assert message.startswith(str(tmp_path))
    assert "no such config file" in message or "cannot be read (File name too long)" in message


def test_long_values_and_names_are_shown_shortened_and_on_one_line(tmp_path, empty):
    assert len(error(empty, "seed=" + "x" * 100_000)) < 600
    assert len(error(empty, "x" * 100_000 + "=1")) < 600
    assert "must be" not in error(empty, "name=" + "x" * 101) and load_settings(empty, ["name=" + "x" * 100])
    path = write(tmp_path, "mine.yaml", 'translate: {volumes: ["d\\ne\\u2028=1"], languages: [fr]}\n')
    assert error(path) == f"{path}: translate.volumes names d e, which translate.languages does not"


def test_a_file_that_is_no_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    assert error(path).startswith(f"{path}: not valid YAML")


def test_a_missing_config_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        assert error(path) == f"{path}: no such config file; the shipped ones are in configs/"


def test_a_config_holds_only_what_differs_from_the_one_it_extends(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, "base.yaml", "seed: 1\ntrain: {lr: 1.0e-3, epochs: 4}\nQC: {folds: {n: 3}}\n")
    write(tmp_path, "deep/middle.yaml", "extends: ../base.yaml\ntrain: {lr: 2.0e-3}\n")
    path = write(tmp_path, "top.yaml", "extends: deep/middle.yaml\nseed: 2\nQI:\n")
    settings = load_settings(path, ["train.epochs=5"])
    assert (settings.seed, settings.train.lr, settings.train.epochs) == (2, 2e-3, 5)
    assert task_settings(settings, "QC").folds.n == 3
    assert task_settings(settings, "QI").folds.n == Settings().folds.n


def test_circles_and_missing_parents_are_named(tmp_path):
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    assert error(tmp_path / "a.yaml") == f"{tmp_path / 'a.yaml'}: extends itself; break the circle of `extends:`"
    orphan = write(tmp_path, "orphan.yaml", "extends: gone.yaml\nseed: 3\n")
    assert error(orphan) == f"{tmp_path / 'gone.yaml'}: no such config file; the shipped ones are in configs/"


def test_a_task_section_holds_for_its_task_alone(empty):
    settings = load_settings(empty, ["negatives.share=0.5", "QC.negatives.share=0.75", "QI.negatives.enabled=true"])
    qc, qi = task_settings(settings, "QC"), task_settings(settings, "QI")
    assert (qc.negatives.share, qc.negatives.enabled) == (0.75, False)
    assert (qi.negatives.share, qi.negatives.enabled) == (0.5, True)
    assert settings.negatives.share == 0.5 and qc.QC == qc.QI == {}


@pytest.mark.parametrize("section", TASK_SECTIONS)
def test_every_key_of_a_task_section_can_be_given_per_task(empty, section):
    def leaves(prefix, value):
        if not isinstance(value, dict):
            yield prefix, value
        else:
            for key, inner in value.items():
                yield from leaves(f"{prefix}.{key}", inner)

    for key, value in leaves(section, reduce(getitem, section.split("."), Settings().model_dump())):
        if by_task(key):
            text = json.dumps(value) if value is None or isinstance(value, str) else value
            assert task_settings(load_settings(empty, [f"QC.{key}={text}"]), "QC") == Settings()


def test_yaml_words_and_numbers_mean_what_they_look_like(tmp_path):
    text = (
        'train: {lr: 1e-4}\nprompt: {positive_word: "yes", negative_word: "no"}\nname: 7\ntranslate: {languages: de}\n'
    )
    settings = load_settings(write(tmp_path, "mine.yaml", text), ["negatives.enabled=on", "train.warmup=0"])
    assert settings.train.lr == 1e-4 and isinstance(settings.train.lr, float)
    assert (settings.prompt.positive_word, settings.prompt.negative_word) == ("yes", "no")
    assert (settings.name, settings.translate.languages) == ("7", ["de"])
    assert settings.negatives.enabled is True and isinstance(settings.train.warmup, float)


def test_null_clears_what_a_parent_set_where_nothing_is_a_value(tmp_path):
    write(tmp_path, "base.yaml", "data: {dir: somewhere}\ntranslate: {languages: [de]}\n")
    path = write(tmp_path, "top.yaml", "extends: base.yaml\ndata: {dir: null}\n")
    assert load_settings(path, []).data.dir is None
    assert load_settings(path, ["translate.languages="]).translate.languages is None


@pytest.mark.parametrize("text", ["QC:\n", "QC: {translate: }\n", "QI: {negatives: {}}\ntrain:\n"])
def test_an_empty_section_says_nothing(tmp_path, text):
    assert load_settings(write(tmp_path, "mine.yaml", text), []) == Settings()


def test_all_that_is_wrong_with_one_section_is_told_at_once(empty):
    given = ("translate.translator=seq2seq", "translate.volumes=de", "QI.translate.seq2seq.codes=[x]", "folds.n=1")
    told = [line.partition("': ")[2][:40] for line in errors(empty, *given)]
    assert told == [
        "folds.n = 1: must be between 2 and 100",
        "translate.translator = seq2seq: set tran",
        "translate.volumes: 'de' is not of the fo",
        "QI.translate.seq2seq.codes: 'x' is not o",
    ]


def test_the_last_argument_wins(empty):
    assert load_settings(empty, ["seed=1", "seed=2"]).seed == 2


def test_a_text_with_an_equals_sign_and_odd_characters_stays_text(empty):
    settings = load_settings(empty, ["prompt.positive_word=a=b", "prompt.negative_word=問い: {x", "data.dir=/a b/c"])
    assert (settings.prompt.positive_word, settings.prompt.negative_word) == ("a=b", "問い: {x")
    assert settings.data.dir == "/a b/c"


def test_settings_do_not_share_lists(empty):
    load_settings(empty, []).tasks.append("changed")
    assert load_settings(empty, []).tasks == ["QC", "QI"]
