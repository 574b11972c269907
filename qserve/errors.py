"""Every exception that qserve raises, in four families that say what to do about it.

    QserveError (RayServeException)
    |-- UsageError                    mend your code or your settings
    |   |-- SerializationError        (TypeError) an argument, a result or a class that cannot be pickled
    |   |-- PayloadTooLarge           (ValueError) over the limit of 64 MiB for one call or reply
    |   |-- SettingsError             (ValueError) a wrong option, environment variable or URL
    |   |-- ApplicationNotFound       no application of that name
    |   |-- DeploymentNotFound        (KeyError) no deployment of that name
    |   |-- MethodNotFound            the deployment has no such method
    |   |-- SecretRequired            refused to run unsigned on a network
    |   `-- MissingExtra              (ImportError) an optional package is not installed
    |-- CallError                     this call failed
    |   |-- RemoteError               user code raised something that could not be rebuilt here
    |   |-- ReplicaDiedError          its replicas died until the attempts were used up
    |   |-- CallLost                  Redis no longer knows the call
    |   |-- CallExpired               its deadline passed before it ran
    |   |-- CallRejected              a replica refused the envelope: forged, truncated, wrong key or version
    |   |-- RequestCancelledError     it was cancelled
    |   `-- ResultTimeout             (TimeoutError) no reply yet; the call goes on
    |-- RefusedError                  try later, or elsewhere
    |   |-- BackPressureError         the queue is full
    |   |-- DeploymentUnavailableError the deployment is deleted or failed to deploy
    |   |-- BrokerInUse               another broker already runs in that folder
    |   |-- DeployFailed              (RuntimeError) the application did not start
    |   `-- DeployTimeout             (TimeoutError) the application is not running yet
    `-- TransportError                page someone
        |-- BrokerUnavailable         (ConnectionError) Redis cannot be reached
        |-- BrokerRefused             Redis answered with an error
        |   `-- BrokerDenied          wrong password, or a user without permission
        |-- BrokerBinaryMissing       no server binary for the embedded broker
        `-- SignatureError            bytes in Redis that do not carry a valid signature

Names that Ray Serve's users already catch keep Ray's spelling.
"""

from __future__ import annotations


class QserveError(Exception):
    """The root of all errors of this package."""


RayServeException = QserveError


class UsageError(QserveError):
    """Something in the caller's code or settings is wrong; trying again changes nothing."""


class SerializationError(UsageError, TypeError):
    """A value cannot travel. The message names it and says why pickle refused it."""


class PayloadTooLarge(UsageError, ValueError):
    """Over the limit of 64 MiB for one call or reply. Store the data elsewhere and pass its address."""


class SettingsError(UsageError, ValueError):
    """An option, an environment variable or a URL is not valid."""


class ApplicationNotFound(UsageError):
    """No application of that name is deployed. `qserve status` lists what is there."""


class DeploymentNotFound(UsageError, KeyError):
    """No deployment of that name exists in the application."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MethodNotFound(UsageError):
    """The deployment's class has no such method. The message lists those that it has."""


class SecretRequired(UsageError):
    """Calls are pickled, so whoever can write to Redis could run code: make a key with `qserve secret new`."""


class MissingExtra(UsageError, ImportError):
    """An optional package is not installed. The message has the command that installs it."""


class CallError(QserveError):
    """This call has failed, or has no reply yet; others are not affected."""


class RemoteError(CallError):
    """User code raised an exception that could not be rebuilt in this process.

    class_name     the original exception's class, with its module
    traceback_str  the remote traceback as text
    """

    def __init__(self, message: str, class_name: str = "", traceback_str: str = "") -> None:
        super().__init__(message)
        self.class_name = class_name
        self.traceback_str = traceback_str

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, str]]:
        return (type(self), (str(self), self.class_name, self.traceback_str))


class RemoteTraceback(Exception):
    """The text of a traceback from the replica, shown as the cause of the exception that was rebuilt here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class ReplicaDiedError(CallError):
    """The replica died while it ran the call, and so did those that tried it again."""


class CallLost(CallError):
    """Redis no longer knows the call: it lost acknowledged writes, or the reply's time to live has passed.

    Whether the call ran is not known. Submit it again if running it twice does no harm.
    """


class CallExpired(CallError):
    """The call's deadline passed before a replica took it."""


class CallRejected(CallError):
    """A replica refused to open the call's envelope. The message says which check failed."""


class RequestCancelledError(CallError):
    """The call was cancelled."""


class ResultTimeout(CallError, TimeoutError):
    """No reply within the time given. The call goes on; its result can still be fetched later."""


class RefusedError(QserveError):
    """The system cannot take this now."""


class BackPressureError(RefusedError):
    """The deployment's queue is at `max_queued_requests`."""

    def __init__(self, num_queued_requests: int, max_queued_requests: int, retry_after_s: float | None = None) -> None:
        self.num_queued_requests = num_queued_requests
        self.max_queued_requests = max_queued_requests
        self.retry_after_s = retry_after_s
        self.status_code = 503
        self.message = (
            f"Request dropped due to backpressure (num_queued_requests={num_queued_requests}, "
            f"max_queued_requests={max_queued_requests})."
        )
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type[BackPressureError], tuple[int, int, float | None]]:
        return (type(self), (self.num_queued_requests, self.max_queued_requests, self.retry_after_s))


class DeploymentUnavailableError(RefusedError):
    """The deployment was deleted, was never deployed, or failed to deploy."""

    @property
    def message(self) -> str:
        """The text, under the name that Ray Serve gives it."""
        return str(self)


class BrokerInUse(RefusedError):
    """A broker already runs in that folder: use it, or another folder."""


class DeployFailed(RefusedError, RuntimeError):
    """An application did not start. The message holds the replica's own traceback."""


class DeployTimeout(RefusedError, TimeoutError):
    """An application is not running after `timeout_s`. The message says what it waits for."""


class TransportError(QserveError):
    """Redis, or what stands in it, is not as it should be."""


class BrokerUnavailable(TransportError, ConnectionError):
    """Redis cannot be reached. The message has the URL with its password masked."""


class BrokerRefused(TransportError):
    """Redis answered with an error: out of memory, no permission, wrong type."""


class BrokerDenied(BrokerRefused):
    """Redis does not know this user or password, or does not let the user do this."""


class BrokerBinaryMissing(TransportError):
    """No server binary was found for the embedded broker. The message names both remedies."""


class SignatureError(TransportError):
    """Bytes read from Redis do not carry a valid signature. They were not unpickled."""
