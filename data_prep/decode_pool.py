"""Decodes the items of a plan, in order, in this process or in a pool of worker processes."""

import hashlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

from msgspec.structs import replace

from data_prep import phantom
from data_prep.errors import DataError
from data_prep.image import BadImageError, Picture, make_dicom_picture, make_picture, read_file
from data_prep.pack_plan import Plan
from data_prep.shards import ImageRecord, Packed, Reject
from data_prep.sources import Item, unescape

# Images handed to a worker at a time: enough to hide the hand-over, few enough for smooth progress.
CHUNK_IMAGES = 8
# Chunks per worker that may wait to be written: a second of decoding, as long as a shard is synced to disk.
AHEAD_CHUNKS = 32


@contextmanager
def decoder(plan: Plan, workers: int) -> Iterator[Callable[[Iterable[Item]], Iterator[Packed]]]:
    """A function that decodes items in order, in this process or in `workers` others."""
    job = partial(decode_item, replace(plan, shards=()))  # without its items, which would go along each time
    if workers == 1:
        yield partial(map, job)
        return
    # not forked: the workers must share no file handles, locks or threads with this process
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        yield partial(_decode_in, pool, AHEAD_CHUNKS * workers, job)
    except BrokenProcessPool as error:
        # the pool waits for all its workers, but does not end one that was just starting when another died
        for worker in active_children():
            worker.kill()
        raise DataError(
            "a worker process died; the machine may be out of memory",
            "run the same command again, perhaps with fewer --workers; it goes on with this shard",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_in(
    pool: ProcessPoolExecutor, ahead: int, job: Callable[[Item], Packed], items: Iterable[Item]
) -> Iterator[Packed]:
    """Like map(job, items), but in the pool; at most `ahead` chunks wait, so memory stays small."""
    waiting: deque[Future[list[Packed]]] = deque()
    items = iter(items)
    while chunk := list(islice(items, CHUNK_IMAGES)):
        try:
            waiting.append(pool.submit(_decode_chunk, job, chunk))
        except (OSError, ValueError) as error:  # one worker died while another was being started
            raise BrokenProcessPool(str(error)) from error
        if len(waiting) == ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _decode_chunk(job: Callable[[Item], Packed], chunk: list[Item]) -> list[Packed]:
    return list(map(job, chunk))


def _start_worker() -> None:
    """Leave signals that are meant for the job to the process that leads it, and end when it ends."""
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool whose leader was killed would wait for work for ever."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def decode_item(plan: Plan, item: Item) -> Packed:
    """One image as a record and its pixels, or as a reject with the reason."""
    label, path = plan.class_names.index(item.label), Path(plan.root, unescape(item.path or item.key))
    size_px, aspect = plan.options.size_px, plan.options.aspect
    content = b""
    try:
        if plan.kind == "phantom":
            number = int(item.key.rpartition("/")[2])
            pixels = phantom.render(number, item.label == "PNEUMONIA", size_px, plan.options.seed)
            picture, content = Picture(pixels, size_px, size_px, "L"), pixels.tobytes()
        elif plan.kind == "dicom":
            content = read_file(path)
            picture = make_dicom_picture(content, size_px, aspect)
        else:
            content = read_file(path)
            picture = make_picture(content, path.suffix, size_px, aspect)
    except BadImageError as error:
        return Reject(item.key, label, str(error), hashlib.sha256(content).hexdigest() if content else "")
    digest = hashlib.sha256(content).hexdigest()
    source = (digest, len(content), picture.width_px, picture.height_px, picture.mode)
    return ImageRecord(item.key, label, item.group, *source), picture.pixels.tobytes()
