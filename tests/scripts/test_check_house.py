"""The check of the house: each rule finds what it is there for, and leaves alone what is right."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import check_house

Check = Callable[..., list[str]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Writes one file below an empty root and gives the lines that the check prints about it."""

    def run(path: str, text: str) -> list[str]:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        code = check_house.main([str(tmp_path)])
        lines = capsys.readouterr().out.splitlines()
        assert code == (1 if lines else 0)
        return lines

    return run


def function(lines: int, name: str = "f", arguments: str = "") -> str:
    """A function with a docstring and a body of so many lines."""
    body = "\n".join(f"    x = {number}" for number in range(lines))
    return f'def {name}({arguments}):\n    """Docstrings are free.\n\n    However long.\n    """\n{body}\n'


@pytest.mark.parametrize(
    ("path", "limit"),
    [("qserve/a.py", 400), ("tests/store/test_a.py", 400), ("workers/a.py", 60), ("qserve/store/lua/a.lua", 60)],
)
def test_a_file_may_reach_its_limit_but_not_pass_it(check: Check, path: str, limit: int):
    """The limits of architecture.md keep every file readable in one sitting."""
    assert check(path, "\n" * limit) == []

    (line,) = check(path, "\n" * (limit + 1))
    assert line.startswith(f"{path}:{limit + 1}: {limit + 1} lines, the limit is {limit}. ")


def test_a_function_is_measured_without_its_docstring(check: Check):
    """Nobody should have to choose between explaining a function and keeping it short."""
    assert check("qserve/a.py", function(40)) == []

    (line,) = check("qserve/a.py", function(41))
    assert line.startswith("qserve/a.py:1: the body of f() has 41 lines, the limit is 40. ")


def test_a_constructor_takes_seven_arguments(check: Check):
    """More is a settings record; keyword-only arguments count, other functions do not."""
    seven = "self, a, b, c, d, *, e, f, g"
    assert check("qserve/a.py", function(1, "__init__", seven) + function(1, "options", f"{seven}, h")) == []

    (line,) = check("qserve/a.py", function(1, "__init__", f"{seven}, h"))
    assert line.startswith("qserve/a.py:1: __init__ takes 8 arguments, the limit is 7. ")


@pytest.mark.parametrize(
    "code",
    [
        "import os\nx = os.environ['HOME']",
        "import os\nx = os.getenv('HOME')",
        "pass\nfrom os import environ",
        "import os\nos.environ.pop('HOME')",
    ],
)
def test_only_the_settings_know_the_environment(check: Check, code: str):
    """A setting that is read in one place can be documented, validated and tested in one place."""
    assert check("qserve/config.py", code) == []
    assert check("tests/test_a.py", code) == []

    (line,) = check("qserve/node/agent.py", code)
    assert line.startswith("qserve/node/agent.py:2: the environment is used here. ")


def test_only_the_settings_name_a_variable(check: Check):
    """A name inside a sentence is prose: errors may say which variable to set."""
    assert check("qserve/errors.py", "x = 'Set QSERVE_REDIS_URL.'") == []

    (line,) = check("qserve/cli.py", "x = 'QSERVE_REDIS_URL'")
    assert line.startswith("qserve/cli.py:1: QSERVE_REDIS_URL is named here. ")


def test_fifteen_variables_are_enough(check: Check):
    """A variable counts once, however often the settings name it."""
    fifteen = "\n".join(f"x = 'QSERVE_{letter}', 'QSERVE_A'" for letter in "ABCDEFGHIJKLMNO")
    assert check("qserve/config.py", fifteen) == []

    (line,) = check("qserve/config.py", f"{fifteen}\nx = 'QSERVE_P'")
    assert line.startswith("qserve/config.py:16: 16 variables QSERVE_*, the limit is 15. ")


def test_a_variable_is_written_in_full(check: Check):
    """A name that is put together can neither be counted nor found by a search."""
    assert check("qserve/config.py", "x = f'{name} does not begin with QSERVE_'") == []

    (line,) = check("qserve/config.py", "x = f'QSERVE_{name}'")
    assert "is put together here" in line


@pytest.mark.parametrize("ignore", ["# noqa: S301", "# type: ignore[misc]", "# pyright: ignore", "# pragma: no cover"])
def test_an_ignore_gives_its_reason(check: Check, ignore: str):
    """The next reader must be able to tell whether the reason still holds."""
    assert check("tests/test_a.py", f"x = 1  {ignore}  # the stubs are wrong here") == []
    assert check("tests/test_a.py", f"x = '{ignore}'") == []

    (line,) = check("tests/test_a.py", f"x = 1  {ignore}")
    assert line.startswith(f"tests/test_a.py:1: `{ignore}` gives no reason. ")


def test_our_own_modules_are_not_imported_for_their_types_only(check: Check):
    """Such an import hides a knot: the type belongs below."""
    guard = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
    assert check("qserve/a.py", f"{guard}    import numpy") == []

    (line,) = check("qserve/a.py", f"{guard}    from qserve.client import Handle")
    assert line.startswith("qserve/a.py:3: qserve is imported only for its types. ")


def test_what_python_cannot_read_is_said_so(check: Check):
    """A half-written file is one finding among others, not the end of the check."""
    (line,) = check("qserve/a.py", "def f(:")
    assert line.startswith("qserve/a.py:1: cannot be read as Python: ")
