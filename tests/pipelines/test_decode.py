from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.decode import check_header, decode_image, decode_label

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
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["grey", "rgba", "rgb", "grey-alpha"])
def test_labels_are_read_from_grey_or_red(tmp_path: Path, kind: str) -> None:
    channels = {"grey": [], "rgba": [1, 2, 3], "rgb": [1, 2], "grey-alpha": [3]}[kind]
    pixels = np.dstack([IDS, *(PIXELS[..., c] for c in channels)]).squeeze()
    label = decode_label(save(tmp_path / "a.png", Image.fromarray(pixels)), DELIVER)
    np.testing.assert_array_equal(label, np.where(IDS == 0, 255, IDS - 1))


def test_every_raw_value_is_mapped_or_refused(tmp_path: Path) -> None:
    for raw in range(256):
        path = save(tmp_path / "a.png", Image.fromarray(np.full((2, 2), raw, np.uint8)))
        if raw in range(1, 26) or raw in (0, 255):
            assert (decode_label(path, DELIVER) == (raw - 1 if 1 <= raw <= 25 else 255)).all()
        else:
            with pytest.raises(DataError, match=f"label value {raw} "):
                decode_label(path, DELIVER)


def test_a_strange_label_value_is_explained(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[2, 3] = ids[0, 0] = 200
    path = save(tmp_path / "a.png", Image.fromarray(ids))
    with pytest.raises(DataError) as caught:
        decode_label(path, DELIVER)
    for part in (str(path), "200", "25 classes", "0-25, 255", "2 pixels", "off by one"):
        assert part in str(caught.value)


def test_palette_labels_are_refused_with_a_fix_that_works(tmp_path: Path) -> None:
    palette = Image.fromarray(IDS).convert("P")
    palette.putpalette([c for colour in DELIVER.palette for c in colour])
    path = save(tmp_path / "a.png", palette)
    with pytest.raises(DataError, match=r"palette PNG.*Image\.fromarray"):
        decode_label(path, DELIVER)
    fixed = save(tmp_path / "b.png", Image.fromarray(np.array(Image.open(path))))
    decode_label(fixed, DELIVER)
    assert decode_image(path).shape == (3, 6, 7)  # as a picture it is not ambiguous


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(IDS.astype(np.uint16) * 257))
    with pytest.raises(DataError, match="16 bits per channel"):
        decode_label(path, DELIVER)
    with pytest.raises(DataError, match="16 bits per channel"):
        decode_image(path)


def test_sixteen_bit_rgb_is_refused_although_pil_opens_it_as_eight(tmp_path: Path) -> None:
    data = bytearray(save(tmp_path / "a.png", Image.fromarray(PIXELS[..., :3])).read_bytes())
    data[24] = 16  # the bit depth field; only the header is looked at
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match="16 bits per channel"):
        check_header(bytes(data), tmp_path / "a.png", label=False)


def test_jpeg_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.new("RGB", (9, 5), (10, 20, 30)), "JPEG")
    assert decode_image(path).shape == (3, 5, 9)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.7, 0.999])
def test_truncated_files_are_named(tmp_path: Path, keep: float) -> None:
    path = save(tmp_path / "torn.png", Image.fromarray(np.tile(PIXELS, (20, 20, 1))))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=r"torn\.png is damaged.*fetch this file again"):
        decode_image(path)


def test_damage_inside_the_pixels_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "bad.png", Image.fromarray(np.tile(PIXELS, (20, 20, 1))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.png is damaged"):
        decode_image(path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", bytes(500)], ids=["html", "zeros"])
def test_other_content_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png is damaged or no image"):
        decode_label(path, DELIVER)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.png"):
        decode_image(tmp_path / "none.png")
