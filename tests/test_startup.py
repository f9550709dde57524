"""Starting without the compiler: gone after the import, there for whoever asks; and weights that are the file's."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from asrd import recognizer, startup
from asrd.worker import ENVIRONMENT
from tests import tiny

ROOT = Path(__file__).parents[1]


def run(program: str, **environment: str) -> str:
    """Return what a program prints in a fresh interpreter, after NeMo's chatter."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]


def test_the_import_leaves_the_compiler_out_and_to_whoever_asks_for_it() -> None:
    said = run(
        "import sys, torch\n"
        "from asrd import startup\n"
        "startup.import_nemo()\n"
        "left_out = 'torch._dynamo' not in sys.modules and 'torch._inductor.compile_fx' not in sys.modules\n"
        "from lightning.fabric.wrappers import OptimizedModule\n"
        "layer = torch.nn.Linear(2, 2)\n"
        "before = isinstance(layer, OptimizedModule)\n"
        "compiled = torch.compile(layer, backend='eager')\n"
        "import torch._dynamo\n"
        "same = torch.equal(compiled(torch.ones(1, 2)), layer(torch.ones(1, 2)))\n"
        "print(left_out, before, isinstance(compiled, OptimizedModule), same, torch._dynamo.config is not None)"
    )
    assert said == "True False True True True"


def test_who_asks_for_more_in_the_middle_gets_the_compiler_itself() -> None:
    said = run(
        "import sys, torch\n"
        "from asrd import startup\n"
        "with startup.without_compiler():\n"
        "    stand_in = sys.modules['torch._dynamo']\n"
        "    from torch._dynamo import OptimizedModule, config\n"
        "    real = sys.modules['torch._dynamo']\n"
        "print(OptimizedModule is startup.Optimized, config is real.config, stand_in is not real is torch._dynamo)"
    )
    assert said == "True True True"


def test_who_asks_for_a_module_of_the_compiler_gets_the_one_that_the_compiler_uses() -> None:
    said = run(
        "import sys, torch\n"
        "from asrd import startup\n"
        "with startup.without_compiler():\n"
        "    from torch._dynamo.utils import is_compile_supported\n"
        "    import torch._dynamo.testing\n"
        "real = sys.modules['torch._dynamo']\n"
        "used = real.utils is sys.modules['torch._dynamo.utils'] and real.utils.is_compile_supported\n"
        "gone = not any(type(finder).__module__ == 'asrd.startup' for finder in sys.meta_path)\n"
        "same = torch._dynamo is real and real.config is not None\n"
        "print(used is is_compile_supported, real.testing.__name__, same, gone)"
    )
    assert said == "True torch._dynamo.testing True True"


def test_a_release_that_was_not_tried_is_imported_the_plain_way() -> None:
    said = run(
        "import sys\n"
        "from asrd import startup\n"
        "startup.TRIED['nemo-toolkit'] = '2.'\n"
        "print(startup.import_nemo().ASRModel.__name__, hasattr(sys.modules['torch._dynamo'], 'config'))"
    )
    assert said == "ASRModel True"


def test_a_function_given_to_the_compiler_is_compiled_once_and_when_it_is_called() -> None:
    asked = []

    def compile_(function, **options):
        asked.append(options)
        return lambda value: ("compiled", function(value))

    double = startup._later(lambda value: 2 * value, {"dynamic": True}, compile_)
    assert asked == []
    assert [double(1), double(2)] == [("compiled", 2), ("compiled", 4)]
    assert asked == [{"dynamic": True}]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_restored_model_holds_the_checkpoints_numbers_and_none_of_its_own(family: str, tmp_path: Path) -> None:
    path = tiny.build(family, tmp_path)
    expected = tiny.restore(path).state_dict()
    unpacking: Future[str] = Future()
    (tmp_path / "unpacked").mkdir()
    unpacking.set_result(recognizer._unpack(path, str(tmp_path / "unpacked")))
    found = recognizer._restore(path, unpacking, timestamps_model=False)
    tensors = dict(found.named_parameters()) | dict(found.named_buffers())
    assert {name for name, _ in found.named_parameters()} <= set(expected)
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())


def test_layers_are_initialised_again_afterwards() -> None:
    with pytest.raises(ZeroDivisionError), startup.uninitialised():
        raise ZeroDivisionError
    assert float(torch.nn.Linear(64, 64).weight.detach().abs().max()) <= 1 / 8
    assert float(torch.nn.init.ones_(torch.empty(3)).sum()) == 3.0


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra bench brings it")
def test_what_nemo_imports_on_the_way_reports_to_nobody_and_wakes_for_nothing() -> None:
    threads = "import os, onnxruntime; print(len(os.listdir('/proc/self/task')))"
    assert run(threads, ORT_DISABLE_TELEMETRY="0") != "1", "its telemetry has changed: look at it anew"
    assert run(threads, **ENVIRONMENT) == "1"
