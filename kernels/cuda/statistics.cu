// One pass of spherical or diag: rows in, sums of blocks out. Responsibilities stay in shared memory.

#include "direct.cuh"

// Turn ln rho of row n of a tile, s.r[.][n], into responsibilities times the row's weight, and add the row to sums.
//
// known: whether peak and total are given, as those of all components; if not, these are all components.
// counted: whether these components add what is the row's and not a component's. log_norm, entropy: the thread's sums,
// see kernels/contract.py.
__device__ inline void share_out(
    Shared &s, int n, int count, float weight, bool known, float peak, float total, bool counted,
    double &log_norm, double &entropy
) {
    if (!known) {
        peak = s.r[0][n];
        for (int k = 1; k < count; k++) peak = fmaxf(peak, s.r[k][n]);
    }
    float found = 0.0f, product = 0.0f;  // sum rho / e^peak, and sum rho / e^peak (ln rho - peak)
    for (int k = 0; k < count; k++) {
        const float below = s.r[k][n] - peak;
        const float p = below > CUT ? expf(below) : 0.0f;
        if (p > 0.0f) product = fmaf(p, below, product);
        found += p;
        s.r[k][n] = p;
    }
    if (!known) total = found;
    const float share = weight / total;
    for (int k = 0; k < count; k++) s.r[k][n] *= share;
    entropy -= share * product;
    if (counted) {
        const float log_sum = logf(total);
        log_norm += (double)weight * ((double)peak + (double)log_sum);
        entropy += weight * log_sum;
    }
}

// Add what the tile in s.y and s.r has in components `first` to first + count to the block's sums: sx, sxx (k, d),
// about s.mean, of columns start to start + COLUMNS, and, with the first columns, nk (k,).
//
// A warp takes a component at a time and its threads the columns; rows that have no share in the component are passed
// over. float32 sums are of ROWS rows at most.
__device__ inline void add_moments(
    const Shared &s, int first, int count, int start, int d, double *nk, double *sx, double *sxx
) {
    const int lane = threadIdx.x % 32;
    for (int k = threadIdx.x / 32; k < count; k += WARPS) {
        float r_sum = 0.0f, sum[COLUMNS / 32] = {}, square[COLUMNS / 32] = {};
        bool any = false;
        for (int low = 0; low < ROWS; low += 32) {
            unsigned sharing = __ballot_sync(0xffffffffu, s.r[k][low + lane] != 0.0f);
            any = any || sharing != 0;
            for (; sharing; sharing &= sharing - 1) {
                const int n = low + __ffs(sharing) - 1;
                const float r = s.r[k][n];
                r_sum += r;
#pragma unroll
                for (int j = 0; j < COLUMNS / 32; j++) {
                    const float difference = s.y[n][lane + 32 * j] - s.mean[k][lane + 32 * j];
                    const float part = r * difference;
                    sum[j] += part;
                    square[j] = fmaf(part, difference, square[j]);
                }
            }
        }
        if (!any) continue;
        if (start == 0 && lane == 0) nk[first + k] += (double)r_sum;
#pragma unroll
        for (int j = 0; j < COLUMNS / 32; j++) {
            const int column = start + lane + 32 * j;
            if (column >= d) continue;
            const long long at = (long long)(first + k) * d + column;
            sx[at] += (double)sum[j];
            sxx[at] += (double)square[j];
        }
    }
}

// Add each block's sums over its tiles to its slot. Grid: (blocks, ceil(n_components / COMPONENTS)); block (i, j) takes
// tiles i, i + blocks, ... and the j-th COMPONENTS components. No two blocks write to one place, so that the sums of all
// slots, which are added up in order, are the same bits again.
//
// rows: (n_rows, n_features) as stored, strides in elements. frame: (2, n_features) or null, and table: see parts.cuh.
// weights: (n_rows,) or null.
// peaks, totals: (n_rows,) as `assign` leaves them; read where there are more than COMPONENTS components.
// slots: one for each blockIdx.x, of float64 numbers one after the other:
//     nk     (n_components,)
//     sx     (n_components, n_features), sum r (y - mean)
//     sxx    (n_components, n_features), sum r (y - mean)^2
//     sums   (gridDim.y, 2, THREADS), log_norm and entropy, a thread's share each
// held: whether the slots hold the sums of other rows, and not just anything.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) statistics(
    const STORED *rows, long long n_rows, long long stride_n, long long stride_d, int n_features,
    const float *frame, const float *table, int n_components,
    const float *weights, long long stride_w, const float *peaks, const float *totals,
    double *slots, int held
) {
    extern __shared__ float memory[];
    Shared &s = *(Shared *)memory;
    const Rows x = {rows, n_rows, stride_n, stride_d, n_features, frame};
    const Components c = components_of(table, n_components, n_features);
    const int first = blockIdx.y * COMPONENTS, count = min(COMPONENTS, n_components - first);
    const bool whole = n_features <= COLUMNS, known = n_components > COMPONENTS;

    const long long cells = (long long)n_components * n_features, own = (long long)first * n_features;
    double *nk = slots + blockIdx.x * (n_components + 2 * cells + 2 * THREADS * gridDim.y);
    double *sx = nk + n_components, *sxx = sx + cells;
    double *share = sxx + cells + 2 * THREADS * blockIdx.y + threadIdx.x;
    double log_norm = 0.0, entropy = 0.0;
    if (held) {
        log_norm = share[0];
        entropy = share[THREADS];
    } else {
        for (int k = threadIdx.x; k < count; k += THREADS) nk[first + k] = 0.0;
        for (long long i = threadIdx.x; i < (long long)count * n_features; i += THREADS) sx[own + i] = sxx[own + i] = 0.0;
    }
    const long long tiles = (n_rows + ROWS - 1) / ROWS;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        find_log_rho(s, x, c, tile * ROWS, first, whole && tile != blockIdx.x);
        for (int n = threadIdx.x; n < ROWS; n += THREADS) {
            const long long row = tile * ROWS + n;
            if (row < n_rows) {
                const float peak = known ? peaks[row] : 0.0f, total = known ? totals[row] : 0.0f;
                const float weight = weights ? weights[row * stride_w] : 1.0f;
                share_out(s, n, count, weight, known, peak, total, first == 0, log_norm, entropy);
            } else {
                for (int k = 0; k < count; k++) s.r[k][n] = 0.0f;
            }
        }
        __syncthreads();
        for (int start = 0; start < n_features; start += COLUMNS) {
            if (!whole) {
                __syncthreads();  // the last columns may still be read
                read_rows(s.y, x, tile * ROWS, start);
                read_table(s.mean, c.mean, n_components, n_features, first, start);
                __syncthreads();
            }
            add_moments(s, first, count, start, n_features, nk, sx, sxx);
        }
    }
    share[0] = log_norm;
    share[THREADS] = entropy;
}
