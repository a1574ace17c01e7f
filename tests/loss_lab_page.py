"""The loss lab's page in a browser, for its tests: opened, moved and read."""

import json
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import browser
import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "lessons" / "loss_lab.html"
LOSSES = ("ce", "weighted", "focal", "dice", "combined")
DESKTOP, PHONE = (1280, 900), (390, 844)


def require_chromium():
    """Skip without a browser, or fail where MINISEGNET_REQUIRE_CHROMIUM=1."""
    if reason := browser.missing():
        if os.environ.get("MINISEGNET_REQUIRE_CHROMIUM") == "1":
            pytest.fail(f"{reason}, and MINISEGNET_REQUIRE_CHROMIUM is 1")
        pytest.skip(reason)


@contextmanager
def opened_page():
    """Give the page as it opens; what it asks the network for or complains about is an error."""
    require_chromium()
    page = browser.shared()
    page.resize(*DESKTOP)
    if page.run("return location.protocol") != "file:":
        page.open(PAGE.as_uri())
    page.run("runExperiment(null); scrollTo(0, 0); document.activeElement.blur()")
    yield page
    events = [json.loads(entry["message"])["message"] for entry in page.log("performance")]
    requested = {event["params"]["request"]["url"].split("#")[0] for event in events
                 if event["method"] == "Network.requestWillBeSent"}
    assert requested <= {PAGE.as_uri()}, requested
    complaints = page.log("browser")
    assert complaints == [], complaints


def move(page, **settings):
    """Set controls by their ids, `_` for `-`, as a user's input would."""
    page.run("""
        for (const [name, value] of Object.entries(arguments[0])) {
          const input = document.getElementById(name.replace("_", "-"));
          if (input.type === "checkbox") input.checked = value; else input.value = value;
          input.dispatchEvent(new Event("input", {bubbles: true}));
        }""", settings)


def state_of(page):
    """Return what the page shows, as arrays: the batch has one picture."""
    lab = SimpleNamespace(**page.run("return lab"))
    lab.logits = np.array(lab.logits, float).reshape(1, 16, 24, 4)
    lab.target = np.array(lab.target).reshape(1, 16, 24)
    lab.weight = np.array(lab.weight)
    return lab


def text_of(page, *ids):
    return page.run("return arguments[0].map((id) => document.getElementById(id).textContent)",
                    ids)
