"""What `module:name` names: an Application, or a function that builds one. Knows nothing of clusters."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ValidationError

from qserve.deployment import Application, Deployment
from qserve.errors import DeployFailed, UsageError


def load(path: str, arguments: Mapping[str, Any]) -> Application:
    """Import the module, and call the builder if the name is one's.

    path       "module:name"; the name may have dots. Ray Serve's "module.name" does, too
    arguments  for a builder with one argument: a dict, or the pydantic model that it is annotated with
    Raises UsageError when the path names nothing of use, DeployFailed with the traceback when the user's code raises.
    """
    found = _find(path)
    if isinstance(found, Application):
        if arguments:
            raise UsageError(f"{path!r} is an Application already: it takes no arguments, and got {dict(arguments)}.")
        return found
    if isinstance(found, Deployment):
        raise UsageError(f"{path!r} is a Deployment: bind it to its arguments, as in `app = {found.name}.bind()`.")
    if not inspect.isfunction(found):
        raise UsageError(
            f"{path!r} is a {type(found).__qualname__}. Name an Application (`app = Model.bind()`), or a function that "
            "returns one."
        )
    built = _build(path, found, arguments)
    if not isinstance(built, Application):
        raise UsageError(f"{path!r} returned {built!r}: a builder returns an Application, what `.bind()` makes.")
    return built


def _find(path: str) -> Any:
    module_name, _, names = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not names:
        raise UsageError(f"{path!r} does not name an application: write module:name, as in `my_app:app`.")
    found: Any = _import(module_name)
    for name in names.split("."):
        if not hasattr(found, name):
            raise UsageError(f"Module {module_name!r} has no {names!r}. It has: {_candidates(module_name)}.")
        found = getattr(found, name)
    return found


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # the module's own import failed
            raise _failed(f"Importing {name!r}", error) from error
        raise UsageError(
            f"There is no module {error.name!r} in this folder, nor is one installed: {error}. "
            "Go to the folder that holds it."
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(f"Importing {name!r}", error) from error


def _build(path: str, builder: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    parameters = list(inspect.signature(builder).parameters.values())
    if len(parameters) > 1:
        raise UsageError(f"The builder {path!r} takes {len(parameters)} arguments; it takes none, or one dict.")
    if arguments and not parameters:
        raise UsageError(f"The builder {path!r} takes no arguments, and got {dict(arguments)}.")
    try:
        given = [_typed(builder, parameters[0].name, arguments)] if parameters else []
    except ValidationError as error:
        raise UsageError(f"The arguments of {path!r} are not valid: {error}") from error
    try:
        return builder(*given)
    except (Exception, SystemExit) as error:
        raise _failed(f"The builder {path!r}", error) from error


def _typed(builder: Callable[..., Any], parameter: str, arguments: Mapping[str, Any]) -> Any:
    """The arguments as the builder wants them: validated by the pydantic model that it names, else a dict."""
    wanted = get_type_hints(builder).get(parameter)
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return wanted.model_validate(arguments)
    return dict(arguments)


def _candidates(module_name: str) -> list[str]:
    """What may have been meant: the applications and functions that the module defines."""
    module = importlib.import_module(module_name)
    return sorted(
        name
        for name, value in vars(module).items()
        if isinstance(value, Application)
        or (inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"))
    )


def _failed(what: str, error: BaseException) -> DeployFailed:
    """The error with the traceback of the user's own frames: those of the import machinery and ours say nothing."""
    steps = error.__traceback__
    while steps is not None and _is_ours(steps.tb_frame.f_code.co_filename) and steps.tb_next is not None:
        steps = steps.tb_next
    text = "".join(traceback.format_exception(type(error), error, steps))
    return DeployFailed(f"{what} failed.\n{text}")


def _is_ours(file: str) -> bool:
    return file == __file__ or file.startswith("<frozen importlib") or file == importlib.__file__
