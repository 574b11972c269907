"""What a host offers: found out without ever hanging, and never more than this worker was given."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qserve.node import resources
from qserve.node.resources import gpu_ids, offered, rss_bytes, visible_gpus

TWO = 'printf "0, GPU-aaaa-1\\n1, GPU-bbbb-2\\n"'


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch) -> Iterator[Callable[[str], None]]:
    """Put a program of that name in front of the PATH; its text is a shell script."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    visible_gpus.cache_clear()

    def install(script: str) -> None:
        program = Path(tmp_path, "nvidia-smi")
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    yield install
    visible_gpus.cache_clear()


def test_gpus_are_found(nvidia_smi):
    """Nobody counts them by hand on a hundred hosts."""
    nvidia_smi(TWO)
    assert visible_gpus() == ("0", "1")
    assert offered()["num_gpus"] == 2.0


def test_it_asks_for_what_it_reads(nvidia_smi):
    """The program's default output is a drawing for people."""
    nvidia_smi('[ "$*" = "--query-gpu=index,uuid --format=csv,noheader" ] && ' + TWO)
    assert visible_gpus() == ("0", "1")


def test_a_host_without_the_program_has_none(monkeypatch, tmp_path):
    """Most hosts."""
    monkeypatch.setenv("PATH", str(tmp_path))
    visible_gpus.cache_clear()
    assert visible_gpus() == ()
    assert offered()["num_gpus"] == 0.0


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("1", ("1",)),
        ("1,0", ("1", "0")),
        ("GPU-bbbb-2", ("GPU-bbbb-2",)),
        ("GPU-aaaa, 1", ("GPU-aaaa", "1")),
        ("MIG-GPU-aaaa-1/3/0", ("MIG-GPU-aaaa-1/3/0",)),
        ("", ()),
        ("-1", ()),
        ("0,7,1", ("0",)),
        ("0,0", ("0",)),
    ],
)
def test_a_worker_gives_away_only_what_it_was_given(nvidia_smi, monkeypatch, given, seen):
    """A scheduler above us has shared the host out; ids stay as it wrote them, and end where CUDA's would."""
    nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == seen


def test_a_program_that_fails_means_no_gpus_and_says_so(nvidia_smi, caplog):
    """A driver that does not match its kernel module: the worker serves what needs no GPU."""
    nvidia_smi("echo 'NVIDIA-SMI has failed because it could not talk to the driver.'; exit 9")
    with caplog.at_level(logging.WARNING):
        assert visible_gpus() == ()
    assert "could not talk to the driver" in caplog.text


def test_a_program_that_hangs_means_no_gpus_and_says_so(nvidia_smi, caplog, monkeypatch):
    """A broken driver hangs for ever, and so would the worker. What it started ends with it."""
    monkeypatch.setattr(resources, "_NVIDIA_SMI_TIMEOUT_S", 0.2)
    nvidia_smi("sleep 600; true")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert visible_gpus() == ()
    assert time.monotonic() - began < 5
    assert "did not answer in 0.2 s" in caplog.text


def test_ids_follow_the_number_that_is_offered(nvidia_smi, caplog):
    """Fewer than there are leaves the others to somebody else; more is the user's word, and a warning."""
    nvidia_smi(TWO)
    assert (gpu_ids(0), gpu_ids(1), gpu_ids(2)) == ((), ("0",), ("0", "1"))
    with caplog.at_level(logging.WARNING):
        assert gpu_ids(3) == ("0", "1", "2")
    assert "3 GPUs are offered, and 2 were found" in caplog.text


def test_what_is_given_goes_before_what_is_found(nvidia_smi):
    """A host may be shared with programs that we know nothing of."""
    nvidia_smi(TWO)
    given = offered(1.5, {"tickets": 2.0}, num_gpus=1, memory=4096.0)
    assert given == {"num_cpus": 1.5, "num_gpus": 1.0, "memory": 4096.0, "tickets": 2.0}


def test_a_host_offers_all_that_it_has():
    """The defaults must be right: most people never set them."""
    found = offered()
    assert found["num_cpus"] >= 1
    assert found["memory"] > 64 * 1024 * 1024


def test_a_process_that_is_gone_holds_no_memory():
    """It may end between two looks."""
    assert rss_bytes(2**22 + 1) == 0
