"""What a visitor of the page gets, without a browser: maps, probabilities, refusals, the archive."""

import io
import json
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from serve_cases import bomb, paint, run_folder

from salmask.cli.main import main
from salmask.explain import EXPLAINERS, Explainer
from salmask.masking import MeanColour, keep
from salmask.report.pictures import overlay
from salmask.serve import Limits, Looks
from salmask.serve.bundle import write_bundle
from salmask.serve.drawn import draw
from salmask.specs import load_explainer, load_explainers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def looks(run) -> Looks:
    chosen = load_explainers([f"mine={run}", "gradcam", "rise:masks=8"], loaded=None)
    return Looks(chosen.explainers, chosen.base)


def last(looks: Looks, session, titles, target=None):
    return [*looks.explained(session, titles, target)][-1]


def test_the_map_is_that_of_the_explainer_and_the_sides_are_played_under_what_is_shown(looks, run, tmp_path) -> None:
    session = last(looks, looks.open_file(paint(tmp_path / "one.png", 1)), ["mine"])
    _, explainer, loaded = load_explainer(str(run), loaded=None)
    images = session.look.images["mine"]
    expected = explainer(loaded.classifier, images)
    assert torch.equal(session.maps["mine"].explanation.masks, expected.masks)
    infill = MeanColour.of(loaded.classifier)
    for threshold, masks in ((0.0, expected.masks), (0.5, (expected.masks > 0.5).float())):
        panels = looks.panels(session, "mine", threshold)
        with torch.no_grad():
            kept = loaded.classifier.eval().logits(keep(images, masks, infill)).softmax(1)[0]
        assert dict(panels.probabilities["kept"]) == pytest.approx(
            dict(zip(looks.names, kept.tolist(), strict=True)), abs=1e-6
        )
    assert 0.02 < float((expected.masks > 0.5).float().mean()) < 0.98


def test_another_class_drops_the_maps_of_the_one_before(looks, tmp_path) -> None:
    session = last(looks, looks.open_file(paint(tmp_path / "one.png", 1)), ["mine", "gradcam"])
    decided = int(session.maps["gradcam"].explanation.targets[0])
    other = (decided + 1) % 4
    again = last(looks, session, ["gradcam"], other)
    assert list(again.maps) == ["gradcam"] and int(again.maps["gradcam"].explanation.targets[0]) == other
    assert last(looks, again, ["gradcam", "mine"], other).maps["gradcam"] is again.maps["gradcam"]


def test_parallel_visitors_get_their_own_maps(looks, tmp_path) -> None:
    files = [paint(tmp_path / f"{seed}.png", seed) for seed in range(8)]
    alone = [last(looks, looks.open_file(file), ["mine", "gradcam"]) for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = [*pool.map(lambda file: last(looks, looks.open_file(file), ["mine", "gradcam"]), files)]
    for one, other in zip(alone, together, strict=True):
        for title in ("mine", "gradcam"):
            assert torch.equal(one.maps[title].explanation.masks, other.maps[title].explanation.masks)
    assert len({one.maps["mine"].explanation.masks.numpy().tobytes() for one in alone}) == 8


def test_names_are_escaped_and_the_number_is_that_of_the_play(looks, tmp_path) -> None:
    session = last(looks, looks.open_file(paint(tmp_path / "a<script>.png", 3)), ["mine", "gradcam"])
    text = draw(looks, session, ["mine", "gradcam"], opacity=0.8, threshold=0.3)
    assert "<script>" not in text and "cat <b>" not in text and "dog &amp; co" in text
    shares = re.findall(r'class="bar kept[^>]*>.*?<b>([0-9.]+)</b>', text)
    played = [
        share for title in ("mine", "gradcam") for _, share in looks.panels(session, title, 0.3).probabilities["kept"]
    ]
    assert shares == [f"{share:.2f}" for share in played]


def test_an_explainer_that_fails_leaves_the_others_be(run, tmp_path) -> None:
    class Failing(Explainer):
        def __call__(self, classifier, images, targets=None):
            raise ValueError("no <gradients> here")

    chosen = load_explainers([f"mine={run}"], loaded=None)
    looks = Looks({"failing": (Failing(), chosen.base), **chosen.explainers}, chosen.base)
    session = last(looks, looks.open_file(paint(tmp_path / "one.png", 1)), ["failing", "mine"])
    text = draw(looks, session, ["failing", "mine"], opacity=1, threshold=0)
    assert "no &lt;gradients&gt; here" in text and 'data-explainer="mine"' in text


def test_a_bomb_a_text_and_a_pipe_are_refused_by_the_name_that_the_visitor_knows(looks, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"^bomb.png has 60000x60000 pixels, more than the 50,000,000"):
        looks.open_file(bomb(tmp_path / "bomb.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^text.png cannot be decoded"):
        looks.open_file(tmp_path / "text.png")


def test_a_bomb_is_refused_by_the_command_in_one_line(run, tmp_path, capsys) -> None:
    assert main(["explain", str(bomb(tmp_path / "bomb.png")), "--explainer", str(run), "--out", str(tmp_path)]) == 1
    assert "60000x60000 pixels" in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_twelve_megapixels_are_opened_at_once_and_not_kept(looks, tmp_path) -> None:
    path = tmp_path / "large.jpg"
    Image.effect_noise((400, 300), 60).resize((4000, 3000)).convert("RGB").save(path)
    session = last(looks, looks.open_file(path), ["mine"])
    draw(looks, session, ["mine"], opacity=0.8, threshold=0)
    assert session.look.size == (3000, 4000) and session.look.whole.shape == (3, 768, 1024)
    with Image.open(path) as picture:
        small = np.asarray(picture.resize((1024, 768), Image.Resampling.BILINEAR), dtype=float)
    assert abs(session.look.whole.permute(1, 2, 0).numpy() - small).mean() < 3


def test_the_archive_holds_the_raw_map_and_what_the_page_shows(looks, tmp_path) -> None:
    session = last(looks, looks.open_file(paint(tmp_path / "one.png", 1)), ["mine", "gradcam"])
    write_bundle(tmp_path / "all.zip", looks, session, ["mine", "gradcam"], opacity=0.6, threshold=0.4)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    explanation = session.maps["gradcam"].explanation
    assert np.array_equal(np.load(io.BytesIO(files["02-gradcam/map.npy"])), explanation.masks[0, 0].numpy())
    facts = json.loads(files["02-gradcam/facts.json"])
    assert facts["threshold"] == 0.4 and facts["class explained"] in looks.names
    whole = np.asarray(Image.open(io.BytesIO(files["01-mine/map.whole.png"])))
    assert whole.shape == (40, 48, 2)
    assert (whole[:, 4:44, 1] == 255).all() and not whole[:, :4, 1].any() and not whole[:, 44:, 1].any()
    bounded = explanation.bounded().masks[0, 0]
    drawn = overlay(looks.panels(session, "gradcam").whole, bounded, threshold=0.4, side=320, opacity=(0.1875, 0.6))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(files["02-gradcam/overlay.png"]))), drawn)


def test_opacity_zero_shows_the_picture_and_one_hides_it(looks, tmp_path) -> None:
    session = last(looks, looks.open_file(paint(tmp_path / "one.png", 1)), ["mine"])
    panels, flat = looks.panels(session, "mine"), np.full((32, 32), 1.0)
    grey = np.rint(np.asarray(panels.whole.mul(255).round()).mean(0))
    assert np.abs(overlay(panels.whole, flat, opacity=(0, 0))[..., 0] - grey).max() <= 1
    assert np.ptp(overlay(panels.whole, flat, opacity=(1, 1)), axis=(0, 1)).max() == 0


def test_what_cannot_stand_on_one_page_is_refused(run, small_net) -> None:
    chosen = load_explainers([f"mine={run}"], loaded=None)
    with pytest.raises(ValueError, match="ground_truth needs ground truth"):
        Looks({"ground_truth": (EXPLAINERS["ground_truth"](), chosen.base)}, chosen.base)
    other = load_explainers([f"mine={run}"], loaded=None).base
    object.__setattr__(other, "classes", ("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="one set of classes"):
        Looks({**chosen.explainers, "gradcam": (EXPLAINERS["gradcam"](), other)}, chosen.base)
    with pytest.raises(ValueError, match="megabytes"):
        Limits(0)
