"""A worker: reads folders of jobs, a JSON string a line, does them and answers with a line of JSON each.

It ends with whoever started it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path

from passes._distillation.job import Answer, answer


def main() -> None:
    """Work until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log, too
    asked = queue.SimpleQueue[Path]()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while True:
        folder = asked.get()
        try:
            told: Answer = answer(folder)
        except Exception as error:  # ours: the log has the whole of it
            traceback.print_exc()
            told = {"kind": "CompressError", "text": f"{folder.name}: {type(error).__name__}: {error}"}
        print(json.dumps(told), file=answers, flush=True)


def _listen(asked: queue.SimpleQueue[Path]) -> None:
    for line in sys.stdin:
        asked.put(Path(json.loads(line)))
    os._exit(0)  # in the middle of a job, too: whoever resumes has its folder to himself


if __name__ == "__main__":
    main()
