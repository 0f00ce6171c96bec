"""Types of options."""

from __future__ import annotations

from typing import Annotated

import pydantic

from lcbench.lengths import parse_length

Length = Annotated[int, pydantic.BeforeValidator(parse_length)]
