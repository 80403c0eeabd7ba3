"""The commands on sounds, from files to a classifier, a masker, what is kept and removed, and a page that plays it."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from salmask.audio.hearing import Hearing
from salmask.audio.network import sound_network
from salmask.audio.sounds import read_sound
from salmask.classifier import Classifier
from salmask.cli.main import main
from salmask.training.run import Loaded, load_classifier, load_run, save_classifier

soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of tones by three speakers."""
    root = tmp_path_factory.mktemp("digits")
    generator = np.random.default_rng(0)
    for speaker in ("ann", "bob", "cid"):
        for number in range(4):
            for digit, hertz in enumerate((200, 700)):
                time = np.arange(440) / 2000
                wave = 0.4 * np.sin(2 * np.pi * hertz * time) + 0.01 * generator.standard_normal(440)
                soundfile.write(root / f"{digit}_{speaker}_{number}.wav", wave, 2000)
    return root


@pytest.fixture(scope="module")
def classifier(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of the tones, as the command trains it."""
    out = tmp_path_factory.mktemp("classifier") / "c.safetensors"
    arguments = ["classifier", "--data", str(digits), "--audio", "--out", str(out), "--seconds", "0.2", "--n-fft", "64"]
    assert main([*arguments, "--network", "audio:cnn14-w2-d3-m12", "--epochs", "8", "--batch-size", "8"]) == 0
    return f"audio:cnn14-w2-d3-m12@{out}"


@pytest.fixture(scope="module")
def run(digits: Path, classifier: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masker of the transposed kind, by L-MAC's recipe."""
    out = tmp_path_factory.mktemp("run") / "lmac"
    assert main([*_training(digits, classifier, out), "--recipe", "lmac"]) == 0
    return out


def _training(digits: Path, classifier: str, out: Path) -> list[str]:
    arguments = ["train", "--data", str(digits), "--classifier", classifier, "--out", str(out), "--epochs", "1"]
    return [*arguments, "--batch-size", "8", "--decoder", "transposed", "--width", "4", "--mix", "white:20"]


def test_the_classifier_carries_how_it_hears(classifier: str) -> None:
    loaded = load_classifier(classifier)
    assert loaded.view == Hearing(2000, 0.2, n_fft=64, window=64, hop=32)
    assert loaded.classes == ("0", "1")
    assert load_classifier(classifier, domain="linear").view == Hearing(
        2000, 0.2, n_fft=64, window=64, hop=32, domain="linear"
    )


def test_fine_tuning_goes_on_from_a_run(digits: Path, classifier: str, run: Path, tmp_path: Path) -> None:
    arguments = [*_training(digits, classifier, tmp_path / "tuned"), "--recipe", "lmac_tuned", "--start", str(run)]
    assert main([*arguments, "--lr", "1e-9"]) == 0
    first, second = (load_run(folder).masker.state_dict() for folder in (run, tmp_path / "tuned"))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    facts = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert facts["recipe"]["recipe"] == "lmac_tuned" and facts["settings"]["target"] == "predicted"


@pytest.mark.parametrize("recipe", ["fix", "ca", "reader"])
def test_recipes_of_pictures_train_on_sounds(digits: Path, classifier: str, tmp_path: Path, recipe: str) -> None:
    arguments = ["train", "--data", str(digits), "--classifier", classifier, "--out", str(tmp_path), "--epochs", ".5"]
    assert main([*arguments, "--batch-size", "6", "--recipe", recipe, "--layers", "1", "2"]) == 0
    assert load_run(tmp_path).loaded.classifier.num_classes == 2


def test_explain_writes_what_is_kept_and_removed(
    digits: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = digits / "0_cid_0.wav"
    arguments = ["explain", str(sound), "--explainer", str(run), "--out", str(tmp_path), "--domain", "linear"]
    assert main(arguments) == 0
    original = read_sound(sound, 2000, seconds=0.2)
    kept, removed = (read_sound(tmp_path / f"0_cid_0.{side}.wav") for side in ("kept", "removed"))
    assert kept.sample_rate == 2000 and len(kept.wave) == len(original.wave) == 400
    assert torch.allclose(kept.wave + removed.wave, original.wave, atol=1e-5)
    assert float(kept.wave.abs().max()) > 0
    assert (tmp_path / "0_cid_0.png").is_file() and np.load(tmp_path / "0_cid_0.npy").shape == (33, 13)
    assert "lmac was trained on spectrograms of the log domain" in capsys.readouterr().err


@pytest.mark.filterwarnings("default::UserWarning")
def test_explain_says_what_is_cut_off_and_warns_of_silence(
    digits: Path, classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "still.wav", np.zeros(800), 2000)
    arguments = ["explain", str(tmp_path / "still.wav"), "--explainer", "gradcam", "--classifier", classifier]
    assert main([*arguments, "--out", str(tmp_path / "out")]) in (0, 1)  # a map of silence, or an error that names it
    said = " ".join(capsys.readouterr())
    assert "50% of still.wav is cut off" in said and "still.wav is silent" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "{png}", "--explainer", "{run}"], "is no sound"),
        (["explain", "{broken}", "--explainer", "{run}"], "cannot be decoded"),
        (["evaluate", "--data", "{digits}", "--explainer", "{run}", "--split", "zoe", "--out", "{out}"], "a speaker"),
        (["evaluate", "--data", "{digits}", "--explainer", "{run}", "--mix", "loud", "--out", "{out}"], "white:DB"),
        (
            ["evaluate", "--data", "{digits}", "--explainer", "{run}", "--mix", "white:6", "other:0", "--out", "{out}"],
            "measure once for each kind",
        ),
        (["explain", "{sound}", "--explainer", "{run}", "--fit", "pad"], "setting of pictures"),
        (["train", "--data", "{digits}", "--classifier", "audio:cnn14", "--out", "{out}"], "audio:NAME@FILE"),
        (["classifier", "--data", "{digits}", "--out", "{out}/a.safetensors"], "for sounds give --audio"),
        (
            ["classifier", "--data", "{digits}", "--audio", "--out", "{out}.safetensors", "--sample-rate", "0"],
            "1000 to 384000 a second, got 0",
        ),
        (["classifier", "--data", "{digits}", "--audio", "--out", "{out}.safetensors", "--seconds", "0"], "got 0.0"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, digits: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "broken.wav").write_text("no sound")
    names = {"png": tmp_path / "a.png", "broken": tmp_path / "broken.wav", "sound": digits / "0_cid_0.wav"}
    names |= {"run": run, "digits": digits, "out": tmp_path / "out"}
    assert main([argument.format(**names) for argument in arguments]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and words in said[0]


@pytest.fixture(scope="module")
def measured(digits: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of four recordings over another one, explained by two explainers."""
    out = tmp_path_factory.mktemp("measured")
    arguments = ["evaluate", "--data", str(digits), "--explainer", f"L-MAC={run}", "gradcam", "--no-baselines"]
    arguments += ["--metric", "average_drop", "fidelity_in", "sparseness", "--target", "predicted", "--limit", "4"]
    assert main([*arguments, "--mix", "other:12", "--out", str(out)]) == 0
    return out


def test_the_page_plays_recording_kept_and_removed(digits: Path, measured: Path) -> None:
    page = (measured / "index.html").read_text()
    addresses = re.findall(r'<audio[^>]* src="([^"]+)"', page)
    assert len(addresses) == 4 * (1 + 2 * 2)
    for address in addresses:
        recording = read_sound(measured / address)
        assert recording.sample_rate == 2000 and len(recording.wave) == 400
    assert not any(".wav." in address for address in addresses) and "mixed with" in page
    rows = [json.loads(line) for line in (measured / "rows.jsonl").read_text().splitlines()]
    assert {row["image"] for row in rows} <= {path.name for path in digits.iterdir()}
    assert json.loads((measured / "meta.json").read_text())["mixed with"] == "other:12"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium")
def test_a_browser_loads_every_sound_of_the_page_at_its_length_and_plays_it(digits: Path, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is steered by playwright")
    hearing = Hearing(4000, 0.2, n_fft=64, window=64, hop=32)  # browsers play from 3000 samples a second on
    network = sound_network("cnn14-w2-d2-m8", hearing, 2)
    untrained = Classifier(network, mean=[0.0], std=[1.0], layers=network.layers, image_size=hearing.image_size)
    save_classifier(tmp_path / "c.safetensors", Loaded(untrained, "audio:cnn14-w2-d2-m8", hearing, ("0", "1")))
    arguments = ["evaluate", "--data", str(digits), "--explainer", "center", "random", "--no-baselines", "--limit", "4"]
    arguments += ["--classifier", f"audio:cnn14-w2-d2-m8@{tmp_path / 'c.safetensors'}", "--metric", "mask_mean"]
    assert main([*arguments, "--out", str(tmp_path / "page")]) == 0
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = chromium.new_page()
        page.goto((tmp_path / "page" / "index.html").as_uri())
        lengths = page.evaluate(
            """async () => Promise.all([...document.querySelectorAll("audio")].map(async (sound) => {
              sound.load();
              await new Promise((done) => { sound.onloadedmetadata = done; sound.onerror = done; });
              return sound.error ? sound.error.message : sound.duration; }))"""
        )
        played = page.evaluate(
            """async () => { const sound = document.querySelector("audio"); await sound.play();
              await new Promise((done) => { sound.onended = done; }); return sound.currentTime; }"""
        )
        chromium.close()
    assert lengths == pytest.approx([0.2] * 4 * (1 + 2 * 2), abs=1e-3) and played == pytest.approx(0.2, abs=0.02)


def test_a_folder_of_speech_is_mixed_in(digits: Path, run: Path, tmp_path: Path) -> None:
    speech = tmp_path / "speech"
    speech.mkdir()
    soundfile.write(speech / "one.flac", 0.3 * np.sin(np.arange(16000) / 3), 8000)  # longer, of another rate
    arguments = ["evaluate", "--data", str(digits), "--explainer", f"L-MAC={run}", "--no-baselines", "--limit", "2"]
    arguments += [
        "--metric",
        "mask_mean",
        "--target",
        "predicted",
        "--mix",
        f"{speech}:6",
        "--out",
        str(tmp_path / "e"),
    ]
    assert main(arguments) == 0
    page = (tmp_path / "e" / "index.html").read_text()
    address = re.findall(r'<audio[^>]* src="([^"]+)"', page)[0]
    wave = read_sound(tmp_path / "e" / address).wave
    powers = torch.fft.rfft(wave).abs()
    hertz = torch.fft.rfftfreq(len(wave), 1 / 2000)
    loudest = hertz[powers.argmax()]
    speech_power, whole = powers[(hertz - 8000 / 6 / np.pi).abs() < 20].square().sum(), powers.square().sum()
    assert min(abs(float(loudest) - 200), abs(float(loudest) - 700)) < 10
    assert float(speech_power / whole) == pytest.approx(1 / (1 + 10**0.6), abs=0.05)


def test_a_masker_that_is_told_the_class_is_trained_on_the_labels_of_mixtures(
    digits: Path, classifier: str, tmp_path: Path
) -> None:
    arguments = [*_training(digits, classifier, tmp_path)[:-2], "--recipe", "lmac", "--class-condition"]
    assert main([*arguments, "--mix", "white:0..20", "other:-6..6", "--mix-share", "0.8"]) == 0
    run = load_run(tmp_path)
    assert run.masker.classes == 2
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["target"] == "label"
    assert main([*arguments, "--resume", "--mix", "white:0", "--mix-share", "1.1"]) == 1


def test_the_page_in_the_browser_plays_what_is_shown(digits: Path, run: Path, tmp_path: Path) -> None:
    import io
    import zipfile

    from salmask.serve import Looks
    from salmask.serve.bundle import write_bundle
    from salmask.serve.drawn import draw
    from salmask.specs import load_explainers

    chosen = load_explainers([f"mine={run}", "gradcam"], loaded=None)
    looks = Looks(chosen.explainers, chosen.base)
    path = digits / "1_ann_0.wav"
    *_, session = looks.explained(looks.open_file(path), ["mine", "gradcam"], None)
    text = draw(looks, session, ["mine", "gradcam"], opacity=0.8, threshold=0.0)
    assert text.count("<audio") == 1 + 2 * 2 and "0.20 seconds are heard" in text
    assert "of the whole sound" in text and "of the spectrogram" in text and "of the picture" not in text
    hearing = chosen.base.view
    assert isinstance(hearing, Hearing)
    wave = read_sound(path, 2000, seconds=0.2).wave
    for threshold in (0.0, 0.5):
        sounds = looks.sounds(session, "mine", threshold)
        panels = looks.panels(session, "mine", threshold)
        for side, picture in (("kept", panels.kept), ("removed", panels.removed)):
            played, rate = soundfile.read(io.BytesIO(sounds[side]), dtype="float32")
            magnitudes = hearing.loudest * (picture[:1] * math.log(1001)).expm1() / 1000  # as they are drawn
            expected = hearing.sound(hearing.pictures(magnitudes[None].flip(-2))[0], hearing.hear(wave))
            assert rate == 2000 and np.allclose(played, expected.numpy(), atol=1e-5)
    write_bundle(tmp_path / "all.zip", looks, session, ["mine"], opacity=0.8, threshold=0.5)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        pair = (archive.read("01-mine/kept.wav"), looks.sounds(session, "mine", 0.5)["kept"])
        one, other = (soundfile.read(io.BytesIO(data))[0] for data in pair)  # headers hold the second of writing
        assert np.array_equal(one, other)
        names = {name.partition("/")[2] for name in archive.namelist()}
        recording, _ = soundfile.read(io.BytesIO(archive.read("01-mine/whole.wav")), dtype="float32")
    assert {"removed.wav", "map.npy", "overlay.png"} <= names and "map.whole.png" not in names
    assert np.array_equal(recording, wave.numpy())
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"^text.wav cannot be decoded as a sound"):
        looks.open_file(tmp_path / "text.wav")


def test_the_masks_of_a_whole_data_set_of_sounds(digits: Path, run: Path, tmp_path: Path) -> None:
    arguments = ["explain", "--data", str(digits), "--split", "bob", "--explainer", str(run), "--form", "array"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert np.load(tmp_path / "masks.npy").shape == (8, 33, 13)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert {line["image"].split("_")[1] for line in lines} == {"bob"} and len(lines) == 8


def test_a_classifier_at_chance_is_noticed_wherever_it_is_used(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.safetensors"
    hearing = Hearing(2000, 0.2, n_fft=64, window=64, hop=32)
    network = sound_network("cnn14-w2-d2-m8", hearing, 2)
    torch.nn.init.zeros_(network.body.head.weight)
    untrained = Classifier(network, mean=[0.0], std=[1.0], layers=network.layers, image_size=hearing.image_size)
    save_classifier(file, Loaded(untrained, "audio:cnn14-w2-d2-m8", hearing, ("0", "1")))
    spec, out = ["--classifier", f"audio:cnn14-w2-d2-m8@{file}"], str(tmp_path / "page")
    options = ["--explainer", "center", "--no-baselines", "--metric", "mask_mean", "--out", out]
    assert main(["evaluate", "--data", str(digits), *spec, *options]) == 0
    assert "right on 0.50 of 8 sounds of val, and one that always names the commonest class on 0.50" in _said(capsys)
    options = ["--out", str(tmp_path / "run"), "--epochs", "0.5", "--recipe", "lmac"]
    assert main(["train", "--data", str(digits), *spec, *options]) == 0
    assert "right on 0.50 of 16 sounds of train" in _said(capsys)


def test_a_new_classifier_at_chance_is_noticed(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["classifier", "--data", str(digits), "--audio", "--out", str(tmp_path / "d.safetensors")]
    options = ["--network", "audio:cnn14-w2-d2-m8", "--epochs", "0.1", "--lr", "1e-9", "--n-fft", "64"]
    assert main([*arguments, *options]) == 0
    said = _said(capsys)
    accuracy = float(re.search(r"accuracy on val: ([\d.]+)", said)[1])
    assert ("cannot be told from chance" in said) == (accuracy <= 0.75)


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr())


def test_runs_that_hear_in_two_ways_are_not_measured_as_one(
    digits: Path, classifier: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = tmp_path / "linear"
    assert main([*_training(digits, classifier, linear), "--recipe", "lmac", "--domain", "linear"]) == 0
    options = ["--metric", "mask_mean", "--no-baselines", "--limit", "2", "--out", str(tmp_path / "page")]
    arguments = ["evaluate", "--data", str(digits), "--explainer", str(run), str(linear), *options]
    assert main(arguments) == 1
    assert "linear hears" in capsys.readouterr().err
    assert main([*arguments, "--domain", "linear"]) == 0
    assert "lmac was trained on spectrograms of the log domain" in capsys.readouterr().err
    assert "drawn by the logarithm of magnitudes, over 60 dB" in (tmp_path / "page" / "index.html").read_text()
