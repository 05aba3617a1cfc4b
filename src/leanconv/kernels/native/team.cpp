// Threads of the caller that take pieces of a step. One publishes a task, runs it too, and closes it; those that were not
// there in time have missed it. Steps are as short as ten microseconds, so threads wait for them in a loop.
#include "team.h"

#include <sched.h>
#include <stdint.h>

#include "leanconv_kernels.h"

namespace leanconv {
namespace {

constexpr int64_t kReleased = -1;
constexpr int kSpins = 4000;  // some fifty microseconds, then the core is offered to others

// On a cache line each: what the one that publishes writes, and what the others do.
struct Team {
    alignas(64) int64_t open;  // 0 between tasks, the number of the task while one is open, kReleased at the end
    int64_t tasks;
    void (*task)(void* data, int worker);
    void* data;
    alignas(64) int64_t inside;  // threads that may be running the task, but for the one that published it
};
static_assert(sizeof(Team) <= LEANCONV_TEAM_BYTES, "callers make room for so many bytes");

void wait_a_little(int* spins) {
    if (++*spins > kSpins) {
        sched_yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

void run_by_team(void* memory, void (*task)(void* data, int worker), void* data) {
    Team& team = *static_cast<Team*>(memory);
    team.task = task;
    team.data = data;
    __atomic_store_n(&team.open, ++team.tasks, __ATOMIC_SEQ_CST);
    task(data, 0);
    // Closed before those inside are counted, as they count themselves before they look whether it is open: none comes in
    // behind the count.
    __atomic_store_n(&team.open, 0, __ATOMIC_SEQ_CST);
    for (int spins = 0; __atomic_load_n(&team.inside, __ATOMIC_SEQ_CST);) wait_a_little(&spins);
}

}  // namespace leanconv

using namespace leanconv;

extern "C" {

void leanconv_help(void* memory, int worker) {
    Team& team = *static_cast<Team*>(memory);
    int64_t last = 0;
    for (int spins = 0;;) {
        const int64_t seen = __atomic_load_n(&team.open, __ATOMIC_SEQ_CST);
        if (seen == kReleased) return;
        if (seen == 0 || seen == last) {
            wait_a_little(&spins);
            continue;
        }
        __atomic_add_fetch(&team.inside, 1, __ATOMIC_SEQ_CST);
        const int64_t now = __atomic_load_n(&team.open, __ATOMIC_SEQ_CST);
        if (now > 0) {
            team.task(team.data, worker);
            last = now;
            spins = 0;
        }
        __atomic_sub_fetch(&team.inside, 1, __ATOMIC_SEQ_CST);
    }
}

void leanconv_release(void* memory) {
    __atomic_store_n(&static_cast<Team*>(memory)->open, kReleased, __ATOMIC_SEQ_CST);
}

}  // extern "C"
