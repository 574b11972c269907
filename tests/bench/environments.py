"""An interpreter for every system: peers get virtual environments of their own, because their pins exclude each other.

arq wants redis-py below 6, taskiq-redis wants 7 or newer; a peer that runs on an old client is not at its best.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.bench.systems import CATALOGUE

ROOT = Path(__file__).parents[2]
_CACHE = ROOT / ".venv-bench-peers"
_INSTALL_S = 600
_PROBE_S = 60


class SystemMissing(Exception):
    """A system cannot be visited here; the text says what would help."""


def interpreter(name: str) -> Path:
    """The Python that can run this system, made at first use.

    Raises SystemMissing when it is not installed and cannot be.
    """
    entry = CATALOGUE[name]
    python = _prepared(name, entry.requirements) if entry.requirements else Path(sys.executable)
    if not _imports(python, entry.probe):
        raise SystemMissing(
            f"{entry.probe} cannot be imported by {sys.executable}; install it there to have it visited"
        )
    return python


def _prepared(name: str, requirements: tuple[str, ...]) -> Path:
    """The environment of a peer; its folder names the requirements, so that a change makes a new one."""
    mark = hashlib.blake2b(repr(requirements).encode(), digest_size=4).hexdigest()
    folder = _CACHE / f"{name}-{sys.version_info.major}.{sys.version_info.minor}-{mark}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], name)
        _run([str(python), "-m", "pip", "install", "--quiet", *requirements], name)
        done.touch()
    return python


def _run(command: list[str], name: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.CalledProcessError as error:
        raise SystemMissing(f"{name} cannot be installed: {error.stderr.strip()[-300:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemMissing(f"{name} cannot be installed: {error}") from error


def _imports(python: Path, module: str) -> bool:
    """Whether a fresh interpreter finds the module; never imported into this process."""
    package = module.partition(".")[0]
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([str(python), "-c", code], check=False, cwd=ROOT, timeout=_PROBE_S).returncode == 0
