"""Copies and stores of bytes that numba does not expose, for the kernels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 64  # bytes of a cache line


@intrinsic
def call_memcpy(typingctx: Any, target: Any, to: Any, source: Any, start: Any, count: Any) -> Any:
    """Call memcpy between two flat uint8 arrays.

    Numba's slice assignment is a byte loop, several times slower.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ends = [
            builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
            for i in (0, 2)
        ]
        cgutils.raw_memcpy(builder, ends[0], ends[1], args[4], ir.Constant(args[4].type, 1))
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


@intrinsic
def copy_32(typingctx: Any, target: Any, to: Any, source: Any, start: Any) -> Any:
    """Copy 32 bytes between two flat uint8 arrays, in one load and one store."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 32).as_pointer()
        target, source = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        word = builder.load(builder.bitcast(builder.gep(source, [args[3]]), vector))
        word.align = 1
        builder.store(word, builder.bitcast(builder.gep(target, [args[1]]), vector)).align = 1
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), codegen


@intrinsic
def stream_bytes(typingctx: Any, target: Any, to: Any, source: Any, start: Any, count: Any) -> Any:
    """Copy `count` bytes into a flat uint8 array past the caches, a cache line at a time.

    The target address and `count` are multiples of 64.

    A batch is far larger than a cache, and an ordinary store reads each cache line from memory before it writes it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, size = ir.VectorType(ir.IntType(8), LINE), ir.Constant(args[4].type, LINE)
        target, source = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        nontemporal = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, builder.udiv(args[4], size)) as loop:
            offset = builder.mul(loop.index, size)
            address = builder.gep(source, [builder.add(args[3], offset)])
            word = builder.load(builder.bitcast(address, vector.as_pointer()))
            word.align = 1
            address = builder.gep(target, [builder.add(args[1], offset)])
            store = builder.store(word, builder.bitcast(address, vector.as_pointer()))
            store.align = LINE
            store.set_metadata("nontemporal", nontemporal)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


@intrinsic
def stream_rows_of_48(typingctx: Any, target: Any, to: Any, source: Any, start: Any, stride: Any) -> Any:
    """Copy four rows of 48 bytes, `stride` bytes apart, into three cache lines of a flat uint8 array, past the caches.

    The target address is a multiple of 64.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, word = ir.IntType(8), LINE // 4
        target, source = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        in_order = [ir.Constant(ir.VectorType(ir.IntType(32), size), list(range(size))) for size in (2 * word, LINE)]
        nontemporal = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        words, row = [], args[3]
        for _ in range(4):
            for offset in range(0, 48, word):
                address = builder.gep(source, [builder.add(row, ir.Constant(row.type, offset))])
                words.append(builder.load(builder.bitcast(address, ir.VectorType(byte, word).as_pointer())))
                words[-1].align = 1
            row = builder.add(row, args[4])
        for line in range(3):
            halves = [builder.shuffle_vector(words[i], words[i + 1], in_order[0]) for i in (4 * line, 4 * line + 2)]
            address = builder.gep(target, [builder.add(args[1], ir.Constant(args[1].type, LINE * line))])
            address = builder.bitcast(address, ir.VectorType(byte, LINE).as_pointer())
            store = builder.store(builder.shuffle_vector(*halves, in_order[1]), address)
            store.align = LINE
            store.set_metadata("nontemporal", nontemporal)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


@intrinsic
def prefetch(typingctx: Any, source: Any, at: Any) -> Any:
    """Prefetch the cache line of byte `at` of a flat array; beyond its end nothing is read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), word, word, word])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [address, ir.Constant(word, 0), ir.Constant(word, 3), ir.Constant(word, 1)])
        return context.get_dummy_value()

    return types.void(source, types.intp), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Make all stores so far, streamed or not, visible before any later store."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@njit(nogil=True, cache=True, inline="always")
def copy_bytes(target, to, source, start, count):  # type: ignore[no-untyped-def]
    """Copy `count` bytes between two flat uint8 arrays; from 32 bytes on, as a row of a patch has, without a call."""
    if count < 32:
        call_memcpy(target, to, source, start, count)
        return
    for offset in range(0, count - 32, 32):
        copy_32(target, to + offset, source, start + offset)
    copy_32(target, to + count - 32, source, start + count - 32)
