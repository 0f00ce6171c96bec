"""Imported by the server that measuring processes are forked from, and by nothing else: it ends with the command,
however that ends, and so do they."""

from __future__ import annotations

from lcbench.engine.interrupt import end_with_parent

end_with_parent()
