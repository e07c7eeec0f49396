"""The type of a tensor: Keras and its backends have none that mypy could check."""

from typing import Any, TypeAlias

Tensor: TypeAlias = Any  # of the backend, or symbolic, while a Keras model is built
