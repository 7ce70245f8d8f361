"""README.md cannot drift: its commands parse, its settings load, its tree exists, its cheap commands run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from analyticup.__main__ import COMMANDS, make_parser
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import TASK_SECTIONS, TASKS

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
INLINE = re.findall(r"`([^`\n]+)`", PROSE)
WITH_SETTINGS = ("run", "plan", "check")


def command_lines() -> list[str]:
    """Every `./run.sh ...` of the README, in blocks, tables and text; `docker run` lines as what they run inside."""
    lines = [
        line.removeprefix("$ ")
        for language, body in BLOCKS
        if language in ("sh", "console")
        for line in body.splitlines()
    ]
    found = [line for line in [*lines, *INLINE] if line.split()[:1] == ["./run.sh"]]
    for line in lines:
        if line.startswith("docker run "):
            inside = line.rpartition(" analyticup")[2]
            found.append(f"./run.sh{inside}")
    return list(dict.fromkeys(found))


def arguments_of(line: str) -> list[str]:
    arguments = shlex.split(line)[1:]
    # As main() and run.sh have it: no command means `run`, and run.sh keeps `test` to itself.
    if not arguments or arguments[0] not in (*COMMANDS, "test", "--help", "-h", "--version"):
        return ["run", *arguments]
    return arguments


LINES = command_lines()
FAULTY = [line for line in LINES if "train.lrr" in line]
SOUND = [line for line in LINES if line not in FAULTY]


def test_the_readme_shows_every_command() -> None:
    shown = {arguments_of(line)[0] for line in LINES}
    assert shown >= {*COMMANDS, "test"}
    assert "./run.sh run --config configs/paper.yaml data.dir=data" in LINES


@pytest.mark.parametrize("line", SOUND)
def test_command_line_parses_and_its_settings_load(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = arguments_of(line)
    if arguments[0] in ("test", "--help", "-h", "--version"):
        return
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{line}: {capsys.readouterr().err}")
    if options.command in WITH_SETTINGS:
        config = PROJECT / (options.config or "configs/sample.yaml")
        assert config.is_file(), f"{line}: no {config}"
        load_settings(config, options.overrides)


def test_tests_named_in_the_readme_exist() -> None:
    for line in SOUND:
        if arguments_of(line)[0] == "test":
            for name in arguments_of(line)[1:]:
                assert not name.startswith("tests/") or (PROJECT / name).is_file(), f"{line}: no {name}"


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "analyticup", *arguments]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120)


# What reads official files cannot run here.
CHEAP = [line for line in SOUND if arguments_of(line)[0] == "plan" and "data.dir" not in line]


@pytest.mark.parametrize("line", ["./run.sh --help", "./run.sh --version", *CHEAP])
def test_cheap_commands_run(line: str) -> None:
    done = run(arguments_of(line))
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not done.stderr


def test_cheap_commands_hold_plan() -> None:
    assert "./run.sh plan" in CHEAP


@pytest.mark.parametrize("line", FAULTY)
def test_errors_are_shown_as_they_are(line: str) -> None:
    body = next(body for _, body in BLOCKS if line in body)
    shown = body.split(f"{line}\n")[1]
    done = run(arguments_of(line))
    assert (done.returncode, done.stderr) == (2, shown)


def test_the_faulty_example_is_there() -> None:
    assert len(FAULTY) == 1


def test_yaml_examples_load(tmp_path: Path) -> None:
    examples = [body for language, body in BLOCKS if language == "yaml"]
    assert examples
    for name in ("sample", "small", "paper"):
        (tmp_path / f"{name}.yaml").write_bytes((PROJECT / "configs" / f"{name}.yaml").read_bytes())
    for body in examples:
        path = tmp_path / "example.yaml"
        path.write_text(body, encoding="utf-8")
        load_settings(path, [])


def known_keys() -> set[str]:
    """Every setting and section, as `translate.mined.k`."""
    import dataclasses

    from analyticup.settings.loading import to_dict
    from analyticup.settings.schema import Settings

    def names(tree: dict[str, object], prefix: str) -> set[str]:
        found = set()
        for key, value in tree.items():
            found |= {prefix + key} | (names(value, f"{prefix}{key}.") if isinstance(value, dict) else set())
        return found

    keys = names(to_dict(Settings()), "")
    assert {field.name for field in dataclasses.fields(Settings)} <= keys
    return keys | {f"{task}.{key}" for task in TASKS for key in keys if key.split(".")[0] in TASK_SECTIONS}


def test_settings_named_in_the_text_exist() -> None:
    keys = known_keys()
    sections = {key.split(".")[0] for key in keys}
    named = [re.match(r"[A-Za-z_]+(\.[a-z_]+)+", text) for text in INLINE]
    found = {match[0] for match in named if match and match[0].split(".")[0] in sections}
    # `configs`-like file names share no first word with a section, but modules do: `translate.py`.
    found = {key for key in found if not key.endswith((".py", ".parquet", ".yaml", ".txt", ".jsonl", ".png"))}
    assert len(found) > 15
    assert found - keys == set()


def test_settings_given_in_the_text_load() -> None:
    given = [text for text in INLINE if re.fullmatch(r"[A-Za-z_.]+=[^…\s]+", text) and text != "key=value"]
    assert len(given) > 3
    for text in given:
        load_settings(PROJECT / "configs" / "sample.yaml", [text])


def tree() -> list[str]:
    """Paths of the layout: the first word of each line, under the folder that its indent says; plus the files that a
    folder's line lists by name."""
    body = next(body for language, body in BLOCKS if language == "text" and body.startswith("run.sh"))
    folders: list[str] = []
    found = []
    for line in body.splitlines():
        name, _, about = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name] if name.endswith("/") else []
        folder = "".join(folders[: depth + 1])
        found.append(folder if name.endswith("/") else folder + name)
        if name.endswith("/"):
            found += [folder + word for word in re.findall(r"[\w.]+\.(?:py|yaml)|\w+/(?=,|$)", about)]
    return found


def test_layout_lists_only_what_exists() -> None:
    paths = tree()
    assert {"src/analyticup/model/prompt.py", "configs/paper.yaml", "tests/"} <= set(paths)
    missing = [path for path in paths if not (PROJECT / path).exists()]
    assert missing == []


def test_layout_lists_every_module() -> None:
    folder = PROJECT / "src" / "analyticup"
    helpers = {"__init__.py", "errors.py", "progress.py", "seeds.py"}
    modules = {f"src/analyticup/{path.name}" for path in folder.glob("*.py") if path.name not in helpers}
    assert modules - set(tree()) == set()


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PROSE.splitlines()
        if line.startswith("#")
    }
    targets = re.findall(r"\]\(([^)]+)\)", PROSE)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (PROJECT / target).exists(), target


def test_what_git_ignores_stays_out_of_the_image() -> None:
    names = {}
    for file in (".gitignore", ".dockerignore"):
        lines = (PROJECT / file).read_text(encoding="utf-8").splitlines()
        names[file] = {line.removeprefix("**/").strip("/") for line in lines if line and not line.startswith("#")}
    assert names[".gitignore"] - names[".dockerignore"] == set()


def test_exit_codes_of_the_readme_are_those_of_the_help() -> None:
    assert "0 done, 1 a check failed, 2 wrong input or settings" in run(["--help"]).stdout.replace("\n", " ")
    table = dict(re.findall(r"^\| (\d+) \| ([^|]+) \|$", README, flags=re.MULTILINE))
    assert set(table) == {"0", "1", "2", "130"}
    assert table["0"].strip() == "done"
    assert table["1"].startswith("a check failed")
    assert table["2"].startswith("wrong input or wrong settings")
