"""Text as `hal serve` streams it: stop strings wherever the tokens cut them, and never half a character."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from hal.serving.detokenizer import Detokenizer
from hal.serving.stops import StopStrings

SEED = int(os.environ.get("HAL_TEST_SEED") or random.SystemRandom().randrange(1 << 31))


def fed(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    """What is shown of each piece, the rest held back included, and whether a stop string was found."""
    watch, shown = StopStrings(stops), []
    for piece in pieces:
        text, found = watch.feed(piece)
        shown.append(text)
        if found:
            return shown, True
    return [*shown, watch.flush()], False


@pytest.mark.parametrize(("stops", "pieces", "shown", "found"), [
    ([], ["ab", "c"], ["ab", "c", ""], False),
    (["xy"], ["ab", "c"], ["ab", "c", ""], False),
    (["b"], ["abc"], ["a"], True),
    (["END"], ["one E", "N", "D two"], ["one ", "", ""], True),  # over three pieces
    (["END"], ["one E", "N", "E two"], ["one ", "", "ENE two", ""], False),  # not after all
    (["END"], ["one EN"], ["one ", "EN"], False),  # ends before it is known
    (["aab"], ["aa", "ab"], ["", "a"], True),  # the beginning moves on
    (["abcd", "bc"], ["ab", "cd"], ["", "a"], True),  # bc is complete first
    (["bc", "abc"], ["abc"], [""], True),  # both at once: the longer
    (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""], True),
])
def test_stop_strings(stops: list[str], pieces: list[str], shown: list[str], found: bool) -> None:
    assert fed(stops, pieces) == (shown, found)


def _by_hand(stops: Sequence[str], text: str) -> tuple[str, bool]:
    """Letter by letter: what stands before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[:end - max(map(len, ended))], True
    return text, False


def test_stop_strings_do_not_depend_on_the_pieces() -> None:
    print("seed", SEED)
    random_ = random.Random(SEED)
    found = 0
    for _ in range(3000):
        text = "".join(random_.choices("ab", k=random_.randrange(1, 14)))
        stops = ["".join(random_.choices("ab", k=random_.randrange(1, 6))) for _ in range(random_.randrange(1, 4))]
        cuts = sorted(random_.choices(range(len(text) + 1), k=3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        shown, stopped = fed(stops, pieces)
        assert ("".join(shown), stopped) == _by_hand(stops, text), (stops, pieces)
        found += stopped
    assert 500 < found < 2900


# ---- detokenizing --------------------------------------------------------------------------------------------------

def _bytes_decode(tokens: Sequence[int]) -> str:
    """A tokenizer of single bytes."""
    return bytes(tokens).decode("utf-8", errors="replace")


def test_no_half_character() -> None:
    text = "a\N{EURO SIGN}\N{GRINNING FACE}\N{LATIN SMALL LETTER E WITH ACUTE}b"
    detokenizer = Detokenizer(_bytes_decode)
    shown = [detokenizer.feed([byte]) for byte in text.encode()]
    assert shown == ["a", "", "", "\N{EURO SIGN}", "", "", "", "\N{GRINNING FACE}", "",
                     "\N{LATIN SMALL LETTER E WITH ACUTE}", "b"]
    assert detokenizer.flush() == ""


def test_a_character_that_never_ends_is_told_at_the_end() -> None:
    detokenizer = Detokenizer(_bytes_decode)
    assert detokenizer.feed([*b"ab", 0xE2, 0x82]) == ""  # shown together with what follows
    assert detokenizer.flush() == "ab\N{REPLACEMENT CHARACTER}"
    assert detokenizer.flush() == ""


def test_bytes_that_never_become_characters_are_not_held_for_ever() -> None:
    """What is decoded again for each token is bounded, and the pieces are still the whole."""
    print("seed", SEED)
    random_ = random.Random(SEED)
    most = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal most
        most = max(most, len(tokens))
        return _bytes_decode(tokens)

    whole = [*b"ab", *[0xE2] * 300, *"\N{EURO SIGN}\N{GRINNING FACE}".encode(),
             *random_.choices((0x82, 0xE2, 0xF0), k=500)]
    detokenizer, shown, at, late = Detokenizer(decode), "", 0, 0
    while at < len(whole):
        count = random_.randrange(1, 4)
        shown += detokenizer.feed(whole[at:at + count])
        at += count
        assert _bytes_decode(whole).startswith(shown)
        late = max(late, len(_bytes_decode(whole[:at])) - len(shown))
    assert shown + detokenizer.flush() == _bytes_decode(whole)
    assert most < 100
    assert late < 60


@pytest.mark.model
def test_pieces_are_the_whole(default_model: Path) -> None:
    """Random tokens of a real tokenizer, in random pieces: together what decode gives for all."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(default_model)

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    print("seed", SEED)
    random_ = random.Random(SEED)
    words = tokenizer.encode("na\u00efve \u4f60\u597d \U0001f600\U0001f3fd \u0928\u092e\u0938\u094d\u0924\u0947 x")
    for _ in range(100):
        tokens = random_.choices(range(tokenizer.vocab_size), k=20) + words + random_.choices(words, k=20)
        detokenizer, shown, at = Detokenizer(decode), "", 0
        while at < len(tokens):
            count = random_.randrange(1, 5)
            shown += detokenizer.feed(tokens[at:at + count])
            assert decode(tokens).startswith(shown), tokens
            at += count
        assert shown + detokenizer.flush() == decode(tokens), tokens
