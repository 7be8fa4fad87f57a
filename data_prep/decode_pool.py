"""Decodes the items of a plan, in order, in worker processes that one file may end, but not the pack."""

import hashlib
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue

from msgspec.structs import replace

from data_prep import limits, phantom
from data_prep.errors import DataError
from data_prep.image import BadImageError, Picture, make_picture, read_file, stage
from data_prep.items import Item, unescape
from data_prep.pack_plan import Plan
from data_prep.shards import ImageRecord, Packed, Reject

# Images handed to a worker at a time: enough to hide the hand-over, few enough for smooth progress.
CHUNK_IMAGES = 8
# Chunks per worker that may wait to be written: a second of decoding, as long as a shard is synced to disk.
AHEAD_CHUNKS = 32
MAX_WORKERS = 1024

# not forked: the workers must share no file handles, locks or threads with this process
SPAWN = get_context("spawn")
# A process is started and buried by one thread at a time: each would collect the others' exit codes.
process_lock = threading.Lock()


@contextmanager
def decoder(plan: Plan, workers: int) -> Iterator[Callable[[Iterable[Item]], Iterator[Packed]]]:
    """A function that decodes items in order, in `workers` processes; one alone draws phantoms right here."""
    plan = replace(plan, shards=())  # without its items, which would go along to every worker
    if workers == 1 and plan.kind == "phantom":
        yield partial(map, partial(decode_item, plan))
        return
    crew = [Worker(plan) for _ in range(workers)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in crew:
        idle.put(worker)
    threads = ThreadPoolExecutor(workers)
    try:
        yield partial(_decode_in, threads, AHEAD_CHUNKS * workers, partial(_decode_chunk, idle))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in crew:
            worker.end()
        threads.shutdown(wait=True)


def _decode_in(
    threads: ThreadPoolExecutor,
    ahead: int,
    job: Callable[[list[Item]], list[Packed]],
    items: Iterable[Item],
) -> Iterator[Packed]:
    """Like map(job, items), but in the workers; at most `ahead` chunks wait, so memory stays small."""
    waiting: deque[Future[list[Packed]]] = deque()
    items = iter(items)
    while chunk := list(islice(items, CHUNK_IMAGES)):
        waiting.append(threads.submit(job, chunk))
        if len(waiting) == ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _decode_chunk(idle: "SimpleQueue[Worker]", chunk: list[Item]) -> list[Packed]:
    worker = idle.get()
    try:
        return worker.decode(chunk)
    finally:
        idle.put(worker)


class Worker:
    """A process that decodes for one thread of ours at a time, started anew after a file has ended it."""

    def __init__(self, plan: Plan) -> None:
        """`plan` needs no items. Nothing is started before there is something to decode."""
        self.plan = plan
        self.process: SpawnProcess | None = None
        self.has_ended = False

    def decode(self, chunk: list[Item]) -> list[Packed]:
        """One answer for each item; DataError if the process ended for a reason that is no file's."""
        done: list[Packed] = []
        while len(done) < len(chunk):
            try:
                pipe = self._start()
                pipe.send(chunk[len(done) :])
                while len(done) < len(chunk):
                    done.append(pipe.recv())
            except (EOFError, OSError):
                done.append(self._bury(chunk[len(done)]))
        return done

    def _start(self) -> Connection:
        """The pipe to a process that runs."""
        with process_lock:
            if self.has_ended:
                raise OSError("nothing is decoded any more")
            if self.process is None:
                self.pipe, theirs = SPAWN.Pipe()
                self.process = SPAWN.Process(target=_work, args=(theirs, self.plan), daemon=True)
                self.process.start()
                theirs.close()  # so that its end is seen here
        return self.pipe

    def _bury(self, item: Item) -> Reject:
        """What to say of the item that ended the process."""
        with process_lock:
            process, self.process = self.process, None
            code = None
            if process is not None:
                process.join()
                code = process.exitcode
                self.pipe.close()
        if code is None or -code not in limits.DEATHS:
            raise DataError(
                "a worker process died; the machine may be out of memory",
                "run the same command again, perhaps with fewer --workers; it goes on with this shard",
            )
        return reject(self.plan, item, limits.DEATHS[signal.Signals(-code)])

    def end(self) -> None:
        """End the process for good."""
        with process_lock:
            self.has_ended = True
            if self.process is not None:
                self.process.kill()


def _work(pipe: Connection, plan: Plan) -> None:
    """Be a worker: decode what comes, one file at a time within its limits, and answer each."""
    # Leave signals that are meant for the job to the process that leads it, and end when it ends.
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Say nothing: decoders print what they find in a file.
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    # Load what decodes before memory and time are counted.
    if plan.kind == "dicom":
        from data_prep.dicom import import_pydicom

        import_pydicom()
    limits.bound_this_process()
    while True:
        try:
            chunk = pipe.recv()
        except EOFError:
            return
        for item in chunk:
            pipe.send(decode_item(plan, item))


def _end_with_parent() -> None:
    """A worker whose leader was killed would wait for work for ever."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def decode_item(plan: Plan, item: Item) -> Packed:
    """One image as a record and its pixels, or as a reject with the reason."""
    path, size_px = path_of(plan, item), plan.options.size_px
    content = b""
    try:
        if plan.kind == "phantom":
            number = int(item.key.rpartition("/")[2])
            pixels = phantom.render(number, item.label == "PNEUMONIA", size_px, plan.options.seed)
            picture, content = Picture(pixels, size_px, size_px, "L"), pixels.tobytes()
        else:
            with stage("cannot be read", "while it is read"):
                content = read_file(path)
            picture = decode_file(plan, content, path.suffix)
    except BadImageError as error:
        return reject(plan, item, str(error), content)
    digest = hashlib.sha256(content).hexdigest()
    source = (digest, len(content), picture.width_px, picture.height_px, picture.mode)
    label = plan.class_names.index(item.label)
    return ImageRecord(item.key, label, item.group, *source), picture.pixels.tobytes()


def decode_file(plan: Plan, content: bytes, suffix: str) -> Picture:
    """A file's picture, as its kind is decoded, within its time; or BadImageError."""
    limits.allow_header()
    try:
        if plan.kind == "dicom":
            from data_prep.dicom import make_dicom_picture

            return make_dicom_picture(content, plan.options.size_px, plan.options.aspect)
        return make_picture(content, suffix, plan.options.size_px, plan.options.aspect)
    finally:
        limits.end_of_file()


def path_of(plan: Plan, item: Item) -> Path:
    return Path(plan.root, unescape(item.path or item.key))


def reject(plan: Plan, item: Item, reason: str, content: bytes = b"") -> Reject:
    """An item that cannot be packed; `content` is what was read of it."""
    digest = hashlib.sha256(content).hexdigest() if content else ""
    return Reject(item.key, plan.class_names.index(item.label), reason, digest)
