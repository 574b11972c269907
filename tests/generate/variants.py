"""Stacks that differ in what a generator has to think of, and all texts that they make."""

from __future__ import annotations

from qserve.generate import Scaling, Stack, compose, kubernetes, systemd
from qserve.generate.stack import pools_of

PASSWORD = "pa55-w0rd"
STACKS = {
    "defaults": Stack(),
    "server elsewhere": Stack(redis_url="redis://redis.internal:6380/2", namespace="ml"),
    "password": Stack(redis_url=f"rediss://app:{PASSWORD}@redis.internal:6379/0"),
    "sentinel": Stack(redis_url=f"redis+sentinel://:{PASSWORD}@s1:26379,s2:26379/mymaster/0"),
    "pools": Stack(pools=pools_of([["chat.Embedder"], ["images", "audio"]]), schedulers=2),
    "gpus": Stack(gpus=2, cpus=8, memory_mib=28 * 1024, grace_s=130),
    "fixed": Stack(app="shop:app", name="chat", replicas={"Embedder": 2, "Rank": 1}),
}
KEDA = Scaling("keda", {("chat", "Embedder"): 10}, max_workers=8)
SCALINGS = {"none": Scaling(), "keda": KEDA, "hpa": Scaling("hpa", max_workers=20)}


def texts() -> dict[str, str]:
    """Every file of every variant, by what made it."""
    found: dict[str, str] = {}
    for name, stack in STACKS.items():
        made = {**systemd(stack), **compose(stack)}
        for kind, scaling in SCALINGS.items():
            made |= {f"{kind}/{file}": text for file, text in kubernetes(stack, scaling).items()}
        found |= {f"{name}/{file}": text for file, text in made.items()}
    return found


TEXTS = texts()
