"""`qserve config`: the file that a cluster runs, whether a file is right, and what may stand in one."""

from __future__ import annotations

import json

import pytest
import yaml

import qserve as serve
from qserve.schema import ServeDeploySchema
from tests.cli import shop

FILE = """
applications:
- name: shop
  import_path: tests.cli.shop:build
  args: {title: "Shop: "}
  deployments:
  - name: Greeter
    max_ongoing_requests: 9
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A config file."""
    path = tmp_path_factory.mktemp("config") / "serve.yaml"
    path.write_text(FILE)
    return path


def test_what_is_shown_deploys_the_same_again(cluster, invoke, file, tmp_path):
    """The way from what was typed to what is kept in a repository."""
    assert invoke("deploy", str(file)).exit_code == 0
    shown = invoke("config", "show").stdout
    (tmp_path / "again.yaml").write_text(shown)

    assert yaml.safe_load(shown)["applications"][0]["args"] == {"title": "Shop: "}
    assert invoke("deploy", str(tmp_path / "again.yaml"), "--dry-run").stdout == "Nothing changes.\n"


def test_what_was_deployed_from_python_says_what_is_missing(cluster, invoke):
    """Its code has no name that a file could hold."""
    serve.run(shop.scaled, name="scripted")
    shown = invoke("config", "show", "scripted").stdout

    assert shown.startswith("# scripted was deployed from Python: add its import_path")
    assert json.loads(invoke("config", "show", "scripted", "--json").stdout) == yaml.safe_load(shown)


def test_a_file_is_checked_without_a_cluster(invoke, file):
    """In the pipeline, before anything is deployed."""
    result = invoke("config", "validate", str(file), env={"QSERVE_REDIS_URL": None})

    assert (result.exit_code, result.stdout) == (0, f"{file} is valid. Applications: shop.\n")


def test_a_wrong_file_exits_with_78_and_its_mistakes(invoke, file, tmp_path):
    """One line for each, with the place."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(FILE.replace("max_ongoing_requests", "max_ongoing_request"))
    result = invoke("config", "validate", str(wrong))

    assert result.exit_code == 78
    assert "deployments[Greeter].max_ongoing_request: there is no such field; did you mean max_ongoing_requests?" in (
        result.stderr
    )
    assert invoke("config", "validate", str(tmp_path / "nope.yaml")).exit_code == 78


def test_what_the_file_asks_for_and_does_not_get_is_noted(invoke, file, tmp_path):
    """On stderr, beside the plan."""
    asking = tmp_path / "asking.yaml"
    asking.write_text(f"http_options: {{port: 80}}\n{FILE}")

    assert "Note: http_options: no HTTP ingress is built in yet" in invoke("config", "validate", str(asking)).stderr


def test_the_schema_is_the_one_of_the_models(invoke):
    """For editors."""
    assert json.loads(invoke("config", "schema").stdout) == json.loads(
        json.dumps(ServeDeploySchema.model_json_schema())
    )
