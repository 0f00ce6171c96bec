"""The laws every attention mechanism must obey, and a certificate of whether one does."""

from lcbench.conformance.certificate import Certificate, Check
from lcbench.conformance.certify import LAWS, certify
from lcbench.conformance.oracles import find_oracle, oracle_of
from lcbench.conformance.subject import Oracle

__all__ = ["LAWS", "Certificate", "Check", "Oracle", "certify", "find_oracle", "oracle_of"]
