"""The grammar of answers: whatever is drawn under it is well-formed, and everything well-formed can be drawn."""

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mglmm.codecs import BOX_LETTERS
from mglmm.config import BUNDLED
from mglmm.formats import read_answer
from mglmm.grammar import BLANKS, Grammar
from mglmm.tokens import LiteralTokenizer, special_ids

LITERAL = LiteralTokenizer(AutoTokenizer.from_pretrained(BUNDLED))
IDS = special_ids(AutoTokenizer.from_pretrained(BUNDLED))
LETTERS, SPACES = LITERAL.spelling(BOX_LETTERS), frozenset(LITERAL.spelling(BLANKS))
POOL = (IDS.eos, IDS.seg, IDS.phrase_open, IDS.phrase_close, *LETTERS, *SPACES, *LITERAL.encode(" the dog"))


@settings(max_examples=200)
@given(st.integers(1, 80), st.data())
def test_grammar_is_never_malformed(budget, data):
    liked = data.draw(st.lists(st.sampled_from(POOL), min_size=1, max_size=6))
    order = data.draw(st.randoms(use_true_random=False))
    grammar, said = Grammar(IDS, LETTERS, SPACES), []
    while len(said) < budget:
        only, never = grammar.rule(budget - len(said))
        allowed = [token for token in POOL if token not in never] if not only else list(only)
        assert allowed
        token = order.choice([token for token in liked if token in allowed] or allowed)
        if token == IDS.eos:
            break
        grammar.take(token)
        said.append(token)
    read = read_answer(said, LITERAL, IDS, (100, 100))
    assert all("is empty or out of range" in note for note in read.notes), read.notes
    assert said.count(IDS.phrase_open) == said.count(IDS.phrase_close) == len(read.phrases)
    for phrase in read.phrases:
        assert phrase.end > phrase.start
        assert phrase.segs or phrase.boxes or any("left out" in note for note in read.notes)


def test_grammar_opens_nothing_it_could_not_close():
    grammar = Grammar(IDS, LETTERS, SPACES)
    assert IDS.phrase_open in grammar.rule(3)[1] and IDS.phrase_open not in grammar.rule(4)[1]
    grammar.take(IDS.phrase_open)
    assert not SPACES.difference(grammar.rule(3)[1])
    grammar.take(LITERAL.encode("dog")[0])
    assert grammar.rule(2) == ((IDS.phrase_close,), ())
    grammar.take(IDS.phrase_close)
    assert grammar.rule(1) == ((IDS.seg,), ())


def test_grammar_spells_boxes_to_their_end():
    grammar = Grammar(IDS, LETTERS, SPACES)
    for token in [IDS.phrase_open, *LITERAL.encode("dog"), IDS.phrase_close]:
        grammar.take(token)
    for token in LITERAL.encode(" [12, 345, 6, 78]"):
        only, never = grammar.rule(50)
        assert token in only and not never
        grammar.take(token)
    assert grammar.rule(50) == ((), (IDS.phrase_close, IDS.seg))
