"""What PNG and JPEG files may contain: both loaders read the same, or both refuse it by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.pipelines import DataConfig, DataError, get_dataset
from fastseg.pipelines.decode import fast_png
from fastseg.pipelines.decode.images import decode_ids, decode_image
from fastseg.pipelines.inspection.check import check_dataset
from fastseg.pipelines.loaders.dali.loader import dali_import_error
from tests.support import dataset_trees as trees
from tests.support.dataset_trees import chunk, png
from tests.support.loader_cases import Open, needs_dali

SIDE = trees.SIDE
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
RGB, GREY, IDS = PIXELS[..., :3], PIXELS[..., 0], PIXELS[..., 0] % 25 + 1
FOLDERS = {"img": "rgb", "semantic": "semantic"}


def config_for(root: Path, loader: str) -> DataConfig:
    return DataConfig(
        dataset="deliver",
        root=root,
        modalities=("img",),
        size=SIDE,
        eval_batch_size=2,
        workers=0,
        loader=loader,
    )


def last_file(root: Path, folder: str) -> Path:
    """A file of the last validation sample, which no loader opens before its batch is due."""
    return max(root.glob(f"{folder}/*/val/*/*_{FOLDERS[folder]}_front.png"))


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str = "", **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    """EXIF with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def tiff(orientation: int) -> bytes:
    """The same as the chunk eXIf holds it."""
    return turned(orientation).removeprefix(b"Exif\0\0")


def adam7(pixels: np.ndarray) -> bytes:
    """The rows of an interlaced PNG."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in (*passes, (0, 1, 1, 2))]
    return b"".join(b"\0" + row.tobytes() for part in parts for row in part)


def spoilt(kind: bytes, data: bytes) -> bytes:
    """The file with another checksum of its first chunk of this kind."""
    place = data.index(kind) - 4
    (length,) = struct.unpack_from(">I", data, place)
    end = place + 8 + length
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


TEXT = chunk(b"tEXt", b"a\0b")
READ: dict[str, tuple[str, bytes, np.ndarray]] = {
    "grey": ("img", png(GREY), GREY),
    "grey and alpha": ("img", png(PIXELS[..., :2], 4), GREY),
    "alpha": ("img", png(PIXELS, 6), RGB),
    "one transparent colour": ("img", png(RGB, before=[chunk(b"tRNS", b"\0\1\0\2\0\3")]), RGB),
    "gamma": ("img", png(RGB, before=[chunk(b"gAMA", struct.pack(">I", 22222))]), RGB),
    "background": ("img", png(PIXELS, 6, before=[chunk(b"bKGD", b"\0\1\0\2\0\3")]), RGB),
    "interlaced": ("img", png(RGB, rows=adam7(RGB), interlaced=True), RGB),
    "animated": (
        "img",
        encoded(RGB, save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        RGB,
    ),
    "upright": ("img", png(RGB, after=[chunk(b"eXIf", tiff(1))]), RGB),
    "unreadable EXIF": ("img", png(RGB, before=[chunk(b"eXIf", b"garbage")]), RGB),
    "palette": ("img", encoded(GREY, mode="P"), GREY),
    "bytes behind the end": ("img", png(RGB) + b"more", RGB),
    "label in red": ("semantic", png(np.dstack([IDS, PIXELS[..., 1:3]])), IDS),
    "label in grey, transparent": ("semantic", png(np.dstack([IDS, GREY]), 4), IDS),
    "label with a transparent id": ("semantic", png(IDS, before=[chunk(b"tRNS", b"\0\3")]), IDS),
}  # fmt: skip


@needs_dali
@pytest.mark.parametrize("case", READ)
def test_both_loaders_read_the_same_pixels(
    deliver_tree: Path, open_loader: Open, case: str
) -> None:
    folder, content, pixels = READ[case]
    last_file(deliver_tree, folder).write_bytes(content)
    ours, theirs = (
        list(open_loader(config_for(deliver_tree, name), train=False).batches())[-1]
        for name in ("torch", "dali")
    )
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)
    if folder == "semantic":
        np.testing.assert_array_equal(ours.labels[-1], pixels - 1)
    else:
        (img,) = get_dataset("deliver").select(["img"])
        shown = ours.images[0, -1].permute(1, 2, 0).double().numpy() * img.std + img.mean
        np.testing.assert_allclose(
            shown * 255, np.broadcast_to(pixels.reshape(SIDE, SIDE, -1), shown.shape), atol=1e-3
        )


@needs_dali
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"progressive": True}, {"quality": 40}])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["colour", "grey"])
def test_both_loaders_read_the_same_jpeg(
    deliver_tree: Path, open_loader: Open, pixels: np.ndarray, options: dict[str, object]
) -> None:
    last_file(deliver_tree, "img").write_bytes(encoded(pixels, "JPEG", exif=turned(1), **options))
    ours, theirs = (
        list(open_loader(config_for(deliver_tree, name), train=False).batches())[-1]
        for name in ("torch", "dali")
    )
    assert torch.equal(ours.images, theirs.images)


LONG = png(np.tile(RGB, (4, 4, 1)))
REFUSED: dict[str, tuple[str, bytes, str]] = {
    **{
        f"{kind} turned by {turn}": (folder, content(turn), f"EXIF orientation {turn}.*exiftool")
        for turn in (3, 6)
        for kind, folder, content in (
            ("jpeg", "img", lambda turn: encoded(RGB, "JPEG", exif=turned(turn))),
            ("png", "img", lambda turn: png(RGB, before=[chunk(b"eXIf", tiff(turn))])),
            ("png late", "img", lambda turn: png(RGB, after=[chunk(b"eXIf", tiff(turn))])),
            ("label", "semantic", lambda turn: png(IDS, after=[chunk(b"eXIf", tiff(turn))])),
        )
    },
    "pixels checksum": ("img", spoilt(b"IDAT", png(RGB)), "checksum of chunk IDAT is wrong"),
    "label checksum": ("semantic", spoilt(b"IDAT", png(IDS)), "checksum of chunk IDAT is wrong"),
    "end checksum": ("img", spoilt(b"IEND", png(RGB)), "checksum of chunk IEND is wrong"),
    "late text": ("img", spoilt(b"tEXt", png(RGB, after=[TEXT])), "checksum of chunk tEXt"),
    "critical chunk": ("img", png(RGB, before=[chunk(b"ABCD", b"")]), "critical chunk ABCD"),
    "two headers": ("img", png(RGB, before=[png(RGB)[8:33]]), "chunk IHDR is not the first"),
    "late palette": ("img", png(GREY, 3, after=[chunk(b"PLTE", bytes(768))]), "PLTE is out of"),
    "no palette": ("img", png(GREY, 3), "chunk PLTE is missing"),
    "no pixels": ("img", png(RGB)[:33] + chunk(b"IEND", b""), "chunk IDAT is missing"),
    "split pixels": (
        "img",
        png(RGB).replace(chunk(b"IEND", b""), TEXT + chunk(b"IDAT", b"") + chunk(b"IEND", b"")),
        "other chunks lie between",
    ),
    "packing": ("img", LONG[:26] + b"\1" + LONG[27:29] + struct.pack(
        ">I", zlib.crc32(LONG[12:26] + b"\1" + LONG[27:29])) + LONG[33:], "standard's form"),
    "bitmap": ("img", encoded(RGB, "BMP"), "is a BMP file; expected PNG or JPEG"),
    "gif": ("img", encoded(GREY, "GIF"), "is a GIF file; expected PNG or JPEG"),
    "webp": ("semantic", encoded(RGB, "WEBP", lossless=True), "is a WEBP file; expected PNG"),
    "print colours": ("img", encoded(RGB, "JPEG", mode="CMYK"), "mode CMYK"),
    "one bit": ("img", encoded(GREY, mode="1"), "1 bits per channel"),
    "label of one bit": ("semantic", encoded(GREY, mode="1"), "1 bits per channel"),
    "label jpeg": ("semantic", encoded(IDS, "JPEG"), "JPEG, which changes the values"),
    "label ids of 16 bits": ("semantic", png(IDS + np.uint16(256)), "ids above 255 do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_both_loaders_and_the_check_refuse_the_same(
    deliver_tree: Path, open_loader: Open, case: str
) -> None:
    folder, content, reason = REFUSED[case]
    path = last_file(deliver_tree, folder)
    path.write_bytes(content)
    (fault,) = check_dataset(get_dataset("deliver"), deliver_tree, progress=False).faults
    messages = [fault.message]
    for loader in ("torch", "dali") if dali_import_error() is None else ("torch",):
        # labels are looked at when the loader opens, for the shapes of the batches
        with pytest.raises(DataError, match=reason) as caught:
            list(open_loader(config_for(deliver_tree, loader), train=False).batches())
        messages.append(str(caught.value))
    assert messages == [fault.message] * len(messages)
    assert str(path) in fault.message


def with_stream(stream: bytes) -> bytes:
    """A file of RGB pixels with this stream in the place of its own, and a sound checksum."""
    whole = png(RGB)
    start, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    return whole[:start] + chunk(b"IDAT", stream) + whole[end:]


STREAM = zlib.compress(b"".join(b"\0" + row.tobytes() for row in RGB))
DEEP = PIXELS.astype(np.uint16) * 251 + 7
OTHERS = {
    "16-bit grey": png(DEEP[..., 0]),
    "16-bit colour": png(DEEP[..., :3]),
    "16-bit alpha": png(DEEP, 6),
    "late pHYs, cut off": png(RGB, after=[chunk(b"pHYs", b"\0\1")]),
    "no rows": with_stream(b""),
    "half of the rows": with_stream(STREAM[: len(STREAM) // 2]),
    "no checksum of the stream": with_stream(STREAM[:-4]),
    "wrong checksum of the stream": with_stream(STREAM[:-1] + bytes([STREAM[-1] ^ 1])),
    "a byte behind the stream": with_stream(STREAM + b"\0"),
    "no filter 9": png(RGB, rows=b"".join(b"\x09" + row.tobytes() for row in RGB)),
    "a row too few": png(RGB, rows=b"".join(b"\0" + row.tobytes() for row in RGB[1:])),
    "a row too many": png(RGB, rows=b"".join(b"\0" + row.tobytes() for row in (*RGB, RGB[0]))),
    **{
        f"bit {bit} of byte {place}": with_stream(
            STREAM[:place] + bytes([STREAM[place] ^ 1 << bit]) + STREAM[place + 1 :]
        )
        for bit in (0, 5)
        for place in (0, 1, 2, 40, len(STREAM) // 3, len(STREAM) - 6)
    },
}
FAST = {"grey", "alpha", "gamma", "label in red", "16-bit grey", "16-bit colour", "16-bit alpha"}
"""Files that imagecodecs is to decode, among others."""


def outcomes(data: bytes) -> list[np.ndarray | str]:
    """Pixels, or the words of the refusal, by every way of reading a file."""
    found: list[np.ndarray | str] = []
    for bits in ((8,), (16,), (8, 16)):
        try:
            found.append(decode_image(data, Path("x.png"), bits=bits))
        except DataError as error:
            found.append(str(error))
    for red_alone in (True, False):
        try:
            found.append(decode_ids(data, Path("x.png"), red_alone=red_alone))
        except DataError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("case", [*READ, *REFUSED, *OTHERS])
def test_imagecodecs_changes_no_pixel_and_no_refusal(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imagecodecs")
    data = OTHERS[case] if case in OTHERS else (READ.get(case) or REFUSED[case])[1]
    decode, decoded = fast_png.decoder(), list[np.ndarray]()
    assert decode is not None

    def spy(content: bytes) -> np.ndarray:
        decoded.append(decode(content))
        return decoded[-1]

    monkeypatch.setattr(fast_png, "decoder", lambda: spy)
    with_it = outcomes(data)
    assert decoded or case not in FAST
    monkeypatch.setattr(fast_png, "decoder", lambda: None)
    for ours, pillows in zip(with_it, outcomes(data), strict=True):
        assert type(ours) is type(pillows)
        np.testing.assert_array_equal(ours, pillows)
        if isinstance(pillows, np.ndarray):
            assert isinstance(ours, np.ndarray)
            assert ours.dtype == pillows.dtype
