"""The workshop: one virtual environment per engine, the models in the formats they read.

    HOME/venvs/NAME            what serves        HOME/venvs/NAME-convert   what converts, if more
    HOME/models/SHAPE/hf       the checkpoint     HOME/models/SHAPE/NAME-WIDTH
    HOME/logs                  of installs, conversions and engines

HOME: --home, or KVEIK_BENCH_HOME, or kveik-bench in the user's cache folder. Everything is made
when it is first needed; a file `complete` says that it was finished.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import checkpoints
from processes import Failed, run_job

FOLDER = Path(__file__).parent
ENGINES = ("kveik", "vllm", "openvino", "llamacpp", "transformers")
"""`peer_NAME.py` each. A new peer is one such file and its name here."""


def default_home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("KVEIK_BENCH_HOME") or cache / "kveik-bench")


@dataclass(frozen=True)
class Peer:
    """One engine at one weight width: `vllm-bf16`."""

    engine: str
    width: str

    def __str__(self) -> str:
        return f"{self.engine}-{self.width}"

    @property
    def runner(self) -> ModuleType:
        return importlib.import_module(f"peer_{self.engine}")

    @property
    def title(self) -> str:
        return f"{self.runner.NAME} {self.width}"


def every_peer() -> list[Peer]:
    peers = [Peer(engine, "bf16") for engine in ENGINES]
    return [Peer(peer.engine, width) for peer in peers for width in peer.runner.WIDTHS]


class Workshop:
    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.logs = self.home / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def python(self, peer: Peer, converting: bool = False) -> Path:
        """The interpreter of the engine's environment. Raises Failed where pip fails."""
        if not peer.runner.PACKAGES:
            return Path(sys.executable)
        calls = getattr(peer.runner, "CONVERTER", None) if converting else None
        name = peer.engine + ("-convert" if calls else "")
        return self._environment(name, calls or peer.runner.PACKAGES, peer.runner)

    def environment(self, peer: Peer) -> dict[str, str]:
        """Variables of the engine's processes. Only kveik sees the checkout's PYTHONPATH."""
        inherited = dict(os.environ)
        if peer.runner.PACKAGES:
            inherited.pop("PYTHONPATH", None)
        return inherited | peer.runner.environment(self.home / "venvs" / peer.engine)

    def model(self, shape: str, peer: Peer) -> Path:
        """The folder that this engine loads. Raises Failed where its converter fails."""
        source = checkpoints.write(shape, self.home / "models" / shape / "hf")
        if not hasattr(peer.runner, "convert") or peer.width in getattr(
            peer.runner, "READS_CHECKPOINT", ()
        ):
            return source
        target = source.parent / str(peer)
        if not (target / "complete").exists():
            shutil.rmtree(target, ignore_errors=True)
            print(f"converting {shape} for {peer}", flush=True)
            job = {"task": "convert", "width": peer.width}
            run_job(
                [str(self.python(peer, converting=True)), runner_file(peer)],
                job | {"source": str(source), "target": str(target)},
                environment=self.environment(peer),
                log=self.logs / f"convert-{shape}-{peer}.log",
                seconds=3600,
            )
            (target / "complete").touch()
        return target

    def installed_megabytes(self, peer: Peer) -> float:
        """Of what an empty environment holds more once the engine is in it."""
        if not peer.runner.PACKAGES:
            sys.path.insert(0, str(FOLDER.parent))
            import startup

            return float(startup.installed_megabytes())
        lib = self.python(peer).parents[1] / "lib"
        left_out = ("pip", "setuptools", "_distutils_hack", "pkg_resources")
        sites = [path for path in lib.glob("python*/site-packages/*") if path.is_dir()]
        inside = [path for path in sites if not path.name.startswith(left_out)]
        beside = [path for path in lib.iterdir() if path.is_file()]  # such as Intel's OpenMP
        files = [file for path in inside for file in path.rglob("*")] + beside
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

    def _environment(
        self, name: str, calls: tuple[tuple[str, ...], ...], runner: ModuleType
    ) -> Path:
        folder = self.home / "venvs" / name
        python = folder / "bin" / "python"
        if (folder / "complete").exists():
            return python
        print(f"installing {name} into {folder}", flush=True)
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        variables = {**os.environ, **getattr(runner, "BUILD", {})}
        with (self.logs / f"install-{name}.log").open("w") as log:
            for call in calls:
                done = subprocess.run(
                    [str(python), "-m", "pip", *call],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=variables,
                    check=False,
                )
                if done.returncode:
                    raise Failed(f"pip {' '.join(call)} failed; see {log.name}")
        (folder / "complete").touch()
        return python


def runner_file(peer: Peer) -> str:
    return str(FOLDER / f"peer_{peer.engine}.py")
