"""The loss lab's page: its experiments show what they say, and everyone can read and use it."""

import base64
import re

import numpy as np
import pytest
from loss_lab_page import (
    DESKTOP,
    LOSSES,
    PAGE,
    PHONE,
    move,
    opened_page,
    require_chromium,
    state_of,
    text_of,
)

from minisegnet.datasets.palettes import CAMVID_PALETTE

EXPERIMENTS = ("focal-at-the-start", "focal-later", "weights", "scaling", "smoothing-trap", "dice")


@pytest.fixture
def page():
    with opened_page() as window:
        yield window


def assert_no_number_is_missing(page):
    shown = page.run("""
        return ["experiments", "controls", "figures"]
          .map((id) => document.getElementById(id).innerHTML).join()""")
    assert not re.search("NaN|undefined|Infinity|null", shown)


# ---- the experiments ----

def test_each_experiment_shows_what_it_is_about(page):
    shares, losses = {}, {}
    for name in EXPERIMENTS:
        page.click(f"#try-{name}")
        assert page.run("return [...document.querySelectorAll('[aria-pressed=true]')]"
                        ".map((button) => button.id)") == [f"try-{name}"]
        question, answer = text_of(page, "question", "answer")
        assert len(question) > 80 and len(answer) > 80
        assert_no_number_is_missing(page)
        lab = state_of(page)
        losses[name] = {key: lab.losses[key]["loss"] for key in LOSSES}
        shares[name] = {key: np.array(lab.losses[key]["ledger"]["shareByTarget"])
                        for key in LOSSES}
        pixels = np.array(lab.counts) / 384

    for gamma in (0, 0.7, 5):
        page.click("#try-focal-at-the-start")
        move(page, gamma=gamma)
        books = page.run("return ['ce', 'focal'].map((n) => lab.losses[n].ledger.shareByTarget)")
        np.testing.assert_allclose(books[1], books[0], rtol=1e-12)
        np.testing.assert_allclose(books[0], pixels, rtol=1e-12)
        assert "differ by nothing" in text_of(page, "share-note")[0]
    assert shares["focal-later"]["focal"][0] < 0.1 * shares["focal-later"]["ce"][0]
    assert "differ by up to" in page.run(
        "document.getElementById('try-focal-later').click();"
        "return document.getElementById('share-note').textContent")
    np.testing.assert_allclose(shares["weights"]["weighted"], 0.25, rtol=1e-12)

    page.click("#try-scaling")
    move(page, scale=0)
    plain = page.run("return lab.losses")
    assert losses["scaling"]["weighted"] == pytest.approx(plain["weighted"]["loss"], rel=1e-12)
    assert losses["scaling"]["focal"] == pytest.approx(10 * plain["focal"]["loss"], rel=1e-12)
    assert losses["scaling"]["dice"] == plain["dice"]["loss"]

    dice = shares["dice"]
    assert dice["dice"][3] > 3 * dice["ce"][3]


def test_the_smoothing_trap_opens_and_closes_at_its_ratio(page):
    page.click("#try-smoothing-trap")
    ratio, flipping, verdict = text_of(page, "ratio", "flipping", "optimum-verdict-0")
    assert float(ratio) == 73 and float(flipping) == 37 and verdict == "✗ becomes toilet"
    e = 4 / (4 + 73 - 1)  # 0.0526: the ratio flips from here on
    for smoothing, verdict in ((0.05, "✓ stays background"), (0.06, "✗ becomes toilet"),
                               (0.0, "✓ stays background")):
        assert (smoothing > e) == verdict.startswith("✗")
        move(page, smoothing=smoothing)
        assert_no_number_is_missing(page)
        assert text_of(page, "optimum-verdict-0") == [verdict]
    shown = page.run("return document.getElementById('optimum-note').textContent")
    assert shown == "Here: the truth."


def test_a_link_opens_an_experiment_and_start_again_leaves_it(page):
    before = page.run("return lab.settings")
    page.open("about:blank")
    page.open(PAGE.as_uri() + "#weights")
    assert page.run("return lab.settings.scheme") == "inverse"
    page.run("location.hash = 'dice'; return new Promise((done) => setTimeout(done, 50))")
    assert page.run("return lab.settings.bias") == 6
    page.run("location.hash = 'weights'; return new Promise((done) => setTimeout(done, 50))")
    assert page.run("return lab.settings.scheme") == "inverse"
    page.click("#try-again")
    assert page.run("return lab.settings") == before


def test_no_class_but_one_and_no_weight_at_all_break_nothing(page):
    for name in ("focal-later", "scaling", "smoothing-trap", "dice"):
        page.click(f"#try-{name}")
        move(page, pixels_1=0, pixels_2=0, pixels_3=0)
        assert_no_number_is_missing(page)
        move(page, **{f"weight_{c}": -1.55 for c in range(4)})
        assert_no_number_is_missing(page)
    assert text_of(page, "loss-weighted", "total-weighted") == ["0", "0"]
    assert "nothing to learn from" in text_of(page, "share-note")[0]


# ---- for everyone ----

def test_arrow_keys_move_a_slider_and_with_it_the_figures(page):
    watched = """return ["gamma-readout", "loss-focal", "bar-focal", "curve-loss", "loss-ce"]
        .map((id) => document.getElementById(id).innerHTML)"""
    page.run("document.getElementById('gamma').focus()")
    before = page.run(watched)
    page.press("ArrowRight", 3)
    after = page.run(watched)
    assert (before[0], after[0]) == ("2.0", "2.3")
    assert [a != b for a, b in zip(before, after)] == [True, True, True, True, False]
    assert page.run("return document.activeElement.getAttribute('aria-valuetext')") == "2.3"
    page.press("Home")
    assert text_of(page, "gamma-readout") == ["0.0"]
    page.run("document.getElementById('weight-3').focus()")
    page.press("ArrowRight", 2)
    scheme, focus = page.run("return [lab.settings.scheme, document.activeElement.id]")
    assert (scheme, focus) == ("hand", "weight-3")
    assert float(text_of(page, "weight-3-readout")[0]) == pytest.approx(10**0.1, rel=1e-3)


def test_the_tab_key_reaches_every_control_and_shows_where_it_is(page):
    page.open("about:blank")  # the Tab key starts where it was last
    page.open(PAGE.as_uri())
    expected = page.run("""
        return [...document.querySelectorAll("button, input, select, summary")]
          .filter((element) => element.type !== "radio" || element.checked)
          .map((element) => element.id || element.tagName)""")
    reached = []
    for _ in expected:
        page.press("Tab")
        name, style, width = page.run("""
            const element = document.activeElement, style = getComputedStyle(element);
            return [element.id || element.tagName, style.outlineStyle, style.outlineWidth];""")
        reached.append(name)
        assert (style, width) == ("solid", "3px"), name
    assert sorted(reached) == sorted(expected) and len(expected) > 25
    page.run("document.getElementById('try-dice').focus()")
    page.press("Enter")
    assert page.run("return lab.settings.bias") == 6


@pytest.mark.parametrize("width, height", [DESKTOP, PHONE])
def test_nothing_is_wider_than_the_screen(page, width, height):
    page.resize(width, height)
    for name in EXPERIMENTS:
        page.click(f"#try-{name}")
        page.run("document.getElementById('numbers').open = true")
        inner, content = page.run("return [innerWidth, document.documentElement.scrollWidth]")
        assert inner == width and content <= width
        beyond = page.run("""
            return [...document.querySelectorAll("body *")].filter((element) => {
              const box = element.getBoundingClientRect(), parent = element.closest(".card");
              const edge = parent ? parent.getBoundingClientRect().right : innerWidth;
              return box.width && !element.closest("svg, .segment") && box.right > edge + 0.5;
            }).map((element) => element.outerHTML.slice(0, 80))""")
        assert beyond == []


def test_every_control_and_figure_has_a_name_and_ids_are_unique(page):
    assert page.run("""
        return [...document.querySelectorAll("input, select")]
          .filter((input) => ![...input.labels].some((label) => label.textContent.trim()))
          .map((input) => input.id)""") == []
    assert page.run("""
        return [...document.querySelectorAll("[role=img], [role=radiogroup], section, form")]
          .filter((element) => {
            const by = element.getAttribute("aria-labelledby");
            const name = by ? document.getElementById(by).textContent
              : element.getAttribute("aria-label") || element.querySelector("title")?.textContent;
            return !(name && name.trim());
          }).map((element) => element.outerHTML.slice(0, 80))""") == []
    ids = page.run("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    assert page.run("return [document.documentElement.lang, document.title.length > 5]"
                    ) == ["en-GB", True]


CONTRAST = """
    const channel = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const luminance = (rgb) => 0.2126 * channel(rgb[0] / 255) + 0.7152 * channel(rgb[1] / 255)
      + 0.0722 * channel(rgb[2] / 255);
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const found = {};
    for (const element of document.querySelectorAll("body *")) {
      const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
      if (!text || !element.checkVisibility() || element.closest("script, style")) continue;
      const ink = numbers(getComputedStyle(element)[element.closest("svg") ? "fill" : "color"]);
      let behind = element;
      while (behind !== document.documentElement) {
        const rgba = numbers(getComputedStyle(behind).backgroundColor);
        if (rgba[3] !== 0) break;
        behind = behind.parentElement;
      }
      const paper = numbers(getComputedStyle(behind).backgroundColor);
      const [dark, light] = [luminance(ink), luminance(paper)].sort((a, b) => a - b);
      found[`${ink} on ${paper}`] = (light + 0.05) / (dark + 0.05);
    }
    return found;"""


def test_text_has_a_contrast_of_at_least_4_5(page):
    move(page, scheme="inverse", smoothing=0.1)
    page.click("#try-weights")
    found = page.run(CONTRAST)
    assert len(found) >= 5 and min(found.values()) >= 4.5, found


def test_class_colours_are_of_the_palette_for_all_eyes_and_have_patterns(page):
    colours = page.run("return CLASSES.map((k) => k.colour)")
    palette = {"#" + bytes(colour).hex() for colour in CAMVID_PALETTE}
    assert len(set(colours)) == 4 and set(colours) <= palette
    shown = page.run("""
        return CLASSES.map((_, c) => {
          const style = getComputedStyle(document.querySelector(`#bar-ce .class-${c}`));
          return [style.backgroundColor, style.backgroundImage];
        })""")
    for colour, (found, _) in zip(colours, shown):
        assert found == "rgb({}, {}, {})".format(*bytes.fromhex(colour[1:]))
    assert len({pattern for _, pattern in shown}) == 4


def test_bars_do_not_glide_for_readers_who_want_less_motion(page):
    duration = ("return getComputedStyle(document.querySelector('.segment'))"
                ".transitionDuration")
    assert page.run(duration) != "0s"
    for value, expected in (("reduce", "0s"), ("no-preference", "0.18s")):
        page.command("Emulation.setEmulatedMedia",
                     features=[{"name": "prefers-reduced-motion", "value": value}])
        assert page.run(duration) == expected
    page.command("Emulation.setEmulatedMedia", features=[])


def test_on_paper_it_has_three_pages_at_most_and_no_buttons(page):
    page.command("Emulation.setEmulatedMedia", media="print")
    seen = page.run("return [...document.querySelectorAll('button')]"
                    ".filter((button) => button.checkVisibility()).length")
    page.command("Emulation.setEmulatedMedia", media="")
    assert seen == 0
    pdf = page.command("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(pdf))) <= 3


# ---- without a network ----

def test_the_file_names_no_address():
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?:|\bwss?:|//[a-z]|@import|url\((?!#)|<link|\bsrc\s*=", text, re.I)
    assert "default-src 'none'" in text


def test_the_page_cannot_reach_anything(page):
    blocked = page.run("""
        return new Promise((done) => {
          document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
          setTimeout(() => done("nothing was blocked"), 2000);
          fetch("http://127.0.0.1:9/").catch(() => null);
        })""")
    assert blocked == "connect-src"
    page.log("browser")  # it complained, as it should


# ---- where there is no browser ----

@pytest.mark.parametrize("required, outcome", [("", pytest.skip.Exception),
                                               ("1", pytest.fail.Exception)])
def test_a_missing_browser_skips_or_fails_with_a_reason(monkeypatch, tmp_path, required, outcome):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MINISEGNET_REQUIRE_CHROMIUM", required)
    with pytest.raises(outcome, match="no chromium"):
        require_chromium()
