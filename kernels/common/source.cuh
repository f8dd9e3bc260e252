// Where the tiles of a product come from: matrices in global memory, read CHUNK neighbours of a row at a time and
// turned into what the arithmetic takes: f32 where activations are f32, else their 16 bits for the tensor cores.
//
// A source has
//   whole      all chunks are aligned and lie in a row as a whole or not at all, so that `fetch` may be used
//   Raw, fetch what a chunk is read as, so that it can be under way while the last tile is multiplied; zeros outside
//   piece      the chunk, converted
//   at         one element inside the matrix, in f32: the way for matrices that are not `whole`
//   ASYNC      the chunk's bytes are a Piece already: `where` and copy16 bring them
#pragma once
#include "mma.cuh"
#include "philox.cuh"
#include "weight.cuh"

// A Piece is 16 bytes.
#if ACT == 0
constexpr int CHUNK = 4;
typedef float4 Piece;
__device__ __forceinline__ Piece pack(const float (&v)[CHUNK]) { return make_float4(v[0], v[1], v[2], v[3]); }
#else
constexpr int CHUNK = 8;
typedef uint4 Piece;
__device__ __forceinline__ Piece pack(const float (&v)[CHUNK]) {
    return make_uint4(Tensor<act>::pack(v[0], v[1]), Tensor<act>::pack(v[2], v[3]), Tensor<act>::pack(v[4], v[5]),
                      Tensor<act>::pack(v[6], v[7]));
}
#endif

template <class A, class B> struct Same { static constexpr bool value = false; };
template <class A> struct Same<A, A> { static constexpr bool value = true; };

// A chunk of elements of type T as words.
template <class T> struct Words { u32 word[CHUNK * sizeof(T) / 4]; };
__device__ __forceinline__ float element(const Words<float>& w, int i) { return __uint_as_float(w.word[i]); }
__device__ __forceinline__ float element(const Words<bf16>& w, int i) {
    bf16 x = {(u16)(w.word[i / 2] >> (i % 2 * 16))};
    return to_f32(x);
}
__device__ __forceinline__ float element(const Words<f16>& w, int i) {
    f16 x = {(u16)(w.word[i / 2] >> (i % 2 * 16))};
    return to_f32(x);
}

// A matrix of T, its rows `ld` elements apart.
template <class T> struct Rows {
    // Elements of one load of 16 bytes, or of 8 where a chunk is no longer.
    static constexpr int VECTOR = 16 / sizeof(T) < CHUNK ? 16 / sizeof(T) : CHUNK;
#if __CUDA_ARCH__ >= 800
    static constexpr bool ASYNC = ACT != 0 && Same<T, act>::value;
#else
    static constexpr bool ASYNC = false;
#endif
    typedef Words<T> Raw;
    const T* p;
    u32 rows, cols, ld;
    bool whole;

    __device__ __forceinline__ Rows(const void* data, u32 rows, u32 cols, u32 ld)
        : p((const T*)data), rows(rows), cols(cols), ld(ld), whole(cols % VECTOR == 0 && ld % VECTOR == 0) {}
    __device__ __forceinline__ bool inside(u32 row, u32 col) const { return row < rows && col < cols; }
    __device__ __forceinline__ const T* where(u32 row, u32 col) const {
        return inside(row, col) ? p + (size_t)row * ld + col : p;
    }
    __device__ __forceinline__ float at(u32 row, u32 col) const { return to_f32(p[(size_t)row * ld + col]); }
    __device__ __forceinline__ void fetch(Raw& raw, u32 row, u32 col) const {
        constexpr int STEP = VECTOR * sizeof(T) / 4;
        const T* from = p + (size_t)row * ld + col;
#pragma unroll
        for (int i = 0; i < CHUNK / VECTOR; i++) {
            u32* to = raw.word + i * STEP;
            bool in = inside(row, col + i * VECTOR);
            if (STEP == 4) {
                uint4 v = in ? *(const uint4*)(from + i * VECTOR) : make_uint4(0, 0, 0, 0);
                to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
            } else {
                uint2 v = in ? *(const uint2*)(from + i * VECTOR) : make_uint2(0, 0);
                to[0] = v.x, to[1] = v.y;
            }
        }
    }
    __device__ __forceinline__ void values(const Raw& raw, u32, u32, float (&v)[CHUNK]) const {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) v[i] = element(raw, i);
    }
    __device__ __forceinline__ Piece piece(const Raw& raw, u32 row, u32 col) const {
        float v[CHUNK];
        values(raw, row, col, v);
        return pack(v);
    }
};

// Activations times the factors of dropout.
struct DroppedRows {
    static constexpr bool ASYNC = false;
    typedef Words<act> Raw;
    Rows<act> x;
    Dropout drop;
    bool whole;

    __device__ __forceinline__ DroppedRows(const Rows<act>& x, const Dropout& drop)
        : x(x), drop(drop), whole(x.cols % CHUNK == 0 && x.ld % CHUNK == 0) {}
    __device__ __forceinline__ bool inside(u32 row, u32 col) const { return x.inside(row, col); }
    __device__ __forceinline__ const act* where(u32 row, u32 col) const { return x.where(row, col); }
    __device__ __forceinline__ size_t number(u32 row, u32 col) const { return (size_t)row * x.ld + col; }
    __device__ __forceinline__ float at(u32 row, u32 col) const { return x.at(row, col) * drop.factor(number(row, col)); }
    __device__ __forceinline__ void fetch(Raw& raw, u32 row, u32 col) const { x.fetch(raw, row, col); }
    __device__ __forceinline__ void values(const Raw& raw, u32 row, u32 col, float (&v)[CHUNK]) const {
#pragma unroll
        for (int i = 0; i < CHUNK; i += 4) {
            float4 f = drop.factor4(number(row, col) + i);
            v[i] = element(raw, i) * f.x;
            v[i + 1] = element(raw, i + 1) * f.y;
            v[i + 2] = element(raw, i + 2) * f.z;
            v[i + 3] = element(raw, i + 3) * f.w;
        }
    }
    __device__ __forceinline__ Piece piece(const Raw& raw, u32 row, u32 col) const {
        float v[CHUNK];
        values(raw, row, col, v);
        return pack(v);
    }
};

#if W >= 3
// The tables of the decoding in shared memory. 16 levels lie in 16 banks: no two lanes ever wait for each other.
struct Nf4Tables {
    float level[16];
    // Values of the dynamic map's codes 127 to 255; those below mirror them.
    float map[W == 4 ? 129 : 1];
};

// A weight in NF4; rows × cols elements one after the other.
struct Nf4Rows {
    static constexpr bool ASYNC = false;
    struct Raw {
        u32 codes;
#if W == 4
        u32 index;
        float nested;
#else
        float absmax;
#endif
    };
    Weight w;
    u32 rows, cols;
    const Nf4Tables& tables;
    float offset;
    bool whole;

    // Called by all threads of the block; the tables are there after the next barrier.
    __device__ __forceinline__ Nf4Rows(const Weight& w, u32 rows, u32 cols, Nf4Tables& smem)
        : w(w), rows(rows), cols(cols), tables(smem), offset(0.0f), whole(cols % CHUNK == 0) {
        if (threadIdx.x < 16) smem.level[threadIdx.x] = NF4_LEVELS[threadIdx.x];
#if W == 4
        for (u32 i = threadIdx.x; i < 129; i += blockDim.x) smem.map[i] = dynamic_value(127 + i);
        offset = *w.offset;
#endif
    }
    __device__ __forceinline__ bool inside(u32 row, u32 col) const { return row < rows && col < cols; }
    __device__ __forceinline__ const void* where(u32, u32) const { return w.data; }
    __device__ __forceinline__ float at(u32 row, u32 col) const { return weight_at(w, (size_t)row * cols + col); }
    __device__ __forceinline__ void fetch(Raw& raw, u32 row, u32 col) const {
        size_t i = (size_t)row * cols + col;
        bool in = inside(row, col);
        // Code 7 is zero.
        raw.codes = 0x77777777u;
#if ACT == 0
        if (in) raw.codes = ((const u16*)w.data)[i / 4];
#else
        if (in) raw.codes = ((const u32*)w.data)[i / 8];
#endif
#if W == 4
        raw.index = in ? ((const u8*)w.absmax)[i / 64] : 0;
        raw.nested = in ? w.nested[i / 64 / 256] : 0.0f;
#else
        raw.absmax = in ? ((const float*)w.absmax)[i / 64] : 0.0f;
#endif
    }
    __device__ __forceinline__ void values(const Raw& raw, u32, u32, float (&v)[CHUNK]) const {
#if W == 4
        float entry = tables.map[raw.index >= 127 ? raw.index - 127 : 127 - raw.index];
        float absmax = fmaf(raw.index >= 127 ? entry : -entry, raw.nested, offset);
#else
        float absmax = raw.absmax;
#endif
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            // Two codes a byte, the first in its high half.
            int shift = i / 2 * 8 + (i % 2 == 0 ? 4 : 0);
            v[i] = tables.level[raw.codes >> shift & 15] * absmax;
        }
    }
    __device__ __forceinline__ Piece piece(const Raw& raw, u32 row, u32 col) const {
        float v[CHUNK];
        values(raw, row, col, v);
        return pack(v);
    }
};
// Declares `name`, a weight of rows × cols as it is stored.
#define WEIGHT_ROWS(name, weight, rows, cols) \
    __shared__ Nf4Tables name##_tables;       \
    Nf4Rows name(weight, rows, cols, name##_tables)
#else
#if W == 0
typedef float Stored;
#elif W == 1
typedef bf16 Stored;
#else
typedef f16 Stored;
#endif
#define WEIGHT_ROWS(name, weight, rows, cols) Rows<Stored> name((weight).data, rows, cols, cols)
#endif
