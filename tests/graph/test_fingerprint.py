"""A deployment's version: the same code is the same version wherever it is deployed from, other code is another one."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import qserve as serve
from qserve.graph import flatten

ROOT = Path(__file__).parents[2]

# Sets are in another order in each process, and cloudpickle gives each class of __main__ another random id.
SCRIPT = '''
import enum
from dataclasses import dataclass
import qserve as serve
from qserve.graph import flatten

KINDS = {"invoice", "letter", "receipt", "order", "reminder"}

class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"

@dataclass
class Rule:
    name: str
    words: frozenset

@serve.deployment
class Sorter:
    """Sorts documents."""
    count = 0
    def __init__(self, rules, limit: int = 3):
        self.rules = [rule for rule in rules]
    def __call__(self, text: str) -> bool:
        return text in KINDS or text in {"a", "b", "c", "d", "e"} or Colour.RED.value == text
    async def later(self, x=lambda y: y + 1):
        import asyncio
        await asyncio.sleep(0)
        return x

@serve.deployment
def shout(text):
    return text.upper() + str(sorted(KINDS))

rules = [Rule("first", frozenset({"x", "y", "z"})), Rule("second", frozenset({("p", 1), ("q", 2), ("r", 3)}))]
app = Sorter.bind(rules, limit=len({1, 2}) + 2)
for root in (app, shout.bind()):
    print(flatten(root, name="app", deploy_id="d", now_s=0.0, route_prefix="/").spec.deployments[0].version)
'''


class Plain:
    def __init__(self, *_args: object, **_kwargs: object) -> None:
        return


@dataclass(frozen=True)
class Pair:
    one: object
    two: object


def version(*args: Any, target: Any = Plain, **options: Any) -> str:
    """The version of a deployment of `target` with these arguments and options."""
    app = flatten(
        serve.deployment(name="D", **options)(target).bind(*args),
        name="app",
        deploy_id="d",
        now_s=0.0,
        route_prefix="/",
    )
    return app.spec.deployments[-1].version


def test_two_interpreters_agree_on_the_version(tmp_path: Path):
    """`python app.py` again restarts nothing: neither sets nor classes of the script make it look like new code."""
    script = tmp_path / "app.py"
    script.write_text(SCRIPT)
    runs = [
        subprocess.Popen(
            [sys.executable, script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (run.communicate(timeout=30)[0].split() for run in runs)

    assert first == second
    assert len(set(first)) == 2


def made_with(step: int) -> type:
    """A class without a name to import it by, so that its code travels."""

    class Made:
        def __call__(self, x: int) -> int:
            return x + step

    return Made


def test_equal_code_is_the_same_version():
    """Though its class is a new object, with another random id."""
    assert version(target=made_with(1)) == version(target=made_with(1))
    assert version(1, [2]) == version(1, [2])


def compiled(source: str) -> Any:
    """The `D` that a script defines."""
    script: dict[str, Any] = {"__name__": "__main__"}
    exec(source, script)  # noqa: S102 (the test's own text)
    return script["D"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("class D:\n def go(self): return 1", "class D:\n def go(self): return 2"),
        ("class D:\n def go(self): return 1", "class D:\n def gone(self): return 1"),
        ("class D:\n def go(self, x=1): return x", "class D:\n def go(self, x=2): return x"),
        ("class D:\n def go(self, x): return x", "class D:\n async def go(self, x): return x"),
        ("class D:\n size = 1", "class D:\n size = 2"),
        ("class D(list): pass", "class D(dict): pass"),
        ("STEP = 1\ndef D(x): return x + STEP", "STEP = 2\ndef D(x): return x + STEP"),
        ("def help(x): return 1\ndef D(x): return help(x)", "def help(x): return 2\ndef D(x): return help(x)"),
        ("def D(x): return x in {1, 2}", "def D(x): return x in {1, 3}"),
        ("class B:\n size = 1\nclass D:\n base = B", "class B:\n size = 2\nclass D:\n base = B"),
    ],
)
def test_other_code_is_another_version(one: str, other: str):
    """A changed line in the script, or in what it uses of the script, must reach the replicas."""
    assert version(target=compiled(one)) == version(target=compiled(one))
    assert version(target=compiled(one)) != version(target=compiled(other))


def test_what_a_closure_holds_is_part_of_the_code():
    """A deployment that is made in a loop differs in nothing else."""
    assert version(target=made_with(1)) != version(target=made_with(2))


A, B = [1], [2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), (2,)),
        ((1,), (1, 1)),
        (("d41d8cd98f00b204e9800998ecf8427e",), ("0cc175b9c0f1b6a831c399e269772661",)),
        (("0cc175b9c0f1b6a831c399e269772661", None), ("d41d8cd98f00b204e9800998ecf8427e", None)),
        (([1, 2],), ([2, 1],)),
        (({"a", "b"},), ({"a", "c"},)),
        (({("a", 1), ("b", 2)},), ({("a", 2), ("b", 1)},)),
        (({"a": 1},), ({"a": 2},)),
        ((A, B, A), (A, B, B)),
        ((Pair(1, 2),), (Pair(2, 1),)),
        ((b"x" * 300,), (b"y" * 300,)),
        ((1,), (1.0,)),
        (("1",), (1,)),
    ],
)
def test_other_arguments_are_another_version(one: tuple[Any, ...], other: tuple[Any, ...]):
    """Otherwise the old replicas would go on with the old arguments, and the deploy would say that all is well."""
    assert version(*one) != version(*other)


def test_the_order_of_a_set_is_no_difference():
    """Two sets of equal elements are equal; how they were filled is not part of them."""
    words = [f"word{number}" for number in range(20)]
    backwards = words[::-1]

    assert version(set(words), frozenset(words)) == version(set(backwards), frozenset(backwards))


def test_equal_strings_are_one_whether_or_not_they_are_one_object():
    """Whether Python shares them differs between processes; what they say does not."""
    one, same = "a longer text", "".join(["a longer", " text"])
    assert one is not same

    assert version(one, one) == version(one, same)


@pytest.mark.parametrize(
    "options",
    [
        {"ray_actor_options": {"num_cpus": 2}},
        {"max_replicas_per_node": 1},
    ],
    ids=",".join,
)
def test_an_option_that_needs_a_restart_is_another_version(options: dict[str, Any]):
    """A replica cannot take these on while it runs."""
    assert version(**options) != version()


@pytest.mark.parametrize(
    "options",
    [
        {"num_replicas": 3},
        {"max_queued_requests": 5},
        {"rolling_update_percentage": 0.5},
        {"max_surge_percent": 10},
        {"graceful_shutdown_timeout_s": 1.0},
        {"health_check_period_s": 1.0},
        {"health_check_timeout_s": 1.0},
        {"max_constructor_retry_count": 2},
        {"max_retries": 0},
        {"max_ongoing_requests": 9},
        {"user_config": {"a": 1}},
    ],
    ids=",".join,
)
def test_an_option_that_needs_no_restart_keeps_the_version(options: dict[str, Any]):
    """Scaling from 2 to 3 replicas must not restart the two."""
    assert version(**options) == version()


def test_an_edit_of_an_importable_module_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replicas import such a class by its name: without a look at the source, a mended bug would not be deployed."""
    module = tmp_path / "edited_module.py"
    module.write_text("class Model:\n    def __call__(self):\n        return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import edited_module  # type: ignore[import-not-found]  # written above

    app = serve.deployment(edited_module.Model).bind()
    before = flatten(app, name="app", deploy_id="d", now_s=0.0, route_prefix="/").spec.deployments[0].version
    module.write_text(module.read_text().replace("return 1", "return 2"))
    after = flatten(app, name="app", deploy_id="d", now_s=0.0, route_prefix="/").spec.deployments[0].version

    assert before != after


def test_force_makes_a_version_of_its_own():
    """Somebody who wants a restart, for a leak or a changed file, gets one without touching the code."""
    app = serve.deployment(Plain).bind()
    versions = {
        flatten(app, name="app", deploy_id=deploy, now_s=0.0, route_prefix="/", force=True).spec.deployments[0].version
        for deploy in ("first", "second")
    }

    assert len(versions) == 2
