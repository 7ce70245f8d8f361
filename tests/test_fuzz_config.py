"""Arguments and config files of any content give settings or errors of one line each; nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analyticup.engine.artifacts import fingerprint
from analyticup.errors import UserError
from analyticup.settings.loading import load_settings, task_settings
from analyticup.settings.schema import TASKS, Settings, leaves

pytestmark = pytest.mark.filterwarnings("error")


def keys_of(tree: dict[str, object], prefix: str = "") -> list[str]:
    """Every key, sections included."""
    found = []
    for name, value in tree.items():
        found += [prefix + name, *(keys_of(value, f"{prefix}{name}.") if isinstance(value, dict) else [])]
    return found


KEYS = keys_of(Settings().model_dump())
ODD_KEYS = [
    "",
    " ",
    ".",
    "a.b.c",
    "train.",
    ".lr",
    "QC",
    "QC.",
    "QC.QC.seed",
    "extends",
    "значение",
    "\u202e",
    "0",
    "<<",
]
VALUES = [
    *("", "~", "null", "true", "no", "0", "-1", "1.5", "1e-4", ".nan", ".inf", "1e999", "9" * 400, "0x" + "f" * 5000),
    *("9" * 5000, "1" + ":1" * 300 + ".0", "2024-13-45", "2024-01-01", "2001-01-01 00:00:00 +99:99", "=", "<<", "???"),
    *("${data.dir}", "${", "[", "]", "{", "}", "[]", "{}", "[[]]", "{a: 1}", "{a: {b: 1}}", "[QC]", "[QC, QC]", "QC"),
    *("[" * 500, "{a: " * 300 + "1" + "}" * 300, "[" * 150 + "]" * 150, "&a [*a]", "&a {b: *a}", "*a", "& ", "* "),
    *("!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!!binary aGk=", "!!set {QC}", "!!omap [a: 1]"),
    *("!!bool maybe", "!!int ''", "!!float ''", "!!timestamp x", "!!int 0x", "!!map [1]", "!!seq {a: 1}", "!x y", "!"),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\u202e"',
        '"\\x1b[31m"',
        '"a\\nb"',
        "'",
        '"',
        "|",
        ">",
        "|\n  a\n",
        "a: b: c",
        "- 1",
        "# x",
    ),
    *(
        "a=b",
        "de=5",
        "[de=5]",
        "[de=5, de=6]",
        '["d\\ne=1"]',
        "~nobody-here/x",
        "gguf:",
        "../..",
        "x" * 3000,
        "%",
        "@",
        "`",
    ),
]
ANY_KEY = st.one_of(
    st.sampled_from(KEYS),
    st.builds("{}.{}".format, st.sampled_from(TASKS), st.sampled_from(KEYS)),
    st.sampled_from(ODD_KEYS),
    st.text(max_size=6),
)
ANY_VALUE = st.one_of(st.sampled_from(VALUES), st.text(max_size=8), st.floats().map(str), st.integers().map(str))
CHOSEN = [f"{key}={value}" for key, leaf in leaves().items() for value in leaf.choices]
BOUNDS = [f"{key}={bound}" for key, leaf in leaves().items() for bound in (leaf.low, leaf.high) if bound is not None]
OVERRIDE = st.one_of(
    st.builds("{}={}".format, ANY_KEY, ANY_VALUE), st.sampled_from(CHOSEN + BOUNDS), st.text(max_size=20)
)


def load(path: Path, *overrides: str) -> Settings | None:
    """The settings, which can be used and recorded, or None where there are errors, each a clear line."""
    try:
        found = load_settings(path, list(overrides))
    except UserError as error:
        for line in str(error).split("\n"):
            assert line.isprintable() and ": " in line and len(line) < 2000, line
        return None
    for task in TASKS:
        fingerprint(task_settings(found, task).model_dump()).encode("utf-8")
    str(found.model_dump()).encode("utf-8")
    return found


@settings(max_examples=80)
@given(overrides=st.lists(OVERRIDE, min_size=1, max_size=3))
def test_arguments_give_settings_or_errors(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    load(path, *overrides)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["seed", "tasks", "data.dir", "QC.train.lr"])
def test_every_odd_value_is_met_by_every_kind_of_key(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("")
    load(path, f"{key}={value}")
    section, _, name = key.partition(".")
    path.write_text(f"{section}: {{{name}: {value}}}\n" if name else f"{section}: {value}\n", encoding="utf-8")
    load(path)


@st.composite
def documents(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        key, value = draw(ANY_KEY), draw(ANY_VALUE)
        head, _, rest = key.partition(".")
        indent = draw(st.sampled_from(["", "  "]))
        lines.append(
            draw(st.sampled_from([f"{key}: {value}", f"{head}:\n  {rest}: {value}", f"{indent}{key}:{value}"]))
        )
    text = "\n".join(lines)
    frame = draw(
        st.sampled_from(["{}", "{}", "{}\n", "---\n{}\n---\n{}", "\ufeff{}", "{}\n\t", "%YAML 9\n---\n{}", "- {}"])
    )
    return frame.replace("{}", text)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [*{p}, *{p}, *{p}]\n" for p, n in zip("abcdefghij", "bcdefghijk", strict=True)
)


@settings(max_examples=150)
@given(text=documents())
@example(text=BOMB)
@example(text=BOMB.replace("[", "{x: ").replace(", *", ", y*: *"))
@example(text="train: &t {lr: 1}\nQC: {train: *t}\n")
@example(text="a: &a\n  <<: *a\n")
@example(text="? [1, 2]\n: x\n")
@example(text="? {a: b}\n: x\n")
def test_documents_give_settings_or_errors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load(path)


@settings(max_examples=100)
@given(content=st.binary(max_size=40))
def test_bytes_give_settings_or_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    load(path)


NAMES = ["a.yaml", "b.yaml", "c.yaml"]
PARENTS = [
    *NAMES,
    "../a.yaml",
    ".",
    "",
    "0",
    "false",
    "[a.yaml]",
    "{a: b}",
    '"\\0"',
    "x" * 300,
    "loop",
    "/dev/null",
    "~",
]


@settings(max_examples=40)
@given(parents=st.tuples(*[st.sampled_from(PARENTS)] * 3))
def test_chains_of_files_end(tmp_path: Path, parents: tuple[str, ...]) -> None:
    loop = tmp_path / "loop"
    if not loop.is_symlink():
        loop.symlink_to(loop)
    for number, (name, parent) in enumerate(zip(NAMES, parents, strict=True)):
        (tmp_path / name).write_text(f"extends: {parent}\nseed: {number}\n")
    found = load(tmp_path / "a.yaml")
    # A chain that ends without an error ends in a file that extends nothing; the nearest file's value wins.
    assert found is None or (found.seed == 0 and {"~", ""} & set(parents))
