"""`kveik cache ...` against a real server: the commands and the routes speak of the same things."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import serving
from cache_cli import Run, runner

TEXT = "Every television of this shop has a warranty of two years from the day of purchase."
MANIFEST = f"""entries:
- name: shop/faq
  messages: [{{role: system, content: {TEXT}}}]
  ttl: 1h
  tags: [shop]
- {{prompt: {TEXT}, tags: [plain]}}
- {{messages: [{{role: user, content: Hello}}]}}
"""


@pytest.fixture(scope="module")
def url(tiny_folder: Callable[..., Path]) -> Iterator[str]:
    with serving.running_server(str(tiny_folder()), "--kv-memory", "4MiB") as url:
        yield url


@pytest.fixture
def cache(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(url, capsys, monkeypatch)


@pytest.fixture
def warmed(cache: Run, tmp_path: Path) -> Run:
    file = tmp_path / "warm.yaml"
    file.write_text(MANIFEST)
    code, out, err = cache("warm", str(file))
    assert (code, err) == (0, ""), out
    return cache


def test_a_warmed_name_is_listed_and_shown(warmed: Run) -> None:
    code, out, _ = warmed("ls")
    assert code == 0
    for word in ("shop/faq", "ready", "shop"):
        assert word in out
    shown = json.loads(warmed("show", "shop/faq", "--json")[1])
    assert (shown["name"], shown["tags"], shown["status"]) == ("shop/faq", ["shop"], "ready")
    assert 3500 < shown["time_left"] <= 3600
    assert "60 min" in warmed("show", "shop/faq")[1]


def test_what_is_hot_is_listed(warmed: Run) -> None:
    rows = json.loads(warmed("ls", "--blocks", "--top", "3", "--json")[1])["data"]
    assert len(rows) == 3
    assert warmed("ls", "--blocks")[0] == 0
    assert warmed("ls", "--sessions")[1] == "no open sessions\n"


def test_a_name_that_is_deleted_is_gone(warmed: Run) -> None:
    code, out, _ = warmed("rm", "shop/faq")
    assert code == 0
    assert out.startswith("shop/faq: ")
    code, out, err = warmed("show", "shop/faq")
    assert (code, out) == (1, "")
    assert err.startswith("kveik: 404: ")
    assert err.count("\n") == 1


def test_a_manifest_of_what_is_hot_warms_again(warmed: Run, tmp_path: Path) -> None:
    code, out, _ = warmed("manifest", "--top", "5")
    assert code == 0
    file = tmp_path / "hot.yaml"
    file.write_text(out)
    rows = json.loads(warmed("warm", str(file), "--json")[1])["entries"]
    plain = [row for row in rows if row["name"] is None]
    assert [row["name"] for row in rows[: -len(plain)]] == ["shop/faq"]
    assert all(row["cached"] >= row["tokens"] - 8 for row in plain)


def test_what_is_invalidated_is_explained_as_such(warmed: Run) -> None:
    def hit_tokens() -> int:
        told = json.loads(warmed("explain", TEXT, "--json")[1])
        return int(told["hit_tokens"]["by_level"]["states"])

    assert hit_tokens() > 40
    receipt = json.loads(warmed("invalidate", "--tag", "plain", "--json")[1])
    assert receipt["blocks"] + receipt["deferred"] > 0
    assert hit_tokens() <= 1
    code, out, _ = warmed("explain", TEXT)
    assert code == 0
    assert "invalidated" in out


def test_all_goes_with_its_names_and_no_other_condition(warmed: Run) -> None:
    code, _, err = warmed("invalidate", "--all", "--tag", "plain")
    assert code != 0
    assert "all: goes with no other condition" in err
    assert warmed("show", "shop/faq")[0] == 0
    assert json.loads(warmed("invalidate", "--all", "--json")[1])["blocks"] > 0
    assert warmed("show", "shop/faq")[0] == 1
