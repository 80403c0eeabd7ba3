"""Take the picture of the page: `salmask serve --port 7861`, then this, with playwright and Debian's chromium."""

import sys

from playwright.sync_api import sync_playwright

ADDRESS, OUT = sys.argv[1:]
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(ADDRESS)
    page.wait_for_selector("#examples img")
    page.locator("#examples button:has(img)").nth(1).click()
    page.wait_for_selector("[data-explainer=gradcam]")
    page.locator("#threshold input[type=number]").fill("0.4")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=kept where the map is above 0.40")
    page.wait_for_timeout(500)
    page.screenshot(path=OUT, full_page=True)
    browser.close()
