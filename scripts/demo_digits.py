"""The demo: serve `workers.digits` with no server installed, classify all test images at once, show the figures.

`scripts/demo` prepares an environment and runs this. Without a terminal it prints plain lines. Ctrl-C ends all of it.
"""

import asyncio
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, it would not find workers/

import qserve as serve
from qserve.handle import DeploymentHandle
from workers.digits import Digits, Images, app, split

ALONE = 50  # calls made one after the other, for the latency of a call that waits for nobody
INTERRUPTED = 130
Handle = DeploymentHandle[Digits]


@dataclass(frozen=True)
class Answer:
    """What one call brought: the digit, the replica that saw it, and how long it took."""

    digit: int
    replica: str
    latency_s: float


async def ask(handle: Handle, image: Images) -> Answer:
    """Make one call and await it."""
    asked_at = time.perf_counter()
    digit, replica = await handle.remote(image)
    return Answer(digit, replica, time.perf_counter() - asked_at)


async def ask_all(handle: Handle, images: Images, advance: Callable[[], object]) -> list[Answer]:
    """Make all calls at once and await them together."""

    async def ask_one(image: Images) -> Answer:
        answer = await ask(handle, image)
        advance()
        return answer

    return list(await asyncio.gather(*map(ask_one, images)))


async def ask_in_turn(handle: Handle, images: Images) -> list[Answer]:
    """Make one call after the other."""
    return [await ask(handle, image) for image in images]


def deploy(console: Console) -> Handle:
    """Start broker, worker, autoscaler and replicas as children of this process; wait until they serve."""
    began_at = time.perf_counter()
    with console.status("Starting a broker, a worker, an autoscaler and four replicas"):
        handle = serve.run(app, name="digits")
    took_s = time.perf_counter() - began_at
    console.print(f"Serving Digits -> Preprocess -> Classify x 2, {took_s:.1f} s after the start.")
    return handle


def classify(console: Console, handle: Handle, images: Images) -> tuple[list[Answer], float]:
    """Classify all images at once. Returns the answers, in the images' order, and how many seconds it took."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("Classifying", total=len(images))
        began_at = time.perf_counter()
        answers = asyncio.run(ask_all(handle, images, lambda: progress.advance(task)))
        return answers, time.perf_counter() - began_at


def percentiles(answers: Iterable[Answer]) -> str:
    """The latencies' median, and what 99 of 100 stay below."""
    cuts = statistics.quantiles((answer.latency_s * 1000 for answer in answers), n=100)
    return f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms"


def table(accuracy: float, answers: Sequence[Answer], took_s: float, alone: Sequence[Answer]) -> Table:
    """The figures, one a line."""
    lines = Table(show_header=False, box=None)
    lines.add_row("accuracy", f"{accuracy:.1%}")
    lines.add_row("calls/s", f"{len(answers) / took_s:.0f}, each of which makes two more")
    lines.add_row(f"latency, {len(answers)} calls at once", percentiles(answers))
    lines.add_row("latency, one call at a time", percentiles(alone))
    for replica, calls in sorted(Counter(answer.replica for answer in answers).items()):
        lines.add_row(f"calls of {replica}", f"{calls}")
    return lines


def run(console: Console) -> None:
    """The main job, start to end."""
    handle = deploy(console)
    _, images, _, digits = split()
    answers, took_s = classify(console, handle, images)
    alone = asyncio.run(ask_in_turn(handle, images[:ALONE]))
    right = sum(answer.digit == digit for answer, digit in zip(answers, digits, strict=True))
    replicas = len({answer.replica for answer in answers})
    console.print(table(right / len(images), answers, took_s, alone))
    console.print(f"{len(images)} images classified in {took_s:.1f} s by {replicas} replicas, {right} of them rightly.")


def main() -> int:
    """Run the demo and clear up, however it ends. Returns the exit code."""
    # A cluster of its own, always: the shutdown below would take everything down on another.
    os.environ.pop("QSERVE_REDIS_URL", None)
    console = Console(highlight=False)
    try:
        run(console)
    except KeyboardInterrupt:
        console.print("Interrupted: ending what was started.")
        return INTERRUPTED
    finally:
        serve.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
