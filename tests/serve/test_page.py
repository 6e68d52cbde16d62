"""The page in a real browser: Chromium, headless, driven by selenium. Without Chromium these tests are skipped.

Screenshots are kept in the folder that ``FSRM_SCREENSHOTS`` names, or in pytest's own temporary folder.
"""

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.serving import serving

from fsrm_lite import FastSlowRM, GateSpec, SolveReasoner
from fsrm_lite.gate import ListSpec
from fsrm_lite.serve import page

RECORDED = ROOT / "docs" / "tutorials" / "recorded.jsonl"
PROMPT = "Mia has 7 pens. Mia finds 8 more. Then Mia loses 4. How many pens does Mia have now?"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("FSRM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def served(rm):
    with serving(rm, calibration=RECORDED) as client:
        yield client


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium is not installed; make browser installs it")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for switch in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with selenium.Chrome(options=options, service=selenium.ChromeService(driver)) as running:
        running.set_page_load_timeout(120)
        yield running


class Page:
    """What a user does with the page."""

    def __init__(self, browser, url, width=1280, height=1000, dark=False):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self._by, self.keys = browser, By.CSS_SELECTOR, Keys
        self._wait = WebDriverWait(browser, 120)
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get_log("browser")
        browser.get(url)
        self.until(lambda: self.all("#answers li"))

    def until(self, condition):
        return self._wait.until(lambda _: condition())

    def all(self, selector):
        return self.browser.find_elements(self._by, selector)

    def one(self, selector):
        return self.browser.find_element(self._by, selector)

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def fill(self, prompt, *answers):
        self.one("#prompt").send_keys(prompt)
        while len(self.all("#answers li")) < len(answers):
            self.one("#add").click()
        for area, answer in zip(self.all("#answers textarea"), answers, strict=True):
            area.send_keys(answer)

    def finished(self):
        return self.until(
            lambda: self.one("#bill-card").is_displayed() or "error" in self.one("#status").get_attribute("class")
        )

    def status(self):
        return self.one("#status").get_attribute("class")

    def focused(self):
        return self.browser.switch_to.active_element

    def save(self, path):
        height = self.browser.execute_script("return document.documentElement.scrollHeight")
        width = self.browser.execute_script("return window.innerWidth")
        device = {"width": width, "height": min(height, 4000), "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        assert self.browser.save_screenshot(str(path))
        assert path.stat().st_size > 10_000

    def fits(self):
        """Whether nothing sticks out at the side."""
        return self.browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

    def errors(self):
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_a_comparison_is_shown_from_the_first_bar_to_the_bill(browser, served, shots, width, dark):
    shown = Page(browser, served.url, width, dark=dark)
    shown.until(lambda: shown.one("#name").text == "fsrm-tiny")
    shown.fill(PROMPT, "The answer is 12 pens.", "7 + 8 = 15. 15 - 4 = 11. The answer is 11 pens.", "41 cups")
    shown.one("#run").click()
    shown.finished()
    assert len(shown.all("#bars .bar")) == 3
    assert all(re.fullmatch(r"\d\.\d\d", text) for text in shown.texts("#bars .value"))
    assert any("intuition" in text for text in shown.texts("#bars .why"))
    assert shown.texts("#ranking .first .text") == ["7 + 8 = 15. 15 - 4 = 11. The answer is 11 pens."]
    bill = dict(zip(shown.texts("#bill dt"), shown.texts("#bill dd"), strict=True))
    assert int(bill["tokens read"]) > 0
    assert len(shown.all("#plots svg")) == 4
    assert shown.fits()
    assert not shown.errors()
    shown.save(shots / f"page-{'dark' if dark else 'light'}-{width}.png")


@pytest.mark.slow
def test_thoughts_votes_and_orders_are_shown(browser, served, shots):
    shown = Page(browser, served.url)
    shown.fill(PROMPT, "The answer is 12 pens.", "The answer is 11 pens.")
    shown.one("#judge").send_keys("always")
    shown.one("#votes").send_keys("2")
    shown.one("#run").click()
    shown.finished()
    assert len(shown.all(".match")) == 1
    assert {"A shown first, then B", "B shown first, then A"} == set(shown.texts(".vote h3"))
    assert all(len(text) > 10 for text in shown.texts(".vote .thought"))
    assert "of" in shown.one(".tally").text
    assert "B wins" in shown.one(".match").text
    assert shown.texts("#ranking .first .letter") == ["B"]
    assert not shown.all(".vote.writing")
    shown.save(shots / "page-thoughts.png")


@pytest.mark.slow
def test_the_keyboard_is_enough(browser, served):
    shown = Page(browser, served.url)
    body = shown.one("body")
    order = []
    for _ in range(4):
        body.send_keys(shown.keys.TAB)
        order.append(shown.focused().get_attribute("id") or shown.focused().get_attribute("aria-label"))
        body = shown.focused()
    assert order == ["prompt", "Answer A", "Answer B", "add"]
    shown.one("#prompt").send_keys(PROMPT)
    for area, text in zip(shown.all("#answers textarea"), ("11 pens", "12 pens"), strict=True):
        area.send_keys(text)
    shown.focused().send_keys(shown.keys.CONTROL, shown.keys.ENTER)
    shown.finished()
    assert len(shown.all("#ranking .rank")) == 2
    outline = shown.browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.slow
def test_texts_stay_texts(browser, served):
    shown = Page(browser, served.url)
    shown.fill(HOSTILE, HOSTILE, "</textarea><b>x")
    shown.one("#run").click()
    shown.finished()
    assert HOSTILE in shown.texts("#ranking .text")
    assert not shown.all("main img, main b, #bars script")
    assert shown.browser.execute_script("return window.hacked") is None


@pytest.mark.slow
def test_an_error_is_shown_and_the_page_goes_on(browser, served, shots):
    shown = Page(browser, served.url)
    shown.fill("pens " * 700, "11 pens", "12 pens")
    shown.one("#run").click()
    shown.until(lambda: "error" in shown.one("#status").get_attribute("class"))
    assert "the context holds 512" in shown.one("#status").text
    shown.save(shots / "page-error.png")
    shown.one("#prompt").clear()
    shown.one("#prompt").send_keys(PROMPT)
    shown.one("#run").click()
    shown.until(lambda: shown.one("#bill-card").is_displayed())


@pytest.mark.slow
def test_an_answer_that_is_too_long_ranks_last_and_says_why(browser, served):
    shown = Page(browser, served.url)
    shown.fill(PROMPT, "pens " * 700, "11 pens")
    shown.one("#run").click()
    shown.finished()
    assert "ranks last: " in shown.texts("#bars .why")[0]
    assert "the context holds 512" in shown.texts("#bars .why")[0]
    assert shown.texts("#bars .value")[0] == "\N{EN DASH}"
    assert shown.texts("#ranking .text") == ["11 pens", ("pens " * 700).strip()]


@pytest.mark.slow
def test_a_server_with_a_key_asks_for_it(browser, rm):
    with serving(rm, key="s3cret") as client:
        shown = Page(browser, client.url)
        shown.until(lambda: shown.one("#key-field").is_displayed())
        shown.one("#key").send_keys("s3cret", shown.keys.TAB)
        shown.until(lambda: shown.one("#name").text == "fsrm-tiny")
        shown.fill(PROMPT, "11 pens", "12 pens")
        shown.one("#run").click()
        shown.finished()
        assert len(shown.all("#ranking .rank")) == 2


# Without a browser.


def test_the_page_needs_nothing_from_elsewhere(client):
    reply = client.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    text = reply.data.decode()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert re.findall(r"https?://[\w./]+", text) == ["http://www.w3.org/2000/svg"]
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert text.count("<script>") == 1


def test_best_of_n_is_the_librarys(client, rm, question):
    responses = ["14 pens", "15 pens", "", "16 pens"]
    wanted = rm.best_of_n(question, responses, judge="always")
    reply = client.post("/v1/best-of-n", {"prompt": question, "responses": responses, "x_judge": "always"}).json()
    assert (reply["index"], reply["ranking"]) == (wanted.index, list(wanted.ranking))
    assert [m["pair"] for m in reply["comparisons"]] == [list(m.pair) for m in wanted.comparisons]
    assert [m["winner"] for m in reply["comparisons"]] == [m.winner for m in wanted.comparisons]
    assert reply["tokens_generated"] == wanted.tokens_generated
    fast = client.post("/v1/best-of-n", {"prompt": question, "responses": responses, "x_judge": "never"}).json()
    assert fast["index"] == rm.best_of_n(question, responses, judge="never").index


def test_events_tell_what_happens_in_order(client, question):
    body = {"prompt": question, "responses": ["14 pens", "15 pens"], "stream": True, "x_judge": "always"}
    names = [name for name, _ in client.events("/v1/best-of-n", body)]
    assert (names[0], names[-1]) == ("scores", "result")
    assert names.count("match") == 1
    assert set(names) <= {"scores", "thought", "match", "result"}
    events = dict(client.events("/v1/best-of-n", body | {"responses": ["x " * 900, "y " * 900]}))
    assert events["error"]["param"] == "responses[0]"


def test_a_response_that_is_too_long_ranks_last_as_in_the_library(client, rm, question):
    responses = ["x " * 900, "15 pens", "16 pens"]
    wanted = rm.best_of_n(question, responses)
    reply = client.post("/v1/best-of-n", {"prompt": question, "responses": responses}).json()
    assert reply["ranking"] == list(wanted.ranking)
    assert reply["ranking"][-1] == 0
    (reason,) = reply["scores"][0]["reasons"]
    assert wanted.scores[0].reasons == (f"item 0: {reason}",)


def test_the_rule_for_lists_says_who_meets_before_the_judge(question, monkeypatch):
    """It may ask for matches where the rule for pairs would not; they too are played in the slow lane."""
    where = []
    think = FastSlowRM.escalate_pairs

    def noted(self, *arguments, **options):
        where.append(threading.current_thread().name)
        return think(self, *arguments, **options)

    monkeypatch.setattr(FastSlowRM, "escalate_pairs", noted)
    gate = GateSpec(intuition_threshold=0.0, distribution_threshold=0.0, lists=ListSpec(coverage=1.0))
    body = {"prompt": question, "responses": ["15 pens", "16 pens", "The answer is 16 pens."], "stream": True}
    with FastSlowRM.from_pretrained(threads=1, gate=gate) as model, serving(model) as client:
        events = client.events("/v1/best-of-n", body)
        assert len(model.gate.contenders(model.score_many([(question, r) for r in body["responses"]]))) == 1
    assert len(events[0][1]["contenders"]) == 2
    (match,) = events[-1][1]["comparisons"]
    assert sorted(match["pair"]) == sorted(events[0][1]["contenders"])
    assert where == ["fsrm-slow-lane"]


def test_a_bundle_whose_fast_graph_is_its_judge_thinks_and_chats(rm, tmp_path, question):
    folder = tmp_path / "bundle"
    shutil.copytree(rm.bundle.path("fast").parents[1], folder)
    shutil.rmtree(folder / "slow")
    manifest = json.loads((folder / "fsrm.json").read_text())
    del manifest["files"]["slow"]
    (folder / "fsrm.json").write_text(json.dumps(manifest))
    with FastSlowRM.from_pretrained(folder, threads=1) as model:
        assert model.can_think
        with serving(model, reasoner=SolveReasoner(model)) as client:
            assert client.get("/v1/bundle").json()["can_think"]
            asked = {"messages": [{"role": "user", "content": question}], "max_tokens": 8}
            assert client.post("/v1/chat/completions", asked).json()["choices"][0]["message"]["content"]


def test_what_the_page_knows_of_the_bundle(rm):
    with serving(rm, calibration=RECORDED) as client:
        about = client.get("/v1/bundle").json()
        assert (about["name"], about["can_think"]) == ("fsrm-tiny", True)
        found = about["calibration"]
        assert 0 < found["risk"] < 0.2
        assert found["errors"] / found["accepted"] <= found["risk"]
        assert set(found["roc"]) == {"intuition", "distribution", "joint"}
        asked = {"q": {"type": "noul", "instructions": "Is this response good?"}}
        body = {"state": {"prompt": PROMPT, "response": "11 pens"}, "questions": asked}
        assert client.post("/v1/systemone", body).json()["x_risk"] == found["risk"]


def test_the_policy_names_the_script_that_is_there():
    assert page.headers() == page.headers()
    assert page.html().rstrip().endswith("</html>")


def test_elo_among_too_many_is_refused(client, question):
    body = {"prompt": question, "responses": [f"{i} pens" for i in range(65)], "strategy": "elo", "x_judge": "never"}
    reply = client.post("/v1/best-of-n", body)
    assert reply.status == 400
    assert b"at most 64" in reply.data
    assert client.post("/v1/best-of-n", body | {"responses": body["responses"][:20]}).status == 200
