"""Stage folders: identities that leave nothing out, publication in one step, and reasons for not using a folder."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from analyticup.engine.artifacts import (
    Artifact,
    StageRecord,
    Unusable,
    await_seen,
    content_digest,
    fingerprint,
    list_files,
    read_artifact,
)
from analyticup.engine.files import lock, publish_folder, remove_unfinished, write_atomically, write_json_lines
from analyticup.errors import UserError

SRC = Path(__file__).resolve().parents[1] / "src"


@pytest.mark.parametrize(
    "value",
    [{1, 2}, b"x", Path("x"), np.int64(1), np.zeros(2), object(), len, 1j, {"deep": [{"set": {1}}]}],
    ids=lambda value: type(value).__name__,
)
def test_a_fingerprint_refuses_what_it_cannot_serialise(value):
    with pytest.raises(TypeError):
        fingerprint({"value": value})


def test_a_folder_that_another_machine_has_made_is_waited_for(tmp_path):
    made, unseen = tmp_path / "made", tmp_path / "unseen"
    unseen.mkdir()
    StageRecord().save(unseen)
    # A stage's folder takes its place by one rename, too.
    begun = threading.Timer(0.2, unseen.rename, [made])
    begun.start()
    await_seen(made, tmp_path, patience=30)
    assert read_artifact(made, "").folder == made
    begun.join()
    with pytest.raises(UserError, match=r"none: was made, but is not to be seen on .* after 0\.1 s; all nodes must"):
        await_seen(tmp_path / "none", tmp_path, patience=0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_fingerprint_refuses_numbers_that_are_none(value):
    with pytest.raises(ValueError, match="JSON"):
        fingerprint({"value": value})


@pytest.mark.parametrize("key", [1, None, True, ("a",)])
def test_a_fingerprint_refuses_keys_that_are_no_texts(key):
    with pytest.raises(TypeError):
        fingerprint({"a": {key: 1}})


def test_a_fingerprint_does_not_depend_on_the_order_or_kind_of_mapping():
    one = {"a": 1, "b": {"c": [1, 2.5, None, True], "d": "é"}}
    other = OrderedDict([("b", OrderedDict([("d", "é"), ("c", (1, 2.5, None, True))])), ("a", 1)])
    assert fingerprint(one) == fingerprint(other)


def test_a_fingerprint_tells_values_apart():
    values = [1, 1.0, "1", True, None, "", [], {}, [1, 2], [2, 1], ["1", "2"], ["12"], "é", "e\u0301", "\ud800", 0.1]
    assert len({fingerprint({"value": value}) for value in values}) == len(values)
    assert fingerprint({"a": {"b": 1}}) != fingerprint({"a": {}, "b": 1})


def test_a_fingerprint_is_the_same_in_every_process():
    code = "from analyticup.engine.artifacts import fingerprint; print(fingerprint({'b': [1, 'é'], 'a': None}))"
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(SRC), "PYTHONHASHSEED": seed},
        )
        assert run.stdout.strip() == fingerprint({"a": None, "b": [1, "é"]})


def publish(folder: Path, files: dict[str, str], identity: str = "id", **more: object) -> Artifact:
    with publish_folder(folder) as scratch:
        for name, text in files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_text(text)
        StageRecord(identity=identity, **more).save(scratch)
    artifact = read_artifact(folder, identity)
    assert isinstance(artifact, Artifact)
    return artifact


def test_a_finished_folder_is_read_back_with_the_digest_of_its_files(tmp_path):
    one = publish(tmp_path / "one", {"a.txt": "A", "deep/b.txt": "BB"})
    assert sorted(one.record.files) == ["a.txt", "deep/b.txt"]
    assert one.record.files["deep/b.txt"]["bytes"] == 2
    assert one.digest == content_digest(list_files(one.folder))
    same = publish(tmp_path / "two", {"deep/b.txt": "BB", "a.txt": "A"}, identity="other", seconds=3)
    assert same.digest == one.digest
    assert publish(tmp_path / "three", {"a.txt": "A", "deep/b.txt": "BC"}).digest != one.digest
    assert publish(tmp_path / "four", {"a.txt": "A", "deep/c.txt": "BB"}).digest != one.digest


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_no_folder_behind(tmp_path, error):
    with pytest.raises(error), publish_folder(tmp_path / "new") as scratch:
        (scratch / "half.txt").write_text("half")
        assert not (tmp_path / "new").exists()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_the_folder_that_stood_there(tmp_path):
    publish(tmp_path / "stage", {"a.txt": "old"})
    with pytest.raises(RuntimeError), publish_folder(tmp_path / "stage") as scratch:
        (scratch / "a.txt").write_text("new")
        raise RuntimeError
    assert (tmp_path / "stage" / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_a_folder_is_replaced_whole(tmp_path):
    publish(tmp_path / "stage", {"a.txt": "old", "gone.txt": "old"})
    publish(tmp_path / "stage", {"a.txt": "new"})
    assert sorted(path.name for path in (tmp_path / "stage").iterdir()) == ["a.txt", "record.json"]


def test_leftovers_of_a_killed_run_do_not_get_into_the_next_folder(tmp_path):
    with publish_folder(tmp_path / "stage") as scratch:
        name = scratch.name
    (tmp_path / name).mkdir()
    (tmp_path / name / "stale.txt").write_text("stale")
    publish(tmp_path / "stage", {"a.txt": "new"})
    assert not (tmp_path / "stage" / "stale.txt").exists()


def test_unfinished_things_are_removed_and_named_and_nothing_else(tmp_path):
    publish(tmp_path / "stage", {"a.txt": "A"})
    (tmp_path / ".unfinished-folds-QC-12345678").mkdir()
    (tmp_path / ".unfinished-folds-QC-12345678" / "half").write_text("half")
    (tmp_path / ".unfinished-note.json").write_text("{")
    (tmp_path / "cache").mkdir()
    assert remove_unfinished(tmp_path) == [".unfinished-folds-QC-12345678", ".unfinished-note.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "stage"]
    assert remove_unfinished(tmp_path) == []


def edit_record(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, **changes}))


def test_every_reason_for_not_using_a_folder(tmp_path):
    folder = tmp_path / "stage"
    assert read_artifact(folder, "id") == Unusable("not made yet")
    publish(folder, {"a.txt": "AAA", "b.txt": "B"})
    assert read_artifact(folder, "other") == Unusable("its record belongs to other settings")
    (folder / "a.txt").write_text("AA")
    assert read_artifact(folder, "id") == Unusable("its file a.txt has another size than recorded")
    (folder / "a.txt").write_text("AAB")
    assert read_artifact(folder, "id") == Unusable("its file a.txt has another content than recorded")
    (folder / "a.txt").unlink()
    assert read_artifact(folder, "id") == Unusable("its file a.txt is missing")
    (folder / "a.txt").mkdir()
    assert read_artifact(folder, "id") == Unusable("its file a.txt is missing")


def test_a_stage_may_write_a_file_that_is_called_like_the_record(tmp_path):
    assert list(publish(tmp_path / "stage", {"deep/record.json": "{}"}).record.files) == ["deep/record.json"]


@pytest.mark.parametrize("name", ["more.txt", ".hidden", "deep/record.json", "deep/more/", "empty/"])
def test_what_a_stage_did_not_write_is_found(tmp_path, name):
    folder = tmp_path / "stage"
    publish(folder, {"a.txt": "A", "deep/b.txt": "B"})
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("{}")
    assert read_artifact(folder, "id") == Unusable(f"it holds {name.rstrip('/')}, which its stage did not write")


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
def test_a_broken_record_is_a_reason_and_no_crash(tmp_path, text):
    folder = tmp_path / "stage"
    publish(folder, {"a.txt": "A"})
    (folder / "record.json").write_bytes(text.encode("latin-1"))
    assert read_artifact(folder, "id") == Unusable("its record is missing or unreadable")
    (folder / "record.json").unlink()
    assert read_artifact(folder, "id") == Unusable("its record is missing or unreadable")


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"files": []}', '{"files": {"a": {"bytes": 1e999}}}'])
def test_a_record_without_its_checksum_is_not_used(tmp_path, text):
    folder = tmp_path / "stage"
    publish(folder, {"a.txt": "A"})
    (folder / "record.json").write_text(text)
    assert read_artifact(folder, "id") == Unusable("its record was edited, or written by an earlier version")


@pytest.mark.parametrize(
    "changes", [{"digest": None}, {"inputs": []}, {"identity": None}, {"counts": {"rows": 4}}, {"new": 1}]
)
def test_an_edited_record_is_not_used(tmp_path, changes):
    folder = tmp_path / "stage"
    publish(folder, {"a.txt": "A"}, counts={"rows": 3, "share": 0.1, "none": None, 1: math.nan}, part="\u00e9\u0639")
    edit_record(folder, **changes)
    assert read_artifact(folder, "id") == Unusable("its record was edited, or written by an earlier version")


def test_the_form_of_a_record_plays_no_part(tmp_path):
    folder = tmp_path / "stage"
    publish(folder, {"a.txt": "A"}, counts={"share": 0.1, "none": None, 1: math.nan}, part="\u00e9\u0639")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(dict(reversed(record.items()))))
    assert isinstance(read_artifact(folder, "id"), Artifact)


def test_the_lock_keeps_a_second_process_out_and_is_freed_with_its_holder(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from analyticup.engine.files import lock\n"
            "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(tmp_path / "artifacts"),
        ],
        env={"PYTHONPATH": str(SRC)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"another run is using this artifacts folder.*paths\.artifacts"):
            lock(tmp_path / "artifacts").__enter__()
    finally:
        # As by a crash: no clean-up code of the holder runs.
        holder.kill()
        holder.communicate()
    with lock(tmp_path / "artifacts"):
        pass


def test_a_text_is_written_whole_with_unix_line_ends(tmp_path):
    path = tmp_path / "deep" / "note.json"
    write_atomically(path, "é\n")
    write_atomically(path, "ö\n")
    assert path.read_bytes() == "ö\n".encode()
    assert [other.name for other in path.parent.iterdir()] == ["note.json"]


def test_a_text_that_cannot_be_put_in_place_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "note.json"
    write_atomically(path, "old\n")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new\n")
    assert path.read_text() == "old\n" and [other.name for other in tmp_path.iterdir()] == ["note.json"]


def test_one_module_alone_puts_files_in_place():
    modules = sorted((SRC / "analyticup").rglob("*.py"))
    assert [path.name for path in modules if "os.replace(" in path.read_text(encoding="utf-8")] == ["files.py"]


def test_json_lines_are_written_while_they_are_made(tmp_path):
    path = tmp_path / "rows.jsonl"

    def values():
        yield from ({"text": "é \ud800", "number": number} for number in range(20_000))
        assert path.stat().st_size > 500_000

    write_json_lines(path, values())
    assert path.read_bytes().split(b"\n")[:2] == [b'{"text": "\xc3\xa9 \\ud800", "number": %d}' % n for n in (0, 1)]
