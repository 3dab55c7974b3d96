"""The page of a question in Chromium, without a network: it sorts, opens, and shows what attacks it as text."""

from __future__ import annotations

import shutil

import pytest
from attrs import evolve

from interpretune.evidence import Evidence
from interpretune.reports.page.html_page import Page
from tests.reports.effect_stores import ROWS, STRONG, card, continuation, held_out, keep, write_effects

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: `make browser` installs it")
ATTACK = (
    "</script></style></title><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'{{7*7}}\u202e\x07"
)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: `make setup` installs it")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file without a network, and fails at the end where something was asked for or complained of."""
    complaints, asked = [], []
    context = browser.new_context(offline=True, viewport={"width": 380, "height": 800})

    def open_file(path):
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert asked == [path.as_uri()]
        return page

    yield open_file
    context.close()
    assert complaints == []
    assert len(asked) == 1


def test_a_page_sorts_and_opens_its_cards(tmp_path, opened):
    stores = [write_effects(tmp_path / name, method=name) for name in ("exact", "gradient")]
    units = Page.of(stores).ranking.units[:2]
    cards = [evolve(card(), name=item.name, units=item.units, unit=item.unit) for item in units]
    cards[0] = evolve(cards[0], url="https://example.org/7")
    keep(stores[0], Evidence(held_out(), tuple(cards), (continuation(),)))
    page = Page.of(stores)
    names = [item.name for item in page.ranking.units]
    shown = opened(page.write(tmp_path / "page.html"))
    reached = set()
    for _ in range(60):
        shown.keyboard.press("Tab")
        reached.add(shown.evaluate("document.activeElement.closest('th, summary')?.innerText.trim()"))
    assert {"Unit", "Effect, logits", *shown.locator("details.card summary").all_inner_texts()} <= reached
    assert shown.inner_text(".headline").startswith(f"coder latent {STRONG} ")
    heads = shown.locator("table.sortable button")

    def order(column):
        heads.nth(column).focus()
        shown.keyboard.press("Enter")
        return shown.locator("table.sortable tbody th").evaluate_all("all => all.map(one => one.dataset.v)")

    by_effect = sorted(page.ranking.units, key=lambda item: -item.mean)
    assert order(2) == [item.name for item in by_effect]
    assert order(2) == [item.name for item in by_effect[::-1]]
    assert order(0) == names
    second = shown.locator("details.card").nth(1)
    assert not second.locator(".prompts").is_visible()
    second.locator("summary").focus()
    shown.keyboard.press("Enter")
    assert "The" in second.locator(".prompts").inner_text()
    assert shown.locator("details.card a").get_attribute("href") == "https://example.org/7"
    assert shown.evaluate("document.documentElement.scrollWidth") == 380
    for colours in ("light", "dark"):
        shown.emulate_media(color_scheme=colours)
        ink, paper = (
            shown.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
        )
        assert (sum(channels(ink)) > sum(channels(paper))) == (colours == "dark")


def channels(colour):
    return [int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")]


def test_what_attacks_a_page_is_shown_as_text(tmp_path, opened):
    kinds = {"coder": ATTACK, "layers.1.attn_z": "head", ATTACK: "latent"}
    units = [{"name": name, "kind": kind, "size": 30, "chosen": 30} for name, kind in kinds.items()]
    texts = {"prompts": [ATTACK] * ROWS, "answers": [[ATTACK, " is"]] * ROWS, "token": [ATTACK] * ROWS}
    store = write_effects(
        tmp_path / "exact",
        about={"model": {"source": f"owner/{ATTACK}", "class": ATTACK, "sha256": ATTACK}, "stack": [ATTACK]},
        question={"units": units, "objective": ATTACK},
        texts=texts,
    )
    cards = (card(ATTACK, f"coder {ATTACK} {STRONG}", url="javascript:alert(1)"), card(ATTACK, ATTACK, ATTACK))
    keep(store, Evidence(cards=cards, steering=(continuation(ATTACK),)))
    page = Page.of([store])
    shown = opened(page.write(tmp_path / "page.html"))
    assert shown.title() != "taken"
    assert shown.locator("img, iframe, object").count() == 0
    assert shown.locator("script").count() == 1
    assert shown.locator("details.card a").count() == 0
    attack = ATTACK.replace("\u202e", "\ufffd").replace("\x07", "\ufffd")
    assert attack in shown.locator("h1").text_content() or attack.split("/")[-1] in shown.locator("h1").text_content()
    for place in (".prompts", ".tokens", ".changed", "#steering", "table.sortable", ".made"):
        assert attack in shown.locator(place).first.text_content()
