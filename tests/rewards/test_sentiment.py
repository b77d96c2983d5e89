from __future__ import annotations

import subprocess
import sys

import pytest

from talltree.errors import RewardError
from talltree.rewards import sentiment
from talltree.rewards.sentiment import Sentiment


def test_sentiment_is_the_mean_of_the_sentences() -> None:
    # VADER rates happy 2.7 and sad -2.1: 2.7 / sqrt(2.7^2 + 15) = 0.5719, -2.1 / sqrt(2.1^2 + 15) = -0.4767;
    # both in one text: 0.6 / sqrt(0.6^2 + 15) = 0.1531
    completions = ["Tom was happy.", "Tom was sad.", "Tom was happy. Tom was sad.", "Tom.", "", "..."]
    prompts = ["Sad."] * len(completions)
    expected = [0.5719, -0.4767, 0.0476, 0, 0, 0]
    assert Sentiment()(prompts, completions) == [pytest.approx(value, abs=1e-4) for value in expected]
    assert Sentiment(by="text")([""], ["Tom was happy and sad."]) == [pytest.approx(0.1531, abs=1e-4)]


def test_negation_is_known() -> None:
    assert Sentiment()([""], ["Tom was not happy."])[0] < 0  # type: ignore[operator]


def test_sentiment_spans_are_the_positive_words() -> None:
    #                                  0123456789012345678901
    assert Sentiment().spans("Happy", " Sad Tom was Happy!") == [(5 + 13, 5 + 18)]


def test_sentiment_refuses_another_unit() -> None:
    with pytest.raises(RewardError, match="sentiment: by 'word' is unknown; use 'sentence' or 'text'"):
        Sentiment(by="word")


def test_a_missing_lexicon_is_named_before_any_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentiment, "find_spec", lambda name: None)
    with pytest.raises(RewardError, match="pip install vaderSentiment"):
        Sentiment()


def test_the_lexicon_is_imported_only_when_it_scores() -> None:
    code = (
        "import sys; from talltree import rewards; reward = rewards.load('sentiment')\n"
        "assert 'vaderSentiment' not in sys.modules; reward([''], ['x'])\n"
        "assert 'vaderSentiment' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
