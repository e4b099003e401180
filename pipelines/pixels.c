/* Resampling, blur and colour jitter of images, one row at a time.

   resample.py and augment.py define the results, which are equal bit by bit; the compiler must
   therefore not contract a multiplication and an addition into one rounding.

   A source has `lanes` channels, `lane` elements apart, and rows `stride` elements apart. With
   `packed`, the channels of a pixel are neighbours. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NEAREST(NAME, TYPE)                                                                        \
    void NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int lanes,                     \
              const int32_t *rows, int height, const int32_t *cols, int width, TYPE *target,       \
              ptrdiff_t target_lane, ptrdiff_t target_stride) {                                    \
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

/* Column indices are counted in elements. `blend` has room for a row of the source; elements
   begin..end of it are used. */
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

/* Taps w[0..taps-1] down, then across; borders are mirrored without repeating the edge. `padded`
   has room for two rows and taps - 1 pixels more. The target is laid out as the source. */
#define BLUR(NAME, TYPE)                                                                           \
    void NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int lanes, int packed,         \
              int height, int width, const float *weights, int taps, float *padded, TYPE *target,  \
              ptrdiff_t target_lane, ptrdiff_t target_stride) {                                    \
        int passes = packed ? 1 : lanes, pixel = packed ? lanes : 1, half = taps / 2;              \
        int length = width * pixel;                                                                \
        float *restrict middle = padded + half * pixel;                                            \
        float *restrict sums = padded + length + (taps - 1) * pixel;                               \
        for (int i = 0; i < height; i++) {                                                         \
            for (int pass = 0; pass < passes; pass++) {                                            \
                for (int k = 0; k < taps; k++) {                                                   \
                    const TYPE *restrict from =                                                    \
                        source + pass * lane + mirrored(i + k - half, height) * stride;            \
                    float weight = weights[k];                                                     \
                    if (k == 0)                                                                    \
                        for (int j = 0; j < length; j++) middle[j] = weight * from[j];             \
                    else                                                                           \
                        for (int j = 0; j < length; j++) {                                         \
                            float part = weight * from[j];                                         \
                            middle[j] += part;                                                     \
                        }                                                                          \
                }                                                                                  \
                for (int k = 1; k <= half; k++)                                                    \
                    for (int c = 0; c < pixel; c++) {                                              \
                        middle[-k * pixel + c] = middle[mirrored(-k, width) * pixel + c];          \
                        middle[(width - 1 + k) * pixel + c] =                                      \
                            middle[mirrored(width - 1 + k, width) * pixel + c];                    \
                    }                                                                              \
                TYPE *restrict to = target + pass * target_lane + i * target_stride;               \
                for (int j = 0; j < length; j++) sums[j] = weights[0] * padded[j];                 \
                for (int k = 1; k < taps; k++) {                                                   \
                    const float *restrict from = padded + k * pixel;                               \
                    float weight = weights[k];                                                     \
                    for (int j = 0; j < length; j++) {                                             \
                        float part = weight * from[j];                                             \
                        sums[j] += part;                                                           \
                    }                                                                              \
                }                                                                                  \
                for (int j = 0; j < length; j++) to[j] = (TYPE)TO_INTEGER(sums[j]);                \
            }                                                                                      \
        }                                                                                          \
    }

/* Sum of the grey values of the image whose codes are looked up in `table`. Channels of a pixel are
   `lane` apart, pixels `pixel`; where these are known to the compiler it uses vectors. */
#define GREY_SUM(NAME, TYPE)                                                                       \
    static inline int64_t NAME##_of(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride,          \
                                    int pixel, int height, int width,                              \
                                    const float *restrict table) {                                 \
        int64_t sum = 0;                                                                           \
        for (int i = 0; i < height; i++) {                                                         \
            const TYPE *restrict from = source + i * stride;                                       \
            uint32_t line = 0;                                                                     \
            for (int j = 0; j < width; j++) {                                                      \
                const TYPE *at = from + j * pixel;                                                 \
                line += grey(table[at[0]], table[at[lane]], table[at[2 * lane]]);                  \
            }                                                                                      \
            sum += line;                                                                           \
        }                                                                                          \
        return sum;                                                                                \
    }                                                                                              \
    int64_t NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int pixel, int height,      \
                 int width, const float *restrict table) {                                         \
        return pixel == 3 ? NAME##_of(source, 1, stride, 3, height, width, table)                  \
                          : NAME##_of(source, lane, stride, 1, height, width, table);              \
    }

/* factor x + (1 - factor) grey(x), cut to 0..white and truncated, of x = table[code]. The target is
   laid out as the source. */
#define SATURATE(NAME, TYPE)                                                                       \
    static inline void NAME##_of(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int pixel,  \
                                 int height, int width, const float *restrict table,               \
                                 float factor, float rest, float white, TYPE *target,              \
                                 ptrdiff_t target_lane, ptrdiff_t target_stride) {                 \
        for (int i = 0; i < height; i++) {                                                         \
            const TYPE *restrict from = source + i * stride;                                       \
            TYPE *restrict to = target + i * target_stride;                                        \
            for (int j = 0; j < width; j++) {                                                      \
                const TYPE *at = from + j * pixel;                                                 \
                float red = table[at[0]], green = table[at[lane]], blue = table[at[2 * lane]];     \
                float share = rest * (float)grey(red, green, blue);                                \
                to[j * pixel] = (TYPE)blended(factor, red, share, white);                          \
                to[j * pixel + target_lane] = (TYPE)blended(factor, green, share, white);          \
                to[j * pixel + 2 * target_lane] = (TYPE)blended(factor, blue, share, white);       \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    void NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int pixel, int height,         \
              int width, const float *restrict table, float factor, float rest, float white,       \
              TYPE *target, ptrdiff_t target_lane, ptrdiff_t target_stride) {                      \
        if (pixel == 3)                                                                            \
            NAME##_of(source, 1, stride, 3, height, width, table, factor, rest, white, target, 1,  \
                      target_stride);                                                              \
        else                                                                                       \
            NAME##_of(source, lane, stride, 1, height, width, table, factor, rest, white, target,  \
                      target_lane, target_stride);                                                 \
    }

#define TO_INTEGER(x) (int32_t) rintf(x)
#define AS_IT_IS(x) (x)

static int mirrored(int i, int length) {
    if (length == 1) return 0;
    int period = 2 * (length - 1);
    i = (i % period + period) % period;
    return i < length ? i : period - i;
}

static inline int32_t blended(float factor, float x, float share, float white) {
    float value = factor * x;
    value += share;
    return (int32_t)(value < 0 ? 0 : value > white ? white : value);
}

static inline int32_t grey(float red, float green, float blue) {
    float sum = 0.2989f * red, part = 0.587f * green;
    sum += part;
    part = 0.114f * blue;
    sum += part;
    return (int32_t)sum;
}

NEAREST(nearest_uint8, uint8_t)
NEAREST(nearest_uint16, uint16_t)
NEAREST(nearest_float32, float)
BILINEAR(bilinear_uint8, uint8_t, TO_INTEGER)
BILINEAR(bilinear_uint16, uint16_t, TO_INTEGER)
BILINEAR(bilinear_float32, float, AS_IT_IS)
BLUR(blur_uint8, uint8_t)
BLUR(blur_uint16, uint16_t)
GREY_SUM(grey_sum_uint8, uint8_t)
GREY_SUM(grey_sum_uint16, uint16_t)
SATURATE(saturate_uint8, uint8_t)
SATURATE(saturate_uint16, uint16_t)
