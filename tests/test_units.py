import pydantic
import pytest

from lcbench.lengths import parse_length
from lcbench.units import Length


@pytest.mark.parametrize(
    ("text", "tokens"),
    [(512, 512), ("512", 512), ("64k", 64_000), ("1M", 1_000_000), ("1.5k", 1500), (" 2k ", 2000), ("1e9", 10**9)],
)
def test_lengths_are_decimal(text: object, tokens: int) -> None:
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "64K", "1.5", "1.0005k", "-1", "64 k", True, 1.5, None])
def test_what_is_no_length_is_refused_by_name(text: object) -> None:
    with pytest.raises(ValueError, match="not a number of tokens; write a whole number such as 512, 64k or 1M"):
        parse_length(text)


def test_length_validates_a_field() -> None:
    adapter = pydantic.TypeAdapter(Length)
    assert adapter.validate_python("64k") == 64_000
    with pytest.raises(pydantic.ValidationError, match="such as 512"):
        adapter.validate_python("lots")
