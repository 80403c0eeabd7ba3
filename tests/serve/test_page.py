"""The page end to end, in a headless browser: drop a file, see the map, move a slider, read the number."""

import gc
import json
import os
import re
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serve_cases import bomb, paint, run_folder

from salmask.serve import Example, Limits, Looks, build_page, serve
from salmask.serve.drawn import draw
from salmask.serve.page import _Answers
from salmask.specs import load_explainers

pytest.importorskip("gradio", reason="the page needs the extra `serve`")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is steered by playwright")
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VISITORS = 4


@pytest.fixture(scope="module")
def looks(tmp_path_factory) -> Looks:
    chosen = load_explainers([f"mine={run_folder(tmp_path_factory.mktemp('page'))}", "gradcam", "center"], loaded=None)
    return Looks(chosen.explainers, chosen.base)


@pytest.fixture(scope="module")
def address(looks, tmp_path_factory) -> Iterator[str]:
    limits = Limits(megabytes=1)
    examples = [
        Example(f"example {k}", looks.base.reader()(Path(__file__).parents[2] / "docs" / "photographs.jpg"))
        for k in (0, 1)
    ]
    page = build_page(looks, examples, limits=limits)
    yield serve(page, port=0, limits=limits, block=False)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


def opened(browser, address: str):
    """Open the page as a visitor of its own, who reaches this machine alone."""
    page = browser.new_context().new_page()
    outside: list[str] = []
    page.on(
        "request",
        lambda request: (
            outside.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None
        ),
    )
    page.goto(address)
    page.outside = outside
    page.wait_for_selector("#examples img")
    return page


def drop(page, path: Path) -> None:
    page.locator("#file input[type=file]").set_input_files(path)


def pictures(html: str) -> list[str]:
    return re.findall(r'src="(data:[^"]+)"', html)


def answer(page, title: str) -> str:
    page.wait_for_selector(f"[data-explainer={title}]", timeout=30_000)
    return page.locator("#answer").inner_html()


def expected(looks: Looks, path: Path, titles: list[str], threshold: float = 0.0) -> str:
    *_, session = looks.explained(looks.open_file(path), titles, None)
    return draw(looks, session, titles, opacity=0.8, threshold=threshold)


@needs_browser
def test_visitors_at_once_see_their_own_pictures_map_for_map(browser, address, looks, tmp_path) -> None:
    files = [paint(tmp_path / f"{seed}.png", seed) for seed in range(VISITORS)]
    pages = [opened(browser, address) for _ in files]
    for page, file in zip(pages, files, strict=True):
        drop(page, file)
    for page, file in zip(pages, files, strict=True):
        assert pictures(answer(page, "gradcam")) == pictures(expected(looks, file, ["mine", "gradcam"]))
        assert page.outside == []
        page.context.close()


@needs_browser
def test_the_slider_moves_the_number_and_the_archive_holds_it(browser, address, looks, tmp_path) -> None:
    path, page = paint(tmp_path / "own.png", 20), opened(browser, address)
    drop(page, path)
    answer(page, "gradcam")
    page.locator("#explainers label", has_text="center").click()
    answer(page, "center")
    slider = page.locator("#threshold input[type=range]")
    slider.focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=kept where the map is above 0.30")
    titles = ["mine", "gradcam", "center"]
    shown = page.locator("[data-explainer=mine] .kept b").all_inner_texts()
    *_, session = looks.explained(looks.open_file(path), titles, None)
    played = [f"{share:.2f}" for _, share in looks.panels(session, "mine", 0.3).probabilities["kept"]]
    before = [f"{share:.2f}" for _, share in looks.panels(session, "mine").probabilities["kept"]]
    assert shown == played != before
    page.click("#take")
    page.wait_for_selector("#parcel a")
    with page.expect_download() as download:
        page.locator("#parcel a").first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        facts = json.loads(archive.read("01-mine/facts.json"))
        taken = np.load(archive.open("01-mine/map.npy"))
    assert facts["threshold"] == 0.3 and np.array_equal(taken, session.maps["mine"].explanation.masks[0, 0])
    page.locator("#examples button:has(img)").nth(1).click()
    page.wait_for_selector("text=example 1,")
    page.context.close()


@needs_browser
def test_a_bomb_and_a_file_that_is_too_large_are_refused(browser, address, tmp_path) -> None:
    page = opened(browser, address)
    drop(page, bomb(tmp_path / "bomb.png"))
    page.wait_for_selector("text=bomb.png has 60000x60000 pixels")
    (tmp_path / "large.png").write_bytes(bytes(2**21))
    page = opened(browser, address)
    drop(page, tmp_path / "large.png")
    page.wait_for_selector("text=/exceed/i")
    assert page.locator("[data-explainer]").count() == 0


def test_the_page_is_for_this_machine_alone_and_has_no_calls_for_programs(address) -> None:
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{address}gradio_api/info") as answered:
        assert json.load(answered)["named_endpoints"] == {}


def test_archives_that_were_taken_away_do_not_pile_up(looks, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    answers = _Answers(looks, ())
    *_, session = looks.explained(looks.open_file(paint(tmp_path / "own.png", 1)), ["mine"], None)
    packed = [answers.bundle((("file", "own.png"), session), ["mine"], 0.8, 0.0)]
    os.utime(Path(packed[0]).parent, (0, 0))
    packed += [answers.bundle((("file", "own.png"), session), ["mine"], 0.8, 0.0) for _ in range(2)]
    assert [Path(path).name for path in packed] == ["own.zip"] * 3 and len({*packed}) == 3
    assert [Path(path).is_file() for path in packed] == [False, True, True]
    del answers
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["own.png"]
