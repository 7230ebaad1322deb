// Floats of a kernel's own that begin where a line of cache does: a register that crosses lines is loaded and stored twice, and cannot
// be read back before it has reached the cache.
#pragma once
#include <cstddef>
#include <new>
#include <vector>

constexpr size_t LINE = 64;  // bytes

template <class T>
struct OnLines {
    typedef T value_type;
    OnLines() = default;
    template <class U>
    OnLines(const OnLines<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(LINE))); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(LINE)); }
    friend bool operator==(const OnLines&, const OnLines&) { return true; }
    friend bool operator!=(const OnLines&, const OnLines&) { return false; }
};

typedef std::vector<float, OnLines<float>> Floats;
