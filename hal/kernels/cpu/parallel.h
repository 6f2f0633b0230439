// One loop over pieces of work, on torch's OpenMP pool; on threads of its own (HAL_PTHREADS, for ThreadSanitizer).
#pragma once
#include <stdint.h>
#if defined(HAL_PTHREADS)
#include <pthread.h>
#elif defined(_OPENMP)
#include <omp.h>
#endif

template <class Work>
struct Pieces {
    const Work* work;
    int64_t count, next;
    int failed;
    void run() {
        for (;;) {
            int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            if (i >= count) return;
            int status = (*work)(i);
            if (status) __atomic_store_n(&failed, status, __ATOMIC_RELAXED);
        }
    }
};

// work(i) for every i below count, in that order as threads come free. Returns a status that is not 0, or 0.
template <class Work>
static int parallel(int64_t count, int64_t threads, const Work& work) {
    Pieces<Work> pieces = {&work, count, 0, 0};
    if (threads > count) threads = count;
    if (threads <= 1) {
        pieces.run();
        return pieces.failed;
    }
#if defined(HAL_PTHREADS)
    pthread_t ids[64];
    int64_t started = 0;
    auto body = [](void* p) -> void* { static_cast<Pieces<Work>*>(p)->run(); return nullptr; };
    for (; started < threads - 1 && started < 64; started++)
        if (pthread_create(&ids[started], nullptr, body, &pieces)) break;
    pieces.run();
    for (int64_t i = 0; i < started; i++) pthread_join(ids[i], nullptr);
#elif defined(_OPENMP)
    if (omp_in_parallel()) {
        pieces.run();
        return pieces.failed;
    }
#pragma omp parallel num_threads(int(threads))
    pieces.run();
#else
    pieces.run();
#endif
    return pieces.failed;
}
