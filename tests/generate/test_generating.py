"""`qserve generate`: files into a folder, or one text; never over what somebody has changed."""

from __future__ import annotations

import pytest
import yaml

from qserve.generate import Stack, compose, kubernetes


def test_without_options_the_text_is_that_of_the_defaults(generate):
    """Piped into a file or into kubectl."""
    assert generate("compose").stdout == compose(Stack())["docker-compose.yml"]
    assert len(list(yaml.safe_load_all(generate("k8s").stdout))) == 6


def test_a_folder_gets_a_file_each(generate, tmp_path):
    """Its names are printed: for `kubectl apply -f`, or to copy."""
    result = generate("k8s", "-o", "manifests")
    files = kubernetes(Stack())
    assert result.stdout.split() == [f"manifests/{name}" for name in files]
    assert {path.name: path.read_text() for path in (tmp_path / "manifests").iterdir()} == files


def test_a_changed_file_is_never_lost(generate, tmp_path):
    """Somebody has written the limits of their nodes into it."""
    generate("k8s", "-o", ".")
    (tmp_path / "worker.yaml").write_text("mine")
    again = generate("k8s", "-o", ".", "--workers", "3")
    assert again.exit_code == 2
    assert "worker.yaml. --force overwrites" in again.stderr
    assert (tmp_path / "worker.yaml").read_text() == "mine"
    assert "replicas: 3" not in "".join(path.read_text() for path in tmp_path.glob("*.yaml")), "nothing was written"
    assert generate("k8s", "-o", ".", "--force").exit_code == 0
    assert (tmp_path / "worker.yaml").read_text() != "mine"


def test_the_same_again_changes_nothing(generate):
    """It stands in a script that runs with every build."""
    assert generate("systemd", "-o", "units").exit_code == 0
    assert generate("systemd", "-o", "units").exit_code == 0


def test_the_grace_follows_the_applications_that_are_named(generate):
    """Nobody remembers to change the second number."""
    file = yaml.safe_load(generate("compose", "generated_shop:app").stdout)
    assert file["services"]["worker"]["stop_grace_period"] == "130s"
    typed = yaml.safe_load(generate("compose", "generated_shop:app", "--grace", "7").stdout)
    assert typed["services"]["worker"]["stop_grace_period"] == "7s"


def test_options_reach_the_files(generate):
    """One of each kind."""
    result = generate(
        *(
            "k8s",
            "--redis-url",
            "redis://redis.internal/0",
            "--namespace",
            "ml",
            "--image",
            "my-app:1",
            "--workers",
            "4",
        ),
        *("--gpus", "1", "--cpus", "1.5", "--memory-gib", "2.5", "--deployments", "a.B, c", "--schedulers", "1"),
        *("--scaler", "keda", "--scale-on", "a.B=6", "--max-workers", "6"),
    )
    assert result.exit_code == 0, result.output
    for text in (
        "value: redis://redis.internal/0",
        "value: ml",
        "image: my-app:1",
        "nvidia.com/gpu: 1",
        "cpu: '1.5'",
        "memory: 2560Mi",
        "'a.B,c'",
        "[qserve, scheduler, --heartbeat-file, /tmp/qserve.heartbeat]",
        "stream: qserve:1:{ml:a:B}:calls",
        "minReplicaCount: 4",
        "maxReplicaCount: 6",
    ):
        assert text in result.stdout


def test_the_environment_of_this_shell_is_not_the_clusters(generate, monkeypatch):
    """Who generates files sits at a laptop, often beside an embedded server of their own."""
    before = generate("compose").stdout
    monkeypatch.setenv("QSERVE_REDIS_URL", "unix:///tmp/mine.sock")
    monkeypatch.setenv("QSERVE_NAMESPACE", "mine")
    assert generate("compose").stdout == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compose", "--replicas", "Search=2"), "name one MODULE:APP"),
        (("compose", "generated_shop:app", "--replicas", "Seeker=2"), "it has ['Rank', 'Search']"),
        (("compose", "generated_shop:app", "--replicas", "Search=2", "--autoscalers", "1"), "no autoscaler may run"),
        (("compose", "generated_shop:app", "--replicas", "Search=none"), "write NAME=N"),
        (("k8s", "--scale-on", "a.B=2"), "say --scaler keda"),
        (("k8s", "--scaler", "keda", "--scale-on", "aB=2"), "write APP.DEPLOYMENT=N"),
        (("k8s", "--deployments", ","), "names none"),
        (("compose", "--redis-url", "redis://127.0.0.1/0"), "its own localhost"),
        (("systemd", "--venv", "venv"), "begin with /"),
        (("compose", "-o", "generated_shop.py/there"), "cannot be written"),
    ],
)
def test_what_could_not_run_is_wrong_usage(generate, arguments, words):
    """Now, and not in the log of a pod."""
    result = generate(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
