"""Sentence boundaries, by hand."""

import pytest

from talltree.data.sentences import sentence_ends, sentence_starts


def divided(text):
    return [text[start:end] for start, end in zip(sentence_starts(text), sentence_ends(text), strict=True)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["One.", "Two!", "Three?", "Four…", "And five"],
        ["She said hello.", "He did not."],
        ["Mr. Fox met Mrs. Hen and Dr. Owl.", "They ate."],
        ["J. R. Smith wrote it.", "So did I.", "A.B. Brown did not."],
        ["It cost 3.50 dollars.", "Version 2.0 is out."],
        ['"Stop!" he said.', '"Why?" asked Tom.', '"Go."', "(It went.)", "It did."],
        ["“Wow, that is it!", "Can I have it?” she asked.", "“Of course.”", "So Ben took it."],
        ["Wait... what?", "No way...", "Yes."],
        ["e.g. this one, i.e. that one.", "Done."],
        ["No.", "He said no."],
        ["今日は。", "「行こう！」", "はい"],
    ],
)
def test_a_text_of_known_sentences_is_divided_into_them(sentences):
    joint = "" if "今" in sentences[0] else " "
    assert divided(joint.join(sentences)) == sentences
    if joint:
        assert divided("\n" + "  \n".join(sentences) + " \n") == sentences


def test_a_blank_line_ends_a_sentence_and_a_single_newline_does_not():
    assert divided("A Title\n\nonce upon a time\nthere was a fox\n \n\nThe end") == [
        "A Title",
        "once upon a time\nthere was a fox",
        "The end",
    ]


def test_the_last_end_is_that_of_the_text_and_blank_texts_have_none():
    assert sentence_ends("No mark at all  ") == [14]
    assert sentence_ends("One. Two. ") == [4, 9]
    assert sentence_ends("") == sentence_ends(" \n\n ") == sentence_starts(" \n\n ") == []
