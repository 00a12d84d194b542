"""The same runs on a Dask cluster (``pip install 'estimax[cluster]'``).

Workers need estimax and the same packages; a posteriordb clone must be at the same place for all. One thread a worker
(``dask worker --nthreads 1``), else runs disturb each other's clocks.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from ..files import BadInput
from .execute import Finished, Job, execute

SECONDS_TO_CONNECT = 10


def on_cluster(groups: Sequence[Sequence[Job]], address: Any) -> Generator[Finished]:
    """Finished runs, as they come.

    Args:
        address: of the scheduler, ``"tcp://host:8786"``; or a `distributed` client or cluster.

    Raises:
        BadInput: distributed is not installed, or no scheduler answers at the address.
    """
    try:
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise BadInput("a Dask cluster needs distributed: pip install 'estimax[cluster]'") from error
    own = not isinstance(address, Client)
    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False) if own else address
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"no Dask scheduler at {address!r}: start one with `dask scheduler`, workers with "
                       "`dask worker ADDRESS --nthreads 1`") from error  # fmt: skip
    futures = {}
    try:
        for group in groups:
            for job in group:
                # Not pure: two runs of equal arguments are two runs. One retry after the death of a worker, as here.
                futures[client.submit(execute, job, pure=False)] = job
        for future in as_completed(list(futures)):
            case, column, seed = futures[future].key
            if future.status == "finished":
                yield future.result()
                future.release()
                continue
            failure = future.exception()
            killed = isinstance(failure, KilledWorker)
            reason = "its worker was killed repeatedly" if killed else f"{failure}"
            yield Finished({"case": case, "column": column, "seed": seed, "status": "failed", "reason": reason})
    finally:
        client.cancel(list(futures))
        if own:
            client.close()
