/* Nearest and bilinear resampling of a window of an image, one output row at a time.

   resize_nearest and resize_bilinear in resample.py define the results, which are equal bit by bit;
   the compiler must therefore not contract a multiplication and an addition into one rounding.

   A source has `lanes` channels, `lane` elements apart, and rows `stride` elements apart. Column
   indices are counted in elements. With `packed`, the channels of a pixel are neighbours. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NEAREST(NAME, TYPE)                                                                        \
    void NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int lanes, const int32_t *rows, \
              int height, const int32_t *cols, int width, TYPE *target, ptrdiff_t target_lane,     \
              ptrdiff_t target_stride) {                                                           \
        for (int c = 0; c < lanes; c++) {                                                          \
            for (int i = 0; i < height; i++) {                                                     \
                const TYPE *restrict from = source + c * lane + rows[i] * stride;                  \
                TYPE *restrict to = target + c * target_lane + i * target_stride;                  \
                if (i > 0 && rows[i] == rows[i - 1]) {                                             \
                    memcpy(to, to - target_stride, width * sizeof(TYPE));                          \
                    continue;                                                                      \
                }                                                                                  \
                for (int j = 0; j < width; j++) to[j] = from[cols[j]];                             \
            }                                                                                      \
        }                                                                                          \
    }

/* `blend` has room for a row of the source; columns begin..end of it are used. */
#define BILINEAR(NAME, TYPE, ROUND)                                                                \
    void NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int lanes, int packed,         \
              const int32_t *top, const int32_t *bottom, const float *down, int height,            \
              const int32_t *left, const int32_t *right, const float *across, int width,           \
              int begin, int end, float *blend, TYPE *target, ptrdiff_t target_lane,               \
              ptrdiff_t target_stride) {                                                           \
        int passes = packed ? 1 : lanes, inner = packed ? lanes : 1;                               \
        for (int i = 0; i < height; i++) {                                                         \
            for (int pass = 0; pass < passes; pass++) {                                            \
                const TYPE *restrict above = source + pass * lane + top[i] * stride;               \
                const TYPE *restrict below = source + pass * lane + bottom[i] * stride;            \
                float *restrict row = blend;                                                       \
                float weight = down[i];                                                            \
                for (int j = begin; j < end; j++) {                                                \
                    float first = above[j], step = below[j];                                       \
                    step -= first;                                                                 \
                    step *= weight;                                                                \
                    row[j] = first + step;                                                         \
                }                                                                                  \
                for (int c = 0; c < inner; c++) {                                                  \
                    const float *restrict from = blend + c;                                        \
                    TYPE *restrict to = target + (pass + c) * target_lane + i * target_stride;     \
                    for (int j = 0; j < width; j++) {                                              \
                        float first = from[left[j]], step = from[right[j]];                        \
                        step -= first;                                                             \
                        step *= across[j];                                                         \
                        to[j] = (TYPE)ROUND(first + step);                                         \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

#define TO_INTEGER(x) (int32_t) rintf(x)
#define AS_IT_IS(x) (x)

NEAREST(nearest_uint8, uint8_t)
NEAREST(nearest_uint16, uint16_t)
NEAREST(nearest_float32, float)
BILINEAR(bilinear_uint8, uint8_t, TO_INTEGER)
BILINEAR(bilinear_uint16, uint16_t, TO_INTEGER)
BILINEAR(bilinear_float32, float, AS_IT_IS)
