"""AnomalyCLIP_lib/weights.py: files are read, and nothing in them is executed; damaged ones are named."""

import io
import pickle
import time
import warnings
import zipfile

import generated_weights
import pytest
import torch
from helpers import archive_of

import AnomalyCLIP_lib
from AnomalyCLIP_lib import InputError
from AnomalyCLIP_lib.weights import check_tensors, read_state_dict, read_tensor_file

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def tensors():
    return generated_weights.generate(generated_weights.SMALL | {"vision_layers": 4, "text_layers": 2}, seed=0)


def test_an_archive_in_openais_layout_gives_the_tensors_that_torch_gives(tensors, tmp_path):
    """To the last bit, without running it: half precision, sizes as integers, the causal mask as a plain tensor."""
    sizes = {"input_resolution": 84, "context_length": 77, "vocab_size": 49408}
    sizes = {name: torch.tensor(value) for name, value in sizes.items()}
    mask = {"transformer.resblocks.0.attn_mask": torch.full((77, 77), -torch.inf).triu(1)}
    archive_of(tensors, tmp_path / "archive.pt", sizes | mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(tmp_path / "archive.pt").state_dict()
    found = read_tensor_file(tmp_path / "archive.pt", "weights", "")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    state, from_openai = read_state_dict(tmp_path / "archive.pt")
    assert from_openai and state.keys() == tensors.keys()


class Hostile(torch.nn.Module):
    """Creates a file when it is loaded: torch.from_file with shared=True."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        self.weight = torch.from_file(state[0], shared=True, size=4)


def test_code_in_an_archive_does_not_run(tmp_path):
    victim = tmp_path / "written"
    torch.jit.script(Hostile(str(victim))).save(tmp_path / "hostile.pt")
    with pytest.raises(InputError, match=r"hostile\.pt holds no CLIP ViT"):
        AnomalyCLIP_lib.load(None, tmp_path / "hostile.pt")
    assert not victim.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(tmp_path / "hostile.pt")
    assert victim.exists()  # so it would have


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def archive_with(path, pickled: bytes, compression=zipfile.ZIP_STORED, **parts: bytes) -> None:
    """A TorchScript archive by hand."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"data.pkl": pickled, "constants.pkl": b"", "code/x.py": b"", **parts}.items():
            archive.writestr(f"archive/{name}", content)


@pytest.mark.parametrize("function", [print, eval, open, torch.load, io.FileIO])
def test_a_pickle_in_an_archive_is_not_executed(tmp_path, function, capsys):
    argument = str(tmp_path / "touched") if function is not eval else f"open({str(tmp_path / 'touched')!r}, 'w')"
    archive_with(tmp_path / "a.pt", pickle.dumps(Call(function, argument)))
    with pytest.raises(InputError, match=r"a\.pt is not opened \(it holds more than tensors"):
        read_state_dict(tmp_path / "a.pt")
    assert capsys.readouterr().out == "" and not (tmp_path / "touched").exists()


def nested(depth: int) -> bytes:
    """A module that holds another one twice, and so on: two to the power of `depth` names."""
    cls = b"c__torch__\nM\n"
    pickled = b"\x80\x02" + cls + b")\x81}(X\x01\x00\x00\x00wK\x01ubq\x00"
    for number in range(depth):
        last = b"h" + bytes([number])
        pickled += (
            cls + b")\x81}(X\x01\x00\x00\x00a" + last + b"X\x01\x00\x00\x00b" + last + b"ubq" + bytes([number + 1])
        )
    return pickled + b"."


@pytest.mark.parametrize(
    ("pickled", "compression"),
    [
        (nested(60), zipfile.ZIP_STORED),
        (b"\x80\x02}q\x00h\x00h\x00s.", zipfile.ZIP_STORED),  # a dict that holds itself
        (b"\x80\x02Nr\xff\xff\xff\x7f.", zipfile.ZIP_STORED),  # a memo of two billion places
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x00.", zipfile.ZIP_STORED),
        (b"", zipfile.ZIP_STORED),
        (b"\x80\x02" + b"(" * 100000, zipfile.ZIP_STORED),
        (b"\x80\x02}." + bytes(10**7), zipfile.ZIP_DEFLATED),
    ],
)
def test_hostile_archives_end_quickly(tmp_path, pickled, compression):
    archive_with(tmp_path / "a.pt", pickled, compression)
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        read_state_dict(tmp_path / "a.pt")
    assert "\n" not in str(error.value) and "a.pt" in str(error.value)
    assert time.monotonic() - start < 10  # not for years


@pytest.mark.parametrize("size", ["(2,3)", "(-2,-3)", "(1000000,1000000)"])
def test_tensors_of_an_archive_are_not_larger_than_their_values(tmp_path, size):
    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, Storage) else None

    file, shape = io.BytesIO(), eval(size)
    rebuild = Call(torch._utils._rebuild_tensor_v2, Storage(), 0, shape, (0, 0), False, None)
    Pickler(file, 2).dump({"visual": rebuild})
    archive_with(tmp_path / "a.pt", file.getvalue(), **{"data/0": bytes(16)})
    with pytest.raises(InputError, match=r"a\.pt (cannot be read as weights|holds no CLIP)"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["plain", "archive"])
def test_one_flipped_bit_is_noticed(tensors, tmp_path, kind):
    """torch itself would load other numbers without a word."""
    path = tmp_path / "a.pt"
    if kind == "plain":
        torch.save(tensors, path)
    else:
        archive_of(tensors, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pt cannot be read as weights \([^\n]*(checksum|CRC)[^\n]*\); download"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<title>Not found</title>", "an HTML page"),
        (b"\n<html>", "an HTML page"),
    ],
)
def test_files_that_only_have_the_name_of_weights(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is {what} instead of the file; "):
        read_state_dict(tmp_path / name)


def changed(tensors: dict, name: str, value: object) -> dict:
    return {**tensors, name: value}


WIDTH, GRID = 128, 6


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("visual.conv1.weight", torch.zeros(WIDTH), "has the shape"),
        ("visual.conv1.weight", torch.zeros(WIDTH, 3, 14, 14, dtype=torch.int32), "expected floating point numbers"),
        ("visual.conv1.weight", torch.zeros(0, 3, 14, 14), "has the shape"),
        ("visual.conv1.weight", torch.zeros(WIDTH, 3, 0, 0), "has the shape"),
        ("visual.conv1.weight", torch.zeros(WIDTH, 3, 14, 7), "not square"),
        ("visual.conv1.weight", torch.zeros(1).expand(2**40, 3, 14, 14), "is not a plain tensor"),
        ("visual.conv1.weight", torch.zeros(WIDTH, 3, 14, 14).to_sparse(), "is not a plain tensor"),
        ("visual.conv1.weight", torch.zeros(WIDTH, 3, 14, 14, device="meta"), "is not a plain tensor"),
        ("visual.conv1.weight", None, "is not a tensor but NoneType"),
        ("visual.conv1.weight", 5, "is not a tensor but int"),
        ("positional_embedding", torch.zeros(77, WIDTH, dtype=torch.int64), "expected floating point numbers"),
        ("positional_embedding", torch.full((77, WIDTH), torch.nan), "not finite"),
        ("ln_final.weight", torch.ones(WIDTH, dtype=torch.int64), "expected floating point numbers"),
        ("text_projection", torch.zeros(96), "has the shape"),
        ("text_projection", torch.zeros(WIDTH, 96, dtype=torch.int64), "expected floating point numbers"),
        ("logit_scale", torch.tensor(4), "expected floating point numbers"),
        ("logit_scale", torch.zeros(2), r"logit_scale is \(2,\)"),
        ("token_embedding.weight", torch.zeros(10, WIDTH), "has a vocabulary of 10"),
        (7, torch.zeros(1), "is not a state dict"),
        ("a\nb", torch.zeros(1), r"'a\\nb'"),
    ],
)
def test_state_dicts_that_are_no_clip(tensors, tmp_path, name, value, message):
    torch.save(changed(tensors, name, value), tmp_path / "a.pt")
    with pytest.raises(InputError, match=message) as error:
        AnomalyCLIP_lib.load(None, tmp_path / "a.pt")
    assert "\n" not in str(error.value) and str(tmp_path / "a.pt") in str(error.value)


def test_a_tower_without_blocks(tensors, tmp_path):
    for tower in ("visual.transformer.", "transformer."):
        torch.save({name: value for name, value in tensors.items() if not name.startswith(tower)}, tmp_path / "a.pt")
        with pytest.raises(InputError, match="it has no blocks"):
            AnomalyCLIP_lib.load(None, tmp_path / "a.pt")


def test_plain_tensors_pass():
    check_tensors({"a": torch.zeros(3), "b": torch.ones(2, 2)[:, :1], "c": torch.tensor(3), "d": torch.zeros(0)})
