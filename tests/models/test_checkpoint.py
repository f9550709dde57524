"""What a .nemo file says of itself, against what NeMo says of it; and files that lie, break off or
attack."""

from __future__ import annotations

import collections
import gzip
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from asrd.errors import ModelError
from asrd.models import checkpoint, unpickler
from tests.fakes import tiny

CTC = {
    "target": "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE",
    "sample_rate": 16000,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that builds a tiny model of a family, once."""
    folder = tmp_path_factory.mktemp("built")
    return lambda family: (
        path if (path := folder / f"{family}.nemo").exists() else tiny.build(family, folder)
    )


@pytest.fixture(scope="module")
def ctc(built: Callable[[str], Path]) -> Path:
    return built("ctc")


def archive(path: Path, members: dict[str, bytes], mode: str = "w:") -> Path:
    """Write a tar of members by name."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def members_of(path: Path) -> dict[str, bytes]:
    """Return the members of a tar by name, without the leading "./"."""
    with tarfile.open(path) as tar:
        files = [member for member in tar if member.isfile()]
        return {m.name.removeprefix("./"): tar.extractfile(m).read() for m in files}  # type: ignore[union-attr]


def with_weights(
    path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, config: object = CTC
) -> Path:
    """Write a .nemo whose weights are a torch zip around this pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as ckpt:
        ckpt.writestr("model_weights/data.pkl", pickled)
    members = {
        "model_config.yaml": yaml.safe_dump(config).encode(),
        "model_weights.ckpt": content.getvalue(),
    }
    return archive(path, members)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_header_says_what_the_restored_model_is(
    family: str, built: Callable[[str], Path]
) -> None:
    path = built(family)
    header = checkpoint.header(path)
    model = tiny.restore(path)
    state = model.state_dict()
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {
        n: tuple(t.shape) for n, t in state.items()
    }
    assert {name: tensor.dtype for name, tensor in header.tensors.items()} == {
        n: str(t.dtype).removeprefix("torch.") for n, t in state.items()
    }
    assert header.parameters == sum(p.numel() for p in model.parameters())
    assert header.components == {
        name: n
        - (model.log_softmax.mlp.layer0.weight.numel() if name == "log_softmax" else 0)  # tied
        for name, child in model.named_children()
        if (n := sum(p.numel() for p in child.parameters()))
    }
    assert header.target.endswith(type(model).__name__)
    assert (header.sample_rate, header.size, header.hidden_bytes) == (16000, path.stat().st_size, 0)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("ctc", ("ctc", "", (), False)),
        ("ca_rnnt", ("rnnt", "", (), True)),
        ("tdt", ("tdt", "", (), False)),
        ("ca_hybrid", ("hybrid", "", (), True)),
        ("ctc_char", ("ctc", "", (), False)),
        ("rnnt_char", ("rnnt", "", (), False)),
        ("canary1", ("aed", "canary", ("en",), False)),
        ("canary2", ("aed", "canary2", ("en",), False)),
    ],
)
def test_family_prompt_languages_and_streaming_are_told(
    family: str, expected: object, built: Callable[[str], Path]
) -> None:
    header = checkpoint.header(built(family))
    assert (header.family, header.prompt_format, header.languages, header.cache_aware) == expected


def test_a_half_checkpoint_tells_its_dtype(ctc: Path, tmp_path: Path) -> None:
    model = tiny.restore(ctc).half()
    model.save_to(str(tmp_path / "half.nemo"))
    header = checkpoint.header(tmp_path / "half.nemo")
    assert {t.dtype for n, t in header.tensors.items() if not n.endswith("tracked")} == {"float16"}
    assert header.parameters == checkpoint.header(ctc).parameters


def test_a_gzipped_file_reads_the_same_without_its_weights_being_unpacked(
    ctc: Path, tmp_path: Path
) -> None:
    plain = checkpoint.header(ctc)
    members = {f"./{name}": content for name, content in sorted(members_of(ctc).items())}
    zipped = archive(tmp_path / "old.nemo", members, "w:gz")
    assert checkpoint.header(zipped).tensors == plain.tensors
    # Cut behind the description: unpacking any further would fail.
    cut = len(gzip.compress(b"".join(members.values()))) // 2
    (tmp_path / "cut.nemo").write_bytes(zipped.read_bytes()[:cut])
    assert checkpoint.header(tmp_path / "cut.nemo").tensors == plain.tensors


@pytest.mark.parametrize("legacy", [True, False])
def test_other_ways_torch_and_others_wrote_weights(legacy: bool, ctc: Path, tmp_path: Path) -> None:
    import torch

    members, content = members_of(ctc), io.BytesIO()
    state = torch.load(io.BytesIO(members["model_weights.ckpt"]), weights_only=True)
    if legacy:
        torch.save(state, content, _use_new_zipfile_serialization=False)
    else:  # a zip packed again by another program: compressed, its entries in another order
        with (
            zipfile.ZipFile(io.BytesIO(members["model_weights.ckpt"])) as old,
            zipfile.ZipFile(content, "w", 8) as new,
        ):
            for name in reversed(old.namelist()):
                new.writestr(name, old.read(name))
    again = archive(tmp_path / "again.nemo", members | {"model_weights.ckpt": content.getvalue()})
    found, expected = checkpoint.header(again).tensors, checkpoint.header(ctc).tensors
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }


def test_weights_that_share_memory_count_once_and_views_of_one_block_count_each(
    tmp_path: Path,
) -> None:
    import torch

    block, shared = torch.zeros(2, 6), torch.zeros(5)
    state = {"encoder.a": shared, "encoder.b": shared, "encoder.c": block[0], "encoder.d": block[1]}
    content = io.BytesIO()
    torch.save(state, content)
    members = {
        "model_config.yaml": yaml.safe_dump(CTC).encode(),
        "model_weights.ckpt": content.getvalue(),
    }
    header = checkpoint.header(archive(tmp_path / "x.nemo", members))
    assert header.parameters == 5 + 6 + 6
    assert list(header.unique) == ["encoder.a", "encoder.c", "encoder.d"]


def test_the_hidden_timestamps_model_is_seen(ctc: Path, tmp_path: Path) -> None:
    hidden = {
        "timestamps_asr_model_config.yaml": b"target: x\n",
        "timestamps_asr_model_weights.ckpt": b"x" * 4321,
    }
    path = archive(tmp_path / "canary.nemo", members_of(ctc) | hidden)
    assert checkpoint.header(path).hidden_bytes == 4321


# -- files that are not what they should be
# ---------------------------------------------------------------------------


def refused(path: Path | str) -> ModelError:
    """Return the error of a header, checked to be one sentence and a hint."""
    with pytest.raises(ModelError) as caught:
        checkpoint.header(path)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 66
    return caught.value


def test_a_file_that_is_missing_empty_a_folder_or_no_file(tmp_path: Path) -> None:
    assert "there is no model file" in refused(tmp_path / "none.nemo").message
    (tmp_path / "empty.nemo").touch()
    assert refused(tmp_path / "empty.nemo").message.endswith("is empty")
    assert "is a folder" in refused(tmp_path).message
    assert "there is no model file" in refused(tmp_path / "empty.nemo" / "x.nemo").message
    os.mkfifo(tmp_path / "pipe.nemo")
    assert "not a regular file" in refused(tmp_path / "pipe.nemo").message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(ctc: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.nemo"
    locked.write_bytes(ctc.read_bytes())
    locked.chmod(0)
    assert "no permission" in refused(locked).message


@pytest.mark.parametrize("part", [0.3, 0.6, 0.97])
def test_a_file_cut_short(part: float, ctc: Path, tmp_path: Path) -> None:
    content = ctc.read_bytes()
    (tmp_path / "cut.nemo").write_bytes(content[: int(len(content) * part)])
    assert refused(tmp_path / "cut.nemo").message.endswith("cut.nemo is cut short")


@pytest.mark.parametrize(
    "content", [b"hello", os.urandom(5000), b"RIFF" + bytes(2000), b"\x1f\x8b" + bytes(600)]
)
def test_a_file_that_is_no_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.nemo").write_bytes(content)
    refused(tmp_path / "x.nemo")
    (tmp_path / "x.wav").write_bytes(content)
    assert refused(tmp_path / "x.wav").hint == "a model is a .nemo file"


def test_an_archive_without_config_or_weights_or_with_shards(ctc: Path, tmp_path: Path) -> None:
    members = members_of(ctc)
    for missing in ("model_config.yaml", "model_weights.ckpt"):
        rest = {name: content for name, content in members.items() if name != missing}
        assert missing in refused(archive(tmp_path / "x.nemo", rest)).message
    shards = {"model_config.yaml": members["model_config.yaml"], "model_weights/0.distcp": b"x"}
    assert "in several parts" in refused(archive(tmp_path / "x.nemo", shards)).message


@pytest.mark.parametrize(
    "config", [b"- a\n- b\n", b"a: [", b"\xff\xfe\x00", b"!!python/object/apply:os.getcwd []", b""]
)
def test_a_config_that_is_none(config: bytes, ctc: Path, tmp_path: Path) -> None:
    refused(archive(tmp_path / "x.nemo", members_of(ctc) | {"model_config.yaml": config}))


def test_another_kind_of_model_is_named_with_what_is_supported(ctc: Path, tmp_path: Path) -> None:
    config = b"target: nemo.collections.tts.models.fastpitch.FastPitchModel\n"
    error = refused(archive(tmp_path / "x.nemo", members_of(ctc) | {"model_config.yaml": config}))
    assert "FastPitchModel" in error.message
    assert "EncDecMultiTaskModel" in error.hint
    error = refused(
        archive(
            tmp_path / "x.nemo", members_of(ctc) | {"model_config.yaml": b"sample_rate: 16000\n"}
        )
    )
    assert "target not named" in error.message


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(
    compression: int, tmp_path: Path
) -> None:
    command = f"touch {tmp_path / 'ran'}"
    path = with_weights(
        tmp_path / "x.nemo", pickle.dumps({"encoder.a": Bomb(command)}), compression
    )
    error = refused(path)
    assert "posix.system" in error.message
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Bomb(command)))  # noqa: S301 - the bomb is live
    assert (tmp_path / "ran").exists()


def test_a_bomb_in_front_of_the_old_format_is_refused_too(ctc: Path, tmp_path: Path) -> None:
    command = f"touch {tmp_path / 'ran'}"
    path = archive(
        tmp_path / "x.nemo", members_of(ctc) | {"model_weights.ckpt": pickle.dumps(Bomb(command))}
    )
    assert "posix.system" in refused(path).message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"ctorch\nload\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(S'__globals__'\ntR.",
        b"ccollections\nnamedtuple\n.",
        b"ctorch._utils\n_rebuild_parameter\n}S'__code__'\nNsb0.",  # writes into what a name led to
        b"ccollections\nOrderedDict\n}S'update'\nNsb.",
        b"\x80\x02X\xff\xff\xff\x7fabc",
        b"(" * 100,
        b"",
    ],
)
def test_pickles_that_try_something_else_end_as_an_error(attack: bytes, tmp_path: Path) -> None:
    before = (collections.OrderedDict.update, dict(vars(unpickler.TensorUnpickler)))
    refused(with_weights(tmp_path / "x.nemo", attack))
    assert before == (collections.OrderedDict.update, dict(vars(unpickler.TensorUnpickler)))


def test_a_number_that_asks_for_all_memory_gets_none(ctc: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(members_of(ctc)["model_weights.ckpt"])) as ckpt:
        description = ckpt.read(
            next(name for name in ckpt.namelist() if name.endswith("/data.pkl"))
        )
    assert description.count(b"OrderedDict\nq\x00)") == 1
    # The first object is remembered under the number 2^31 - 1 too.
    description = description.replace(
        b"OrderedDict\nq\x00)", b"OrderedDict\nq\x00r\xff\xff\xff\x7f)"
    )
    path = with_weights(tmp_path / "x.nemo", description)
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        f"from asrd.models import checkpoint; print(checkpoint.header({str(path)!r}).parameters)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(checkpoint.header(ctc).parameters), done.stderr


@pytest.mark.parametrize("state", [{}, {"a": 1}, [1, 2], None, {1: 2}])
def test_weights_without_a_tensor(state: object, tmp_path: Path) -> None:
    refused(with_weights(tmp_path / "x.nemo", pickle.dumps(state)))


def test_nothing_heavy_is_imported(ctc: Path) -> None:
    program = (
        "import sys; from asrd.models import checkpoint, memory_estimate, names\n"
        f"checkpoint.header({str(ctc)!r})\n"
        "print([m for m in ('torch', 'nemo', 'numpy', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
