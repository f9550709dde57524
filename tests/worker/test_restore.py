"""Starting without the compiler: gone after the import, there for whoever asks; and weights that
are the file's."""

from __future__ import annotations

import importlib.util
import io
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asrd.engine.process import WORKER_ENVIRONMENT
from asrd.errors import DiskError, ModelError
from asrd.models.checkpoint import WEIGHTS, tensor_locations, unpacked_bytes
from asrd.models.names import SHIPPED
from asrd.models.tensors import TensorLocation
from asrd.worker.loading import construction, nemo_import, restore
from tests.fakes import tiny
from tests.helpers import ROOT


def run(program: str, **environment: str) -> str:
    """Return what a program prints in a fresh interpreter, after NeMo's chatter."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]


def test_the_import_leaves_the_compiler_out_until_it_is_needed() -> None:
    said = run(
        "import sys, torch\n"
        "from asrd.worker.loading import nemo_import\n"
        "nemo_import.import_nemo()\n"
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


def test_more_than_the_stand_in_has_comes_from_the_compiler_itself() -> None:
    said = run(
        "import sys, torch\n"
        "from asrd.worker.loading import nemo_import\n"
        "with nemo_import.without_compiler():\n"
        "    stand_in = sys.modules['torch._dynamo']\n"
        "    from torch._dynamo import OptimizedModule, config\n"
        "    real = sys.modules['torch._dynamo']\n"
        "print(OptimizedModule is nemo_import.Optimized, config is real.config, stand_in is not real is torch._dynamo)"
    )
    assert said == "True True True"


def test_a_module_of_the_compiler_is_the_one_that_the_compiler_uses() -> None:
    said = run(
        "import sys, torch\n"
        "from asrd.worker.loading import nemo_import\n"
        "with nemo_import.without_compiler():\n"
        "    from torch._dynamo.utils import is_compile_supported\n"
        "    import torch._dynamo.testing\n"
        "real = sys.modules['torch._dynamo']\n"
        "used = real.utils is sys.modules['torch._dynamo.utils'] and real.utils.is_compile_supported\n"
        "gone = not any(type(finder).__module__ == 'asrd.worker.loading.nemo_import' for finder in sys.meta_path)\n"
        "same = torch._dynamo is real and real.config is not None\n"
        "print(used is is_compile_supported, real.testing.__name__, same, gone)"
    )
    assert said == "True torch._dynamo.testing True True"


def test_a_release_that_was_not_tried_is_imported_the_plain_way() -> None:
    said = run(
        "import sys\n"
        "from asrd.worker.loading import nemo_import\n"
        "nemo_import.TRIED_RELEASES['nemo-toolkit'] = '2.'\n"
        "print(nemo_import.import_nemo().ASRModel.__name__, hasattr(sys.modules['torch._dynamo'], 'config'))"
    )
    assert said == "ASRModel True"


def test_a_function_given_to_the_compiler_is_compiled_once_and_when_it_is_called() -> None:
    asked = []

    def compile_(function, **options):
        asked.append(options)
        return lambda value: ("compiled", function(value))

    double = nemo_import._later(lambda value: 2 * value, {"dynamic": True}, compile_)
    assert asked == []
    assert [double(1), double(2)] == [("compiled", 2), ("compiled", 4)]
    assert asked == [{"dynamic": True}]


# -- checkpoints
# ------------------------------------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a worker may unpack in."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


class Restored:
    """A model, and what was unpacked for it: name -> bytes."""

    def __init__(self, path: Path) -> None:
        with restore.CheckpointReader(path) as checkpoint:
            checkpoint.prepare()
            self.model = checkpoint.restore()
            self.unpacked = {
                one.name: one.stat().st_size
                for one in checkpoint.folder.rglob("*")
                if one.is_file()
            }
        assert not checkpoint.folder.exists()

    def is_that_of(self, path: Path) -> None:
        """Hold the model against what NeMo restores of a file."""
        expected = tiny.restore(path).state_dict()
        found = self.model.state_dict()
        assert list(found) == list(expected)
        for name, value in found.items():
            assert value.dtype == expected[name].dtype, name
            assert torch.equal(value, expected[name]), name


def rewritten(path: Path, new: Path, mode: str = "w:", **changed: bytes) -> Path:
    """Write an archive anew, with some members' content changed; members keep their order."""
    with tarfile.open(path) as old, tarfile.open(new, mode) as archive:
        for member in old:
            content = old.extractfile(member)
            if content is None:
                archive.addfile(member)
                continue
            data = changed.get(member.name.removeprefix("./").partition(".")[0], content.read())
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return new


def weights_of(path: Path) -> Any:
    with tarfile.open(path) as archive:
        member = next(one for one in archive if one.name.endswith("model_weights.ckpt"))
        content = archive.extractfile(member)
        assert content is not None
        return torch.load(io.BytesIO(content.read()), weights_only=True)


def saved(state: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_restored_model_holds_the_checkpoints_numbers_and_none_of_its_own(
    family: str, folder: Path, scratch: Path
) -> None:
    path = tiny.built(family, folder)
    restored = Restored(path)
    restored.is_that_of(path)
    names = set(weights_of(path))
    assert {name for name, _ in restored.model.named_parameters()} <= names
    tensors = [*restored.model.parameters(), *restored.model.buffers()]
    assert all(bool(torch.isfinite(value).all()) for value in tensors if value.is_floating_point())
    assert "model_config.yaml" in restored.unpacked
    assert WEIGHTS not in restored.unpacked, "the weights are read from where they lie"


def strided(state: Any) -> Any:
    """Return the same numbers, one matrix of them by columns."""
    name = next(
        name
        for name, value in state.items()
        if value.dim() == 2 and value.shape[0] != value.shape[1]
    )
    turned = state[name].T.contiguous().T
    assert not turned.is_contiguous()
    return OrderedDict(state, **{name: turned})


ODD: dict[str, tuple[bool, Callable[[Any], bytes]]] = {
    "old": (False, lambda state: saved(state, _use_new_zipfile_serialization=False)),
    "by columns": (False, lambda state: saved(strided(state))),
    "one block": (True, lambda state: saved(in_one_block(state))),
}
"""Other ways of writing the same numbers; whether they can be read from where they lie."""


def in_one_block(state: Any) -> Any:
    """Return the same numbers, all of one dtype in one storage, and not each at a multiple of
    anything."""
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    block = torch.cat([torch.zeros(1), *(value.reshape(-1) for value in floats.values())])
    edges = itertools.accumulate((value.numel() for value in floats.values()), initial=1)
    parts = {
        name: block[first : first + value.numel()].view(value.shape)
        for (name, value), first in zip(floats.items(), edges, strict=False)
    }
    return OrderedDict((name, parts.get(name, value)) for name, value in state.items())


@pytest.mark.parametrize("way", ODD)
def test_weights_written_another_way_are_the_same(
    way: str, folder: Path, tmp_path: Path, scratch: Path
) -> None:
    path = tiny.built("ctc", folder)
    in_place, write = ODD[way]
    odd = rewritten(path, tmp_path / "odd.nemo", model_weights=write(weights_of(path)))
    restored = Restored(odd)
    restored.is_that_of(path)
    assert (WEIGHTS not in restored.unpacked) == in_place


def test_a_gzipped_checkpoint_is_unpacked(folder: Path, tmp_path: Path, scratch: Path) -> None:
    path = tiny.built("ctc", folder)
    restored = Restored(rewritten(path, tmp_path / "old.nemo", "w:gz"))
    restored.is_that_of(path)
    assert WEIGHTS in restored.unpacked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_become_float32_as_with_nemo(
    dtype: torch.dtype, folder: Path, tmp_path: Path, scratch: Path
) -> None:
    path = tiny.built("tdt", folder)
    cast = OrderedDict(
        (n, v.to(dtype) if v.is_floating_point() else v) for n, v in weights_of(path).items()
    )
    other = rewritten(path, tmp_path / "cast.nemo", model_weights=saved(cast))
    restored = Restored(other)
    restored.is_that_of(other)
    assert WEIGHTS not in restored.unpacked


def test_a_tensor_that_lies_at_an_odd_byte_is_read_whole(
    folder: Path, tmp_path: Path, scratch: Path
) -> None:
    path = tiny.built("ctc", folder)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(weights_of(path)))) as old,
        zipfile.ZipFile(packed, "w") as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))  # without torch's padding
    odd = rewritten(path, tmp_path / "odd.nemo", model_weights=packed.getvalue())
    with odd.open("rb") as file:
        found = tensor_locations(file, odd)
    assert found is not None
    assert any(place.offset % 4 for place in found.values())
    Restored(odd).is_that_of(path)


@pytest.mark.parametrize("hidden", [True, False])
def test_the_second_model_is_unpacked_and_restored_only_where_it_is_wanted(
    hidden: bool, folder: Path, tmp_path: Path, scratch: Path
) -> None:
    second, path = tiny.built("ctc", folder), tmp_path / "two.nemo"
    shutil.copy(tiny.built("canary2", folder), path)
    with tarfile.open(second) as theirs, tarfile.open(path, "a:") as ours:
        for member in theirs:
            content, name = theirs.extractfile(member), member.name.removeprefix("./")
            if content is not None:
                member.name = f"timestamps_asr_{name}" if name.startswith("model_") else name
                ours.addfile(member, content)
    with restore.CheckpointReader(path, hidden) as checkpoint:
        checkpoint.prepare()
        model = checkpoint.restore()
        assert (checkpoint.folder / "timestamps_asr_model_weights.ckpt").exists() == hidden
    if hidden:
        expected = tiny.restore(second).state_dict()
        found = model.timestamps_asr_model.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    else:
        assert getattr(model, "timestamps_asr_model", None) is None


@pytest.mark.parametrize("missing", [True, False])
def test_names_and_shapes_are_held_against_the_model(
    missing: bool, folder: Path, tmp_path: Path, scratch: Path
) -> None:
    path = tiny.built("ctc", folder)
    state = weights_of(path)
    name = next(name for name in state if name.endswith("linear1.weight"))
    if missing:
        del state[name]
    else:
        state[name] = state[name][1:].clone()
    with pytest.raises(ModelError, match="cannot restore"):
        Restored(rewritten(path, tmp_path / "wrong.nemo", model_weights=saved(state)))


@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_a_file_cut_short_meanwhile_is_one_sentence_or_no_matter(
    moment: str, folder: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tiny.built("ctc", folder)
    path = tmp_path / "short.nemo"
    shutil.copy(good, path)
    read, reads = restore.CheckpointReader._read, itertools.count()

    def cutting(self: restore.CheckpointReader, place: TensorLocation, into: Any) -> None:
        if moment == "while" and next(reads) == 5:
            os.truncate(path, place.offset + 1)
        read(self, place, into)

    monkeypatch.setattr(restore.CheckpointReader, "_read", cutting)
    with restore.CheckpointReader(path) as checkpoint:
        checkpoint.prepare()
        if moment == "before":
            os.truncate(path, path.stat().st_size // 2)
        if moment == "after":
            model = checkpoint.restore()
            os.truncate(path, 0)
        else:
            with pytest.raises(ModelError, match="was cut short"):
                checkpoint.restore()
    if moment == "after":
        expected = tiny.restore(good).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_file_written_to_meanwhile_is_refused_and_one_put_in_its_place_is_no_matter(
    folder: Path, tmp_path: Path, scratch: Path
) -> None:
    good = tiny.built("ctc", folder)
    path = tmp_path / "changing.nemo"
    shutil.copy(good, path)
    with restore.CheckpointReader(path) as checkpoint:
        checkpoint.prepare()
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        with pytest.raises(ModelError, match="was changed while it was read"):
            checkpoint.restore()
    shutil.copy(good, path)
    with restore.CheckpointReader(path) as checkpoint:
        checkpoint.prepare()
        (tmp_path / "new").write_bytes(b"another model")
        (tmp_path / "new").replace(path)
        found = checkpoint.restore().state_dict()
    expected = tiny.restore(good).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_room_is_asked_for_what_is_unpacked_and_no_more(
    folder: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.built("ctc", folder)
    restored = Restored(path)
    need = sum(restored.unpacked.values())
    assert unpacked_bytes(path) == need
    assert need < path.stat().st_size / 4
    room = need
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=room, f_frsize=1))
    Restored(path)
    room = need - 1
    with pytest.raises(DiskError, match="needs"), restore.CheckpointReader(path) as checkpoint:
        checkpoint.prepare()  # and not after the import
    old = rewritten(path, tmp_path / "old.nemo", model_weights=ODD["old"][1](weights_of(path)))
    room = old.stat().st_size - 1
    assert unpacked_bytes(old) == room + 1
    with pytest.raises(DiskError, match="needs"), restore.CheckpointReader(old) as checkpoint:
        checkpoint.prepare()


def test_layers_are_initialised_again_afterwards() -> None:
    with pytest.raises(ZeroDivisionError), construction.uninitialised():
        raise ZeroDivisionError
    assert float(torch.nn.Linear(64, 64).weight.detach().abs().max()) <= 1 / 8
    assert float(torch.nn.init.ones_(torch.empty(3)).sum()) == 3.0


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="the extra bench brings it"
)
def test_what_nemo_imports_on_the_way_sends_no_telemetry_and_has_no_thread() -> None:
    # Its thread comes a moment after the import.
    threads = "import os, time, {}; time.sleep(1); print(len(os.listdir('/proc/self/task')))".format
    alone = run(threads("numpy"))  # which it needs, and which has threads of its own
    assert run(threads("onnxruntime"), ORT_DISABLE_TELEMETRY="0") > alone, (
        "its telemetry has changed: look at it anew"
    )
    assert run(threads("onnxruntime"), **WORKER_ENVIRONMENT) == alone


def test_a_tokenizer_that_nemo_would_fetch_is_refused_in_a_sentence() -> None:
    said = "Unable to instantiate HuggingFace AUTOTOKENIZER for bert-base-cased. Exception: We couldn't connect to 'x'"
    with restore.CheckpointReader(SHIPPED["demo-ctc"]) as opened:
        told = opened._translated(ValueError(said))
    assert isinstance(told, ModelError)
    assert (
        "has a word-piece tokenizer, which NeMo makes from bert-base-cased, and that is not here"
        in str(told)
    )
    assert "hf download bert-base-cased" in told.hint
