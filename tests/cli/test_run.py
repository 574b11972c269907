"""`qserve run module:app`: the whole thing in one terminal, and gone when the terminal says so."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import qserve as serve
from qserve.spec import ApplicationStatus
from tests.cli.conftest import QSERVE, Command, at_a_terminal
from workers.echo import app

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(start) -> Command:
    """`qserve run hello:app`, with a cluster of its own."""
    command: Command = start("run", "hello:app")
    command.says("Ctrl-C takes it down.")
    return command


def env_file(output: str) -> Path:
    """The file that it says to `source`."""
    (path,) = [line.split()[1] for line in output.splitlines() if line.strip().startswith("source ")]
    return Path(path)


def elsewhere(command: Command, line: str) -> subprocess.CompletedProcess[str]:
    """A line typed into another terminal, after sourcing the file."""
    script = f". {shlex.quote(str(env_file(command.out)))} && {line}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("QSERVE_")}
    return subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True, timeout=40, check=False)


def test_each_deployment_has_its_line_until_it_runs(running):
    """Loading a model takes minutes: a terminal that says nothing looks hung."""
    assert "default.Greeter: running, 2 replicas\n" in running.out
    assert "default.Caller: running, 1 replica\n" in running.out


def test_it_says_how_the_application_is_called(running):
    """The next thing that anybody wants to do."""
    assert "Application 'default' is running; its handle is default.Caller." in running.out
    assert "qserve call default.Caller" in running.out


def test_another_terminal_reaches_it_by_the_file(running):
    """The embedded cluster has a key and an address of its own; one line brings both over."""
    assert elsewhere(running, f"{QSERVE} call default.Caller '[\"world\"]'").stdout == '"hi world"\n'


def test_the_key_is_in_a_file_for_the_owner_only_and_on_no_screen(running):
    """Whoever has the key can run code in the replicas; screens are shared and scrolled back."""
    path = env_file(running.out)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (key,) = [line.partition("=")[2] for line in path.read_text().splitlines() if "SECRET_KEY" in line]
    assert key not in running.out + running.err


def test_on_a_terminal_the_lines_are_live_and_ctrl_c_is_the_key(clean_env, folder):
    """Each deployment keeps its one line; the key reaches only the command, and that takes the rest down in order."""
    seen = at_a_terminal(("run", "hello:app"), clean_env, folder, until="Ctrl-C takes it down.", keys="\x03")
    assert "Greeter  running, 2 replicas" in seen.text
    assert "\x1b[1A" in seen.text  # up one line: drawn again, not added
    assert seen.code == 130
    assert not env_file(seen.text).parent.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_no_process_and_no_folder(start, number, code):
    """Ctrl-C, a supervisor's TERM, a closed terminal: a laptop is not to fill up with servers."""
    command = start("run", "hello:app")
    command.says("Ctrl-C takes it down.")
    cluster, folder = command.tree(), env_file(command.out).parent
    command.signal(number)

    assert command.ended() == code
    assert psutil.wait_procs(cluster, timeout=5)[1] == []
    assert not folder.exists()


def test_a_signal_while_it_deploys_leaves_nothing_either(start):
    """People see their mistake before it is deployed."""
    command = start("run", "hello:app")
    command.says("default.Greeter: ")
    cluster = command.tree()
    command.signal(signal.SIGINT)

    assert command.ended() == 130
    assert psutil.wait_procs(cluster, timeout=5)[1] == []


def test_a_second_ctrl_c_does_not_wait_for_running_calls(start):
    """The first lets calls finish, which may take as long as the deployment allows."""
    command = start("run", "hello:sleeper")
    command.says("Ctrl-C takes it down.")
    script = f". {env_file(command.out)} && exec {QSERVE} call default.Sleeper"
    caller = subprocess.Popen(["/bin/sh", "-c", script], stderr=subprocess.DEVNULL)
    command.says("it sleeps")
    command.signal(signal.SIGINT)
    command.says("once more ends it at once")
    cluster = command.tree()
    command.signal(signal.SIGINT)

    assert psutil.wait_procs(cluster, timeout=5)[1] == []
    caller.kill()
    caller.wait()


def test_a_constructor_that_raises_ends_it_with_the_replicas_traceback(start):
    """The error is in user code: its line is what helps. 1 tells scripts."""
    command = start("run", "hello:broken")
    assert command.ended() == 1
    assert 'hello.py", line' in command.err
    assert "RuntimeError: there is no model file" in command.err


def test_a_builder_gets_the_key_values_as_a_dict(start):
    """One module, many variants of the application."""
    command = start("run", "hello:build", "title=Titled")
    command.says("its handle is default.Titled.")


def test_on_a_cluster_it_says_where_and_ctrl_c_deletes_the_application_only(start, cluster):
    """The workers are others' too."""
    command = start("run", "hello:app", "--name", "mine", settings=cluster.settings)
    command.says("Ctrl-C takes it down.")
    assert f"It runs on the workers at {cluster.settings.redis_url}" in command.out
    command.signal(signal.SIGINT)

    assert command.ended() == 130
    assert "mine" not in serve.status().applications
    assert len(serve.status().nodes) == 1


def test_where_nobody_hosts_it_it_says_what_to_start_and_exits_with_3(start, settings):
    """The commonest mistake on hosts of one's own: the message is the mend."""
    empty = replace(settings, namespace=f"{settings.namespace}-empty")
    command = start("run", "hello:app", "--timeout-s", "1", settings=empty)
    assert command.ended() == 3
    assert "No autoscaler is running: start one with `qserve autoscaler`" in command.err


def test_a_new_version_that_fails_does_not_take_down_what_was_there(start, cluster):
    """`run` in the wrong terminal must not delete what somebody else serves."""
    serve.run(app, name="shared")
    command = start("run", "hello:broken", "--name", "shared", settings=cluster.settings)

    assert command.ended() == 1
    assert serve.status("shared").applications["shared"].status is ApplicationStatus.DEPLOY_FAILED
    serve.delete("shared")


def test_a_config_file_runs_in_the_foreground(start, folder):
    """The file of production, tried on a laptop; all of its applications go with it."""
    (folder / "serve.yaml").write_text(
        "applications:\n"
        "- {name: one, import_path: 'hello:app'}\n"
        "- {name: two, import_path: 'hello:build', args: {title: Titled}}\n"
    )
    command = start("run", "serve.yaml")
    command.says("Application 'two' is running; its handle is two.Titled.")
    assert "Application 'one' is running; its handle is one.Caller." in command.out
    cluster = command.tree()
    command.signal(signal.SIGINT)

    assert command.ended() == 130
    assert psutil.wait_procs(cluster, timeout=5)[1] == []


def test_modules_are_looked_for_in_another_folder(start, folder, tmp_path):
    """A service file need not change its working directory."""
    (tmp_path / "elsewhere.py").write_text((folder / "hello.py").read_text())
    command = start("run", "elsewhere:app", "--app-dir", str(tmp_path))
    command.says("its handle is default.Caller.")
