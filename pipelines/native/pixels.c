/* Resampling, blur and colour jitter of images, one row at a time.

   resample.py and augment.py define the results, which are equal bit by bit; the compiler must
   therefore not contract a multiplication and an addition into one rounding.

   A source has `lanes` channels, `lane` elements apart, and rows `stride` elements apart. With
   `packed`, the channels of a pixel are neighbours. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

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

/* Output j of each of the `lanes` planes, `plane` apart, from its elements left[j] and right[j]. */
#define ACROSS(NAME, TYPE, ROUND)                                                                  \
    static inline void NAME(const float *planes, ptrdiff_t plane, int lanes, const int32_t *left,  \
                            const int32_t *right, const float *weights, int width, TYPE *target,   \
                            ptrdiff_t target_lane) {                                               \
        int done = NAME##_vectors(planes, plane, lanes, left, right, weights, width, target,       \
                                  target_lane);                                                    \
        for (int c = 0; c < lanes; c++) {                                                          \
            const float *restrict from = planes + c * plane;                                       \
            TYPE *restrict to = target + c * target_lane;                                          \
            for (int j = done; j < width; j++) {                                                   \
                float first = from[left[j]], step = from[right[j]];                                \
                step -= first;                                                                     \
                step *= weights[j];                                                                \
                to[j] = (TYPE)ROUND(first + step);                                                 \
            }                                                                                      \
        }                                                                                          \
    }

/* The same for the first outputs, sixteen at once, and how many were done: as long as all elements
   of sixteen lie among 32 neighbours, two registers hold them, and choosing takes a quarter of the
   time of loading one by one. Reads up to 31 elements behind the last one. */
#ifdef __AVX512F__
#define ACROSS_VECTORS(NAME, TYPE, STORE)                                                          \
    static inline int NAME(const float *planes, ptrdiff_t plane, int lanes, const int32_t *left,   \
                           const int32_t *right, const float *weights, int width, TYPE *target,    \
                           ptrdiff_t target_lane) {                                                \
        int j = 0;                                                                                 \
        for (; j + 16 <= width; j += 16) {                                                         \
            int start = least(left[j], right[j]), end = least(left[j + 15], right[j + 15]);        \
            int base = least(start, end);                                                          \
            /* each right is the neighbour of its left, so the largest is at most one more */      \
            if (start + end - base + 1 - base > 31) break;                                         \
            __m512i origin = _mm512_set1_epi32(base);                                              \
            __m512i low = _mm512_sub_epi32(_mm512_loadu_si512(left + j), origin);                  \
            __m512i high = _mm512_sub_epi32(_mm512_loadu_si512(right + j), origin);                \
            __m512 weight = _mm512_loadu_ps(weights + j);                                          \
            for (int c = 0; c < lanes; c++) {                                                      \
                const float *from = planes + c * plane + base;                                     \
                __m512 near = _mm512_loadu_ps(from), far = _mm512_loadu_ps(from + 16);             \
                __m512 first = _mm512_permutex2var_ps(near, low, far);                             \
                __m512 step = _mm512_permutex2var_ps(near, high, far);                             \
                step = _mm512_mul_ps(_mm512_sub_ps(step, first), weight);                          \
                STORE(target + c * target_lane + j, _mm512_add_ps(first, step));                   \
            }                                                                                      \
        }                                                                                          \
        return j;                                                                                  \
    }
#else
#define ACROSS_VECTORS(NAME, TYPE, STORE)                                                          \
    static inline int NAME(const float *planes, ptrdiff_t plane, int lanes, const int32_t *left,   \
                           const int32_t *right, const float *weights, int width, TYPE *target,    \
                           ptrdiff_t target_lane) {                                                \
        return 0;                                                                                  \
    }
#endif

/* Columns begin..end of the source are used. `blend` has room for two rows of the source up to end
   and 32 elements more. */
#define BILINEAR(NAME, TYPE)                                                                       \
    void NAME(const TYPE *source, ptrdiff_t lane, ptrdiff_t stride, int lanes, int packed,         \
              const int32_t *top, const int32_t *bottom, const float *down, int height,            \
              const int32_t *left, const int32_t *right, const float *across, int width,           \
              int begin, int end, float *blend, TYPE *target, ptrdiff_t target_lane,               \
              ptrdiff_t target_stride) {                                                           \
        int passes = packed ? 1 : lanes, inner = packed ? lanes : 1;                               \
        float *planes = packed ? blend + (ptrdiff_t)end * lanes : blend;                           \
        for (int i = 0; i < height; i++) {                                                         \
            for (int pass = 0; pass < passes; pass++) {                                            \
                const TYPE *restrict above = source + pass * lane + top[i] * stride;               \
                const TYPE *restrict below = source + pass * lane + bottom[i] * stride;            \
                float *restrict row = blend;                                                       \
                float weight = down[i];                                                            \
                for (int j = begin * inner; j < end * inner; j++) {                                \
                    float first = above[j], step = below[j];                                       \
                    step -= first;                                                                 \
                    step *= weight;                                                                \
                    row[j] = first + step;                                                         \
                }                                                                                  \
                if (packed) unpack(row, planes, lanes, begin, end);                                \
                NAME##_across(planes, end, inner, left, right, across, width,                      \
                              target + pass * target_lane + i * target_stride, target_lane);       \
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

/* Planes of `end` pixels from packed pixels, of which begin..end are used. */
static inline void unpack(const float *restrict row, float *restrict planes, int lanes, int begin,
                          int end) {
    if (lanes == 3) {
        /* known to the compiler, the stride becomes shuffles */
        float *restrict red = planes, *restrict green = planes + end;
        float *restrict blue = planes + 2 * (ptrdiff_t)end;
        for (int j = begin; j < end; j++) {
            red[j] = row[3 * j];
            green[j] = row[3 * j + 1];
            blue[j] = row[3 * j + 2];
        }
        return;
    }
    for (int c = 0; c < lanes; c++)
        for (int j = begin; j < end; j++) planes[c * (ptrdiff_t)end + j] = row[j * lanes + c];
}

#ifdef __AVX512F__
static inline int least(int a, int b) { return a < b ? a : b; }

static inline void store_uint8(uint8_t *to, __m512 values) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(values)));
}

static inline void store_uint16(uint16_t *to, __m512 values) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(values)));
}
#endif

NEAREST(nearest_uint8, uint8_t)
NEAREST(nearest_uint16, uint16_t)
NEAREST(nearest_float32, float)
ACROSS_VECTORS(bilinear_uint8_across_vectors, uint8_t, store_uint8)
ACROSS_VECTORS(bilinear_uint16_across_vectors, uint16_t, store_uint16)
ACROSS_VECTORS(bilinear_float32_across_vectors, float, _mm512_storeu_ps)
ACROSS(bilinear_uint8_across, uint8_t, TO_INTEGER)
ACROSS(bilinear_uint16_across, uint16_t, TO_INTEGER)
ACROSS(bilinear_float32_across, float, AS_IT_IS)
BILINEAR(bilinear_uint8, uint8_t)
BILINEAR(bilinear_uint16, uint16_t)
BILINEAR(bilinear_float32, float)
BLUR(blur_uint8, uint8_t)
BLUR(blur_uint16, uint16_t)
GREY_SUM(grey_sum_uint8, uint8_t)
GREY_SUM(grey_sum_uint16, uint16_t)
SATURATE(saturate_uint8, uint8_t)
SATURATE(saturate_uint16, uint16_t)
