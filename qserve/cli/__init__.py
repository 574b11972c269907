"""The command line, the extra `cli`. `main` is the console script; click and rich are imported behind it."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run `qserve` as its user typed it; the process ends with its exit code."""
    if missing := [name for name in ("click", "rich") if find_spec(name) is None]:
        sys.stderr.write(f"The command line needs {' and '.join(missing)}: pip install 'qserve[cli]'\n")
        raise SystemExit(1)
    from qserve.cli.root import qserve

    qserve(prog_name="qserve")
