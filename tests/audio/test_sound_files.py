"""Reading and writing sound files, and data sets of them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from salmask.audio.hearing import Hearing
from salmask.audio.readers import Sounds, holds_sounds, open_sounds, sound_layout, survey
from salmask.audio.sounds import check_sound, read_sound, sounds_in, write_sound
from salmask.data import collate, evaluation_batches, training_batches

soundfile = pytest.importorskip("soundfile")

HEARING = Hearing(2000, 0.2, n_fft=64, window=64, hop=32)


def _tone(hertz: float, rate: int, seconds: float = 0.3) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def _digits(root: Path, speakers: tuple[str, ...] = ("ann", "bob", "cid")) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for speaker in speakers:
        for digit in (0, 1):
            soundfile.write(root / f"{digit}_{speaker}_0.wav", _tone(200 + 300 * digit, 2000), 2000)
    return root


def test_what_is_written_is_read_again_to_the_last_bit(tmp_path: Path) -> None:
    wave = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 2  # beyond full scale, and not clipped
    write_sound(tmp_path / "a.wav", wave, 2000)
    read = read_sound(tmp_path / "a.wav")
    assert torch.equal(read.wave, wave)
    assert read.sample_rate == 2000


@pytest.mark.parametrize("rate", [2000, 8000, 11025, 1000])
def test_files_of_any_rate_are_resampled_without_a_change_of_pitch(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", _tone(250, rate), rate)
    wave = read_sound(tmp_path / "a.wav", 2000).wave
    assert len(wave) == pytest.approx(600, abs=1)
    spectrum = torch.fft.rfft(wave[:400]).abs()
    assert int(spectrum.argmax()) == 50  # 250 Hz of 400 samples at 2000 Hz


def test_two_channels_become_their_mean_and_only_what_is_heard_is_read(tmp_path: Path) -> None:
    one = _tone(200, 2000, 2.0)
    both = np.stack([one, -0.2 * one], 1)
    soundfile.write(tmp_path / "a.flac", both, 2000)
    read = read_sound(tmp_path / "a.flac", 2000, seconds=0.5)
    assert read.channels == 2 and read.seconds == pytest.approx(2.0)
    assert torch.allclose(read.wave, torch.from_numpy(0.4 * one[:1000]).float(), atol=1e-4)


def test_clipped_and_silent_recordings_are_known(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", np.clip(4 * _tone(200, 2000), -1, 1), 2000)
    soundfile.write(tmp_path / "still.wav", np.zeros(300), 2000)
    soundfile.write(tmp_path / "plain.wav", _tone(200, 2000), 2000)
    assert read_sound(tmp_path / "loud.wav").clipped > 0.5
    assert read_sound(tmp_path / "still.wav").silent
    assert not read_sound(tmp_path / "plain.wav").clipped and not read_sound(tmp_path / "plain.wav").silent


@pytest.mark.parametrize("rate", [2000, 3000])
def test_a_constant_is_silence_and_is_not_scaled_to_a_sound(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "off.wav"
    soundfile.write(path, np.full(600, -1 / 128), rate, subtype="PCM_U8")
    assert read_sound(path, 2000).silent
    with pytest.raises(ValueError, match="silent"):
        check_sound(path, at_least=0.01)


def _empty(path: Path) -> None:
    soundfile.write(path, np.zeros(0), 2000)


def _nan(path: Path) -> None:
    soundfile.write(path, np.array([0.0, np.nan]), 2000, subtype="FLOAT")


def _text(path: Path) -> None:
    path.write_text("no sound")


def _cut(path: Path) -> None:
    soundfile.write(path, _tone(200, 2000), 2000)
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("make", "words"), [(_empty, "is empty"), (_nan, "NaN"), (_text, "cannot be decoded"), (_cut, "cannot be decoded")]
)
def test_broken_files_are_named(tmp_path: Path, make: object, words: str) -> None:
    path = tmp_path / "broken.wav"
    make(path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"broken\.wav.*{words}"):
        read_sound(path, 2000)
    with pytest.raises(FileNotFoundError):
        read_sound(tmp_path / "none.wav")


@pytest.mark.parametrize("ending", ["wav", "aiff", "au", "mp3"])
def test_a_file_that_breaks_off_is_named_and_never_ends_in_silence(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, _tone(440, 8000, 1.0), 8000)
    assert read_sound(path, 2000).wave.shape == (2000,)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for seconds in (None, 0.9):
        with pytest.raises(ValueError, match=rf"a\.{ending} breaks off: .* of the (1|0.999) seconds"):
            read_sound(path, 2000, seconds=seconds)
    with pytest.raises(ValueError, match="breaks off"):
        check_sound(path, at_least=0.01)
    if ending != "mp3":  # the rest of it is whole, and nothing else is heard
        assert len(read_sound(path, 2000, seconds=0.2).wave) == 400


@pytest.mark.parametrize(("length", "whole"), [(0xFFFFFFFF, True), (0x7FFFFFFF, True), (10_000, False)])
def test_a_header_may_leave_the_length_open_but_not_promise_more(tmp_path: Path, length: int, whole: bool) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, _tone(200, 2000, 1.0), 2000, subtype="PCM_16")
    data = path.read_bytes()
    place = data.index(b"data") + 4
    path.write_bytes(data[:place] + length.to_bytes(4, "little") + data[place + 4 :])
    if whole:
        assert len(read_sound(path).wave) == 2000
    else:
        with pytest.raises(ValueError, match=r"breaks off: 1 of the 2\.5 seconds"):
            read_sound(path)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"salmask\[audio\]"):
        read_sound(tmp_path / "a.wav")


def test_digits_by_speaker_are_split_by_speaker(tmp_path: Path) -> None:
    root = _digits(tmp_path / "recordings")
    assert sound_layout(str(tmp_path)) == ("fsdd", root)
    train, val = (open_sounds(str(tmp_path), split, HEARING) for split in ("train", "val"))
    assert {name.split("_")[1] for name in train.ids} == {"ann", "bob"}
    assert val.ids == ["0_cid_0.wav", "1_cid_0.wav"] and val.targets == [0, 1] and val.classes == ["0", "1"]
    assert open_sounds(str(root), "bob", HEARING).ids == ["0_bob_0.wav", "1_bob_0.wav"]
    with pytest.raises(ValueError, match="expected train, val or a speaker"):
        open_sounds(str(root), "dan", HEARING)
    assert survey(str(tmp_path), "train") == (2000, 0.3)


def test_folders_of_classes_and_esc50_and_unlabelled_sounds_are_read(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("dog", "rain"):
            (tmp_path / "folders" / split / label).mkdir(parents=True)
            soundfile.write(tmp_path / "folders" / split / label / "a.wav", _tone(300, 2000), 2000)
    folders = open_sounds(str(tmp_path / "folders"), "val", HEARING)
    assert folders.ids == ["val/dog/a.wav", "val/rain/a.wav"] and folders.targets == [0, 1]

    esc = tmp_path / "esc"
    (esc / "meta").mkdir(parents=True)
    (esc / "audio").mkdir()
    lines = [f"{fold}-1-A-{fold % 2}.wav,{fold},{fold % 2},{'ab'[fold % 2]},True" for fold in range(1, 6)]
    (esc / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,target,category,esc10", *lines]))
    for line in lines:
        soundfile.write(esc / "audio" / line.split(",")[0], _tone(300, 2000), 2000)
    assert [len(open_sounds(str(esc), split, HEARING)) for split in ("train", "val", "test", "fold2")] == [3, 1, 1, 1]
    with pytest.raises(ValueError, match="fold1, fold2"):
        open_sounds(str(esc), "fold9", HEARING)

    soundfile.write(tmp_path / "noise.wav", _tone(300, 2000), 2000)
    flat = open_sounds(str(tmp_path), "train", HEARING)
    assert flat.targets == [-1] and flat.classes == []
    assert all(holds_sounds(str(one)) for one in (tmp_path, esc, tmp_path / "folders"))
    assert not holds_sounds(str(tmp_path / "folders" / "train")) and not holds_sounds(str(tmp_path / "none"))


def test_sounds_are_a_data_set_as_pictures_are(tmp_path: Path) -> None:
    sounds = open_sounds(str(_digits(tmp_path)), "train", HEARING)
    batch = collate([sounds[0], sounds[1]])
    assert batch.images.shape == (2, 1, 33, 13) and batch.images.dtype == torch.float32
    assert torch.equal(batch.images[0], HEARING.hear(sounds.wave(0)).picture)  # floats, not rounded to bytes
    assert sum(len(one.ids) for one in evaluation_batches(sounds, batch_size=3)) == 4
    streams = [training_batches(sounds, batch_size=2, seed=0, augment=HEARING.augmentation()) for _ in range(2)]
    assert torch.equal(next(streams[0]).images, next(streams[1]).images)


def test_broken_sounds_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    root = _digits(tmp_path)
    (root / "1_ann_1.wav").write_text("broken")
    with pytest.warns(UserWarning, match=r"1 of 5 sounds cannot be read.*1_ann_1"):
        assert len(open_sounds(str(root), "train", HEARING, skip_broken=True)) == 4
    with pytest.raises(ValueError, match="1_ann_1"):
        [open_sounds(str(root), "train", HEARING)[k] for k in range(5)]
    with pytest.raises(ValueError, match="no sounds"):
        Sounds(tmp_path, [], HEARING)


def test_files_to_explain_are_sounds(tmp_path: Path) -> None:
    root = _digits(tmp_path / "in")
    assert len(sounds_in([root, root / "0_ann_0.wav"])) == 6
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.png is no sound"):
        sounds_in([tmp_path / "a.png"])
    with pytest.raises(ValueError, match="at least one file"):
        sounds_in([])


def test_what_cannot_be_held_or_scaled_is_silent_or_refused_by_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "faint.wav", _tone(250, 2000) * 1e-40, 2000, subtype="DOUBLE")
    faint = read_sound(tmp_path / "faint.wav")
    assert faint.silent and not HEARING.hear(faint.wave).picture.isnan().any()
    soundfile.write(tmp_path / "huge.wav", _tone(250, 2000) * 1e200, 2000, subtype="DOUBLE")
    with pytest.raises(ValueError, match=r"huge\.wav holds samples of up to 5e\+199: scale them"):
        read_sound(tmp_path / "huge.wav")


def test_a_survey_passes_over_broken_files_where_asked(tmp_path: Path) -> None:
    root = _digits(tmp_path)
    (root / "0_ann_1.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"0_ann_1\.wav cannot be decoded"):
        survey(str(root), "train")
    assert survey(str(root), "train", skip_broken=True) == (2000, 0.3)
    for file in root.glob("*.wav"):
        file.write_text("no sound")
    with pytest.raises(ValueError, match="cannot be decoded"):
        survey(str(root), "train", skip_broken=True)


def test_a_silent_recording_of_a_data_set_is_named_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(400), 2000)
    sounds = open_sounds(str(tmp_path), "val", HEARING)
    with pytest.warns(UserWarning, match=r"a\.wav is silent") as said:
        assert [one.image.max() for one in (sounds[0], sounds[1], sounds[0])] == [0, 0, 0]
    assert len(said) == 1


@pytest.mark.parametrize("rate", [0, 7, 2**31 - 1, 2**32 - 1])
def test_a_header_with_a_rate_that_no_file_has_is_refused_before_it_is_resampled(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, _tone(200, 2000), 2000)
    data = bytearray(path.read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    for read in (lambda: read_sound(path, 2000), lambda: survey(str(tmp_path), "val")):
        with pytest.raises(ValueError, match=r"a\.wav .*(samples a second by its header|cannot be decoded)"):
            read()


def test_channels_that_cancel_each_other_are_known(tmp_path: Path) -> None:
    tone = _tone(200, 2000)
    for name, other in (("opposite", -tone), ("alike", 0.9 * tone), ("silent", 0 * tone)):
        soundfile.write(tmp_path / f"{name}.wav", np.stack([tone if other.any() else other, other], 1), 2000)
    assert [read_sound(tmp_path / f"{name}.wav").cancelled for name in ("opposite", "alike", "silent")] == [1, 0, 0]


def test_a_survey_passes_links_that_lead_nowhere_over(tmp_path: Path) -> None:
    root = _digits(tmp_path)
    (root / "0_ann_1.wav").symlink_to(root / "gone.wav")
    assert survey(str(root), "train", skip_broken=True)[0] == 2000
    with pytest.raises(OSError, match="0_ann_1"):
        survey(str(root), "train")
    with pytest.warns(UserWarning, match=r"1 of 5 sounds cannot be read"):
        assert len(open_sounds(str(root), "train", HEARING, skip_broken=True)) == 4
