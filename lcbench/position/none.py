"""No position encoding (NoPE): order enters through the causal mask alone.

Haviv et al., "Transformer Language Models without Positional Encodings Still Learn Positional Information", 2022,
arXiv 2203.16634; Kazemnejad et al., 2023, arXiv 2305.19466. Score: ``c * s_ij``.
"""

from lcbench.position.base import PositionEncoding


class NoPosition(PositionEncoding):
    """Adds nothing; without a mask, attention cannot tell the order of its keys."""
