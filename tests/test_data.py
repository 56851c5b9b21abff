"""Files that the tests write themselves come back as they were; damaged ones are named in one line."""

import gzip
import hashlib
import itertools
import json
import math
import shutil
import struct
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyro_equivariance as pe
from pyro_equivariance import data
from pyro_equivariance.data import ImageData, check_square, load, split, synthetic, vortices
from pyro_equivariance.errors import DataError, OptionError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
MNIST = Path(__file__).parents[1].parent / "shared" / "data" / "mnist"


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, part="train", images=IMAGES, labels=LABELS, dot="-", end=""):
    folder.mkdir(exist_ok=True)
    pack = gzip.compress if end == ".gz" else bytes
    (folder / f"{part}-images{dot}idx3-ubyte{end}").write_bytes(pack(idx_bytes(images)))
    (folder / f"{part}-labels{dot}idx1-ubyte{end}").write_bytes(pack(idx_bytes(labels)))
    return folder


def write_npz(folder, **arrays):
    path = folder / "letters.npz"
    np.savez(path, **({"images": IMAGES, "labels": LABELS} | arrays))
    return path


def assert_is(loaded, images, labels):
    assert loaded.images.dtype == torch.float32 and loaded.labels.dtype == torch.int64
    np.testing.assert_array_equal(loaded.images.numpy(), images)
    np.testing.assert_array_equal(loaded.labels.numpy(), labels)


def scaled(images):
    return (images.astype(np.float32) / np.float32(255))[:, None]


def test_digits():
    digits = load("digits")
    assert digits.images.shape == (1797, 1, 8, 8) and digits.classes == 10 and len(digits) == 1797
    assert digits.labels.unique().tolist() == list(range(10))
    assert (digits.images * 16).frac().abs().max() == 0 and digits.images.max() == 1


def test_digits_without_scikit_learn_say_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError) as caught:
        load("digits")
    assert "pyro-equivariance[data]" in caught.value.__notes__[0]


class Server(ThreadingHTTPServer):
    """Serves a folder on this machine; ``failures`` requests get a 503 first, and both of ``meeting`` wait."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), lambda *a: Handler(*a, directory=folder))
        self.requested, self.failures, self.meeting = [], 0, None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requested.append(self.path)
        self.server.failures -= 1
        if self.server.failures >= 0:
            return self.send_error(503)
        if self.server.meeting:
            self.server.meeting.wait(30)
        super().do_GET()

    def copyfile(self, source, outputfile):
        for part in iter(lambda: source.read(40), b""):
            outputfile.write(part)
            time.sleep(0.01 if self.server.meeting else 0)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Tiny files under MNIST's name, their checksums in place of the real ones, and a cache folder beside them."""
    folder = tmp_path / "served" / "mnist"
    folder.mkdir(parents=True)
    write_idx(folder, "train", end=".gz")
    write_idx(folder, "t10k", IMAGES[:2], LABELS[1:3], end=".gz")
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(data, "CHECKSUMS", {"mnist": sums})
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    with Server(tmp_path / "served") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("PYRO_EQUIVARIANCE_DATA_URL", f"{server.url}/")
        monkeypatch.setenv("PYRO_EQUIVARIANCE_DATA_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.shutdown()


def assert_is_mnist(loaded):
    assert_is(loaded, scaled(np.r_[IMAGES, IMAGES[:2]]), np.r_[LABELS, LABELS[1:3]])
    assert (loaded.name, loaded.classes) == ("mnist", 3)


def test_a_download_is_announced_once_and_kept(server, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr("pooch.utils.LOGGER.handlers", [caplog.handler])
    assert_is_mnist(load("mnist"))
    out, err = capsys.readouterr()
    assert (
        out == caplog.text == ""
        and err == f"Downloading mnist from {server.url}/mnist to {tmp_path / 'cache' / 'mnist'}.\n"
    )
    server.failures = 1000
    assert_is_mnist(load("mnist"))
    assert len(server.requested) == 4 and capsys.readouterr() == ("", "")


def test_files_put_there_by_hand_need_no_server(server, tmp_path):
    shutil.copytree(tmp_path / "served", tmp_path / "cache")
    assert_is_mnist(load("mnist"))
    assert server.requested == []


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_a_file_with_another_checksum_is_replaced(server, tmp_path, name):
    shutil.copytree(tmp_path / "served", tmp_path / "cache")
    (tmp_path / "cache" / "mnist" / name).write_bytes(gzip.compress(idx_bytes(LABELS)))
    assert_is_mnist(load("mnist"))
    assert server.requested == [f"/mnist/{name}"]


def test_a_file_without_a_checksum_is_not_read(server, tmp_path):
    write_idx(tmp_path / "served" / "mnist", images=IMAGES[::-1])
    shutil.copytree(tmp_path / "served", tmp_path / "cache")
    assert_is_mnist(load("mnist"))


def test_a_server_that_recovers_is_asked_again(server):
    server.failures = 2
    assert_is_mnist(load("mnist"))
    assert len(server.requested) == 6


def wrong_content(server, folder):
    (folder / "served" / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"moved")


def missing_file(server, folder):
    (folder / "served" / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()


def no_server(server, folder):
    server.shutdown()
    server.server_close()


def no_folder(server, folder):
    (folder / "cache").write_bytes(b"")


UNAVAILABLE = {
    "wrong content": ("'t10k-labels-idx1-ubyte.gz' from http.*; its checksum there is wrong", wrong_content),
    "missing file": ("'t10k-labels-idx1-ubyte.gz' from http.*; the server answered 404", missing_file),
    "no server": (r"from http.*; the request failed \(ConnectionError\)", no_server),
    "no folder": ("Not a directory|File exists", no_folder),
}


@pytest.mark.parametrize(("match", "prevent"), UNAVAILABLE.values(), ids=UNAVAILABLE.keys())
def test_what_cannot_be_downloaded_is_named_in_one_line(server, tmp_path, match, prevent):
    prevent(server, tmp_path)
    with pytest.raises(DataError, match=match) as caught:
        load("mnist")
    message = str(caught.value)
    assert "\n" not in message and repr(str(tmp_path / "cache" / "mnist")) in message
    assert all(name in message for name in data.CHECKSUMS["mnist"])


def test_two_processes_download_at_once(server, tmp_path):
    script = (
        "import json, sys; from pyro_equivariance import data; data.CHECKSUMS = json.loads(sys.argv[1]);"
        "print(data.load('mnist'))"
    )
    server.meeting = threading.Barrier(2)
    command = [sys.executable, "-c", script, json.dumps(data.CHECKSUMS)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert (run.returncode, out) == (0, "ImageData('mnist', images=(8, 1, 5, 5), classes=3)\n"), err
    assert len(server.requested) >= 8
    cached = {file.name: file.read_bytes() for file in (tmp_path / "cache" / "mnist").iterdir()}
    assert cached == {file.name: file.read_bytes() for file in (tmp_path / "served" / "mnist").iterdir()}


def test_a_folder_called_mnist_is_read_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "mnist")
    for source in ("./mnist", Path("mnist")):
        assert_is(load(source), scaled(IMAGES), LABELS)


def test_known_servers_and_files():
    assert set(data.SERVERS) == set(data.CHECKSUMS) == {"mnist", "fashion-mnist"}
    files = {f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")}
    assert all(set(sums) == files for sums in data.CHECKSUMS.values())
    assert all(len(bytes.fromhex(md5)) == 16 for sums in data.CHECKSUMS.values() for md5 in sums.values())


def test_a_download_without_pooch_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError) as caught:
        load("fashion-mnist")
    assert "pyro-equivariance[data]" in caught.value.__notes__[0]


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("part", ["train", "t10k"])
def test_idx_round_trip(tmp_path, part, dot, end):
    loaded = load(write_idx(tmp_path / "letters", part, dot=dot, end=end))
    assert_is(loaded, scaled(IMAGES), LABELS)
    assert (loaded.name, loaded.classes) == ("letters", 3)


def test_idx_parts_are_joined(tmp_path):
    write_idx(tmp_path, "train", end=".gz")
    write_idx(tmp_path, "t10k", IMAGES[:2], LABELS[1:3])
    assert_is(load(str(tmp_path)), scaled(np.r_[IMAGES, IMAGES[:2]]), np.r_[LABELS, LABELS[1:3]])


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST's test images are not in ../shared/data/mnist")
def test_real_mnist():
    mnist = load(MNIST)
    assert mnist.images.shape == (10_000, 1, 28, 28) and mnist.classes == 10
    assert mnist.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.images.min() == 0 and mnist.images.max() == 1


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_npz_keeps_floats(tmp_path, kind):
    images = np.linspace(-1, 2, 6 * 3 * 5 * 4).reshape(6, 3, 5, 4).astype(kind)
    loaded = load(write_npz(tmp_path, images=images))
    assert_is(loaded, images.astype(np.float32), LABELS)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint64, ">i2"])
def test_npz_scales_bytes(tmp_path, kind):
    loaded = load(write_npz(tmp_path, labels=LABELS.astype(kind), extra=np.array([None])))
    assert_is(loaded, scaled(IMAGES), LABELS)
    assert loaded.name == "letters" and loaded.images.max() <= 1


def damaged_npz(**arrays):
    return lambda folder: write_npz(folder, **arrays)


def damaged_file(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def truncated_npz(folder):
    path = write_npz(folder)
    path.write_bytes(path.read_bytes()[:-40])
    return path


def garbled_npz(folder):
    path = write_npz(folder)
    path.write_bytes(path.read_bytes().replace(IMAGES[0, 0].tobytes(), bytes(5)))
    return path


def lone_npz(folder):
    np.savez(folder / "lone.npz", pictures=IMAGES, labels=LABELS)
    return folder / "lone.npz"


def damaged_idx(content, name="train-images-idx3-ubyte"):
    def write(folder):
        (write_idx(folder) / name).write_bytes(content)
        return folder

    return write


def without_labels(folder):
    (write_idx(folder) / "train-labels-idx1-ubyte").unlink()
    return folder


def two_sizes(folder):
    write_idx(folder, "train")
    return write_idx(folder, "t10k", IMAGES[:, :4, :4])


WHOLE = idx_bytes(IMAGES)

DAMAGED = {
    "name": ("'imagenet'", lambda folder: "imagenet"),
    "not an image file": (r"a \.npz file", damaged_file("images.csv", b"1,2")),
    "missing npz": ("there is none", lambda folder: folder / "letters.npz"),
    "empty npz": ("not a zip", damaged_file("a.npz", b"")),
    "no npz": ("not a zip", damaged_file("a.npz", b"\x93NUMPY and so on")),
    "truncated npz": ("not a zip.*cut short", truncated_npz),
    "garbled npz": ("reading failed.*CRC", garbled_npz),
    "no images": (r"missing \['images'\]", lone_npz),
    "pickle": ("numeric arrays.*allow_pickle", damaged_npz(images=np.array([None] * 6))),
    "int images": ("uint8 or float.*int64", damaged_npz(images=IMAGES.astype(np.int64))),
    "text images": ("uint8 or float", damaged_npz(images=np.array(["a"] * 6))),
    "ndim": (r"\(N, C, H, W\).*\(6, 25\)", damaged_npz(images=IMAGES.reshape(6, 25))),
    "NaN": ("NaN or inf", damaged_npz(images=np.full((6, 5, 5), np.nan))),
    "too large for float32": ("NaN or inf", damaged_npz(images=np.full((6, 5, 5), 1e300))),
    "float labels": ("integer labels.*float64", damaged_npz(labels=LABELS / 2)),
    "negative label": (r"0\.\.1 for 2 classes; got -1\.\.1", damaged_npz(labels=LABELS.astype(int) - 1)),
    "label count": (r"one label per image.*\(5,\)", damaged_npz(labels=LABELS[:5])),
    "label ndim": (r"one label per image.*\(6, 1\)", damaged_npz(labels=LABELS[:, None])),
    "no data": ("not empty", damaged_npz(images=IMAGES[:0], labels=LABELS[:0])),
    "empty folder": ("none in", lambda folder: folder),
    "lone images": ("both.*only 'train-images-idx3-ubyte'", without_labels),
    "idx counts": (
        "6 images.*5 labels",
        damaged_idx(idx_bytes(LABELS[:5]), "train-labels-idx1-ubyte"),
    ),
    "idx sizes": ("one size", two_sizes),
    "idx axes": ("with 3 axes", damaged_idx(idx_bytes(LABELS))),
    "idx of floats": ("IDX bytes", damaged_idx(b"\0\0\x0d\3" + WHOLE[4:])),
    "idx header": ("IDX bytes", damaged_idx(WHOLE[:10])),
    "idx empty": ("IDX bytes", damaged_idx(b"")),
    "idx short": ("150 values.*got 149", damaged_idx(WHOLE[:-1])),
    "idx long": ("150 values.*got 151", damaged_idx(WHOLE + b"\0")),
    "gzip cut": ("whole IDX file", damaged_idx(gzip.compress(WHOLE)[:-20])),
    "gzip garbled": ("whole IDX file", damaged_idx(gzip.compress(WHOLE)[:10] + b"\xff" * 60)),
}


@pytest.mark.parametrize(("match", "write"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_sources_are_named_in_one_line(tmp_path, match, write):
    with pytest.raises(DataError, match=match) as caught:
        load(write(tmp_path))
    assert "\n" not in str(caught.value)


PIXELS, Y = torch.zeros(3, 1, 2, 2, dtype=torch.float32), torch.tensor([0, 1, 2])

UNUSABLE = {
    "ndim": (r"\(N, C, H, W\)", PIXELS[0], Y, 3),
    "empty": ("not empty", PIXELS[:0], Y[:0], 3),
    "dtype": ("float32.*float64", PIXELS.double(), Y, 3),
    "NaN": ("NaN or inf", PIXELS * torch.nan, Y, 3),
    "length": (r"\(3,\); got \(2,\)", PIXELS, Y[:2], 3),
    "label dtype": ("int64.*float", PIXELS, Y.float(), 3),
    "label high": (r"0\.\.1 for 2 classes; got 0\.\.2", PIXELS, Y, 2),
    "label low": (r"got -1", PIXELS, Y - 1, 3),
}


@pytest.mark.parametrize(("match", "images", "labels", "classes"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_images_are_refused(match, images, labels, classes):
    with pytest.raises(DataError, match=match):
        ImageData("bad", images, labels, classes)


def test_square_images_only():
    check_square(synthetic(2), "C4")
    wide = ImageData("wide", torch.zeros(1, 1, 4, 6, dtype=torch.float32), torch.tensor([0]), 1)
    with pytest.raises(DataError, match="square images for D4.*'wide' has 4 x 6"):
        check_square(wide, "D4")


def numbered(n):
    """Images that carry their own number, so that a part shows which ones it holds."""
    pixels = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1)
    return ImageData("numbered", pixels, torch.arange(n), n)


@pytest.mark.parametrize("test", [None, 7])
def test_split_is_disjoint_and_keeps_pairs(test):
    parts = split(numbered(30), train=10, validation=5, test=test)
    pairs = (parts.train, parts.validation, parts.test)
    assert [len(y) for _, y in pairs] == [10, 5, 15 if test is None else test]
    assert all((x.flatten() == y).all() for x, y in pairs)
    drawn = torch.cat([y for _, y in pairs])
    assert len(drawn.unique()) == len(drawn)


def test_split_follows_its_seed_alone():
    first = split(numbered(30), 10, 5, seed=3).train[1]
    state = torch.get_rng_state()
    again = split(numbered(30), 10, 5, seed=3).train[1]
    assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, split(numbered(30), 10, 5, seed=4).train[1])
    assert not torch.equal(first, torch.arange(10))


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ((25, 5, None), "out of 30; got 25, 5 and 0"),
        ((40, 5, None), "out of 30; got 40, 5 and -15"),
        ((20, 5, 6), "out of 30; got 20, 5 and 6"),
        ((0, 5, 6), "got 0, 5 and 6"),
        ((20, 0, None), "got 20, 0 and 10"),
        ((20, 5, -1), "got 20, 5 and -1"),
    ],
)
def test_split_refuses_sizes_that_do_not_fit(sizes, match):
    with pytest.raises(DataError, match=match):
        split(numbered(30), *sizes)


def test_synthetic_is_a_seeded_sample():
    first, again, other = (synthetic(50, size=9, classes=3, channels=2, seed=s) for s in (0, 0, 1))
    assert first.images.shape == (50, 2, 9, 9) and first.labels.bincount().tolist() == [17, 17, 16]
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    assert first.images.min() >= 0 and first.images.max() <= 1
    assert repr(first) == "ImageData('synthetic', images=(50, 2, 9, 9), classes=3)"


@pytest.mark.parametrize("size", [4, 8, 28])
def test_synthetic_patterns_differ_in_every_pose(size):
    """No class is symmetric, nor a moved copy of another: its 8 poses stay well apart, pixel by pixel."""
    patterns = data._patterns(size, classes=4, channels=1)
    poses = torch.cat([p.rot90(k, (-2, -1)) for p in (patterns, patterns.mT) for k in range(4)])
    distance = torch.cdist(poses.flatten(1), poses.flatten(1)) / size
    assert distance.fill_diagonal_(torch.inf).min() > 0.2


def test_synthetic_samples_share_one_problem():
    train, test = synthetic(200, seed=0), synthetic(200, seed=1)
    centres = torch.stack([train.images[train.labels == c].mean(0) for c in range(4)])
    nearest = torch.cdist(test.images.flatten(1), centres.flatten(1)).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.99


@pytest.mark.parametrize("name", ["size", "classes", "channels"])
def test_synthetic_refuses_sizes_below_one(name):
    with pytest.raises(OptionError, match=f"{name} to be a positive integer; got 0"):
        synthetic(4, **{name: 0})


def test_vortices_are_a_seeded_sample():
    first, again, other = (vortices(20, size=9, count=2, seed=s) for s in (0, 0, 1))
    assert [t.dtype for t in first] == [torch.float32] * 2
    assert first[0].shape == (20, 1, 9, 9) and first[1].shape == (20, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.isclose(a, b).all() for a, b in zip(first, other, strict=True))


def test_vortices_by_hand():
    """One pixel and one component at a time, from the places and strengths that the seed gives."""
    places, strengths = data._draw_vortices(3, 2, torch.Generator().manual_seed(5))
    images, velocities = vortices(3, size=6, count=2, noise=0.0, seed=5)
    for n, row, column in itertools.product(range(3), range(6), range(6)):
        x, y, value = (column + 0.5) / 3 - 1, 1 - (row + 0.5) / 3, 0.0
        for (px, py), strength in zip(places[n].tolist(), strengths[n].tolist(), strict=True):
            value += strength * math.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 0.25**2))
        assert images[n, 0, row, column] == pytest.approx(value, rel=1e-6, abs=1e-6)
    for n in range(3):
        u = np.zeros(2)
        for (px, py), strength in zip(places[n].tolist(), strengths[n].tolist(), strict=True):
            dx, dy = 0 - px, 0 - py
            u += strength / (2 * math.pi) * np.array([-dy, dx]) / (dx**2 + dy**2 + 0.25**2)
        np.testing.assert_allclose(velocities[n].numpy(), u, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [7, 8])
def test_a_turned_image_has_the_turned_velocity(size):
    """The vortices are turned by hand, (x, y) to (-y, x); the image and the velocity by the representations."""
    group = pe.CyclicGroup(4)
    places, strengths = data._draw_vortices(10, 3, torch.Generator().manual_seed(0))
    image, velocity = pe.image(group, (1, size, size)), pe.vector(group)
    upright = data._vorticity(places, strengths, size), data._central_velocity(places, strengths)
    for turns in range(4):
        moved = data._vorticity(places, strengths, size), data._central_velocity(places, strengths)
        torch.testing.assert_close(moved[0], image.act(turns, upright[0]), rtol=0, atol=1e-14)
        assert torch.equal(moved[1], velocity.act(turns, upright[1]))
        places = torch.stack([-places[..., 1], places[..., 0]], -1)


def test_a_mirrored_image_has_the_opposite_of_the_mirrored_velocity():
    group = pe.DihedralGroup(1)
    places, strengths = data._draw_vortices(10, 3, torch.Generator().manual_seed(0))
    mirrored = places * torch.tensor([-1.0, 1.0])
    image = pe.image(group, (1, 8, 8)).act(1, data._vorticity(places, strengths, 8))
    torch.testing.assert_close(data._vorticity(mirrored, strengths, 8), image, rtol=0, atol=1e-14)
    velocity = pe.vector(group).act(1, data._central_velocity(places, strengths))
    torch.testing.assert_close(data._central_velocity(mirrored, strengths), -velocity)


def test_the_law_of_vortices_has_no_direction():
    """Places fill the disc evenly, in angle and area; velocities have mean 0 and a multiple of 1 as covariance."""
    count = 60_000
    places, strengths = data._draw_vortices(count // 3, 3, torch.Generator().manual_seed(0))
    x, y = places.flatten(0, 1).unbind(-1)
    angle, area = torch.atan2(y, x), (x**2 + y**2) / 0.8**2
    assert area.max() <= 1 and abs(area.mean() - 0.5) < 5 / math.sqrt(12 * count)
    for k in (1, 2, 3, 4):
        waves = torch.stack([(k * angle).cos(), (k * angle).sin()])
        assert waves.mean(1).abs().max() < 5 / math.sqrt(2 * count)
    u = data._central_velocity(places, strengths)
    u = u / u.std()
    assert u.mean(0).abs().max() < 5 / math.sqrt(len(u))
    assert (u.T.cov() - torch.eye(2)).abs().max() < 0.06


def test_noise_of_vortices_is_independent_of_them():
    clean, noisy, loud = (vortices(2000, noise=noise) for noise in (0.0, 0.1, 0.2))
    assert torch.equal(clean[0], noisy[0])
    errors = noisy[1] - clean[1]
    torch.testing.assert_close(loud[1] - clean[1], 2 * errors)
    assert errors.std(0).numpy() == pytest.approx([0.1, 0.1], rel=0.08)
    assert torch.cat([errors, clean[1]], 1).T.corrcoef().triu(1).abs().max() < 0.1


@pytest.mark.parametrize(
    "name, value", [("n", 0), ("size", 0), ("count", 1.0), ("noise", -0.1), ("noise", float("nan")), ("noise", "low")]
)
def test_vortices_refuse_unusable_options(name, value):
    with pytest.raises(OptionError, match=f"Expected {name} to be"):
        vortices(**({"n": 4} | {name: value}))
