"""Cut a text into sentences, so that the first is heard while the others are made, and each has its own caption."""

from __future__ import annotations

import re

MAX_CHARACTERS = 300  # of one piece: an engine starts to speak a longer one late
MIN_CHARACTERS = 12  # a shorter sentence is spoken with the next one, which sounds better than alone

#: The end of a sentence: its mark and closing quotes, before a space; in Chinese and Japanese without one.
_END = re.compile(r"(?:[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”]*)")
#: A full stop that ends no sentence: of a title, of an abbreviation, of an initial.
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|No|e\.g|i\.e|z\.B|bzw)|\b[A-Z])\.$")
_BREAK = re.compile(r"[,;:–—]\s|\s")


def one_line(text: str) -> str:
    """The text without line breaks and control characters, single spaces between words."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order, each of one line; none where there is nothing to say."""
    text = one_line(text)
    found, start = list[str](), 0
    for end in (match.end() for match in _END.finditer(text)):
        sentence = text[start:end].strip()
        if len(sentence) >= MIN_CHARACTERS and not _ABBREVIATION.search(sentence):
            found += _pieces(sentence)
            start = end
    found += _pieces(text[start:].strip())
    return [sentence for sentence in found if any(letter.isalnum() for letter in sentence)]


def _pieces(sentence: str) -> list[str]:
    """A sentence in pieces that are short enough, cut at its commas, else between words."""
    pieces = []
    while len(sentence) > MAX_CHARACTERS:
        breaks = [(len(match[0]), match.end()) for match in _BREAK.finditer(sentence, 0, MAX_CHARACTERS)]
        late = [found for found in breaks if found[1] > MAX_CHARACTERS // 3]
        end = max(late, default=(0, MAX_CHARACTERS))[1]
        pieces.append(sentence[:end].strip())
        sentence = sentence[end:].strip()
    return [*pieces, sentence]
