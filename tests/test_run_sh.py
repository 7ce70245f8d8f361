"""run.sh sets up once, notices what changed, repairs what broke off, and never empties what it did not make.

A stub stands for python3: it logs each call and only pretends to make an environment or to install.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
LOCKS = (".ci/requirements.lock", ".ci/requirements-cpu.lock", ".ci/requirements-cuda.lock")

# Calls with -c are the real interpreter's: the hash of the requirements must be a real one.
STUB = r"""#!/bin/bash
echo "$*" >>"$STUB_LOG"
case "$1 $2" in
  "-m venv")
    [ -z "${STUB_VENV_FAILS:-}" ] || { echo "no ensurepip" >&2; exit 1; }
    folder="${@: -1}"
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python"
    touch "$folder/pyvenv.cfg"
    ;;
  "-m pip")
    echo "pip sees PYTHONPATH=${PYTHONPATH-none}" >>"$STUB_LOG"
    case "$*" in *requirements-cpu.lock*) echo "${STUB_CPU_TORCH:-}" >&2; [ -z "${STUB_CPU_TORCH:-}" ]; exit ;; esac
    [ -z "${STUB_PIP_KILLED:-}" ] || { kill -9 "$PPID"; sleep 0.2; exit 137; }
    [ -z "${STUB_PIP_FAILS:-}" ] || { echo "ERROR: No matching distribution found" >&2; exit 1; }
    [ -z "${STUB_PIP_INTERRUPTED:-}" ] || { kill -INT "$PPID"; echo "ERROR: Operation cancelled by user" >&2; exit 1; }
    [ -z "${STUB_PIP_SECONDS:-}" ] || [ "$3" = check ] || sleep "$STUB_PIP_SECONDS"
    [ "$3" != check ] || [ -z "${STUB_CHECK_FAILS:-}" ] || { echo "a 1 requires b"; echo "c 2 requires d"; exit 1; }
    ;;
  -c*) exec "$STUB_REAL_PYTHON" -c "${STUB_BEFORE:-}
$2" "${@:3}" ;;
  *)
    echo "called as $0"
    echo "PYTHONPATH=$PYTHONPATH"
    echo "MKL_CBWR=${MKL_CBWR-none}"
    echo "arguments=$(printf "[%s]" "$@")"
    exit "${STUB_EXIT:-0}"
    ;;
esac
"""

# What the lock is for, whatever the tests run on.
LOCKED = """import sys, sysconfig
sys.implementation.name = "cpython"
sys.version_info = (3, 12, 1)
sysconfig.get_platform = lambda: "linux-x86_64"
"""


class Kit:
    """A copy of run.sh and what it installs from, with nothing but the stub and the system's tools on PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a kit"
        (self.root / ".ci").mkdir(parents=True)
        for name in ("run.sh", "requirements.txt", *LOCKS):
            shutil.copy(PROJECT / name, self.root / name)
        self.venv = folder / "environment"
        self.log = folder / "log"
        stub = folder / "bin" / "python3"
        stub.parent.mkdir()
        stub.write_text(STUB, encoding="utf-8")
        stub.chmod(0o755)
        tools = folder / "tools"
        tools.mkdir()
        for name in ("bash", "cat", "cp", "dirname", "ls", "mkdir", "mv", "readlink", "rm", "rmdir", "sleep", "touch"):
            if found := shutil.which(name, path="/usr/bin:/bin"):
                (tools / name).symlink_to(found)
        self.environment = {
            "PATH": f"{stub.parent}:{tools}",
            "ANALYTICUP_VENV": str(self.venv),
            "STUB_LOG": str(self.log),
            "STUB_REAL_PYTHON": sys.executable,
            "STUB_BEFORE": LOCKED,
        }

    def command(self, *arguments: str) -> list[str]:
        return [shutil.which("bash") or "bash", str(self.root / "run.sh"), *arguments]

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("", encoding="utf-8")
        return subprocess.run(
            self.command(*arguments),
            env=self.environment | environment,
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
            timeout=60,
            # A shell's background jobs, tests among them, are started deaf to Ctrl-C, and so is what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def set_up(self) -> Path:
        """The environment that a set-up gives."""
        assert self.run("--version").returncode == 0
        return self.venv.resolve()

    def change(self, name: str = "requirements.txt") -> None:
        with (self.root / name).open("a", encoding="utf-8") as stream:
            stream.write("another==1.0\n")

    def calls(self, kind: str) -> list[str]:
        """What was asked of `kind` (venv, pip, ...) since the last `run` began."""
        return [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith(f"-m {kind}")]


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_first_use_sets_up_then_runs_with_the_arguments_as_they_are(kit: Kit) -> None:
    done = kit.run("plan", "name=two words", "x=*")
    assert done.returncode == 0, done.stderr
    assert kit.calls("venv") == [f"-m venv {kit.venv.resolve()}"]
    torch, rest = kit.calls("pip install")
    assert f"-r {kit.root}/.ci/requirements-cpu.lock --require-hashes --no-deps" in torch
    assert f"-r {kit.root}/.ci/requirements.lock --require-hashes --no-deps" in rest
    assert "arguments=[-P][-m][analyticup][plan][name=two words][x=*]" in done.stdout
    assert f"setting up {kit.venv.resolve()}" in done.stderr
    assert kit.venv.is_symlink() and kit.venv.resolve().parent == kit.venv.parent


def test_second_use_sets_up_nothing_and_says_nothing(kit: Kit) -> None:
    kit.run("--version")
    done = kit.run("--version")
    assert done.returncode == 0
    assert kit.calls("venv") == kit.calls("pip install") == []
    assert done.stderr == ""


def test_environment_is_in_the_project_by_default(kit: Kit) -> None:
    del kit.environment["ANALYTICUP_VENV"]
    assert kit.run("--version").returncode == 0
    (call,) = kit.calls("venv")
    assert re.fullmatch(f"-m venv {re.escape(str(kit.root))}/.venv-[0-9a-f]{{12}}", call)
    assert (kit.root / ".venv" / "bin" / "python").is_file()


@pytest.mark.parametrize("name", ["requirements.txt", *LOCKS])
def test_changed_requirements_are_installed_anew(kit: Kit, name: str) -> None:
    kit.run("--version")
    kit.change(name)
    assert kit.run("--version").returncode == 0
    assert len(kit.calls("venv")) == len(kit.calls("pip check")) == 1
    kit.run("--version")
    assert kit.calls("pip install") == []


def test_where_pip_sees_no_cpu_build_the_cuda_build_of_torch_comes(kit: Kit) -> None:
    message = "ERROR: No matching distribution found for torch==2.13.0+cpu"
    done = kit.run("--version", STUB_CPU_TORCH=message)
    assert done.returncode == 0, done.stderr
    _, cuda, rest = kit.calls("pip install")
    assert f"-r {kit.root}/.ci/requirements-cuda.lock --require-hashes --no-deps" in cuda
    assert f"-r {kit.root}/.ci/requirements.lock --require-hashes --no-deps" in rest
    # Not finding it is no fault.
    assert message not in done.stderr


def test_a_cpu_build_with_another_hash_is_not_passed_over(kit: Kit) -> None:
    failed = kit.run("--version", STUB_CPU_TORCH="ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")
    assert failed.returncode == 2
    assert "DO NOT MATCH THE HASHES" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("run.sh: pip could not install .ci/requirements-cpu.lock")
    assert len(kit.calls("pip install")) == 1


OTHERS = {
    "Python 3.13": "sys.version_info = (3, 13, 0)",
    "macOS": "sysconfig.get_platform = lambda: 'macosx-14.0-arm64'",
    "arm64": "sysconfig.get_platform = lambda: 'linux-aarch64'",
    "PyPy": "sys.implementation.name = 'pypy'",
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_the_lock_is_not_for_takes_the_plain_requirements_and_says_so(kit: Kit, other: str) -> None:
    done = kit.run("--version", STUB_BEFORE=LOCKED + other)
    assert done.returncode == 0, done.stderr
    (call,) = kit.calls("pip install")
    assert call.endswith(f"-r {kit.root}/requirements.txt")
    assert sum("without hashes" in line for line in done.stderr.splitlines()) == 1


def test_a_lock_that_lacks_a_package_is_one_clear_line(kit: Kit) -> None:
    failed = kit.run("--version", STUB_CHECK_FAILS="1")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith(
        "run.sh: .ci/requirements.lock does not fit together (a 1 requires b)"
    )
    assert kit.run("--version").returncode == 0
    assert len(kit.calls("pip check")) == 1


def test_another_interpreter_in_the_environment_is_another_set_up(kit: Kit, tmp_path: Path) -> None:
    kit.run("--version")
    other = tmp_path / "another prefix"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(other)], check=True)
    assert kit.run("--version", STUB_REAL_PYTHON=str(other / "bin" / "python")).returncode == 0
    assert len(kit.calls("pip check")) == 1


def test_killed_set_up_is_begun_anew(kit: Kit) -> None:
    killed = kit.run("--version", STUB_PIP_KILLED="1")
    assert killed.returncode == -9
    assert not kit.venv.exists()
    done = kit.run("--version")
    assert done.returncode == 0, done.stderr
    assert len(kit.calls("venv")) == len(kit.calls("pip check")) == 1
    assert sorted(path.name for path in kit.venv.parent.glob("environment*")) == [
        "environment",
        kit.venv.resolve().name,
        "environment.lock",
    ]


def test_interrupted_set_up_says_so(kit: Kit) -> None:
    stopped = kit.run("--version", STUB_PIP_INTERRUPTED="1")
    assert stopped.returncode == 130
    assert "run.sh: set-up interrupted" in stopped.stderr
    assert kit.run("--version").returncode == 0


def test_missing_interpreter_is_repaired(kit: Kit) -> None:
    kit.run("--version")
    (kit.venv / "bin" / "python").unlink()
    assert kit.run("--version").returncode == 0
    assert len(kit.calls("pip check")) == 1


def test_failing_pip_is_one_clear_line_and_tried_again(kit: Kit) -> None:
    failed = kit.run("--version", STUB_PIP_FAILS="1")
    assert failed.returncode == 2
    assert failed.stdout == ""
    *before, last = failed.stderr.splitlines()
    assert last.startswith("run.sh: pip could not install .ci/requirements.lock")
    assert before[-1] == "ERROR: No matching distribution found"
    assert kit.run("--version").returncode == 0
    assert len(kit.calls("pip check")) == 1


FAULTS = {"pip fails": "STUB_PIP_FAILS", "venv fails": "STUB_VENV_FAILS", "Ctrl-C": "STUB_PIP_INTERRUPTED"}


@pytest.mark.parametrize("fault", [*FAULTS.values(), "STUB_PIP_KILLED"], ids=[*FAULTS, "killed"])
def test_set_up_that_does_not_come_to_its_end_costs_nothing_that_worked(kit: Kit, fault: str) -> None:
    old = kit.set_up()
    original = (kit.root / "requirements.txt").read_bytes()
    kit.change()
    before = snapshot(old)
    assert kit.run("--version", **{fault: "1"}).returncode != 0
    assert snapshot(old) == before
    assert kit.venv.resolve() == old
    (kit.root / "requirements.txt").write_bytes(original)
    assert kit.run("--version").returncode == 0
    assert kit.calls("venv") == kit.calls("pip install") == []


def test_failing_venv_is_one_clear_line(kit: Kit) -> None:
    failed = kit.run("--version", STUB_VENV_FAILS="1")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith(f"run.sh: could not create {kit.venv}-")
    assert kit.calls("pip install") == []


UNFIT = {
    "no such command": {"PYTHON": "/nowhere/python3"},
    "too old": {"STUB_BEFORE": "import sys; sys.version_info = (3, 10, 12)"},
    "too old, named": {"STUB_BEFORE": "import sys; sys.version_info = (3, 10, 12)", "PYTHON": "python3"},
    "without ensurepip": {"STUB_BEFORE": "import sys; sys.modules['ensurepip'] = None"},
}


@pytest.mark.parametrize("environment", UNFIT.values(), ids=UNFIT)
def test_no_fit_python_is_one_clear_line(kit: Kit, environment: dict[str, str]) -> None:
    failed = kit.run("--version", **environment)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert "Python 3.11 or newer" in failed.stderr
    assert not kit.venv.exists()


def foreign(kit: Kit, kind: str) -> None:
    """Something of the user's at the path of the environment, or where the environment would be built."""
    if kind == "file":
        kit.venv.write_text("years of work", encoding="utf-8")
        return
    folder = kit.venv
    if kind == "beside":
        folder = kit.set_up()
        kit.venv.unlink()
        (folder / ".requirements.sha256").unlink()
    if kind == "link":
        folder = kit.venv.with_name("elsewhere")
        kit.venv.symlink_to(folder)
    if kind == "environment":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    folder.mkdir(exist_ok=True)
    (folder / "thesis.txt").write_text("years of work", encoding="utf-8")


def snapshot(path: Path) -> dict[str, bytes]:
    """Contents by path; a link's is where it leads."""
    found = sorted([path, *path.rglob("*")] if path.is_dir() else [path])
    return {
        str(one): os.readlink(one).encode() if one.is_symlink() else one.read_bytes()
        for one in found
        if one.is_symlink() or one.is_file()
    }


@pytest.mark.parametrize("kind", ["folder", "environment", "file", "link", "beside"])
def test_what_the_kit_did_not_make_is_never_replaced(kit: Kit, kind: str) -> None:
    foreign(kit, kind)
    before = snapshot(kit.venv.parent)
    failed = kit.run("--version")
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert "was not set up by run.sh and is left as it is" in line
    after = snapshot(kit.venv.parent)
    for name in (str(kit.log), f"{kit.venv}.lock"):
        before.pop(name, None), after.pop(name, None)
    assert after == before


def test_own_environment_in_the_project_is_never_emptied(kit: Kit) -> None:
    del kit.environment["ANALYTICUP_VENV"]
    kit.venv = kit.root / ".venv"
    foreign(kit, "environment")
    before = snapshot(kit.venv)
    failed = kit.run("--version")
    assert failed.returncode == 2 and f"{kit.venv} was not set up by run.sh" in failed.stderr
    assert snapshot(kit.venv) == before


def old_style(kit: Kit, folder: Path) -> None:
    """An environment as earlier versions set it up: the folder itself, stamped for the path that was given."""
    kit.set_up()
    kit.venv.resolve().rename(folder.with_name("moved"))
    kit.venv.unlink()
    folder.with_name("moved").rename(folder)
    script = f"""{{ cat requirements.txt .ci/requirements{{,-cpu,-cuda}}.lock
    "{folder}/bin/python" -c 'import sys; print(sys.version, sys.prefix)'; }}"""
    stamp = subprocess.run(["bash", "-c", script], cwd=kit.root, env=kit.environment, capture_output=True, check=True)
    (folder / ".requirements.sha256").write_text(hashlib.sha256(stamp.stdout).hexdigest() + "\n", encoding="utf-8")


def test_environment_of_an_earlier_version_goes_on_working_and_stays_when_requirements_change(kit: Kit) -> None:
    old_style(kit, kit.venv)
    before = snapshot(kit.venv)
    done = kit.run("--version")
    assert (done.returncode, done.stderr, kit.calls("venv")) == (0, "", [])
    kit.change()
    done = kit.run("--version")
    assert done.returncode == 0
    assert f"{kit.venv} stays for what still runs from it" in done.stderr
    (built,) = kit.calls("venv")
    assert snapshot(kit.venv) == before
    # Without it the path leads to the new one, which is not built again.
    shutil.rmtree(kit.venv)
    assert kit.run("--version").returncode == 0
    assert kit.calls("venv") == [] and built.endswith(str(kit.venv.resolve()))


def test_project_called_through_a_link_is_the_project_of_the_file(kit: Kit, tmp_path: Path) -> None:
    old = kit.set_up()
    before = snapshot(old)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "analyticup").symlink_to("../a kit/run.sh")
    (tmp_path / "again").symlink_to(tmp_path / "links" / "analyticup")
    command = [kit.command()[0], str(tmp_path / "again"), "--version"]
    done = subprocess.run(command, env=kit.environment, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"PYTHONPATH={kit.root}/src\n" in done.stdout
    assert snapshot(old) == before


@pytest.mark.parametrize("missing", ["requirements.txt", LOCKS[2]])
def test_copy_without_requirement_files_touches_nothing(kit: Kit, missing: str) -> None:
    old = kit.set_up()
    before = snapshot(old)
    (kit.root / missing).unlink()
    failed = kit.run("--version")
    assert failed.returncode == 2
    assert failed.stderr == f"run.sh: {kit.root}/{missing} is missing; call the run.sh of a whole copy of the project\n"
    assert snapshot(old) == before


def test_second_checkout_with_other_requirements_leaves_the_first_its_environment(kit: Kit, tmp_path: Path) -> None:
    first = kit.set_up()
    before = snapshot(first)
    other = tmp_path / "another kit"
    shutil.copytree(kit.root, other)
    (other / "requirements.txt").write_text("another==1.0\n", encoding="utf-8")
    command = [kit.command()[0], str(other / "run.sh"), "--version"]
    done = subprocess.run(command, env=kit.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"{first} stays for what still runs from it" in done.stderr
    second = kit.venv.resolve()
    assert second != first and snapshot(first) == before
    # Back and forth, nothing is built again, and each runs from its own.
    done = kit.run("--version")
    assert (done.returncode, kit.calls("venv"), kit.venv.resolve()) == (0, [], first)


def test_a_run_goes_on_from_its_environment_whatever_the_path_leads_to(kit: Kit) -> None:
    """The command is called by the environment's own path, so that later imports come from the same one."""
    done = kit.run("--version")
    assert f"called as {kit.venv.resolve()}/bin/python" in done.stdout


def test_a_link_of_the_user_s_is_followed_and_stays(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    kit.venv.symlink_to(tmp_path / "large disk" / "env")
    assert kit.run("--version").returncode == 0
    assert os.readlink(kit.venv) == str(tmp_path / "large disk" / "env")
    assert (tmp_path / "large disk" / "env").is_symlink()
    kit.run("--version")
    assert kit.calls("venv") == []


@pytest.mark.parametrize("form", ["environment/", "link/environment", "new/folder/environment"])
def test_a_path_may_be_written_in_several_ways(kit: Kit, tmp_path: Path, form: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for _ in range(2):
        assert kit.run("--version", cwd=tmp_path, ANALYTICUP_VENV=form).returncode == 0
    assert kit.calls("venv") == []
    assert kit.run("--version", ANALYTICUP_VENV=str((tmp_path / form).absolute())).returncode == 0
    assert kit.calls("venv") == []


@pytest.mark.parametrize("path", ["/", "new/.."])
def test_a_path_that_can_hold_no_environment_is_one_clear_line(kit: Kit, path: str) -> None:
    failed = kit.run("--version", ANALYTICUP_VENV=path)
    assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1


def test_an_empty_folder_is_taken(kit: Kit) -> None:
    kit.venv.mkdir()
    assert kit.run("--version").returncode == 0


def test_relative_environment_folder_holds_for_tests_too(kit: Kit, tmp_path: Path) -> None:
    done = kit.run("test", "-x", cwd=tmp_path, ANALYTICUP_VENV="environment")
    assert done.returncode == 0, done.stderr
    assert "arguments=[-m][pytest][-x]" in done.stdout


def test_foreign_module_paths_do_not_reach_the_kit(kit: Kit) -> None:
    done = kit.run("--version", PYTHONPATH="/somewhere/else", CDPATH="/")
    assert f"PYTHONPATH={kit.root}/src\n" in done.stdout
    assert "pip sees PYTHONPATH=none" in kit.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["run", "test"])
def test_only_on_intel_s_processors_float32_adds_up_as_it_asks(kit: Kit, tmp_path: Path, command: str) -> None:
    grep = tmp_path / "tools" / "grep"
    grep.write_text('#!/bin/bash\n[ "$*" = "-q GenuineIntel /proc/cpuinfo" ]\n', encoding="utf-8")
    grep.chmod(0o755)
    assert "MKL_CBWR=AUTO,STRICT\n" in kit.run(command).stdout
    assert "MKL_CBWR=AVX2\n" in kit.run(command, MKL_CBWR="AVX2").stdout
    grep.write_text("#!/bin/bash\nexit 1\n", encoding="utf-8")
    assert "MKL_CBWR=none\n" in kit.run(command).stdout


def test_exit_code_is_that_of_the_command(kit: Kit) -> None:
    assert kit.run("validate", STUB_EXIT="1").returncode == 1


def test_two_first_uses_at_once_set_up_once(kit: Kit) -> None:
    kit.log.write_text("", encoding="utf-8")
    environment = kit.environment | {"STUB_PIP_SECONDS": "1"}
    both = [
        subprocess.Popen(kit.command("--version"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=60)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(kit.calls("pip check")) == 1
    assert sum("waiting for another set-up" in error for error in errors) == 1


def test_unwritable_place_is_one_clear_line(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    failed = kit.run("--version", ANALYTICUP_VENV=str(tmp_path / "file" / "environment"))
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert "cannot write" in failed.stderr


def test_shell_syntax() -> None:
    subprocess.run(["bash", "-n", str(PROJECT / "run.sh")], check=True)
    assert os.access(PROJECT / "run.sh", os.X_OK)
