import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lcbench.tokenizer.bytes import Bytes


@given(st.text())
def test_bytes_lose_nothing(text: str) -> None:
    ids = Bytes().encode(text)
    assert ids.dtype == np.int64
    assert len(ids) == len(text.encode())
    assert Bytes().decode(ids) == text


def test_what_is_no_text_still_decodes() -> None:
    assert Bytes().decode(np.array([72, 105, 255])) == "Hi\ufffd"
    assert len(Bytes.vocabulary) == 256
    assert Bytes.vocabulary[Bytes().encode("A")[0]] == "A"
