/* Stacks: a process checkpointed 3,000 frames deep, on an alternate signal stack inside a handler, in a context of
 * its own making (makecontext), each coming back through all its frames. */
#include "check.h"
#include <ucontext.h>

static unsigned char alternate[65536] __attribute__((aligned(4096))), coroutine[65536] __attribute__((aligned(4096)));
static ucontext_t main_context, other_context;
static volatile int in_handler, handled, in_coroutine;
static volatile uintptr_t handler_at;
static stack_t before;

static void handler(int number, siginfo_t *info, void *context)
{
    volatile int here = number;
    ucontext_t *c = context;
    in_handler++;
    handler_at = (uintptr_t)&here;
    CHECK(handler_at >= (uintptr_t)alternate && handler_at < (uintptr_t)alternate + sizeof alternate,
          "handler is not on the alternate stack");
    sigset_t mask, pending;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    CHECK(sigismember(&mask, SIGUSR1) && sigismember(&mask, SIGHUP) && !sigismember(&mask, SIGUSR2), "mask in handler");
    stack_t s;
    sigaltstack(NULL, &s);
    SAME(s.ss_flags & SS_ONSTACK, SS_ONSTACK, "on the alternate stack");
    ready();
    wait_go();
    sigprocmask(SIG_BLOCK, NULL, &mask);
    if (WRONG(1))
        sigdelset(&mask, SIGHUP);
    CHECK(sigismember(&mask, SIGUSR1) && sigismember(&mask, SIGHUP) && !sigismember(&mask, SIGUSR2),
          "mask in handler, afterwards");
    sigaltstack(NULL, &s);
    SAME(s.ss_flags & SS_ONSTACK, SS_ONSTACK, "on the alternate stack");
    CHECK(s.ss_sp == (void *)alternate && s.ss_size == sizeof alternate, "the alternate stack is another");
    SAME(here, number, "local variable of a handler");
    SAME(info->si_value.sival_int, 4711, "value of the signal");
    SAME(info->si_code, SI_QUEUE, "code of the signal");
    SAME(info->si_pid, getpid(), "sender");
    CHECK(c->uc_stack.ss_sp == (void *)alternate, "stack in the context");
    sigpending(&pending);
    CHECK(!sigismember(&pending, SIGUSR1), "pending");
    /* the mask the handler returns to */
    CHECK(!sigismember(&c->uc_sigmask, SIGHUP), "mask to return to");
    handled++;
    in_handler--;
}

static void other(void)
{
    volatile uint64_t local[64];
    fill((void *)local, sizeof local, 99);
    in_coroutine = 1;
    struct sigaction a = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaddset(&a.sa_mask, SIGHUP);
    MUST(sigaction(SIGUSR1, &a, NULL) == 0);
    union sigval v = {.sival_int = 4711};
    MUST(sigqueue(getpid(), SIGUSR1, v) == 0);
    SAME(handled, 1, "handler ran");
    if (WRONG(2))
        local[5]++;
    VERIFY(local, sizeof local, 99, "local variables of a coroutine");
    in_coroutine = 2;
}

static uint64_t deep(uint64_t level)
{
    volatile uint64_t a = word_at(level, 1), b = word_at(level, 2);
    if (level == 0) {
        MUST(swapcontext(&main_context, &other_context) == 0);
        SAME(in_coroutine, 2, "the coroutine ended");
    } else
        deep(level - 1);
    CHECK(a == word_at(level, 1) && b == word_at(level, 2), "frame %d differs", (int)level);
    return level;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    stack_t s = {.ss_sp = alternate, .ss_size = sizeof alternate};
    MUST(sigaltstack(&s, NULL) == 0);
    getcontext(&other_context);
    other_context.uc_stack.ss_sp = coroutine;
    other_context.uc_stack.ss_size = sizeof coroutine;
    other_context.uc_link = &main_context;
    makecontext(&other_context, other, 0);
    deep(3000);
    sigaltstack(NULL, &before);
    CHECK(before.ss_sp == (void *)alternate && before.ss_flags == 0, "alternate stack at the end");
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    CHECK(!sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGHUP), "mask at the end");
    ok();
}
