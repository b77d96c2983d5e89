"""The page as a browser meets it: its structure, policy and data, and what it says when parts are missing."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from talltree import report
from talltree.config import flaws, parse
from talltree.errors import ConfigError, RunError
from talltree.report import page
from talltree.run import Run

# --import-mode=importlib leaves the folder of a test off sys.path.
_spec = importlib.util.spec_from_file_location("fabricate", Path(__file__).with_name("fabricate.py"))
assert _spec is not None and _spec.loader is not None
fabricate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fabricate)

VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Every tag with its attributes, the text, the content of scripts and styles; checks the nesting."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self.stack: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attrs), ""))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("script", "style"):
            tag, attributes, content = self.raw[-1]
            self.raw[-1] = (tag, attributes, content + data)
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self) -> dict[str, Any]:
        [content] = [
            content for _, attributes, content in self.raw if attributes.get("type") == "application/json"
        ]
        return json.loads(content)


def build(folder: Path, **options: Any) -> Page:
    report.run(report.Config(run=str(folder), **options))
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = fabricate.write(tmp_path_factory.mktemp("runs") / "hostile", hostile=True)
    return folder, build(folder)


def test_policy_lets_through_exactly_the_two_inline_blocks_of_the_page(hostile: tuple[Path, Page]) -> None:
    document = hostile[1]
    [policy] = [meta["content"] for meta in document.of("meta") if meta.get("http-equiv")]
    assert policy is not None
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    hashes = {}
    for tag, attributes, content in document.raw:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            hashes.setdefault(tag, []).append(f"'sha256-{digest}'")
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "script-src": hashes["script"][0],
        "style-src": hashes["style"][0],
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert [len(found) for found in hashes.values()] == [1, 1]


def test_no_markup_loads_or_runs_anything(hostile: tuple[Path, Page]) -> None:
    document = hostile[1]
    for tag, attributes in document.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "svg")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert not (attributes.get("href") or "#").lstrip().startswith(("http", "//", "javascript"))
        source = attributes.get("src")
        assert source is None or source.startswith("data:image/svg+xml;base64,")
    assert "innerHTML" not in next(
        content for tag, attributes, content in document.raw if tag == "script" and not attributes
    )


def test_json_block_holds_exactly_the_stored_samples_whatever_their_text(hostile: tuple[Path, Page]) -> None:
    folder, document = hostile
    data = document.data
    stored = Run.open(folder).samples().to_pylist()
    assert len(stored) == 3 * 4 + len(fabricate.HOSTILE) == len(data["step"])
    for i, row in enumerate(stored):
        assert data["prompts"][data["prompt"][i]] == row["prompt"]
        for name in ("completion", "step", "reward", "kl", "ended"):
            assert data[name][i] == row[name]
        assert data["length"][i] == len(row["completion_ids"])
        flat = data["spans"][i]
        assert [flat[at : at + 2] for at in range(0, len(flat), 2)] == row["spans"]
    assert set(fabricate.HOSTILE) <= set(data["completion"])


def test_hostile_text_opens_no_tag(hostile: tuple[Path, Page]) -> None:
    source = (hostile[0] / "report.html").read_text(encoding="utf-8")
    block = source.split('id="samples">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029\x00") & set(block)
    assert len(hostile[1].of("script")) == 2
    assert "document.title='owned'" not in hostile[1].text


def test_run_name_config_and_summary_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<b>run & 'name'"
    with Run.create(folder, {"reward": "</pre><script>alert(1)</script>"}, {}) as run:
        run.write_summary({"stop_reason": "<img src=x onerror=alert(2)>", "model": "a\x07b"})
    document = build(folder)
    assert "<b>run & 'name'" in document.text
    assert "</pre><script>alert(1)</script>" in document.text
    assert "Why it stopped: <img src=x onerror=alert(2)>." in document.text
    assert "a\ufffdb" in document.text
    assert len(document.of("script")) == 2


def test_every_chart_is_a_drawn_svg_with_words_for_it(hostile: tuple[Path, Page]) -> None:
    images = hostile[1].of("img")
    alts = [image["alt"] or "" for image in images]
    # 10 curves (the KL coefficient never changes and there is no loss/train), the path, two histograms.
    assert len(images) == 9 + 1 + 2
    for image in images:
        svg = base64.b64decode((image["src"] or "").partition(",")[2]).decode()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert alts[0].startswith("Reward (reward) by step: ")
    ends = "0.100 at step 1 to 0.300 at step 3, lowest 0.100, highest 0.300."
    assert alts[2] == f"KL per token (nats / token) by step: {ends}"


def test_axes_carry_units(hostile: tuple[Path, Page]) -> None:
    svgs = [
        base64.b64decode((image["src"] or "").partition(",")[2]).decode() for image in hostile[1].of("img")
    ]
    texts = [
        [text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        for svg in svgs
    ]
    wanted = [
        ("step", "reward"), ("step", "nats / sequence"), ("step", "nats / token"), ("step", "nats / token"),
        ("step", "share different"), ("step", "tokens"), ("step", "share of stories"), ("step", "L2 norm"),
        ("step", "seconds"), ("KL (nats / sequence)", "reward"), ("reward", "share of stories"),
        ("nats / sequence", "share of stories"),
    ]  # fmt: skip
    for labels, (x, y) in zip(texts, wanted, strict=True):
        assert x in labels and y in labels


def test_header_says_what_was_trained_and_what_came_of_it(hostile: tuple[Path, Page]) -> None:
    text = hostile[1].text
    assert "0.1 per nat of sequence KL (the blog’s beta 9.9)" in text
    assert "Reward rose from 5.00 to 12.5, 2.5 times the base." in text
    assert "95% intervals: 4.75 to 5.25 before, 12.0 to 13.0 after." in text
    assert "It cost 17.2 nats of KL a sequence (0.295 a token)." in text
    assert (
        "Of all word pairs 63% are different, 87.5% of the base’s. 98.4% of the stories are unique." in text
    )
    assert (
        "The run ended after 3 steps and 4 min 10 s. Why it stopped: all steps done. Best checkpoint: step 2."
        in text
    )
    assert "padded = unpadded log-probs" in text and "81% of stories" in text
    assert "mean over completions of sum_t (logp - ref_logp)" in text  # the definition of kl/sequence
    assert "model_name_or_path: seedling" in text and '"python": "3.11.9"' in text


def test_controls_have_labels_and_the_count_is_announced(hostile: tuple[Path, Page]) -> None:
    source = (hostile[0] / "report.html").read_text(encoding="utf-8")
    assert '<label for="step">' in source
    for identifier in ("all-steps", "sort", "search"):
        assert source.index("<label", source.rindex("</label>", 0, source.index(f'id="{identifier}"'))) > 0
    [count] = [attributes for _, attributes in hostile[1].tags if attributes.get("id") == "count"]
    assert count["aria-live"] == "polite"
    identifiers = [attributes["id"] for _, attributes in hostile[1].tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert all(image["alt"] for image in hostile[1].of("img"))


def test_live_run_says_that_it_has_not_ended(tmp_path: Path) -> None:
    folder = fabricate.write(tmp_path / "live", steps=2, ended=False, merged=False, with_metrics=False)
    document = build(folder)
    assert "This run has not ended." in document.text
    assert "Best checkpoint" not in document.text and "stop, step" not in document.text
    assert len(document.data["step"]) == 8
    with Run.resume(folder, print) as run:
        started = fabricate.summary(2, 1)
        del started["after"]
        run.write_summary(started | {"stop_reason": None})
    document = build(folder)
    assert "This run has not ended." in document.text
    assert "5.00 (4.75 to 5.25)" in document.text and "not measured" in document.text


def test_breach_found_by_preflight_is_named(tmp_path: Path) -> None:
    with Run.create(tmp_path / "breach", fabricate.CONFIG, {}) as run:
        check = {
            "name": "padding <changes> log-probs",
            "value": "2.1",
            "bound": "at most 1e-04",
            "status": "breach",
        }
        run.write_summary({"stop_reason": None, "preflight": [check]})
    document = build(tmp_path / "breach")
    assert "Breached: padding <changes> log-probs." in document.text
    assert {"class": "failed"} in document.of("span")


def test_run_without_rewards_leaves_out_what_needs_them(tmp_path: Path) -> None:
    document = build(fabricate.write(tmp_path / "unscored", steps=2, size=2, scored=False))
    assert "Not measured in this run: Reward." in document.text
    alts = " ".join(image["alt"] or "" for image in document.of("img"))
    assert "Reward" not in alts and "KL, early to late" in alts
    assert document.data["reward"] == [None] * 4 and document.data["comparison"]["pairs"] == []


def fresh(folder: Path, side: str, step: int, prompt: str) -> list[dict[str, Any]]:
    """Writes before.jsonl or after.jsonl as the rl stage does, and returns its rows."""
    named = fabricate.columns(step, 3, 5)
    names = ("completion", "reward", "kl", "logp", "ref_logp", "ended", "spans")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(named[name] for name in names), strict=True)]
    rows = [{"prompt": prompt} | row for row in rows]
    (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("One day", "held-out prompts;"), (fabricate.PROMPT, "the prompts of the training;")],
)
def test_stories_of_before_and_after_are_the_fresh_samples(tmp_path: Path, prompt: str, words: str) -> None:
    folder = fabricate.write(tmp_path / "run")
    before = fresh(folder, "before", 1, prompt)
    # Until both are there, the stories are of the first and of the best step.
    assert build(folder).data["comparison"]["heads"] == ["Before: step 1", "After: step 2, the best"]
    after = fresh(folder, "after", 3, prompt)
    document = build(folder)
    found = document.data["comparison"]
    assert found["heads"] == ["Before: the model as it came", "After: final/"]
    middle = found["pairs"][0]
    for side, rows in (("before", before), ("after", after)):
        # Of five stories the typical one has the third lowest reward.
        expected = sorted(rows, key=lambda row: row["reward"])[2]
        assert found["stories"]["reward"][middle[side]] == expected["reward"]
        story = (found["stories"]["completion"][middle[side]], found["stories"]["kl"][middle[side]])
        assert story in [(row["completion"], row["kl"]) for row in rows]
    assert f"fresh samples from {words}" in document.text


def test_damaged_fresh_samples_are_named(tmp_path: Path) -> None:
    folder = fabricate.write(tmp_path / "run", steps=1)
    fresh(folder, "before", 1, "One day")
    (folder / "after.jsonl").write_text('{"prompt": "One day"}\n{"prompt": \n')
    with pytest.raises(RunError, match=r"after\.jsonl line 2 is not a sample"):
        page.write(folder, None, None)


def test_run_without_samples_and_run_without_steps_say_so(tmp_path: Path) -> None:
    document = build(fabricate.write(tmp_path / "bare", steps=1, with_samples=False))
    assert "This run has stored no samples." in document.text
    document = build(fabricate.write(tmp_path / "empty", steps=0, ended=False))
    for words in (
        "It has not finished a single step.",
        "No step has been measured yet.",
        "No preflight is stored",
    ):
        assert words in document.text
    assert document.of("img") == []


def test_pretraining_run_gets_its_own_curves(tmp_path: Path) -> None:
    with Run.create(tmp_path / "pretrain", {"steps": 2}, {}) as run:
        run.log({"step": 1, "loss/train": 4.0, "grad_norm": 1.5})
        run.log({"step": 2, "loss/train": 3.5, "loss/validation": 3.75, "grad_norm": 1.25})
        run.write_summary({"stage": "pretrain", "steps": 2, "stop_reason": "steps", "wall_time_seconds": 3.0})
    document = build(tmp_path / "pretrain")
    titles = [(image["alt"] or "").split(" (")[0] for image in document.of("img")]
    assert titles == ["Gradient norm", "Loss"]
    assert "Not measured" not in document.text


def test_components_of_a_summed_reward_are_shown(tmp_path: Path) -> None:
    columns = fabricate.columns(1, 1, 2)
    with Run.create(tmp_path / "sum", {}, {}) as run:
        run.add_samples(1, columns | {"reward/length": [0.5, None], "reward/letter_count": [3.0, 4.0]})
    assert build(tmp_path / "sum").data["components"] == {"length": [0.5, None], "letter_count": [3, 4]}


def test_max_samples_keeps_an_even_part_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = build(fabricate.write(tmp_path / "many", steps=4, size=5, with_metrics=False), max_samples=4)
    # Of rows 0 to 19 these are 0, 6, 13 and 19: one of each step.
    assert document.data["step"] == [1, 2, 3, 4]
    assert "4 of 20 stored samples, evenly spread over the run" in document.text
    assert capsys.readouterr().out.startswith(f"report: {tmp_path / 'many' / 'report.html'} (")


def test_page_is_the_same_bytes_each_time(hostile: tuple[Path, Page], tmp_path: Path) -> None:
    again = page.write(hostile[0], tmp_path / "again.html", None)
    assert again.path.read_bytes() == (hostile[0] / "report.html").read_bytes()
    assert (again.bytes, again.samples) == (again.path.stat().st_size, 20)


def test_what_is_no_run_or_no_report_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = fabricate.write(tmp_path / "run", steps=0, ended=False)
    (tmp_path / "thesis.tex").write_text("four years of work")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "damaged" / "summary.json").write_text('{"stage": ')
    cases = (
        ((tmp_path / "nowhere", None), "does not exist"),
        ((tmp_path, None), "is not a run folder"),
        ((tmp_path / "damaged", None), "summary.json is damaged"),
        ((folder, tmp_path), "is a folder; name a file"),
        ((folder, tmp_path / "no" / "page.html"), "does not exist; create it first"),
        ((folder, tmp_path / "thesis.tex"), "exists and is no report"),
    )
    for (run, output), words in cases:
        with pytest.raises(RunError, match=words) as caught:
            page.write(run, output, None)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "thesis.tex").read_text() == "four years of work"


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    folder = fabricate.write(tmp_path / "run", steps=1, ended=False)
    (folder / "samples.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(RunError, match="its samples cannot be read") as caught:
        page.write(folder, None, None)
    assert "\n" not in str(caught.value)


def test_options_are_sound_and_the_run_stands_first() -> None:
    assert flaws(report.Config) == []
    parsed = parse(report.Config, ["runs/a", "--max_samples", "5"], "talltree report", report.POSITIONAL)
    assert parsed == report.Config(run="runs/a", max_samples=5)
    for arguments in ([], ["runs/a", "--max_samples", "0"]):
        with pytest.raises(ConfigError):
            parse(report.Config, arguments, "talltree report", report.POSITIONAL)


def test_report_needs_no_torch_and_its_options_no_matplotlib() -> None:
    code = (
        "import sys, talltree.report; assert not {'torch', 'matplotlib', 'pyarrow'} & set(sys.modules); "
        "import talltree.report.page; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
