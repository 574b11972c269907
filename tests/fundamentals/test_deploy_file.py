"""`qserve deploy serve.yaml`: a file says what runs, and a change of the file changes what runs."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

import qserve as serve
from qserve.cli.root import qserve
from qserve.client import portal

FILE = """
applications:
- name: shop
  import_path: tests.cli.shop:build
  args: {title: "Shop: "}
  deployments:
  - name: Greeter
    user_config: {greeting: hello}
- name: other
  import_path: tests.cli.shop:app
  runtime_env:
    env_vars: {SHOP_MARK: "!"}
"""


@pytest.fixture
def deploy(cluster, tmp_path):
    """`deploy("applications: ...")` writes a file and deploys it."""

    def run(text: str, *options: str) -> Result:
        (tmp_path / "serve.yaml").write_text(text)
        result = CliRunner(env=cluster.settings.child_env()).invoke(
            qserve, ("deploy", str(tmp_path / "serve.yaml"), *options)
        )
        portal.use(cluster.settings)
        return result

    return run


def ask(app: str) -> str:
    """What the application answers."""
    answer: str = serve.get_app_handle(app).remote("Ada").result(timeout_s=10)
    return answer


def greeter_pids(app: str) -> set[int]:
    """The processes of its greeters."""
    return {r.pid for r in serve.api.replicas() if (r.app, r.deployment) == (app, "Greeter")}


def lines(result: Result) -> list[list[str]]:
    """The words of each line of the plan."""
    return [line.split() for line in result.stdout.splitlines()]


def test_all_applications_of_a_file_run_when_it_returns(deploy):
    """With the arguments of their builders, the options of the file, and their environment."""
    result = deploy(FILE)

    assert result.exit_code == 0, result.output
    assert ["shop.Greeter", "create", "1", "replica"] in lines(result)
    assert ["other.Greeter", "create", "2", "replicas"] in lines(result)
    assert "Application 'shop' is running; its handle is shop.Front.\n" in result.stdout
    assert (ask("shop"), ask("other")) == ("Shop: hello Ada", "hi Ada!")


def test_the_same_file_again_changes_nothing(deploy):
    """A pipeline may deploy with every commit."""
    deploy(FILE)
    before = greeter_pids("shop"), greeter_pids("other")
    result = deploy(FILE)

    assert result.stdout.startswith("Nothing changes.\n")
    assert (greeter_pids("shop"), greeter_pids("other")) == before
    assert len(serve.api.history("shop")) == 1


def test_a_user_config_is_changed_in_the_running_replicas(deploy):
    """The model stays loaded."""
    deploy(FILE)
    before = greeter_pids("shop")
    result = deploy(FILE.replace("hello", "ahoy"))

    assert "update in place  user_config.greeting 'hello' -> 'ahoy'" in result.stdout
    assert ask("shop") == "Shop: ahoy Ada"
    assert greeter_pids("shop") == before


def test_a_line_that_is_taken_out_gives_the_word_back_to_the_code(deploy):
    """What the file no longer says is what the author wrote."""
    deploy(FILE)
    deploy(FILE.replace("    user_config: {greeting: hello}\n", ""))

    assert ask("shop") == "Shop: hi Ada"


def test_a_changed_environment_restarts(deploy):
    """A process reads it when it starts."""
    deploy(FILE)
    result = deploy(FILE.replace('"!"', '"?"'))

    assert "restart    env_vars SHOP_MARK" in result.stdout
    assert ask("other") == "hi Ada?"


def test_a_dry_run_shows_the_plan_and_changes_nothing(deploy):
    """The line to read before the real one."""
    deploy(FILE)
    result = deploy(FILE.replace("hello", "ahoy").partition("- name: other")[0], "--dry-run")

    assert result.exit_code == 0
    assert ["other.Front", "delete", "its", "application", "goes"] in lines(result)
    assert (ask("shop"), ask("other")) == ("Shop: hello Ada", "hi Ada!")


def test_an_application_that_is_not_in_the_file_goes(deploy):
    """The file is the whole truth of the namespace."""
    deploy(FILE)
    result = deploy(FILE.partition("- name: other")[0])

    assert ["other.Greeter", "delete", "its", "application", "goes"] in lines(result)
    assert set(serve.status().applications) == {"shop"}


def test_an_unknown_deployment_is_named_before_anything_changes(deploy):
    """The text is Ray Serve's; 78 is a wrong setting."""
    deploy(FILE)
    result = deploy(FILE.replace("name: Greeter", "name: Greter"))

    assert result.exit_code == 78
    assert "Deployment 'Greter' does not exist. Available: ['Greeter', 'Front']" in result.stderr
    assert ask("shop") == "Shop: hello Ada"


def test_what_does_not_start_leaves_the_others_running_and_is_told_with_its_last_lines(deploy):
    """One broken model of ten: the pipeline stops, the shop does not."""
    result = deploy(FILE + "- name: broken\n  import_path: tests.cli.shop:broken\n")

    assert result.exit_code == 1
    assert "Deploying application broken failed: Broken: The deployment failed to start" in result.stderr
    assert 'tests/cli/shop.py", line' in result.stderr
    assert "looking for the weights" in result.stderr
    assert ask("shop") == "Shop: hello Ada"
    deploy("applications: []")
    assert serve.status().applications == {}
