"""The other end of `measuring.Side`: work is done when a line of JSON asks for it. No library is needed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(make: Callable[..., tuple[dict[str, Any], Callable[..., dict[str, Any]]]]) -> None:
    """Set up by the argument of this program, say what came of it, then answer until the input ends.

    Args:
        make: from the setup to what is said of it, and the function that does a piece of work.
    """
    about, work = make(**json.loads(sys.argv[1]))
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps(work(**json.loads(line))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # loading processes that have work left need no farewell
