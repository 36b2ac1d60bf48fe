// Tiles of 16-bit values in shared memory, as the tensor cores' instructions take them.
#pragma once
#include "common.cuh"

// Rows of D 16-bit values in shared memory, 16 bytes apart from whole rows so that eight rows' reads fall on different banks.
template <class T, int D> struct Tile {
  static constexpr int STRIDE = D + 8;
  static constexpr int ROW_BYTES = STRIDE * int(sizeof(T));

  T *values;
  __device__ explicit Tile(void *at) : values(static_cast<T *>(at)) {}
  __device__ Tile rows(int first) const { return Tile(values + first * STRIDE); }

  // Starts the copy of rows first .. first + ROWS; those at `end` and beyond become zero.
  template <int ROWS, int THREADS> __device__ void fetch(const T *source, int64 row_stride, int first, int end) const {
    constexpr int PIECES = D / 8;
    static_assert(ROWS * PIECES % THREADS == 0 || THREADS > PIECES, "pieces are spread over the threads");
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
      int row = i / PIECES, column = i % PIECES * 8;
      bool valid = first + row < end;
      copy_async(values + row * STRIDE + column, source + (valid ? (first + row) * row_stride + column : 0), valid);
    }
  }

  // The left factor's fragment: 16 rows, 16 columns from `column`.
  __device__ void left(uint32_t (&a)[4], int column) const {
    int lane = threadIdx.x % 32;
    load_matrices(a, values + lane % 16 * STRIDE + column + lane / 16 * 8);
  }

  // The right factor's fragments where the tile's rows are the product's columns: 16 rows as two fragments, 16 columns from `column`.
  __device__ void right(uint32_t (&b)[2][2], int column) const {
    int lane = threadIdx.x % 32;
    uint32_t r[4];
    load_matrices(r, values + (lane % 8 + lane / 16 * 8) * STRIDE + column + lane / 8 % 2 * 8);
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  }

  // The right factor's fragments where the tile's rows are summed over: 16 rows, 16 columns from `column` as two fragments.
  __device__ void right_turned(uint32_t (&b)[2][2], int column) const {
    int lane = threadIdx.x % 32;
    uint32_t r[4];
    load_matrices_transposed(r, values + lane % 16 * STRIDE + column + lane / 16 * 8);
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  }
};
