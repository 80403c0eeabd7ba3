"""Reading folders, tables and archives: pictures of any mode, boxes and masks that move along, and bad input."""

import struct
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from salmask.boxes import boxes_of
from salmask.data import (
    ILSVRC,
    CropFlip,
    ImageFolder,
    OxfordPets,
    Sample,
    ShortSide,
    Squash,
    absolute,
    boxes_in,
    cached,
    clip_boxes,
    collate,
    evaluation_batches,
    has_split,
    ilsvrc_boxes,
    listed,
    move,
    no_boxes,
    open_data,
    read_boxes,
    read_image,
    read_pixels,
    training_batches,
)
from salmask.data.rasters import PictureFile
from salmask.data.resident import resident
from salmask.data.unreadable import UnreadableError

HEADER = "image,class,x0,y0,x1,y1\n"


def paint(path: Path, *, size: tuple[int, int] = (20, 10), colour: tuple[int, int, int] = (200, 100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two 20x10 pictures, one box for three of them, two for the first."""
    for name in ("cat/a.png", "cat/b.jpg", "dog/a.png", "dog/c.JPEG"):
        paint(tmp_path / "train" / name)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "train_boxes.csv").write_text(
        HEADER
        + "train/cat/a.png,cat,0,0,20,10\ntrain/cat/a.png,cat,2,3,7,9\n"
        + "train/cat/b.jpg,cat,1.5,0,4,5\ntrain/dog/a.png,dog,3,3,4,4\n"
    )
    return tmp_path


def marked(width: int = 20, height: int = 10) -> Sample:
    """Return a picture that is white exactly inside of its box and its pixel mask."""
    pixels = torch.zeros(height, width, dtype=torch.uint8)
    pixels[2:8, 4:10] = 1
    return Sample("a.png", (pixels * 255).expand(3, -1, -1).clone(), 0, boxes_of(pixels), pixels)


# Folders


def test_a_folder_gives_sorted_classes_ids_targets_and_boxes(root: Path) -> None:
    data = ImageFolder(root, "train")
    assert data.classes == ["cat", "dog"]
    assert data.ids == ["train/cat/a.png", "train/cat/b.jpg", "train/dog/a.png", "train/dog/c.JPEG"]
    assert data.targets == [0, 0, 1, 1] == [data[i].target for i in range(len(data))]
    assert data[0].boxes.tolist() == [[0, 0, 20, 10], [2, 3, 7, 9]]
    assert data[1].boxes.tolist() == [[1.5, 0, 4, 5]]
    assert data[3].boxes.shape == (0, 4)
    assert data[0].image.dtype == torch.uint8
    assert data[0].image[:, 0, 0].tolist() == [200, 100, 50]
    assert data[0].pixels is None


def test_classes_are_pinned_to_those_of_another_split(root: Path) -> None:
    paint(root / "val" / "dog" / "z.png")
    data = ImageFolder(root, "val", classes=ImageFolder(root, "train").classes)
    assert (data.classes, data.targets) == (["cat", "dog"], [1])
    with pytest.raises(ValueError, match="lacks: dog"):
        ImageFolder(root, "val", classes=["cat"])


def test_boxes_of_another_class_are_no_evidence(root: Path) -> None:
    (root / "train_boxes.csv").write_text(HEADER + "train/cat/a.png,dog,0,0,5,5\ntrain/cat/a.png,cat,1,1,2,2\n")
    assert ImageFolder(root, "train")[0].boxes.tolist() == [[1, 1, 2, 2]]


def test_boxes_are_scaled_from_the_stated_frame(root: Path) -> None:
    header = HEADER.strip() + ",width,height\n"
    (root / "train_boxes.csv").write_text(header + "train/cat/a.png,cat,10,10,100,40,200,50\n")
    assert ImageFolder(root, "train")[0].boxes.tolist() == [[1, 2, 10, 8]]


def test_pixel_masks_are_read_and_give_the_box_where_no_table_does(root: Path) -> None:
    stored = np.zeros((10, 20), np.uint8)
    stored[2:5, 3:9] = 255
    stored[5, 3:9] = 128
    mask = root / "train_masks" / "cat" / "a.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray(stored).save(mask)
    sample = ImageFolder(root, "train")[0]
    assert sample.pixels is not None
    assert sample.pixels.unique().tolist() == [0, 1, 255]
    assert (sample.pixels == 255).sum() == 6
    assert len(sample.boxes) == 2
    (root / "train_boxes.csv").unlink()
    assert ImageFolder(root, "train")[0].boxes.tolist() == [[3, 2, 9, 5]]
    assert ImageFolder(root, "train")[1].pixels is None


def test_a_pixel_mask_is_turned_upright_as_its_own_file_says(root: Path) -> None:
    stored = np.zeros((20, 10), np.uint8)
    stored[3:9, 2:5] = 255
    mask = root / "train_masks" / "cat" / "a.png"
    mask.parent.mkdir(parents=True)
    file = Image.fromarray(stored)
    exif = file.getexif()
    exif[0x0112] = 8
    file.save(mask, exif=exif)
    pixels = ImageFolder(root, "train")[0].pixels
    assert pixels is not None and pixels.tolist() == np.rot90(stored // 255).tolist()


# Pictures of any mode


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 256, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    assert read_image(tmp_path / f"deep{suffix}")[:, 0].tolist() == [[0, 1, 1, 128, 255]] * 3


def test_grey_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    grey.save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[:, 0].tolist() == [[0, 100, 255]] * 3
    Image.new("RGB", (3, 1), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[:, 0, 0].tolist() == [10, 200, 30]
    grey.point(lambda v: 255 * (v > 50), mode="1").save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png")[0, 0].tolist() == [0, 255, 255]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "ink.jpg")[:, 4, 4].tolist()
    assert red > 240
    assert max(green, blue) < 15


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "hole.png")
    assert read_image(tmp_path / "hole.png")[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]
    indexed = Image.new("P", (2, 1), 0)
    indexed.putpalette([255, 0, 0, 0, 0, 0])
    indexed.putpixel((1, 0), 1)
    indexed.save(tmp_path / "indexed.png", transparency=1)
    assert read_image(tmp_path / "indexed.png")[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]


def test_exif_rotation_is_applied_and_boxes_are_those_of_the_upright_picture(root: Path) -> None:
    picture = Image.new("RGB", (20, 10), "white")
    picture.paste("black", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown after a quarter turn clockwise
    picture.save(root / "train" / "cat" / "b.jpg", exif=exif, quality=95)
    (root / "train_boxes.csv").write_text(HEADER + "train/cat/b.jpg,cat,0,0,10,20\n")
    sample = ImageFolder(root, "train")[1]
    assert sample.image.shape == (3, 20, 10)
    assert sample.image[:, :8].max() < 20 < 235 < sample.image[:, 12:].min()
    (root / "train_boxes.csv").write_text(HEADER + "train/cat/b.jpg,cat,0,0,20,10\n")
    with pytest.raises(ValueError, match="10 wide and 20 high"):
        ImageFolder(root, "train")


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f\.tif cannot be decoded as it is.*8 or 16 bits"):
        read_image(tmp_path / "f.tif")


# Bad input


def test_missing_folders_are_named(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(root / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"no split 'test'.*train"):
        ImageFolder(root, "test")
    (root / "val").mkdir()
    with pytest.raises(ValueError, match="no class folders"):
        ImageFolder(root, "val")


def test_a_class_folder_without_pictures_is_named(root: Path) -> None:
    (root / "train" / "empty").mkdir()
    (root / "train" / "empty" / "readme.md").write_text("")
    with pytest.raises(ValueError, match=r"empty has no pictures.*\.md"):
        ImageFolder(root, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x0,y0,x1,y1\n", "expected the header image,class,x0,y0,x1,y1"),
        ("", "an empty file"),
        (HEADER + "train/cat/a.png,cat,0.1,0.2,0.8,1\n", "between 0 and 1, as shares of a picture do: give pixels"),
        (HEADER.strip() + ",width\ntrain/cat/a.png,cat,0,0,9,9,8\n", "expected both of the columns width,height"),
        (HEADER + "train/cat/nope.png,cat,0,0,1,1\n", r"line 2 names train/cat/nope\.png"),
        (HEADER + "train/cat/a.png,cow,0,0,1,1\n", "line 2: unknown class 'cow'"),
        (HEADER + "train/cat/a.png,cat,0,0,5,5\ntrain/cat/a.png,cat,0,0,21,5\n", "line 3: the box .* outside"),
        (HEADER + "train/cat/a.png,cat,-1,0,5,5\n", "line 2: the box .* outside"),
        (HEADER + "train/cat/a.png,cat,3,0,3,5\n", "line 2: expected x0 < x1"),
        (HEADER + "train/cat/a.png,cat,3,5,4,1\n", "line 2: expected x0 < x1 and y0 < y1"),
        (HEADER + "train/cat/a.png,cat,3,x,4,9\n", "line 2, y0: expected a number, got 'x'"),
        (HEADER + "train/cat/a.png,cat,nan,1,4,9\n", "line 2, x0: expected a number"),
        (HEADER + "train/cat/a.png,cat,1,1,4\n", "line 2: expected 6 fields"),
        (HEADER.strip() + ",width,height\ntrain/cat/a.png,cat,0,0,9,9,8,9\n", "line 2: the box .* outside.*8 wide"),
    ],
)
def test_a_bad_box_table_is_refused_by_line(root: Path, text: str, message: str) -> None:
    (root / "train_boxes.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageFolder(root, "train")


def truncate(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_picture_is_named_and_left_out_only_on_request(root: Path) -> None:
    truncate(root / "train" / "cat" / "b.jpg")
    data = ImageFolder(root, "train")
    assert data[0].id == "train/cat/a.png"
    with pytest.raises(ValueError, match=r"cat/b\.jpg cannot be decoded"):
        data[1]
    with pytest.warns(UserWarning, match=r"1 of 4 pictures cannot be read and are left out: train/cat/b\.jpg"):
        whole = ImageFolder(root, "train", skip_broken=True)
    assert whole.ids == ["train/cat/a.png", "train/dog/a.png", "train/dog/c.JPEG"]
    assert whole.targets == [0, 1, 1]
    assert [whole[i].id for i in range(3)] == whole.ids


def test_of_many_pictures_broken_ones_are_passed_over_where_they_are_met(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate(root / "train" / "cat" / "b.jpg")
    monkeypatch.setattr(listed, "LOOKED_AT", 3)
    decoded = Counter[str]()

    def read(path: PictureFile) -> torch.Tensor:
        decoded[str(path)] += 1
        return read_image(path)

    data = ImageFolder(root, "train", skip_broken=True, transform=Squash(8), read=read)
    assert not decoded and len(data) == 4
    with pytest.warns(UserWarning, match=r"passed over, as are all that cannot be .*cat/b\.jpg cannot be decoded"):
        (batch,) = evaluation_batches(data, batch_size=4)
    assert batch.ids == ["train/cat/a.png", "train/dog/a.png", "train/dog/c.JPEG"] and set(decoded.values()) == {1}
    kept = cached(data)
    with pytest.warns(UserWarning, match="passed over"):
        (batch,) = islice(training_batches(kept, batch_size=4, seed=0), 1)
    assert sorted(batch.ids) == ["train/cat/a.png", "train/dog/a.png", "train/dog/a.png", "train/dog/c.JPEG"]
    with pytest.warns(UserWarning, match="passed over"):
        on_device = resident(ImageFolder(root, "train", skip_broken=True), size=8, device=torch.device("cpu"))
    assert on_device.ids == ["train/cat/a.png", "train/dog/a.png", "train/dog/c.JPEG"]
    assert on_device.targets.tolist() == [0, 1, 1] and len(on_device.pictures) == len(on_device.sizes) == 3
    # what is wrong with the truth is never passed over
    mask = root / "train_masks" / "cat" / "a.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    mask.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"train_masks/cat/a\.png") as error:
        ImageFolder(root, "train", skip_broken=True)[0]
    assert not isinstance(error.value, UnreadableError)


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"])
def test_files_that_are_no_pictures_are_named(root: Path, content: bytes) -> None:
    (root / "train" / "cat" / "b.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"cat/b\.jpg cannot be decoded"):
        ImageFolder(root, "train")[1]


def test_nothing_left_after_skipping_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "cat" / "a.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(ValueError, match="none of the 1 pictures"):
        ImageFolder(tmp_path, "train", skip_broken=True)


def test_bad_pixel_masks_are_refused(root: Path) -> None:
    path = root / "train_masks" / "cat" / "a.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.full((10, 20), 7, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"0 \(background\), 255 \(object\), 128 \(ignored\), or of 2 .*\[7\]"):
        read_pixels(path)
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(path)  # neither a mask nor a trimap
    with pytest.raises(ValueError, match=r"got shape \(1, 2\), values \[0, 1\]"):
        read_pixels(path)
    Image.fromarray(np.array([[1, 2, 3]], np.uint8)).save(path)
    assert read_pixels(path).tolist() == [[1, 0, 255]]
    Image.fromarray(np.zeros((10, 19), np.uint8)).save(path)
    with pytest.raises(ValueError, match="20x10; got 19x10"):
        ImageFolder(root, "train")[0]


def test_a_box_table_stands_alone(root: Path) -> None:
    table = read_boxes(root / "train_boxes.csv")
    assert list(table) == ["train/cat/a.png", "train/cat/b.jpg", "train/dog/a.png"]
    rows = table["train/cat/a.png"]
    assert (rows[1].line, rows[1].label, rows[1].box, rows[1].frame) == (3, "cat", (2, 3, 7, 9), None)
    assert boxes_in([], width=5, height=5, source="t").shape == (0, 4)
    with pytest.raises(ValueError, match="t line 2"):
        boxes_in(rows, width=5, height=5, source="t")


# Transforms


def test_a_flip_moves_picture_boxes_and_pixels_exactly() -> None:
    sample = marked()
    flipped = move(sample, v2.RandomHorizontalFlip(1.0), clip=False)
    assert torch.equal(flipped.image, sample.image.flip(-1))
    assert torch.equal(flipped.pixels, sample.pixels.flip(-1))
    assert flipped.boxes.tolist() == [[10, 2, 16, 8]] == boxes_of(flipped.pixels).tolist()
    assert type(flipped.image) is type(flipped.boxes) is torch.Tensor


def test_squash_scales_each_side() -> None:
    out = Squash(40)(marked(20, 10))
    assert out.image.shape == (3, 40, 40)
    assert out.boxes.tolist() == [[8, 8, 20, 32]] == boxes_of(out.pixels).tolist()
    assert out.pixels.unique().tolist() == [0, 1]


def test_squash_interpolates_as_told() -> None:
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sample = Sample("n", noise, 0, no_boxes())
    bilinear, bicubic = Squash(64)(sample), Squash(64, interpolation=InterpolationMode.BICUBIC)(sample)
    picture = Image.fromarray(noise.permute(1, 2, 0).numpy())
    for out, kind in ((bilinear, Image.Resampling.BILINEAR), (bicubic, Image.Resampling.BICUBIC)):
        expected = torch.from_numpy(np.array(picture.resize((64, 64), kind))).permute(2, 0, 1)
        assert (out.image.int() - expected.int()).abs().max() <= 1
    assert not torch.equal(bilinear.image, bicubic.image)
    assert Squash(32)(sample) is sample


def test_short_side_crops_the_centre_and_keeps_boxes_uncut_unless_asked() -> None:
    sample = replace(marked(20, 10), boxes=torch.tensor([[0.0, 0, 20, 10], [0, 0, 4, 10]]))
    out = ShortSide(20)(sample)  # doubled to 40 x 20, then 10 columns cut off on either side
    assert out.image.shape == (3, 20, 20)
    assert out.boxes.tolist() == [[-10, 0, 30, 20], [-10, 0, -2, 20]]
    assert ShortSide(20, clip=True)(sample).boxes.tolist() == [[0, 0, 20, 20]]
    assert boxes_of(out.pixels).tolist() == [[0, 4, 10, 16]]
    assert ShortSide(8, resize=10)(sample).boxes[0].tolist() == [-6, -1, 14, 9]
    with pytest.raises(ValueError, match="resize must be at least size"):
        ShortSide(20, resize=10)


def test_crops_move_everything_together() -> None:
    """The picture is white just where the object is: so must pixels and box be after any crop."""
    sample = marked(40, 30)
    kept = 0
    for seed in range(30):
        torch.manual_seed(seed)
        out = CropFlip(64)(sample)
        assert out.image.shape == (3, 64, 64)
        white = (out.image[0] > 127).byte()
        assert (white != out.pixels).float().mean() < 0.06  # nearest against bilinear: a seam at the border
        assert len(out.boxes) == (1 if len(out.boxes) else 0)
        if len(out.boxes):
            kept += 1
            assert (out.boxes >= 0).all()
            assert (out.boxes <= 64).all()
            if len(boxes_of(out.pixels)):
                assert (out.boxes - boxes_of(out.pixels)).abs().max() <= 64 / 8
    assert 5 < kept < 30  # some crops lose the object, and then its box


@pytest.mark.parametrize("transform", [CropFlip(24), Squash(24), ShortSide(24)])
def test_a_picture_moves_alike_with_and_without_what_is_known_of_it(transform) -> None:
    noise = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    known = replace(marked(40, 30), image=noise)
    for seed in range(5):
        alike = []
        for sample in (known, replace(known, boxes=no_boxes(), pixels=None), replace(known, pixels=None)):
            torch.manual_seed(seed)
            alike.append(transform(sample).image)
        assert torch.equal(alike[0], alike[1]) and torch.equal(alike[0], alike[2])


def test_clip_drops_what_is_lost() -> None:
    boxes = torch.tensor([[-5.0, -5, 5, 5], [10, 0, 12, 5], [3, 3, 20, 4]])
    assert clip_boxes(boxes, width=10, height=8).tolist() == [[0, 0, 5, 5], [3, 3, 10, 4]]
    assert clip_boxes(no_boxes(), width=3, height=3).shape == (0, 4)


def test_collate_stacks_and_scales() -> None:
    batch = collate([marked(), replace(marked(), id="b.png", target=3, boxes=no_boxes(), pixels=None)])
    assert batch.ids == ["a.png", "b.png"]
    assert batch.images.shape == (2, 3, 10, 20)
    assert (batch.images.min(), batch.images.max()) == (0, 1)
    assert batch.targets.tolist() == [0, 3]
    assert [len(boxes) for boxes in batch.boxes] == [1, 0]
    assert batch.pixels[1] is None
    assert torch.equal(batch.pixels[0], marked().pixels)
    with pytest.raises(ValueError, match=r"a\.png is 20x10, a\.png is 10x10; give the data set a transform"):
        collate([marked(20, 10), marked(10, 10)])


# Published layouts

XML = """<annotation><size><width>20</width><height>10</height><depth>3</depth></size>
<object><name>n01</name><bndbox><xmin>2</xmin><ymin>1</ymin><xmax>12</xmax><ymax>6</ymax></bndbox></object>
<object><name>n02</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object>
<object><name>n01</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>22</xmax><ymax>10</ymax></bndbox></object>
</annotation>"""


def test_ilsvrc_boxes_are_those_of_the_synset(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(XML)
    found = ilsvrc_boxes(path, "n01")
    assert found.boxes.tolist() == [[2, 1, 12, 6], [0, 0, 22, 10]]
    assert (found.width, found.height) == (20, 10)
    assert ilsvrc_boxes(path, "n03").boxes.shape == (0, 4)
    assert ilsvrc_boxes(path).names == ["n01", "n02", "n01"]
    path.write_text(XML.replace("<xmin>2<", "<xmin>20<").replace("<xmax>12<", "<xmax>22<"))
    with pytest.raises(ValueError, match=r"a\.xml: the box .* lies outside of its picture, 20 wide and 10 high"):
        ilsvrc_boxes(path, "n01")
    path.write_text(XML.replace("<xmax>12", "<xmax>2"))
    with pytest.raises(ValueError, match=r"a\.xml: expected xmin < xmax"):
        ilsvrc_boxes(path, "n01")
    path.write_text(XML.replace("<ymin>1</ymin>", ""))
    with pytest.raises(ValueError, match=r"a\.xml, ymin: expected a number, got None"):
        ilsvrc_boxes(path, "n01")
    path.write_text(XML[:80])
    with pytest.raises(ValueError, match=r"a\.xml is no XML file"):
        ilsvrc_boxes(path, "n01")


def test_ilsvrc_reads_xml_beside_pictures_of_another_size(tmp_path: Path) -> None:
    for name in ("n01/a.JPEG", "n01/b.JPEG", "n02/c.JPEG"):
        paint(tmp_path / "val" / name, size=(40, 10))
    for place in ("n01/a.xml", "c.xml"):  # in folders as for training, flat as for validation
        path = tmp_path / "xml" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(XML)
    data = ILSVRC(tmp_path, "val", boxes=tmp_path / "xml")
    assert (data.classes, data.targets) == (["n01", "n02"], [0, 0, 1])
    assert data[0].boxes.tolist() == [[4, 1, 24, 6], [0, 0, 44, 10]]
    assert data[1].boxes.shape == (0, 4)
    assert data[2].boxes.tolist() == [[0, 0, 6, 3]]
    assert ILSVRC(tmp_path, "val", boxes=tmp_path / "xml", transform=Squash(16))[2].image.shape == (3, 16, 16)
    with pytest.raises(FileNotFoundError, match="no folder of XML boxes"):
        ILSVRC(tmp_path, "val", boxes=tmp_path / "none")


def write(path: Path, text: str = XML) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("pictures", "boxes"),
    [
        ("", "Annotations/val/n02/c.xml"),
        ("", "Annotations/val/c.xml"),
        ("", "Annotations/n02/c.xml"),
        ("", "Annotations/c.xml"),
        ("Data/CLS-LOC/", "Annotations/CLS-LOC/val/n02/c.xml"),
        ("Data/CLS-LOC/", "Annotations/CLS-LOC/val/c.xml"),
    ],
)
def test_an_ilsvrc_tree_is_known_by_its_annotations(tmp_path: Path, pictures: str, boxes: str) -> None:
    for name in ("train/n01/a.JPEG", "train/n02/b.JPEG", "val/n02/c.JPEG"):
        paint(tmp_path / pictures / name)
    write(tmp_path / boxes)
    classes = open_data(str(tmp_path), "train").classes
    for spec in (str(tmp_path), f"ilsvrc:{tmp_path}", absolute(str(tmp_path))):
        data = open_data(spec, "val", classes=classes, transform=Squash(20))
        assert (data.classes, data.targets, data.ids) == (["n01", "n02"], [1], ["val/n02/c.JPEG"])
        assert data[0].boxes.tolist() == [[0, 0, 3, 6]]
    assert has_split(str(tmp_path), "val") and not has_split(str(tmp_path), "test")
    with pytest.raises(ValueError, match="lacks: n02"):
        open_data(str(tmp_path), "val", classes=["n01"])
    with pytest.raises(FileNotFoundError, match="no split 'test'"):
        open_data(str(tmp_path), "test")
    with pytest.raises(ValueError, match=r"only pets:DIR can be downloaded"):
        open_data(str(tmp_path), "val", download=True)


def test_validation_pictures_in_no_folder_have_the_class_of_their_xml(tmp_path: Path) -> None:
    for name in ("train/n01/a.JPEG", "train/n02/b.JPEG", "val/c.JPEG", "val/d.JPEG"):
        paint(tmp_path / name)
    for name in "cd":
        write(tmp_path / "Annotations" / "val" / f"{name}.xml", XML if name == "c" else XML.replace("n01", "n02", 1))
    data = open_data(str(tmp_path), "val")
    assert (data.classes, data.ids, data.targets) == (["n01", "n02"], ["val/c.JPEG", "val/d.JPEG"], [0, 1])
    assert data[0].boxes.tolist() == [[2, 1, 12, 6], [0, 0, 22, 10]]
    assert data[1].boxes.tolist() == [[2, 1, 12, 6], [0, 0, 3, 3]]
    (tmp_path / "Annotations" / "val" / "d.xml").unlink()
    with pytest.raises(ValueError, match=r"the class of .*d\.JPEG is not known: expected d\.xml"):
        open_data(str(tmp_path), "val")


def test_a_box_table_beats_a_folder_of_annotations_and_a_prefix_both(root: Path, monkeypatch) -> None:
    write(root / "Annotations" / "train" / "cat" / "b.xml", XML.replace("n01", "cat"))
    assert isinstance(open_data(str(root), "train"), ImageFolder)
    assert open_data(f"ilsvrc:{root}", "train")[1].boxes.tolist() == [[2, 1, 12, 6], [0, 0, 22, 10]]
    (root / "train_boxes.csv").unlink()
    assert isinstance(open_data(f"folder:{root}", "train"), ImageFolder)
    monkeypatch.chdir(root.parent)
    assert absolute(root.name) == f"ilsvrc:{root.resolve()}"


def pets(root: Path) -> Path:
    """Write a picture of each of two breeds, with its trimap, and return the folder that they lie in."""
    base = root / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "great_dane_2"):
        paint(base / "images" / f"{name}.jpg")
        trimap = np.full((10, 20), 2, np.uint8)
        trimap[2:6, 5:9] = 3
        trimap[3:5, 6:8] = 1
        (base / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
        Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{name}.png")
    for split in ("trainval", "test"):
        (base / "annotations" / f"{split}.txt").write_text("Abyssinian_1 1 1 1\ngreat_dane_2 2 2 1\n")
    return base


def test_pets_are_known_by_their_folder_and_their_splits_have_our_names(tmp_path: Path) -> None:
    pets(tmp_path)
    for spec in (str(tmp_path), f"pets:{tmp_path}", absolute(str(tmp_path))):
        for split, own in (("train", "trainval"), ("val", "test"), ("test", "test")):
            data = open_data(spec, split)
            assert isinstance(data, OxfordPets)
            assert data.ids == OxfordPets(tmp_path, own).ids and has_split(spec, split)
    turned = open_data(str(tmp_path), "train", classes=["Great Dane", "Abyssinian"])
    assert (turned.classes, turned.targets) == (["Great Dane", "Abyssinian"], [1, 0])
    with pytest.raises(FileNotFoundError, match="--download"):
        open_data(f"pets:{tmp_path / 'elsewhere'}", "train")


def test_pets_are_fetched_only_on_request(tmp_path: Path, monkeypatch) -> None:
    import torchvision.datasets

    class Known:
        classes = ("Abyssinian", "Great Dane")

        def __init__(self, root: str | Path, *, split: str, download: bool) -> None:
            if not download:
                raise RuntimeError("Dataset not found")
            pets(Path(root))

    monkeypatch.setattr(torchvision.datasets, "OxfordIIITPet", Known)
    with pytest.raises(FileNotFoundError):
        open_data(f"pets:{tmp_path}", "train")
    assert len(open_data(f"pets:{tmp_path}", "train", download=True)) == 2


@pytest.mark.parametrize("layout", ["ilsvrc", "pets"])
def test_broken_pictures_of_published_layouts_are_left_out_on_request(tmp_path: Path, layout: str) -> None:
    if layout == "pets":
        broken = pets(tmp_path) / "images" / "Abyssinian_1.jpg"
    else:
        for name in ("train/n01/a.JPEG", "train/n02/b.JPEG"):
            paint(tmp_path / name)
        write(tmp_path / "Annotations" / "b.xml")
        broken = tmp_path / "train" / "n01" / "a.JPEG"
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{broken.name} cannot be decoded"):
        open_data(str(tmp_path), "train")[0]
    with pytest.warns(UserWarning, match=f"1 of 2 pictures cannot be read and are left out: .*{broken.name}"):
        data = open_data(str(tmp_path), "train", skip_broken=True)
    assert len(data.classes) == 2 and data.targets == [1] == [data[0].target]


def test_oxford_pets_read_trimaps(tmp_path: Path) -> None:
    base = pets(tmp_path)
    names = ["Abyssinian_1", "great_dane_2"]
    data = OxfordPets(tmp_path, "trainval", transform=Squash(20))
    assert data.classes == ["Abyssinian", "Great Dane"]
    assert data.targets == [0, 1]
    assert data.ids == [f"images/{name}.jpg" for name in names]
    sample = OxfordPets(tmp_path, "trainval")[1]
    assert sample.boxes.tolist() == [[6, 3, 8, 5]]
    assert [(sample.pixels == value).sum().item() for value in (0, 1, 255)] == [184, 4, 12]
    assert data[1].image.shape == (3, 20, 20)
    with pytest.raises(ValueError, match="'trainval' or 'test', got 'val'"):
        OxfordPets(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="download=True"):
        OxfordPets(tmp_path / "elsewhere", "test")
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(base / "annotations" / "trimaps" / "Abyssinian_1.png")
    with pytest.raises(
        ValueError, match=r"Abyssinian_1\.png must be one grey channel of 2 \(background\), 1 \(object\)"
    ):
        data[0]
