"""The rules of the house that no other tool holds: sizes, environment variables, and reasons beside ignores.

Prints `file:line: what is wrong, the limit, and the mend`, one a line; exits 1 when it printed any.
Knows nothing of qserve: it only reads source files.

    python scripts/check_house.py [ROOT]
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

MODULE_LINES = 400
FUNCTION_LINES = 40
CONSTRUCTOR_ARGUMENTS = 7
LUA_LINES = 60
WORKER_LINES = 60
VARIABLES = 15

FOLDERS = ("qserve", "workers", "scripts", "tests")
SETTINGS = Path("qserve/config.py")
VARIABLE = re.compile(r"QSERVE_[A-Z0-9_]+")
READERS = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})
IGNORE = re.compile(r"#\s*(?:noqa(?::[\s,A-Z0-9]+)?|(?:type|pyright):\s*ignore(?:\[[^\]]*\])?|pragma:\s*no cover)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file, read once: its path as seen from the root, its text and its tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def is_of_qserve(self) -> bool:
        return self.path.parts[0] == "qserve"

    @property
    def is_worker(self) -> bool:
        return self.path.parts[0] == "workers"


@dataclass(frozen=True, order=True)
class Finding:
    """One broken rule, at one line."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def long_file(path: Path, text: str, limit: int, mend: str) -> Iterator[Finding]:
    """The file has more lines than `limit`; `mend` says what to do about it."""
    lines = len(text.splitlines())
    if lines > limit:
        yield Finding(path, limit + 1, f"{lines} lines, the limit is {limit}. {mend}")


def long_module(source: Source) -> Iterator[Finding]:
    """A module over its limit; an application in workers/ has a lower one."""
    if source.is_worker:
        return long_file(source.path, source.text, WORKER_LINES, "An example shows one thing: make it two.")
    return long_file(
        source.path, source.text, MODULE_LINES, "Move what has a name of its own into a module of its own."
    )


def long_functions(source: Source) -> Iterator[Finding]:
    """Functions whose body, without the docstring, spans more lines than the limit."""
    for node in functions(source.tree):
        lines = body_lines(node)
        if lines > FUNCTION_LINES:
            mend = "Each block that a comment could name wants to be a function."
            text = f"the body of {node.name}() has {lines} lines, the limit is {FUNCTION_LINES}. {mend}"
            yield Finding(source.path, node.lineno, text)


def wide_constructors(source: Source) -> Iterator[Finding]:
    """Constructors with more arguments than the limit, self not counted; generated ones (of records) are exempt."""
    for node in functions(source.tree):
        count = argument_count(node) - 1
        if node.name == "__init__" and count > CONSTRUCTOR_ARGUMENTS:
            mend = "Settings that belong together become a frozen record."
            text = f"__init__ takes {count} arguments, the limit is {CONSTRUCTOR_ARGUMENTS}. {mend}"
            yield Finding(source.path, node.lineno, text)


def environment_readers(source: Source) -> Iterator[Finding]:
    """Reads of the environment, and names of variables, in any module of qserve but the settings."""
    if not source.is_of_qserve or source.path == SETTINGS:
        return
    for node in nodes(source.tree):
        if reads_environment(node):
            mend = f"Read it in {SETTINGS} and take the setting as an argument."
            yield Finding(source.path, node.lineno, f"the environment is used here. {mend}")
        if isinstance(node, ast.Constant) and is_variable(node.value):
            text = f"{node.value} is named here. Name it once, as a constant in {SETTINGS}, and import that."
            yield Finding(source.path, node.lineno, text)


def many_variables(source: Source) -> Iterator[Finding]:
    """More variables in the settings than the limit, or names put together so that nobody can count or find them."""
    if source.path != SETTINGS:
        return
    constants = [node for node in ast.walk(source.tree) if isinstance(node, ast.Constant)]
    first = {node.value: node.lineno for node in reversed(constants) if is_variable(node.value)}
    if len(first) > VARIABLES:
        mend = "Make the newest a field of the config file instead."
        text = f"{len(first)} variables QSERVE_*, the limit is {VARIABLES}. {mend}"
        yield Finding(source.path, max(first.values()), text)
    for node in nodes(source.tree):
        if is_assembled_variable(node):
            text = "the name of a variable is put together here. Write it in full, so that it can be found and counted."
            yield Finding(source.path, node.lineno, text)


def silent_ignores(source: Source) -> Iterator[Finding]:
    """Comments that silence a tool and do not say why."""
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type != tokenize.COMMENT or not IGNORE.search(token.string):
            continue
        if not re.search(r"\w{2}", IGNORE.sub("", token.string)):
            text = f"`{token.string}` gives no reason. Write behind it why the rule is wrong here."
            yield Finding(source.path, token.start[0], text)


def typing_only_imports(source: Source) -> Iterator[Finding]:
    """Imports of our own modules under `if TYPE_CHECKING`."""
    if not source.is_of_qserve:
        return
    guards = [
        node for node in ast.walk(source.tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in names(node.test)
    ]
    for node in (inner for guard in guards for statement in guard.body for inner in nodes(statement)):
        if imports_qserve(node):
            mend = "A type that is needed below belongs below; move it down a floor."
            yield Finding(source.path, node.lineno, f"qserve is imported only for its types. {mend}")


PYTHON_RULES: tuple[Callable[[Source], Iterator[Finding]], ...] = (
    long_module,
    long_functions,
    wide_constructors,
    environment_readers,
    many_variables,
    silent_ignores,
    typing_only_imports,
)


def nodes(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Every node that has a line, however deep."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.expr | ast.stmt))


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, however deep."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def body_lines(node: Function) -> int:
    """Lines from the first statement behind the docstring to the last one, blank ones counted."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]  # parsed code has an end


def argument_count(node: Function) -> int:
    """Arguments that a caller may give, `*` and `**` counted as one each."""
    args = node.args
    plain = len(args.posonlyargs) + len(args.args) + len(args.kwonlyargs)
    return plain + (args.vararg is not None) + (args.kwarg is not None)


def names(node: ast.AST) -> set[str]:
    """Names and attributes that occur in the node."""
    found = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return found | {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}


def is_variable(value: object) -> TypeGuard[str]:
    """The value is the whole name of one of our environment variables."""
    return isinstance(value, str) and VARIABLE.fullmatch(value) is not None


def is_assembled_variable(node: ast.AST) -> bool:
    """The node is a format string in which something follows QSERVE_."""
    if not isinstance(node, ast.JoinedStr):
        return False
    texts = (part.value for part in node.values[:-1] if isinstance(part, ast.Constant))
    return any(str(text).endswith("QSERVE_") for text in texts)


def reads_environment(node: ast.AST) -> bool:
    """The node is `os.environ`, `os.getenv` or a relative, or imports one of them by name."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in READERS for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr in READERS and names(node.value) == {"os"}


def imports_qserve(node: ast.AST) -> bool:
    """The node imports one of our own modules."""
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] == "qserve"
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "qserve" for alias in node.names)


def check_lua(root: Path) -> Iterator[Finding]:
    """Lua files over their limit."""
    for path in sorted((root / "qserve").rglob("*.lua")):
        mend = "One file is one atomic operation: make it two, or let Python decide more."
        yield from long_file(path.relative_to(root), path.read_text(), LUA_LINES, mend)


def check_python(root: Path) -> Iterator[Finding]:
    """All rules on all Python files of the house."""
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        text = path.read_text()
        try:
            source = Source(path.relative_to(root), text, ast.parse(text))
        except SyntaxError as error:
            yield Finding(path.relative_to(root), error.lineno or 1, f"cannot be read as Python: {error.msg}.")
            continue
        for rule in PYTHON_RULES:
            yield from rule(source)


def main(arguments: list[str]) -> int:
    """Print what is wrong below the root; the exit code is 1 if anything is."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    findings = sorted([*check_python(root), *check_lua(root)])
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
