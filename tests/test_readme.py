"""No README drifts: commands parse, settings exist and load, trees and links lead somewhere, cheap commands run."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from analyticup.__main__ import COMMANDS, make_parser
from analyticup.experiments.compare.command import read_arguments
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import Settings

PROJECT = Path(__file__).resolve().parents[1]
CODE = PROJECT / "src" / "analyticup"
SAMPLE = PROJECT / "configs" / "sample.yaml"
NO_COMMAND = ("test", "--help", "-h", "--version")


class Readme:
    """One README: its text, its fenced blocks as (language, body), its prose, and the code spans in that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.blocks = re.findall(r"^```(\w+)\n(.*?)^```$", self.text, flags=re.DOTALL | re.MULTILINE)
        self.prose = re.sub(r"^```.*?^```$", "", self.text, flags=re.DOTALL | re.MULTILINE)
        self.inline = re.findall(r"`([^`\n]+)`", self.prose)

    def __str__(self) -> str:
        return str(self.path.relative_to(PROJECT))

    @cached_property
    def anchors(self) -> set[str]:
        headings = [line.lstrip("# ").lower() for line in self.prose.splitlines() if line.startswith("#")]
        return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}

    def commands(self) -> Iterator[str]:
        """Every `./run.sh ...` in blocks, tables and text; `docker run` lines as what they run inside."""
        shell = [body for language, body in self.blocks if language in ("sh", "console")]
        lines = [line.removeprefix("$ ") for body in shell for line in body.splitlines()]
        yield from (line for line in [*lines, *self.inline] if line.split()[:1] == ["./run.sh"])
        for line in lines:
            if line.startswith("docker run "):
                yield f"./run.sh{line.rpartition(' analyticup')[2]}"

    def tree(self) -> Iterator[Path]:
        """Paths of the tree: the first column under the folder that its indent says, modules in the third column, and
        folders and YAML files that the second one names."""
        folder = self.path.parent
        body = next(body for language, body in self.blocks if language == "text" and re.match(r"\S+\.(py|sh) ", body))
        above: list[Path] = []
        for line in body.splitlines():
            if line.startswith("#"):
                continue
            depth = (len(line) - len(line.lstrip())) // 2
            name, about, *modules = re.split(r" {2,}", line.strip())
            place = (above[depth - 1] if depth else folder) / name
            above[depth:] = [place]
            yield place
            yield from (place / f"{module}.py" for column in modules for module in column.split())
            yield from (place / word for word in about.split() if re.fullmatch(r"\w+/|\w+\.yaml", word))


TOP = Readme(PROJECT / "README.md")
OF_CODE = Readme(CODE / "README.md")
FOLDERS = (".ci", "configs", "src", "tests")
FOUND = [path for folder in FOLDERS for path in sorted((PROJECT / folder).rglob("README.md"))]
READMES = [TOP, *map(Readme, FOUND), Readme(PROJECT / "submissions" / "README.md")]
INLINE = [text for readme in READMES for text in readme.inline]
LINES = list(dict.fromkeys(line for readme in READMES for line in readme.commands()))
FAULTY = [line for line in LINES if "train.lrr" in line]
SOUND = [line for line in LINES if line not in FAULTY]


def arguments_of(line: str) -> list[str]:
    arguments = shlex.split(line)[1:]
    # As main() and run.sh have it: no command means `run`, and run.sh keeps `test` to itself.
    if not arguments or arguments[0] not in (*COMMANDS, *NO_COMMAND):
        return ["run", *arguments]
    return arguments


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "analyticup", *arguments]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120)


def test_the_first_readme_shows_every_command_and_stays_short() -> None:
    lines = list(TOP.commands())
    assert {arguments_of(line)[0] for line in lines} >= {*COMMANDS, "test"}
    assert "./run.sh run --config configs/paper.yaml data.dir=data" in lines
    assert len(TOP.text.splitlines()) <= 220
    assert len(TOP.text.split()) <= 3000


@pytest.mark.parametrize("line", SOUND)
def test_command_line_parses_and_its_settings_load(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = arguments_of(line)
    if arguments[0] in NO_COMMAND:
        return
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{line}: {capsys.readouterr().err}")
    if hasattr(options, "config"):
        config = PROJECT / (options.config or SAMPLE)
        assert config.is_file(), f"{line}: no {config}"
        load_settings(config, options.overrides)
    if hasattr(options, "configs"):
        configs, overrides = read_arguments(options.configs)
        for config in configs:
            load_settings(PROJECT / config, overrides)


def test_tests_named_exist() -> None:
    named = [name for line in SOUND for name in arguments_of(line)[1:] if name.startswith("tests/")]
    assert named
    assert [name for name in named if not (PROJECT / name).is_file()] == []


def test_words_that_choose_tests_are_in_their_names() -> None:
    chosen = [found for line in LINES if (found := re.search(r"(tests/\w+\.py) -k (\"[^\"]+\"|\w+)", line))]
    assert chosen
    for file, words in (found.groups() for found in chosen):
        names = " ".join(re.findall(r"def (test_\w+)", (PROJECT / file).read_text(encoding="utf-8")))
        assert [word for word in words.strip('"').split(" or ") if word not in names] == [], file


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
    body = next(body for readme in READMES for _, body in readme.blocks if line in body)
    done = run(arguments_of(line))
    assert (done.returncode, done.stderr) == (2, body.split(f"{line}\n")[1])


def test_the_faulty_example_is_there() -> None:
    assert len(FAULTY) == 1


def test_yaml_examples_load(tmp_path: Path) -> None:
    examples = [body for readme in READMES for language, body in readme.blocks if language == "yaml"]
    assert examples
    for name in ("sample", "small", "paper"):
        (tmp_path / f"{name}.yaml").write_bytes((PROJECT / "configs" / f"{name}.yaml").read_bytes())
    for body in examples:
        path = tmp_path / "example.yaml"
        path.write_text(body, encoding="utf-8")
        load_settings(path, [])


def is_known(key: str) -> bool:
    """Whether the key is a setting or a section, of one task or of both."""
    try:
        attrgetter(re.sub("^Q[CI][.]", "", key))(Settings())
    except AttributeError:
        return False
    return True


def test_settings_named_in_the_text_exist() -> None:
    named = [re.match(r"[A-Za-z_]+(\.[a-z0-9_]+)+", text) for text in INLINE]
    found = {match[0] for match in named if match and match[0].split(".")[0] in vars(Settings())}
    # Modules and files share their first word with a section: `filter.py`.
    found = {
        key
        for key in found
        if not key.endswith((".py", ".parquet", ".yaml", ".txt", ".jsonl", ".png", ".html", ".json"))
    }
    assert len(found) > 50
    assert not is_known("train.lrr")
    assert [key for key in sorted(found) if not is_known(key)] == []


def test_settings_given_in_the_text_load() -> None:
    given = [text for text in INLINE if re.fullmatch(r"[A-Za-z0-9_.]+=[^…\s]+", text) and text != "key=value"]
    assert len(given) > 10
    for text in given:
        load_settings(SAMPLE, [text])


@pytest.mark.parametrize("readme", [TOP, OF_CODE], ids=str)
def test_layout_lists_only_what_exists(readme: Readme) -> None:
    paths = list(readme.tree())
    assert len(paths) > 10
    missing = [str(path) for path in paths if not path.exists()]
    assert not missing, "\n".join(missing)


def test_layout_of_the_code_lists_every_folder_and_module() -> None:
    folders = {path for path in CODE.rglob("*") if path.is_dir() and path.name != "__pycache__"}
    modules = {path for path in CODE.rglob("*.py") if path.name != "__init__.py"}
    unnamed = sorted(map(str, (folders | modules) - set(OF_CODE.tree())))
    assert not unnamed, "\n".join(unnamed)


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_lead_somewhere(readme: Readme) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", readme.prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = readme.path.parent / file if file else readme.path
        if not path.exists() or (anchor and anchor not in Readme(path).anchors):
            wrong.append(target)
    assert not wrong, "\n".join(wrong)


def test_every_readme_can_be_reached_from_the_first() -> None:
    reached, waiting = set(), [TOP.path]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        targets = re.findall(r"\]\(([^)#]+README\.md)", path.read_text(encoding="utf-8"))
        waiting += [found for target in targets if (found := (path.parent / target).resolve()).exists()]
    assert {readme.path for readme in READMES} - reached == set()


def test_the_sample_figures_shown_are_the_expected_ones() -> None:
    expected = yaml.safe_load((PROJECT / "configs" / "expected.yaml").read_text(encoding="utf-8"))["sample"]["figures"]
    values = {f"{figure['value']:.4f}" for figure in expected.values()}
    text = (CODE / "corpus" / "README.md").read_text(encoding="utf-8")
    assert {value for value in values if value not in text} == set()
    # The first README shows some of the same lines.
    shown = {line for _, body in TOP.blocks for line in body.splitlines() if line.startswith("  all ")}
    assert shown
    assert shown - set(text.splitlines()) == set()


def test_what_git_ignores_stays_out_of_the_image() -> None:
    names = {}
    for file in (".gitignore", ".dockerignore"):
        lines = (PROJECT / file).read_text(encoding="utf-8").splitlines()
        names[file] = {line.removeprefix("**/").strip("/") for line in lines if line and not line.startswith("#")}
    assert names[".gitignore"] - names[".dockerignore"] == set()


def test_exit_codes_of_the_readme_are_those_of_the_help() -> None:
    assert "0 done, 1 a check failed, 2 wrong input or settings" in run(["--help"]).stdout.replace("\n", " ")
    table = dict(re.findall(r"^\| (\d+) \| ([^|]+) \|$", TOP.text, flags=re.MULTILINE))
    assert set(table) == {"0", "1", "2", "130"}
    assert table["0"].strip() == "done"
    assert table["1"].startswith("a check failed")
    assert table["2"].startswith("wrong input or wrong settings")
