// log2 rho of a tile of rows on tensor cores, of at most 64 columns and components.
//
//     log2 rho_nk = constant_k + y_n . linear_k + y_n^2 . quadratic_k      two matrix products: see kernels/expanded.py
//     log2 rho_nk = log2 e (a_k - 1/2 sum_d u_nkd^2)                       tight components: u as in direct.cuh
//
// A tensor core reads ten bits of a float32 number's 23, those of tf32. So numbers are split in two: one with the other
// bits cut off, and what is left of it, which NaN survives; low times low is left out. What tensor cores add up they are
// said to round toward zero. So constant_k is added in parts, each before the products of the SPAN columns that it is
// of, and no sum on the way is much larger than log2 rho: on relu1_2 of VGG-19 that makes an error of nk a third, and
// smaller spans do not help.
//
// A warp takes 32 rows of the tile and all components, so that a softmax needs no other warp. How the numbers of a
// product are spread over a warp is said by the PTX manual, under mma.m16n8k8; `group` and `member` below are its
// groupID and threadID_in_group.
//
// The compiler is told
//     COLUMNS       16, 32 or 64
//     COMPONENTS    a multiple of 8
//     SPAN          columns that have a constant of their own, of which there is a multiple of 8
//     WARPS         of a block of threads
//     EXACT         whether rows, as they are seen, have no more bits than tf32

#include "parts.cuh"

#define ROWS (32 * WARPS)
#define THREADS (32 * WARPS)
#define TILES (COMPONENTS / 8)
#define LOG2_E 1.44269504088896341f

struct alignas(8) Two { float x, y; };
struct alignas(16) Four { float x, y, z, w; };

// The shared memory of a block. Lines are padded so that the threads of a warp read from different banks.
struct Shared {
    Four table[COMPONENTS][COLUMNS / 2 + 4];  // [k][4 i + j]: linear, then quadratic, of columns 8 i + j and 8 i + j + 4
    float y[ROWS][COLUMNS + 4];
    float r[COMPONENTS][ROWS + 4];
    float constant[COLUMNS / SPAN][COMPONENTS];
};

// Coefficients, padded to COMPONENTS and COLUMNS, one after the other, float32. Of tight components, and of those that
// are not there, table is zero and the first constant what no log2 rho is below; else constants are those of spans.
// means, roots, rests and offsets: as Components has them, zero where there are none.
struct Padded {
    const Four *table;                           // (COMPONENTS, COLUMNS / 2), as Shared has it
    const float *means, *roots, *rests;          // (COMPONENTS, COLUMNS)
    const float *constants, *offsets;            // (COLUMNS / SPAN, COMPONENTS), (COMPONENTS,)
};

__device__ inline Padded padded_of(const float *all) {
    const int cells = COMPONENTS * COLUMNS;
    const float *means = all + 2 * cells, *constants = means + 3 * cells;
    return {(const Four *)all, means, means + cells, means + 2 * cells, constants, constants + COMPONENTS * COLUMNS / SPAN};
}

// log2 rho of a thread's 4 rows and 2 TILES components: [i][j][2 h + e] is of row 16 i + 8 h + group of the warp's and
// of component 8 j + 2 member + e.
typedef float Logits[2][TILES][4];

#ifdef __CUDACC__  // where there is no tensor core, tests have these two
// Add a b, (16, 8) times (8, 8), to c; all threads of a warp together.
__device__ inline void multiply(float c[4], const float a[4], float b_0, float b_1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b_0)), "r"(__float_as_uint(b_1)));
}

// Return 2^x, or zero where that is subnormal.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

__device__ inline float high_of(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

// Add to the sum of a product that of split a and b, small parts first.
__device__ inline void multiply_split(
    float c[4], const float a_high[4], const float a_low[4], bool exact, Two b_high, Two b_low
) {
    if (!exact) multiply(c, a_low, b_high.x, b_high.y);
    multiply(c, a_high, b_low.x, b_low.y);
    multiply(c, a_high, b_high.x, b_high.y);
}

// Add the constants of some columns to logits.
__device__ inline void add_constant(const float constant[COMPONENTS], Logits logits) {
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        const Two both = *(const Two *)&constant[8 * j + threadIdx.x % 4 * 2];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            logits[i / 2][j][i % 2 * 2] += both.x;
            logits[i / 2][j][i % 2 * 2 + 1] += both.y;
        }
    }
}

// Add both products of the warp's rows, `first` to first + 32 of the tile, to logits.
__device__ inline void add_products(const Shared &s, int first, Logits logits) {
    const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
#pragma unroll 1  // two would not find registers
    for (int step = 0; step < COLUMNS / 8; step++) {
        if (8 * step % SPAN == 0) add_constant(s.constant[8 * step / SPAN], logits);
        float y_high[2][4], y_low[2][4], square_high[2][4], square_low[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float y = s.y[first + 16 * i + e % 2 * 8 + group][8 * step + e / 2 * 4 + member], square = y * y;
                y_high[i][e] = high_of(y);
                y_low[i][e] = y - high_of(y);
                square_high[i][e] = high_of(square);
                square_low[i][e] = square - high_of(square);
            }
        }
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            const Four b = s.table[8 * j + group][4 * step + member];
            const Two linear = {high_of(b.x), high_of(b.y)}, quadratic = {high_of(b.z), high_of(b.w)};
            const Two linear_low = {b.x - linear.x, b.y - linear.y};
            const Two quadratic_low = {b.z - quadratic.x, b.w - quadratic.y};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                multiply_split(logits[i][j], y_high[i], y_low[i], EXACT, linear, linear_low);
                multiply_split(logits[i][j], square_high[i], square_low[i], false, quadratic, quadratic_low);
            }
        }
    }
}

// Put log2 rho of tight components in their places in logits. A thread takes a row for all of its columns, and hands
// what it finds to the threads that have the places.
__device__ inline void find_tight(Shared &s, const Padded &p, const int *tight, int first, Logits logits) {
    const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4, n_tight = tight[0];
    if (!n_tight) return;
    unsigned long long places = 0;
    for (int place = 1; place <= n_tight; place++) {
        const int k = tight[place];
        places |= 1ull << k;
        float square = 0.0f;
#pragma unroll 2
        for (int column = 0; column < COLUMNS; column += 4) {
            const int at = k * COLUMNS + column;
            const Four y = *(const Four *)&s.y[first + lane][column], mean = *(const Four *)&p.means[at];
            const Four root = *(const Four *)&p.roots[at], rest = *(const Four *)&p.rests[at];
            const Four u = {
                fmaf(root.x, y.x - mean.x, rest.x), fmaf(root.y, y.y - mean.y, rest.y),
                fmaf(root.z, y.z - mean.z, rest.z), fmaf(root.w, y.w - mean.w, rest.w)
            };
            square = fmaf(u.x, u.x, fmaf(u.y, u.y, fmaf(u.z, u.z, fmaf(u.w, u.w, square))));
        }
        s.r[k][first + lane] = LOG2_E * fmaf(-0.5f, square, p.offsets[k]);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 2 * TILES; j++) {
        const int k = j / 2 * 8 + 2 * member + j % 2;
        if (!(places >> k & 1)) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) logits[i / 2][j / 2][i % 2 * 2 + j % 2] = s.r[k][first + 8 * i + group];
    }
}
