"""Picture files of every kind: what they hold comes out right, or is refused or announced; never silently wrong."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from salmask.cli.explain_files import pictures_in
from salmask.data import ImageFolder, Reader, TooLargeError, open_data, read_image, read_pixels
from salmask.data.depth import settled
from salmask.data.pictures import upright_size
from salmask.data.rasters import upright

RGB = np.random.default_rng(0).integers(60, 190, (12, 10, 3), dtype=np.uint8)


def stored(path: Path, **options: object) -> list[list[list[int]]]:
    return Reader(**options)(path).permute(1, 2, 0).tolist()  # type: ignore[arg-type]


# Depth


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "colour.png", "colour.tif"])
def test_fewer_bits_in_a_16_bit_file_are_scaled_by_the_highest_value_and_announced(
    tmp_path: Path, bits: int, name: str
) -> None:
    line = np.array([[0, 2**bits // 2, 2**bits - 1]], np.uint16)
    values = np.stack([line] * 3, -1) if name.startswith("colour") else line
    if name.endswith("tif"):
        tifffile.imwrite(tmp_path / name, values, photometric="rgb" if values.ndim == 3 else "minisblack")
    elif values.ndim == 3:
        write_png16(tmp_path / name, values)
    else:
        Image.fromarray(values).save(tmp_path / name)
    with pytest.warns(UserWarning, match=rf"read as {bits} bits.*--depth"):
        assert read_image(tmp_path / name)[:, 0].tolist() == [[0, 128, 255]] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Reader(depth=bits)(tmp_path / name)[0, 0].tolist() == [0, 128, 255]
        dark = Reader(depth=16)(tmp_path / name)[0, 0].tolist()
    assert dark[2] == round((2**bits - 1) / 257)


def test_a_folder_of_16_bit_files_is_read_by_one_depth_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    for name, highest in (("dark", 200), ("dim", 900), ("bright", 4095)):
        values = np.array([[0, 100, highest]], np.uint16)
        if name == "dim":
            tifffile.imwrite(tmp_path / "train" / "a" / "dim.tif", values)
        else:
            Image.fromarray(values).save(tmp_path / "train" / "a" / f"{name}.png")
    with pytest.warns(
        UserWarning, match=r"highest value of 3 16-bit pictures .*: all of them are read as 12 bits"
    ) as said:
        data = ImageFolder(tmp_path, "train")
        assert [data[i].image[0, 0].tolist() for i in range(3)] == [[0, 6, 255], [0, 6, 12], [0, 6, 56]]
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is guessed where it is said, and nothing of 8-bit files
        assert ImageFolder(tmp_path, "train", read=Reader(depth=16))[0].image.max() == 16
    assert settled(Reader(), [tmp_path / "train" / "a" / "dark.png"]) == Reader()  # one file: by its own values
    assert settled(Reader(window=100.0, level=50.0), []) == Reader(window=100.0, level=50.0)


def write_png16(path: Path, values: np.ndarray) -> None:
    """Write 16-bit RGB as the standard says, without any library."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    )


def test_a_depth_that_the_values_exceed_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 5000]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"5000 does not fit into 12 bits.*--depth"):
        Reader(depth=12)(tmp_path / "a.png")


def test_16_bit_colours_keep_their_order(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", np.array([[[65535, 257, 0]]], np.uint16))
    assert stored(tmp_path / "a.png") == [[[255, 1, 0]]]


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.int32])
def test_values_without_a_known_range_need_a_window_and_a_level(tmp_path: Path, kind: type) -> None:
    tifffile.imwrite(tmp_path / "hu.tif", np.array([[-1024, -160, 40, 240, 3000]], kind))
    with pytest.raises(ValueError, match=r"-1024 to 3000.*--window 400 --level 40"):
        read_image(tmp_path / "hu.tif")
    assert Reader(window=400, level=40)(tmp_path / "hu.tif")[0, 0].tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match="window > 0"):
        Reader(window=400)
    with pytest.raises(ValueError, match="window > 0"):
        Reader(window=-1.0, level=0.0)


# Bands


@pytest.mark.parametrize("options", [{}, {"extrasamples": ["unspecified"]}])
def test_a_fourth_band_is_no_transparency(tmp_path: Path, options: dict[str, object]) -> None:
    infrared = np.random.default_rng(1).integers(0, 255, (12, 10, 1), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate([RGB, infrared], 2), photometric="rgb", **options)
    with pytest.warns(UserWarning, match=r"1 more bands that are no transparency.*--bands"):
        assert stored(tmp_path / "a.tif") == RGB.tolist()
    assert stored(tmp_path / "a.tif", bands=(3, 0, 1)) == np.concatenate([infrared, RGB[..., :2]], 2).tolist()
    assert stored(tmp_path / "a.tif", channels=4) == np.concatenate([RGB, infrared], 2).tolist()
    with pytest.raises(ValueError, match="bands 0 to 3"):
        Reader(bands=(0, 1, 4))(tmp_path / "a.tif")


def test_transparency_of_a_tiff_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.full((12, 10, 1), 255, np.uint8)
    alpha[:6] = 0
    Image.fromarray(np.concatenate([RGB, alpha], 2)).save(tmp_path / "a.tif")
    read = read_image(tmp_path / "a.tif").permute(1, 2, 0)
    assert (read[:6] == 255).all()
    assert read[6:].tolist() == RGB[6:].tolist()


@pytest.mark.parametrize("pages", [False, True])
def test_a_classifier_of_many_channels_gets_all_bands(tmp_path: Path, pages: bool) -> None:
    values = np.random.default_rng(1).integers(0, 65535, (13, 8, 9), dtype=np.uint16)
    values[0, 0, 0] = 65535
    if pages:
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    else:
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="separate")
    read = Reader(channels=13)(tmp_path / "a.tif")
    assert read.shape == (13, 8, 9)
    assert read.tolist() == np.round(values / 257).astype(int).tolist()
    if not pages:
        with pytest.raises(ValueError, match=r"13 bands.*reads 3 channels.*--bands"):
            read_image(tmp_path / "a.tif")


def test_one_channel_is_grey(tmp_path: Path) -> None:
    Image.new("RGB", (2, 1), (200, 100, 50)).save(tmp_path / "a.png")
    assert Reader(channels=1)(tmp_path / "a.png").tolist() == [[[124, 124]]]
    Image.new("L", (2, 1), 7).save(tmp_path / "b.png")
    assert Reader(channels=1)(tmp_path / "b.png").tolist() == [[[7, 7]]]


# DICOM


def write_dicom(path: Path, values: np.ndarray, **tags: object) -> None:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Rows, data.Columns, data.SamplesPerPixel = *values.shape, 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PhotometricInterpretation = "MONOCHROME2"
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_dicom_is_shown_in_its_own_window_or_another(tmp_path: Path) -> None:
    values = np.array([[0, 864, 1064, 1264, 4000]], np.uint16)
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    write_dicom(tmp_path / "a.dcm", values, **rescaled, WindowCenter=[40, 400], WindowWidth=[400, 2000])
    assert read_image(tmp_path / "a.dcm")[:, 0].tolist() == [[0, 0, 128, 255, 255]] * 3
    assert Reader(window=8000, level=-1024)(tmp_path / "a.dcm")[0, 0, 0] == 128
    assert upright_size(tmp_path / "a.dcm") == (5, 1)
    write_dicom(tmp_path / "bare.dcm", values)
    assert read_image(tmp_path / "bare.dcm")[0, 0].tolist() == [0, 54, 66, 79, 249]  # of 12 bits stored
    write_dicom(tmp_path / "negative.dcm", values, PhotometricInterpretation="MONOCHROME1")
    assert read_image(tmp_path / "negative.dcm")[0, 0].tolist() == [255, 201, 189, 176, 6]
    write_dicom(tmp_path / "hu.dcm", values, **rescaled)
    with pytest.raises(ValueError, match="--window"):
        read_image(tmp_path / "hu.dcm")


def test_dicom_without_pydicom_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"needs pydicom: pip install 'salmask\[dicom\]'$"):
        read_image(tmp_path / "a.dcm")


# Kinds of files


def test_every_kind_that_pillow_reads_is_in_the_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    kinds = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "jfif": "JPEG", "avif": "AVIF", "webp": "WEBP", "JPE": "JPEG"}
    for suffix, kind in kinds.items():
        Image.new("RGB", (16, 16), (250, 0, 0)).save(folder / f"x.{suffix}", format=kind)
    data = ImageFolder(tmp_path, "train")
    assert len(data) == len(kinds)
    assert all(data[i].image[0].min() > 240 and data[i].image[1:].max() < 12 for i in range(len(data)))


def test_heic_is_read_with_the_extra(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 32), (250, 0, 0)).save(tmp_path / "phone.HEIC", format="HEIF")
    assert read_image(tmp_path / "phone.HEIC").shape == (3, 32, 64)


def test_what_is_not_read_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for label in ("a", "b"):
        folder = tmp_path / "train" / label
        (folder / "more").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "x.png")
        for name in ("phone.HEIC", "drawing.svg", "notes.txt", ".DS_Store", "maps.npy"):
            (folder / name).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"2 \.heic \(needs the extra: pip .*heic.*2 \.svg, 2 folders") as caught:
        assert open_data(str(tmp_path), "train").ids == ["train/a/x.png", "train/b/x.png"]
    assert len(caught) == 1
    assert not any(word in str(caught[0].message) for word in ("txt", "DS_Store", "npy"))


TURNED = (None, None, *(Image.Transpose[name] for name in (
    "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"
)))  # fmt: skip


@pytest.mark.parametrize("kind", ["a.png", "a.webp", "8 bits.tif", "grey.tif", "16 bits.tif", "floats.tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_upright_in_every_orientation(tmp_path: Path, turn: int, kind: str) -> None:
    """Once: Pillow turns some kinds of file itself as it loads them, and others not."""
    picture, path = Image.fromarray(RGB), tmp_path / kind
    picture = picture.convert("L") if kind == "grey.tif" else picture
    if kind.endswith("tif"):
        scaled = {"16 bits.tif": np.uint16(257), "floats.tif": np.float32(1 / 255)}.get(kind, np.uint8(1))
        colour = "minisblack" if kind == "grey.tif" else "rgb"
        tifffile.imwrite(path, np.asarray(picture) * scaled, photometric=colour, extratags=[(274, "H", 1, turn, True)])
    else:
        exif = Image.Exif()
        exif[0x0112] = turn
        picture.save(path, exif=exif, lossless=True)
    expected = np.asarray((picture if turn == 1 else picture.transpose(TURNED[turn])).convert("RGB"))
    reader = Reader(window=1.0, level=0.5) if kind == "floats.tif" else Reader()
    assert reader(path).permute(1, 2, 0).tolist() == expected.tolist()
    assert upright_size(path) == expected.shape[1::-1]


@pytest.mark.parametrize("turn", range(1, 9))
def test_what_opencv_reads_is_upright_once(tmp_path: Path, turn: int) -> None:
    """It turns compressed TIFF files itself; of PNG files it leaves that to us."""
    values = np.arange(6 * 10 * 3, dtype=np.uint16).reshape(6, 10, 3) * 300
    expected = upright(values, turn) // 257
    packed, path, other = tmp_path / "packed.tif", tmp_path / "turned.tif", tmp_path / "turned.png"
    cv2.imwrite(str(packed), values[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    path.write_bytes(_tagged(packed.read_bytes(), turn))
    cv2.imwrite(str(other), values[..., ::-1])
    exif = Image.Exif()
    exif[0x0112] = turn
    content = exif.tobytes()[6:]
    head, rest = other.read_bytes()[:33], other.read_bytes()[33:]
    chunk = b"eXIf" + content
    other.write_bytes(head + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + rest)
    for file in (path, other):
        found = Reader(depth=16)(file).permute(1, 2, 0).numpy()
        assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1, file.name
        assert upright_size(file) == expected.shape[1::-1]


def _tagged(content: bytes, turn: int) -> bytes:
    """Return a little-endian TIFF of one page with an orientation: its directory is written anew at the end."""
    (start,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    entries = [content[start + 2 + 12 * k : start + 14 + 12 * k] for k in range(count)]
    entries = sorted(
        [*entries, struct.pack("<HHIHH", 274, 3, 1, turn, 0)], key=lambda one: struct.unpack("<H", one[:2])
    )
    content += b"\0" * (len(content) % 2)
    directory = struct.pack("<H", count + 1) + b"".join(entries) + bytes(4)
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


def test_exif_that_cannot_be_read_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image.Image) -> Image.Exif:
        raise struct.error("unpack requires a buffer of 4 bytes")

    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", broken)
    with pytest.warns(UserWarning, match="EXIF cannot be read"):
        assert stored(tmp_path / "a.png") == RGB.tolist()


# Sizes, and what is no file


def bomb(path: Path, side: int) -> Path:
    """Write a PNG of side x side grey pixels that takes a thousandth of that on the disk."""
    line = zlib.compressobj(9)
    packed = b"".join(line.compress(bytes(side + 1)) for _ in range(side)) + line.flush()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)),
        (b"IDAT", packed),
        (b"IEND", b""),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    )
    return path


def test_a_large_picture_is_refused_by_its_header_and_never_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / "train" / "a" / "large.png", 14000)
    limit = Image.MAX_IMAGE_PIXELS
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "load", lambda self: pytest.fail("decoded before its size was known"))
        for read in (read_image, read_pixels):
            with pytest.raises(TooLargeError, match=r"14000x14000 pixels, more than the limit.*--max-pixels") as caught:
                read(path)
            assert "broken" not in str(caught.value) and "decoded" not in str(caught.value)
    assert limit == Image.MAX_IMAGE_PIXELS
    Image.new("RGB", (8, 8)).save(path.parent / "small.png")
    with pytest.warns(UserWarning, match=r"1 of 2 .*large\.png.*more than the limit"):
        assert ImageFolder(tmp_path, "train", skip_broken=True).ids == ["train/a/small.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Reader(max_pixels=14000**2, channels=1)(path).shape == (1, 14000, 14000)


def test_small_limits_hold_for_tiff_too(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((8, 9, 5), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(TooLargeError, match="9x8"):
        Reader(max_pixels=71)(tmp_path / "a.tif")


def test_a_pipe_or_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, read_pixels):
        with pytest.raises(ValueError, match="no regular file but a pipe"):
            read(tmp_path / "pipe.png")
        with pytest.raises(ValueError, match="is a folder"):
            read(tmp_path)


def test_a_link_to_nowhere_is_left_out_with_the_broken_ones(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "x.png")
    (folder / "y.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match=r"1 of 2 pictures .*train/a/y\.png"):
        assert ImageFolder(tmp_path, "train", skip_broken=True).ids == ["train/a/x.png"]


def test_the_reader_of_a_data_set_is_the_one_given(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4), (200, 100, 50)).save(folder / "x.png")
    assert torch.equal(
        open_data(str(tmp_path), "train", read=Reader(channels=1))[0].image,
        torch.full((1, 4, 4), 124, dtype=torch.uint8),
    )


def test_names_that_are_no_text_and_links_in_a_circle_stop_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for name in (b"good.png", b"\xff\xfe.png"):
        try:
            Image.fromarray(RGB).save(folder / "x.png")
            (folder / "x.png").rename(folder / os.fsdecode(name))
        except OSError:
            pytest.skip("this file system takes text alone")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    with pytest.warns(UserWarning) as said:
        data = ImageFolder(tmp_path, "train", skip_broken=True)
    assert data.ids == ["train/a/good.png"]
    assert any("1 with a name that is no UTF-8" in str(one.message) for one in said)
    with pytest.warns(UserWarning, match="no UTF-8"):
        assert [path.name for path in pictures_in([folder])] == ["good.png", "loop.png", "pipe.png"]


def test_grey_of_which_0_is_white_is_turned_round_at_any_depth(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    tifffile.imwrite(tmp_path / "16.tif", values, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "8.tif", (values // 257).astype(np.uint8), photometric="miniswhite")
    for name in ("16.tif", "8.tif"):
        assert read_image(tmp_path / name)[0, 0].tolist() == [255, 254, 127, 0]


def test_a_dicom_palette_gives_colours_and_no_indices(tmp_path: Path) -> None:
    colours = {"Red": [0, 65535, 0], "Green": [0, 0, 65535], "Blue": [0, 0, 32896]}
    tags: dict[str, object] = {}
    for name, values in colours.items():
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = np.array(values, np.uint16).tobytes()
    indices = np.array([[0, 1, 2]], np.uint16)
    write_dicom(tmp_path / "p.dcm", indices, PhotometricInterpretation="PALETTE COLOR", **tags)
    assert read_image(tmp_path / "p.dcm")[:, 0].T.tolist() == [[0, 0, 0], [255, 0, 0], [0, 255, 128]]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_that_the_first_frame_of_an_animation_is_read_is_said(tmp_path: Path, name: str) -> None:
    first, second = (Image.new("RGB", (8, 8), (colour, 0, 0)) for colour in (250, 10))
    first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
    with pytest.warns(UserWarning, match="of animations the first frame is read"):
        assert read_image(tmp_path / name)[0, 0, 0] == 250
    first.save(tmp_path / f"one.{name[2:]}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / f"one.{name[2:]}")
