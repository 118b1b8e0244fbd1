// What the CUDA kernels share: rows as they are stored, and the coefficients.
//
// The compiler is told
//     STORED     how rows are stored: float, float16 or bfloat16
//     CUT        where rho is below e^CUT of a row's largest, it is zero
// and more by direct.cuh and fused.cu. No header of CUDA's is included, so that NVRTC needs nothing beside it.

#define AT_ONCE 2  // blocks that share a multiprocessor's registers; its shared memory has room for no more large ones

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

// Rows (n, d) as stored, strides in elements; the mixture sees (x - frame[0]) * frame[1], frame (2, d), or x for null.
struct Rows {
    const STORED *data;
    long long n, stride_n, stride_d;
    int d;
    const float *frame;
};

// Coefficients of k components, one after the other in a table: offset (k,), that is a; mean, root, rest (k, d).
struct Components {
    int k;
    const float *offset, *mean, *root, *rest;
};

__device__ inline Components components_of(const float *table, int k, int d) {
    const float *mean = table + k;
    const long long cells = (long long)k * d;
    return {k, table, mean, mean + cells, mean + 2 * cells};
}

__device__ inline float number(float x) { return x; }

__device__ inline float number(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

// No step makes a subnormal float32 number of a subnormal float16 one: CuPy has NVRTC flush those to zero.
__device__ inline float number(float16 x) {
    const unsigned sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
    unsigned bits = rest + 0x38000000u;  // the exponent is biased by 127 instead of 15
    if (rest >= 0x0f800000u) bits = rest | 0x7f800000u;  // infinite, or not a number
    if (rest < 0x00800000u) bits = __float_as_uint(__uint_as_float(rest | 0x38800000u) - 6.103515625e-5f);  // 2^-14
    return __uint_as_float(sign | bits);
}
