// Labels, and what the softmax of each row needs, for any number of components: N x K numbers are nowhere.

#include "direct.cuh"

// Write for each row its most probable component, the first of equals, its largest ln rho, and the sum of all rho over
// that largest one: ln sum_k rho_nk = peak + ln total. Grid: (blocks,); block i takes tiles i, i + blocks, ...
//
// rows: (n_rows, n_features) as stored, strides in elements. frame: (2, n_features) or null, and table: see parts.cuh.
// labels: (n_rows,), or null where nobody asks for them. peaks, totals: (n_rows,).
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) assign(
    const STORED *rows, long long n_rows, long long stride_n, long long stride_d, int n_features,
    const float *frame, const float *table, int n_components,
    int *labels, float *peaks, float *totals
) {
    extern __shared__ float memory[];
    Shared &s = *(Shared *)memory;
    const Rows x = {rows, n_rows, stride_n, stride_d, n_features, frame};
    const Components c = components_of(table, n_components, n_features);
    const bool whole = n_features <= COLUMNS && n_components <= COMPONENTS;

    const long long tiles = (n_rows + ROWS - 1) / ROWS;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        for (int first = 0; first < n_components; first += COMPONENTS) {
            find_log_rho(s, x, c, tile * ROWS, first, whole && tile != blockIdx.x);
            const int count = min(COMPONENTS, n_components - first);
            for (int n = threadIdx.x; n < ROWS && tile * ROWS + n < n_rows; n += THREADS) {
                const long long row = tile * ROWS + n;
                int label = first && labels ? labels[row] : 0;
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
                if (labels) labels[row] = label;
                peaks[row] = peak;
                totals[row] = total;
            }
        }
    }
}
