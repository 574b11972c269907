"""`@deployment`, `.options()` and `.bind()`: pure declaration, nothing runs here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from pydantic import BaseModel

from qserve.config import AUTO_PRESET, AutoscalingConfig, DeploymentConfig, Options
from qserve.errors import SettingsError

_NOT_IN_NAMES = frozenset("#:{}~ \n\t/")


class Application:
    """A deployment bound to its arguments: what `serve.run` takes. Arguments may hold other applications, anywhere."""

    __slots__ = ("deployment",)

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @property
    def init_args(self) -> tuple[Any, ...]:
        """What the replicas construct the class with, by position."""
        return self.deployment.init_args

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """What the replicas construct the class with, by keyword."""
        return self.deployment.init_kwargs

    def __repr__(self) -> str:
        return f"Application({self.deployment.name!r})"


class Deployment:
    """A class or function with its options. Made by `@serve.deployment` only; `.bind()` makes an Application of it.

    init_args, init_kwargs  what `.bind()` was given; empty before
    """

    __slots__ = ("config", "func_or_class", "init_args", "init_kwargs", "name")

    config: DeploymentConfig
    func_or_class: Callable[..., Any]
    init_args: tuple[Any, ...]
    init_kwargs: dict[str, Any]
    name: str

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise RuntimeError("A Deployment is not made by its constructor: use the @serve.deployment decorator.")

    @classmethod
    def declare(cls, func_or_class: Callable[..., Any], name: object, config: DeploymentConfig) -> Deployment:
        """Make a Deployment. Raises TypeError for a name that is no str, ValueError for one that cannot be a key."""
        if not isinstance(name, str):
            raise TypeError(f"A deployment's name is a str, not {name!r}.")
        if not name or set(name) & _NOT_IN_NAMES:
            raise ValueError(f"The deployment name {name!r} is empty or holds one of {sorted(_NOT_IN_NAMES)}.")
        self = object.__new__(cls)
        self.func_or_class = func_or_class
        self.init_args, self.init_kwargs = (), {}
        self.name = name
        self.config = config
        return self

    def __call__(self, *_args: object, **_kwargs: object) -> None:
        raise RuntimeError(
            f"Deployment {self.name!r} cannot be called or constructed directly. "
            f"Use `serve.run({self.name}.bind(...))` and call the handle that it returns."
        )

    def bind(self, *args: Any, **kwargs: Any) -> Application:
        """Record the constructor's arguments; the replicas construct with them later.

        Raises ValueError when a function deployment is given arguments.
        """
        if (args or kwargs) and not isinstance(self.func_or_class, type):
            raise ValueError(f"{self.name!r} is a function deployment: it has no constructor, so bind() takes nothing.")
        if not args and not kwargs:
            return Application(self)
        bound = Deployment.declare(self.func_or_class, self.name, self.config)
        bound.init_args, bound.init_kwargs = args, kwargs
        return Application(bound)

    def options(
        self, func_or_class: Callable[..., Any] | None = None, *, name: str | None = None, **changes: Any
    ) -> Deployment:
        """A copy with only the given options changed; they are the decorator's, and raise what it raises."""
        before = {key: getattr(self.config, key) for key in self.config.model_fields_set}
        if changes.get("autoscaling_config") is not None and "num_replicas" not in changes:
            before.pop("num_replicas", None)
        if isinstance(changes.get("num_replicas"), int) and "autoscaling_config" not in changes:
            before.pop("autoscaling_config", None)
        changed = Deployment.declare(
            func_or_class or self.func_or_class, name or self.name, _config({**before, **changes})
        )
        changed.init_args, changed.init_kwargs = self.init_args, self.init_kwargs
        return changed

    def set_logging_config(self, logging_config: dict[str, Any] | BaseModel | None) -> None:
        """Change the logging of this deployment, in place. Raises ValueError for what is no dict or LoggingConfig."""
        self.config = self.options(logging_config=logging_config or {}).config

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Deployment):
            return NotImplemented
        return all(getattr(self, part) == getattr(other, part) for part in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.name, self.func_or_class))

    def __repr__(self) -> str:
        return f"Deployment(name={self.name!r})"

    @property
    def num_replicas(self) -> int:
        """How many replicas a deploy starts."""
        return self.config.first_replicas

    @property
    def user_config(self) -> Any:
        """What `reconfigure()` is given."""
        return self.config.user_config

    @property
    def max_ongoing_requests(self) -> int:
        """How many calls one replica runs at a time."""
        return self.config.max_ongoing_requests

    @property
    def max_queued_requests(self) -> int:
        """How many calls may wait, over all callers; -1 is no limit."""
        return self.config.max_queued_requests

    @property
    def ray_actor_options(self) -> dict[str, Any]:
        """What a replica takes of its host: `num_cpus`, `num_gpus`, `memory`, `resources`."""
        return self.config.ray_actor_options

    @property
    def logging_config(self) -> dict[str, Any] | None:
        """How its replicas log; None: as their worker does."""
        return self.config.logging_config


def _config(options: dict[str, Any]) -> DeploymentConfig:
    """Check the options against each other, fill the preset of `num_replicas="auto"`, and freeze copies of them."""
    if "version" in options:
        raise ValueError("`version` was removed: qserve computes it from the code, the arguments and the options.")
    if unknown := sorted(options.keys() - DeploymentConfig.model_fields.keys()):
        raise TypeError(f"A deployment has no options {unknown}; it has {sorted(DeploymentConfig.model_fields)}.")
    options = {key: value for key, value in options.items() if value is not None or key == "max_ongoing_requests"}
    options |= {key: value.model_dump(exclude_unset=True) for key, value in options.items() if _is_plain(value)}
    number, scaling = options.get("num_replicas"), options.get("autoscaling_config")
    if isinstance(number, int) and scaling is not None:
        raise ValueError("Manually setting num_replicas is not allowed when autoscaling_config is provided.")
    if number == "auto":
        given = scaling.model_dump(exclude_unset=True) if isinstance(scaling, AutoscalingConfig) else scaling or {}
        options["autoscaling_config"] = {**AUTO_PRESET, **given}
    return DeploymentConfig(**options).model_copy(deep=True)


def _is_plain(value: Any) -> bool:
    """Whether it is a model of a part that the options keep as a dict, such as LoggingConfig."""
    return isinstance(value, BaseModel) and not isinstance(value, Options)


@overload
def deployment(func_or_class: Callable[..., Any], /) -> Deployment: ...
@overload
def deployment(
    func_or_class: None = None, /, *, name: str | None = None, **options: Any
) -> Callable[[Callable[..., Any]], Deployment]: ...
def deployment(
    func_or_class: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any
) -> Deployment | Callable[[Callable[..., Any]], Deployment]:
    """Make a deployment of a class or a function; bare, or with the options of `DeploymentConfig`.

    Raises TypeError on anything else and for an unknown option, ValueError for a wrong one.
    """
    config = _config(options)

    def decorate(target: Callable[..., Any]) -> Deployment:
        if not callable(target) or isinstance(target, Deployment):
            raise TypeError("@serve.deployment must be called on a class or function.")
        return Deployment.declare(target, getattr(target, "__name__", "") if name is None else name, config)

    return decorate if func_or_class is None else decorate(func_or_class)


def checked_route_prefix(prefix: str | None) -> str | None:
    """The prefix itself. Raises SettingsError (a ValueError) for what is none."""
    if prefix is None:
        return None
    if not prefix.startswith("/") or (prefix != "/" and prefix.endswith("/")) or set(prefix) & set("{}"):
        raise SettingsError(
            f"route_prefix={prefix!r}: it starts with '/', does not end with one, and holds no '{{' or '}}'."
        )
    return prefix
