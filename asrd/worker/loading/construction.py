"""What is different while NeMo constructs a model: layers get no numbers, and there is a limit to
their parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

INITIALISERS = (
    "uniform_", "normal_", "trunc_normal_", "constant_", "zeros_", "ones_", "xavier_uniform_", "xavier_normal_",
    "kaiming_uniform_", "kaiming_normal_", "orthogonal_",
)  # fmt: skip
"""Functions of torch.nn.init that fill a tensor and return it."""

SPARE_PARAMETERS = 1 << 24
"""Parameters that a built model may have beside those of its file: tied ones count twice."""


@contextlib.contextmanager
def uninitialised() -> Iterator[None]:
    """While entered, new layers keep whatever was in memory: for a model all of whose parameters
    are then loaded."""
    import torch

    kept = {}
    for name in INITIALISERS:
        kept[name] = getattr(torch.nn.init, name)
        setattr(torch.nn.init, name, _unchanged)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch.nn.init, name, function)


def _unchanged(tensor: Any, *_: Any, **__: Any) -> Any:
    return tensor


@contextlib.contextmanager
def at_most(elements: int) -> Iterator[None]:
    """While entered, modules that have more than twice so many parameters together are not built.

    Raises:
        ValueError: there are more.
    """
    import torch

    register, counted = torch.nn.Module.register_parameter, 0

    def counting(module: Any, name: str, parameter: Any) -> None:
        nonlocal counted
        if parameter is not None:
            counted += parameter.numel()
        if counted > 2 * elements + SPARE_PARAMETERS:
            raise ValueError("its config describes more parameters than its weights have")
        register(module, name, parameter)

    torch.nn.Module.register_parameter = counting  # type: ignore[assignment,method-assign]  # given back below
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
