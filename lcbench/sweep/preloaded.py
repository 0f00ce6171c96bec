"""Imported by the server that jobs are forked from, and by nothing else.

The server ends with the sweep, however that ends. A signal to stop waits: a cluster may send it to every process of a
job, and the server has to outlive the checkpoints. A job inherits the mask and lifts it once it can obey, so that no
signal is lost before.
"""

from __future__ import annotations

import signal

from lcbench.engine.interrupt import end_with_parent
from lcbench.sweep.forked import STOPS

signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
end_with_parent()
