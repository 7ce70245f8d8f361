"""`./run.sh push`: a bundle to a repository of models on the hub."""

from __future__ import annotations

import warnings
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, get_token

from analyticup.errors import UserError
from analyticup.model.pins import hub_refusal, is_hub_id, limit_waits_for_the_hub
from analyticup.sharing.layout import Bundle


def check_target(bundle: Bundle, repository: str, public: bool) -> None:
    """Raises UserError for a name that is none, and for rows that would become public."""
    if not is_hub_id(repository):
        raise UserError(f"--repo {repository}: not of the form OWNER/NAME")
    if public and bundle.has_rows:
        raise UserError("--public: the bundle holds rows, which are private; make it anew without bundle.rows=true")


def sizes(bundle: Bundle) -> dict[str, int]:
    """Every file's size in bytes, by name."""
    files = sorted(path for path in bundle.folder.rglob("*") if path.is_file())
    return {path.relative_to(bundle.folder).as_posix(): path.stat().st_size for path in files}


def upload(bundle: Bundle, repository: str, public: bool) -> CommitInfo:
    """One commit with all files of the bundle, and the removal of what is no longer in it; the repository is made where
    there is none. What an interrupted upload has sent is not sent again.

    The token is that of the hub's own login. Raises UserError where there is none, where the repository is public and
    `public` is not asked for, where the hub refuses or says nothing, and where a file did not arrive.
    """
    if get_token() is None:
        raise UserError("push: not logged in to the hub; run .venv/bin/hf auth login, then push again")
    limit_waits_for_the_hub()
    try:
        return _uploaded(HfApi(), bundle, repository, public)
    except UserError:
        raise
    except Exception as error:
        # Of this machine, not of the hub.
        if getattr(error, "errno", None):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        told = hub_refusal(cause, repository, "see that the hub can be reached and that your token may write there")
        raise UserError(f"push {told}; what has arrived is kept, the same command sends the rest") from error


def _uploaded(api: HfApi, bundle: Bundle, repository: str, public: bool) -> CommitInfo:
    api.create_repo(repository, private=not public, exist_ok=True)
    if not public and not api.model_info(repository).private:
        raise UserError(f"--repo {repository}: is public already; add --public if the bundle may be, or name another")
    with warnings.catch_warnings():
        # Score tables, in a repository of models.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file", UserWarning)
        return api.upload_folder(
            repo_id=repository,
            folder_path=Path(bundle.folder),
            commit_message=f"Bundle of the run {bundle.manifest.name}",
            delete_patterns="*",
        )
