"""Batches whose content depends on the seed and their number alone, however often training stopped."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from wsss_rt.errors import WsssError
from wsss_rt.training.config import Augment, DataSection
from wsss_rt.training.data.sources import Source
from wsss_rt.training.data.transforms import Transform, build_transform, local_seed

# (number of the sample in the whole run, index in the source, height, width)
Key = tuple[int, int, int, int]
_ORDER, _SIZE, AUGMENT_SEED = 11, 12, 13


def batch_sizes(
    section: DataSection, *, side: int, batch: int, batches: int, seed: int
) -> Callable[[int], tuple[int, int]]:
    """The (height, width) of batch number n, as the configuration says; the same for any process and restart.

    Args:
        section: its ``sizes``, ``size_order``, ``close_ups`` and ``close_up_size``.
        side: the square side where ``sizes`` is empty.
        batch, batches: images per batch, and batches in the run.
        seed: of the random order.
    """
    sizes = [(size[0], size[1]) for size in section.sizes] or [(side, side)]
    close_up = section.close_up_size or side
    # a batch that holds even one close-up has the close-ups' size
    begun = min(batches, -(-section.close_ups // batch))

    def size(number: int) -> tuple[int, int]:
        if number < begun:
            return close_up, close_up
        if section.size_order == "growing":
            return sizes[(number - begun) * len(sizes) // (batches - begun)]
        return sizes[int(np.random.default_rng((_SIZE, seed, number)).integers(len(sizes)))]

    return size


class BatchOrder:
    """Which images make up which batch.

    A finite source is shuffled anew in every epoch, and epochs follow each other without a short batch
    between. An endless source is taken in order: its images are independent draws already.

    Args:
        count: images in the source, None for endless.
        batch: images per batch over all devices.
        batches: number of batches in the run.
        seed: of the order.
        sizes: (height, width) of every batch: see :func:`batch_sizes`.
        first: number of the batch to begin with.
        rank, world: of this process and how many there are; each takes its share of every batch.
    """

    def __init__(
        self,
        count: int | None,
        *,
        batch: int,
        batches: int,
        seed: int,
        sizes: Callable[[int], tuple[int, int]],
        first: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.count, self.batch, self.batches, self.seed = count, batch, batches, seed
        self.sizes, self.first, self.rank, self.world = sizes, first, rank, world
        self._orders: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        for number in range(self.first, self.batches):
            positions = range(number * self.batch + self.rank, (number + 1) * self.batch, self.world)
            yield [(position, self._index(position), *self.sizes(number)) for position in positions]

    def _index(self, position: int) -> int:
        if self.count is None:
            return position
        epoch, place = divmod(position, self.count)
        if epoch not in self._orders:
            # only neighbouring epochs meet in a batch
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = np.random.default_rng((_ORDER, self.seed, epoch)).permutation(self.count)
        return int(self._orders[epoch][place])


class TrainingImages(Dataset[Any]):
    """Augmented images and their targets, by :data:`Key`; an unreadable image is its error."""

    def __init__(
        self, source: Source, *, num_classes: int, augment: Augment, crop_scale: Sequence[float], seed: int
    ) -> None:
        self.source, self.num_classes, self.augment = source, num_classes, augment
        self.crop_scale, self.seed = crop_scale, seed
        self._transforms: dict[tuple[int, int], Transform] = {}

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor] | WsssError:
        position, index, height, width = key
        size = (height, width)
        if size not in self._transforms:
            self._transforms[size] = build_transform(self.augment, size, crop_scale=self.crop_scale)
        with local_seed(AUGMENT_SEED, self.seed, position):
            try:
                sample = self.source.load(index, size=size)
            except WsssError as error:
                # raised in a worker it would arrive buried in the worker's traceback
                return WsssError(str(error), code=error.code)
            image = self._transforms[size](sample.image)
        target = torch.zeros(self.num_classes)
        target[list(sample.tags)] = 1.0
        return image, target


def build_loader(dataset: Dataset[Any], order: BatchOrder, *, workers: int, pin: bool) -> DataLoader[Any]:
    """Loader over ``order``; worker processes keep to one thread each, and outlive signals to their group."""
    return _Loader(
        dataset,
        # a sampler of lists is what torch calls a batch sampler; anything iterable serves
        batch_sampler=order,
        collate_fn=_collate,
        num_workers=workers,
        worker_init_fn=_prepare_worker if workers else None,
        pin_memory=pin,
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
    )


class _Loader(DataLoader[Any]):
    """Starts its workers with the signals blocked that they will leave to the main process."""

    def __iter__(self) -> Any:
        # until a worker is prepared, a signal to the group would end it, and the run with it
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _collate(samples: list[Any]) -> Any:
    errors = [sample for sample in samples if isinstance(sample, WsssError)]
    return errors[0] if errors else default_collate(samples)


def _prepare_worker(_: int) -> None:
    import cv2

    # terminals, `timeout` and job schedulers send both signals to the whole group, but they are meant for the
    # main process, which saves and then ends its workers. SIGTERM stays blocked here, and a thread obeys it
    # where it comes from that process: ignored altogether, a failed run would wait for its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _end_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
