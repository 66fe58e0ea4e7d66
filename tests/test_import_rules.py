"""Rooms import downward only (ARCHITECTURE.md); type-checking imports count too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "kveik"

# the scheduler and its parts: standard library, and never a tensor or a text
SCHEDULING = (
    "cache",
    "engine.makers",
    "engine.plan",
    "engine.request",
    "engine.resting",
    "engine.scheduling",
    "engine.sequence",
    "errors",
    "config",
)

# room or file -> what it may import: kveik modules by prefix, and third-party packages by name
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "errors.py": ((), ()),
    "config.py": (("errors",), ()),
    "memory_plan.py": (("errors", "config"), ()),
    "cache/": (("cache", "errors", "config"), ()),
    "engine/plan.py": (("cache", "errors", "config"), ()),
    "engine/past.py": (("cache.join",), ()),
    "engine/gaps.py": (("cache",), ()),
    "engine/request.py": (("cache", "engine.past", "engine.plan", "errors", "config"), ()),
    "engine/scheduler.py": (SCHEDULING, ()),
    "engine/scheduling/": (SCHEDULING, ()),
    "engine/makers.py": (
        ("cache", "engine.request", "engine.sequence", "errors", "config"),
        (),
    ),
    "engine/resting.py": (("cache", "engine.request", "engine.sequence"), ()),
    "engine/sequence.py": (("cache", "engine.plan", "engine.request", "errors", "config"), ()),
    "engine/stop.py": (("errors", "config"), ()),
    "engine/stats.py": (("cache.manager",), ()),
    "engine/inbox.py": (
        ("engine.delivery", "engine.request", "engine.sequence", "errors", "config"),
        (),
    ),
    "engine/series.py": ((), ()),
    "engine/journal.py": (("engine.request", "engine.series"), ()),
    "engine/history.py": (
        ("cache.directive", "cache.join", "cache.window", "engine.past", "errors", "config"),
        (),
    ),
    "lab/plot": (("lab", "errors"), ("matplotlib",)),
    "lab/": (("lab", "cache", "errors", "config"), ()),
    "kernels/": (("kernels", "errors", "config"), ("numpy", "ml_dtypes")),
    "store/": (("store", "kernels", "cache.segments", "errors", "config"), ()),
    "models/": (
        ("models", "kernels", "cache.segments", "errors", "config"),
        ("numpy", "ml_dtypes", "safetensors", "huggingface_hub"),
    ),
    "engine/runner.py": (
        ("models", "store", "kernels", "cache.segments", "cache.window", "engine", "errors"),
        (),
    ),
    "engine/sampler.py": (("kernels", "engine.plan", "errors"), ()),
    "engine/tokenizer.py": (("engine", "errors", "config"), ("tokenizers", "jinja2")),
    "engine/words.py": (("cache.window", "errors", "config"), ()),
    "engine/manifest.py": (
        ("cache.directive", "engine.words", "engine.strict_data", "errors", "config"),
        ("yaml",),
    ),
    "engine/strict_data.py": ((), ("yaml",)),
    "engine/modules/": (
        (
            "engine.modules",
            "engine.words",
            "engine.strict_data",
            "cache.directive",
            "cache.join",
            "errors",
            "config",
        ),
        ("yaml",),
    ),
    "engine/special_tokens.py": (("engine", "errors", "config"), ("tokenizers",)),
    "engine/cuts.py": (("engine", "errors", "config"), ("tokenizers",)),
    "engine/chat_template.py": (("engine", "errors", "config"), ("tokenizers", "jinja2")),
    "engine/": (("engine", "models", "store", "kernels", "cache", "errors", "config"), ()),
    "server/": (
        (
            "server",
            "engine",
            "cache.curve",
            "cache.directive",
            "cache.lease",
            "cache.window",
            "errors",
            "config",
            "__version__",
        ),
        ("starlette", "uvicorn", "pydantic", "prometheus_client"),
    ),
    "commands/info.py": (
        ("engine", "kernels.backend", "kernels.cores", "config", "errors", "__version__"),
        ("typer",),
    ),
    "commands/replay.py": (("lab", "cache.policy", "errors"), ("typer", "rich")),
    "commands/simulate.py": (("lab", "cache.policy", "errors"), ("typer", "rich")),
    "": (
        (
            "llm",
            "managed",
            "outputs",
            "prompting",
            "session",
            "batch",
            "batch_lines",
            "memory_plan",
            "commands",
            "cli",
            "cache.directive",
            "cache.window",
            "cache.lease",
            "cache.curve",
            "caches",
            "embedding",
            "module_schemas",
            "engine",
            "server",
            "config",
            "errors",
            "__version__",
        ),
        ("typer", "click", "rich"),
    ),
}


def rule_for(relative: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The most specific rule: the longest key that the path starts with."""
    return RULES[max((key for key in RULES if relative.startswith(key)), key=len)]


def imported_modules(path: Path) -> set[str]:
    """Absolute dotted names of everything a file imports, relative imports resolved."""
    package = ["kveik", *path.relative_to(SOURCE).parent.parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "kveik":
                names.update(f"kveik.{alias.name}" for alias in node.names)
            else:
                names.add(module)
    return names


def violations(relative: str, modules: set[str]) -> list[str]:
    rooms, packages = rule_for(relative)
    found = []
    for module in sorted(modules):
        head, _, rest = module.partition(".")
        if head == "kveik":
            allowed = any(rest == room or rest.startswith(room + ".") for room in rooms)
        else:
            allowed = head in sys.stdlib_module_names or head in packages
        if not allowed:
            found.append(f"{relative} imports {module}")
    return found


FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("relative", FILES)
def test_imports_go_downward(relative: str) -> None:
    assert violations(relative, imported_modules(SOURCE / relative)) == []


def test_the_rule_can_fail() -> None:
    assert violations("cache/pool.py", {"numpy"})
    assert violations("cache/pool.py", {"kveik.engine.plan"})
    assert violations("server/app.py", {"kveik.models"})
    assert violations("engine/scheduler.py", {"kveik.kernels.ops"})
    assert violations("engine/scheduling/rows.py", {"kveik.engine.engine"})
    assert not violations("engine/runner.py", {"kveik.kernels.ops", "array"})


FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}


@pytest.mark.parametrize("relative", FILES)
def test_nothing_is_unpickled_or_evaluated(relative: str) -> None:
    path = SOURCE / relative
    assert not {name.partition(".")[0] for name in imported_modules(path)} & FORBIDDEN
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{relative}:{node.lineno}"
