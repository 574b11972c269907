"""The policies that deployments name, loaded once each and asked so that none of them can hold the controller up."""

from __future__ import annotations

import asyncio
import importlib
import threading
from functools import partial
from operator import attrgetter

from qserve.controller.autoscale import Policy, Verdict, decide, queue_policy, ray_policy
from qserve.options import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

_OURS: dict[str, Policy] = {
    "qserve.controller.autoscale:queue_policy": queue_policy,
    "qserve.controller.autoscale:ray_policy": ray_policy,
    # What a config that was written out by Ray Serve names.
    "ray.serve.autoscaling_policy:default_autoscaling_policy": ray_policy,
    "ray.serve.autoscaling_policy:replica_queue_length_autoscaling_policy": ray_policy,
}
# How long a turn waits for a policy, and after how long a policy that has not answered is an error.
_PATIENCE_S = 0.5
_TIMEOUT_S = 10.0


class PolicyError(Exception):
    """A policy could not be loaded, failed, or did not answer: the last decision is held."""


def load(named: AutoscalingPolicy) -> Policy:
    """The function that decides; a class is constructed. Raises what importing and constructing raise."""
    module, _, name = named.policy_function.partition(":")
    found = attrgetter(name)(importlib.import_module(module))
    if isinstance(found, type):
        made: Policy = found(**named.policy_kwargs)
        return made
    return partial(found, **named.policy_kwargs) if named.policy_kwargs else found


class Asked:
    """One deployment's policy, of its config. Built-in ones answer at once, others in a thread of their own."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._named = config.policy or AutoscalingPolicy()
        self._policy = _OURS.get(self.path)
        self._answer: asyncio.Future[Verdict | BaseException] | None = None
        self._asked_at = 0.0

    @property
    def path(self) -> str:
        """Where the policy is imported from; the state that it returned belongs to it."""
        return self._named.policy_function

    @property
    def is_built_in(self) -> bool:
        """Whether it is one of ours: these look at nothing but the context."""
        return self._policy is queue_policy or self._policy is ray_policy

    async def decide(self, ctx: AutoscalingContext) -> Verdict | None:
        """The verdict; None while the policy is still at it: what was asked earlier is then answered later.

        Raises PolicyError.
        """
        if self._policy is None or not self.is_built_in:
            return await self._decide_apart(ctx)
        try:
            return decide(ctx, self._policy)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a state that somebody else wrote
            raise PolicyError(f"its state cannot be read: {error!r}") from error

    async def _decide_apart(self, ctx: AutoscalingContext) -> Verdict | None:
        loop = asyncio.get_running_loop()
        if self._answer is None:
            self._answer, self._asked_at = loop.create_future(), loop.time()
            # Not the loop's own threads: their end is waited for at the end of the process.
            threading.Thread(target=self._ask, args=(ctx, self._answer, loop), daemon=True, name=self.path).start()
        await asyncio.wait((self._answer,), timeout=_PATIENCE_S)
        if not self._answer.done():
            if loop.time() - self._asked_at > _TIMEOUT_S:
                raise PolicyError(f"it has not answered for {_TIMEOUT_S:g} s")
            return None
        answer, self._answer = self._answer.result(), None
        if isinstance(answer, BaseException):
            raise PolicyError(f"{type(answer).__name__}: {answer}") from answer
        return answer

    def _ask(
        self,
        ctx: AutoscalingContext,
        answer: asyncio.Future[Verdict | BaseException],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """In a thread: load the policy the first time, and have it decide."""
        result: Verdict | BaseException
        try:
            if self._policy is None:
                self._policy = load(self._named)
            result = decide(ctx, self._policy)
        except BaseException as error:  # noqa: BLE001 (whatever ends it is told to the one who asked)
            result = error
        try:
            loop.call_soon_threadsafe(answer.set_result, result)
        except RuntimeError:  # the controller has ended meanwhile
            return
