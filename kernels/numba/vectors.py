"""What numba does not vectorise by itself: tiles of a matrix product's shape, and comparisons to a bit mask.

The tiles are written as vectors of sixteen or eight numbers, which LLVM maps to whatever registers the CPU has, with
their sums in registers throughout; on two cores of an AMD EPYC (Zen 4) they run at the rate of fused multiply-adds,
where the matrix library reaches three quarters of it.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import extending, types
from numba.core import cgutils

from fastclust.kernels.numba.cache import kept

# Sums may be taken in any order, products fused, and maxima vectorised; nothing here makes a NaN of finite rows.
FASTMATH = ("nnan", "nsz", "arcp", "contract", "reassoc")
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(FASTMATH)}
inlined: Any = numba.njit(inline="always", **OPTIONS)  # a call for each row costs as much as it

intrinsic: Any = extending.intrinsic

ROWS = 4  # of a tile: sums, table and a row's number then fit the sixteen registers of a CPU without AVX-512
ROTATED = 8  # rows of a tile that needs one table only
WIDE, NARROW = 16, 8  # components, or features, of a tile
# Rows side by side: two registers of sixteen hide a multiply-add's latency, where there are 32 of them.
ABREAST = 32 if get_host_cpu_features().get("avx512f") else 16


_INDEX = ir.IntType(64)


def compiled(function: Any) -> Any:
    """Compile a function for each kind of arguments that it is called with, and keep what was compiled."""
    return kept(numba.njit(**OPTIONS)(function))


class Numbers:
    """Loads and stores of `width` numbers at an index of a contiguous array, or of an array's rows."""

    def __init__(self, context: Any, builder: Any, kind: Any, width: int) -> None:
        self.context, self.builder = context, builder
        self.one = context.get_value_type(kind)
        self.bytes = context.get_abi_sizeof(self.one)
        self.many = ir.VectorType(self.one, width)
        self.width = width

    def array(self, kind: Any, value: Any) -> Any:
        return self.context.make_array(kind)(self.context, self.builder, value)

    def place(self, array: Any, index: Any) -> Any:
        return self.builder.gep(array.data, [index], source_etype=self.one)

    def load(self, array: Any, index: Any) -> Any:
        found = self.builder.load(self.place(array, index), typ=self.many)
        found.align = self.bytes
        return found

    def store(self, value: Any, array: Any, index: Any) -> None:
        place = self.builder.bitcast(self.place(array, index), self.many.as_pointer())
        self.builder.store(value, place).align = self.bytes

    def one_at(self, array: Any, index: Any) -> Any:
        return self.builder.load(self.place(array, index), typ=self.one)

    def spread(self, array: Any, index: Any) -> Any:
        """Return one number in every place of a vector."""
        return self.repeat(self.one_at(array, index))

    def repeat(self, number: Any) -> Any:
        nothing = ir.Constant(self.many, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), self.width), None))

    def reduced(self, how: str, value: Any) -> Any:
        """Return the sum ("fadd") or the least ("fmin") of a vector's numbers."""
        name = f"llvm.vector.reduce.{how}.v{self.width}f{8 * self.bytes}"
        zero = [ir.Constant(self.one, 0.0)] if how == "fadd" else []
        kinds = [part.type for part in (*zero, value)]
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(self.one, kinds), name)
        return self.builder.call(function, [*zero, value], fastmath=FASTMATH)

    def sums(self, count: int) -> list[Any]:
        return [cgutils.alloca_once(self.builder, self.many) for _ in range(count)]

    def add_product(self, a: Any, b: Any, total: Any) -> None:
        builder = self.builder
        product = builder.fmul(a, b, flags=FASTMATH)
        builder.store(builder.fadd(builder.load(total, typ=self.many), product, flags=FASTMATH), total)


def _plus(builder: Any, *terms: Any) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = builder.add(total, term)
    return total


def _squares(rows: int, width: int) -> Any:
    """Make out[r, v] = start[r, v] + sum_d (y[i + r, d] root[d, v] - shift[d, v])^2, for a tile of rows and components.

    y: (N, D) of which rows follow one another by `stride` numbers. i: first row. table: root and shift in turn,
    (D, 2, width), from index `at`. start, out: flat, with the first row's first component at s_at and o_at, and each
    further row s_step and o_step numbers later. d from first to last.
    """

    @intrinsic
    def tile(
        _: Any,
        y: Any,
        stride: Any,
        i: Any,
        table: Any,
        at: Any,
        start: Any,
        s_at: Any,
        s_step: Any,
        out: Any,
        o_at: Any,
        o_step: Any,
        first: Any,
        last: Any,
    ) -> Any:
        n = types.int64
        signature = types.void(y, n, n, table, n, start, n, n, out, n, n, n, n)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            numbers = Numbers(context, builder, sig.args[0].dtype, width)
            y, table, start, out = (numbers.array(sig.args[a], args[a]) for a in (0, 3, 5, 8))
            stride, i, at, s_at, s_step, o_at, o_step, first, last = (args[a] for a in (1, 2, 4, 6, 7, 9, 10, 11, 12))
            totals = numbers.sums(rows)
            lines = [builder.mul(builder.add(i, _INDEX(r)), stride) for r in range(rows)]
            for r in range(rows):
                builder.store(numbers.load(start, _plus(builder, s_at, builder.mul(_INDEX(r), s_step))), totals[r])
            with cgutils.for_range_slice(builder, first, last, _INDEX(1), _INDEX) as (d, _count):
                entry = _plus(builder, at, builder.mul(d, _INDEX(2 * width)))
                root, shift = numbers.load(table, entry), numbers.load(table, _plus(builder, entry, _INDEX(width)))
                for r in range(rows):
                    number = numbers.spread(y, builder.add(lines[r], d))
                    away = builder.fsub(builder.fmul(number, root, flags=FASTMATH), shift, flags=FASTMATH)
                    numbers.add_product(away, away, totals[r])
            for r in range(rows):
                found = builder.load(totals[r], typ=numbers.many)
                numbers.store(found, out, _plus(builder, o_at, builder.mul(_INDEX(r), o_step)))
            return context.get_dummy_value()

        return signature, generate

    return tile


squares_wide, squares_narrow = _squares(ROWS, WIDE), _squares(ROWS, NARROW)
square_wide, square_narrow = _squares(1, WIDE), _squares(1, NARROW)


def _rotations(rows: int) -> Any:
    """Make out[p] += sum_v (sum_d z[p, d] table[d, v])^2, v of WIDE, for a tile of rows p = slots[h], slots[h + 1], ...

    z: rows of `width` numbers. table: (D, WIDE) from index `at`. d up to last.
    """

    @intrinsic
    def tile(_: Any, z: Any, width: Any, slots: Any, h: Any, table: Any, at: Any, last: Any, out: Any) -> Any:
        n = types.int64
        signature = types.void(z, n, slots, n, table, n, n, out)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            numbers = Numbers(context, builder, sig.args[0].dtype, WIDE)
            places = Numbers(context, builder, sig.args[2].dtype, 1)
            z, slots, table, out = (numbers.array(sig.args[a], args[a]) for a in (0, 2, 4, 7))
            width, h, at, last = (args[a] for a in (1, 3, 5, 6))
            totals = numbers.sums(rows)
            chosen = [builder.sext(places.one_at(slots, builder.add(h, _INDEX(r))), _INDEX) for r in range(rows)]
            lines = [builder.mul(slot, width) for slot in chosen]
            for total in totals:
                builder.store(ir.Constant(numbers.many, None), total)
            with cgutils.for_range_slice(builder, _INDEX(0), last, _INDEX(1), _INDEX) as (d, _count):
                column = numbers.load(table, _plus(builder, at, builder.mul(d, _INDEX(WIDE))))
                for line, total in zip(lines, totals, strict=True):
                    numbers.add_product(numbers.spread(z, builder.add(line, d)), column, total)
            for slot, total in zip(chosen, totals, strict=True):
                found = builder.load(total, typ=numbers.many)
                square = numbers.reduced("fadd", builder.fmul(found, found, flags=FASTMATH))
                before = numbers.one_at(out, slot)
                builder.store(builder.fadd(before, square, flags=FASTMATH), numbers.place(out, slot))
            return context.get_dummy_value()

        return signature, generate

    return tile


rotated, rotated_one = _rotations(ROTATED), _rotations(1)


def _differences(spread: bool) -> Any:
    """Make z[to + v] = (y[at + v] - high[k_at + v]) - low[k_at + v], v of WIDE.

    spread: v of ABREAST, with high and low at k_at for all of them.
    """

    @intrinsic
    def tile(_: Any, y: Any, at: Any, high: Any, low: Any, k_at: Any, z: Any, to: Any) -> Any:
        n = types.int64
        signature = types.void(y, n, high, low, n, z, n)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            numbers = Numbers(context, builder, sig.args[0].dtype, ABREAST if spread else WIDE)
            y, high, low, z = (numbers.array(sig.args[a], args[a]) for a in (0, 2, 3, 5))
            at, k_at, to = (args[a] for a in (1, 4, 6))
            read = numbers.spread if spread else numbers.load
            away = builder.fsub(numbers.load(y, at), read(high, k_at))  # the order of the two matters
            numbers.store(builder.fsub(away, read(low, k_at)), z, to)
            return context.get_dummy_value()

        return signature, generate

    return tile


subtract, subtract_spread = _differences(False), _differences(True)


@intrinsic
def rotated_abreast(_: Any, z: Any, table: Any, at: Any, last: Any, out: Any, to: Any) -> Any:
    """Add sum_r (sum_d table[d, r] z[d, v])^2 to out[to + v], for v of ABREAST rows side by side and r of ROWS.

    z: (D, ABREAST). table: (D, WIDE) from index `at`, which says the first r. d up to last.
    """
    n = types.int64
    signature = types.void(z, table, n, n, out, n)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        numbers = Numbers(context, builder, sig.args[0].dtype, ABREAST)
        z, table, out = (numbers.array(sig.args[a], args[a]) for a in (0, 1, 4))
        at, last, to = (args[a] for a in (2, 3, 5))
        totals = numbers.sums(ROWS)
        for total in totals:
            builder.store(ir.Constant(numbers.many, None), total)
        with cgutils.for_range_slice(builder, _INDEX(0), last, _INDEX(1), _INDEX) as (d, _count):
            rows = numbers.load(z, builder.mul(d, _INDEX(ABREAST)))
            entry = builder.add(at, builder.mul(d, _INDEX(WIDE)))
            for r, total in enumerate(totals):
                numbers.add_product(numbers.spread(table, builder.add(entry, _INDEX(r))), rows, total)
        found = numbers.load(out, to)
        for total in totals:
            one = builder.load(total, typ=numbers.many)
            found = builder.fadd(found, builder.fmul(one, one, flags=FASTMATH), flags=FASTMATH)
        numbers.store(found, out, to)
        return context.get_dummy_value()

    return signature, generate


def _products(negative: bool) -> Any:
    """Make out[i + r, j + v] += or -= sum_n a[n, i + r] b[n, j + v], r of ROWS and v of WIDE; n from first to last.

    a, b, out: rows of `width` numbers.
    """

    @intrinsic
    def tile(_: Any, a: Any, b: Any, out: Any, width: Any, first: Any, last: Any, i: Any, j: Any) -> Any:
        n = types.int64
        signature = types.void(a, b, out, n, n, n, n, n)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            numbers = Numbers(context, builder, sig.args[0].dtype, WIDE)
            a, b, out = (numbers.array(sig.args[k], args[k]) for k in (0, 1, 2))
            width, first, last, i, j = args[3:]
            totals = numbers.sums(ROWS)
            for total in totals:
                builder.store(ir.Constant(numbers.many, None), total)
            with cgutils.for_range_slice(builder, first, last, _INDEX(1), _INDEX) as (row, _count):
                line = builder.mul(row, width)
                others = numbers.load(b, builder.add(line, j))
                for r, total in enumerate(totals):
                    numbers.add_product(numbers.spread(a, _plus(builder, line, i, _INDEX(r))), others, total)
            for r, total in enumerate(totals):
                place = builder.add(builder.mul(builder.add(i, _INDEX(r)), width), j)
                change = builder.fsub if negative else builder.fadd
                found = builder.load(total, typ=numbers.many)
                numbers.store(change(numbers.load(out, place), found, flags=FASTMATH), out, place)
            return context.get_dummy_value()

        return signature, generate

    return tile


add_products, subtract_products = _products(False), _products(True)


@intrinsic
def rest_of_squares(_: Any, y: Any, at: Any, root: Any, shift: Any, k_at: Any, first: Any, last: Any) -> Any:
    """Return sum_d (y[at + d] root[k_at + d] - shift[k_at + d])^2, d from first, in whole vectors of WIDE, up to last.

    The arrays are contiguous but for the rows of y; indices count numbers from the arrays' beginnings.
    """
    n = types.int64
    signature = y.dtype(y, n, root, shift, n, n, n)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        numbers = Numbers(context, builder, sig.args[0].dtype, WIDE)
        y, root, shift = (numbers.array(sig.args[a], args[a]) for a in (0, 2, 3))
        at, k_at, first, last = (args[a] for a in (1, 4, 5, 6))
        (total,) = numbers.sums(1)
        builder.store(ir.Constant(numbers.many, None), total)
        end = builder.sub(last, _INDEX(WIDE - 1))
        with cgutils.for_range_slice(builder, first, end, _INDEX(WIDE), _INDEX) as (d, _count):
            place = builder.add(k_at, d)
            product = builder.fmul(numbers.load(y, builder.add(at, d)), numbers.load(root, place), flags=FASTMATH)
            away = builder.fsub(product, numbers.load(shift, place), flags=FASTMATH)
            numbers.add_product(away, away, total)
        return numbers.reduced("fadd", builder.load(total, typ=numbers.many))

    return signature, generate


@intrinsic
def least(_: Any, values: Any, at: Any, count: Any) -> Any:
    """Return the smallest of `count` numbers from values[at] on, a multiple of NARROW."""
    signature = values.dtype(values, types.int64, types.int64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        numbers = Numbers(context, builder, sig.args[0].dtype, NARROW)
        values, (at, count) = numbers.array(sig.args[0], args[0]), args[1:]
        (lowest,) = numbers.sums(1)
        builder.store(numbers.load(values, at), lowest)
        with cgutils.for_range_slice(builder, _INDEX(NARROW), count, _INDEX(NARROW), _INDEX) as (k, _count):
            found, before = numbers.load(values, builder.add(at, k)), builder.load(lowest, typ=numbers.many)
            less = builder.fcmp_ordered("<", found, before)
            builder.store(builder.select(less, found, before), lowest)
        return numbers.reduced("fmin", builder.load(lowest, typ=numbers.many))

    return signature, generate


def _compared(each: bool) -> Any:
    """Make a function that tells which of eight numbers from values[at] on are not above a limit, as an integer's bits.

    The first number's bit is the lowest; of a NaN it is zero. each: limits are an array's, from limits[to] on.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        numbers = Numbers(context, builder, sig.args[0].dtype, NARROW)
        found = numbers.load(numbers.array(sig.args[0], args[0]), args[1])
        limits = numbers.load(numbers.array(sig.args[2], args[2]), args[3]) if each else numbers.repeat(args[2])
        bits = builder.bitcast(builder.fcmp_ordered("<=", found, limits), ir.IntType(NARROW))
        return builder.zext(bits, _INDEX)

    if each:

        @intrinsic
        def compare_each(_: Any, values: Any, at: Any, limits: Any, to: Any) -> Any:
            return types.int64(values, types.int64, limits, types.int64), generate

        return compare_each

    @intrinsic
    def compare(_: Any, values: Any, at: Any, limit: Any) -> Any:
        return types.int64(values, types.int64, values.dtype), generate

    return compare


no_more, no_more_each = _compared(False), _compared(True)


@intrinsic
def population(_: Any, bits: Any) -> Any:
    """Return how many bits of an integer are set."""
    signature = types.int64(types.int64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return signature, generate


@intrinsic
def lowest(_: Any, bits: Any) -> Any:
    """Return the place of the lowest bit of an integer that is not zero."""
    signature = types.int64(types.int64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return signature, generate
