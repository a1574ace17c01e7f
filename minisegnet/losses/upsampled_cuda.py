"""Bilinear upsampling and a loss in one, on a device: launches the kernels of upsampled.cu."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.losses.softmax_cuda import (
    MAX_CLASSES,
    MEAN_BLOCKS,
    OVERLAP_BLOCKS,
    THREADS,
    FullLogits,
    loss_forward_cuda,
    real_dtype,
    smooth_total,
)

KERNELS = KernelFile(Path(__file__).with_name("upsampled.cu"))
CLASSES = 4  # of one thread that walks over cells
STAGED = 4096  # numbers of coarse logits that a block keeps in shared memory
CORNERS_BYTES = 32 * 1024  # of shared memory, for what cells give to their corners


def upsampled_loss_forward_cuda(coarse, target, loss, **options):
    """Return the `DeviceLoss` of coarse logits enlarged to target (N, H, W), and a cache."""
    # Nothing to enlarge: every logit is read once, not four times.
    same = coarse.shape[1:3] == target.shape[1:]
    logits = FullLogits(coarse) if same else CoarseLogits(coarse, target.shape[1:])
    return loss_forward_cuda(logits, target, loss, **options)


def upsampled_prediction_cuda(coarse, size):
    """Return the most likely class (N, *size) uint8 of coarse logits enlarged to size."""
    if coarse.shape[3] > MAX_CLASSES + 1:
        raise ValueError(f"the logits have {coarse.shape[3]} classes; on a GPU, at most "
                         f"{MAX_CLASSES + 1}")
    xp = get_array_module(coarse)
    prediction = xp.empty((coarse.shape[0], *size), np.uint8)
    logits = CoarseLogits(coarse, tuple(size))
    grid, launch = logits.pieces()
    KERNELS.launch("upsampled_prediction_kernel", grid, **launch, prediction=prediction)
    return prediction


class CoarseLogits(NamedTuple):
    """Coarse logits (N, h, w, K), enlarged to (N, *size, K) without being there."""

    array: object
    size: tuple  # (H, W)

    @property
    def num_classes(self):
        return self.array.shape[3]

    def forward(self, target, ignore_index, **arguments):
        """Fill lse and on_target; return the sums (2, blocks) of a mean over pixels."""
        xp = get_array_module(self.array)
        grid, launch = self.pieces()
        sums = xp.empty((2, *grid), real_dtype(self.array))
        KERNELS.launch("upsampled_forward_kernel", grid, **launch, target=target,
                       ignore_index=ignore_index, sums=sums, **arguments)
        return sums

    def overlap(self, target, ignore_index, lse):
        """Return the sums (blocks, 3, K) of an overlap."""
        xp, real = get_array_module(self.array), real_dtype(self.array)
        N, h, w, K = self.array.shape
        chunks, columns, rows = self._cells()
        count = min(blocks(N * h * w, rows), OVERLAP_BLOCKS)
        sums = xp.empty((count, 3, K), real)
        KERNELS.launch("upsampled_overlap_kernel", (count, chunks), (columns, rows),
                       shared_bytes=3 * CLASSES * columns * rows * real.itemsize,
                       coarse=self._coarse(), target=target, lse=lse, sums=sums,
                       ignore_index=ignore_index, **self._sizes())
        return sums

    def backward(self, dloss, cache, *, loss_scale, smooth, shift):
        """Return dcoarse (N, h, w, K)."""
        coarse = self._coarse()
        xp, real = get_array_module(coarse), real_dtype(coarse)
        pull, mean, scale = cache.on_target, None, cache.scale
        if cache.dtotal is not None:
            pull, mean = xp.empty(cache.lse.shape, real), xp.empty(cache.lse.shape, real)
            scale = None  # the pull has it
            grid, launch = self.pieces()
            KERNELS.launch("upsampled_coefficients_kernel", grid, **launch, target=cache.target,
                           lse=cache.lse, on_target=cache.on_target, scale=cache.scale,
                           dintersection=cache.dintersection, dtotal=cache.dtotal, pull=pull,
                           mean=mean, ignore_index=cache.ignore_index)
        dcoarse = xp.empty(coarse.shape, coarse.dtype)
        chunks, columns, rows = self._cells()
        bytes_of_cell = 4 * CLASSES * columns * real.itemsize
        tile, tiles = self._tile(bytes_of_cell, chunks)
        sizes = self._sizes()
        del sizes["N"]
        KERNELS.launch(
            "upsampled_backward_kernel", (tiles, chunks), (columns, rows),
            shared_bytes=(tile + 1) ** 2 * bytes_of_cell, coarse=coarse, target=cache.target,
            smooth=smooth, shift=shift, lse=cache.lse, on_target=pull, mean=mean,
            dtotal=cache.dtotal, scale=scale, loss_scale=loss_scale, dcoarse=dcoarse, dloss=dloss,
            smooth_total=smooth_total(cache.loss), ignore_index=cache.ignore_index, tile=tile,
            **sizes)
        return dcoarse

    def pieces(self):
        """Return the grid, and the other arguments, of a kernel that works on pieces of rows.

        A piece is as long as a block, or shorter where the coarse logits of `chunk` classes under
        it do not fit into shared memory.
        """
        N, _, w, K = self.array.shape
        H, W = self.size
        length = blocks(W, blocks(W, THREADS))
        while True:
            columns = min(w, (length - 1) * w // W + 3)
            chunk = min(K, (STAGED // columns - 1) | 1)  # with an odd stride, it fits
            if chunk >= min(K, 8) or length == 1:
                break
            length = blocks(length, 2)
        if 4 <= chunk < K:
            chunk -= chunk % 4
        pieces = blocks(W, length)
        shared_bytes = columns * (chunk | 1) * real_dtype(self.array).itemsize
        return (min(N * H * pieces, MEAN_BLOCKS),), dict(
            block=(32 * blocks(length, 32),), shared_bytes=shared_bytes, coarse=self._coarse(),
            length=length, pieces=pieces, chunk=chunk, **self._sizes())

    def _cells(self):
        """Return (chunks of classes, columns, rows) of the blocks that walk over cells."""
        vectors = blocks(self.num_classes, CLASSES)
        chunks = blocks(vectors, 16)
        columns = blocks(vectors, chunks)
        return chunks, columns, THREADS // columns

    def _tile(self, bytes_of_cell, chunks):
        """Return the side of a block's tile of coarse pixels, and the number of tiles.

        Large tiles do less twice; small ones give every multiprocessor something to do.
        """
        N, h, w, _ = self.array.shape
        tile = 8
        while True:
            tiles = N * blocks(h, tile) * blocks(w, tile)
            fits = (tile + 1) ** 2 * bytes_of_cell <= CORNERS_BYTES
            if tile == 1 or fits and (tiles * chunks >= 264 or tile <= 2):
                return tile, tiles
            tile //= 2

    def _coarse(self):
        return get_array_module(self.array).ascontiguousarray(self.array)

    def _sizes(self):
        N, h, w, K = self.array.shape
        H, W = self.size
        return dict(N=N, h=h, w=w, H=H, W=W, K=K)
