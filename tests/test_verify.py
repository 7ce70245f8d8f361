"""`verify` on a finished run: what it finds, what it cannot check, and that a new run repairs what was damaged."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from test_pipeline import SAMPLE, digests, one, run_main
from tiny_runs import TINY

from analyticup import pipeline
from analyticup.__main__ import main
from analyticup.engine import graph
from analyticup.engine.artifacts import Artifact, StageRecord, sealed
from analyticup.errors import UserError
from analyticup.results import verify as verifying
from analyticup.settings import paths
from analyticup.settings.loading import load_settings, settings_from_dict
from analyticup.settings.schema import ModelSettings, Settings
from analyticup.verdict import Verdict

SMALL = ("tasks=[QC]", "translate.rows_per_language=2")
# The report and the manifest hold how long each stage took.
TIMED = {"manifest.json", "report.html"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    assert run_main(folder, *SMALL) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return copied(finished, tmp_path / "copy")


def copied(finished: Path, folder: Path) -> Path:
    """A copy whose manifest knows the copy's artifacts, as if it had been run there."""
    shutil.copytree(finished, folder)
    edit_manifest(folder, lambda manifest: manifest["config"]["paths"].update(places(folder)))
    return folder


def places(folder: Path) -> dict[str, str]:
    return {name: str(folder / name) for name in ("artifacts", "submissions", "cache")}


def edit_manifest(folder: Path, edit: Callable[[dict], object], *, again: bool = True) -> None:
    """Changes the manifest, with a valid checksum of its own (`again`) or with the old one."""
    path = folder / "submissions" / "sample" / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(sealed(manifest) if again else manifest, indent=1, sort_keys=True))


def verify(folder: Path, *more: str) -> int:
    return main(["verify", str(folder / "submissions" / "sample"), *more])


def lines(text: str, verdict: str) -> list[str]:
    return [line.removeprefix(verdict).strip() for line in text.splitlines() if re.match(rf"{verdict}\s+\D", line)]


# ---------------------------------------------------------------- damage


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def add(path: Path, rng: random.Random) -> None:
    shutil.copy(path, path.with_name(f"more-{path.name}"))


def edit_record(path: Path, rng: random.Random) -> None:
    name = rng.choice(["counts", "settings", "inputs", "seconds", "digest", "environment"])
    path.write_text(json.dumps({**json.loads(path.read_text()), name: {"edited": 1}}))


def swap_record(path: Path, rng: random.Random) -> None:
    shutil.copy(rng.choice(sorted(set(path.parent.parent.glob("*/record.json")) - {path})), path)


def break_record(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice([b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000]))


FILE_DAMAGE = {"flipped byte": flip, "truncated file": truncate, "missing file": remove, "foreign file": add}
RECORD_DAMAGE = {
    "edited record": edit_record,
    "record of another stage": swap_record,
    "record that is no JSON": break_record,
}


DAMAGE = FILE_DAMAGE | RECORD_DAMAGE


def draw(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    """For every kind of damage a file of each of five stages."""
    stages = sorted(path.parent for path in (folder / "artifacts").glob("*/record.json"))
    drawn = []
    for kind in DAMAGE:
        for stage in rng.sample(stages, 5):
            files = [path for path in sorted(stage.rglob("*")) if path.is_file() and path.stat().st_size]
            record = stage / "record.json"
            drawn.append((kind, record if kind in RECORD_DAMAGE else rng.choice(sorted(set(files) - {record}))))
    return drawn


def place(path: Path, folder: Path) -> Path:
    """The stage's folder, or `submissions`, that a file lies in."""
    first, second = path.relative_to(folder).parts[:2]
    return folder / first / second if first == "artifacts" else folder / first


def title(path: Path, folder: Path) -> str:
    return place(path, folder).name.rpartition("-")[0]


@pytest.mark.slow
def test_every_injected_damage_is_found_and_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(11)
    published = sorted((copy / "submissions" / "sample").glob("**/*.*"))
    injected = [*draw(copy, rng), *((kind, path) for kind in FILE_DAMAGE for path in rng.sample(published, 3))]
    nodes = pipeline.build(load_settings(SAMPLE, [*TINY, *SMALL]))
    assert verify(copy) == 0
    missed = []
    for kind, path in injected:
        top = place(path, copy)
        shutil.copytree(top, copy / "kept")
        DAMAGE[kind](path, rng)
        capsys.readouterr()
        found = verify(copy) in (1, 2)
        told = capsys.readouterr()
        if top.name == "submissions":
            found = found and path.name in "\n".join(lines(told.out, "FAIL")) + told.err
        else:
            found = found and f"stage {title(path, copy)}: " in "\n".join(lines(told.out, "FAIL"))
            reasons = {status.node.title: status.reason for status in graph.inspect(nodes, copy / "artifacts")}
            found = found and bool(re.match("its (file|record) |it holds ", reasons[title(path, copy)]))
        if not found:
            missed.append((kind, path))
        shutil.rmtree(top)
        (copy / "kept").rename(top)
    print(f"\ndamage found and named: {len(injected) - len(missed)} of {len(injected)} injected")
    assert len(injected) == 47 and not missed
    assert verify(copy) == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_a_new_run_names_the_damage_and_repairs_it(copy: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    before, rng = digests(copy / "submissions" / "sample"), random.Random(seed)
    chosen = {place(path, copy): (kind, path) for kind, path in rng.sample(draw(copy, rng), 9)}
    for kind, path in chosen.values():
        DAMAGE[kind](path, rng)
    for damage, name in ((flip, "submit_QC.txt"), (truncate, "submit.zip"), (remove, "dev/scores_QC.parquet")):
        damage(copy / "submissions" / "sample" / name, rng)
    (copy / "submissions" / "sample" / "manifest.json").write_bytes(b"\xff{")
    assert run_main(copy, *SMALL) == 0
    output = capsys.readouterr().out
    for _, path in chosen.values():
        assert re.search(rf"{title(path, copy)}: running \((its (file|record)|it holds) ", output)
    after = digests(copy / "submissions" / "sample")
    assert {name: after[name] for name in after if name not in TIMED} == {
        name: before[name] for name in before if name not in TIMED
    }
    assert verify(copy) == 0


# ---------------------------------------------------------------- verdicts


def test_a_finished_run_is_ok_and_stays_as_it_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(finished)
    assert verify(finished) == 0
    output = capsys.readouterr().out
    assert not lines(output, "FAIL") and not lines(output, "near")
    # Nothing is expected of this run, so nothing can be OK about that.
    (skipped,) = lines(output, "SKIPPED")
    assert skipped.startswith("expected figures: none to compare with: ")
    assert re.fullmatch(r"\d\d OK, 0 near, 1 SKIPPED, 0 FAIL", output.splitlines()[-1])
    assert "settings: they and the inputs give the identities of all 13 stages" in output
    assert "predictions submit_QC.txt: " in output and "submission dev/submit_QC.txt: valid" in output
    assert digests(finished) == before


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"{}", b"\xff", b'{"files": {"../x": "0"}}', b"[" * 99_999]
)
def test_without_a_manifest_the_input_is_wrong(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "submissions" / "sample"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    assert verify(tmp_path) == 2
    error = capsys.readouterr().err
    assert "manifest.json: no readable manifest; run again, or give a finished run" in error and error.count("\n") == 1


def test_settings_cannot_be_changed_by_verify(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(finished, "train.lr=1") == 2
    assert "only paths.artifacts, paths.cache, data.dir can be given" in capsys.readouterr().err


def test_an_edited_manifest_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(copy, lambda manifest: manifest["thresholds"].update(QC="high"), again=False)
    assert verify(copy) == 1
    (told,) = lines(capsys.readouterr().out, "FAIL")
    assert told.startswith("file manifest.json: it was edited, or written by an earlier version")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m["config"]["train"].update(warmup=0.5), "settings: .* not those that made train-QC-fold0"),
        (lambda m: m["config"].update(seed=99), "settings: .* not those that made sample-all"),
        (lambda m: m["config"]["translate"].update(enabled=False), "settings: .* same stages: translate-QC"),
        (lambda m: m["thresholds"].update(QC=0.999), "predictions submit_QC.txt: .* not what the scores"),
        (lambda m: m["thresholds"].update(QC=0.999), "manifest and stages: thresholds not as the stages"),
        (lambda m: m["data"].update({"dev_QC.txt": "0" * 64}), "input dev_QC.txt: .* not the file that the run read"),
        (lambda m: m["stages"]["folds-QC"].update(digest="0" * 64), "stage folds-QC: its files are not those of this"),
        (lambda m: m["stages"]["folds-QC"].update(digest="0" * 64), "stage train-QC-fold0: .* made from another folds"),
        (lambda m: m["stages"]["ingest-QC"].update(counts={}), "stage ingest-QC: its counts are not the manifest's"),
        (lambda m: m["stages"]["folds-QC"].update(identity="0" * 64), "stage folds-QC: its record belongs to other"),
    ],
)
def test_a_manifest_that_does_not_fit_the_run_is_found_despite_its_checksum(
    copy: Path, edit: Callable[[dict], object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(copy, edit)
    assert verify(copy) == 1
    told = lines(capsys.readouterr().out, "FAIL")
    assert any(re.match(says, line) for line in told), told


def test_an_exchanged_prediction_is_found_despite_its_checksum(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "submissions" / "sample" / "submit_QC.txt"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"prediction": 1', '"prediction": 0', 1), encoding="utf-8")
    digest = digests(path.parent)["submit_QC.txt"]
    edit_manifest(copy, lambda manifest: manifest["files"].update({"submit_QC.txt": digest}))
    assert verify(copy) == 1
    output = capsys.readouterr().out
    told = "\n".join(lines(output, "FAIL"))
    assert "submission submit_QC.txt: valid for test_QC.txt" in output
    assert re.search(r"predictions submit_QC.txt: 1 of \d+ are not what the scores and the threshold give", told)
    assert "zip submit.zip: submit_QC.txt not as next to it" in told
    assert "manifest and stages: files not as the stages" in told


def test_the_submissions_folder_alone_is_checked_as_far_as_it_goes(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "artifacts")
    assert verify(copy) == 0
    output = capsys.readouterr().out
    skipped = lines(output, "SKIPPED")
    assert [line.split(":")[0] for line in skipped] == ["stages", "manifest and stages", "expected figures"]
    assert "none of the 13 folders is in" in skipped[0] and "paths.artifacts=FOLDER" in skipped[0]
    assert not lines(output, "near") and output.splitlines()[-1].endswith(" 0 near, 3 SKIPPED, 0 FAIL")
    # The sample corpus is written anew, so the submission is still held against its input.
    assert "submission submit_QC.txt: valid" in output and "input test_QC.txt: sha256 as" in output
    capsys.readouterr()
    flip(copy / "submissions" / "sample" / "submit_QC.txt", random.Random(0))
    assert verify(copy) == 1
    output = capsys.readouterr().out
    assert [line.split(":")[0] for line in lines(output, "SKIPPED")[:3]] == [
        *("zip submit.zip", "submission submit_QC.txt", "predictions submit_QC.txt")
    ]


def test_some_stages_gone_is_a_failure(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(one(copy, "folds-QC-*"))
    assert verify(copy) == 1
    output = capsys.readouterr().out
    assert [line.split(";")[0] for line in lines(output, "FAIL")] == ["stage folds-QC: the folder is gone"]
    assert any(line.startswith("manifest and stages: not checked") for line in lines(output, "SKIPPED"))


def test_settings_whose_model_is_not_on_this_machine_are_not_checked(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*_: object) -> None:
        raise UserError("model.backbone: no file\nmodel.gguf")

    monkeypatch.setattr(verifying, "build", build)
    assert verify(finished) == 0
    told = lines(capsys.readouterr().out, "SKIPPED")
    assert told[0] == "settings: not checked: model.backbone: no file model.gguf"


def test_a_converted_model_that_is_not_there_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is one whose name says nothing on this machine."""

    settings = Settings(model=ModelSettings(backbone="gguf:some_gguf"))
    run: Any = SimpleNamespace(places=settings, settings=settings)
    (unknown,) = verifying._model(run)
    assert unknown.verdict == Verdict.SKIPPED and "names neither a .gguf file" in unknown.text
    monkeypatch.setattr(verifying, "converted_folder", lambda *_: tmp_path / "none")
    (absent,) = verifying._model(run)
    assert absent.verdict == Verdict.SKIPPED and absent.text.startswith("none in ")


def test_moved_artifacts_are_found_where_they_are_said_to_be(copy: Path, tmp_path: Path) -> None:
    (copy / "artifacts").rename(tmp_path / "moved")
    flip(next((tmp_path / "moved").glob("train-QC-fold0-*/adapter_config.json")), random.Random(0))
    assert verify(copy) == 0
    assert verify(copy, f"paths.artifacts={tmp_path / 'moved'}") == 1


def test_a_run_from_before_a_setting_existed_is_not_called_another(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def before(manifest: dict) -> None:
        del manifest["config"]["train"]["label_smoothing"]
        manifest["stages"]["train-QC-fold0"]["identity"] = "0" * 64

    edit_manifest(copy, before)
    verify(copy)
    told = lines(capsys.readouterr().out, "SKIPPED")
    assert "settings: not checked: the run's version had no train.label_smoothing" in told


def test_a_report_of_another_version_is_not_compared(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one(copy, "report-all-*") / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    artifact = Artifact(path.parent, StageRecord())
    run: Any = SimpleNamespace(stages={"report-all": artifact})
    (item,) = verifying._figures(run)
    assert item.verdict == Verdict.SKIPPED and "not a report" in item.text


def test_a_stage_whose_code_has_changed_since_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "FOLDS", replace(pipeline.FOLDS, version=99))
    assert verify(finished) == 0
    (told,) = lines(capsys.readouterr().out, "near")
    assert re.match(r"settings: they made these stages, by earlier versions of their code \(folds 1, now 99\)", told)


@pytest.mark.parametrize(
    ("away", "verdict", "code"), [(0.01, "OK", 0), (0.03, "near", 0), (0.05, "FAIL", 1), (-0.05, "FAIL", 1)]
)
def test_figures_are_compared_with_those_expected(
    finished: Path, tmp_path: Path, away: float, verdict: str, code: int, monkeypatch, capsys
) -> None:
    manifest = json.loads((finished / "submissions" / "sample" / "manifest.json").read_text())
    report = json.loads((one(finished, "report-all-*") / "report.json").read_text())
    value = report["scores"]["test QC"][-1]["f1"]
    figures = {"test QC all: f1": {"value": value + away, "tolerance": 0.02, "reason": "a test"}}
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "sample.yaml").write_text(yaml.safe_dump(manifest["config"]))
    (configs / "expected.yaml").write_text(yaml.safe_dump({"sample": {"data": {}, "figures": figures}}))
    monkeypatch.setattr(verifying, "PROJECT", tmp_path)
    assert verify(finished) == code
    assert any(line.startswith("figure test QC all: f1: ") for line in lines(capsys.readouterr().out, verdict))


def test_official_files_are_those_that_the_run_read_or_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train_QC.txt", "dev_QC.txt"):
        shutil.copy(one(finished, "sample-all-*") / name, data)
    assert run_main(tmp_path, *SMALL, f"data.dir={data}") == 0
    assert verify(tmp_path) == 0
    # A file that came later belongs to another run.
    shutil.copy(one(finished, "sample-all-*") / "test_QC.txt", data)
    assert verify(tmp_path) == 0
    data.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert verify(tmp_path) == 0
    skipped = lines(capsys.readouterr().out, "SKIPPED")
    assert [line.split(":")[0] for line in skipped] == [
        *("input dev_QC.txt", "input train_QC.txt", "submission submit_QC.txt", "expected figures")
    ]
    assert verify(tmp_path, f"data.dir={tmp_path / 'elsewhere'}") == 0
    assert len(lines(capsys.readouterr().out, "SKIPPED")) == 1
    flip(tmp_path / "elsewhere" / "dev_QC.txt", random.Random(0))
    assert verify(tmp_path, f"data.dir={tmp_path / 'elsewhere'}") == 1
    assert "input dev_QC.txt: " in lines(capsys.readouterr().out, "FAIL")[0]


@pytest.mark.parametrize("config", ["sample", "small", "paper"])
def test_settings_come_back_from_a_manifest_as_they_went_in(config: str) -> None:
    settings = load_settings(paths.PROJECT / "configs" / f"{config}.yaml", ["QC.train.lr=2e-4", *TINY])
    assert settings_from_dict(json.loads(json.dumps(settings.model_dump())), "here", []) == settings
