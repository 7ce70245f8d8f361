"""The command line: quick help, one-line errors, exit codes; the work behind it is tested elsewhere."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analyticup import __main__, commands
from analyticup.engine.files import lock
from analyticup.errors import ADVICE, CheckFailed, UserError
from analyticup.results.manifest import Manifest

SRC = Path(__file__).resolve().parents[1] / "src"
SHIPPED = Path(__file__).resolve().parents[1] / "configs"
HEAVY = {
    "torch", "transformers", "pandas", "numpy", "datasets", "pyarrow", "sklearn", "faiss",
    "lightning", "peft", "scipy", "wandb", "rich", "yaml", "omegaconf", "pydantic",
}  # fmt: skip


def fresh(*arguments, code=None):
    """One command line in a process of its own."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "analyticup"]), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def refused(capsys, *arguments):
    """The lines on stderr of a command line that is refused with exit code 2."""
    assert __main__.main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


@pytest.fixture
def own_paths(tmp_path):
    """Overrides that keep a run's folders under tmp_path."""
    return [f"paths.{name}={tmp_path / name}" for name in ("artifacts", "submissions", "cache")]


@pytest.fixture
def given(monkeypatch):
    """What `run` is called with; it does nothing."""
    calls = []
    monkeypatch.setattr(commands, "run", lambda options: calls.append(options) or 0)
    return calls


# ---------------------------------------------------------------- help and parsing


def test_help_takes_hardly_longer_than_python_itself():
    seconds = {"help": [], "python": []}
    for _ in range(5):
        for name, start in (("help", lambda: fresh("--help")), ("python", lambda: fresh(code="import argparse"))):
            started = time.monotonic()
            run = start()
            seconds[name].append(time.monotonic() - started)
            assert run.returncode == 0
    # Side by side, and the best of five: machines differ, and may be busy with something else.
    assert min(seconds["help"]) < 10 * min(seconds["python"])
    # Where a name is long, its help begins on the next line.
    shown = fresh("--help").stdout.split()
    assert all(name in shown for name in __main__.COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["validate", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom analyticup.__main__ import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert not end.code\n"
        "print('\\n'.join(['MODULES', *sys.modules]))"
    )
    run = fresh(*arguments, code=code)
    assert run.returncode == 0, run.stderr
    assert not HEAVY & set(run.stdout.split("MODULES")[1].split())


def test_the_module_exits_with_the_code_of_its_command(tmp_path):
    run = fresh("plan", "--config", tmp_path / "none.yaml")
    assert run.returncode == 2
    assert run.stderr == f"error: {tmp_path / 'none.yaml'}: no such config file; the shipped ones are in configs/\n"


@pytest.mark.parametrize(
    ("arguments", "config", "overrides"),
    [
        ([], None, []),
        (["run"], None, []),
        (["seed=3"], None, ["seed=3"]),
        (["--config", "a.yaml"], "a.yaml", []),
        (["--config", "a.yaml", "seed=3", "name=x"], "a.yaml", ["seed=3", "name=x"]),
        (["seed=3", "--config", "a.yaml"], "a.yaml", ["seed=3"]),
        (["seed=3", "--config", "a.yaml", "name=x", "seed=4"], "a.yaml", ["seed=3", "name=x", "seed=4"]),
        (["run", "seed=3", "--config=a.yaml", "name=x"], "a.yaml", ["seed=3", "name=x"]),
        (["pln"], None, ["pln"]),
    ],
)
def test_without_a_command_run_is_meant(given, arguments, config, overrides):
    assert __main__.main(arguments) == 0
    (options,) = given
    assert options.command == "run"
    assert (options.config, options.overrides) == (Path(config) if config else None, overrides)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--seed", "3"],
        ["--seed=3"],
        ["plan", "--config"],
        ["validate", "--task", "QC"],
        ["validate", "--task", "XX", "--input", "a", "--submission", "b"],
        ["validate", "--task", "QC", "--input", "a", "--submission", "b", "left over"],
        ["score", "--input", "a", "--submission", "b"],
        ["report"],
    ],
)
def test_wrong_usage_is_exit_code_2(given, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        __main__.main(arguments)
    assert end.value.code == 2 and not given
    shown = capsys.readouterr()
    assert ": error: " in shown.err.splitlines()[-1] and "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("two\nlines"), 2, "error: two\nerror: lines\n"),
        (CheckFailed("no good"), 1, "failed: no good\n"),
        (KeyboardInterrupt(), 130, "interrupted; finished stages are kept, the same command resumes from there\n"),
        (
            OSError(28, "No space left on device", "a/b"),
            2,
            "error: the disk is full ([Errno 28] No space left on device: 'a/b'); free some space or move "
            f"paths.artifacts, paths.cache or paths.submissions; {ADVICE}\n",
        ),
        (OSError("the hub\n  is out of reach"), 2, "error: the hub is out of reach\n"),
    ],
)
def test_errors_become_exit_codes(monkeypatch, capsys, error, code, told):
    def fail(_):
        raise error

    monkeypatch.setattr(commands, "run", fail)
    assert __main__.main([]) == code
    assert capsys.readouterr().err == told


def test_a_mistake_in_the_kit_is_not_dressed_up_as_the_users(monkeypatch):
    monkeypatch.setattr(commands, "run", lambda _: {}["missing"])
    with pytest.raises(KeyError):
        __main__.main([])


def test_a_closed_pipe_is_no_crash():
    code = "from analyticup import commands, __main__\nimport sys\n\ndef stop(_): raise BrokenPipeError\n"
    run = fresh(code=code + "commands.run = stop\nsys.exit(__main__.main([]))")
    assert (run.returncode, run.stderr) == (1, "")


# ---------------------------------------------------------------- run, plan, check


@pytest.mark.parametrize("command", ["run", "plan", "check"])
def test_wrong_settings_are_refused_together_before_anything_is_made(tmp_path, capsys, own_paths, command):
    found = refused(capsys, command, "trian.lr=1", "folds.n=0", *own_paths)
    assert found == [
        "argument 'trian.lr=1': unknown key 'trian.lr'; the nearest valid key is 'train.lr'",
        "argument 'folds.n=0': folds.n = 0: must be between 2 and 100",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "plan", "check"])
def test_a_missing_config_is_refused(tmp_path, capsys, command):
    config = tmp_path / "none.yaml"
    assert refused(capsys, command, "--config", config) == [
        f"{config}: no such config file; the shipped ones are in configs/"
    ]


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, "data.dir: {dir} is not a folder; put the competition's files into it, or correct the path"),
        (
            [],
            "{dir}/train_QC.txt: no such file; put the competition's file there, or leave the task out with tasks=[QI]",
        ),
        (["train_QC.txt"], "{dir}: neither dev_QC.txt nor test_QC.txt is there; put at least one of them there"),
        (
            ["train_QC.txt", "dev_QC.txt"],
            "{dir}/train_QI.txt: no such file; put the competition's file there, or leave",
        ),
    ],
)
def test_missing_files_are_named(tmp_path, capsys, own_paths, command, files, told):
    folder = tmp_path / "data"
    for name in files or []:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("")
    if files == []:
        folder.mkdir()
    (line,) = refused(capsys, command, f"data.dir={folder}", *own_paths)
    assert line.startswith(told.format(dir=folder))
    assert not (tmp_path / "artifacts").exists()


def test_a_second_run_on_the_same_folder_is_refused(tmp_path, capsys, own_paths):
    with lock(tmp_path / "artifacts"):
        assert __main__.main(["run", "model.backbone=random:qwen3", *own_paths]) == 2
    assert "another run is using this artifacts folder" in capsys.readouterr().err
    assert not (tmp_path / "submissions").exists()


def test_plan_lists_the_stages_and_creates_nothing(tmp_path, capsys, own_paths):
    assert __main__.main(["plan", "model.backbone=random:qwen3", *own_paths]) == 0
    shown = capsys.readouterr().out
    for stage in ("sample-all", "ingest-QC", "negatives-QC", "filter-QI", "train-QI-fold1", "submit-all", "report-all"):
        assert stage in shown
    assert "not made yet" in shown and "QC: switched off by the settings: filter" in shown
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- validate and score

QC_ROW = {"id": 1, "task": "QC", "language": "en", "origin_query": "bag", "category_path": "bags"}


@pytest.fixture
def files(tmp_path):
    """A valid QC input, submission and label file of two rows."""
    rows = [QC_ROW, {**QC_ROW, "id": 2}]
    answers = [{key: row[key] for key in row if key != "task"} | {"prediction": 1} for row in rows]
    labels = [{"id": 1, "label": 1}, {"id": 2, "label": 0}]
    paths = {}
    for name, lines in (("input", rows), ("submission", answers), ("labels", labels)):
        paths[name] = tmp_path / f"{name}.txt"
        paths[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def options(files, *names):
    return [text for name in names for text in (f"--{name}", str(files[name]))]


def test_validate_passes_a_valid_file(files, capsys):
    assert __main__.main(["validate", "--task", "QC", *options(files, "input", "submission")]) == 0
    assert capsys.readouterr().out == f"{files['submission']}: valid for {files['input']}\n"


def test_validate_lists_every_problem_with_its_line(files, capsys):
    lines = files["submission"].read_text().replace('"prediction": 1', '"prediction": true').splitlines()
    files["submission"].write_text(f"{lines[1]}\n\n{lines[0]}\n")
    assert __main__.main(["validate", "--task", "QC", *options(files, "input", "submission")]) == 1
    shown = capsys.readouterr()
    assert shown.err == "" and "not the integer 0 or 1" in shown.out
    for part in ("line 1", "line 2", "line 3", "wrong order", "blank line"):
        assert part in shown.out


@pytest.mark.parametrize("name", ["input", "submission"])
def test_validate_names_a_file_that_is_not_there(files, capsys, tmp_path, name):
    for path in (tmp_path / "none.txt", tmp_path):
        files[name] = path
        code = __main__.main(["validate", "--task", "QC", *options(files, "input", "submission")])
        shown = capsys.readouterr()
        assert code in (1, 2) and str(path) in shown.out + shown.err and "Traceback" not in shown.err


def test_score_prints_the_figures(files, capsys):
    assert __main__.main(["score", *options(files, "input", "submission", "labels")]) == 0
    shown = capsys.readouterr().out
    # One of two right, all predicted positive: F1 is the floor, 2/3.
    assert shown.count("0.6667") >= 2 and " en " in shown and " all " in shown


@pytest.mark.parametrize(
    ("language", "shown"),
    [
        ("[/b]", "[/b]"),
        ("[red]x[/red]", "[red]x[/red]"),
        (":smile:", ":smile:"),
        ("\ud800", r'"\ud800"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("\u202ea\nb", r'"\u202ea\nb"'),
    ],
)
def test_score_shows_any_language_as_plain_characters(files, capsys, language, shown):
    text = json.dumps("en")
    for name in ("input", "submission"):
        files[name].write_text(files[name].read_text().replace(text, json.dumps(language)))
    assert __main__.main(["score", *options(files, "input", "submission", "labels")]) == 0
    assert f" {shown} " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["input", "submission", "labels"])
def test_score_refuses_a_missing_file_a_folder_and_a_broken_line(files, capsys, tmp_path, name):
    good = files[name]
    for path in (tmp_path / "none.txt", tmp_path):
        files[name] = path
        (line,) = refused(capsys, "score", *options(files, "input", "submission", "labels"))
        assert str(path) in line
    good.write_text(good.read_text() + '{"id": 3\n')
    files[name] = good
    (line,) = refused(capsys, "score", *options(files, "input", "submission", "labels"))
    assert line.startswith(f"{good}:3: ")


def test_score_refuses_a_score_table_that_is_none(files, capsys):
    (line,) = refused(capsys, "score", *options(files, "input", "submission", "labels"), "--scores", files["labels"])
    assert line.startswith(f"{files['labels']}: no readable score table")


# ---------------------------------------------------------------- report


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "{", "[]", "{}", '{"stages": {"report-all": 3}}', "\xff", "[" * 100_000),
        '{"stages": {"report-all": {"folder": 3}}, "config": {"paths": {"artifacts": "x"}}}',
        '{"stages": {"report-all": {"folder": "x"}}, "config": {"paths": {"artifacts": [1]}}}',
    ],
)
def test_report_needs_the_folder_of_a_finished_run(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    (line,) = refused(capsys, "report", tmp_path)
    manifest = tmp_path / "manifest.json"
    assert line == f"{manifest}: no readable manifest; run again, or give a finished run, e.g. submissions/sample"


def write_manifest(folder, artifacts, report="r"):
    entry = {"folder": report, "identity": "", "code": 1, "digest": "", "seconds": 1.0, "counts": {}}
    plain = {item.name: {} for item in dataclasses.fields(Manifest)}
    plain |= {"name": "run", "final_split": "dev", "seconds": 1.0, "stages": {"report-all": entry}}
    plain["config"] = {"paths": {"artifacts": artifacts}}
    (folder / "manifest.json").write_text(json.dumps(plain))


@pytest.mark.parametrize("content", ['{"stages": ', "{}", "[]", '{"name": 1, "out_of_fold": {"QC": {}}}'])
def test_report_says_when_its_figures_are_broken(tmp_path, capsys, content):
    write_manifest(tmp_path, str(tmp_path))
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "report.json").write_text(content)
    (line,) = refused(capsys, "report", tmp_path)
    assert line == f"{tmp_path}/r/report.json: not a report; delete its folder and run again"


def test_report_says_when_the_artifacts_are_gone(tmp_path, capsys):
    write_manifest(tmp_path, str(tmp_path / "gone"), "report-all-12345678")
    (line,) = refused(capsys, "report", tmp_path)
    assert "report-all-12345678/report.json: no such file; the run's artifacts are gone, run it again" in line


def test_report_needs_to_know_where_the_artifacts_are(tmp_path, capsys):
    write_manifest(tmp_path, [1])
    (line,) = refused(capsys, "report", tmp_path)
    assert "no readable manifest" in line


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_interruption_within_a_finaliser_is_not_lost(name):
    code = f"""
import os, signal, time
from analyticup.__main__ import heed_sigterm
signal.signal(signal.SIGINT, signal.default_int_handler)
heed_sigterm()
class Ending:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000): pass
try:
    Ending()
    time.sleep(5)
except KeyboardInterrupt:
    print("heard")
"""
    run = fresh(code=code)
    assert (run.stdout, run.stderr) == ("heard\n", "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("at_the_end", ["atexit.register(end)", "weakref.finalize(end, end)"])
def test_an_interruption_while_the_process_ends_says_nothing(name, at_the_end):
    code = f"""
import atexit, os, signal, time, weakref
from analyticup.__main__ import heed_sigterm
signal.signal(signal.SIGINT, signal.default_int_handler)
heed_sigterm()
def end():
    print("said before", end="")
    os.kill(os.getpid(), signal.{name})
    time.sleep(5)
{at_the_end}
"""
    run = fresh(code=code)
    assert (run.returncode, run.stdout, run.stderr) == (130, "said before", "")


@pytest.mark.parametrize("place", ["commands.run", "__main__._parse"])
@pytest.mark.parametrize("raised", ["Panic", "KeyboardInterrupt", "SystemExit"])
def test_an_interruption_that_a_library_makes_another_error_of_is_one_all_the_same(place, raised):
    code = f"""
import os, signal, sys
from analyticup import __main__, commands
signal.signal(signal.SIGINT, signal.default_int_handler)
__main__.heed_sigterm()
class Panic(BaseException):
    pass
def importing(_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
    except KeyboardInterrupt:
        raise {raised}(1)
{place} = importing
sys.exit(__main__.main([]))
"""
    run = fresh(code=code)
    told = "interrupted; finished stages are kept, the same command resumes from there\n"
    assert (run.returncode, run.stderr) == (130, told)


def test_an_interruption_inside_of_a_text_that_python_runs_is_no_other_exit_code(tmp_path):
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nfor _ in range(1000): pass"
    lines = ["import sys", "from analyticup import __main__, commands", "__main__.heed_sigterm()"]
    lines += [f"commands.run = lambda _: exec({text!r})", "sys.exit(__main__.main([]))"]
    (tmp_path / "odd.py").write_text("\n".join(lines))
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    run = subprocess.run([sys.executable, "-m", "odd"], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert run.returncode == 130, run.stderr
