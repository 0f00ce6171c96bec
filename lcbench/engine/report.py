"""Where a run, or the scoring of one, says what happens: on the console, in its log file, to the user's logger."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from rich.console import Console

from lcbench.engine.experiment import Experiment


class Reporting:
    """What says and ends it, for a class that has these attributes."""

    experiment: Experiment
    console: Console
    log: logging.Logger
    result: dict[str, Any]

    def _say(self, line: str | None) -> None:
        if line:
            self.console.print(line, soft_wrap=True)
            self.log.info("%s", line)

    def _close(self, exit_code: int, log_file: str, logger_started: bool = True) -> None:
        try:
            if logger_started:
                self._say(self.experiment.logger.finish(self.result, exit_code))
        except Exception:
            # a watcher's failure must not turn a finished run into a failed one
            self._say(f"the logger could not be closed; {log_file} says why")
            self.log.error("%s", traceback.format_exc())
        for handler in list(self.log.handlers):
            handler.close()
            self.log.removeHandler(handler)
