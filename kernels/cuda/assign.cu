// Labels, and what the softmax of each row needs, for any number of components: N x K numbers are nowhere.

#include "parts.cuh"

// Write for each row its most probable component, the first of equals, its largest ln rho, and the sum of all rho over
// that largest one: ln sum_k rho_nk = peak + ln total. Grid: (blocks,); block i takes tiles i, i + blocks, ...
//
// rows: (n_rows, n_features) as stored, strides in elements. shift, scale: (n_features,) or null.
// offset: (n_components,); mean, root, rest: (n_components, n_features); see parts.cuh.
// labels, peaks, totals: (n_rows,).
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) assign(
    const STORED *rows, long long stride_n, long long stride_d, const float *shift, const float *scale,
    const float *offset, const float *mean, const float *root, const float *rest,
    int *labels, float *peaks, float *totals,
    long long n_rows, int n_features, int n_components
) {
    extern __shared__ float memory[];
    Shared &s = *(Shared *)memory;
    const Rows x = {rows, n_rows, stride_n, stride_d, n_features, shift, scale};
    const Components c = {n_components, offset, mean, root, rest};
    const bool whole = n_features <= COLUMNS && n_components <= COMPONENTS;

    const long long tiles = (n_rows + ROWS - 1) / ROWS;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        for (int first = 0; first < n_components; first += COMPONENTS) {
            find_log_rho(s, x, c, tile * ROWS, first, whole && tile != blockIdx.x);
            const int count = min(COMPONENTS, n_components - first);
            for (int n = threadIdx.x; n < ROWS && tile * ROWS + n < n_rows; n += THREADS) {
                const long long row = tile * ROWS + n;
                int label = first ? labels[row] : 0;
                float peak = first ? peaks[row] : s.r[0][n], total = first ? totals[row] : 0.0f;
                const float before = peak;
                for (int k = 0; k < count; k++) {
                    if (s.r[k][n] > peak) {
                        peak = s.r[k][n];
                        label = first + k;
                    }
                }
                if (peak > before) total *= expf(before - peak);
                for (int k = 0; k < count; k++) {
                    const float below = s.r[k][n] - peak;
                    if (below > CUT) total += expf(below);
                }
                labels[row] = label;
                peaks[row] = peak;
                totals[row] = total;
            }
        }
    }
}
