/* Programs that test one interrupted call each: a thread (the subject) is inside the call at the checkpoint; the main
 * thread says READY only once the kernel shows it there, and later wakes it and looks at what the call returned.
 */
#ifndef CALLS_H
#define CALLS_H
#include "check.h"

struct call {
    const char *name;
    long number;          /* system call the subject must be seen in; a second one in `other`, or 0 */
    long other;
    void (*subject)(void); /* makes the call and checks the result */
    void (*wake)(void);    /* makes it return; NULL: it returns by itself, by its timeout */
};

static pthread_t subject_thread;
static atomic_int subject_tid, subject_done, woken;
static const struct call *current;
/* When the call was begun, by the clock of the job. */
static double began;

/* Seconds, of sleeps and timeouts that run out: long enough for a checkpoint to fall into them. */
static double SPAN = 2.0;
static struct timespec span;
UNUSED static const struct timespec long_span = {3600, 0};

__attribute__((constructor)) static void set_span(void)
{
    if (getenv("TORPOR_TEST_SPAN"))
        SPAN = atof(getenv("TORPOR_TEST_SPAN"));
    span = (struct timespec){(int)SPAN, (long)((SPAN - (int)SPAN) * 1e9)};
}

/* The call must have lasted its whole time, and was not woken before it was woken. */
UNUSED static void check_span(double seconds)
{
    double took = mono() - began;
    CHECK(took >= seconds - 0.0005, "%s: slept %.4f s of %.4f s", current->name, took, seconds);
    CHECK(took < seconds + 8 * PATIENCE, "%s: slept %.4f s instead of %.4f s", current->name, took, seconds);
}

UNUSED static void check_woken(void) { CHECK(woken, "%s returned before it was woken", current->name); }

static void *subject_main(void *unused)
{
    (void)unused;
    subject_tid = gettid();
    began = mono();
    current->subject();
    if (!current->wake)
        wait_go(); /* a timeout may be over before the word to verify comes */
    subject_done = 1;
    return NULL;
}

UNUSED static void run_call(const struct call *calls, size_t count)
{
    if (mode_count > 0)
        for (size_t i = 0; i < count; i++)
            if (strcmp(calls[i].name, mode_args[0]) == 0)
                current = &calls[i];
    if (!current) {
        for (size_t i = 0; i < count; i++)
            printf("%s\n", calls[i].name);
        exit(2);
    }
    MUST(pthread_create(&subject_thread, NULL, subject_main, NULL) == 0);
    UNTIL(subject_tid, 10, "subject");
    long at;
    UNTIL((at = blocked_in(subject_tid)) >= 0 && (at == current->number || at == current->other), 10, "the call");
    if (WRONG(1) && current->wake)
        current->wake(); /* too early: a lost EINTR or a false wake-up would look like this */
    ready();
    wait_go();
    if (current->wake) {
        /* It has to be still inside. (Where it was woken wrongly it has failed by now, or hangs: that is seen below.) */
        for (int i = 0; i < 10; i++)
            short_sleep();
        woken = 1;
        current->wake();
    }
    UNTIL(subject_done, 10 + SPAN, "return of the call");
    pthread_join(subject_thread, NULL);
    ok();
}

UNUSED static void nothing(int number) { (void)number; }

#define RUN_CALLS                                                                                                      \
    int main(int argc, char **argv)                                                                                    \
    {                                                                                                                  \
        begin(argc, argv);                                                                                             \
        run_call(calls, sizeof calls / sizeof *calls);                                                                 \
    }
#endif
