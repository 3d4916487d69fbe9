"""A rank other than 0, in its own process.

python -m fastkernels.engine.rank_process <descriptor>    # of the socket through which rank 0 tells it what to do
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from fastkernels.engine.executor import ModelExecutor
from fastkernels.engine.lifetime import end_with
from fastkernels.engine.rank_group import join_group, leaving_group, on_device, see_group_left, take_device
from fastkernels.engine.ranks import HERE, READY, Order, Refusal
from fastkernels.engine.sampler import Sampler
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.engine.structured import GrammarError
from fastkernels.errors import EXIT_NOT_PASSED, EXIT_OK, FastKernelsError


def serve_rank(descriptor: int) -> None:
    """A rank's life: build its share, then do what rank 0 says until it stops or is gone."""
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        _serve(connection)
    except FastKernelsError as error:
        _refuse(connection, Refusal(str(error), error.exit_code))
    except Exception as error:
        _refuse(connection, Refusal(f"{type(error).__name__}: {error}", EXIT_NOT_PASSED))
        raise


def _refuse(connection: Connection[Any, Any], refusal: Refusal) -> None:
    with contextlib.suppress(OSError):  # rank 0 is gone
        connection.send(refusal)


def _serve(connection: Connection[Any, Any]) -> None:
    order: Order = connection.recv()
    end_with(order.parent)
    take_device(order.config, order.rank)
    connection.send(HERE)
    join_group(order.config, order.rank, order.store)
    executor = ModelExecutor(on_device(order.config, order.rank))
    grammars: Connection[Any, Any] = Connection(order.grammars)
    threading.Thread(target=_compile_grammars, args=(grammars, executor.runner.sampler), daemon=True).start()
    connection.send(READY)
    with contextlib.suppress(EOFError, ConnectionResetError):
        _obey(connection, executor, order.rank)
    executor.close()
    see_group_left(leaving_group())


def _obey(connection: Connection[Any, Any], executor: ModelExecutor, rank: int) -> None:
    """Errors: EOFError or ConnectionResetError when rank 0 is gone."""
    while True:
        what, *rest = connection.recv()
        if what == "launch":
            executor.runner.launch(*rest)
        elif what == "accept":
            with contextlib.suppress(GrammarError):  # rank 0 meets it too, and ends the request
                executor.runner.accept(*rest)
        elif what == "kernels":
            connection.send([{**line, "rank": rank} for line in executor.kernels()])
        else:
            return


def _compile_grammars(connection: Connection[Any, Any], sampler: Sampler) -> None:
    """As long as rank 0 sends some; each is answered once it is compiled."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            params = SamplingParams(structured_outputs=connection.recv())
            with contextlib.suppress(Exception):  # rank 0 meets it too, and refuses the request
                sampler.check(params)
            connection.send(None)


def main(descriptor: int) -> NoReturn:
    """Serve, then end at once: an interpreter that shuts down waits for what NCCL still does."""
    code = EXIT_NOT_PASSED
    try:
        serve_rank(descriptor)
        code = EXIT_OK
    except Exception:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
