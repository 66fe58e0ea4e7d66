"""Hub ids: only what is read is fetched, and every refusal is one clear line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from kveik.errors import ModelLoadError
from kveik.kernels.reference import reference_ops
from kveik.models import hub, load_model


def test_a_hub_id_is_downloaded_with_only_the_needed_files(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tiny_folder())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load_model("some-org/some-model", reference_ops(), hub_token="secret")
    assert loaded.folder == tiny_folder()
    assert asked["repository"] == "some-org/some-model"
    assert asked["token"] == "secret"
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "modeling_custom.py",
            "original/consolidated.00.pth",
            "onnx/model.safetensors",
            "consolidated.safetensors",
            "README.md",
        ],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(wanted)[-2:] == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]


class Response:
    """As much of an HTTP response as the errors of huggingface_hub look at."""

    headers: dict[str, str] = {}  # noqa: RUF012
    status_code = 403
    request = None


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (errors.GatedRepoError("gated\nlong story", response=Response()), "HF_TOKEN"),
        (errors.RepositoryNotFoundError("404\nstory", response=Response()), "not found on the hub"),
        (errors.LocalEntryNotFoundError("offline\nstory"), "cannot be reached"),
        (OSError("disk\nfull"), "disk full"),
        (RuntimeError("transport"), "download failed (transport)"),
    ],
)
def test_refusals_are_one_line(
    raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, **options: Any) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelLoadError) as caught:
        hub.resolve("some-org/some-model")
    assert "some-org/some-model" in caught.value.message
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "name", ["nowhere", "./missing/folder", "/missing", "a/b/c", "../x", "a b/c"]
)
def test_neither_folder_nor_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ModelLoadError, match="no such folder"):
        hub.resolve(name)


def test_a_file_is_not_a_folder(tiny_folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelLoadError, match="is a file; give the folder"):
        hub.resolve(str(tiny_folder() / "config.json"))


def test_an_empty_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json: not found"):
        load_model(str(tmp_path), reference_ops())


def test_a_folder_loads_without_the_hub_library(tiny_folder: Callable[..., Path]) -> None:
    program = (
        "import sys; from kveik.kernels.reference import reference_ops;"
        "from kveik.models import load_model;"
        f"load_model({str(tiny_folder())!r}, reference_ops());"
        "sys.exit('huggingface_hub' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
