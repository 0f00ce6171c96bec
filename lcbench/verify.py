"""`lcbench verify`: the conformance suite on one composition."""

from __future__ import annotations

from typing import Any

from lcbench.attention.base import Attention
from lcbench.composition import Composition
from lcbench.conformance import Certificate, certify, oracle_of
from lcbench.construction import construct
from lcbench.engine.settings import Trainer
from lcbench.errors import ConfigurationError
from lcbench.position.base import LayerShape

#: tokens of a certificate's inputs
SHORTEST_LENGTH, LONGEST_LENGTH = 37, 261


def verify(composition: Composition) -> Certificate:
    """Certify the attention layer of a composition, at the model's width and heads and on the trainer's device.

    Raises:
        ConfigurationError: if the model has no attention.
    """
    config = composition.config
    if "attention" not in config:
        model = composition.choices["model"]
        raise ConfigurationError(f"model={model} has no attention to verify; take model=decoder.")
    attention, position, model = (config[group] for group in ("attention", "position", "model"))
    shape = LayerShape(d_model=model["d_model"], n_heads=model["n_heads"], bias=model["bias"])

    def make() -> Attention:
        layer = construct(attention, shape, construct(position, shape))
        assert isinstance(layer, Attention)
        return layer

    # several segments, so that what happens between them is seen, as far as a certificate has time for them
    segment = make().segment or 0
    length = max(SHORTEST_LENGTH, min(2 * segment + 5, LONGEST_LENGTH))
    trainer: Trainer = construct(config["trainer"])
    oracle = together = None
    if all(node["_target_"].startswith("lcbench.") for node in (attention, position)):
        oracle, together = (
            oracle_of(
                _name(attention),
                _name(position),
                n_heads=shape.n_heads,
                attention_options=_options(attention),
                position_options=_options(position),
                together=both_ways,
            )
            for both_ways in (False, True)
        )
    return certify(
        make,
        composition=f"attention={_name(attention)} position={_name(position)} "
        f"d_model={shape.d_model} n_heads={shape.n_heads}",
        device=trainer.device,
        length=length,
        seed=config["seed"],
        oracle=oracle,
        oracle_together=together,
        compile=trainer.compile,
    )


def _name(node: dict[str, Any]) -> str:
    """The config name of a component of lcbench, which is its module's; of another, the class."""
    module, _, name = node["_target_"].rpartition(".")
    return module.rpartition(".")[2] if module.startswith("lcbench.") else f"{module}.{name}"


def _options(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}
