"""Worker processes of this machine: a run that takes its worker down is tried once more, then it is a row.

Processes are spawned, not forked (JAX has threads). Each does the seeds of one column on one model, which share what
was compiled, and nothing else: so the first seed's time and memory are those of a user's fresh Python. A worker gets
one run at a time, so that what it was at when it died is known.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm.auto import tqdm

from .execute import Finished, Job, execute

TRIES = 2


class WorkersError(RuntimeError):
    """Worker processes do not even start."""


def serve(connection: Connection) -> None:
    """A worker's life: jobs in, results out, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore of the system, which a killed worker leaves behind
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send("ready")
        while True:
            connection.send(execute(connection.recv()))


class _Worker:
    def __init__(self, context: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        with _ignoring_interrupts():  # inherited: a worker that is still starting must not hear Ctrl-C either
            self.process.start()
        theirs.close()
        self.ready = False
        self.group: deque[Job] = deque()
        self.job: Job | None = None

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()

    def how_it_died(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"{name}, out of memory perhaps" if name == "SIGKILL" else name


def in_processes(groups: Sequence[Sequence[Job]], num_workers: int) -> Generator[Finished]:
    """Finished runs, as they come. Runs of one group stay on one worker.

    Raises:
        WorkersError: processes cannot be started.
    """
    context = multiprocessing.get_context("spawn")
    pending = deque(deque(group) for group in groups if group)
    deaths: Counter[tuple[str, str, int]] = Counter()
    workers: dict[Any, _Worker] = {}
    try:
        while pending or workers:
            while pending and len(workers) < num_workers:
                worker = _Worker(context)
                worker.group = pending.popleft()
                workers[worker.connection] = worker
            for connection in wait(list(workers)):
                worker = workers[connection]
                message = None
                with contextlib.suppress(EOFError, OSError):
                    message = worker.connection.recv()
                if message is None:  # it died
                    del workers[connection]
                    yield from _after_death(worker, deaths, pending)
                    continue
                if isinstance(message, Finished):
                    worker.job = None
                    yield message
                worker.ready = True
                if worker.group:
                    worker.job = worker.group.popleft()
                    with contextlib.suppress(OSError):  # it died just now: `wait` will say so
                        worker.connection.send(worker.job)
                else:
                    worker.stop()
                    del workers[connection]
    finally:
        for worker in workers.values():
            worker.stop()
        for worker in workers.values():
            worker.process.join(2)
            if worker.process.is_alive():
                worker.process.kill()


def _after_death(worker: _Worker, deaths: Counter, pending: deque[deque[Job]]) -> Generator[Finished]:
    """What a dead worker leaves: its run again or as a failed row, and the rest of its group for another."""
    how = worker.how_it_died()
    if not worker.ready:
        raise WorkersError(
            f"worker processes do not start ({how}): in a script, call estimax.benchmark under "
            'if __name__ == "__main__":, or give jobs=0 to run without workers'
        )
    job = worker.job
    if job is not None:
        deaths[job.key] += 1
        if deaths[job.key] < TRIES:
            worker.group.appendleft(job)
        else:
            case, column, seed = job.key
            reason = f"its worker was killed {TRIES} times ({how})"
            yield Finished({"case": case, "column": column, "seed": seed, "status": "failed", "reason": reason})
    if worker.group:
        pending.appendleft(worker.group)


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, where signals cannot be set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def in_this_process(groups: Sequence[Sequence[Job]]) -> Generator[Finished]:
    """The same without workers: for models that cannot be pickled, and for debugging."""
    for group in groups:
        for job in group:
            yield execute(job, own_process=False)
