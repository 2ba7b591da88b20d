"""Progress: a bar with rate and time left on a terminal, plain lines elsewhere and in log files."""

from __future__ import annotations

import logging
import os
import sys
import time

log = logging.getLogger("semivid")
LINE_SECONDS = 15.0


def on_terminal() -> bool:
    """True if bars can be drawn; several stages at once (an engine with cores > 1) ask for plain lines."""
    return sys.stderr.isatty() and os.environ.get("SEMIVID_PROGRESS") != "plain"


class Progress:
    """Counts to `total`; shows a tqdm bar on a terminal, else a line now and then with rate and time left."""

    def __init__(self, title: str, start: int, total: int) -> None:
        self.title, self.total, self.done = title, total, start
        self._first, self._begin = start, time.monotonic()
        self._last_line = self._begin
        self._bar = None
        if on_terminal():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, desc=title, leave=False)

    def advance(self, done: int, values: dict[str, float] | None = None) -> None:
        """`done` of `total` are finished; `values` are shown beside it."""
        self.done = done
        shown = " ".join(f"{k} {v:.4g}" for k, v in (values or {}).items())
        if self._bar is not None:
            self._bar.n = done
            if shown:
                self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(0)
            return
        now = time.monotonic()
        if now - self._last_line < LINE_SECONDS and done != self.total:
            return
        self._last_line = now
        rate = (done - self._first) / max(now - self._begin, 1e-9)
        left = (self.total - done) / max(rate, 1e-9)
        log.info("%s %d/%d, %.1f/s, %.0f s left %s", self.title, done, self.total, rate, left, shown)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
