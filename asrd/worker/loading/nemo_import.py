"""NeMo imported without torch's compiler.

NeMo's import is most of a worker's start, and over a third of it is torch's compiler. One attention
kernel is given to torch.compile when its module is imported, and Lightning asks for a class of the
compiler's only to tell its objects from others. Nothing here compiles. So while NeMo is imported a
function given to torch.compile is compiled when it is first called. `torch._dynamo` is a stand-in
that gives way to the real one when more of it is needed. Afterwards everything is as it would have
been. Releases that this was not tried with are imported the plain way.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from asrd.worker.loading.lhotse_import import leave_home_alone

COMPILER = "torch._dynamo"

TRIED_RELEASES = {"nemo-toolkit": "3.0.", "lightning": "2.", "pytorch-lightning": "2."}
"""Releases whose import was tried with the stand-in; any other is imported the plain way."""


def import_nemo(name: str = "nemo.collections.asr.models") -> ModuleType:
    """Import NeMo's models, without the compiler in the releases that this was tried with."""
    leave_home_alone()
    if COMPILER in sys.modules or not _was_tried():
        return importlib.import_module(name)
    with without_compiler():
        return importlib.import_module(name)


def _was_tried() -> bool:
    for package, release in TRIED_RELEASES.items():
        if not _version(package).startswith(release):
            return False
    return True


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """While entered, the compiler is not imported until it is needed."""
    import torch

    spec = importlib.util.find_spec(COMPILER)
    assert spec is not None
    stand_in = importlib.util.module_from_spec(spec)
    stand_in.__dict__.update(
        OptimizedModule=Optimized, disable=_leave, __getattr__=lambda name: _real(stand_in, name)
    )
    compile_, entered = torch.compile, True

    @functools.wraps(compile_)
    def later(model: Any = None, **options: Any) -> Any:
        if not entered or not callable(model) or isinstance(model, torch.nn.Module):
            return compile_(model, **options)
        return _later(model, options, compile_)

    finder = _Submodules(stand_in)
    sys.modules[COMPILER] = stand_in
    sys.meta_path.insert(0, finder)
    torch._dynamo = stand_in
    # Lightning wraps the function it finds here, so it stays, and does nothing once this is left.
    torch.compile = later
    try:
        yield
    finally:
        entered = False
        sys.meta_path.remove(finder)
        _withdraw(stand_in)


class _Compiled(type):
    """Recognises the compiler's modules, without importing the compiler."""

    def __instancecheck__(cls, instance: Any) -> bool:
        real = getattr(sys.modules.get(COMPILER), "OptimizedModule", cls)
        return real is not cls and isinstance(instance, real)


class Optimized(metaclass=_Compiled):
    """Stands for torch._dynamo.OptimizedModule."""


class _Submodules(importlib.abc.MetaPathFinder):
    """Imports the real package before a module of it: torchvision imports one."""

    def __init__(self, stand_in: ModuleType) -> None:
        self._stand_in = stand_in

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return where a module of the compiler's is; None for any other module."""
        if not name.startswith(COMPILER + ".") or sys.modules.get(COMPILER) is not self._stand_in:
            return None
        _withdraw(self._stand_in)
        real = importlib.import_module(COMPILER)
        if name in sys.modules:
            return importlib.machinery.ModuleSpec(name, _Loaded())
        return importlib.machinery.PathFinder.find_spec(name, real.__path__)


class _Loaded(importlib.abc.Loader):
    """Loads a module that the import of the package has loaded already."""

    def create_module(self, spec: Any) -> ModuleType:
        """Return the module that is there."""
        self._spec = sys.modules[spec.name].__spec__
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing, as it has run; restore the spec that the import system replaced."""
        module.__spec__ = self._spec


def _leave(fn: Any = None, *_: Any, **__: Any) -> Any:
    """Keep the compiler away from a function: it is left as it is."""
    if fn is None:
        return _leave
    return fn


def _later(
    function: Callable[..., Any], options: dict[str, Any], compile_: Any
) -> Callable[..., Any]:
    """Return a function that is compiled when it is called."""
    compiled = functools.cache(lambda: compile_(function, **options))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


def _withdraw(stand_in: ModuleType) -> None:
    """Take the stand-in away, so that the next import finds the real module."""
    import torch

    if sys.modules.get(COMPILER) is stand_in:
        del sys.modules[COMPILER]
    if torch.__dict__.get("_dynamo") is stand_in:
        del torch._dynamo


def _real(stand_in: ModuleType, name: str) -> Any:
    """Return the real module's attribute of this name."""
    if name.startswith("__"):
        raise AttributeError(name)
    _withdraw(stand_in)
    return getattr(importlib.import_module(COMPILER), name)
