"""The `.npz` of the WebGPU viewer for GaussianImage, github.com/KeKsBoTer/gaussian_image.

Five arrays, half floats as a rule (the viewer reads floats too, then all of them):

    xyz [N, 2]       (x, y) with the picture as [-1, 1]²: pixels are (xyz + 1) / 2 · (width, height)
    scaling [N, 2]   standard deviations, pixels
    rotation [N, 1]  radians from +x towards -y, so the negative of ours
    color [N, 3]     not clamped
    resolution [2]   uint32: width, height

The viewer samples at pixel centers and cuts at 1/255, as we do. It draws no Gaussian with a
standard deviation of 0.3 px or less. The converter that its authors give out writes the width for
both sizes.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instantgi.files import read_bytes, replace_on_success
from instantgi.gaussians import Gaussians, check_size

COLUMNS = {"xyz": 2, "scaling": 2, "rotation": 1, "color": 3}
MAX_GAUSSIANS = 2**24
MAX_SIDE = 2**20  # pixels
SMALLEST_HALF = 2.0**-24


def save_npz(
    path: str | Path,
    gaussians: Gaussians,
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the Gaussians of a picture for the viewer.

    Half floats have 11 bits: a mean is off by up to size / 8192 pixels (0.1 px at 768), a scale or
    color by 1/2048 of itself, a rotation by 0.0005. `dtype=torch.float32` keeps all digits.

    Raises:
        ValueError: if there are not three channels, or a value is not finite in this dtype.
    """
    check_size(height, width)
    if gaussians.colors.shape[1] != 3:
        raise ValueError(
            f"{path}: this format has 3 color channels, got {gaussians.colors.shape[1]}"
        )
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"the viewer reads float16 and float32, got {dtype}")
    scales, rotations = gaussians.detach().to("cpu", torch.float64).scales_rotations
    size = torch.tensor([width, height], dtype=torch.float64)
    fields = {
        "xyz": gaussians.means.detach().cpu().double() / size * 2 - 1,
        "scaling": scales.clamp_min(SMALLEST_HALF),
        "rotation": -rotations[:, None],
        "color": gaussians.colors.detach().cpu(),
    }
    arrays = {name: _finite(path, name, value.to(dtype)).numpy() for name, value in fields.items()}
    arrays["resolution"] = np.array([width, height], dtype=np.uint32)
    with replace_on_success(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _finite(path: str | Path, name: str, value: Tensor) -> Tensor:
    bad = ~value.isfinite().all(-1)
    if bad.any():
        n = int(bad.nonzero()[0, 0])
        raise ValueError(f"{path}: {name} of Gaussian {n} is not finite as {value.dtype}")
    return value


def load_npz(path: str | Path) -> tuple[Gaussians, int, int]:
    """The Gaussians of such a file in float32, and the height and width of their picture.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: if there is no file to read.
        ValueError: if the file is of another kind, or damaged.
    """
    data = read_bytes(path, "file")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = {name: _read(archive, name) for name in (*COLUMNS, "resolution")}
        return _gaussians(arrays)
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on hostile bytes
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: not an .npz of Gaussians, or damaged: {reason}") from None


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array as [N, columns]; no more is unpacked than its header states."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"{name} is missing") from None
    with archive.open(entry) as file:
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"{name} is an array of format version {version}, not (1, 0)")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        columns = COLUMNS.get(name, 1)
        kinds = "f" if name in COLUMNS else "iu"
        if dtype.kind not in kinds:
            raise ValueError(f"{name} has the wrong kind of numbers, {dtype}")
        if shape[1:] != (columns,) and (shape[1:] or columns > 1) or not shape:
            raise ValueError(f"{name} must be [N, {columns}], got {list(shape)}")
        if not 0 <= shape[0] <= MAX_GAUSSIANS:
            raise ValueError(f"{name} is of {shape[0]} Gaussians, more than {MAX_GAUSSIANS}")
        length = shape[0] * columns * dtype.itemsize
        data = file.read(length + 1)  # the end, where the archive's checksum is compared
    if len(data) != length:
        raise ValueError(f"{name} has not the {length} bytes that its header states")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
    return array.reshape(shape[0], columns)


def _gaussians(arrays: dict[str, np.ndarray]) -> tuple[Gaussians, int, int]:
    for name in COLUMNS:
        if len(arrays[name]) != len(arrays["xyz"]):
            count = len(arrays["xyz"])
            raise ValueError(f"{name} is of {len(arrays[name])} Gaussians, xyz of {count}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} has values that are not finite")
    if len(arrays["resolution"]) != 2:
        raise ValueError(f"resolution must be two numbers, got {len(arrays['resolution'])}")
    width, height = arrays["resolution"].ravel().tolist()
    check_size(height, width)
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"a picture of {width}x{height}, wider or higher than {MAX_SIDE}")
    fields = {name: torch.from_numpy(arrays[name].astype(np.float64)) for name in COLUMNS}
    gaussians = Gaussians.from_scales_rotations(
        (fields["xyz"] + 1) / 2 * torch.tensor([width, height]),
        fields["scaling"],
        -fields["rotation"][:, 0],
        fields["color"],
    )
    return gaussians.to(torch.float32), height, width
