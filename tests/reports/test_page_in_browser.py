"""The page of a question in Chromium, without a network: it sorts, opens, and shows what attacks it as text."""

from __future__ import annotations

import shutil

import pytest
from attrs import evolve

from interpretune.evidence import Evidence
from interpretune.reports.page.html_page import Page
from tests.reports.effect_stores import ROWS, STRONG, card, continuation, held_out, keep, keep_circuit, write_effects

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


def test_a_node_of_the_circuit_shows_its_edges_and_its_card(tmp_path, opened):
    store = write_effects(tmp_path / "exact")
    units = Page.of([store]).ranking.units[:2]
    keep(store, Evidence(cards=tuple(evolve(card(), name=x.name, units=x.units, unit=x.unit) for x in units[::-1])))
    keep_circuit(store)
    page = Page.of([store])
    said = "Of the 3 top units, 1 is enough (coder latent 7): with the other 2, each set to zero, it keeps 90"
    assert page.answer.sentences[-1].startswith(said)
    assert page.answer.sentences[-1].endswith("to the difference of logits, on 10 held-out rows.")
    shown = opened(page.write(tmp_path / "page.html"))
    assert "circuit" in shown.locator("nav").inner_text().lower()
    nodes, edges = shown.locator("svg.graph .node"), shown.locator("svg.graph .edge")
    assert (nodes.count(), edges.count()) == (3, 5)
    heights = nodes.evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert heights[0] == heights[1] > heights[2]
    titles = edges.locator("title").all_text_contents()
    assert f"coder latent {STRONG} on layers.1.attn_z head 2: exact 0.3 (0.2 to 0.4), by the gradient none" in titles
    assert any(title.endswith("by the gradient 0.1, other sign") for title in titles)
    told = shown.locator(".told > div:visible")
    assert told.count() == 0
    opens = shown.locator(f"#card-{[x.unit for x in units if x.units == 'coder'].index(STRONG) + 1}")
    opens.evaluate("one => { one.open = false; }")
    nodes.first.focus()
    shown.keyboard.press("Enter")
    assert nodes.first.get_attribute("aria-pressed") == "true"
    assert edges.evaluate_all("all => all.filter(one => one.classList.contains('on')).length") == 2
    assert "exact 0.5 (0.4 to 0.6), by the gradient 0.4" in told.inner_text()
    assert opens.get_attribute("open") is not None
    nodes.nth(2).click()
    assert told.locator("h4").inner_text() == "layers.1.attn_z head 2"
    nodes.nth(2).click()
    assert told.count() == 0
    assert shown.evaluate("document.documentElement.scrollWidth") == 380
    assert shown.locator("table.judged tbody tr").first.inner_text().split("\t") == [
        "exact",
        "0\u00a0%",
        "0",
        "0\u00a0%",
        "2",
    ]
    assert shown.locator("svg .curve").count() == 2


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
    keep_circuit(store, ATTACK)
    page = Page.of([store])
    shown = opened(page.write(tmp_path / "page.html"))
    shown.locator("svg.graph .node").nth(1).click()
    assert shown.title() != "taken"
    assert shown.locator("img, iframe, object").count() == 0
    assert shown.locator("script").count() == 1
    assert shown.locator("details.card a").count() == 0
    attack = ATTACK.replace("\u202e", "\ufffd").replace("\x07", "\ufffd")
    assert attack in shown.locator("h1").text_content() or attack.split("/")[-1] in shown.locator("h1").text_content()
    for place in (
        ".prompts",
        ".tokens",
        ".changed",
        "#steering",
        "table.sortable",
        ".made",
        ".told",
        "svg .curve",
        ".judged",
    ):
        assert attack in shown.locator(place).first.text_content()
