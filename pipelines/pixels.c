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
   has room for a row and taps - 1 pixels more. The target is laid out as the source. */
#define BLUR(NAME, TYPE)                                                                           \
    void NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int lanes, int packed,         \
              int height, int width, const float *weights, int taps, float *padded, TYPE *target,  \
              ptrdiff_t target_lane, ptrdiff_t target_stride) {                                    \
        int passes = packed ? 1 : lanes, pixel = packed ? lanes : 1, half = taps / 2;              \
        int length = width * pixel;                                                                \
        float *restrict middle = padded + half * pixel;                                            \
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
                for (int j = 0; j < length; j++) {                                                 \
                    float sum = weights[0] * padded[j];                                            \
                    for (int k = 1; k < taps; k++) {                                               \
                        float part = weights[k] * padded[j + k * pixel];                           \
                        sum += part;                                                               \
                    }                                                                              \
                    to[j] = (TYPE)TO_INTEGER(sum);                                                 \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

/* Sum of the grey values of the image whose codes are looked up in `table`. Channels of a pixel are
   `lane` apart, pixels `pixel`. */
#define GREY_SUM(NAME, TYPE)                                                                       \
    int64_t NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int pixel, int height,      \
                 int width, const TYPE *table) {                                                   \
        int64_t sum = 0;                                                                           \
        for (int i = 0; i < height; i++) {                                                         \
            const TYPE *from = source + i * stride;                                                \
            for (int j = 0; j < width; j++) {                                                      \
                const TYPE *at = from + j * pixel;                                                 \
                sum += grey(table[at[0]], table[at[lane]], table[at[2 * lane]]);                   \
            }                                                                                      \
        }                                                                                          \
        return sum;                                                                                \
    }

/* factor x + (1 - factor) grey(x), cut to 0..white and truncated, of x = table[code]. */
#define SATURATE(NAME, TYPE)                                                                       \
    void NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int pixel, int height,         \
              int width, const TYPE *table, float factor, float rest, float white, TYPE *target,   \
              ptrdiff_t target_lane, ptrdiff_t target_stride) {                                    \
        for (int i = 0; i < height; i++) {                                                         \
            const TYPE *from = source + i * stride;                                                \
            TYPE *to = target + i * target_stride;                                                 \
            for (int j = 0; j < width; j++) {                                                      \
                const TYPE *at = from + j * pixel;                                                 \
                float x[3] = {table[at[0]], table[at[lane]], table[at[2 * lane]]};                 \
                float share = rest * (float)grey(x[0], x[1], x[2]);                                \
                for (int c = 0; c < 3; c++) {                                                      \
                    float value = factor * x[c];                                                   \
                    value += share;                                                                \
                    value = value < 0 ? 0 : value > white ? white : value;                         \
                    to[j * pixel + c * target_lane] = (TYPE)(int32_t)value;                        \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

#define TO_INTEGER(x) (int32_t) rintf(x)
#define AS_IT_IS(x) (x)

static int mirrored(int i, int length) {
    if (length == 1) return 0;
    int period = 2 * (length - 1);
    i = (i % period + period) % period;
    return i < length ? i : period - i;
}

static int32_t grey(float red, float green, float blue) {
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
