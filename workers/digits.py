"""A real model: which digit is this handwriting? Two replicas classify, behind a deployment that composes the steps.

To run it: `scripts/demo` classifies all test images and shows the figures; `qserve run workers.digits:app` serves it
until Ctrl-C. Needs scikit-learn, which brings the images: `pip install 'qserve[demo,embedded]'`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import qserve as serve
from qserve.handle import DeploymentHandle

Images = NDArray[np.float64]


def split() -> list[NDArray[Any]]:
    """1,797 images of 8 x 8 pixels in two halves, always the same: to train, to test, and the digits on both."""
    bundled = load_digits()
    return train_test_split(bundled.images, bundled.target, test_size=0.5, random_state=0)  # type: ignore[no-any-return]  # no types


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Preprocess:
    """Makes of an image with pixels 0 to 16 a row of numbers 0 to 1. Too quick for a thread: a coroutine."""

    async def __call__(self, image: Images) -> Images:
        return image.reshape(64) / 16


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5})
class Classify:
    """Trained when a replica starts, in some 10 ms; a larger model would be loaded here from a file."""

    def __init__(self) -> None:
        images, _, digits, _ = split()
        self._model = SVC().fit(images.reshape(-1, 64) / 16, digits)
        self._replica = serve.get_replica_context().replica_id

    def __call__(self, row: Images) -> tuple[int, str]:
        """The digit, and which replica saw it. Computes, so it is a plain method: it runs in a thread."""
        return int(self._model.predict([row])[0]), self._replica


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
class Digits:
    """Preprocess, then classify. It only waits for others, so one replica has many calls in hand."""

    def __init__(self, preprocess: DeploymentHandle[Preprocess], classify: DeploymentHandle[Classify]) -> None:
        self._preprocess, self._classify = preprocess, classify

    async def __call__(self, image: Images) -> tuple[int, str]:
        return tuple(await self._classify.remote(self._preprocess.remote(image)))


app = Digits.bind(Preprocess.bind(), Classify.bind())
