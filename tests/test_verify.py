"""`lcbench verify`, as a user calls it."""

from __future__ import annotations

import pytest

from lcbench.cli import main
from lcbench.composition import compose
from lcbench.errors import ConfigurationError
from lcbench.verify import verify


def test_full_attention_is_certified_with_its_oracle(capsys):
    assert main(["verify", "position=rope", "model.d_model=16", "model.n_heads=2"]) == 0
    shown = capsys.readouterr().out
    assert "attention=full position=rope d_model=16 n_heads=2" in shown
    assert "certified" in shown


def test_a_users_own_leaking_class_is_not_certified(tmp_path, monkeypatch):
    (tmp_path / "leaking.py").write_text(
        "import dataclasses\n"
        "from lcbench.attention.full import Full\n"
        "class Leaking(Full):\n"
        "    def forward(self, x, context, state=None):\n"
        "        output = super().forward(x, context, state)\n"
        "        return dataclasses.replace(output, y=output.y + x.mean(1, keepdim=True))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    composition = compose(["attention._target_=leaking.Leaking", "model.d_model=16", "model.n_heads=2"])
    certificate = verify(composition)
    assert not certificate.passed
    assert "causality" in certificate.failed
    assert "leaking.Leaking" in certificate.composition


def test_a_model_without_attention_has_nothing_to_verify():
    with pytest.raises(ConfigurationError, match="model=lstm has no attention"):
        verify(compose(["model=lstm"]))
