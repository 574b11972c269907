"""`qserve run --reload`: save a file, and the next call is answered by what was saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import qserve as serve
from qserve.client import portal
from qserve.config import Settings
from qserve.spec import ApplicationStatus
from tests.cli.conftest import Command, Start
from tests.support.cluster import ROOT, eventually
from workers.echo import app as echo

pytestmark = pytest.mark.timeout(120)
# What it takes from the other module does not travel with its code.
SHOP = """
import os
import qserve as serve
import words

@serve.deployment
class Greeter:
    def __call__(self, name):
        return f"{words.WORD} {name}"

@serve.deployment
class Other:
    def __call__(self):
        return os.getpid()

app = Greeter.bind()
other = Other.bind()
"""
WORDS = 'WORD = "hi"\n'


def save(path: Path, text: str) -> None:
    """As editors do: a new file in the place of the old one."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


class Session:
    """A `qserve run --reload` at work, in a folder of its own, whose cluster this process calls."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.command = command
        self.folder = folder

    def save(self, name: str, text: str) -> None:
        """Save one of the application's files."""
        save(self.folder / name, text)

    def ask(self, app: str = "default", *arguments: str) -> object:
        """Call an application."""
        return serve.get_app_handle(app).remote(*arguments).result(timeout_s=20)

    def greeting(self) -> str:
        """What the application answers now."""
        return str(self.ask("default", "you"))

    def greets(self, text: str) -> None:
        """Wait until the application greets with this."""
        eventually(lambda: text in self.greeting(), within_s=30, what=text)

    def fails(self, text: str) -> None:
        """Wait until a round has failed with this, and what goes on was said."""
        eventually(lambda: text in self.command.err, within_s=30, what=f"{text}\n{self.command.err}")
        eventually(lambda: self.command.out.endswith("What served before goes on. Waiting for a change.\n"))


def environment(command: Command) -> tuple[Path, dict[str, str]]:
    """The file that it says to `source`, and what stands in it."""
    (path,) = [Path(line.split()[1]) for line in command.out.splitlines() if line.strip().startswith("source ")]
    lines = [line.removeprefix("export ").partition("=") for line in path.read_text().splitlines()]
    return path, {name: value for name, _, value in lines}


@contextmanager
def reaching(command: Command) -> Iterator[None]:
    """In here this process is a client of the command's own cluster."""
    command.says("Ctrl-C takes it down.")
    _, variables = environment(command)
    secret = variables["QSERVE_SECRET_KEY"].encode()
    portal.use(Settings(redis_url=variables["QSERVE_REDIS_URL"], secrets=(secret,)))
    try:
        yield
    finally:
        portal.use(None)


@pytest.fixture(scope="module")
def project(folder: Path) -> Path:
    """The folder of the commands, with an application of two modules in it."""
    (folder / "shop.py").write_text(SHOP)
    (folder / "words.py").write_text(WORDS)
    return folder


@pytest.fixture(scope="module")
def session(start: Start, project: Path) -> Iterator[Session]:
    """`qserve run shop:app --reload`, for all tests of the file that only save files."""
    command = start("run", "shop:app", "--reload")
    with reaching(command):
        yield Session(command, project)


def test_a_saved_change_is_served_and_no_call_fails_meanwhile(session):
    """New replicas serve before old ones go: what somebody tries out in a browser meanwhile does not break."""
    done, answers = threading.Event(), []

    def keep_asking() -> None:
        while not done.is_set():
            answers.append(session.greeting())

    asking = threading.Thread(target=keep_asking)
    asking.start()
    session.save("shop.py", SHOP.replace("{name}", "dear {name}"))
    session.greets("dear you")
    done.set()
    asking.join()
    assert len(set(answers)) == 2


def test_a_change_of_a_module_that_the_application_imports_is_served_as_well(session):
    """The deployment's own code is the same, byte for byte, and so is its version: it alone would restart nothing."""
    session.save("words.py", 'WORD = "good day"\n')
    session.greets("good day")


def test_a_syntax_error_is_told_and_the_old_code_goes_on(session):
    """People save in the middle of a thought."""
    before = session.greeting()
    session.save("words.py", "WORD = (\n")
    session.fails("SyntaxError: '(' was never closed")
    assert session.greeting() == before
    assert 'words.py", line 1' in session.command.err

    session.save("words.py", 'WORD = "hello again"\n')
    session.greets("hello again")


def test_a_constructor_that_raises_is_told_and_the_old_replicas_go_on(session):
    """It imports well, and fails only where the model is loaded."""
    before = session.greeting()
    session.save(
        "shop.py", SHOP.replace("    def", '    def __init__(self): raise RuntimeError("no model")\n    def', 1)
    )
    session.fails("RuntimeError: no model")
    assert session.greeting() == before

    session.save("shop.py", SHOP.replace("{name}", "old {name}"))
    session.greets("old you")


def test_a_change_overtakes_a_round_that_still_imports(session):
    """A model that takes minutes to load must not stand between a mistake and its mend."""
    session.save("words.py", "import pathlib, time\npathlib.Path('imports').touch()\ntime.sleep(600)\n")
    eventually((session.folder / "imports").exists)
    session.save("words.py", 'WORD = "welcome"\n')
    session.greets("welcome")


def test_files_that_are_no_code_change_nothing(session):
    """Logs, notes and installed packages change all the time."""
    (session.folder / "lib" / "site-packages").mkdir(parents=True)
    save(session.folder / "lib" / "site-packages" / "installed.py", "")
    save(session.folder / "notes.txt", "to do")
    session.save("words.py", 'WORD = "servus"\n')
    session.greets("servus")
    told = [line for line in session.command.out.splitlines() if line.endswith("changed: deploying again.")]
    assert {name for line in told for name in line.split(" changed")[0].split(", ")} <= {"words.py", "shop.py"}


def test_code_of_another_folder_is_watched_when_it_is_named(start, project, tmp_path):
    """A package beside the application, installed as it stands."""
    save(tmp_path / "beside.py", "WORD = 'near'\n")
    (project / "far.py").write_text(SHOP.replace("words", "beside"))
    command = start("run", "far:app", "--reload", "--reload-dir", str(tmp_path), PYTHONPATH=str(tmp_path))
    with reaching(command):
        save(tmp_path / "beside.py", "WORD = 'nearer'\n")
        Session(command, project).greets("nearer")


def test_a_config_file_is_watched_and_changes_only_what_it_says(start, project):
    """An application that is taken out goes; replicas of one that stays as it was are not restarted."""
    stays = "- {name: stays, import_path: 'shop:other'}\n"
    save(project / "dev.yaml", f"applications:\n{stays}- {{name: goes, import_path: 'shop:app'}}\n")
    command = start("run", "dev.yaml", "--reload")
    with reaching(command):
        session = Session(command, project)
        pid = session.ask("stays")
        save(project / "dev.yaml", f"applications:\n{stays}")
        eventually(lambda: "goes" not in serve.status().applications, within_s=30)
        assert session.ask("stays") == pid
    assert "'goes' is no longer in the config file" in command.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_its_end_leaves_no_process_even_while_it_imports(start, project, number):
    """Ctrl-C in the middle of a round, or the kernel's kill: nothing is to go on by itself."""
    (project / "slow.py").write_text("import pathlib, time\npathlib.Path('slow').touch()\ntime.sleep(600)\n")
    command = start("run", "slow:app", "--reload")
    eventually((project / "slow").exists, within_s=30)
    (project / "slow").unlink()
    processes = command.tree()
    assert any("qserve.cli.rounds" in process.cmdline() for process in processes)
    os.kill(command.process.pid, number)

    assert command.ended() == (130 if number is signal.SIGINT else -signal.SIGKILL)
    assert psutil.wait_procs(processes, timeout=20)[1] == []


def test_on_a_cluster_ctrl_c_deletes_what_came_up_and_nothing_else(start, project, cluster):
    """The workers, and an application that this command only failed to replace, are others'."""
    serve.run(echo, name="theirs")
    mine = start(
        "run", "workers.echo:app", "--reload", "--name", "mine", settings=cluster.settings, PYTHONPATH=str(ROOT)
    )
    failing = start("run", "nowhere:app", "--reload", "--name", "theirs", settings=cluster.settings)
    mine.says("Ctrl-C takes it down.")
    failing.says("Waiting for a change.")
    for command in (mine, failing):
        command.signal(signal.SIGINT)
        assert command.ended() == 130

    assert "Taking 'mine' down" in mine.out
    assert "There is no module 'nowhere'" in failing.err
    assert {name: app.status for name, app in serve.status().applications.items()} == {
        "theirs": ApplicationStatus.RUNNING
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shop:app", "--reload-dir", "."), "--reload-dir says where --reload looks"),
        (("shop:app", "--reload", "size"), "'size' is not KEY=VALUE."),
        (("serve.yaml", "--reload", "size=1"), "A config file has its own `args`"),
    ],
)
def test_what_no_change_of_a_file_can_mend_is_wrong_usage(invoke, arguments, message):
    """It would wait for ever."""
    result = invoke("run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_watchfiles_it_says_what_to_install(monkeypatch, invoke):
    """Installed by hand, without the extra."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    result = invoke("run", "shop:app", "--reload")
    assert result.exit_code == 1
    assert "pip install 'qserve[cli]'" in result.stderr
