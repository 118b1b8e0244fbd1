// One pass of spherical or diag with at most 64 columns and components: ln rho from tensor cores, and the moments of
// those responsibilities that are not zero, on CUDA cores.
//
// A row of relu1_2 of VGG-19 has 2.4 responsibilities of 50 that are not zero: their moments are a twentieth of the work
// of a dense product. A warp sums up every WARPS-th component, about its mean, so that nothing cancels: float32 sums of
// a tile, and of a few tiles, in registers; then float64. The next tile's rows are on their way meanwhile.
//
// The compiler is told, beside what products.cuh says,
//     PACK    4 where four numbers of a row lie side by side on a boundary of as many, else 1

#include "products.cuh"

#define OWN (COMPONENTS / WARPS)  // components that a warp sums up
#define ACROSS (COLUMNS / PACK)  // threads that read a row together
#define LN_2 0.693147180559945309

// Sums of a warp's components: of the columns 2 lane and 2 lane + 1, and, for its lane-th component, nk.
struct Moments {
    float sx[OWN][2], sxx[OWN][2], nk;
};

// PACK neighbouring numbers of a row, which are one load.
struct alignas(sizeof(STORED) * PACK) Stored { STORED column[PACK]; };
struct alignas(4 * PACK) Seen { float column[PACK]; };

// Take the numbers of the tile that begins with row `first` from memory; zeros where there are none.
__device__ inline void fetch(Stored ahead[COLUMNS / PACK], const Rows &rows, long long first) {
    const int c = threadIdx.x % ACROSS * PACK, n = threadIdx.x / ACROSS;
    const int there = c < rows.d ? (int)(rows.n - first < ROWS ? rows.n - first : ROWS) : 0;  // rows
    const STORED *at = rows.data + (first + n) * rows.stride_n + c * rows.stride_d;
#pragma unroll
    for (int step = 0; step < COLUMNS / PACK; step++) {
        ahead[step] = Stored();
        if (n + step * (THREADS / ACROSS) < there) ahead[step] = *(const Stored *)at;
        at += THREADS / ACROSS * rows.stride_n;
    }
}

// Put them, as the mixture sees them, where the block can read them. Rows that are not there have no weight.
__device__ inline void put(Shared &s, const Stored ahead[COLUMNS / PACK], const Rows &rows) {
    const int c = threadIdx.x % ACROSS * PACK;
    float shift[PACK], scale[PACK];
#pragma unroll
    for (int j = 0; j < PACK; j++) {
        const bool moved = rows.frame && c + j < rows.d;
        shift[j] = moved ? rows.frame[c + j] : 0.0f;
        scale[j] = moved ? rows.frame[rows.d + c + j] : 1.0f;
    }
#pragma unroll
    for (int step = 0; step < COLUMNS / PACK; step++) {
        Seen y;
#pragma unroll
        for (int j = 0; j < PACK; j++) y.column[j] = (number(ahead[step].column[j]) - shift[j]) * scale[j];
        *(Seen *)&s.y[step * (THREADS / ACROSS) + threadIdx.x / ACROSS][c] = y;
    }
}

// Turn log2 rho of the warp's rows, `first` to first + 32 of the tile, into responsibilities times weights, in s.r, and
// add the rows to the thread's sums, in bits. weight: of the thread's rows, see Logits.
__device__ inline void share_out(
    Shared &s, Logits logits, int first, const float weight[4], double &log_norm, double &entropy
) {
    const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int n = first + 8 * i + group;
        float peak = logits[i / 2][0][i % 2 * 2];
#pragma unroll
        for (int j = 0; j < 2 * TILES; j++) peak = fmaxf(peak, logits[i / 2][j / 2][i % 2 * 2 + j % 2]);
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
        float total = 0.0f, product = 0.0f;  // sum rho / 2^peak, and sum rho / 2^peak (log2 rho - peak)
#pragma unroll
        for (int j = 0; j < 2 * TILES; j++) {
            float &p = logits[i / 2][j / 2][i % 2 * 2 + j % 2];
            const float below = p - peak;
            p = below < CUT * LOG2_E ? 0.0f : power_of_two(below);
            product = fmaf(p, below, product);
            total += p;
        }
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        product += __shfl_xor_sync(0xffffffffu, product, 1);
        product += __shfl_xor_sync(0xffffffffu, product, 2);
        const float share = weight[i] / total;
        if (member == 0) {
            const float log_sum = log2f(total);
            log_norm += (double)weight[i] * ((double)peak + (double)log_sum);
            entropy += (double)(weight[i] * log_sum - share * product);
        }
#pragma unroll
        for (int j = 0; j < 2 * TILES; j++)
            s.r[j / 2 * 8 + 2 * member + j % 2][n] = share * logits[i / 2][j / 2][i % 2 * 2 + j % 2];
    }
}

// Add the tile in s.y and s.r to the warp's sums, about means (COMPONENTS, COLUMNS). Rows that have no share in a
// component are passed over.
__device__ inline void add_moments(const Shared &s, const float *means, Moments &sums) {
    const int lane = threadIdx.x % 32, column = 2 * lane < COLUMNS ? 2 * lane : 0;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int k = threadIdx.x / 32 + WARPS * i;
        const Two mean = *(const Two *)&means[k * COLUMNS + column];
        float r[WARPS], nk = 0.0f, sx[2] = {}, sxx[2] = {};
        unsigned sharing[WARPS];  // of 32 rows each
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            r[w] = s.r[k][32 * w + lane];
            sharing[w] = __ballot_sync(0xffffffffu, r[w] != 0.0f);
        }
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            while (sharing[w]) {
                const int n = 31 - __clz(sharing[w]);
                sharing[w] ^= 1u << n;
                const float weight = __shfl_sync(0xffffffffu, r[w], n);
                const Two y = *(const Two *)&s.y[32 * w + n][column];
                const float x_0 = y.x - mean.x, x_1 = y.y - mean.y;
                nk += weight;
                sx[0] += weight * x_0;
                sx[1] += weight * x_1;
                sxx[0] = fmaf(weight * x_0, x_0, sxx[0]);
                sxx[1] = fmaf(weight * x_1, x_1, sxx[1]);
            }
        }
        if (lane == i) sums.nk += nk;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            sums.sx[i][e] += sx[e];
            sums.sxx[i][e] += sxx[e];
        }
    }
}

// Add the warp's sums to the block's, float64, and forget them.
__device__ inline void flush(Moments &sums, int k, int d, double *nk, double *sx, double *sxx) {
    const int lane = threadIdx.x % 32, own = threadIdx.x / 32 + WARPS * lane;
    if (lane < OWN && own < k) nk[own] += (double)sums.nk;
    sums.nk = 0.0f;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int component = threadIdx.x / 32 + WARPS * i;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const long long at = (long long)component * d + 2 * lane + e;
            if (component < k && 2 * lane + e < d) {
                sx[at] += (double)sums.sx[i][e];
                sxx[at] += (double)sums.sxx[i][e];
            }
            sums.sx[i][e] = sums.sxx[i][e] = 0.0f;
        }
    }
}

// Add each block's sums over its tiles to its slot. Grid: (blocks,); block i takes tiles i, i + blocks, ... No two
// blocks write to one place, so that the sums of all slots, which are added up in order, are the same bits again.
//
// rows: (n_rows, n_features) as stored, strides in elements. frame: (2, n_features) or null.
// weights: (n_rows,) or null.
// padded: see products.cuh. tight: (1 + n_components,), how many components are tight, and which.
// slots: one for each block, as those of statistics.cu. held: whether they hold the sums of other rows, and not just
// anything. flush_after: tiles that float32 sums hold.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) fused(
    const STORED *rows, long long n_rows, long long stride_n, long long stride_d, int n_features,
    const float *frame, int n_components,
    const float *weights, long long stride_w, const float *padded, const int *tight,
    double *slots, int held, int flush_after
) {
    extern __shared__ float memory[];
    Shared &s = *(Shared *)memory;
    const Rows x = {rows, n_rows, stride_n, stride_d, n_features, frame};
    const Padded p = padded_of(padded);
    const int first = threadIdx.x / 32 * 32;  // of the warp's rows

    const long long cells = (long long)n_components * n_features;
    double *nk = slots + blockIdx.x * (n_components + 2 * cells + 2 * THREADS);
    double *sx = nk + n_components, *sxx = sx + cells, *share = sxx + cells + threadIdx.x;

    if (!held)
        for (long long i = threadIdx.x; i < n_components + 2 * cells; i += THREADS) nk[i] = 0.0;
    for (int i = threadIdx.x; i < COMPONENTS * COLUMNS / 2; i += THREADS)
        s.table[i / (COLUMNS / 2)][i % (COLUMNS / 2)] = p.table[i];
    for (int i = threadIdx.x; i < COMPONENTS * COLUMNS / SPAN; i += THREADS)
        s.constant[i / COMPONENTS][i % COMPONENTS] = p.constants[i];

    Stored ahead[COLUMNS / PACK];
    Moments sums = {};
    double log_norm = 0.0, entropy = 0.0;
    int unflushed = 0;
    const long long tiles = (n_rows + ROWS - 1) / ROWS;
    if (blockIdx.x < tiles) fetch(ahead, x, (long long)blockIdx.x * ROWS);
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const long long start = tile * ROWS;
        put(s, ahead, x);
        __syncthreads();
        float weight[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const long long row = start + first + 8 * i + threadIdx.x % 32 / 4;
            weight[i] = row < n_rows ? 1.0f : 0.0f;
            if (weights && row < n_rows) weight[i] = weights[row * stride_w];
        }
        Logits logits = {};
        add_products(s, first, logits);
        find_tight(s, p, tight, first, logits);
        share_out(s, logits, first, weight, log_norm, entropy);
        const bool last = tile + gridDim.x >= tiles;
        if (!last) fetch(ahead, x, start + (long long)gridDim.x * ROWS);
        __syncthreads();
        add_moments(s, p.means, sums);
        __syncthreads();
        if (++unflushed == flush_after || last) {
            flush(sums, n_components, n_features, nk, sx, sxx);
            unflushed = 0;
        }
    }
    share[0] = (held ? share[0] : 0.0) + log_norm * LN_2;
    share[THREADS] = (held ? share[THREADS] : 0.0) + entropy * LN_2;
}
