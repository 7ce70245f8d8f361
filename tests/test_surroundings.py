"""Strange machines: closed streams, a deleted folder, variables of others, limits, a hub that refuses. The same bytes,
or one line."""

from __future__ import annotations

import csv
import errno
import fcntl
import os
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, hub_in_use
from huggingface_hub import close_session
from huggingface_hub.utils import _http
from tiny_runs import ROOT, TINY, make_job, places

from analyticup import __main__, commands
from analyticup.console import exclusive_run
from analyticup.engine.cache import Cache
from analyticup.engine.files import lock, tidy
from analyticup.engine.graph import Part
from analyticup.errors import UserError, machine_trouble
from analyticup.model import pins
from analyticup.model.backbone import load_backbone, load_tokenizer, random_qwen3, random_tokenizer
from analyticup.results.manifest import foreign_manifest
from analyticup.review.sheet import COLUMNS, refuse_to_lose
from analyticup.settings.schema import ModelSettings, Settings
from analyticup.terminal import make_console
from analyticup.training.adopt import adopt


def shell(line: str, folder: Path, code: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """A line of sh in which {kit} is the command line, or a Python program."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "analyticup"])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **more}
    line = line.replace("{kit}", shlex.join(command))
    return subprocess.run(["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------- streams


CLOSED = """
import os, sys
from analyticup.__main__ import open_closed_streams
open_closed_streams()
with open("mine.txt", "w") as mine:
    print("to stdout"), print("to stderr", file=sys.stderr, flush=True)
    os.write(1, b"a library's word"), os.write(2, b"a library's word")
    mine.write(f"mine {sys.stdin.read()!r}")
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, closed):
    assert shell(f"{{kit}} {closed}", tmp_path, CLOSED).returncode == 0
    assert (tmp_path / "mine.txt").read_text() == "mine ''"


def test_a_command_without_any_stream_does_its_work(tmp_path):
    # stdout is closed, so that only the exit code can say it.
    assert shell("{kit} plan name=a/b <&- >&- 2>&-", tmp_path).returncode == 2
    assert shell("{kit} plan name=ab <&- >&- 2>&-", tmp_path).returncode == 0


def test_what_cannot_be_written_is_said_and_not_lost_at_the_exit(monkeypatch, capsys, tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    monkeypatch.setattr(sys, "stdout", (tmp_path / "full").open("w"))
    monkeypatch.setattr(commands, "plan", lambda _: print("much") or 0)
    assert __main__.main(["plan"]) == 2
    assert capsys.readouterr().err.startswith("error: the disk is full (")
    # Python closes it at the exit.
    sys.stdout.close()


def test_a_run_whose_reader_is_gone_says_so(monkeypatch, capsys, tmp_path):
    own = Settings().replace(**{f"paths.{name}": str(tmp_path / name) for name in ("artifacts", "cache")})

    def run(_: object) -> int:
        with exclusive_run(own, make_console()):
            raise BrokenPipeError

    monkeypatch.setattr(commands, "run", run)
    assert __main__.main(["run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nobody reads this program's output any more") and "resumes from there" in line


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), OSError(errno.EMFILE, "Too many open files"), BlockingIOError(11, "x")],
)
def test_limits_of_the_machine_are_named(error):
    assert str(machine_trouble(error)).startswith("the machine allows no more threads, processes or files (")


def test_a_filesystem_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(
            UserError, match=r"artifacts: its filesystem has no locks, .*\(No locks available\); give a folder"
        ),
        lock(tmp_path / "artifacts"),
    ):
        pass


def test_a_cache_that_is_in_use_or_cannot_be_opened_is_not_called_broken(tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
    path = tmp_path / "kept.sqlite"
    Cache(path).close()
    with closing(connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"kept.sqlite: .*\(database is locked\); end what else uses it"):
            Cache(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: .*\(unable to open database file\); end what else uses it"):
        Cache(tmp_path / "folder")


def test_a_deleted_folder_is_named(tmp_path):
    done = shell("mkdir gone; cd gone; rmdir ../gone; {kit} check", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the current folder was deleted; change to one")


# ---------------------------------------------------------------- a hub that refuses


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_in_use(monkeypatch, tmp_path) as running:
        # It would wait between its tries.
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(pins, "HUB_SECONDS", 0.2)
        close_session()
        yield running
    close_session()


HUB_MODEL = ModelSettings(backbone="a/b", revision=COMMIT)
REFUSALS = {
    401: "set HF_TOKEN or run `hf auth login`",
    403: "its owners give access at https://huggingface.co/a/b; then set HF_TOKEN or run `hf auth login`",
    404: "correct the name",
    429: "too many requests: wait some minutes and run again",
    500: "see that the hub can be reached, and run again",
    "cut": "see that the hub can be reached, and run again",
    "silent": "see that the hub can be reached, and run again",
    "begun": "see that the hub can be reached, and run again",
}


@pytest.mark.parametrize(("fault", "advice"), REFUSALS.items(), ids=map(str, REFUSALS))
def test_a_hub_that_refuses_is_one_line_with_its_reason(hub, tmp_path, fault, advice):
    hub.fault = fault
    with pytest.raises(
        UserError, match=rf"^a/b at c0ffee000000 cannot be fetched from the hub \(.*\); .*{advice}"
    ) as said:
        load_tokenizer(HUB_MODEL, tmp_path)
    assert "\n" not in str(said.value) and len(str(said.value)) < 500
    assert isinstance(fault, str) or str(fault) in str(said.value)


def test_adapters_of_a_hub_that_refuses_are_one_line_too(hub, tmp_path):
    hub.fault = 403
    own = Settings().replace(**{"model.adapters": f"hub:a/b@{COMMIT}"})
    with pytest.raises(UserError, match=r"^a/b at c0ffee000000 cannot be fetched .*; its owners give access at"):
        adopt(make_job(tmp_path, settings=own, part=Part(0)))


def test_a_hub_model_is_fetched_whole_and_then_needs_no_hub(hub, tmp_path):
    made = tmp_path / "made"
    random_qwen3(len(random_tokenizer())).save_pretrained(made)
    random_tokenizer().save_pretrained(made)
    hub.files = {path.name: path.read_bytes() for path in made.iterdir()} | {"pytorch_model.bin": b"a pickle"}
    hub.files["onnx/model.json"] = b"{}"
    assert len(load_tokenizer(HUB_MODEL, tmp_path)) == len(random_tokenizer())
    fetched = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*")}
    assert fetched == {path.name for path in made.iterdir()}
    hub.fault = 500
    assert load_backbone(HUB_MODEL, tmp_path, torch.float32).num_parameters() > 0


# ---------------------------------------------------------------- what belongs to the user


def test_another_programs_manifest_is_not_replaced(tmp_path, capsys):
    mine = tmp_path / "submissions" / "site"
    mine.mkdir(parents=True)
    (mine / "manifest.json").write_text('{"short_name": "mine"}')
    command = [*TINY, *places(tmp_path), "name=site"]
    assert __main__.main(["run", *command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{mine}: its manifest.json is not of a run, and would be replaced" in line
    assert __main__.main(["check", *command]) == 1 and line.removeprefix("error: ") in capsys.readouterr().out
    assert (mine / "manifest.json").read_text() == '{"short_name": "mine"}'
    assert [path.name for path in tmp_path.iterdir()] == ["submissions"]


@pytest.mark.parametrize("content", ['{"stages": {}, "config": {}}', '{"stages', ""])
def test_a_runs_own_manifest_is_made_anew_whatever_became_of_it(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert foreign_manifest(tmp_path) == "" == foreign_manifest(tmp_path / "none")


def test_only_what_a_killed_write_left_is_tidied_away(tmp_path):
    for name in (".gitkeep", ".tmpAbCdEf", ".unfinished-a.safetensors", "a.safetensors"):
        (tmp_path / name).touch()
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitkeep", "a.safetensors"]


@pytest.mark.parametrize("project", ["a/b", "a:b", "x" * 129, ""])
def test_a_project_that_w_and_b_would_refuse_is_refused_at_once(project, capsys):
    assert __main__.main(["plan", f"tracking.project='{project}'"]) == 2
    assert "W&B takes 1 to 128 characters" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--top=0", "--top=-1"])
def test_a_count_below_one_drops_no_row_of_a_sheet(option, capsys):
    with pytest.raises(SystemExit):
        __main__.main(["review", "export", "run", option])
    assert "must be 1 or more" in capsys.readouterr().err


def test_a_sheet_with_answers_is_not_written_over(tmp_path):
    path = tmp_path / "sheet.csv"
    refuse_to_lose(path)
    blank = {**dict.fromkeys(COLUMNS, "x"), "decision": ""}
    for filled, says in ((blank, ""), (blank | {"decision": "flip"}, "has 1 decisions"), ({"a": "b"}, "is no sheet")):
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, filled).writeheader()
            csv.DictWriter(stream, filled).writerow(filled)
        if not says:
            refuse_to_lose(path)
            continue
        with pytest.raises(UserError, match=f"{says}.*give another file with --out"):
            refuse_to_lose(path)
