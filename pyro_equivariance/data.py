"""Image data, real and synthetic: downloaded or read from disk, checked once, split with a seed.

Images are ``(N, C, H, W)`` in float32 and labels ``(N,)`` in int64. Whatever cannot be used raises a
:class:`~pyro_equivariance.errors.DataError` of one line.

MNIST and the IDX format are those of LeCun, Cortes, Burges (1998) "The MNIST database of handwritten digits";
Fashion-MNIST is of Xiao, Rasul, Vollgraf (2017) arXiv:1708.07747. Downloads are checked by their MD5 checksums and
stay on disk. Two environment variables move them: ``PYRO_EQUIVARIANCE_DATA_DIR``, in place of the user's cache
folder, and ``PYRO_EQUIVARIANCE_DATA_URL``, in place of the public servers; both hold a subfolder per data set.
"""

import gzip
import hashlib
import math
import os
import sys
import zipfile
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .errors import DataError, OptionError

SERVERS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
}
CHECKSUMS = {  # MD5
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}
RETRIES, TIMEOUT = 2, 10  # further attempts per file; seconds without an answer
IMAGES, LABELS = ("images", 3), ("labels", 1)  # the word in an IDX file's name and its number of axes
VORTEX_DISC, VORTEX_CORE = 0.8, 0.25  # radius that holds their centres; width of each, and of its regularisation
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images, checked on construction.

    :param str name: where they come from, for tables and files of results.
    :param Tensor images: ``(N, C, H, W)``, float32; in [0, 1], unless float images came in another scale.
    :param Tensor labels: ``(N,)``, int64, in ``0..classes - 1``.
    :param int classes: the number of classes.
    :raises DataError: see :func:`check_images`.

    >>> ImageData("two dots", torch.ones(2, 1, 1, 1), torch.tensor([0, 1]), classes=2)
    ImageData('two dots', images=(2, 1, 1, 1), classes=2)
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        check_images(self.images, self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"ImageData({self.name!r}, images={tuple(self.images.shape)}, classes={self.classes})"


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint parts of one data set, each a pair ``(images, labels)``; touch the test part once."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def parts(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """``(train, validation, test)``."""
        return self.train, self.validation, self.test

    def __repr__(self) -> str:
        sizes = (len(y) for _, y in self.parts)
        return "Splits(train={}, validation={}, test={})".format(*sizes)


def check_images(images: Tensor, labels: Tensor, classes: int) -> None:
    """Raise unless ``images`` and ``labels`` are a usable labelled data set of ``classes`` classes.

    :param Tensor images: ``(N, C, H, W)``, float32, finite, not empty.
    :param Tensor labels: ``(N,)``, int64, in ``0..classes - 1``.
    :raises DataError: naming what was expected and what was found.

    >>> check_images(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), classes=2)
    """
    if images.ndim != 4 or images.numel() == 0:
        raise DataError(f"Expected images of shape (N, C, H, W), not empty; got {tuple(images.shape)}.")
    if images.dtype != torch.float32:
        raise DataError(f"Expected images in float32; got {images.dtype}. Consider images.float().")
    if not torch.isfinite(images).all():
        raise DataError("Expected finite images; got NaN or inf. Consider dropping or filling those pixels.")
    if labels.shape != images.shape[:1]:
        raise DataError(f"Expected one label per image, shape ({len(images)},); got {tuple(labels.shape)}.")
    if labels.dtype != torch.int64:
        raise DataError(f"Expected labels in int64; got {labels.dtype}. Consider labels.long().")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise DataError(f"Expected labels in 0..{classes - 1} for {classes} classes; got {low}..{high}.")


def check_square(data: ImageData, group_name: str) -> None:
    """Raise unless the images are square, as rotations by 90° need.

    :param ImageData data: the images.
    :param str group_name: the group that acts, for the message.
    :raises DataError: if height and width differ.

    >>> check_square(synthetic(4), "C4")
    """
    height, width = data.images.shape[-2:]
    if height != width:
        raise DataError(
            f"Expected square images for {group_name}, which rotates them by 90°; {data.name!r} has "
            f"{height} x {width}, in (N, C, H, W) order. Consider cropping or padding them."
        )


def load(source: str | PathLike) -> ImageData:
    """Load a labelled image data set.

    :param source: ``"digits"`` (1,797 images of 8 x 8, bundled with scikit-learn); or ``"mnist"`` or
        ``"fashion-mnist"`` (70,000 images of 28 x 28, the 60,000 for training first), downloaded unless whole
        files are on disk; or a ``.npz`` file with ``images``, ``(N, H, W)`` or ``(N, C, H, W)``, uint8 (divided
        by 255) or float (kept as it is), and ``labels``, ``(N,)``; or a folder of IDX files under MNIST's names,
        gzipped or not, with the pairs ``train-`` and ``t10k-`` joined if both are there. A folder called
        ``mnist`` is ``"./mnist"``.
    :returns: the checked :class:`ImageData`; ``classes`` is the largest label plus one.
    :raises DataError: if the source is unknown, missing, damaged, inconsistent or not to be downloaded.
    :raises ImportError: if the package that a named data set needs is not installed.

    >>> load("digits")
    ImageData('digits', images=(1797, 1, 8, 8), classes=10)
    """
    if source == "digits":
        return _load_digits()
    if source in CHECKSUMS:
        return _load_idx(_download(source), source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_idx(path, path.resolve().name)
    if path.suffix == ".npz":
        return _load_npz(path)
    raise DataError(
        f"Expected 'digits', 'mnist', 'fashion-mnist', a .npz file or a folder of IDX files; got {str(source)!r}."
    )


def split(data: ImageData, train: int, validation: int, test: int | None = None, seed: int = 0) -> Splits:
    """Split at random into disjoint parts; the same seed gives the same parts.

    :param ImageData data: the images.
    :param int train: size of the training part.
    :param int validation: size of the part that chooses states and options.
    :param test: size of the test part; ``None`` for all the rest.
    :param int seed: seeds the permutation, and nothing else.
    :raises DataError: if a part is empty or the data are too few.

    >>> split(synthetic(100), train=60, validation=20)
    Splits(train=60, validation=20, test=20)
    """
    rest = len(data) - train - validation
    sizes = (train, validation, rest if test is None else test)
    if min(sizes) < 1 or sum(sizes) > len(data):
        raise DataError(
            f"Expected train, validation and test parts of at least 1 image each, out of {len(data)}; "
            f"got {sizes[0]}, {sizes[1]} and {sizes[2]}. Consider a smaller train size."
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    parts = order[: sum(sizes)].split(sizes)
    return Splits(*((data.images[i], data.labels[i]) for i in parts))


def synthetic(n: int, size: int = 8, classes: int = 4, channels: int = 1, seed: int = 0) -> ImageData:
    """Synthetic images: one smooth asymmetric pattern per class, plus pixel noise of 0.1, clamped to [0, 1].

    The patterns depend on the shape only, so two seeds give two samples of one problem. All classes are
    equally frequent (up to one image), in random order.

    :param int n: number of images.
    :param int size: height and width.
    :param int classes: number of classes.
    :param int channels: number of channels.
    :param int seed: seeds the order and the noise.

    >>> synthetic(12, size=6)
    ImageData('synthetic', images=(12, 1, 6, 6), classes=4)
    """
    _check_positive_integers(n=n, size=size, classes=classes, channels=channels)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(n, generator=generator) % classes
    clean = _patterns(size, classes, channels)[labels]
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32)
    return ImageData("synthetic", (clean + 0.1 * noise).clamp(0, 1), labels, classes)


def _patterns(size: int, classes: int, channels: int) -> Tensor:
    """Random 4 x 4 grids interpolated to ``(classes, channels, size, size)``, each class at full contrast."""
    generator = torch.Generator().manual_seed(91)  # of 400 seeds, the one with all poses furthest apart
    coarse = torch.rand(classes, channels, 4, 4, generator=generator, dtype=torch.float32)
    smooth = interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    low, high = smooth.amin((1, 2, 3), keepdim=True), smooth.amax((1, 2, 3), keepdim=True)
    return (smooth - low) / (high - low).clamp_min(1e-6)


def vortices(n: int, size: int = 8, count: int = 3, noise: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    r"""Images of vorticity, and the velocity that it induces at the centre: a regression whose output is a vector.

    An image shows ``count`` vortices on the centres of the pixels of the square :math:`[-1, 1]^2`; ``x`` points right
    and ``y`` up, so row 0 is the top. Vortex i has a strength :math:`\Gamma_i \sim N(0, 1)` and a place
    :math:`(x_i, y_i)`, uniform in the disc of radius 0.8:

    .. math:: \omega(x, y) = \sum_i \Gamma_i \exp(-((x - x_i)^2 + (y - y_i)^2) / (2 s^2)), \qquad
        u = \sum_i \frac{\Gamma_i}{2 \pi} \frac{(y_i, -x_i)}{x_i^2 + y_i^2 + \varepsilon^2} + \text{noise},

    the law of Biot and Savart in the plane, :math:`(-(y - y_i), x - x_i) / r^2`, at the origin, regularised by
    :math:`\varepsilon`; :math:`s = \varepsilon = 0.25`, the noise :math:`N(0, \text{noise}^2)` in each component.
    Units are arbitrary: an image's peaks are the strengths.

    The law of the data is invariant under rotations; with a quarter turn an image moves exactly by
    ``pe.image(pe.CyclicGroup(4), (1, size, size))`` and its velocity by ``pe.vector(pe.CyclicGroup(4))``.
    Mirrors are no symmetry of it in this sense: vorticity is a pseudoscalar, so the velocity of a mirrored image is
    the opposite of the mirrored velocity.

    :param int n: number of images.
    :param int size: height and width.
    :param int count: vortices per image.
    :param float noise: standard deviation of the noise; the images and vortices of a seed do not depend on it.
    :param int seed: seeds the vortices and the noise.
    :returns: images ``(n, 1, size, size)`` and velocities ``(n, 2)``, :math:`(u_x, u_y)`, in float32.

    >>> images, velocities = vortices(5)
    >>> images.shape, velocities.shape
    (torch.Size([5, 1, 8, 8]), torch.Size([5, 2]))
    """
    _check_positive_integers(n=n, size=size, count=count)
    if not (isinstance(noise, (int, float)) and 0 <= noise < math.inf):
        raise OptionError(f"Expected noise to be a standard deviation, finite and not negative; got {noise!r}.")
    generator = torch.Generator().manual_seed(seed)
    places, strengths = _draw_vortices(n, count, generator)
    errors = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    images, velocities = _vorticity(places, strengths, size), _central_velocity(places, strengths) + noise * errors
    return images.float(), velocities.float()


def _draw_vortices(n: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places ``(n, count, 2)``, uniform in a disc, and strengths ``(n, count)``."""
    area, turn = torch.rand(2, n, count, generator=generator, dtype=torch.float64)
    radius, angle = VORTEX_DISC * area.sqrt(), 2 * math.pi * turn
    places = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return places, torch.randn(n, count, generator=generator, dtype=torch.float64)


def _vorticity(places: Tensor, strengths: Tensor, size: int) -> Tensor:
    """Gaussian vortices on the centres of the pixels, row 0 at the top: ``(n, 1, size, size)``."""
    centres = (2 * torch.arange(size, dtype=torch.float64) + 1 - size) / size
    x, y = (places[..., i, None, None] for i in (0, 1))
    squares = (centres - x) ** 2 + (centres.flip(0)[:, None] - y) ** 2
    bumps = strengths[..., None, None] * (-squares / (2 * VORTEX_CORE**2)).exp()
    return bumps.sum(1, keepdim=True)


def _central_velocity(places: Tensor, strengths: Tensor) -> Tensor:
    """The regularised law of Biot and Savart in the plane, at the origin: ``(n, 2)``."""
    weights = strengths / (2 * math.pi * (places.square().sum(-1) + VORTEX_CORE**2))
    across = torch.stack([places[..., 1], -places[..., 0]], -1)
    return (weights[..., None] * across).sum(1)


def _check_positive_integers(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise OptionError(f"Expected {name} to be a positive integer; got {value!r}.")


def _load_digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        e.add_note('The digits come with scikit-learn: pip install "pyro-equivariance[data]"')
        raise
    digits = load_digits()
    return _as_data("digits", digits.images / 16, digits.target)


def _download(name: str) -> Path:
    """The folder with the four files of a data set, after downloading those that it lacks.

    Whole files only: pooch writes each to a temporary one beside it, compares the checksum and renames it, so
    processes that start together do not meet.
    """
    try:
        import pooch
    except ImportError as e:
        e.add_note('The download of images needs pooch: pip install "pyro-equivariance[data]"')
        raise
    root, base = (os.environ.get(f"PYRO_EQUIVARIANCE_DATA_{what}") for what in ("DIR", "URL"))
    folder = Path(root or pooch.os_cache("pyro_equivariance")).expanduser() / name
    server = f"{base.rstrip('/')}/{name}" if base else SERVERS[name]
    lacking = {file: f"md5:{md5}" for file, md5 in CHECKSUMS[name].items() if not _is_whole(folder / file, md5)}
    if lacking:
        print(f"Downloading {name} from {server} to {folder}.", file=sys.stderr)
    store = pooch.create(folder, f"{server}/", registry=lacking, retry_if_failed=RETRIES)
    http = pooch.HTTPDownloader(timeout=TIMEOUT, stream=False)  # a stream would stay open after an error
    for file in lacking:
        _fetch(store, file, http, pooch.get_logger())
    return folder


def _is_whole(path: Path, md5: str) -> bool:
    try:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5
    except OSError:  # not there, or not readable, which the attempt to replace it reports
        return False


def _fetch(store, file: str, downloader, logger) -> None:
    """Download one file, without pooch's own lines of log."""
    level = logger.level
    logger.setLevel("WARNING")
    try:
        store.fetch(file, downloader=downloader)
    except (OSError, ValueError) as e:
        raise DataError(
            f"Expected to download {file!r} from {store.base_url}; {_why(e)}. Consider putting "
            f"{', '.join(store.registry)} into {str(store.abspath)!r} by hand, or passing a folder that has them."
        ) from e
    finally:
        logger.setLevel(level)


def _why(error: OSError | ValueError) -> str:
    from requests import HTTPError, RequestException  # pooch brings it

    if isinstance(error, HTTPError):
        return f"the server answered {error.response.status_code}"
    if isinstance(error, RequestException):
        return f"the request failed ({type(error).__name__})"
    return "its checksum there is wrong" if isinstance(error, ValueError) else _one_line(error)


def _load_npz(path: Path) -> ImageData:
    if not path.is_file():
        raise DataError(f"Expected a file at {str(path)!r}; there is none.")
    try:
        arrays = _read_npz(path)
    except UNREADABLE as e:
        raise DataError(
            f"Expected {path.name!r} to be a .npz file of numeric arrays; reading failed: {_one_line(e)}."
        ) from e
    missing = {"images", "labels"} - set(arrays)
    if missing:
        raise DataError(f"Expected arrays 'images' and 'labels' in {path.name!r}; missing {sorted(missing)}.")
    return _as_data(path.stem, arrays["images"], arrays["labels"])


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):  # np.load would take it for a pickle
        raise zipfile.BadZipFile("it is not a zip archive, or cut short")
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {key: np.asarray(file[key]) for key in ("images", "labels") if key in file}


def _load_idx(folder: Path, name: str) -> ImageData:
    """Join the pairs that the folder holds; a pair with one file missing is an error."""
    pairs = [_load_pair(folder, part) for part in ("train", "t10k")]
    found = [pair for pair in pairs if pair is not None]
    if not found:
        raise DataError(
            f"Expected IDX files under MNIST's names, as train-images-idx3-ubyte.gz; none in {str(folder)!r}."
        )
    shapes = {images.shape[1:] for images, _ in found}
    if len(shapes) > 1:
        raise DataError(f"Expected the train and t10k images of one size; got {sorted(shapes)}.")
    images, labels = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return _as_data(name, images, labels)


def _load_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray] | None:
    files = [_find_idx(folder, part, *kind) for kind in (IMAGES, LABELS)]
    if files == [None, None]:
        return None
    if None in files:
        lone = next(file for file in files if file)
        raise DataError(f"Expected both an images and a labels file for {part!r}; found only {lone.name!r}.")
    images, labels = _read_idx(files[0], IMAGES[1]), _read_idx(files[1], LABELS[1])
    if len(images) != len(labels):
        raise DataError(
            f"Expected one label per image; {files[0].name!r} holds {len(images)} images and "
            f"{files[1].name!r} {len(labels)} labels."
        )
    return images, labels


def _find_idx(folder: Path, part: str, word: str, axes: int) -> Path | None:
    # the names that are downloaded, whose checksums are known, come first
    names = [f"{part}-{word}{dot}idx{axes}-ubyte{end}" for end in (".gz", "") for dot in "-."]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Read one IDX file of bytes: ``0, 0, 8, axes``, the sizes as big-endian uint32, then the values."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"Expected {path.name!r} to be a whole IDX file; reading failed: {_one_line(e)}.") from e
    start = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < start:
        raise DataError(f"Expected {path.name!r} to start as IDX bytes with {axes} axes do; got {content[:4]!r}.")
    shape = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"Expected {math.prod(shape)} values in {path.name!r}, by its header; got {len(content) - start}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _as_data(name: str, images: np.ndarray, labels: np.ndarray) -> ImageData:
    """Convert arrays as they lie in files: bytes to [0, 1], a channel axis where there is none."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"Expected integer labels in {name!r}; got {labels.dtype}. Consider astype('int64').")
    images = images[:, None] if images.ndim == 3 else images
    pixels = torch.from_numpy(_as_float(name, images))
    classes = int(labels.max(initial=0)) + 1
    if classes > max(len(labels), 1):
        raise DataError(f"Expected labels numbered 0, 1, … in {name!r}; got {classes - 1} among {len(labels)} labels.")
    return ImageData(name, pixels, torch.from_numpy(labels.astype(np.int64)), classes)


def _as_float(name: str, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):  # an overflow becomes inf, which the check reports
            return images.astype(np.float32)
    raise DataError(f"Expected uint8 or float images in {name!r}; got {images.dtype}. Consider astype('uint8').")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
