from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.decode import images
from fastseg.pipelines.decode.by_spec import decode_label, decode_modality
from tests.support import dataset_trees as trees

IMAGE = get_dataset("deliver").modalities[1]


def decode_image(path: Path) -> np.ndarray:
    return decode_modality([path], DELIVER, IMAGE)


DELIVER = get_dataset("deliver")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(0, 26, (6, 7), dtype=np.uint8)


def save(path: Path, image: Image.Image, kind: str = "PNG") -> Path:
    image.save(path, kind)
    return path


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (PIXELS[..., :3], PIXELS[..., :3]),
        (PIXELS, PIXELS[..., :3]),
        (PIXELS[..., 0], PIXELS[..., [0, 0, 0]]),
        (PIXELS[..., :2], PIXELS[..., [0, 0, 0]]),
    ],
    ids=["rgb", "rgba", "grey", "grey-alpha"],
)
def test_images_become_three_channels(
    tmp_path: Path, pixels: np.ndarray, expected: np.ndarray
) -> None:
    image = decode_image(save(tmp_path / "a.png", Image.fromarray(pixels)))
    np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))
    assert image.transpose(1, 2, 0).flags.c_contiguous  # not copied into planes


@pytest.mark.fault("F7")
@pytest.mark.parametrize("kind", ["grey", "rgba", "rgb", "grey-alpha"])
def test_labels_are_read_from_grey_or_red(tmp_path: Path, kind: str) -> None:
    channels = {"grey": [], "rgba": [1, 2, 3], "rgb": [1, 2], "grey-alpha": [3]}[kind]
    pixels = np.dstack([IDS, *(PIXELS[..., c] for c in channels)]).squeeze()
    label = decode_label(save(tmp_path / "a.png", Image.fromarray(pixels)), DELIVER)
    np.testing.assert_array_equal(label, np.where(IDS == 0, 255, IDS - 1))


@pytest.mark.fault("F8")
def test_every_raw_value_is_mapped_or_refused(tmp_path: Path) -> None:
    for raw in range(256):
        path = save(tmp_path / "a.png", Image.fromarray(np.full((2, 2), raw, np.uint8)))
        if raw in range(1, 26) or raw in (0, 255):
            assert (decode_label(path, DELIVER) == (raw - 1 if 1 <= raw <= 25 else 255)).all()
        else:
            with pytest.raises(DataError, match=f"label value {raw} "):
                decode_label(path, DELIVER)


@pytest.mark.fault("F8")
def test_a_strange_label_value_is_explained(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[2, 3] = ids[0, 0] = 200
    path = save(tmp_path / "a.png", Image.fromarray(ids))
    with pytest.raises(DataError) as caught:
        decode_label(path, DELIVER)
    for part in (str(path), "200", "25 classes", "0-25, 255", "2 pixels", "off by one"):
        assert part in str(caught.value)


@pytest.mark.fault("F7")
def test_palette_labels_are_refused_with_a_fix_that_works(tmp_path: Path) -> None:
    palette = Image.fromarray(IDS).convert("P")
    palette.putpalette([c for colour in DELIVER.palette for c in colour])
    path = save(tmp_path / "a.png", palette)
    with pytest.raises(DataError, match=r"palette PNG.*Image\.fromarray"):
        decode_label(path, DELIVER)
    fixed = save(tmp_path / "b.png", Image.fromarray(np.array(Image.open(path))))
    decode_label(fixed, DELIVER)
    assert decode_image(path).shape == (3, 6, 7)  # as a picture it is not ambiguous


@pytest.mark.fault("F7")
def test_sixteen_bits_are_refused_where_eight_are_declared(tmp_path: Path) -> None:
    path = trees.save(tmp_path / "a.png", IDS.astype(np.uint16) * 257)
    with pytest.raises(DataError, match=r"16 bits per channel.*expected 8-bit.*Convert it"):
        decode_label(path, DELIVER)
    for pixels in (IDS, PIXELS[..., :3]):  # PIL opens RGB as 8 bit, without a word
        trees.save(path, pixels.astype(np.uint16) * 257)
        with pytest.raises(DataError, match="16 bits per channel"):
            decode_image(path)


def test_eight_bits_are_refused_where_sixteen_are_declared(tmp_path: Path) -> None:
    path = trees.save(tmp_path / "a.png", PIXELS[..., :3])
    with pytest.raises(DataError, match=r"8 bits per channel.*expected 16-bit.*from its source"):
        images.decode_image(path.read_bytes(), path, bits=(16,))


@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_all_codes_of_sixteen_bits_are_read(tmp_path: Path, kind: str) -> None:
    codes = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = codes if kind == "grey" else np.stack([codes, ~codes, codes.T], axis=-1)
    path = trees.save(tmp_path / "a.png", pixels)
    read = images.decode_image(path.read_bytes(), path, bits=(16,))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, pixels if kind == "rgb" else pixels[..., None].repeat(3, 2))


def test_eight_and_sixteen_bits_are_the_same_fractions(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    path = trees.save(tmp_path / "a.png", ramp)
    read = images.decode_image(path.read_bytes(), path, bits=(8, 16))
    np.testing.assert_array_equal(read[0, :, 0] / 65535, ramp[0] / 255)


def test_a_truncated_sixteen_bit_file_is_named(tmp_path: Path) -> None:
    codes = np.random.default_rng(2).integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    path = trees.save(tmp_path / "torn.png", codes)
    path.write_bytes(path.read_bytes()[:9000] + path.read_bytes()[-12:])
    with pytest.raises(DataError, match=r"torn\.png is damaged"):
        images.decode_image(path.read_bytes(), path, bits=(16,))


def test_jpeg_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.new("RGB", (9, 5), (10, 20, 30)), "JPEG")
    assert decode_image(path).shape == (3, 5, 9)


@pytest.mark.fault("F6")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.7, 0.999])
def test_truncated_files_are_named(tmp_path: Path, keep: float, kind: str) -> None:
    picture = Image.fromarray(np.tile(PIXELS[..., :3], (20, 20, 1)))
    path = save(tmp_path / f"torn.{kind.lower()}", picture, kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=rf"{path.name} is damaged.*fetch this file again"):
        decode_image(path)


def test_damage_inside_the_pixels_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "bad.png", Image.fromarray(np.tile(PIXELS, (20, 20, 1))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.png is damaged"):
        decode_image(path)


@pytest.mark.fault("F6")
@pytest.mark.parametrize("content", [b"<html>not found</html>", bytes(500)], ids=["html", "zeros"])
def test_other_content_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    reason = r"a\.png is damaged or no image \(\d+ bytes; [^<>]*\); fetch"
    with pytest.raises(DataError, match=reason):
        decode_label(path, DELIVER)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.png"):
        decode_image(tmp_path / "none.png")
