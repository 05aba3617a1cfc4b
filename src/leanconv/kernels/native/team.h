// Threads of the caller that take pieces of a step: see leanconv_run_together.
#pragma once

namespace leanconv {

void run_by_team(void* team, void (*task)(void* data, int worker), void* data);  // as Helpers::run

}  // namespace leanconv
