"""`./run.sh bundle --competition`: a code submission in the form that the competition asked for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from analyticup.settings.paths import PROJECT
from analyticup.settings.schema import Settings
from analyticup.sharing.bundle import zip_folder
from analyticup.sharing.layout import DATA

# The form: scripts/train.sh, scripts/predict.sh, data/, README, requirements.txt, model/.
MODEL = "model"
_CODE = ("src", "configs", "requirements.txt", "LICENSE")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")

SCRIPT = """\
#!/usr/bin/env bash
# {what}
# PYTHON names the interpreter that has requirements.txt installed; arguments are settings, as key=value.
set -euo pipefail
root="$(cd "$(dirname "${{BASH_SOURCE[0]}}")/.." && pwd)"
export PYTHONPATH="$root/src"
exec "${{PYTHON:-python3}}" -P -m analyticup regenerate "$root/model" --depth {depth}{data} "$@"
"""

README = """\
# {name}: code submission

A bundle of a finished run of analyticup (`model/`), the code that made it (`src/`) and two scripts. Python 3.11 or
newer, Linux:

```sh
python3 -m venv venv
venv/bin/pip install -r requirements.txt
PYTHON=venv/bin/python scripts/predict.sh
PYTHON=venv/bin/python scripts/train.sh
```

{data} `predict.sh` scores the dev and test files with the adapters in `model/`; `train.sh` makes everything anew, the
adapters too. Each writes `submissions/{name}-predict/` or `submissions/{name}-train/`, with `submit.zip` in it, and
compares it with what `model/` holds: exit code 0 where it is the same or near, 1 where it is not. Settings are given as
arguments, e.g. `scripts/train.sh machine.accelerator=cpu`. What is in `model/` is said in its README.md.
"""
WITH_FILES = "Put the competition's files into `data/` under their own names (train_QC.txt and so on)."
AT_HAND = "`data/` stays empty: the rows are in `model/`, or are those of the sample corpus, which is written anew."


def write_competition(bundle: Path, settings: Settings, out: Path) -> None:
    """Writes the zip from a bundle's folder; the same bundle and code give the same bytes."""
    with tempfile.TemporaryDirectory(prefix="analyticup-competition-") as folder:
        scratch = Path(folder)
        for name, text in _texts(settings):
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)
        for name in _CODE:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(source, scratch / name, ignore=_LEFT_OUT)
            else:
                shutil.copyfile(source, scratch / name)
        shutil.copytree(bundle, scratch / MODEL)
        zip_folder(scratch, out)


def _texts(settings: Settings) -> Iterator[tuple[str, str]]:
    given = settings.data.dir is not None and not settings.bundle.rows
    data = f' data.dir="$root/{DATA}"' if given else ""
    yield "README.md", README.format(name=settings.name, data=WITH_FILES if given else AT_HAND)
    yield f"{DATA}/README.md", (WITH_FILES if given else AT_HAND) + "\n"
    for name, depth, what in (
        ("train", "train", "Trains everything anew and writes the submission."),
        ("predict", "predict", "Scores the dev and test files with the adapters in model/ and writes the submission."),
    ):
        yield f"scripts/{name}.sh", SCRIPT.format(what=what, depth=depth, data=data)
