// ln rho of a tile of rows on CUDA cores, for any number of columns and components.
//
//     ln rho_nk = a_k - 1/2 sum_d u_nkd^2,    u_nkd = sqrt(lambda_kd) (y_nd - m_kd)        spherical, diag
//
// y - m is taken before it is squared, for every component: m is the sum of a float32 `mean` and a remainder, and
// u = root (y - mean) + rest with rest = -sqrt(lambda) (m - mean). That is three instructions a term where lambda y^2
// and lambda m y would be two, and nothing cancels: there is no second path for components that are tight far from
// the origin, and no bound on sum_d lambda_kd m_kd^2 from which on it would have to be taken.
//
// One block of threads works on a tile of ROWS rows and on COMPONENTS components at a time, COLUMNS columns of both in
// shared memory. The compiler is told
//     COLUMNS    32 or 64
//     WARPS      1, 2 or 4, of 16 components each

#include "parts.cuh"

#define ROWS 64
#define COMPONENTS (16 * WARPS)
#define THREADS (32 * WARPS)

// The shared memory of a block. Lines are padded so that the threads of a warp read from different banks.
struct Shared {
    float y[ROWS][COLUMNS + 1];
    float mean[COMPONENTS][COLUMNS + 1];
    float root[COMPONENTS][COLUMNS + 1];
    float rest[COMPONENTS][COLUMNS + 1];
    float r[COMPONENTS][ROWS + 8];  // ln rho, then what a kernel makes of it
};

// Read columns start to start + COLUMNS of the tile of rows that begins with row `first` into y; zero where there are
// none. A warp reads neighbouring columns.
__device__ inline void read_rows(float y[][COLUMNS + 1], const Rows &rows, long long first, int start) {
#pragma unroll 8  // eight loads are under way at once: all addresses are valid, because a branch would part the loads
    for (int step = 0; step < ROWS * COLUMNS / THREADS; step++) {
        const int i = step * THREADS + threadIdx.x, n = i / COLUMNS, c = i % COLUMNS, d = start + c;
        const bool here = first + n < rows.n && d < rows.d;
        float value = number(rows.data[here ? (first + n) * rows.stride_n + d * rows.stride_d : 0]);
        if (rows.frame) value = (value - rows.frame[here ? d : 0]) * rows.frame[rows.d + (here ? d : 0)];
        y[n][c] = here ? value : 0.0f;
    }
}

// Read the same columns of components `first` to first + COMPONENTS of from (k, d) into table; zero where none are.
__device__ inline void read_table(
    float table[][COLUMNS + 1], const float *from, int k, int d, int first, int start
) {
#pragma unroll 8
    for (int step = 0; step < COMPONENTS * COLUMNS / THREADS; step++) {
        const int i = step * THREADS + threadIdx.x, j = i / COLUMNS, c = i % COLUMNS;
        const bool here = first + j < k && start + c < d;
        const float value = from[here ? (long long)(first + j) * d + start + c : 0];
        table[j][c] = here ? value : 0.0f;
    }
}

// Write ln rho of the tile of rows that begins with `first_row`, for components `first` to first + COMPONENTS, into
// s.r; of components that are not there, anything. Where a row has no more than COLUMNS columns, s.y and s.mean stay
// as they were read, and `held` says that the tables are there from the tile before.
//
// A warp takes 16 components and a thread 4 of them, for 8 rows: 20 numbers read from shared memory for 96
// instructions of arithmetic. All threads of the block call this together; when it returns, they may read s.r.
__device__ inline void find_log_rho(
    Shared &s, const Rows &rows, const Components &c, long long first_row, int first, bool held
) {
    const int lane = threadIdx.x % 32, n = lane % 8, k = threadIdx.x / 32 * 16 + lane / 8;
    for (int start = 0; start < rows.d; start += COLUMNS) {
        __syncthreads();  // the last columns may still be read
        read_rows(s.y, rows, first_row, start);
        if (!held) {
            read_table(s.mean, c.mean, c.k, rows.d, first, start);
            read_table(s.root, c.root, c.k, rows.d, first, start);
            read_table(s.rest, c.rest, c.k, rows.d, first, start);
        }
        __syncthreads();
        const int columns = min(COLUMNS, rows.d - start);
        float square[8][4] = {};
#pragma unroll 2
        for (int d = 0; d < columns; d++) {
            float y[8];
#pragma unroll
            for (int i = 0; i < 8; i++) y[i] = s.y[n + 8 * i][d];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float mean = s.mean[k + 4 * j][d], root = s.root[k + 4 * j][d], rest = s.rest[k + 4 * j][d];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float u = fmaf(root, y[i] - mean, rest);
                    square[i][j] = fmaf(u, u, square[i][j]);
                }
            }
        }
        // Sums over COLUMNS columns are added up here, not in registers: one long sum would lose digits.
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int component = first + k + 4 * j;
            const float offset = component < c.k ? c.offset[component] : 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float &log_rho = s.r[k + 4 * j][n + 8 * i];
                log_rho = fmaf(-0.5f, square[i][j], start ? log_rho : offset);
            }
        }
    }
    __syncthreads();
}
