// Sixteen lanes of one kind of number, on any instruction set: as many of the processor's own vectors
// as that takes. (One vector type of 16 lanes would do, but where it is wider than the processor's
// GCC compares it lane by lane.)
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace instantgi {

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kNative = 64;  // bytes
#elif defined(__AVX__)
constexpr int kNative = 32;
#else
constexpr int kNative = 16;
#endif

template <typename T>
struct Vec {
    typedef T Part __attribute__((vector_size(kNative)));
    static constexpr int kParts = kLanes * int(sizeof(T)) / kNative, kPerPart = kLanes / kParts;
    Part part[kParts];

    Vec() = default;
    INLINE Vec(T value) {
        for (auto& p : part) p = Part{} + value;
    }
    INLINE T operator[](int lane) const { return part[lane / kPerPart][lane % kPerPart]; }
    INLINE void set(int lane, T value) { part[lane / kPerPart][lane % kPerPart] = value; }

    INLINE Vec& operator+=(const Vec& other) { return *this = *this + other; }
    friend INLINE Vec operator+(Vec a, const Vec& b) {
        for (int i = 0; i < kParts; ++i) a.part[i] = a.part[i] + b.part[i];
        return a;
    }
    friend INLINE Vec operator-(Vec a, const Vec& b) {
        for (int i = 0; i < kParts; ++i) a.part[i] = a.part[i] - b.part[i];
        return a;
    }
    friend INLINE Vec operator*(Vec a, const Vec& b) {
        for (int i = 0; i < kParts; ++i) a.part[i] = a.part[i] * b.part[i];
        return a;
    }
    friend INLINE Vec operator/(Vec a, const Vec& b) {
        for (int i = 0; i < kParts; ++i) a.part[i] = a.part[i] / b.part[i];
        return a;
    }
};

template <typename T>
INLINE Vec<T> load(const T* from) {
    Vec<T> value;
    for (int i = 0; i < Vec<T>::kParts; ++i)
        std::memcpy(&value.part[i], from + i * Vec<T>::kPerPart, sizeof value.part[i]);
    return value;
}
template <typename T>
INLINE void store(T* to, const Vec<T>& value) {
    for (int i = 0; i < Vec<T>::kParts; ++i)
        std::memcpy(to + i * Vec<T>::kPerPart, &value.part[i], sizeof value.part[i]);
}

#if defined(__AVX512F__)
INLINE __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE __m512d fused(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#define INSTANTGI_FUSED
#elif defined(__AVX__) && defined(__FMA__)
INLINE __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE __m256d fused(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
#define INSTANTGI_FUSED
#elif defined(__ARM_NEON) && defined(__aarch64__)
INLINE float32x4_t fused(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
INLINE float64x2_t fused(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }
#define INSTANTGI_FUSED
#endif

// a · b + c in one rounding where the processor can, else in two; the same wherever it is inlined.
template <typename T>
INLINE Vec<T> multiply_add(const Vec<T>& a, const Vec<T>& b, const Vec<T>& c) {
#if defined(INSTANTGI_FUSED)
    Vec<T> sum;
    for (int i = 0; i < Vec<T>::kParts; ++i) sum.part[i] = fused(a.part[i], b.part[i], c.part[i]);
    return sum;
#else
    return a * b + c;
#endif
}

// The smaller and the larger; b where a is not a number.
template <typename T>
INLINE Vec<T> smaller(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < Vec<T>::kParts; ++i) a.part[i] = a.part[i] < b.part[i] ? a.part[i] : b.part[i];
    return a;
}
template <typename T>
INLINE Vec<T> larger(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < Vec<T>::kParts; ++i) a.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
    return a;
}

// value where s ≤ limit, else 0.
template <typename T>
INLINE Vec<T> keep_up_to(Vec<T> value, const Vec<T>& s, const Vec<T>& limit) {
    for (int i = 0; i < Vec<T>::kParts; ++i)
        value.part[i] = s.part[i] <= limit.part[i] ? value.part[i] : typename Vec<T>::Part{};
    return value;
}

#if defined(__AVX512F__)
#define INSTANTGI_MASK(mask) ((__m512i)(mask))
INLINE bool any(__m512i mask) { return _mm512_test_epi32_mask(mask, mask) != 0; }
#elif defined(__AVX__)
#define INSTANTGI_MASK(mask) ((__m256i)(mask))
INLINE bool any(__m256i mask) { return !_mm256_testz_si256(mask, mask); }
#else
#define INSTANTGI_MASK(mask) mask
template <typename Mask>
INLINE bool any(const Mask& mask) {
    int64_t words[kNative / 8], all = 0;
    std::memcpy(words, &mask, sizeof words);
    for (int64_t word : words) all |= word;
    return all != 0;
}
#endif

// Whether a < b in any lane.
template <typename T>
INLINE bool any_less(const Vec<T>& a, const Vec<T>& b) {
    auto found = a.part[0] < b.part[0];
    for (int i = 1; i < Vec<T>::kParts; ++i) found |= a.part[i] < b.part[i];
    return any(INSTANTGI_MASK(found));
}

// Whether a ≤ b in any lane.
template <typename T>
INLINE bool any_up_to(const Vec<T>& a, const Vec<T>& b) {
    auto found = a.part[0] <= b.part[0];
    for (int i = 1; i < Vec<T>::kParts; ++i) found |= a.part[i] <= b.part[i];
    return any(INSTANTGI_MASK(found));
}

// The sum of the lanes, in a fixed tree: the same rounding on every instruction set.
template <typename T>
INLINE T sum(const Vec<T>& value) {
    T lane[kLanes];
    store(lane, value);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

// 2^−s for 0 ≤ s; lanes beyond the limit, at most 126, become 0. The polynomial's relative error is 7.5e-8.
INLINE Vec<float> weight(const Vec<float>& s, const Vec<float>& limit) {
    typedef uint32_t Integers __attribute__((vector_size(kNative)));
    const float round = 12582912.f;  // 1.5 · 2²³: adding it rounds to an integer, kept in the low bits
    const Vec<float> t = Vec<float>(round) - s;
    const Vec<float> g = s + (t - round);
    Vec<float> p = multiply_add<float>(g, -0.001327647129073739f, 0.009675540961325169f);
    p = multiply_add<float>(p, g, -0.05550713092088699f);
    p = multiply_add<float>(p, g, 0.24022120237350464f);
    p = multiply_add<float>(p, g, -0.6931469440460205f);
    p = multiply_add<float>(p, g, 1.0000001192092896f);
    for (int i = 0; i < Vec<float>::kParts; ++i)
        p.part[i] = (Vec<float>::Part)(((Integers)t.part[i] << 23) + (Integers)p.part[i]);
    return keep_up_to(p, s, limit);
}
INLINE Vec<double> weight(const Vec<double>& s, const Vec<double>& limit) {
    Vec<double> w;
    for (int lane = 0; lane < kLanes; ++lane) w.set(lane, s[lane] <= limit[lane] ? std::exp2(-s[lane]) : 0.0);
    return w;
}

}  // namespace instantgi
