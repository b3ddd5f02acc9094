"""The page in a real browser: every control, wide and on a phone, with a keyboard, and without JavaScript."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright
from werkzeug.serving import make_server

from features.shop.pictures import picture
from serving.config import ServingConfig
from serving.http.app import create_app
from serving.jobs.build_index import build_index
from towers.bundle.bundle import ModelBundle

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install the package chromium to run these")
FLAGS = [
    f"--{flag}"
    for flag in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
USER = "1001"
MOST_BYTES = 200_000
SECONDS = 60


@pytest.fixture(scope="module")
def root(pristine, tmp_path_factory):
    """The address of a service of a real bundle, whose items have pictures, with live writes."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(pristine / "runs" / "model", folder / "model")
    products = pd.read_csv(pristine / "data" / "products.csv")
    products["image"] = [picture("Garden > Pots", colour) for colour in ("red", "blue", "green") * 40]
    products["brand"] = ["Acme", "Bolt", "Cord", "Dune"] * 30
    products.to_csv(folder / "products.csv", index=False)
    build_index(ModelBundle.open(folder / "model"), {"items": folder / "products.csv"})
    app = create_app(folder / "model", ServingConfig(live=str(folder / "live.db"), timeout_seconds=SECONDS))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(params=[WIDE, PHONE], ids=["wide", "phone"])
def page(browser, request):
    """A page that fails the test if it says anything in the console or asks any other address."""
    context = browser.new_context(viewport=request.param)
    context.set_default_timeout(SECONDS * 1000)
    opened = context.new_page()
    said, asked = [], set()
    # A browser notes each answer that is an error.
    opened.on("console", lambda one: None if "status of 422" in one.text else said.append(one.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda sent: asked.add(sent.url.split("/")[2]) if sent.url.startswith("http") else None)
    yield opened
    context.close()
    assert said == []
    assert len(asked) == 1


def cards(page):
    return page.locator(".cards .card")


def items_of(page):
    return [card.get_attribute("data-item") for card in cards(page).all()]


def settings(page):
    """Open the settings, which are closed at first on a phone."""
    if not page.locator("#settings").evaluate("one => one.open"):
        page.locator("#settings > summary").click()


def shown(page, part):
    """Wait until the address has this part."""
    page.wait_for_url(lambda address: part in address)
    expect(page.locator("#app[aria-busy]")).to_have_count(0)


def test_each_control_changes_what_is_shown(page, root):
    page.goto(f"{root}/?user={USER}")
    expect(cards(page)).to_have_count(12)
    expect(page.locator("h1")).to_have_text(f"User {USER}")
    before = items_of(page)
    settings(page)
    page.locator("#k").fill("6")
    page.locator("#k").press("Tab")
    shown(page, "k=6")
    assert items_of(page) == before[:6]
    page.locator("#diversity").focus()
    for _ in range(12):  # from 0.2
        page.keyboard.press("ArrowRight")
    shown(page, "diversity=0.8")
    assert page.evaluate("document.activeElement.id") == "diversity", "the focus stays where it was"
    expect(page.locator("output")).to_have_text("0.8")
    diverse = items_of(page)
    assert diverse != before[:6]
    page.locator("#distinct").select_option("0.8")
    shown(page, "distinct=0.8")
    page.locator("#most").fill("1")
    page.locator("#per").select_option("brand")
    shown(page, "per=brand")
    expect(cards(page)).to_have_count(4)
    page.locator("#reasons").select_option("0")
    shown(page, "reasons=0")
    expect(page.locator(".why")).to_have_count(0)
    page.get_by_role("link", name="Reset").click()
    page.wait_for_url(f"{root}/?user={USER}")
    expect(cards(page)).to_have_count(12)
    assert items_of(page) == before


def test_filters_and_columns_are_applied(page, root):
    page.goto(f"{root}/?user={USER}")
    settings(page)
    page.locator("#filters > summary").click()
    page.get_by_label("brand", exact=True).first.select_option("Acme")
    shown(page, "brand=Acme")
    page.get_by_label("price up to").fill("20")
    page.get_by_label("price up to").press("Tab")
    shown(page, "price_max=20")
    facts = [
        dict(zip(("name", "text"), one, strict=True))
        for one in page.locator(".cards .facts span").evaluate_all(
            "all => all.map(one => [one.title, one.textContent])"
        )
    ]
    assert {one["text"] for one in facts if one["name"] == "brand"} == {"Acme"}
    assert max(float(one["text"]) for one in facts if one["name"] == "price") <= 20
    page.locator("#columns > summary").click()
    page.get_by_role("checkbox", name="price").uncheck()
    shown(page, "show=")
    expect(page.locator(".cards .facts span[title=price]")).to_have_count(0)


def test_a_user_is_made_of_items_that_are_searched_for_and_picked(page, root):
    page.goto(root)
    expect(page.locator("h1")).to_have_text("Choose a user")
    page.get_by_label("Search items").fill("wooden lamp")
    page.get_by_label("Search items").press("Enter")
    shown(page, "q=wooden")
    first = items_of(page)[0]
    page.locator(f'.card[data-item="{first}"]').get_by_text("Pick").click()
    shown(page, f"history={first}")
    expect(page.locator("h1")).to_have_text("A user of 1 item")
    assert first not in items_of(page)
    cards(page).first.locator("h3 a").click()
    shown(page, "item=")
    expect(page.locator("#found")).to_have_text("Most similar first")
    page.get_by_role("link", name="Recommend for these").click()
    expect(page.locator("h1")).to_have_text("A user of 1 item")
    page.get_by_role("link", name="Remove").click()
    page.wait_for_url(f"{root}/")
    page.go_back()
    expect(page.locator("h1")).to_have_text("A user of 1 item")


def test_users_are_found_by_id_by_chance_and_by_their_newest_events(page, root):
    page.goto(root)
    page.locator(".examples a").first.click()
    shown(page, "user=")
    with page.expect_response(lambda response: "user=" in response.url and response.ok):
        page.get_by_role("link", name="random").click()
    shown(page, "user=")
    page.get_by_label("User", exact=True).fill("100")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(f"{root}/?user=100")
    expect(page.locator(".past")).to_contain_text("Users that begin like it")


def test_an_event_changes_the_list(page, root):
    user = "1002" if page.viewport_size == WIDE else "1003"
    page.goto(f"{root}/?user={user}")
    first = items_of(page)[0]
    page.locator(f'.card[data-item="{first}"] [data-event]').click()
    expect(page.locator(".past .brief").first).to_have_attribute("data-item", first)
    assert first not in items_of(page)
    expect(page.locator(".moved").first).to_be_visible()


def test_the_map_shows_the_items_by_colour_and_those_of_the_user(page, root):
    page.goto(f"{root}/?user={USER}")
    page.get_by_role("link", name="Map").click()
    shown(page, "view=map")
    expect(page.locator(".ground circle")).to_have_count(120)
    expect(page.locator(".found-point")).to_have_count(12)
    page.locator("#colour").select_option("brand")
    shown(page, "colour=brand")
    expect(page.locator(".legend li")).to_have_count(4)
    page.locator(".found-point circle").last.hover()
    expect(page.locator("#pointed")).to_have_text(cards(page).first.locator("h3").inner_text().strip())
    page.locator(".found-point").last.click()
    shown(page, "item=")


def test_the_lines_to_copy_return_what_is_shown(page, root, tmp_path):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{root}/?user={USER}&k=5&price_max=50&diversity=0.2")
    page.get_by_role("button", name="Copy the curl lines").click()
    expect(page.get_by_role("button", name="Copy the curl lines")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#code-1").inner_text()
    assert copied.startswith(f"curl '{root}/recommendations/{USER}?")
    program = f"{page.locator('#code-2').inner_text()}\nprint(*(item['item_id'] for item in answer['items']))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS
    )
    assert ended.stdout.split() == items_of(page), ended.stderr


def test_a_wrong_parameter_is_named_and_nothing_is_lost(page, root):
    page.goto(f"{root}/?user={USER}")
    page.evaluate("visit('/?user=1&k=0', true)")
    expect(page.locator("#app .message")).to_contain_text("k: ")
    expect(page.locator("#k")).to_be_attached()
    page.evaluate("visit('/recommendations/1?k=0', true)")
    expect(page.locator("#message")).to_contain_text("k: ")


@pytest.mark.parametrize(
    "address", ["/", f"/?user={USER}", f"/?user={USER}&view=map", "/?history=p1&history=p2", "/?item=p1", "/?user=x"]
)
def test_nothing_stands_in_the_way_of_people_with_disabilities(page, root, address):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(f"{root}{address}")
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut"


def test_the_page_is_small(page, root):
    sizes = []
    page.on("response", lambda response: sizes.append(len(response.body())))
    page.goto(f"{root}/?user={USER}&view=map")
    page.wait_for_load_state("networkidle")
    assert 10_000 < sum(sizes) < MOST_BYTES


def test_a_keyboard_is_enough(page, root):
    page.goto(f"{root}/?item=p1")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    item = items_of(page)[0]
    cards(page).first.locator("h3 a").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{root}/?item={item}")
    expect(page.locator(f'.card[data-item="{item}"]')).to_have_count(0)
    assert page.evaluate("document.activeElement.id") == "results"
    assert "items" in page.locator("#said").inner_text()


def test_the_api_is_shown_from_the_package(page, root):
    page.goto(f"{root}/docs")
    expect(page.get_by_text("Recommendations for a user", exact=True)).to_be_visible()
    expect(page.locator(".opblock")).to_have_count(9)


def test_it_works_without_javascript(browser, root):
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(SECONDS * 1000)
    page = context.new_page()
    page.goto(root)
    page.get_by_label("User", exact=True).fill(USER)
    page.get_by_role("button", name="Show").click()
    expect(cards(page)).to_have_count(12)
    page.locator("#k").fill("3")
    page.get_by_role("button", name="Apply").click()
    expect(cards(page)).to_have_count(3)
    expect(page.get_by_text("Add event").first).to_be_hidden()
    context.close()
