"""From what the user names (a folder or a hub id `org/name`) to a folder on this machine.

huggingface_hub is heavy and imported only when a hub id is given. Only files that are read are
downloaded: no pickles, no code. Downloads resume; the cache folder is the library's own.
"""

from __future__ import annotations

import re
from pathlib import Path

from kveik.errors import ModelLoadError

PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "*.safetensors",
    "*.safetensors.index.json",
)
"""All that kveik reads from a repository."""

# Subfolders and Mistral's second copy of the weights.
_TWICE = ("*/*", "consolidated*.safetensors")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(path_or_id: str, token: str | None = None) -> Path:
    """A folder, downloaded if need be. token: of the hub (default: HF_TOKEN or the stored login).

    An existing path wins over a hub id of the same name. ModelLoadError in one line."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(f"{path}: is a file; give the folder that holds config.json")
    if _HUB_ID.fullmatch(path_or_id):
        return _download(path_or_id, token)
    raise ModelLoadError(
        f"{path_or_id}: no such folder, and not a hub id of the form org/name; check the spelling"
    )


def _download(repository: str, token: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(_TWICE),
            token=token,
        )
    except errors.GatedRepoError as error:  # before RepositoryNotFoundError, its parent
        raise ModelLoadError(
            f"{repository}: gated; accept its terms on https://huggingface.co/{repository} and set "
            "HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"{repository}: not a folder here, and not found on the hub (or private: set HF_TOKEN)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{repository}: not a folder here, and the hub cannot be reached; connect, or download "
            "the model elsewhere and give its folder"
        ) from error
    except Exception as error:  # its transport raises its own (requests, httpx, by version)
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(f"{repository}: download failed ({reason}); run again") from error
    return Path(folder)
